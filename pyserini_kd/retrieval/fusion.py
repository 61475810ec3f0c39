"""Fusion of Runs by ranks, scores or votes.

A method gives each hit a part (from its rank or normalised score) and combines a document's parts into its score. A topic need
not be in every run. Parts are sorted before addition and compared as float32, so the order of runs matters only with weights.
Topics are fused one at a time: streamed run files with the same topic order are never held in memory.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count as count_from
from typing import NamedTuple, TypedDict, Unpack

import numpy as np

from pyserini_kd.data import trectools_adapter
from pyserini_kd.data.runs import Hits, Run, RunStream, ordered
from pyserini_kd.retrieval.fusion_methods import (
    METHODS,
    NORMS,
    OWN_METHODS,
    SUMS,
    Combine,
    Parts,
    add,
    pyserini_min_max,
    ranks_of,
    scores_of,
)
from pyserini_kd.storage.errors import InputError

logger = logging.getLogger(__name__)
PartsOf = Callable[[Hits], Parts]
"""One run's ranking of a topic -> the part of each hit, best first."""


class Ways(TypedDict, total=False):
    """Settings of fusion methods."""

    rrf_k: int  # rrf's constant, 60 by default: larger values favour the first ranks less
    alpha: float  # interpolation's weight of the first run, 0.5 by default
    norm: str | None  # normalisation of scores, one of `NORMS`; None is `none`
    weights: Sequence[float] | None  # for wsum, one per run; None is all 1
    rbp_p: float  # rbp's persistence, 0.8 by default


class Way(NamedTuple):
    """A fusion method with its settings."""

    parts_of: Sequence[PartsOf]  # for each run
    combine: Combine  # from the parts of a topic to scores
    cut_first: bool = False  # cut to `depth` hits before normalising; pyserini.fusion cuts afterwards
    sums_raw: bool = False  # raw scores are added: a missing score counts as 0


TAG = "pyserini_kd.fusion"
ENGINES = ("auto", "trectools", "fast")
TRECTOOLS_WORK = 20_000_000
"""Topics x rows up to which `auto` uses trectools (1 to 2 seconds); trectools scans all rows for each topic."""


def rrf(
    runs: Sequence[Run], rrf_k: int = 60, depth: int | None = None, k: int | None = 1000, tag: str = TAG, engine: str = "auto"
) -> Run:
    """Reciprocal rank fusion (Cormack et al. 2009): a document's score is the sum of 1 / (rrf_k + rank) over the runs.

    Reads `depth` hits of each ranking (by score, not by a file's ranks) and keeps `k` results per query; None means all.
    `engine` is `trectools`, `fast` (ours) or `auto`: trectools for small runs within its depth limit.

    >>> a, b = Run.from_scores("a", {"q": {"x": 2.0, "y": 1.0}}), Run.from_scores("b", {"q": {"y": 9.0}})
    >>> {d: round(float(s), 5) for d, s in zip(*rrf([a, b])["q"])}
    {'y': 0.03252, 'x': 0.01639}
    """
    if engine not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    check_inputs(runs, depth, k)
    if (choose_engine(runs, depth) if engine == "auto" else engine) == "fast":
        return combine(runs, "rrf", depth=depth, k=k, tag=tag, rrf_k=rrf_k)
    make_way("rrf", len(runs), rrf_k=rrf_k)  # checks the constant
    return _rrf_by_trectools(runs, rrf_k, depth, k, tag)


def interpolation(a: Run, b: Run, alpha: float = 0.5, depth: int | None = None, k: int | None = 1000, tag: str = TAG) -> Run:
    """Weighted sum of raw scores: alpha * (score in a) + (1 - alpha) * (score in b); a missing score is 0.

    >>> a, b = Run.from_scores("a", {"q": {"x": 2.0, "y": 1.0}}), Run.from_scores("b", {"q": {"y": 9.0}})
    >>> interpolation(a, b, alpha=0.75)["q"]
    Hits(doc_ids=['y', 'x'], scores=array([3. , 1.5], dtype=float32))
    """
    return combine([a, b], "interpolation", depth=depth, k=k, tag=tag, alpha=alpha)


def combine(
    runs: Sequence[Run], method: str, *, depth: int | None = None, k: int | None = 1000, tag: str = TAG, **ways: Unpack[Ways]
) -> Run:
    """Fuse by one of `METHODS` or `OWN_METHODS`; `ways` are its settings (see `Ways`).

    `depth`, `k` and `tag` as in `rrf`. Ranks and normalisation (except `normalize`'s) use the first `depth` hits only.

    >>> a, b = Run.from_scores("a", {"q": {"x": 3.0, "y": 1.0}}), Run.from_scores("b", {"q": {"y": 9.0, "z": 1.0}})
    >>> combine([a, b], "combmnz", norm="minmax")["q"]
    Hits(doc_ids=['y', 'x', 'z'], scores=array([2., 1., 0.], dtype=float32))
    """
    check_inputs(runs, depth, k)
    return Run(tag, dict(read_topics_of(runs, make_way(method, len(runs), **ways), depth, k)))


def make_way(method: str, n_runs: int, **ways: Unpack[Ways]) -> Way:
    """A fusion method by name for `n_runs` runs; InputError if its settings do not fit."""
    if method == "rrf":
        rrf_k = ways.get("rrf_k", 60)
        if rrf_k < 0:
            raise InputError(f"must be 0 or more, not {rrf_k}", "rrf_k")
        return Way([lambda hits: 1 / (rrf_k + ranks_of(hits))] * n_runs, add)
    if method == "interpolation":
        alpha = ways.get("alpha", 0.5)
        if n_runs != 2:
            raise InputError(f"interpolation takes exactly two runs, found {n_runs}")
        if not 0 <= alpha <= 1:
            raise InputError(f"must lie between 0 and 1, not {alpha}", "alpha")
        return Way([lambda hits: alpha * scores_of(hits), lambda hits: (1 - alpha) * scores_of(hits)], add, sums_raw=True)
    if method == "average":
        return Way([lambda hits: scores_of(hits) * (1 / n_runs)] * n_runs, add, sums_raw=True)
    if method == "normalize":
        return Way([pyserini_min_max] * n_runs, add)
    return _combination(method, n_runs, ways.get("norm"), ways.get("weights"), ways.get("rbp_p", 0.8))


def _combination(method: str, n_runs: int, norm: str | None, weights: Sequence[float] | None, rbp_p: float) -> Way:
    if method not in METHODS:
        raise InputError(f"fusion method must be one of {', '.join((*OWN_METHODS, *METHODS))}, not {method!r}")
    chosen = METHODS[method]
    if norm is not None and norm not in NORMS:
        raise InputError(f"norm must be one of {', '.join(NORMS)}, not {norm!r}")
    if norm is not None and chosen.by_rank is not None:
        raise InputError(f"{method} uses ranks only; omit norm")
    if weights is not None and method != "wsum":
        raise InputError(f"weights are for wsum, not {method}")
    if weights is not None and (len(weights) != n_runs or not np.isfinite(weights).all()):
        raise InputError(f"wsum needs one finite weight per run: {n_runs} runs, weights {' '.join(map(str, weights))}")
    if not 0 < rbp_p < 1:
        raise InputError(f"must lie between 0 and 1, not {rbp_p}", "rbp_p")
    if chosen.by_rank is not None:
        by_rank = chosen.by_rank
        return Way([lambda hits: by_rank(ranks_of(hits), rbp_p)] * n_runs, chosen.combine)
    normalised, sums_raw = NORMS[norm or "none"], norm in (None, "none") and method in SUMS
    parts_of = [_weighted(normalised, weight) for weight in (weights or [1.0] * n_runs)]
    return Way(parts_of, chosen.combine, cut_first=True, sums_raw=sums_raw)


def _weighted(normalised: Callable[[Parts], Parts], weight: float) -> PartsOf:
    return lambda hits: weight * normalised(scores_of(hits)) if len(hits.doc_ids) else scores_of(hits)


def check_inputs(runs: Sequence[Run | RunStream], depth: int | None, k: int | None) -> None:
    """InputError for fewer than two runs, or a depth or k below 1."""
    if len(runs) < 2:
        raise InputError(f"fusion needs at least two runs, not {len(runs)}")
    for name, value in (("depth", depth), ("k", k)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be 1 or more, not {value}")


def queries_of(runs: Sequence[Run | RunStream]) -> list[str]:
    """Query ids of all runs, in the order of first appearance."""
    return list(dict.fromkeys(query_id for run in runs for query_id in run))


def read_topics_of(
    runs: Sequence[Run | RunStream], way: Way, depth: int | None, k: int | None, seconds: dict[str, float] | None = None
) -> Iterator[tuple[str, Hits]]:
    """Yield fused topics, from `depth` hits of each ranking to `k` results; adds times to `seconds`."""
    seconds = {} if seconds is None else seconds
    for query_id in queries_of(runs):
        started = time.perf_counter()
        rankings = [run.get(query_id) or NO_HITS for run in runs]
        read = time.perf_counter()
        if way.sums_raw and any((hits.scores[-1:] < 0).any() for hits in rankings):  # best first
            why = "some scores are below 0 and count less than missing documents (0)"
            logger.warning("query %s: %s; method wsum with norm minmax avoids this", query_id, why)
            way = way._replace(sums_raw=False)  # one warning is enough
        doc_ids, scores = _fuse_topic(rankings, way, depth)
        fused = ordered(doc_ids, scores, f"query {query_id}")
        for stage, spent in (("read", read - started), ("fuse", time.perf_counter() - read)):
            seconds[stage] = seconds.get(stage, 0.0) + spent
        yield query_id, Hits(fused.doc_ids[:k], fused.scores[:k])


def _fuse_topic(rankings: Sequence[Hits], way: Way, depth: int | None) -> tuple[list[str], Parts]:
    columns: dict[str, int] = {}
    found: list[tuple[list[int], Parts]] = []
    for hits, part_of in zip(rankings, way.parts_of, strict=True):
        if way.cut_first:
            hits = Hits(hits.doc_ids[:depth], hits.scores[:depth])
        doc_ids = hits.doc_ids[:depth]
        columns.update(zip([d for d in doc_ids if d not in columns], count_from(len(columns)), strict=False))
        found.append((list(map(columns.__getitem__, doc_ids)), part_of(hits)[:depth]))
    if not columns:
        return [], np.empty(0)
    parts = np.full((len(rankings), len(columns)), np.nan)
    for row, (places, values) in enumerate(found):
        parts[row, places] = values
    return list(columns), way.combine(parts)


NO_HITS = Hits([], np.empty(0, dtype=np.float32))


def choose_engine(runs: Sequence[Run | RunStream], depth: int | None) -> str:
    """The engine that `auto` chooses: trectools for small runs within its depth limit, else `fast`."""
    small = len(queries_of(runs)) * sum(run.n_hits for run in runs) <= TRECTOOLS_WORK
    return "trectools" if small and _read_depth(runs, depth) <= trectools_adapter.MAX_DEPTH else "fast"


def _read_depth(runs: Sequence[Run | RunStream], depth: int | None) -> int:
    deepest = max(run.depth for run in runs)
    return deepest if depth is None else min(depth, deepest)


def _rrf_by_trectools(runs: Sequence[Run], rrf_k: int, depth: int | None, k: int | None, tag: str) -> Run:
    """Compute all scores with trectools; we sort and cut."""
    if _read_depth(runs, depth) > trectools_adapter.MAX_DEPTH:
        raise InputError(
            f"trectools fuses at most {trectools_adapter.MAX_DEPTH} hits per query, but a run has {_read_depth(runs, depth)}; "
            f"give a depth of at most {trectools_adapter.MAX_DEPTH}, or another engine"
        )
    found = trectools_adapter.reciprocal_rank_fusion(runs, rrf_k, depth)
    merged = Run(tag, {query_id: found.get(query_id, NO_HITS) for query_id in queries_of(runs)})
    return merged if k is None else merged.top(k)
