"""Choose the weights of a distilled system on held-out queries.

Held-out queries that were made from documents are not quite like those of users.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

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
    """Settings of the system with paths relative to its folder, and what they rest on."""

    settings: Record
    record: Record


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out queries, and the runs that are compared on them: name -> file.

    Attributes:
        made_up: whether the queries were made from documents.
    """

    at: Folder
    queries: list[Query]
    qrels: Qrels
    made_up: bool
    runs: dict[str, Path]

    @classmethod
    def open(cls, config: DistillConfig, at: Folder) -> Self:
        """The held-out queries with the runs of BM25, of the teacher and of the first stages among the students."""
        files = at.queries
        names = ("teacher", *(name for name in ("dense", "sparse") if name in config.wanted))
        runs = {"bm25": files.run("dev")} | {name: at.dev_run(name) for name in names}
        queries, qrels = formats.read_topics(files.topics("dev")), formats.read_qrels(files.qrels("dev"))
        return cls(at, queries, qrels, not config.qrels, runs)

    def run(self, name: str) -> Run:
        """The run of a system."""
        return Run.read(self.runs[name])

    def add(self, name: str, run: Run, made_of: Sequence[str], seconds: float = 0.0) -> None:
        """Write a run that was made of others, and of further work of some seconds."""
        self.runs[name] = path = self.at.dev_run(name)
        run.write(path, overwrite=True)
        write_record(path, config={"runs": [str(self.runs[other]) for other in made_of]}, seconds=round(seconds, 2))


def untrained(config: DistillConfig) -> Chosen:
    """Settings of a system without a student: BM25 and the teacher by RRF."""
    settings: Record = {"encoder": config.init, "index": ["indexes/dense"], "sparse_index": "indexes/bm25"}
    return Chosen(settings, {"why": "too few documents to learn from"})


def check_teacher(config: DistillConfig, at: Folder) -> None:
    """Warn if BM25 and the teacher together do not beat BM25 on the held-out queries."""
    qrels = formats.read_qrels(at.queries.qrels("dev"))
    bm25, teacher = Run.read(at.queries.run("dev")), Run.read(at.dev_run("teacher"))
    together = fusion.interpolation(bm25, teacher, alpha=raw_alpha(bm25, teacher, 0.5), k=None)
    gain, p_value = _compare(together, bm25, qrels)
    if gain <= 0:
        logger.warning("WARNING: the teachers (BM25 and %s) do not beat BM25 on held-out queries (%+.4f, p = %.2g); a student "
                       "can be faster than they are, but hardly better", config.init, gain, p_value)  # fmt: skip


def choose(config: DistillConfig, held_out: HeldOut, say: Callable[[str], None]) -> Chosen:
    """Choose the first stage, its weight and whether to rerank; write runs of the held-out queries; say what they measure."""
    settings, record = _first_stage(held_out, say)
    if name := next((name for name in ("colbert", "reranker") if name in config.wanted), None):
        _choose_reranker(name, config, held_out, settings, record, say)
    means = {name: _means(held_out.run(name), held_out.qrels) for name in held_out.runs}
    say(table(["held-out queries", *MEASURES], [[name, *values] for name, values in means.items()]))
    record["measures"] = {name: dict(zip(MEASURES, values, strict=True)) for name, values in means.items()}
    return Chosen(settings, record)


def _first_stage(held_out: HeldOut, say: Callable[[str], None]) -> tuple[Record, Record]:
    """Settings of the first stage, and what was chosen. It is BM25 or the sparse student, in a hybrid with the dense one."""
    words = "bm25"
    if "sparse" in held_out.runs:
        gain, p_value = _compare(held_out.run("sparse"), held_out.run("bm25"), held_out.qrels)
        words = "sparse" if gain > 0 and p_value < SIGNIFICANT else "bm25"
        say(f"sparse instead of BM25: {MEASURE} {gain:+.4f} (p = {p_value:.2g}), so {words} is used")
    if "dense" not in held_out.runs:
        encoder = "bm25" if words == "bm25" else "models/sparse"
        return {"encoder": encoder, "index": [f"indexes/{words}"]}, {"first stage": words}
    share, alpha, hybrid = _mixed(held_out.run(words), held_out.run("dense"), held_out, "hybrid")
    held_out.add("hybrid", hybrid, [words, "dense"])
    settings: Record = {"encoder": "models/dense", "index": ["indexes/dense"], "sparse_index": f"indexes/{words}"}
    settings |= {"fusion": "interpolation", "alpha": alpha}
    return settings, {"first stage": "hybrid", "words": words, "share of words": share, "alpha": alpha}


def _choose_reranker(
    name: str, config: DistillConfig, held_out: HeldOut, settings: Record, record: Record, say: Callable[[str], None]
) -> None:
    """Add a reranker to the settings if it makes the first stage significantly better."""
    first = record["first stage"]
    before, begun = held_out.run(first), time.monotonic()
    top = before.top(DEPTH)
    reranked = _rerank(name, top, config, held_out)
    share, alpha, together = _mixed(top, reranked, held_out, "reranked")
    held_out.add("reranked", together, [first], time.monotonic() - begun)
    gain, p_value = _compare(together, before, held_out.qrels)
    pays = gain > 0 and p_value < SIGNIFICANT
    record["reranking"] = {"gain": gain, "p": p_value, "used": pays, "share of the first stage": share}
    say(f"reranking by {name}: {MEASURE} {gain:+.4f} (p = {p_value:.2g}), so it is {'used' if pays else 'not used'}")
    if pays:
        model = colbert_folder(config, held_out.at) if name == "colbert" else held_out.at.model(name)
        stored = {"rerank_index": "indexes/colbert"} if name == "colbert" else {}
        settings |= {"rerank": str(model.relative_to(held_out.at.path)), **stored, "depth": DEPTH, "rerank_alpha": alpha}


def _mixed(a: Run, b: Run, held_out: HeldOut, tag: str) -> tuple[float, float, Run]:
    """(share of `a`, weight of its raw scores, fused run)."""
    share = weigh(a, b, held_out.qrels, made_up=held_out.made_up)
    alpha = raw_alpha(a, b, share)
    return share, alpha, fusion.interpolation(a, b, alpha=alpha, k=None, tag=tag)


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


def _rerank(name: str, run: Run, config: DistillConfig, held_out: HeldOut) -> Run:
    if name == "colbert":
        folder = str(colbert_folder(config, held_out.at))
        model: Scorer = token_index.load_scorer(folder, "colbert", device=config.device, precision=config.precision)
    else:
        model = rankers.load(str(held_out.at.model(name)), device=config.device, precision=config.precision)
    docs = fetch_from(str(held_out.at.queries.docs))
    return reranking.rerank(run, model, held_out.queries, docs, depth=DEPTH, tag=name)


def _is_better(run: Run, other: Run, qrels: Qrels) -> bool:
    """Whether a run is significantly better than another."""
    gain, p_value = _compare(run, other, qrels)
    return gain > 0 and p_value < SIGNIFICANT


def _compare(run: Run, baseline: Run, qrels: Qrels) -> tuple[float, float]:
    values = [engines.evaluate(one, qrels, [MEASURE], "fast")[MEASURE] for one in (run, baseline)]
    return engines.compare(*values)


def _means(run: Run, qrels: Qrels) -> list[float]:
    return [engines.mean(values) for values in engines.evaluate(run, qrels, MEASURES, "fast").values()]
