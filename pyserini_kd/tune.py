"""Weights of a fusion, chosen on dev topics, and what the choice is worth on topics it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt

from pyserini_kd import fuse, significance, sources
from pyserini_kd.cli import Runs, command, typed
from pyserini_kd.data import Qrels
from pyserini_kd.evaluate import evaluate
from pyserini_kd.files import InputError, command_line, environment, refuse_existing, sha256, write_json
from pyserini_kd.measures import Measure
from pyserini_kd.runs import Run
from pyserini_kd.tables import table

RESAMPLES = 1000
Values = npt.NDArray[np.float64]
Setting = tuple[float, ...]
"""What is tuned: (alpha,), (rrf_k,), or one weight a run."""

METHODS = ("interpolation", "rrf", "wsum")
GRIDS: dict[str, tuple[float, ...]] = {
    "interpolation": (0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2)
    + (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
    "rrf": (1, 2, 5, 10, 20, 40, 60, 80, 100, 200),
    "wsum": (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
}
ROUNDS = 3  # of the coordinate search, at most


class Tuned(NamedTuple):
    """A setting chosen on all topics, and the measure of settings chosen without the topics they are measured on."""

    setting: Setting
    per_fold: list[Setting]
    seen: Values
    """(topics,): the chosen setting, on the topics it was chosen on"""
    unseen: Values
    """(topics,): each topic under the setting chosen on the other folds"""
    default: Values
    """(topics,): the method's default"""


def best_alpha(a: Run, b: Run, qrels: Qrels, alphas: Sequence[float], measure: str = "RR@10", seed: int = 42) -> float:
    """The alpha for `interpolation(a, b)`: the median of the best alphas over bootstrap resamples of the topics.

    A measure's curve over alpha is flat at its top, and which single grid point is the best is a matter of luck; the median
    over resamples lies in the middle of those that could have been.

    Args:
        a: weighted by alpha.
        b: weighted by 1 - alpha.
        qrels: judgements of dev topics.
        alphas: the grid; the result is one of its values, of equally good ones the smallest.
        measure: what to maximise.
        seed: of the resampling.
    """
    grid = sorted(set(alphas))
    runs = (fuse.interpolation(a, b, alpha=alpha) for alpha in grid)
    return grid[_median_best(np.array([_values(run, qrels, measure) for run in runs]), seed)]


def _median_best(values: Values, seed: int) -> int:
    """Median, over resamples of the topics, of the best row of values (settings, topics)."""
    n_topics = values.shape[1]
    counts = np.random.default_rng(seed).multinomial(n_topics, np.full(n_topics, 1 / n_topics), RESAMPLES)
    best = np.sort((values @ counts.T).argmax(axis=0))
    return int(best[(RESAMPLES - 1) // 2])


def _values(run: Run, qrels: Qrels, measure: str) -> Values:
    """(topics,); by our own kernels, which give what trectools does: many settings are tried."""
    return np.fromiter(evaluate(run, qrels, [measure], "fast")[measure].values(), float)


def tune(
    runs: Sequence[Run],
    qrels: Qrels,
    method: str = "interpolation",
    *,
    measure: str = "nDCG@10",
    grid: Sequence[float] | None = None,
    norm: str = "minmax",
    folds: int = 5,
    seed: int = 42,
) -> Tuned:
    """Choose alpha (`interpolation`), the constant (`rrf`) or weights (`wsum`, one coordinate at a time) for a fusion.

    Args:
        runs: two or more (two for interpolation), of the topics of `qrels`.
        qrels: judgements of dev topics.
        method: one of METHODS.
        measure: what to maximise.
        grid: values tried; None: GRIDS. For alpha and the constant the median over resamples decides, as in `best_alpha`.
        norm: of the scores, for wsum.
        folds: parts of the topics for cross-validation; a seeded shuffle decides which topic is where.
        seed: of the folds and the resampling.
    """
    if method not in METHODS:
        raise InputError(f"only {', '.join(METHODS)} have something to tune, not {method!r}")
    if method == "interpolation" and len(runs) != 2:
        raise InputError(f"interpolation takes exactly two runs, found {len(runs)}")
    if not 2 <= folds <= len(qrels):
        raise InputError(f"folds must lie between 2 and the number of topics ({len(qrels)}), not {folds}")
    values = tuple(sorted(set(GRIDS[method] if grid is None else grid)))
    known: dict[Setting, Values] = {}

    def worth(setting: Setting) -> Values:
        if setting not in known:
            known[setting] = _values(_fused(runs, method, setting, norm), qrels, measure)
        return known[setting]

    def choose(topics: npt.NDArray[np.int64]) -> Setting:
        if method == "wsum":
            return _coordinate_search(len(runs), values, lambda setting: float(worth(setting)[topics].mean()))
        rows = np.array([worth((value,))[topics] for value in values])
        return (values[_median_best(rows, seed)],)

    fold_of = np.random.default_rng(seed).permutation(len(qrels)) % folds
    per_fold = [choose(np.flatnonzero(fold_of != fold)) for fold in range(folds)]
    unseen = np.array([worth(per_fold[fold])[topic] for topic, fold in enumerate(fold_of.tolist())])
    setting = choose(np.arange(len(qrels)))
    default: Setting = {"interpolation": (0.5,), "rrf": (60.0,)}.get(method, (1.0,) * len(runs))
    return Tuned(setting, per_fold, worth(setting), unseen, worth(default))


def _fused(runs: Sequence[Run], method: str, setting: Setting, norm: str) -> Run:
    if method == "interpolation":
        return fuse.interpolation(runs[0], runs[1], alpha=setting[0])
    if method == "rrf":
        return fuse.rrf(runs, rrf_k=int(setting[0]), engine="fast")
    return fuse.combine(runs, "wsum", norm=norm, weights=setting)


def _coordinate_search(n_runs: int, grid: Sequence[float], worth: Callable[[Setting], float]) -> Setting:
    """Weights from all ones, the best value of one at a time until none changes; of equal ones the one that stood."""
    setting: Setting = (1.0,) * n_runs
    for _ in range(ROUNDS):
        before = setting
        for place in range(n_runs):
            tried = [setting] + [(*setting[:place], value, *setting[place + 1 :]) for value in grid]
            setting = max((s for s in tried if any(s)), key=worth)
        if setting == before:
            break
    return setting


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
@click.option("--norm", type=click.Choice(list(fuse.NORMS)), default="minmax", help="Of the scores, for wsum.")
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
    rows: dict[str, Values] = {path: _values(run, judged, measure) for path, run in zip(runs, inputs, strict=True)}
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
