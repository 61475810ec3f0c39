"""Choose the weights of a distilled system on held-out queries.

Held-out queries that were made from documents are not quite like those of users.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyserini_kd.data import formats
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Qrels, Query
from pyserini_kd.distillation.system_config import DistillConfig
from pyserini_kd.distillation.system_plan import DEPTH, Folder, colbert_folder
from pyserini_kd.evaluation import engines, tuning
from pyserini_kd.evaluation.tables import table
from pyserini_kd.models import rankers
from pyserini_kd.models.rankers import Scorer
from pyserini_kd.retrieval import fusion, reranking, token_index
from pyserini_kd.retrieval.text_sources import fetch_from
from pyserini_kd.storage.records import Record, write_record

logger = logging.getLogger(__name__)

MEASURES = ("nDCG@10", "RR@10", "R@100")
MEASURE = MEASURES[0]
SHARES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
"""Tried shares of the first run in a fusion, if both runs had the same spread of scores."""
CAUTIOUS = (0.4, 0.5, 0.6)
"""Shares for made-up queries. On four collections they gave better hybrids for real queries than the best of SHARES did."""
SIGNIFICANT = 0.05


class Chosen(NamedTuple):
    """Settings of the system with paths relative to its folder, what they rest on, and the runs of the held-out queries."""

    settings: dict[str, Any]
    record: Record
    runs: list[Path]


def untrained(config: DistillConfig) -> Chosen:
    """Settings of a system without a student: BM25 and the teacher by RRF."""
    settings = {"encoder": config.init, "index": ["indexes/dense"], "sparse_index": "indexes/bm25"}
    return Chosen(settings, {"why": "too few documents to learn from"}, [])


def choose(config: DistillConfig, at: Folder, say: Callable[[str], None]) -> Chosen:
    """Choose the hybrid's weight and whether to rerank; write the runs of the held-out queries; say what they measure."""
    queries, qrels = formats.read_topics(at.queries.topics("dev")), formats.read_qrels(at.queries.qrels("dev"))
    bm25, teacher = Run.read(at.queries.run("dev")), Run.read(at.dev_run("teacher"))
    runs = {"bm25": at.queries.run("dev"), "teacher": at.dev_run("teacher")}
    _warn_of_weak_teacher(bm25, teacher, qrels, config.init)
    settings: dict[str, Any] = {"encoder": "bm25", "index": ["indexes/bm25"]}
    best, record = bm25, Record()
    if "dense" in config.wanted:
        runs["dense"] = at.dev_run("dense")
        dense = Run.read(runs["dense"])
        share = weigh(bm25, dense, qrels, made_up=not config.qrels)
        alpha = raw_alpha(bm25, dense, share)
        best = fusion.interpolation(bm25, dense, alpha=alpha, k=None, tag="hybrid")
        runs["hybrid"] = _write(best, at, "hybrid", [runs["bm25"], runs["dense"]])
        record |= {"share of BM25": share, "alpha": alpha}
        settings = {"encoder": "models/dense", "index": ["indexes/dense"], "sparse_index": "indexes/bm25",
                    "fusion": "interpolation", "alpha": alpha}  # fmt: skip
    if name := next((name for name in ("colbert", "reranker") if name in config.wanted), None):
        begun = time.monotonic()
        top = best.top(DEPTH)
        reranked = _rerank(at, name, top, queries, config)
        share = weigh(top, reranked, qrels, made_up=not config.qrels)
        alpha = raw_alpha(top, reranked, share)
        together = fusion.interpolation(top, reranked, alpha=alpha, tag="reranked")
        first = runs.get("hybrid", runs["bm25"])
        runs["reranked"] = _write(together, at, "reranked", [first], time.monotonic() - begun)
        gain, p_value = _compare(together, best, qrels)
        pays = _is_better(together, best, qrels)
        record |= {"reranking": {"gain": gain, "p": p_value, "used": pays, "share of the first stage": share}}
        say(f"reranking by {name}: {MEASURE} {gain:+.4f} (p = {p_value:.2g}), so it is {'used' if pays else 'not used'}")
        if pays:
            model = colbert_folder(config, at) if name == "colbert" else at.model(name)
            stored = {"rerank_index": "indexes/colbert"} if name == "colbert" else {}
            settings |= {"rerank": str(model.relative_to(at.path)), **stored, "depth": DEPTH, "rerank_alpha": alpha}
    means = {name: _means(Run.read(path), qrels) for name, path in runs.items()}
    say(table(["held-out queries", *MEASURES], [[name, *values] for name, values in means.items()]))
    return Chosen(settings, record | {"measures": {name: dict(zip(MEASURES, v, strict=True)) for name, v in means.items()}},
                  list(runs.values()))  # fmt: skip


def weigh(a: Run, b: Run, qrels: Qrels, *, made_up: bool) -> float:
    """The share of `a` in a fusion of two runs with equal spread: the median of the best shares over resampled queries.

    For made-up queries, it is one of CAUTIOUS, unless one run alone beats this fusion significantly.
    """
    if made_up:
        share = _best_share(a, b, qrels, CAUTIOUS)
        fused = fusion.interpolation(a, b, alpha=raw_alpha(a, b, share), k=None)
        if not any(_is_better(alone, fused, qrels) for alone in (a, b)):
            return share
    return _best_share(a, b, qrels, SHARES)


def _best_share(a: Run, b: Run, qrels: Qrels, shares: Sequence[float]) -> float:
    alphas = {raw_alpha(a, b, share): share for share in shares}
    return alphas[tuning.best_alpha(a, b, qrels, list(alphas), MEASURE)]


def raw_alpha(a: Run, b: Run, share: float) -> float:
    """The weight of `a` in an interpolation of raw scores that gives it this share of the influence."""
    part_a, part_b = share / spread(a), (1 - share) / spread(b)
    return float(f"{part_a / (part_a + part_b):.6g}")


def spread(run: Run) -> float:
    """The standard deviation of the scores of a query, averaged over the queries with several hits; 1 without any."""
    deviations = [float(hits.scores.std()) for hits in run.values() if len(hits.doc_ids) > 1]
    return float(np.mean(deviations)) if deviations and max(deviations) > 0 else 1.0


def _warn_of_weak_teacher(bm25: Run, teacher: Run, qrels: Qrels, name: str) -> None:
    alpha = raw_alpha(bm25, teacher, 0.5)
    together = fusion.interpolation(bm25, teacher, alpha=alpha, k=None)
    gain, p_value = _compare(together, bm25, qrels)
    if gain <= 0:
        logger.warning("WARNING: the teachers (BM25 and %s) do not beat BM25 on held-out queries (%+.4f, p = %.2g); a student "
                       "can be faster than they are, but hardly better", name, gain, p_value)  # fmt: skip


def _rerank(at: Folder, name: str, run: Run, queries: list[Query], config: DistillConfig) -> Run:
    how: dict[str, Any] = {"device": config.device, "precision": config.precision}
    if name == "colbert":
        model: Scorer = token_index.load_scorer(str(colbert_folder(config, at)), "colbert", **how)
    else:
        model = rankers.load(str(at.model(name)), **how)
    return reranking.rerank(run, model, queries, fetch_from(str(at.queries.docs)), depth=DEPTH, tag=name)


def _write(run: Run, at: Folder, name: str, made_of: list[Path], seconds: float = 0.0) -> Path:
    path = at.dev_run(name)
    run.write(path, overwrite=True)
    write_record(path, config={"runs": list(map(str, made_of))}, seconds=round(seconds, 2))
    return path


def _is_better(run: Run, other: Run, qrels: Qrels) -> bool:
    """Whether a run is significantly better than another."""
    gain, p_value = _compare(run, other, qrels)
    return gain > 0 and p_value < SIGNIFICANT


def _compare(run: Run, baseline: Run, qrels: Qrels) -> tuple[float, float]:
    values = [engines.evaluate(one, qrels, [MEASURE], "fast")[MEASURE] for one in (run, baseline)]
    return engines.compare(*values)


def _means(run: Run, qrels: Qrels) -> list[float]:
    return [engines.mean(values) for values in engines.evaluate(run, qrels, MEASURES, "fast").values()]
