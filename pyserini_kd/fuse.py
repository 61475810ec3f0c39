"""Fusion of Runs: reciprocal ranks, interpolation, average, normalised sum, each as pyserini.fusion computes it.

Every method gives each hit of each run a part, and a document's score is the sum of its parts; a run that lacks the
document adds nothing. Parts are summed exactly and compared as float32: the order in which runs are named changes
nothing, except where a method weighs them differently.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from pyserini_kd.cli import Runs, command
from pyserini_kd.files import InputError, refuse_existing_run, write_record
from pyserini_kd.runs import Hits, Run

logger = logging.getLogger(__name__)

Parts = npt.NDArray[np.float64]

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
    if rrf_k < 0:
        raise InputError(f"rrf_k must be 0 or more, not {rrf_k}")
    _check(runs, depth, k)
    if engine == "auto":
        engine = choose_engine(runs, depth)
    if engine == "trectools":
        return _rrf_by_trectools(runs, rrf_k, depth, k, tag)
    parts = 1 / (rrf_k + np.arange(1.0, max(run.depth for run in runs) + 1))
    return _sum(runs, [lambda hits: parts[: len(hits.doc_ids)]] * len(runs), depth, k, tag)


def interpolation(
    a: Run, b: Run, alpha: float = 0.5, depth: int | None = None, k: int | None = 1000, tag: str = TAG
) -> Run:
    """Weighted sum of raw scores: alpha * (score in a) + (1 - alpha) * (score in b); a missing score is 0.

    >>> a, b = Run.from_scores("a", {"q": {"x": 2.0, "y": 1.0}}), Run.from_scores("b", {"q": {"y": 9.0}})
    >>> interpolation(a, b, alpha=0.75)["q"]
    Hits(doc_ids=['y', 'x'], scores=array([3. , 1.5], dtype=float32))
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must lie between 0 and 1, not {alpha}")
    _check([a, b], depth, k)
    return _sum([a, b], [lambda hits: alpha * _scores(hits), lambda hits: (1 - alpha) * _scores(hits)], depth, k, tag)


def average(runs: Sequence[Run], depth: int | None = None, k: int | None = 1000, tag: str = TAG) -> Run:
    """Mean of raw scores over all runs; a missing score is 0."""
    _check(runs, depth, k)
    return _sum(runs, [lambda hits: _scores(hits) * (1 / len(runs))] * len(runs), depth, k, tag)


def normalize(runs: Sequence[Run], depth: int | None = None, k: int | None = 1000, tag: str = TAG) -> Run:
    """Sum of scores brought to [0, 1] per run and query by minimum and maximum; a missing score is 0.

    Where all scores of a ranking are equal they become 1, as in Pyserini: to be found is more than to be missing.
    """
    _check(runs, depth, k)
    return _sum(runs, [_min_max] * len(runs), depth, k, tag)


def _scores(hits: Hits) -> Parts:
    return hits.scores.astype(np.float64)


def _min_max(hits: Hits) -> Parts:
    scores = _scores(hits)
    if len(scores) == 0 or scores[0] == scores[-1]:  # best first
        return np.ones_like(scores)
    return (scores - scores[-1]) / (scores[0] - scores[-1])


def _check(runs: Sequence[Run], depth: int | None, k: int | None) -> None:
    if len(runs) < 2:
        raise InputError(f"fusion needs at least two runs, not {len(runs)}")
    for name, value in (("depth", depth), ("k", k)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be 1 or more, not {value}")


def _queries(runs: Sequence[Run]) -> list[str]:
    """Every query of any run, in the order in which they first come."""
    return list(dict.fromkeys(query_id for run in runs for query_id in run))


def _sum(
    runs: Sequence[Run], parts_of: Sequence[Callable[[Hits], Parts]], depth: int | None, k: int | None, tag: str
) -> Run:
    """Sum, per query and document, the parts that each run's function gives to its whole ranking."""

    def fused() -> Iterator[tuple[str, list[str], list[float]]]:
        for query_id in _queries(runs):
            parts: dict[str, list[float]] = {}
            for run, function in zip(runs, parts_of, strict=True):
                if query_id in run:
                    hits = run[query_id]
                    for doc_id, part in zip(hits.doc_ids[:depth], function(hits)[:depth].tolist(), strict=True):
                        parts.setdefault(doc_id, []).append(part)
            yield query_id, list(parts), list(map(math.fsum, parts.values()))

    merged = Run.from_hits(tag, fused())
    return merged if k is None else merged.top(k)


# ---------------------------------------------------------------------------------------------------- trectools


def choose_engine(runs: Sequence[Run], depth: int | None) -> str:
    """What `auto` means for these runs: trectools where it is quick and reads all of them, otherwise our own sum."""
    small = len(_queries(runs)) * sum(run.n_hits for run in runs) <= TRECTOOLS_WORK
    return "trectools" if small and _read_depth(runs, depth) <= TRECTOOLS_DEPTH else "fast"


def _read_depth(runs: Sequence[Run], depth: int | None) -> int:
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
    nothing = Hits([], np.empty(0, dtype=np.float32))
    merged = Run(tag, {query_id: found.get(query_id, nothing) for query_id in _queries(runs)})
    return merged if k is None else merged.top(k)


# ------------------------------------------------------------------------------------------------------ command


@command("fuse", "fuse --runs run.bm25.txt run.student.txt --method rrf --output run.hybrid.txt")
@click.option("--runs", cls=Runs, multiple=True, required=True, metavar="RUN...", help="Two or more run files.")
@click.option("--method", type=click.Choice(["rrf", "interpolation", "average", "normalize"]), default="rrf")
@click.option("--output", required=True, metavar="RUN", type=click.Path(path_type=Path), help="The fused run.")
@click.option("--rrf.k", "rrf_k", type=int, default=60, help="The constant of rrf: the sum of 1/(k + rank).")
@click.option("--alpha", type=float, default=0.5, help="For interpolation: the weight of the first run.")
@click.option("--depth", type=int, default=1000, help="Hits read of each run and query.")
@click.option("--k", type=int, default=1000, help="Hits written for each query.")
@click.option("--runtag", default=TAG, help="Last column of the fused run.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", help="For rrf; auto: trectools for small runs.")
@click.option("--overwrite", is_flag=True, help="Replace --output if it exists.")
def main(
    runs: tuple[str, ...],
    method: str,
    output: Path,
    rrf_k: int,
    alpha: float,
    depth: int,
    k: int,
    runtag: str,
    engine: str,
    overwrite: bool,
) -> None:
    """Fuse runs into one, as pyserini.fusion does."""
    refuse_existing_run(output, overwrite)
    _check_command(runs, method, runtag, engine)
    started = time.perf_counter()
    inputs = [Run.read(path) for path in runs]
    if method == "rrf":
        fused = rrf(inputs, rrf_k, depth, k, runtag, engine)
    elif method == "interpolation":
        fused = interpolation(inputs[0], inputs[1], alpha, depth, k, runtag)
    else:
        fused = (average if method == "average" else normalize)(inputs, depth, k, runtag)
    fused.write(output, overwrite=overwrite)
    seconds = time.perf_counter() - started
    config = {"runs": list(runs), "method": method, "rrf_k": rrf_k, "alpha": alpha, "depth": depth, "k": k}
    chosen = choose_engine(inputs, depth) if method == "rrf" and engine == "auto" else engine
    write_record(output, config=config, engine=chosen, seconds=round(seconds, 2))
    logger.info("fused %d runs by %s into %s (%d queries, %.1f s)", len(runs), method, output, len(fused), seconds)


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


if __name__ == "__main__":
    main()
