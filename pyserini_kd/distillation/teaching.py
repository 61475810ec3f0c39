"""Teacher scores: score candidates once, keep the raw scores and who gave them; the published 5-column file.

A teacher is a checkpoint, a run (BM25's, for one) or a file of scores; an ensemble's score is the mean of its teachers'
weighted raw scores.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyserini_kd.data.runs import Run
from pyserini_kd.distillation.candidates import Group, pairs
from pyserini_kd.distillation.pairs import BLOCK, Pairs
from pyserini_kd.distillation.score_store import (
    Known,
    Taught,
    fill_from_store,
    fill_from_triples,
    unweighted,
)
from pyserini_kd.distillation.text_store import Floats, Hashes, look_up, text_hash
from pyserini_kd.models import rankers
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.open_index import check_encoder
from pyserini_kd.storage.arrays import column, keep, let_go, spans
from pyserini_kd.storage.environment import command_line, environment, sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import comparable

logger = logging.getLogger(__name__)

CHECK_DEPTH = 20  # documents of each check query that the ensemble reranks
CHECK_MEASURES = ("RR@10", "nDCG@10")


def weighted(name: str) -> tuple[str, float | None]:
    """Split `NAME@WEIGHT`; no weight is None."""
    name, at, weight = name.rpartition("@") if "@" in name else (name, "", "")
    if not at:
        return name, None
    try:
        value = float(weight)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise InputError(f"teacher {name}@{weight}: the weight after @ must be a number")
    return name, value


def score_run(run: Run, pairs: Pairs, scores: Floats) -> int:
    """A run as a teacher: write its scores, 0 for documents it did not return; returns how many those are."""
    absent = 0
    for some, (query_ids, doc_ids) in pairs.blocks(BLOCK):
        asked = [query_id for query_id in dict.fromkeys(query_ids) if query_id in run]
        found = {q: dict(zip(run[q].doc_ids, run[q].scores.tolist(), strict=True)) for q in asked}
        own = [found.get(q, {}).get(d) for q, d in zip(query_ids, doc_ids, strict=True)]
        scores[some] = [0.0 if score is None else score for score in own]
        absent += sum(score is None for score in own)
        let_go(scores)
    return absent


def score_checkpoint(
    name: str,
    pairs: Pairs,
    texts: Hashes,
    queries: Mapping[str, str],
    docs: Mapping[str, str],
    scores: Floats,
    *,
    index: DenseIndex | None = None,
    precision: str = "auto",
    backend: str = "auto",
    batch_size: int | None = None,
    device: str = "cpu",
    work: Path | None = None,
    reuse: Sequence[Known] = (),
) -> dict[str, Any]:
    """A checkpoint as a teacher: write its raw scores of pairs; returns a record of who gave them.

    Pairs of texts that the same teacher, so set, scored before (`reuse`) are not scored again. Scores are written under `work`
    a block of pairs at a time; a later call for the same texts and settings goes on there.

    Args:
        name: the checkpoint.
        pairs: what is to be scored.
        texts: hash of the texts of each pair.
        queries: query_id -> text.
        docs: doc_id -> text.
        scores: (number of pairs,), takes the scores.
        index: holds the document vectors of this very checkpoint (BERT_DOT only), so that documents are not encoded again.
        precision: arithmetic.
        backend: what computes.
        batch_size: None: by token budget.
        device: cpu, cuda or cuda:N.
        work: folder of finished blocks.
        reuse: what checkpoints have scored before.
    """
    model = rankers.load(name, device=device, precision=precision, backend=backend, batch_size=batch_size)
    record = model.record()
    record |= {"dtype": "float32", "architecture": model.architecture, "precision": model.precision, "backend": model.backend}
    if index is not None:
        _check_index(index, name, model)
        record["index"] = (index.manifest or {}).get("encoder")  # the lengths and precision its vectors were made with
    same = [known for known in reuse if known.teacher == unweighted(record) and len(known.texts)]

    def score(query_ids: Sequence[str], doc_ids: Sequence[str]) -> Floats:
        asked = [queries[query_id] for query_id in query_ids]
        if index is not None and isinstance(model, rankers.Encoder):
            return index.score(model, asked, doc_ids)
        return model.score(asked, [docs[doc_id] for doc_id in doc_ids])

    key = hashlib.sha256(json.dumps([comparable(record), batch_size, device, BLOCK]).encode())
    for some in spans(len(texts)):
        key.update(texts[some].data)
        let_go(texts)
    blocks = work / key.hexdigest() if work else None
    before = 0
    for number, (some, (query_ids, doc_ids)) in enumerate(pairs.blocks(BLOCK)):
        path = blocks / f"{number:06d}.npy" if blocks else None
        if path is not None and path.exists():
            scores[some] = np.load(path)
            continue
        scores[some] = np.nan
        for known in same:
            is_known, places = look_up(known.texts, texts[some])
            scores[some] = np.where(is_known, known.scores[places], scores[some])
            let_go(known.texts, known.scores)
        fresh = np.flatnonzero(np.isnan(scores[some]))
        before += len(query_ids) - len(fresh)
        if len(fresh):
            found = score([query_ids[row] for row in fresh], [doc_ids[row] for row in fresh])
            if len(wrong := fresh[~np.isfinite(found)]):
                pair = f"query {query_ids[wrong[0]]}, document {doc_ids[wrong[0]]}"
                raise InputError(f"{name}: {len(wrong)} scores are not finite, e.g. {pair}; --precision fp32 may help")
            scores[some][fresh] = found
        if path is not None:
            keep(path, scores[some])
        let_go(scores, texts)
    if same:
        logger.info("%s: %d of %d pairs were scored before", name, before, len(pairs))
    return record


def _check_index(index: DenseIndex, name: str, model: rankers.Scorer) -> None:
    """InputError unless an index holds the very vectors that the teacher would make."""
    if not isinstance(model, rankers.Encoder):
        raise InputError(f"--index holds vectors of a bert_dot; teacher {name} is a {model.architecture}")
    check_encoder(index, model)
    if not index.is_exact:
        raise InputError(f"--index {index.folder} does not hold exact vectors; a teacher needs a Flat one")


def hash_texts(pairs: Pairs, queries: Mapping[str, str], docs: Mapping[str, str], texts: Hashes) -> None:
    """Write the hash of the texts of each pair."""
    query_of = functools.lru_cache(maxsize=1)(queries.__getitem__)  # its pairs follow each other
    for some, both in pairs.blocks(BLOCK):
        keys = (text_hash(query_of(query_id), docs[doc_id]) for query_id, doc_id in zip(*both, strict=True))
        texts[some] = np.fromiter(keys, np.uint64)
        let_go(texts)


def refuse_bounded(name: str, what: str) -> None:
    """The InputError for a teacher whose scores lie in [-1, 1] and that has no weight."""
    raise InputError(
        f"teacher {name} gives {what} in [-1, 1]; margins that small teach little: give it a weight, e.g. {name}@20"
    )


def ensemble(raw: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    """Mean over teachers of weight x raw score. With weights of 1, Hofstätter et al.'s T2.

    >>> ensemble({"a": np.float32([1, 2]), "b": np.float32([3, 6])}, {"a": 1.0, "b": 1.0})
    array([2., 4.], dtype=float32)
    """
    total = np.zeros(len(next(iter(raw.values()))))
    for name, scores in raw.items():
        total += weights[name] * scores.astype(np.float64)
    return (total / len(raw)).astype(np.float32)


def teach(
    groups: Sequence[Group],
    queries: Mapping[str, str],
    docs: Mapping[str, str],
    teachers: Sequence[str],
    teacher_runs: Sequence[str] = (),
    teacher_scores: Sequence[str] = (),
    *,
    scratch: Path | None = None,
    **settings: Any,
) -> tuple[Taught, dict[str, Any]]:
    """Score every (query, document) pair of the groups once with each teacher.

    Args:
        groups: whose pairs are scored.
        queries: query_id -> text.
        docs: doc_id -> text.
        teachers: checkpoints, each with `@WEIGHT` or without.
        teacher_runs: runs, likewise.
        teacher_scores: score stores or 5-column files, likewise.
        scratch: folder for what would else be in memory; what is returned needs it.
        settings: of `score_checkpoint`.
    """
    started = time.monotonic()
    pairs = Pairs(groups, scratch)
    texts = column(scratch, len(pairs), np.uint64)
    hash_texts(pairs, queries, docs, texts)
    raw: dict[str, Floats] = {}
    weights: dict[str, float] = {}
    who = []
    every = (("run", teacher_runs), ("scores", teacher_scores), ("checkpoint", teachers))
    for kind, teacher in ((kind, teacher) for kind, some in every for teacher in some):
        name, weight = weighted(teacher)
        raw[name] = column(scratch, len(pairs), np.float32)
        weights[name] = 1.0 if weight is None else weight
        if kind == "run":
            record = _teach_run(name, weight, pairs, raw[name])
        elif kind == "scores":
            record = _teach_scores(name, weight, groups, pairs, texts, raw[name], scratch)
        else:
            record = score_checkpoint(name, pairs, texts, queries, docs, raw[name], **settings)
        who.append({**record, "weight": weights[name]})
    score = column(scratch, len(pairs), np.float32)
    for some in spans(len(pairs)):
        score[some] = ensemble({name: scores[some] for name, scores in raw.items()}, weights)
        let_go(score, *raw.values())
    seconds = round(time.monotonic() - started, 1)
    record = {"teachers": who, "n_pairs": len(pairs), "seconds": seconds, "command": command_line(), **environment()}
    return Taught(pairs, texts, raw, score), record


def _teach_run(name: str, weight: float | None, pairs: Pairs, scores: Floats) -> dict[str, Any]:
    run = Run.read(name)
    if weight is None and all(np.abs(hits.scores).max(initial=0.0) <= 1 for hits in run.values()):
        refuse_bounded(name, "scores")
    absent = score_run(run, pairs, scores)
    if absent == len(pairs):
        raise InputError(f"--teacher-run {name} has none of the candidates' {absent} pairs; a run of other topics?")
    logger.info("%s: %d of %d pairs are not in the run and score 0", name, absent, len(pairs))
    return {"name": name, "sha256": sha256(name), "absent": absent}


def _teach_scores(
    name: str,
    weight: float | None,
    groups: Sequence[Group],
    pairs: Pairs,
    texts: Hashes,
    scores: Floats,
    scratch: Path | None,
) -> dict[str, Any]:
    if name.endswith(".parquet"):
        fill_from_store(Path(name), texts, scores, scratch)
    else:
        fill_from_triples(name, groups, pairs, scores)
    missing, bounded = 0, True
    for some in spans(len(scores)):
        missing += int(np.isnan(scores[some]).sum())
        bounded = bounded and bool(np.nanmax(np.abs(scores[some]), initial=0.0) <= 1)
        let_go(scores)
    if missing:
        raise InputError(f"--teacher-scores {name} lacks {missing} of the candidates' {len(pairs)} pairs, or knows other texts")
    if weight is None and bounded:
        refuse_bounded(name, "scores")
    return {"name": name, "sha256": sha256(name)}


def agreement(scored: Iterable[tuple[Group, list[float]]]) -> float:
    """Share of (positive, negative) pairs of groups that their scores order as the labels do."""
    right = total = 0
    for group, own in scored:
        found = dict(zip(group.doc_ids, own, strict=True))
        margins = [found[pos] - found[neg] for pos, neg in pairs(group)]
        right, total = right + sum(margin > 0 for margin in margins), total + len(margins)
    return right / total
