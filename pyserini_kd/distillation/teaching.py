"""Teacher scores: each teacher scores the candidates once; the ensemble's score is the mean of their weighted scores.

The weighted scores are raw ones, or such as `scaling` has brought to one scale.

A teacher is a checkpoint, a run (BM25's, for one) or a file of scores.
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

BLOCK = 1 << 14  # pairs scored, and kept against a kill, at a time; their texts are in memory

Kind = Literal["run", "scores", "checkpoint"]


class Teacher(NamedTuple):
    """One teacher of an ensemble.

    Attributes:
        kind: a checkpoint, a run, or a file of scores (score store or published 5-column file).
        name: the checkpoint, or the path of the file.
        weight: what its raw scores are multiplied by. None is 1, and refuses a teacher whose scores lie in [-1, 1].
    """

    kind: Kind
    name: str
    weight: float | None = None

    @classmethod
    def parse(cls, kind: Kind, text: str) -> Self:
        """Read `NAME` or `NAME@WEIGHT`."""
        name, at, weight = text.rpartition("@")
        if not at:
            return cls(kind, text)
        with contextlib.suppress(ValueError):
            if math.isfinite(value := float(weight)):
                return cls(kind, name, value)
        raise InputError(f"teacher {text}: the weight after @ must be a number")

    def refuse_bounded(self, what: str) -> None:
        """InputError if scores in [-1, 1] (`what` they are) have no weight."""
        if self.weight is None:
            cure = f"give it a weight, e.g. {self.name}@20"
            raise InputError(f"teacher {self.name} gives {what} in [-1, 1]; margins that small teach little: {cure}")


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

    `queries` and `docs` are the texts by id. `device`, `precision`, `backend` and `batch_size` are those of `models.load`.
    `scale` brings the raw scores of each teacher to one scale before its weight is applied (see `scaling`).
    `index` holds the document vectors of the checkpoint (one, a BERT_DOT), which need not be encoded again.
    `reuse` is what checkpoints have scored before. The same checkpoint, so set, does not score the same texts again.
    `work` is a folder for finished blocks of scores; a later call with the same texts and settings goes on from them.
    `scratch` is a folder for large columns, which are in memory otherwise; what is returned needs it.
    """
    started = time.monotonic()
    asked = _Asked(groups, queries, docs, scratch)
    raw, weights, records = dict[str, Floats](), dict[str, float](), list[Record]()
    for teacher in teachers:
        scores = raw[teacher.name] = column(scratch, len(asked.pairs), np.float32)
        if teacher.kind == "checkpoint":
            model = rankers.load(teacher.name, device=device, precision=precision, backend=backend, batch_size=batch_size)
            scorer = _Checkpoint(model, teacher.name, index)
            _score_by_checkpoint(scorer, asked, scores, reuse, work, {"batch_size": batch_size, "device": device})
            record = scorer.record
        else:
            record = _score_by_file(teacher, asked, scores, scale)
        weights[teacher.name] = 1.0 if teacher.weight is None else teacher.weight
        records.append({**record, "weight": weights[teacher.name]})
    rows = np.empty(0, np.int32) if scale == "none" else query_rows(asked.pairs)
    scales = {name: scaled(scale, rows, scores, name) for name, scores in raw.items()}
    score = column(scratch, len(asked.pairs), np.float32)
    for some in spans(len(score)):
        score[some] = ensemble({name: own(some) for name, (own, _) in scales.items()}, weights)
        let_go(score, *raw.values())
    about: Record = {"teachers": records, "scale": scale, "spreads": {name: spread for name, (_, spread) in scales.items()}}
    about |= {"n_pairs": len(asked.pairs), "seconds": round(time.monotonic() - started, 1)}
    return Taught(asked.pairs, asked.texts, raw, score, {**about, "command": command_line(), **environment()})


def ensemble(raw: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    """Mean over teachers of weight x raw score. With weights of 1, Hofstätter et al.'s T2.

    >>> ensemble({"a": np.float32([1, 2]), "b": np.float32([3, 6])}, {"a": 1.0, "b": 1.0})
    array([2., 4.], dtype=float32)
    """
    total = np.zeros(len(next(iter(raw.values()))))
    for name, scores in raw.items():
        total += weights[name] * scores.astype(np.float64)
    return (total / len(raw)).astype(np.float32)


class _Asked:
    """The pairs that are scored, with their texts and the hashes of these."""

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
        """Query and document texts of some pairs."""
        queries = {query_id: self._queries[query_id] for query_id in dict.fromkeys(block.query_ids)}
        return [queries[query_id] for query_id in block.query_ids], [self._docs[doc_id] for doc_id in block.doc_ids]


def _score_by_file(teacher: Teacher, asked: _Asked, scores: Floats, scale: ScaleName) -> Record:
    """Write the scores of a run (0 for documents that it did not return) or of a file, which must have them all."""
    find = _in_run(teacher, scale) if teacher.kind == "run" else _in_scores(teacher.name, asked)
    missing, largest = 0, 0.0
    for block in asked.pairs.blocks(BLOCK):
        own = find(block)
        missing += int(np.isnan(own).sum())
        largest = max(largest, float(np.nanmax(np.abs(own), initial=0.0)))
        scores[block.places] = np.nan_to_num(own)
        let_go(scores)
    record: Record = {"name": teacher.name, "sha256": sha256(teacher.name)}
    count = len(scores)
    if teacher.kind == "run":
        if missing == count:
            raise InputError(f"run {teacher.name} has none of the candidates' {count} pairs; a run of other topics?")
        logger.info("%s: %d of %d pairs are not in the run and score 0", teacher.name, missing, count)
        record["absent"] = missing
    elif missing:
        raise InputError(f"score file {teacher.name} lacks {missing} of the candidates' {count} pairs, or knows other texts")
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


def _in_scores(name: str, asked: _Asked) -> Callable[[Block], Floats]:
    """A store knows the texts that it scored; its ids may mean other texts here. A published file knows ids alone."""
    if name.endswith(".parquet"):
        table = ScoreStore(name).ensemble(asked.pairs.folder)
        return lambda block: table.find(asked.texts[block.places])
    scores = read_scores(name, asked.pairs)
    return lambda block: scores.find(zip(block.query_ids, block.doc_ids, strict=True))


class _Checkpoint:
    """A loaded checkpoint. It takes document vectors from the index if there is one, which must be its own."""

    def __init__(self, model: rankers.Scorer, name: str, index: DenseIndex | None) -> None:
        self.name, self._model, self._index = name, model, index
        self.record: Record = model.record() | {"dtype": "float32", "architecture": model.architecture}
        self.record |= {"precision": model.precision, "backend": model.backend}
        if index is not None:
            if not isinstance(model, rankers.Encoder):
                raise InputError(f"it holds vectors of a bert_dot; teacher {name} is a {model.architecture}", "index")
            check_encoder(index, model)
            if not index.store.is_exact:
                raise InputError(f"{index.folder} does not hold exact vectors; a teacher needs a Flat one", "index")
            # the lengths and precision its vectors were made with
            self.record["index"] = index.manifest.encoder if index.manifest else None

    def score(self, queries: list[str], doc_ids: list[str], docs: list[str]) -> Floats:
        if self._index is not None and isinstance(self._model, rankers.Encoder):
            return self._index.score(self._model, queries, doc_ids)
        return self._model.score(queries, docs)


def _score_by_checkpoint(
    scorer: _Checkpoint, asked: _Asked, scores: Floats, reuse: Sequence[Known], work: Path | None, settings: Record
) -> None:
    """Write the raw scores of a checkpoint, a block at a time; blocks that lie finished in a folder under `work` are read.

    `settings` also decide the last bits of a score.
    """
    same = [known for known in reuse if known.is_of(scorer.record)]
    before = 0
    with contextlib.ExitStack() as stack:
        job = None
        if work:
            made_from = {"teacher": scorer.record, **settings, "block": BLOCK, "texts": asked.digest}
            folder = work / hashlib.sha256(json.dumps(comparable(made_from)).encode()).hexdigest()
            job = stack.enter_context(open_job(folder, made_from, "teach"))
        for number, block in enumerate(asked.pairs.blocks(BLOCK)):
            if job is not None and job.is_done(number):
                found = np.load(job.path(number, "npy"))
            else:
                found, fresh = _scores_of(scorer, asked, block, same)
                before += len(found) - fresh
                if job is not None:
                    keep(job.path(number, "npy"), found)
                    job.finish(number)
            scores[block.places] = found
            let_go(scores, asked.texts)
    if same:
        logger.info("%s: %d of %d pairs were scored before", scorer.name, before, len(scores))


def _scores_of(scorer: _Checkpoint, asked: _Asked, block: Block, same: Sequence[Known]) -> tuple[Floats, int]:
    """The scores of a block, and how many of them were not known before; InputError if one is not finite."""
    found = np.full(len(block.doc_ids), np.nan, np.float32)
    for known in same:
        earlier = known.scores.find(asked.texts[block.places])
        found = np.where(np.isnan(earlier), found, earlier)
    fresh = np.flatnonzero(np.isnan(found)).tolist()
    if fresh:
        some = Block(block.places, [block.query_ids[row] for row in fresh], [block.doc_ids[row] for row in fresh])
        queries, docs = asked.texts_of(some)
        scores = scorer.score(queries, some.doc_ids, docs)
        if len(wrong := np.flatnonzero(~np.isfinite(scores))):
            pair = f"query {some.query_ids[wrong[0]]}, document {some.doc_ids[wrong[0]]}"
            raise InputError(f"{scorer.name}: {len(wrong)} scores are not finite, e.g. {pair}; precision fp32 may help")
        found[fresh] = scores
    return found, len(fresh)
