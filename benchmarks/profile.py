"""Profile: `python -m benchmarks.profile` prints the figures behind the explanations in experiments/benchmarks/page.md.

Speed of matrix products in the shapes of MiniLM-L6; the time share of each operation in encoding and reranking by torch; and a
training step with the dropout and attention of PyTorch and with ours.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import Bench, matmul_flops
from benchmarks.models import dl19_pairs, random_cross_encoder
from benchmarks.table import about_this_machine, table
from pyserini_kd.data import docstrings
from pyserini_kd.distillation import cpu_training
from pyserini_kd.models import hardware, loading, rankers

SHAPES = {"2048^3": (2048, 2048, 2048), "qkv": (2048, 384, 1152), "up": (2048, 384, 1536), "down": (2048, 1536, 384)}
PRECISIONS = ("fp32", "bf16")
TRIPLES, LENGTH = 16, 128


def products() -> str:
    """Table: GFLOP/s of plain matrix products in each precision."""
    rows = [[name, *(matmul_flops(*shape, precision) / 1e9 for precision in PRECISIONS)] for name, shape in SHAPES.items()]
    return table([[name, *(f"{speed:.0f}" for speed in speeds)] for name, *speeds in rows], ("GFLOP/s", *PRECISIONS))


def shares(work: Callable[[], Any]) -> str:
    """The CPU time share of each PyTorch operation with 2% or more, as text."""
    import torch

    work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    events = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(events.values())
    named = sorted(((spent / total, name) for name, spent in events.items()), reverse=True)
    return ", ".join(f"{name.removeprefix('aten::')} {share:.0%}" for share, name in named if share >= 0.02)


def training_step(precision: str, dropout: float, ours: bool) -> Callable[[], Any]:
    """A Margin-MSE training step of a MiniLM bi-encoder, with our dropout and attention (`ours`) or PyTorch's."""
    import torch

    model: Any = loading.load("minilm")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    if ours:
        cpu_training.fit(model)
    model.train()
    docs, queries = (
        [doc.contents for doc in docstrings.docs()][: 2 * TRIPLES],
        [q.text for q in docstrings.topics("test")][:TRIPLES],
    )
    batch = model.pair_batch(queries, docs, [(row // 2, row) for row in range(2 * TRIPLES)], LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            scores = model.pair_scores(batch).view(TRIPLES, 2)
        (scores[:, 0] - scores[:, 1]).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def training() -> str:
    """Table: seconds of a training step by precision and dropout, PyTorch vs ours."""
    rows = []
    for precision in PRECISIONS:
        for dropout in (0.1, 0.0):
            steps = [training_step(precision, dropout, ours) for ours in (False, True)]
            found: list[list[float]] = [[], []]
            for number in range(5):
                for step, seconds in zip(steps, found, strict=True):
                    spent = _seconds(step)
                    if number:
                        seconds.append(spent)
            theirs, ours = map(statistics.median, found)
            rows.append([precision, f"{dropout}", f"{theirs:.2f}", f"{ours:.2f}", f"{theirs / ours:.2f}x"])
    return table(rows, ("a training step", "dropout", "PyTorch's s", "ours s", "ratio"))


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


@click.command()
@click.option("--data", type=click.Path(path_type=Path), envvar="PYSERINI_KD_DATA", default="../shared/data",
              help="Folder with msmarco-dl19/, for reranking.")  # fmt: skip
def main(data: Path) -> None:
    """Print the profile."""
    import torch

    torch.set_num_threads(hardware.threads())
    click.echo(f"{about_this_machine()}\n\n{products()}\n")
    click.echo(f"{training()}\n")
    model: Any = rankers.load("minilm", backend="torch")
    texts = [doc.contents for doc in docstrings.docs()][::20]
    click.echo(f"encode, {len(texts)} docstrings: {shares(lambda: model.encode_docs(texts))}\n")
    if (data / "msmarco-dl19").is_dir():
        pairs = [pair[2:] for pair in dl19_pairs(Bench(data, Path(), False))[::8]]
        with tempfile.TemporaryDirectory() as folder:
            cross = random_cross_encoder(Path(folder) / "cross")
            found = shares(lambda: cross.score(*zip(*pairs, strict=True)))
        click.echo(f"rerank, {len(pairs)} of DL19's pairs: {found}\n")
    for dropout in (0.1, 0.0):
        found = shares(training_step(hardware.choose_precision(), dropout, True))
        click.echo(f"a training step in {hardware.choose_precision()}, dropout {dropout}: {found}\n")


if __name__ == "__main__":
    main()
