"""Fusion methods: normalisations, and combinations of a topic's scores."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyserini_kd.data.runs import Hits

Parts = npt.NDArray[np.float64]
Combine = Callable[[Parts], Parts]
"""Parts (runs, documents) of one topic, NaN where a run lacks a document -> scores (documents,)."""


def ranks_of(hits: Hits) -> Parts:
    """1-based ranks of the hits."""
    return np.arange(1.0, len(hits.doc_ids) + 1)


def scores_of(hits: Hits) -> Parts:
    """Scores of the hits."""
    return hits.scores.astype(np.float64)


def pyserini_min_max(hits: Hits) -> Parts:
    """Scores in [0, 1]; all-equal scores become 1, as in Pyserini."""
    scores = scores_of(hits)
    if len(scores) == 0 or scores[0] == scores[-1]:  # best first
        return np.ones_like(scores)
    return np.asarray((scores - scores[-1]) / (scores[0] - scores[-1]))


def min_max(scores: Parts) -> Parts:
    """Scale scores to [0, 1]; all-equal scores become 0.

    >>> min_max(np.array([5.0, 4.0, 1.0])).tolist()
    [1.0, 0.75, 0.0]
    """
    span = scores.max() - scores.min()
    return (scores - scores.min()) / span if span else np.zeros_like(scores)


def sum_to_one(scores: Parts) -> Parts:
    """Shift scores to a minimum of 0 and divide by their sum; all-equal scores become 0.

    >>> sum_to_one(np.array([5.0, 4.0, 1.0])).round(4).tolist()
    [0.5714, 0.4286, 0.0]
    """
    shifted = scores - scores.min()
    total = shifted.sum()
    return shifted / total if total else np.zeros_like(scores)


def z_score(scores: Parts) -> Parts:
    """Subtract the mean and divide by the population standard deviation; all-equal scores become 0.

    A missing document then counts as an average hit of that run, above its lower half.

    >>> z_score(np.array([3.0, 1.0])).tolist()
    [1.0, -1.0]
    """
    if not np.ptp(scores):  # not std(): rounding may keep it above 0
        return np.zeros_like(scores)
    return np.asarray((scores - scores.mean()) / scores.std())


def rank_score(scores: Parts) -> Parts:
    """1 - (rank - 1) / n, from 1 down to 1/n.

    >>> rank_score(np.array([9.0, 8.0, 0.5, 0.1])).tolist()
    [1.0, 0.75, 0.5, 0.25]
    """
    return np.asarray(1 - np.arange(len(scores)) / len(scores))


NORMS: dict[str, Callable[[Parts], Parts]] = {
    "none": lambda scores: scores,
    "minmax": min_max,
    "sum": sum_to_one,
    "zscore": z_score,
    "rank": rank_score,
}
"""Normalisations that make the scores of rankings (best first) comparable."""


def add(parts: Parts) -> Parts:
    """Sum of a document's parts; three or more are sorted first, as floating-point sums depend on the order."""
    filled = np.where(np.isnan(parts), 0.0, parts)
    if len(filled) > 2:
        filled.sort(axis=0)
    total: Parts = filled[0]
    for row in filled[1:]:
        total += row
    return total


def count(parts: Parts) -> Parts:
    """The number of runs with each document."""
    return np.asarray((~np.isnan(parts)).sum(axis=0), np.float64)


def borda(parts: Parts) -> Parts:
    """Borda count (Aslam and Montague 2001); `parts` are 1-based ranks.

    Of n documents, the first gets n points and the next n - 1. Documents that a run lacks share its remaining points.
    """
    n = parts.shape[1]
    listed = (~np.isnan(parts)).sum(axis=1, keepdims=True)
    return add(np.where(np.isnan(parts), (n - listed + 1) / 2, n + 1 - parts))


def condorcet(parts: Parts) -> Parts:
    """Condorcet's pairwise majorities by Copeland's count: documents beaten, plus half of the ties.

    `parts` are 1-based ranks; a run prefers listed to missing documents. Montague and Aslam (2002) sort by the majority
    relation, which may have cycles; without cycles the order is the same.
    """
    ranks = np.where(np.isnan(parts), np.inf, parts)
    votes = np.zeros((ranks.shape[1], ranks.shape[1]), dtype=np.int32)
    for run in ranks:
        votes += (run[:, None] < run[None, :]).astype(np.int32) - (run[:, None] > run[None, :])
    return np.asarray((votes > 0).sum(axis=1) + (votes == 0).sum(axis=1) / 2 - 0.5)


class Method(NamedTuple):
    """A fusion method: the part of each hit, and the combination of parts into a score."""

    what: str
    combine: Combine
    by_rank: Callable[[Parts, float], Parts] | None = None  # (ranks, rbp_p) -> parts; None: normalised scores


METHODS = {
    "isr": Method(
        "number of runs x sum of 1 / rank^2 (Mourao et al. 2014)",
        lambda parts: add(parts) * count(parts),
        lambda ranks, p: 1 / ranks**2,
    ),
    "combsum": Method("sum of scores (Fox and Shaw 1994)", add),
    "combmnz": Method("sum of scores x number of runs", lambda parts: add(parts) * count(parts)),
    "combanz": Method("mean of the scores a document has", lambda parts: add(parts) / count(parts)),
    "combmax": Method("best score", lambda parts: np.nanmax(parts, axis=0)),
    "combmin": Method("worst of the scores a document has", lambda parts: np.nanmin(parts, axis=0)),
    "combmed": Method("median of the scores a document has", lambda parts: np.nanmedian(parts, axis=0)),
    "wsum": Method("weighted sum of scores (--weights)", add),
    "rbp": Method("sum of (1 - p) p^(rank - 1) (Bailey et al. 2017)", add, lambda ranks, p: (1 - p) * p ** (ranks - 1)),
    "borda": Method("Borda count (Aslam and Montague 2001)", borda, lambda ranks, p: ranks),
    "condorcet": Method("pairwise majorities, as Copeland counts them", condorcet, lambda ranks, p: ranks),
}
SUMS = ("combsum", "combmnz", "wsum")
OWN_METHODS = ("rrf", "interpolation", "average", "normalize")
"""Other methods: rrf, and those computed as in pyserini.fusion."""
