"""The command `fuse`."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import click

from pyserini_kd.cli import Runs, command, typed
from pyserini_kd.data.run_files import ir_metadata, write_run
from pyserini_kd.data.runs import Run, RunStream, open_run
from pyserini_kd.retrieval.fusion import (
    ENGINES,
    TAG,
    Way,
    check_inputs,
    choose_engine,
    queries_of,
    read_topics_of,
    rrf,
    way_average,
    way_combine,
    way_interpolation,
    way_rrf,
)
from pyserini_kd.retrieval.fusion_methods import METHODS, NORMS, OWN_METHODS, add, pyserini_min_max
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import refuse_existing_run, write_record

logger = logging.getLogger(__name__)


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
        way = way_rrf(len(runs), rrf_k)
    elif method == "interpolation":
        way = way_interpolation(alpha)
    elif method in METHODS:
        way = way_combine(len(runs), method, norm, numbers, rbp_p)
    else:
        way = way_average(len(runs)) if method == "average" else Way([pyserini_min_max] * len(runs), add)
    started = time.perf_counter()
    inputs = [open_run(path) for path in runs]
    check_inputs(inputs, depth, k)
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
        write_run(output, runtag, read_topics_of(inputs, way, depth, k, seconds), overwrite=overwrite, comments=comments)
    total = time.perf_counter() - started
    seconds["write"] = total - seconds["read"] - seconds["fuse"]
    stages = {f"{stage}_seconds": round(spent, 3) for stage, spent in seconds.items()}
    config = {"runs": list(runs), "method": method, "rrf_k": rrf_k, "alpha": alpha, "depth": depth, "k": k}
    config |= {"norm": norm, "weights": numbers, "rbp_p": rbp_p}
    write_record(output, config=config, engine=chosen, seconds=round(total, 2), **stages)
    queries = len(queries_of(inputs))
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
