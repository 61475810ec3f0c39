"""`make bench`: one table that compares this package with its peers on this machine.

Each row runs in its own process. See `python -m benchmarks.table --help`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.measure import Bench, Row

ROWS = {  # name -> module, function, and whether it needs the real collections
    "encode": ("models", "encode", False),
    "search": ("models", "searched", True),
    "rerank": ("models", "reranked", True),
    "students": ("models", "students", True),
    "int8": ("models", "int8", True),
    "train": ("models", "trained", False),
    "evaluate": ("files", "evaluated", False),
    "fuse": ("files", "fused", False),
    "beside": ("beside", "beside", False),
    "start": ("beside", "started", False),
    "serve": ("load", "served", False),
    "help": ("files", "helped", False),
}
HEADER = ("what", "ours", "peer", "ratio", "to bf16", "equal output", "bar", "passed", "of the machine")
PRINTED = "benchmarks-row "
FAILED = "failed"


@click.command()
@click.option("--data", type=click.Path(path_type=Path), envvar="PYSERINI_KD_DATA", default="../shared/data", show_default=True,
              help="Folder with squad/ and msmarco-dl19/; without it, rows that need it are skipped.")  # fmt: skip
@click.option("--work", type=click.Path(path_type=Path), default="build/bench", show_default=True, help="Work folder.")
@click.option("--only", type=click.Choice(list(ROWS)), multiple=True, help="Run only these rows; repeatable.")
@click.option("--quick", is_flag=True, help="Small sizes, as a test of the program, not of its speed.")
@click.option("--row", type=click.Choice(list(ROWS)), hidden=True)
def main(data: Path, work: Path, only: Sequence[str], quick: bool, row: str | None) -> None:
    """Time this package and its peers side by side and print one table (Markdown)."""
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        data.resolve() if (data / "msmarco-dl19").is_dir() and (data / "squad").is_dir() else None, work.resolve(), quick
    )
    if row:
        for found in _measure(row, bench):
            click.echo(PRINTED + json.dumps(dataclasses.asdict(found)))
        return
    begun = time.monotonic()
    click.echo(about_this_machine() + ("; QUICK sizes: the figures mean nothing" if quick else "") + "\n")
    click.echo(table([]))
    broken = False
    for name in only or ROWS:  # printed at once: a row may take minutes
        rows = _in_a_process(name, bench)
        broken = broken or any(row.equal.startswith(FAILED) for row in rows)
        click.echo("\n".join(line(_cells(row)) for row in rows))
    click.echo(f"\n{time.monotonic() - begun:.0f} s in total; load average at the end {os.getloadavg()[0]:.1f}")
    sys.exit(broken)  # a missed bar is a result; only a failed row is an error


def _measure(name: str, bench: Bench) -> list[Row]:
    import importlib

    module, function, _ = ROWS[name]
    found: list[Row] = getattr(importlib.import_module(f"benchmarks.{module}"), function)(bench)
    return found


def _in_a_process(name: str, bench: Bench) -> list[Row]:
    if ROWS[name][2] and bench.data is None:
        return [Row(name, "", "", equal="skipped: no data")]
    click.echo(f"{name} ...", err=True)
    words = [sys.executable, "-m", "benchmarks.table", "--row", name, "--work", str(bench.work)]
    words += ["--data", str(bench.data or "none"), *(["--quick"] if bench.quick else [])]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    lines = [line.removeprefix(PRINTED) for line in done.stdout.splitlines() if line.startswith(PRINTED)]
    if done.returncode:
        return [Row(name, "", "", equal=f"{FAILED}, exit code {done.returncode}: see above", passed=False)]
    return [Row(**json.loads(line)) for line in lines]


def _cells(row: Row) -> list[str]:
    ratios = ["" if value is None or math.isinf(value) else f"{value:.2f}x" for value in (row.ratio, row.bf16_ratio)]
    passed = {None: "", True: "yes", False: "NO"}[row.passed]
    return [row.what, row.ours, row.peer, *ratios, row.equal, row.bar, passed, row.machine]


def table(rows: list[list[str]], header: Sequence[str] = HEADER) -> str:
    """A Markdown table."""
    return "\n".join(map(line, [header, ["---"] * len(header), *rows]))


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def about_this_machine() -> str:
    """The processor with its relevant features, and the versions."""
    import importlib.metadata as metadata

    from pyserini_kd.models import hardware
    from pyserini_kd.storage.environment import environment

    flags = hardware.cpu_flags()
    known = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if name in flags]
    lacking = [name for name in ("avx512_vnni", "amx_bf16") if name not in flags]
    packages = ("pyserini", "sentence-transformers", "torch", "transformers", "openvino", "faiss-cpu", "ranx", "trectools")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    cpu = environment()["hardware"]["cpu"]
    return (
        f"{hardware.threads()} cores of {cpu} ({', '.join(known)}; without {', '.join(lacking) or 'nothing that matters'}); "
        f"`--precision auto` is {hardware.choose_precision()} here. Python {platform.python_version()}, {versions}."
    )


if __name__ == "__main__":
    main()
