"""The command `tune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from pyserini_kd.cli import Runs, command, typed
from pyserini_kd.data import sources
from pyserini_kd.data.runs import Run
from pyserini_kd.evaluation import significance
from pyserini_kd.evaluation.measures import Measure
from pyserini_kd.evaluation.tables import table
from pyserini_kd.evaluation.tuning import METHODS, Setting, Values, tune, values_of
from pyserini_kd.retrieval import fusion_methods
from pyserini_kd.storage.environment import command_line, environment, sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import refuse_existing
from pyserini_kd.storage.records import write_json


@command(
    "tune",
    "tune --runs run.bm25.dev.txt run.student.dev.txt --qrels qrels.dev.txt --method interpolation --measure RR@10",
    "The gain on unseen folds is what to expect elsewhere: each topic is measured under the setting chosen without its fold.",
)
@click.option("--runs", cls=Runs, multiple=True, required=True, metavar="RUN...", help="Two or more runs of dev topics.")
@click.option("--qrels", required=True, help="Their judgements: a file, ir_datasets:<id>, or pydocs:dev.")
@click.option("--method", type=click.Choice(METHODS), default="interpolation", help="What is tuned: alpha, rrf.k, or weights.")
@click.option("--measure", default="nDCG@10", help="What to maximise.")
@click.option("--grid", cls=Runs, multiple=True, metavar="X...", help="Values tried [default: a grid for each method].")
@click.option("--norm", type=click.Choice(list(fusion_methods.NORMS)), default="minmax", help="Of the scores, for wsum.")
@click.option("--folds", type=click.IntRange(2), default=5, help="Parts of the topics for cross-validation.")
@click.option("--seed", type=click.IntRange(0), default=42, help="Of folds and resampling.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the result as JSON.")
@click.option("--overwrite", is_flag=True, help="Replace --output if it exists.")
def main(
    runs: tuple[str, ...],
    qrels: str,
    method: str,
    measure: str,
    grid: tuple[str, ...],
    norm: str,
    folds: int,
    seed: int,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Tune a fusion on dev topics, cross-validated."""
    if output:
        refuse_existing(output, overwrite)
    if len(runs) < 2 or len({Path(path).resolve() for path in runs}) != len(runs):
        raise InputError(f"--runs needs two or more different runs, found {' '.join(runs)}")
    if method != "wsum" and typed("norm"):
        raise InputError(f"--norm is for --method wsum, not for {method}")
    Measure.parse(measure)
    values = _grid(grid, method)
    judged = sources.qrels(qrels)
    inputs = [Run.read(path) for path in runs]
    if not any(query_id in judged for query_id in set.intersection(*(set(run) for run in inputs))):
        raise InputError("the runs and the qrels have no topic in common")
    found = tune(inputs, judged, method, measure=measure, grid=values, norm=norm, folds=folds, seed=seed)
    rows: dict[str, Values] = {path: values_of(run, judged, measure) for path, run in zip(runs, inputs, strict=True)}
    best = max(rows, key=lambda path: float(rows[path].mean()))
    rows |= {"fused, default": found.default, "fused, tuned (seen)": found.seen, "fused, tuned (unseen folds)": found.unseen}
    click.echo(table(["system", measure], [[name, float(row.mean())] for name, row in rows.items()]))
    gains = {name: _gain(found.unseen, rows[name], seed) for name in (best, "fused, default")}
    name = {"interpolation": "alpha", "rrf": "rrf.k", "wsum": "weights"}[method]
    under = f", with --norm {norm}" if method == "wsum" else ""
    click.echo(f"\n{name}: {_words(found.setting)}{under} (without each fold: {', '.join(map(_words, found.per_fold))})")
    for other, gain in gains.items():
        interval = f"95% interval [{gain.low:+.4f}, {gain.high:+.4f}], p = {gain.p_value:.2g}"
        click.echo(f"gain on unseen folds over {other}: {gain.difference:+.4f}, {interval}")
    if output:
        record: dict[str, Any] = {"method": method, name: list(found.setting), "per_fold": found.per_fold, "measure": measure}
        record |= {"norm": norm} if method == "wsum" else {}
        record |= {"means": {row: float(value.mean()) for row, value in rows.items()}, "runs": list(runs), "qrels": qrels}
        record |= {"gains_on_unseen_folds": {other: gain._asdict() for other, gain in gains.items()}}
        record |= {"sha256": {path: sha256(path) for path in (*runs, qrels) if Path(path).is_file()}, "seed": seed}
        write_json(output, record | {"command": command_line(), **environment()})


def _gain(ours: Values, theirs: Values, seed: int) -> significance.Comparison:
    """Paired comparison of two systems by per-topic values."""
    named = {name: {"": {str(i): v for i, v in enumerate(values.tolist())}} for name, values in (("a", ours), ("b", theirs))}
    return significance.compare(named, "b", seed=seed)["a"][""]


def _words(setting: Setting) -> str:
    return " ".join(f"{value:g}" for value in setting)


def _grid(words: Sequence[str], method: str) -> tuple[float, ...] | None:
    try:
        values = tuple(float(word) for word in words)
    except ValueError:
        raise InputError(f"--grid must be numbers, found {' '.join(words)}") from None
    allowed = {
        "interpolation": ("between 0 and 1", lambda v: 0 <= v <= 1),
        "rrf": ("whole numbers from 0", lambda v: v >= 0 and v == int(v)),
        "wsum": ("0 or more", lambda v: v >= 0),
    }
    what, fits = allowed[method]
    if not np.isfinite(values).all() or not all(fits(value) for value in values):
        raise InputError(f"--grid: values for {method} must be {what}, found {' '.join(words)}")
    return values or None


if __name__ == "__main__":
    main()
