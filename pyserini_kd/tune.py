"""Weights of a fusion, chosen on dev topics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyserini_kd.data import Qrels
from pyserini_kd.evaluate import evaluate
from pyserini_kd.fuse import interpolation
from pyserini_kd.runs import Run

RESAMPLES = 1000


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
    runs = (interpolation(a, b, alpha=alpha) for alpha in grid)
    values = np.array([list(evaluate(run, qrels, [measure])[measure].values()) for run in runs])  # (alphas, topics)
    n_topics = values.shape[1]
    counts = np.random.default_rng(seed).multinomial(n_topics, np.full(n_topics, 1 / n_topics), RESAMPLES)
    best = np.sort((values @ counts.T).argmax(axis=0))
    return grid[int(best[(RESAMPLES - 1) // 2])]
