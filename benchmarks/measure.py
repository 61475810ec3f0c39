"""Timing side by side, and what the machine could do at best."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Bench:
    """What every row is given: the folder with the real collections (None: absent), a folder to keep things in, how much."""

    data: Path | None
    work: Path
    quick: bool

    def some(self, full: int, quick: int) -> int:
        """How many of something."""
        return quick if self.quick else full


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table. `ratio` is ours to the better peer at its defaults, `helped` to the peer in bf16.

    None, or infinite: there is no such peer.
    """

    what: str
    ours: str
    peer: str
    ratio: float | None = None
    helped: float | None = None
    equal: str = ""
    bar: str = ""
    passed: bool | None = None
    machine: str = ""


def score_tolerance() -> float:
    """How far apart two cosines of the same texts may lie: float rounding, or that of bf16 where our side computes in it."""
    from pyserini_kd.models import hardware

    return 1e-4 if hardware.choose_precision() == "fp32" else 5e-3


@dataclasses.dataclass(frozen=True)
class Timed:
    """Seconds of each round of each job, and what the last round returned."""

    seconds: dict[str, list[float]]
    results: dict[str, list[Any]]

    def median(self, name: str) -> float:
        """Median seconds of a job."""
        return statistics.median(self.seconds[name])

    def each(self, names: Sequence[str], value: Callable[[float], str]) -> str:
        """The jobs among these that took part, with what `value` makes of their median seconds."""
        return ", ".join(f"{name} {value(self.median(name))}" for name in names if name in self.seconds)

    def ratio(self, ours: str, peer: str) -> float:
        """Median over the rounds that both took part in of the peer's seconds by ours: how many times faster we are.

        Infinite for a peer that took no part.
        """
        if peer not in self.seconds:
            return math.inf
        return statistics.median(b / a for a, b in zip(self.seconds[ours], self.seconds[peer], strict=False))

    def better(self, *peers: str) -> str:
        """The peer that needed the least time."""
        return min(peers, key=self.median)


def possible(jobs: Mapping[str, Callable[[int], Any]]) -> dict[str, Callable[[int], Any]]:
    """The jobs, without peers in bf16 where the processor only imitates it, at a tenth of fp32's speed."""
    from pyserini_kd.models import hardware

    imitated = hardware.imitates_bf16()
    return {name: job for name, job in jobs.items() if not (imitated and name.endswith("bf16"))}


def interleaved(jobs: Mapping[str, Callable[[int], Any]], rounds: int, once: Sequence[str] = ()) -> Timed:
    """Run the jobs in turn, round after round, each round beginning with another; those in `once` in round 0 only."""
    timed = Timed({name: [] for name in jobs}, {name: [] for name in jobs})
    names = list(jobs)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if number and name in once:
                continue
            begun = time.perf_counter()
            result = jobs[name](number)
            timed.seconds[name].append(time.perf_counter() - begun)
            timed.results[name].append(result)
    return timed


def matmul_flops(rows: int, inner: int, columns: int, precision: str = "fp32") -> float:
    """Floating-point operations a second of a plain matrix product (rows, inner) x (inner, columns)."""
    import torch
    from torch.utils.benchmark import Timer

    dtype = {"bf16": torch.bfloat16, "int8": torch.int8}.get(precision, torch.float32)
    a, b = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
    product = torch._int_mm if precision == "int8" else torch.nn.functional.linear
    if precision == "int8":
        b = b.T.contiguous()
    timer = Timer("product(a, b)", globals={"product": product, "a": a, "b": b}, num_threads=torch.get_num_threads())
    return 2.0 * rows * inner * columns / timer.blocked_autorange(min_run_time=0.5).median


def model_flops(config: Any, lengths: Sequence[int]) -> float:
    """Floating-point operations of one pass of a BERT over texts of so many tokens, padding not counted."""
    width, inner = config.hidden_size, config.intermediate_size
    a_token = 2 * (4 * width * width + 2 * width * inner)
    return float(config.num_hidden_layers * sum(length * a_token + 4 * length * length * width for length in lengths))


def against_machine(config: Any, lengths: Sequence[int], seconds: float, precision: str) -> str:
    """What share of a plain matrix product's speed a model reached: of a large square one, and of its own shapes."""
    reached = model_flops(config, lengths) / seconds
    square = matmul_flops(2048, 2048, 2048, precision)
    own = matmul_flops(8192, config.hidden_size, config.intermediate_size, precision)
    unit = "GOP/s" if precision == "int8" else "GFLOP/s"
    return f"{reached / 1e9:.0f} {unit} {precision}: {reached / own:.0%} of its own matrices', {reached / square:.0%} of 2048^3"


def read_bandwidth(path: Path) -> float:
    """Bytes a second of reading a file that the system holds in memory already."""
    size = 0
    path.read_bytes()
    begun = time.perf_counter()
    with open(path, "rb", buffering=0) as handle:
        while chunk := handle.read(1 << 20):
            size += len(chunk)
    return size / (time.perf_counter() - begun)
