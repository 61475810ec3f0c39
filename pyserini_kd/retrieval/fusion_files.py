"""Fuse run files into one, topic by topic."""

import time
from itertools import combinations
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from pyserini_kd.data.run_files import check_tag, ir_metadata, write_run
from pyserini_kd.data.runs import Run, open_run
from pyserini_kd.retrieval.fusion import TAG, Ways, check_inputs, choose_engine, make_way, queries_of, read_topics_of, rrf
from pyserini_kd.retrieval.fusion_methods import METHODS
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import refuse_existing_run, write_record
from pyserini_kd.storage.settings import IrMetadata, Overwrite, Settings, option

MethodName = Literal[
    "rrf", "interpolation", "average", "normalize", "isr", "combsum", "combmnz", "combanz", "combmax", "combmin", "combmed",
    "wsum", "rbp", "borda", "condorcet",
]  # fmt: skip
Norm = Literal["none", "minmax", "sum", "zscore", "rank"]


class FuseSettings(Settings):
    """Run files, fusion method and output."""

    runs: tuple[str, ...] = option("--runs", help="Two or more run files.", metavar="RUN...", words=True)
    method: MethodName = option("--method", "rrf", "How to fuse; see below.")
    norm: Norm | None = option("--norm", None, "For comb* and wsum: how scores are normalised  [default: none]")
    weights: tuple[float, ...] = option(
        "--weights", (), "For wsum: one weight per run  [default: all 1]", metavar="W...", words=True
    )
    rbp_p: float = option("--rbp.p", 0.8, "For rbp: the persistence.")
    output: Path = option("--output", help="The fused run.", metavar="RUN")
    rrf_k: int = option("--rrf.k", 60, "The constant of rrf: the sum of 1/(k + rank).")
    alpha: float = option("--alpha", 0.5, "For interpolation: the weight of the first run.")
    depth: int = option("--depth", 1000, "Hits read per run and query.", ge=1)
    k: int = option("--k", 1000, "Hits written per query.", ge=1)
    runtag: str = option("--runtag", TAG, "Last column of the fused run.")
    engine: Literal["auto", "trectools", "fast"] = option("--engine", "auto", "For rrf; auto: trectools for small runs.")
    ir_metadata: IrMetadata = False
    overwrite: Overwrite = False

    @model_validator(mode="after")
    def rules(self) -> Self:
        """Check the settings before any run is read."""
        if len(self.runs) < 2:
            raise InputError(f"needs at least two runs, found {len(self.runs)}", "runs")
        if len({Path(path).resolve() for path in self.runs}) != len(self.runs):
            raise InputError(f"names a run twice: {' '.join(self.runs)}", "runs")
        if self.method == "interpolation" and len(self.runs) != 2:
            raise InputError(f"interpolation takes exactly two runs, found {len(self.runs)}", "method")
        if self.engine == "trectools" and self.method != "rrf":
            raise InputError(f"trectools is for rrf only, not for {self.method}", "engine")
        check_tag(self.runtag)
        by_score = tuple(name for name, method in METHODS.items() if method.by_rank is None)
        for field, methods in {
            "alpha": ("interpolation",), "rrf_k": ("rrf",), "rbp_p": ("rbp",), "norm": by_score, "weights": ("wsum",)
        }.items():  # fmt: skip
            self.only(field, self.method in methods, f"is for the method {', '.join(methods)}, not for {self.method}")
        return self


def fuse_files(settings: FuseSettings) -> tuple[int, float]:
    """Fuse run files into one, with a record beside it; returns the number of queries and the seconds.

    Raises:
        InputError: the output exists, a run is invalid, two runs share no topic, or a setting does not fit the method.
    """
    names, method, output = settings.runs, settings.method, settings.output
    refuse_existing_run(output, settings.overwrite)
    ways: Ways = {"norm": settings.norm, "weights": list(settings.weights) or None}
    ways |= {"rrf_k": settings.rrf_k, "alpha": settings.alpha, "rbp_p": settings.rbp_p}
    way = make_way(method, len(names), **ways)
    started = time.perf_counter()
    runs = [open_run(path) for path in names]
    check_inputs(runs, settings.depth, settings.k)
    for (one, a), (other, b) in combinations(zip(names, map(set, runs), strict=True), 2):
        if not a & b:
            raise InputError(f"runs {one} and {other} have no topic in common, so there is nothing to fuse")
    seconds = {"read": time.perf_counter() - started, "fuse": 0.0}
    fusion = {"method": method, "norm": ways["norm"], "weights": ways["weights"], "runs": list(names)}
    comments = ir_metadata(settings.runtag, fusion, {}) if settings.ir_metadata else []
    engine = "fast"
    if method == "rrf":
        engine = choose_engine(runs, settings.depth) if settings.engine == "auto" else settings.engine
    if engine == "trectools":
        whole = [Run.read(path) for path in names]
        read = time.perf_counter()
        fused = rrf(whole, settings.rrf_k, settings.depth, settings.k, settings.runtag, engine)
        seconds |= {"read": read - started, "fuse": time.perf_counter() - read}
        fused.write(output, overwrite=settings.overwrite, comments=comments)
    else:
        topics = read_topics_of(runs, way, settings.depth, settings.k, seconds)
        write_run(output, settings.runtag, topics, overwrite=settings.overwrite, comments=comments)
    total = time.perf_counter() - started
    seconds["write"] = total - seconds["read"] - seconds["fuse"]
    config = {**fusion, **ways, "depth": settings.depth, "k": settings.k}
    stages = {f"{stage}_seconds": round(spent, 3) for stage, spent in seconds.items()}
    write_record(output, config=config, engine=engine, seconds=round(total, 2), **stages)
    return len(queries_of(runs)), total
