"""Whether runs differ from a baseline by more than chance: paired tests, corrections, effect sizes, intervals.

All functions take per-query differences: Q queries (rows) by C comparisons (columns). A query that a run lacks counts as 0. A
difference below 1e-12 is a rounding error and counts as a tie. All random numbers come from a seed.

The randomisation test and the bootstrap are our own. For 1,000 queries, 4 comparisons and 100,000 samples, the bootstrap of
scipy.stats gives the same values but takes 7 times as long, and its permutation test takes 20 times as long.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from pyserini_kd.storage.errors import InputError

Array = npt.NDArray[np.float64]
Test = Literal["t", "wilcoxon", "randomisation"]
Correction = Literal["holm", "bonferroni", "none"]

SAMPLES = 10_000
SEED = 42
CONFIDENCE = 0.95
_CHUNK = 256  # resamples held in memory at once


class Comparison(NamedTuple):
    """The comparison of one run to the baseline, by one measure."""

    difference: float  # mean of the run minus mean of the baseline
    low: float  # 95% bootstrap interval of the difference
    high: float
    p_value: float  # two-sided; 1 if the two runs are equal on every query, NaN if there is only one query
    corrected: float  # the p-value, corrected for the number of comparisons
    effect_size: float  # Cohen's d of the paired differences
    wins: int
    ties: int
    losses: int
    zeros: int  # number of queries on which the run gets 0
    baseline_zeros: int


class CompareSettings(TypedDict, total=False):
    """The parameters of `compare` that choose the method."""

    test: Test
    correction: Correction
    samples: int
    seed: int


def compare(
    results: Mapping[str, Mapping[str, Mapping[str, float]]],
    baseline: str,
    test: str = "t",
    correction: str = "holm",
    samples: int = SAMPLES,
    seed: int = SEED,
) -> dict[str, dict[str, Comparison]]:
    """Compare every other run to the baseline: run -> measure -> Comparison.

    The correction covers all comparisons: runs x measures.

    >>> values = {"old": {"RR": {"q1": 0.5, "q2": 0.5, "q3": 0.5}}, "new": {"RR": {"q1": 0.5, "q2": 0.75, "q3": 1.0}}}
    >>> found = compare(values, "old")["new"]["RR"]
    >>> round(found.difference, 4), round(found.p_value, 4), (found.wins, found.ties, found.losses)
    (0.25, 0.2254, (2, 1, 0))

    Args:
        results: run -> measure -> query_id -> value. All runs have the same measures and queries.
        baseline: the name of the run that the others are compared to.
        test: one of `TESTS`.
        correction: one of `CORRECTIONS`.
        samples: number of resamples of the bootstrap and of the randomisation test.
        seed: seed of the resampling.

    Raises:
        InputError: the test or the correction is unknown.
        ValueError: the runs were not measured on the same queries.
    """
    for what, name, known in (("test", test, TESTS), ("correction", correction, CORRECTIONS)):
        if name not in known:
            raise InputError(f"{what} must be one of {', '.join(known)}, not {name!r}")
    pairs = [(run, measure) for run, measures in results.items() if run != baseline for measure in measures]
    if not pairs:
        return {}
    columns = []
    for run, measure in pairs:
        ours, theirs = results[run][measure], results[baseline][measure]
        if ours.keys() != theirs.keys():
            raise ValueError(f"compare: {run} and the baseline must hold {measure} of the same queries, those of one qrels")
        columns.append([value - theirs[query_id] for query_id, value in ours.items()])
    differences: Array = np.round(np.column_stack(columns), 12) + 0.0  # no minus zero
    p_values = TESTS[test](differences, samples, seed)
    p_values[(differences == 0).all(axis=0)] = 1.0
    if len(differences) == 1:
        p_values[:] = np.nan
    corrected = CORRECTIONS[correction](p_values)
    tests = np.stack([*bootstrap(differences, samples, seed), p_values, corrected])
    found: dict[str, dict[str, Comparison]] = {}
    for (run, measure), values, (low, high, p, p_corrected) in zip(pairs, differences.T, tests.T.tolist(), strict=True):
        average, effect = math.fsum(values) / len(values), effect_size(values)
        wins, ties, losses = (int((np.sign(values) == sign).sum()) for sign in (1, 0, -1))
        counts = (wins, ties, losses, zeros(results[run][measure]), zeros(results[baseline][measure]))
        found.setdefault(run, {})[measure] = Comparison(average, low, high, p, p_corrected, effect, *counts)
    return found


def zeros(per_query: Mapping[str, float]) -> int:
    """The number of queries on which a run gets 0.

    >>> zeros({"q1": 0.0, "q2": 0.5, "q3": 0.0})
    2
    """
    return sum(value == 0 for value in per_query.values())


def effect_size(differences: Array) -> float:
    """Cohen's d of paired differences (Q,): mean / standard deviation. It is infinite if all are equal, and 0 if all are 0.

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
        warnings.simplefilter("ignore", RuntimeWarning)  # if all differences are equal, p is 0
        return np.asarray(ttest_1samp(differences, 0.0, axis=0).pvalue, float)


def wilcoxon(differences: Array, samples: int = SAMPLES, seed: int = SEED) -> Array:
    """p-values (C,) of two-sided Wilcoxon signed-rank tests of differences (Q, C). Ties are left out."""
    from scipy import stats

    p_values = np.ones(differences.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (RuntimeWarning, UserWarning))  # scipy warns if few differences are not 0
        for column in np.flatnonzero(differences.any(axis=0)):
            p_values[column] = stats.wilcoxon(differences[:, column], zero_method="wilcox").pvalue
    return p_values


def randomisation(differences: Array, samples: int = SAMPLES, seed: int = SEED) -> Array:
    """p-values (C,) of two-sided paired randomisation tests of differences (Q, C).

    Under the null hypothesis, both signs of a difference are equally likely (Smucker, Allan and Carterette 2007). If there are
    at most `samples` patterns of signs (2^Q), all are tried, and the test is exact. Otherwise `samples` random patterns are
    tried: p = (b + 1) / (samples + 1), where b patterns reach the observed difference.

    >>> randomisation(np.array([[0.1], [0.2], [0.3]])).tolist()  # 2 of 8 patterns reach 0.6
    [0.25]
    """
    n_queries = len(differences)
    observed = np.abs(differences.sum(axis=0)) - 1e-9  # rounding errors are less than that
    exact = 2**n_queries <= samples
    n_patterns = 2**n_queries if exact else samples
    rng = np.random.default_rng(seed)
    reached = np.zeros(differences.shape[1], int)
    for start in range(0, n_patterns, _CHUNK):
        size = min(_CHUNK, n_patterns - start)
        if exact:
            flips = np.arange(start, start + size)[:, None] >> np.arange(n_queries) & 1
        else:
            flips = rng.integers(0, 2, (size, n_queries), dtype=np.int8)
        reached += (np.abs((1.0 - 2.0 * flips) @ differences) >= observed).sum(axis=0)
    return np.asarray(reached / n_patterns if exact else (reached + 1) / (n_patterns + 1), float)


TESTS: dict[str, Callable[[Array, int, int], Array]] = {"t": t_test, "wilcoxon": wilcoxon, "randomisation": randomisation}
TEST_NAMES = {"t": "paired t-test", "wilcoxon": "Wilcoxon's signed-rank test", "randomisation": "paired randomisation test"}


def bonferroni(p_values: Array) -> Array:
    """p-values (C,) times the number of p-values. NaNs do not count.

    >>> bonferroni(np.array([0.01, 0.04, 0.5])).round(4).tolist()
    [0.03, 0.12, 1.0]
    """
    corrected: Array = np.minimum(p_values * np.count_nonzero(~np.isnan(p_values)), 1.0)
    return corrected


def holm(p_values: Array) -> Array:
    """Holm's step-down p-values (C,) (Holm 1979). They are as safe as Bonferroni's and never larger. NaNs do not count.

    >>> holm(np.array([0.01, 0.04, 0.03])).round(4).tolist()  # 3 x 0.01, then 2 x 0.03, then at least as much
    [0.03, 0.06, 0.06]
    """
    corrected = np.full(len(p_values), np.nan)
    order = np.argsort(p_values, kind="stable")[: np.count_nonzero(~np.isnan(p_values))]  # NaNs sort last
    stepped = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return corrected


CORRECTIONS: dict[str, Callable[[Array], Array]] = {"holm": holm, "bonferroni": bonferroni, "none": np.copy}


def correction_words(correction: str, count: int) -> str:
    """Say in words how p-values are corrected.

    >>> correction_words("holm", 4), correction_words("none", 4)
    ("Holm's correction for all 4 comparisons", 'not corrected')
    """
    return "not corrected" if correction == "none" else f"{correction.title()}'s correction for all {count} comparisons"


def bootstrap(differences: Array, samples: int = SAMPLES, seed: int = SEED) -> tuple[Array, Array]:
    """95% percentile bootstrap interval of the column means of differences (Q, C): low (C,), high (C,).

    Queries are drawn with replacement (Efron 1979). Every column gets the same queries.
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
