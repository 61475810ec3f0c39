"""Fusion of Runs: by ranks, by scores, by votes.

Every method gives each hit of each run a part (from its rank, or from its normalised score), and combines a document's
parts into its score. A topic that one run lacks still appears. Parts are sorted before they are added and compared as
float32: the order in which runs are named changes nothing, except where they are weighed differently. One topic at a time
is in work: the command holds no more of the runs than that, where they list their topics in the same order.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from itertools import count as count_from
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import numpy.typing as npt

from pyserini_kd.cli import Runs, command, typed
from pyserini_kd.files import InputError, refuse_existing_run, write_record
from pyserini_kd.runs import Hits, Run, RunStream, ir_metadata, open_run, ordered, write_run

logger = logging.getLogger(__name__)

Parts = npt.NDArray[np.float64]
PartsOf = Callable[[Hits], Parts]
"""One run's ranking of a topic -> the part of each hit, best first."""
Combine = Callable[[Parts], Parts]
"""Parts (runs, documents) of one topic, NaN where a run lacks a document -> scores (documents,)."""


class Way(NamedTuple):
    """A method with its settings."""

    parts_of: Sequence[PartsOf]
    """One a run."""
    combine: Combine
    cut_first: bool = False
    """Do the parts depend on the first `depth` hits alone? pyserini.fusion normalises by all hits, then cuts."""
    sums_raw: bool = False
    """Are scores added as they are, so that what a run lacks counts 0?"""


TAG = "pyserini_kd.fusion"
ENGINES = ("auto", "trectools", "fast")
TRECTOOLS_DEPTH = 1000
"""trectools' RRF reads this many documents of each ranking and silently drops the rest."""
TRECTOOLS_WORK = 20_000_000
"""Topics times rows of all runs up to which `auto` asks trectools (1 to 2 seconds): it scans all rows for each topic."""


def rrf(
    runs: Sequence[Run],
    rrf_k: int = 60,
    depth: int | None = None,
    k: int | None = 1000,
    tag: str = TAG,
    engine: str = "auto",
) -> Run:
    """Reciprocal rank fusion (Cormack et al. 2009): a document's score is the sum of 1 / (rrf_k + rank) over the runs.

    Args:
        runs: two or more; ranks are those of `Run`, by score, not those of a file.
        rrf_k: how little the first ranks stand out; not the number of results.
        depth: hits read of each ranking; None reads all.
        k: results per query; None keeps all.
        tag: name of the fused run.
        engine: `trectools`, `fast` (ours), or `auto`: trectools where the runs are small and not too deep for it.

    >>> a, b = Run.from_scores("a", {"q": {"x": 2.0, "y": 1.0}}), Run.from_scores("b", {"q": {"y": 9.0}})
    >>> {d: round(float(s), 5) for d, s in zip(*rrf([a, b])["q"])}
    {'y': 0.03252, 'x': 0.01639}
    """
    if engine not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    _check(runs, depth, k)
    way = _rrf(len(runs), rrf_k)
    if engine == "auto":
        engine = choose_engine(runs, depth)
    if engine == "trectools":
        return _rrf_by_trectools(runs, rrf_k, depth, k, tag)
    return _fuse(runs, way, depth, k, tag)


def _rrf(n_runs: int, rrf_k: int) -> Way:
    if rrf_k < 0:
        raise InputError(f"rrf_k must be 0 or more, not {rrf_k}")
    return Way([lambda hits: 1 / (rrf_k + _ranks(hits))] * n_runs, add)


def interpolation(
    a: Run, b: Run, alpha: float = 0.5, depth: int | None = None, k: int | None = 1000, tag: str = TAG
) -> Run:
    """Weighted sum of raw scores: alpha * (score in a) + (1 - alpha) * (score in b); a missing score is 0.

    >>> a, b = Run.from_scores("a", {"q": {"x": 2.0, "y": 1.0}}), Run.from_scores("b", {"q": {"y": 9.0}})
    >>> interpolation(a, b, alpha=0.75)["q"]
    Hits(doc_ids=['y', 'x'], scores=array([3. , 1.5], dtype=float32))
    """
    _check([a, b], depth, k)
    return _fuse([a, b], _interpolation(alpha), depth, k, tag)


def _interpolation(alpha: float) -> Way:
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must lie between 0 and 1, not {alpha}")
    return Way([lambda hits: alpha * _scores(hits), lambda hits: (1 - alpha) * _scores(hits)], add, sums_raw=True)


def average(runs: Sequence[Run], depth: int | None = None, k: int | None = 1000, tag: str = TAG) -> Run:
    """Mean of raw scores over all runs; a missing score is 0."""
    _check(runs, depth, k)
    return _fuse(runs, _average(len(runs)), depth, k, tag)


def _average(n_runs: int) -> Way:
    return Way([lambda hits: _scores(hits) * (1 / n_runs)] * n_runs, add, sums_raw=True)


def normalize(runs: Sequence[Run], depth: int | None = None, k: int | None = 1000, tag: str = TAG) -> Run:
    """Sum of scores brought to [0, 1] per run and query by minimum and maximum; a missing score is 0.

    Where all scores of a ranking are equal they become 1, as in Pyserini: to be found is more than to be missing.
    """
    _check(runs, depth, k)
    return _fuse(runs, Way([_pyserini_min_max] * len(runs), add), depth, k, tag)


def combine(
    runs: Sequence[Run],
    method: str,
    *,
    norm: str | None = None,
    weights: Sequence[float] | None = None,
    rbp_p: float = 0.8,
    depth: int | None = None,
    k: int | None = 1000,
    tag: str = TAG,
) -> Run:
    """Fuse by one of `METHODS`.

    Args:
        runs: two or more.
        method: its name.
        norm: for methods on scores, how each ranking's scores are normalised first: one of `NORMS`; None is `none`.
        weights: one a run, for `wsum` (all 1 where None).
        rbp_p: for `rbp`, the persistence.
        depth: hits read of each ranking; None reads all. Normalisation and ranks see only these.
        k: results a query; None keeps all.
        tag: name of the fused run.

    >>> a, b = Run.from_scores("a", {"q": {"x": 3.0, "y": 1.0}}), Run.from_scores("b", {"q": {"y": 9.0, "z": 1.0}})
    >>> combine([a, b], "combmnz", norm="minmax")["q"]
    Hits(doc_ids=['y', 'x', 'z'], scores=array([2., 1., 0.], dtype=float32))
    """
    _check(runs, depth, k)
    return _fuse(runs, _combine(len(runs), method, norm, weights, rbp_p), depth, k, tag)


def _combine(n_runs: int, method: str, norm: str | None, weights: Sequence[float] | None, rbp_p: float) -> Way:
    if method not in METHODS:
        raise InputError(f"fusion method must be one of {', '.join((*OWN_METHODS, *METHODS))}, not {method!r}")
    chosen = METHODS[method]
    if norm is not None and norm not in NORMS:
        raise InputError(f"norm must be one of {', '.join(NORMS)}, not {norm!r}")
    if norm is not None and chosen.by_rank is not None:
        raise InputError(f"{method} looks at ranks alone; a norm of scores has no meaning for it")
    if weights is not None and method != "wsum":
        raise InputError(f"weights are for wsum, not {method}")
    if weights is not None and (len(weights) != n_runs or not np.isfinite(weights).all()):
        raise InputError(f"wsum needs one finite weight a run: {n_runs} runs, weights {' '.join(map(str, weights))}")
    if not 0 < rbp_p < 1:
        raise InputError(f"rbp_p must lie between 0 and 1, not {rbp_p}")
    if chosen.by_rank is not None:
        by_rank = chosen.by_rank
        return Way([lambda hits: by_rank(_ranks(hits), rbp_p)] * n_runs, chosen.combine)
    normalised, sums_raw = NORMS[norm or "none"], norm in (None, "none") and method in SUMS
    parts_of = [_weighted(normalised, weight) for weight in (weights or [1.0] * n_runs)]
    return Way(parts_of, chosen.combine, cut_first=True, sums_raw=sums_raw)


def _weighted(normalised: Callable[[Parts], Parts], weight: float) -> PartsOf:
    return lambda hits: weight * normalised(_scores(hits)) if len(hits.doc_ids) else _scores(hits)


# ------------------------------------------------------------------------------------- parts: normalised scores


def _ranks(hits: Hits) -> Parts:
    return np.arange(1.0, len(hits.doc_ids) + 1)


def _scores(hits: Hits) -> Parts:
    return hits.scores.astype(np.float64)


def _pyserini_min_max(hits: Hits) -> Parts:
    scores = _scores(hits)
    if len(scores) == 0 or scores[0] == scores[-1]:  # best first
        return np.ones_like(scores)
    return (scores - scores[-1]) / (scores[0] - scores[-1])


def min_max(scores: Parts) -> Parts:
    """To [0, 1]; all-equal scores become 0.

    >>> min_max(np.array([5.0, 4.0, 1.0])).tolist()
    [1.0, 0.75, 0.0]
    """
    span = scores.max() - scores.min()
    return (scores - scores.min()) / span if span else np.zeros_like(scores)


def sum_to_one(scores: Parts) -> Parts:
    """Shifted to a minimum of 0, then divided by their sum; all-equal scores become 0.

    >>> sum_to_one(np.array([5.0, 4.0, 1.0])).round(4).tolist()
    [0.5714, 0.4286, 0.0]
    """
    shifted = scores - scores.min()
    total = shifted.sum()
    return shifted / total if total else np.zeros_like(scores)


def z_score(scores: Parts) -> Parts:
    """Minus their mean, divided by their standard deviation (of the population); all-equal scores become 0.

    What a run lacks then counts as an average hit of it, more than its lower half.

    >>> z_score(np.array([3.0, 1.0])).tolist()
    [1.0, -1.0]
    """
    if not np.ptp(scores):  # asked of the scores: their deviation may be rounding
        return np.zeros_like(scores)
    return (scores - scores.mean()) / scores.std()


def rank_score(scores: Parts) -> Parts:
    """1 - (rank - 1) / n: from 1 for the first of n down to 1/n.

    >>> rank_score(np.array([9.0, 8.0, 0.5, 0.1])).tolist()
    [1.0, 0.75, 0.5, 0.25]
    """
    return 1 - np.arange(len(scores)) / len(scores)


NORMS: dict[str, Callable[[Parts], Parts]] = {
    "none": lambda scores: scores,
    "minmax": min_max,
    "sum": sum_to_one,
    "zscore": z_score,
    "rank": rank_score,
}
"""How one ranking's scores (best first) are made comparable to another's."""


# --------------------------------------------------------------------------------------- combining a topic's parts


def add(parts: Parts) -> Parts:
    """The sum of a document's parts, three or more sorted first: floating-point sums depend on the order."""
    filled = np.where(np.isnan(parts), 0.0, parts)
    if len(filled) > 2:
        filled.sort(axis=0)
    total: Parts = filled[0]
    for row in filled[1:]:
        total += row
    return total


def count(parts: Parts) -> Parts:
    """How many runs have each document."""
    return (~np.isnan(parts)).sum(axis=0).astype(np.float64)


def borda(parts: Parts) -> Parts:
    """Borda count: of n documents the first gets n points, the next n - 1; those a run lacks share what it has left.

    `parts` are 1-based ranks. Aslam and Montague 2001.
    """
    n = parts.shape[1]
    listed = (~np.isnan(parts)).sum(axis=1, keepdims=True)
    return add(np.where(np.isnan(parts), (n - listed + 1) / 2, n + 1 - parts))


def condorcet(parts: Parts) -> Parts:
    """Condorcet's pairwise majorities, counted as Copeland does: documents beaten, and half of those tied with.

    `parts` are 1-based ranks; a run prefers what it lists to what it lacks. Montague and Aslam 2002 sort by the majority
    relation, which may run in circles; the count of wins agrees with it where it does not.
    """
    ranks = np.where(np.isnan(parts), np.inf, parts)
    votes = np.zeros((ranks.shape[1], ranks.shape[1]), dtype=np.int32)
    for run in ranks:
        votes += (run[:, None] < run[None, :]).astype(np.int32) - (run[:, None] > run[None, :])
    return (votes > 0).sum(axis=1) + (votes == 0).sum(axis=1) / 2 - 0.5


class Method(NamedTuple):
    """A way to fuse: what a hit's part is, and how parts become a score."""

    what: str
    combine: Combine
    by_rank: Callable[[Parts, float], Parts] | None = None  # (ranks, rbp_p) -> parts; None: normalised scores


METHODS = {
    "isr": Method(
        "number of runs x sum of 1 / rank^2 (Mourao et al. 2014)",
        lambda parts: add(parts) * count(parts),
        lambda ranks, p: 1 / ranks**2,
    ),
    "combsum": Method("sum of scores (Fox and Shaw 1994)", add),
    "combmnz": Method("sum of scores x number of runs", lambda parts: add(parts) * count(parts)),
    "combanz": Method("mean of the scores a document has", lambda parts: add(parts) / count(parts)),
    "combmax": Method("best score", lambda parts: np.nanmax(parts, axis=0)),
    "combmin": Method("worst of the scores a document has", lambda parts: np.nanmin(parts, axis=0)),
    "combmed": Method("median of the scores a document has", lambda parts: np.nanmedian(parts, axis=0)),
    "wsum": Method("weighted sum of scores (--weights)", add),
    "rbp": Method(
        "sum of (1 - p) p^(rank - 1) (Bailey et al. 2017)", add, lambda ranks, p: (1 - p) * p ** (ranks - 1)
    ),
    "borda": Method("Borda count (Aslam and Montague 2001)", borda, lambda ranks, p: ranks),
    "condorcet": Method("pairwise majorities, as Copeland counts them", condorcet, lambda ranks, p: ranks),
}
SUMS = ("combsum", "combmnz", "wsum")
OWN_METHODS = ("rrf", "interpolation", "average", "normalize")
"""Those with functions of their own: as pyserini.fusion computes them."""


def _check(runs: Sequence[Run | RunStream], depth: int | None, k: int | None) -> None:
    if len(runs) < 2:
        raise InputError(f"fusion needs at least two runs, not {len(runs)}")
    for name, value in (("depth", depth), ("k", k)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be 1 or more, not {value}")


def _queries(runs: Sequence[Run | RunStream]) -> list[str]:
    """Every query of any run, in the order in which they first come."""
    return list(dict.fromkeys(query_id for run in runs for query_id in run))


def _fuse(runs: Sequence[Run], way: Way, depth: int | None, k: int | None, tag: str) -> Run:
    return Run(tag, dict(_topics(runs, way, depth, k)))


def _topics(
    runs: Sequence[Run | RunStream], way: Way, depth: int | None, k: int | None, seconds: dict[str, float] | None = None
) -> Iterator[tuple[str, Hits]]:
    """Fuse topic by topic: the first `depth` hits of each ranking, k results. Adds what it takes to `seconds`."""
    seconds = {} if seconds is None else seconds
    for query_id in _queries(runs):
        started = time.perf_counter()
        rankings = [run.get(query_id) or NO_HITS for run in runs]
        read = time.perf_counter()
        if way.sums_raw and any((hits.scores[-1:] < 0).any() for hits in rankings):  # best first
            less = "summed scores lie below 0, less than the 0 of documents that a run lacks"
            logger.warning("query %s: %s; --method wsum --norm minmax has no such trap", query_id, less)
            way = way._replace(sums_raw=False)  # said once
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


# ---------------------------------------------------------------------------------------------------- trectools


def choose_engine(runs: Sequence[Run | RunStream], depth: int | None) -> str:
    """What `auto` means for these runs: trectools where it is quick and reads all of them, otherwise our own sum."""
    small = len(_queries(runs)) * sum(run.n_hits for run in runs) <= TRECTOOLS_WORK
    return "trectools" if small and _read_depth(runs, depth) <= TRECTOOLS_DEPTH else "fast"


def _read_depth(runs: Sequence[Run | RunStream], depth: int | None) -> int:
    deepest = max(run.depth for run in runs)
    return deepest if depth is None else min(depth, deepest)


def _rrf_by_trectools(runs: Sequence[Run], rrf_k: int, depth: int | None, k: int | None, tag: str) -> Run:
    """Ask trectools for the scores of all documents; order and cut are ours."""
    import trectools.fusion

    if _read_depth(runs, depth) > TRECTOOLS_DEPTH:
        raise InputError(
            f"trectools fuses at most {TRECTOOLS_DEPTH} hits a query, but a run has {_read_depth(runs, depth)}; "
            f"give a depth of at most {TRECTOOLS_DEPTH}, or another engine"
        )
    found = Run(tag, {})
    if any(run.n_hits for run in runs):  # trectools fails on runs without hits
        inputs = [(run if depth is None else run.top(depth)).to_trectools(distinct_scores=True) for run in runs]
        everything = sum(run.depth for run in runs)
        fused = trectools.fusion.reciprocal_rank_fusion(inputs, k=rrf_k, max_docs=everything)
        found = Run.from_trectools(fused, tag)
    merged = Run(tag, {query_id: found.get(query_id, NO_HITS) for query_id in _queries(runs)})
    return merged if k is None else merged.top(k)


# ------------------------------------------------------------------------------------------------------ command


@command(
    "fuse",
    "fuse --runs run.bm25.txt run.student.txt --method rrf --output run.hybrid.txt",
    "\b\nrrf: sum of 1 / (k + rank). interpolation, average, normalize: as pyserini.fusion.\n"
    + "\n".join(f"{name}: {method.what}" for name, method in METHODS.items()),
)
@click.option("--runs", cls=Runs, multiple=True, required=True, metavar="RUN...", help="Two or more run files.")
@click.option("--method", type=click.Choice([*OWN_METHODS, *METHODS]), default="rrf", help="How to fuse; see below.")
@click.option("--norm", type=click.Choice(list(NORMS)), help="For comb* and wsum: how scores are normalised  [default: none]")
@click.option("--weights", cls=Runs, multiple=True, metavar="W...", help="For wsum: one weight a run  [default: all 1]")
@click.option("--rbp.p", "rbp_p", type=float, default=0.8, help="For rbp: the persistence.")
@click.option("--output", required=True, metavar="RUN", type=click.Path(path_type=Path), help="The fused run.")
@click.option("--rrf.k", "rrf_k", type=int, default=60, help="The constant of rrf: the sum of 1/(k + rank).")
@click.option("--alpha", type=float, default=0.5, help="For interpolation: the weight of the first run.")
@click.option("--depth", type=int, default=1000, help="Hits read of each run and query.")
@click.option("--k", type=int, default=1000, help="Hits written for each query.")
@click.option("--runtag", default=TAG, help="Last column of the fused run.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", help="For rrf; auto: trectools for small runs.")
@click.option("--ir-metadata", "metadata", is_flag=True, help="Begin the run with ir_metadata comments.")
@click.option("--overwrite", is_flag=True, help="Replace --output if it exists.")
def main(
    runs: tuple[str, ...],
    method: str,
    norm: str | None,
    weights: tuple[str, ...],
    rbp_p: float,
    output: Path,
    rrf_k: int,
    alpha: float,
    depth: int,
    k: int,
    runtag: str,
    engine: str,
    metadata: bool,
    overwrite: bool,
) -> None:
    """Fuse runs into one."""
    refuse_existing_run(output, overwrite)
    _check_command(runs, method, runtag, engine)
    for option, parameter, methods in USED_BY:
        if method not in methods and typed(parameter):
            raise InputError(f"{option} is for --method {', '.join(methods)}, not for {method}")
    numbers = _numbers(weights)
    if method == "rrf":
        way = _rrf(len(runs), rrf_k)
    elif method == "interpolation":
        way = _interpolation(alpha)
    elif method in METHODS:
        way = _combine(len(runs), method, norm, numbers, rbp_p)
    else:
        way = _average(len(runs)) if method == "average" else Way([_pyserini_min_max] * len(runs), add)
    started = time.perf_counter()
    inputs = [open_run(path) for path in runs]
    _check(inputs, depth, k)
    _check_common_topics(runs, inputs)
    seconds = {"read": time.perf_counter() - started, "fuse": 0.0}
    fusion = {"method": method, "norm": norm, "weights": numbers, "runs": list(runs)}
    comments = ir_metadata(runtag, fusion, {}) if metadata else []
    chosen = "fast"
    if method == "rrf":
        chosen = choose_engine(inputs, depth) if engine == "auto" else engine
    if chosen == "trectools":
        whole = [Run.read(path) for path in runs]
        read = time.perf_counter()
        fused = rrf(whole, rrf_k, depth, k, runtag, engine)
        seconds |= {"read": read - started, "fuse": time.perf_counter() - read}
        fused.write(output, overwrite=overwrite, comments=comments)
    else:
        write_run(output, runtag, _topics(inputs, way, depth, k, seconds), overwrite=overwrite, comments=comments)
    total = time.perf_counter() - started
    seconds["write"] = total - seconds["read"] - seconds["fuse"]
    stages = {f"{stage}_seconds": round(spent, 3) for stage, spent in seconds.items()}
    config = {"runs": list(runs), "method": method, "rrf_k": rrf_k, "alpha": alpha, "depth": depth, "k": k}
    config |= {"norm": norm, "weights": numbers, "rbp_p": rbp_p}
    write_record(output, config=config, engine=chosen, seconds=round(total, 2), **stages)
    queries = len(_queries(inputs))
    logger.info("fused %d runs by %s into %s (%d queries, %.1f s)", len(runs), method, output, queries, total)


USED_BY = (
    ("--alpha", "alpha", ("interpolation",)),
    ("--rrf.k", "rrf_k", ("rrf",)),
    ("--rbp.p", "rbp_p", ("rbp",)),
    ("--norm", "norm", tuple(name for name, method in METHODS.items() if method.by_rank is None)),
    ("--weights", "weights", ("wsum",)),
)
"""Options that one method uses, or some."""


def _numbers(words: Sequence[str]) -> list[float] | None:
    try:
        return [float(word) for word in words] or None
    except ValueError:
        raise InputError(f"--weights must be numbers, found {' '.join(words)}") from None


def _check_command(runs: Sequence[str], method: str, runtag: str, engine: str) -> None:
    """What can be said before the first run is read."""
    if len(runs) < 2:
        raise InputError(f"--runs needs at least two runs, found {len(runs)}")
    if len({Path(path).resolve() for path in runs}) != len(runs):
        raise InputError(f"--runs names a run twice: {' '.join(runs)}")
    if method == "interpolation" and len(runs) != 2:
        raise InputError(f"--method interpolation takes exactly two runs, found {len(runs)}")
    if engine == "trectools" and method != "rrf":
        raise InputError(f"--engine trectools is for rrf only, not {method}")
    if len(runtag.split()) != 1:
        raise InputError(f"--runtag must be one word without blanks, found {runtag!r}")


def _check_common_topics(paths: Sequence[str], runs: Sequence[Run | RunStream]) -> None:
    for (one, a), (other, b) in combinations(zip(paths, map(set, runs), strict=True), 2):
        if not a & b:
            raise InputError(f"runs {one} and {other} have no topic in common, so there is nothing to fuse")


if __name__ == "__main__":
    main()
