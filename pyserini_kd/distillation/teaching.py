"""Score candidates by teachers: checkpoints, runs (such as BM25) or score files.

The ensemble's score is the mean of the weighted scores. The scores are raw, or `scaling` brings them to one scale.
"""

import contextlib
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np

from pyserini_kd.data.runs import Run
from pyserini_kd.distillation.candidates import Group
from pyserini_kd.distillation.scaling import ScaleName, query_rows, scaled
from pyserini_kd.distillation.teacher_scores import Block, Known, Pairs, ScoreStore, Taught, hashes_of_pairs, read_scores
from pyserini_kd.models import rankers
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.open_index import check_encoder
from pyserini_kd.storage.arrays import Floats, Hashes, column, keep, let_go, spans
from pyserini_kd.storage.environment import command_line, environment, sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.job import open_job
from pyserini_kd.storage.records import Record, comparable

logger = logging.getLogger(__name__)

BLOCK = 1 << 14  # pairs scored and saved at a time; their texts are in memory

Kind = Literal["run", "scores", "checkpoint"]


class Teacher(NamedTuple):
    """One teacher of an ensemble.

    Attributes:
        kind: checkpoint, run, or score file (score store or 5-column file).
        name: the checkpoint or the path of the file.
        weight: factor of its raw scores. None means 1 and refuses scores in [-1, 1].
    """

    kind: Kind
    name: str
    weight: float | None = None

    @classmethod
    def parse(cls, kind: Kind, text: str) -> Self:
        """Parse `NAME` or `NAME@WEIGHT`."""
        name, at, weight = text.rpartition("@")
        if not at:
            return cls(kind, text)
        with contextlib.suppress(ValueError):
            if math.isfinite(value := float(weight)):
                return cls(kind, name, value)
        raise InputError(f"teacher {text}: the weight after @ must be a number")

    def refuse_bounded(self, what: str) -> None:
        """Raise InputError if a teacher with scores (`what`) in [-1, 1] has no weight."""
        if self.weight is None:
            weighted = f"{self.name}@20"
            raise InputError(f"teacher {self.name} gives {what} in [-1, 1], too small to teach; add a weight, e.g. {weighted}")


def teach(
    groups: Sequence[Group],
    queries: Mapping[str, str],
    docs: Mapping[str, str],
    teachers: Sequence[Teacher],
    *,
    scale: ScaleName = "none",
    index: DenseIndex | None = None,
    reuse: Sequence[Known] = (),
    work: Path | None = None,
    scratch: Path | None = None,
    device: str = "cpu",
    precision: str = "auto",
    backend: str = "auto",
    batch_size: int | None = None,
) -> Taught:
    """Score every distinct (query, document) pair of the groups once with each teacher.

    `queries` and `docs` are texts by id. `device`, `precision`, `backend` and `batch_size` are those of `models.load`.
    `scale` brings the raw scores of all teachers to one scale before the weights apply (see `scaling`).
    `index` holds document vectors of the only checkpoint, a bert_dot; they are not encoded again.
    `reuse` holds earlier scores; the same checkpoint with the same settings does not score the same texts again.
    `work` is a folder for finished blocks; a later call with the same texts and settings resumes from them.
    `scratch` is a folder for large columns (None: memory); the result still needs it.
    """
    started = time.monotonic()
    request = _Request(groups, queries, docs, scratch)
    raw, weights, records = dict[str, Floats](), dict[str, float](), list[Record]()
    for teacher in teachers:
        scores = raw[teacher.name] = column(scratch, len(request.pairs), np.float32)
        if teacher.kind == "checkpoint":
            model = rankers.load(teacher.name, device=device, precision=precision, backend=backend, batch_size=batch_size)
            scorer = _Checkpoint(model, teacher.name, index)
            _score_by_checkpoint(scorer, request, scores, reuse, work, {"batch_size": batch_size, "device": device})
            record = scorer.record
        else:
            record = _score_by_file(teacher, request, scores, scale)
        weights[teacher.name] = 1.0 if teacher.weight is None else teacher.weight
        records.append({**record, "weight": weights[teacher.name]})
    rows = np.empty(0, np.int32) if scale == "none" else query_rows(request.pairs)
    scales = {name: scaled(scale, rows, scores, name) for name, scores in raw.items()}
    score = column(scratch, len(request.pairs), np.float32)
    for part in spans(len(score)):
        score[part] = ensemble({name: scaled_scores(part) for name, (scaled_scores, _) in scales.items()}, weights)
        let_go(score, *raw.values())
    about: Record = {"teachers": records, "scale": scale, "spreads": {name: spread for name, (_, spread) in scales.items()}}
    about |= {"n_pairs": len(request.pairs), "seconds": round(time.monotonic() - started, 1)}
    return Taught(request.pairs, request.texts, raw, score, {**about, "command": command_line(), **environment()})


def ensemble(raw: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    """Return the mean over teachers of weight x raw score. With weights of 1 this is T2 of Hofstätter et al. 2020.

    >>> ensemble({"a": np.float32([1, 2]), "b": np.float32([3, 6])}, {"a": 1.0, "b": 1.0})
    array([2., 4.], dtype=float32)
    """
    total = np.zeros(len(next(iter(raw.values()))))
    for name, scores in raw.items():
        total += weights[name] * scores.astype(np.float64)
    return (total / len(raw)).astype(np.float32)


class _Request:
    """Pairs to score, with their texts and text hashes."""

    def __init__(
        self, groups: Sequence[Group], queries: Mapping[str, str], docs: Mapping[str, str], scratch: Path | None
    ) -> None:
        self.pairs = Pairs(groups, scratch)
        self._queries, self._docs = queries, docs
        self.texts: Hashes = column(scratch, len(self.pairs), np.uint64)
        digest = hashlib.sha256()
        for block in self.pairs.blocks(BLOCK):
            self.texts[block.places] = hashes_of_pairs(zip(*self.texts_of(block), strict=True))
            digest.update(self.texts[block.places].data)
            let_go(self.texts)
        self.digest = digest.hexdigest()

    def texts_of(self, block: Block) -> tuple[list[str], list[str]]:
        """Return query and document texts of a block."""
        queries = {query_id: self._queries[query_id] for query_id in dict.fromkeys(block.query_ids)}
        return [queries[query_id] for query_id in block.query_ids], [self._docs[doc_id] for doc_id in block.doc_ids]


def _score_by_file(teacher: Teacher, request: _Request, scores: Floats, scale: ScaleName) -> Record:
    """Fill scores from a run (0 for absent documents) or from a score file, which must have all pairs."""
    find = _in_run(teacher, scale) if teacher.kind == "run" else _in_scores(teacher.name, request)
    missing, largest = 0, 0.0
    for block in request.pairs.blocks(BLOCK):
        found = find(block)
        missing += int(np.isnan(found).sum())
        largest = max(largest, float(np.nanmax(np.abs(found), initial=0.0)))
        scores[block.places] = np.nan_to_num(found)
        let_go(scores)
    record: Record = {"name": teacher.name, "sha256": sha256(teacher.name)}
    count = len(scores)
    if teacher.kind == "run":
        if missing == count:
            raise InputError(f"run {teacher.name} has none of the {count} candidate pairs; use a run of the same topics")
        logger.info("%s: %d of %d pairs are not in the run and score 0", teacher.name, missing, count)
        record["absent"] = missing
    elif missing:
        raise InputError(f"score file {teacher.name} lacks {missing} of {count} candidate pairs or has other texts")
    elif largest <= 1 and scale == "none":
        teacher.refuse_bounded("scores")
    return record


def _in_run(teacher: Teacher, scale: ScaleName) -> Callable[[Block], Floats]:
    run = Run.read(teacher.name)
    if scale == "none" and all(np.abs(hits.scores).max(initial=0.0) <= 1 for hits in run.values()):
        teacher.refuse_bounded("scores")

    def find(block: Block) -> Floats:
        queries = [query_id for query_id in dict.fromkeys(block.query_ids) if query_id in run]
        known = {q: dict(zip(run[q].doc_ids, run[q].scores.tolist(), strict=True)) for q in queries}
        pairs = zip(block.query_ids, block.doc_ids, strict=True)
        return np.array([known.get(q, {}).get(d, np.nan) for q, d in pairs], np.float32)

    return find


def _in_scores(name: str, request: _Request) -> Callable[[Block], Floats]:
    """A store matches pairs by text, since its ids may mean other texts here. A 5-column file matches by id."""
    if name.endswith(".parquet"):
        table = ScoreStore(name).ensemble(request.pairs.folder)
        return lambda block: table.find(request.texts[block.places])
    scores = read_scores(name, request.pairs)
    return lambda block: scores.find(zip(block.query_ids, block.doc_ids, strict=True))


class _Checkpoint:
    """A loaded checkpoint. It takes document vectors from its index, if given."""

    def __init__(self, model: rankers.Scorer, name: str, index: DenseIndex | None) -> None:
        self.name, self._model, self._index = name, model, index
        self.record: Record = model.record() | {"dtype": "float32", "architecture": model.architecture}
        self.record |= {"precision": model.precision, "backend": model.backend}
        if index is not None:
            if not isinstance(model, rankers.Encoder):
                raise InputError(f"needs a bert_dot teacher; {name} is a {model.architecture}", "index")
            check_encoder(index, model)
            if not index.store.is_exact:
                raise InputError(f"{index.folder} has no exact vectors; give a Flat index", "index")
            # lengths and precision of its vectors
            self.record["index"] = index.manifest.encoder if index.manifest else None

    def score(self, queries: list[str], doc_ids: list[str], docs: list[str]) -> Floats:
        if self._index is not None and isinstance(self._model, rankers.Encoder):
            return self._index.score(self._model, queries, doc_ids)
        return self._model.score(queries, docs)


def _score_by_checkpoint(
    scorer: _Checkpoint, request: _Request, scores: Floats, reuse: Sequence[Known], work: Path | None, settings: Record
) -> None:
    """Fill raw scores of a checkpoint block by block; reads finished blocks under `work`. `settings` can change last bits."""
    same = [known for known in reuse if known.is_of(scorer.record)]
    before = 0
    with contextlib.ExitStack() as stack:
        job = None
        if work:
            made_from = {"teacher": scorer.record, **settings, "block": BLOCK, "texts": request.digest}
            folder = work / hashlib.sha256(json.dumps(comparable(made_from)).encode()).hexdigest()
            job = stack.enter_context(open_job(folder, made_from, "teach"))
        for number, block in enumerate(request.pairs.blocks(BLOCK)):
            if job is not None and job.is_done(number):
                found = np.load(job.path(number, "npy"))
            else:
                found, fresh = _scores_of(scorer, request, block, same)
                before += len(found) - fresh
                if job is not None:
                    keep(job.path(number, "npy"), found)
                    job.finish(number)
            scores[block.places] = found
            let_go(scores, request.texts)
    if same:
        logger.info("%s: %d of %d pairs were scored before", scorer.name, before, len(scores))


def _scores_of(scorer: _Checkpoint, request: _Request, block: Block, same: Sequence[Known]) -> tuple[Floats, int]:
    """Return the scores of a block and the number of new ones; InputError if one is not finite."""
    found = np.full(len(block.doc_ids), np.nan, np.float32)
    for known in same:
        earlier = known.scores.find(request.texts[block.places])
        found = np.where(np.isnan(earlier), found, earlier)
    fresh = np.flatnonzero(np.isnan(found)).tolist()
    if fresh:
        new = Block(block.places, [block.query_ids[row] for row in fresh], [block.doc_ids[row] for row in fresh])
        queries, docs = request.texts_of(new)
        scores = scorer.score(queries, new.doc_ids, docs)
        if len(wrong := np.flatnonzero(~np.isfinite(scores))):
            pair = f"query {new.query_ids[wrong[0]]}, document {new.doc_ids[wrong[0]]}"
            raise InputError(f"{scorer.name}: {len(wrong)} scores are not finite, e.g. {pair}; try precision fp32")
        found[fresh] = scores
    return found, len(fresh)
