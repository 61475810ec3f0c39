"""Weights of a fusion, chosen on dev topics, and what the choice is worth on topics it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Qrels
from pyserini_kd.evaluation.engines import evaluate
from pyserini_kd.retrieval import fusion
from pyserini_kd.storage.errors import InputError

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
    runs = (fusion.interpolation(a, b, alpha=alpha) for alpha in grid)
    return grid[_median_best(np.array([values_of(run, qrels, measure) for run in runs]), seed)]


def _median_best(values: Values, seed: int) -> int:
    """Median, over resamples of the topics, of the best row of values (settings, topics)."""
    n_topics = values.shape[1]
    counts = np.random.default_rng(seed).multinomial(n_topics, np.full(n_topics, 1 / n_topics), RESAMPLES)
    best = np.sort((values @ counts.T).argmax(axis=0))
    return int(best[(RESAMPLES - 1) // 2])


def values_of(run: Run, qrels: Qrels, measure: str) -> Values:
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
