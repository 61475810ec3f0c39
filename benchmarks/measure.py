"""Interleaved timing, and the limits of the machine."""

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
    """Input of every row: folder of the real collections (None if absent), work folder, and whether sizes are small."""

    data: Path | None
    work: Path
    quick: bool

    def choose(self, full: int, quick: int) -> int:
        """The full or the quick value."""
        return quick if self.quick else full


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table. `ratio` compares with the better peer at its defaults, `bf16_ratio` with the peer in bf16.

    None or infinity means that there is no such peer.
    """

    what: str
    ours: str
    peer: str
    ratio: float | None = None
    bf16_ratio: float | None = None
    equal: str = ""
    bar: str = ""
    passed: bool | None = None
    machine: str = ""


def score_tolerance() -> float:
    """Allowed difference of two cosines of the same texts: rounding of fp32, or of bf16 where we use it."""
    from pyserini_kd.models import hardware

    return 1e-4 if hardware.choose_precision() == "fp32" else 5e-3


@dataclasses.dataclass(frozen=True)
class Timed:
    """Seconds and results of each job, per round."""

    seconds: dict[str, list[float]]
    results: dict[str, list[Any]]

    def median(self, name: str) -> float:
        """Median seconds of a job."""
        return statistics.median(self.seconds[name])

    def each(self, names: Sequence[str], value: Callable[[float], str]) -> str:
        """The jobs in `names` that ran, each with `value` of its median seconds, as text."""
        return ", ".join(f"{name} {value(self.median(name))}" for name in names if name in self.seconds)

    def ratio(self, ours: str, peer: str) -> float:
        """Speed-up over a peer: median of its seconds / our seconds over shared rounds; inf if the peer did not run."""
        if peer not in self.seconds:
            return math.inf
        return statistics.median(b / a for a, b in zip(self.seconds[ours], self.seconds[peer], strict=False))

    def better(self, *peers: str) -> str:
        """The fastest peer."""
        return min(peers, key=self.median)


def possible(jobs: Mapping[str, Callable[[int], Any]]) -> dict[str, Callable[[int], Any]]:
    """The jobs, without bf16 peers on processors that emulate bf16, which is ten times slower than fp32."""
    from pyserini_kd.models import hardware

    emulated = hardware.imitates_bf16()
    return {name: job for name, job in jobs.items() if not (emulated and name.endswith("bf16"))}


def interleaved(jobs: Mapping[str, Callable[[int], Any]], rounds: int, once: Sequence[str] = ()) -> Timed:
    """Run the jobs in turn, in rounds; each round begins with another job. Jobs in `once` run in round 0 only."""
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
    """Operations per second of a plain matrix product (rows, inner) x (inner, columns)."""
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
    """Floating-point operations of a BERT forward pass over texts of `lengths` tokens, without padding."""
    width, inner = config.hidden_size, config.intermediate_size
    per_token = 2 * (4 * width * width + 2 * width * inner)
    return float(config.num_hidden_layers * sum(length * per_token + 4 * length * length * width for length in lengths))


def against_machine(config: Any, lengths: Sequence[int], seconds: float, precision: str) -> str:
    """Speed of a model as a share of plain matrix products: in its own shapes, and in a large square one."""
    reached = model_flops(config, lengths) / seconds
    square = matmul_flops(2048, 2048, 2048, precision)
    shaped = matmul_flops(8192, config.hidden_size, config.intermediate_size, precision)
    unit = "GOP/s" if precision == "int8" else "GFLOP/s"
    return f"{reached / 1e9:.0f} {unit} {precision}: {reached / shaped:.0%} of its shapes, {reached / square:.0%} of 2048^3"


def read_bandwidth(path: Path) -> float:
    """Bytes per second when reading a file from the page cache."""
    size = 0
    path.read_bytes()
    begun = time.perf_counter()
    with open(path, "rb", buffering=0) as handle:
        while chunk := handle.read(1 << 20):
            size += len(chunk)
    return size / (time.perf_counter() - begun)
