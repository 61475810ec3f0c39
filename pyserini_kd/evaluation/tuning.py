"""Choose fusion weights on dev topics, and measure their gain on topics not used for the choice."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from pyserini_kd.data import sources
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Qrels
from pyserini_kd.evaluation import significance
from pyserini_kd.evaluation.engines import evaluate
from pyserini_kd.evaluation.measures import Measure
from pyserini_kd.evaluation.tables import table
from pyserini_kd.retrieval import fusion
from pyserini_kd.storage.environment import command_line, environment, sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import refuse_existing
from pyserini_kd.storage.records import write_json
from pyserini_kd.storage.settings import Settings, option

RESAMPLES = 1000
Values = significance.Array
Setting = tuple[float, ...]
"""The tuned values: (alpha,), (rrf_k,), or one weight per run."""

Method = Literal["interpolation", "rrf", "wsum"]
TUNED = {"interpolation": "alpha", "rrf": "rrf.k", "wsum": "weights"}
GRIDS: dict[str, tuple[float, ...]] = {
    "interpolation": (0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2)
    + (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
    "rrf": (1, 2, 5, 10, 20, 40, 60, 80, 100, 200),
    "wsum": (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
}
ROUNDS = 3  # maximum rounds of the coordinate search


class Tuned(NamedTuple):
    """The setting chosen on all topics, and values of the measure by topic (topics,)."""

    setting: Setting
    per_fold: list[Setting]  # settings chosen without each fold
    seen: Values  # with the chosen setting
    unseen: Values  # each topic with the setting chosen without its fold
    default: Values  # with the method's default


def best_alpha(a: Run, b: Run, qrels: Qrels, alphas: Sequence[float], measure: str = "RR@10", seed: int = 42) -> float:
    """The alpha for `interpolation(a, b)`: the median of the best alphas over bootstrap resamples of the topics.

    One best value would be a matter of luck, because many alphas are almost equally good. Ties go to the smallest alpha.
    """
    grid = sorted(set(alphas))
    runs = (fusion.interpolation(a, b, alpha=alpha) for alpha in grid)
    return grid[_median_best(np.array([values_of(run, qrels, measure) for run in runs]), seed)]


def _median_best(values: Values, seed: int) -> int:
    """The median, over resamples of the topics, of the best row of values (settings, topics)."""
    n_topics = values.shape[1]
    counts = np.random.default_rng(seed).multinomial(n_topics, np.full(n_topics, 1 / n_topics), RESAMPLES)
    best = np.sort((values @ counts.T).argmax(axis=0))
    return int(best[(RESAMPLES - 1) // 2])


def values_of(run: Run, qrels: Qrels, measure: str) -> Values:
    """The measure by topic (topics,), from our own kernels, which are fast enough to try many settings."""
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
        runs: two or more runs on the topics of `qrels`; exactly two for interpolation.
        qrels: judgements of dev topics.
        method: one of GRIDS.
        measure: what to maximise.
        grid: values to try; None: GRIDS. alpha and the constant are chosen by the median over resamples, as in `best_alpha`.
        norm: score normalisation, for wsum.
        folds: number of random folds of the topics for cross-validation.
        seed: seed of the folds and of the resampling.

    Raises:
        InputError: the method, the number of runs or the number of folds is wrong.
    """
    if method not in GRIDS:
        raise InputError(f"must be one of {', '.join(GRIDS)}, not {method!r}", "method")
    if method == "interpolation" and len(runs) != 2:
        raise InputError(f"interpolation takes exactly two runs, found {len(runs)}")
    if not 2 <= folds <= len(qrels):
        raise InputError(f"folds must lie between 2 and the number of topics ({len(qrels)}), not {folds}")
    values = tuple(sorted(set(GRIDS[method] if grid is None else grid)))
    known: dict[Setting, Values] = {}

    def worth(setting: Setting) -> Values:
        if setting not in known:
            known[setting] = values_of(_fused(runs, method, setting, norm), qrels, measure)
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
        return fusion.interpolation(runs[0], runs[1], alpha=setting[0])
    if method == "rrf":
        return fusion.rrf(runs, rrf_k=int(setting[0]), engine="fast")
    return fusion.combine(runs, "wsum", norm=norm, weights=setting)


def _coordinate_search(n_runs: int, grid: Sequence[float], worth: Callable[[Setting], float]) -> Setting:
    """Start with weights of 1 and choose the best value of one weight at a time, until nothing changes."""
    setting: Setting = (1.0,) * n_runs
    for _ in range(ROUNDS):
        before = setting
        for place in range(n_runs):
            tried = [setting] + [(*setting[:place], value, *setting[place + 1 :]) for value in grid]
            setting = max((s for s in tried if any(s)), key=worth)
        if setting == before:
            break
    return setting


class TuneConfig(Settings):
    """The options of `tune`."""

    runs: tuple[str, ...] = option("--runs", help="Two or more runs of dev topics.", metavar="RUN...", words=True)
    qrels: str = option("--qrels", help="Their judgements: a file, ir_datasets:<id>, or pydocs:dev.")
    method: Method = option("--method", "interpolation", "Tunes alpha, rrf.k, or weights.")
    measure: str = option("--measure", "nDCG@10", "What to maximise.")
    grid: tuple[float, ...] = option(
        "--grid", (), "Values to try [default: a grid for each method].", metavar="X...", words=True
    )
    norm: Literal["none", "minmax", "sum", "zscore", "rank"] = option("--norm", "minmax", "Score normalisation for wsum.")
    folds: int = option("--folds", 5, "Number of folds for cross-validation.", ge=2)
    seed: int = option("--seed", 42, "Seed of folds and resampling.", ge=0)
    output: Path | None = option("--output", None, "Write the result as JSON.")
    overwrite: bool = option("--overwrite", False, "Replace --output if it exists.")

    @model_validator(mode="after")
    def rules(self) -> Self:
        """Check that the output can be written, and that runs, measure and grid fit the method."""
        if self.output:
            refuse_existing(self.output, self.overwrite)
        if len(self.runs) < 2 or len({Path(path).resolve() for path in self.runs}) != len(self.runs):
            raise InputError(f"takes two or more different runs, found {' '.join(self.runs)}", "runs")
        self.only("norm", self.method == "wsum", f"is for the method wsum, not for {self.method}")
        Measure.parse(self.measure)
        what = {"interpolation": "between 0 and 1", "rrf": "whole numbers from 0", "wsum": "0 or more"}[self.method]
        top = 1 if self.method == "interpolation" else sys.float_info.max
        if not all(0 <= value <= top and (self.method != "rrf" or value.is_integer()) for value in self.grid):
            raise InputError(f"values for {self.method} must be {what}, found {' '.join(map(str, self.grid))}", "grid")
        return self


def tune_files(config: TuneConfig) -> str:
    """Tune a fusion of run files with `tune`; returns tables and gains as text, and writes `config.output` (JSON)."""
    paths, method, measure, norm, seed = config.runs, config.method, config.measure, config.norm, config.seed
    judged = sources.qrels(config.qrels)
    runs = [Run.read(path) for path in paths]
    if not any(query_id in judged for query_id in set.intersection(*(set(run) for run in runs))):
        raise InputError("the runs and the qrels have no topic in common")
    found = tune(runs, judged, method, measure=measure, grid=config.grid or None, norm=norm, folds=config.folds, seed=seed)
    rows: dict[str, Values] = {path: values_of(run, judged, measure) for path, run in zip(paths, runs, strict=True)}
    best = max(rows, key=lambda path: float(rows[path].mean()))
    rows |= {"fused, default": found.default, "fused, tuned (seen)": found.seen, "fused, tuned (unseen folds)": found.unseen}
    means = {name: float(values.mean()) for name, values in rows.items()}
    gains = {name: _gain(found.unseen, rows[name], seed) for name in (best, "fused, default")}
    if config.output:
        tuned = {"method": method, TUNED[method]: list(found.setting), "per_fold": found.per_fold, "measure": measure}
        tuned |= {"norm": norm} if method == "wsum" else {}
        made = {"means": means, "runs": list(paths), "qrels": config.qrels}
        asked = {"gains_on_unseen_folds": {other: gain._asdict() for other, gain in gains.items()}}
        sums = {"sha256": {path: sha256(path) for path in (*paths, config.qrels) if Path(path).is_file()}, "seed": seed}
        write_json(config.output, {**tuned, **made, **asked, **sums, "command": command_line(), **environment()})
    under = f", with norm {norm}" if method == "wsum" else ""
    chosen, *per_fold = (" ".join(f"{value:g}" for value in setting) for setting in (found.setting, *found.per_fold))
    lines = [table(["system", measure], means.items()), ""]
    lines.append(f"{TUNED[method]}: {chosen}{under} (without each fold: {', '.join(per_fold)})")
    for other, gain in gains.items():
        interval = f"95% interval [{gain.low:+.4f}, {gain.high:+.4f}], p = {gain.p_value:.2g}"
        lines.append(f"gain on unseen folds over {other}: {gain.difference:+.4f}, {interval}")
    return "\n".join(lines)


def _gain(ours: Values, theirs: Values, seed: int) -> significance.Comparison:
    """Paired comparison of two systems by their values per topic."""
    named = {name: {"": {str(i): v for i, v in enumerate(values.tolist())}} for name, values in (("a", ours), ("b", theirs))}
    return significance.compare(named, "b", seed=seed)["a"][""]
