"""Do runs differ from a baseline by more than chance? Paired tests, corrections, effect sizes, intervals.

Everything is computed from per-query differences, queries (Q) by comparisons (C) at once. A query that a run lacks counts 0,
so it takes part as a loss (or a win). Differences below 1e-12 are rounding, and count as ties. Every random number comes
from a seed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyserini_kd.storage.errors import InputError

Array = npt.NDArray[np.float64]

SAMPLES = 10_000
SEED = 42
CONFIDENCE = 0.95
_CHUNK = 256  # resamples held in memory at once


class Comparison(NamedTuple):
    """One run against the baseline by one measure."""

    difference: float
    """mean of the run minus mean of the baseline"""
    low: float
    high: float
    """95% bootstrap interval of the difference"""
    p_value: float
    """two-sided; 1 where the two agree on every query, NaN where there is but one query"""
    corrected: float
    """the p-value after the correction for all comparisons made"""
    effect_size: float
    """Cohen's d of the paired differences: their mean by their standard deviation"""
    wins: int
    ties: int
    losses: int
    zeros: int
    """queries on which the run gets nothing"""
    baseline_zeros: int
    """queries on which the baseline gets nothing"""


def compare(
    results: Mapping[str, Mapping[str, Mapping[str, float]]],
    baseline: str,
    test: str = "t",
    correction: str = "holm",
    samples: int = SAMPLES,
    seed: int = SEED,
) -> dict[str, dict[str, Comparison]]:
    """Compare every other run to the baseline: run -> measure -> Comparison.

    The family that the correction covers is all of them: runs x measures.

    >>> values = {"old": {"RR": {"q1": 0.5, "q2": 0.5, "q3": 0.5}}, "new": {"RR": {"q1": 0.5, "q2": 0.75, "q3": 1.0}}}
    >>> found = compare(values, "old")["new"]["RR"]
    >>> round(found.difference, 4), round(found.p_value, 4), (found.wins, found.ties, found.losses)
    (0.25, 0.2254, (2, 1, 0))

    Args:
        results: run -> measure -> query_id -> value; the same measures and queries for all.
        baseline: the run of `results` that the others are compared to.
        test: `t` (paired t-test), `wilcoxon` (signed ranks; ties dropped) or `randomisation` (signs of differences flipped).
        correction: `holm`, `bonferroni` or `none`.
        samples: how often differences are resampled: randomisation, and the bootstrap.
        seed: of the resampling.

    Raises:
        InputError: an unknown test or correction.
        ValueError: the runs were not measured on the same queries.
    """
    for what, name, known in (("test", test, TESTS), ("correction", correction, CORRECTIONS)):
        if name not in known:
            raise InputError(f"{what} must be one of {', '.join(known)}, not {name!r}")
    pairs = [(run, measure) for run, measures in results.items() if run != baseline for measure in measures]
    if not pairs:
        return {}
    differences = np.column_stack([_differences(results[run][m], results[baseline][m], run, m) for run, m in pairs])
    p_values = TESTS[test](differences, samples, seed)
    p_values[(differences == 0).all(axis=0)] = 1.0
    if len(differences) == 1:
        p_values[:] = np.nan
    corrected = CORRECTIONS[correction](p_values)
    low, high = bootstrap(differences, samples, seed)
    found: dict[str, dict[str, Comparison]] = {}
    for column, (run, measure) in enumerate(pairs):
        values = differences[:, column]
        wins, losses = int((values > 0).sum()), int((values < 0).sum())
        found.setdefault(run, {})[measure] = Comparison(
            math.fsum(values) / len(values),
            float(low[column]),
            float(high[column]),
            float(p_values[column]),
            float(corrected[column]),
            effect_size(values),
            wins,
            len(values) - wins - losses,
            losses,
            zeros(results[run][measure]),
            zeros(results[baseline][measure]),
        )
    return found


def zeros(per_query: Mapping[str, float]) -> int:
    """On how many queries a run gets nothing.

    >>> zeros({"q1": 0.0, "q2": 0.5, "q3": 0.0})
    2
    """
    return sum(value == 0 for value in per_query.values())


def _differences(ours: Mapping[str, float], theirs: Mapping[str, float], run: str, measure: str) -> Array:
    if ours.keys() != theirs.keys():
        raise ValueError(f"compare: {run} and the baseline must hold {measure} of the same queries, those of one qrels")
    values = np.fromiter(ours.values(), float) - np.fromiter((theirs[query_id] for query_id in ours), float)
    rounded: Array = np.round(values, 12) + 0.0  # + 0.0: no minus zero
    return rounded


def effect_size(differences: Array) -> float:
    """Cohen's d of paired differences (Q,): mean / standard deviation; infinite where all are alike, 0 where all are 0.

    >>> round(effect_size(np.array([0.1, 0.3, 0.2])), 4)
    2.0
    """
    average = math.fsum(differences) / len(differences)
    if len(differences) == 1:
        return math.nan
    if (differences == differences[0]).all():
        return math.copysign(math.inf, average) if average else 0.0
    return average / float(np.std(differences, ddof=1))


def t_test(differences: Array, samples: int = SAMPLES, seed: int = SEED) -> Array:
    """p-values (C,) of two-sided paired t-tests of differences (Q, C)."""
    from scipy.stats import ttest_1samp

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # differences that are all alike: p is 0
        return np.asarray(ttest_1samp(differences, 0.0, axis=0).pvalue, float)


def wilcoxon(differences: Array, samples: int = SAMPLES, seed: int = SEED) -> Array:
    """p-values (C,) of two-sided Wilcoxon signed-rank tests of differences (Q, C); ties are dropped, as Wilcoxon does."""
    from scipy import stats

    p_values = np.ones(differences.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (RuntimeWarning, UserWarning))  # few differences that are not 0
        for column in np.flatnonzero(differences.any(axis=0)):
            p_values[column] = stats.wilcoxon(differences[:, column], zero_method="wilcox").pvalue
    return p_values


def randomisation(differences: Array, samples: int = SAMPLES, seed: int = SEED) -> Array:
    """p-values (C,) of two-sided paired randomisation tests of differences (Q, C).

    Under the null hypothesis each query's difference has either sign (Smucker, Allan and Carterette 2007). All 2^Q
    patterns are tried where they are no more than `samples`; otherwise `samples` random ones, and (b + 1) / (samples + 1).

    >>> randomisation(np.array([[0.1], [0.2], [0.3]])).tolist()  # 2 of 8 patterns reach 0.6
    [0.25]
    """
    n_queries = len(differences)
    observed = np.abs(differences.sum(axis=0)) - 1e-9  # the slack is for rounding
    exact = 2**n_queries <= samples
    patterns = _all_signs(n_queries) if exact else _random_signs(n_queries, samples, np.random.default_rng(seed))
    reached = sum((np.abs(signs @ differences) >= observed).sum(axis=0) for signs in patterns)
    return np.asarray(reached / 2**n_queries if exact else (reached + 1) / (samples + 1), float)


def _all_signs(n_queries: int) -> Iterator[npt.NDArray[np.floating]]:
    for start in range(0, 2**n_queries, _CHUNK):
        codes = np.arange(start, min(start + _CHUNK, 2**n_queries))
        yield 1.0 - 2.0 * (codes[:, None] >> np.arange(n_queries) & 1)


def _random_signs(n_queries: int, samples: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.floating]]:
    for start in range(0, samples, _CHUNK):
        yield 1.0 - 2.0 * rng.integers(0, 2, (min(_CHUNK, samples - start), n_queries), dtype=np.int8)


TESTS: dict[str, Callable[[Array, int, int], Array]] = {"t": t_test, "wilcoxon": wilcoxon, "randomisation": randomisation}
TEST_NAMES = {"t": "paired t-test", "wilcoxon": "Wilcoxon's signed-rank test", "randomisation": "paired randomisation test"}


def bonferroni(p_values: Array) -> Array:
    """p-values (C,) times their number; a NaN is no comparison.

    >>> bonferroni(np.array([0.01, 0.04, 0.5])).round(4).tolist()
    [0.03, 0.12, 1.0]
    """
    corrected: Array = np.minimum(p_values * np.count_nonzero(~np.isnan(p_values)), 1.0)
    return corrected


def holm(p_values: Array) -> Array:
    """Holm's step-down p-values (C,): as safe as Bonferroni's, never larger (Holm 1979); a NaN is no comparison.

    >>> holm(np.array([0.01, 0.04, 0.03])).round(4).tolist()  # 3 x 0.01, then 2 x 0.03, then no less than that
    [0.03, 0.06, 0.06]
    """
    corrected = np.full(len(p_values), np.nan)
    order = np.argsort(p_values, kind="stable")[: np.count_nonzero(~np.isnan(p_values))]  # NaNs sort last
    stepped = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return corrected


CORRECTIONS: dict[str, Callable[[Array], Array]] = {"holm": holm, "bonferroni": bonferroni, "none": np.copy}


def correction_words(correction: str, count: int) -> str:
    """What to say of a correction for readers.

    >>> correction_words("holm", 4), correction_words("none", 4)
    ("Holm's correction for all 4 comparisons", 'not corrected')
    """
    return "not corrected" if correction == "none" else f"{correction.title()}'s correction for all {count} comparisons"


def bootstrap(differences: Array, samples: int = SAMPLES, seed: int = SEED) -> tuple[Array, Array]:
    """95% percentile bootstrap interval of the mean of each column of differences (Q, C): low (C,), high (C,).

    Queries are drawn with replacement (Efron 1979), the same ones for every column.
    """
    n_queries = len(differences)
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, samples, _CHUNK):
        size = min(_CHUNK, samples - start)
        drawn = rng.integers(0, n_queries, (size, n_queries)) + n_queries * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n_queries).reshape(size, n_queries)
        means.append(counts @ differences / n_queries)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0).round(10) + 0.0
    return low, high
