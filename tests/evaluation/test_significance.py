"""Tests equal scipy's, corrections equal hand-worked values, intervals equal scipy's bootstrap; edges; seeds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pyserini_kd.evaluation import significance
from pyserini_kd.evaluation.significance import (
    bonferroni,
    bootstrap,
    compare,
    effect_size,
    holm,
    randomisation,
    t_test,
    wilcoxon,
)


def differences(seed=0, n_queries=60, n_comparisons=4):
    """Per-query differences like those of RR@10: many zeros, the rest a few fractions; each column shifted a little more."""
    rng = np.random.default_rng(seed)
    ranks = 1 / rng.integers(1, 11, (2, n_queries, n_comparisons))
    found = ranks[0] - ranks[1] + 0.03 * np.arange(n_comparisons)
    found[rng.random(found.shape) < 0.3] = 0
    return np.round(found, 12)


def as_results(values):
    """Per-query values whose differences to a baseline of zeros are the given ones: (Q, C) -> C runs, one measure."""
    queries = [f"q{n}" for n in range(len(values))]
    runs = {f"run{c}": {"RR": dict(zip(queries, values[:, c].tolist(), strict=True))} for c in range(values.shape[1])}
    return {"base": {"RR": dict.fromkeys(queries, 0.0)}, **runs}


# ------------------------------------------------------------------------------------------------- against scipy


@pytest.mark.parametrize("seed", range(3))
def test_t_test_is_scipys_ttest_rel(seed):
    values = differences(seed)
    expected = [stats.ttest_rel(column, np.zeros(len(column))).pvalue for column in values.T]
    assert t_test(values) == pytest.approx(expected, abs=1e-12)


def test_t_test_by_hand():
    values = np.array([0.2, 0.4, 0.4, -0.1])
    t = values.mean() / (values.std(ddof=1) / math.sqrt(4))
    # Student's t with 3 degrees of freedom: F(t) = 1/2 + (x / (1 + x^2) + atan(x)) / pi, x = t / sqrt(3)
    x = t / math.sqrt(3)
    assert t_test(values[:, None])[0] == pytest.approx(2 * (1 / 2 - (x / (1 + x * x) + math.atan(x)) / math.pi))


@pytest.mark.parametrize("seed", range(3))
def test_wilcoxon_is_scipys(seed):
    values = differences(seed)
    expected = [stats.wilcoxon(column, np.zeros(len(column)), zero_method="wilcox").pvalue for column in values.T]
    assert wilcoxon(values) == pytest.approx(expected, abs=1e-12)


def test_wilcoxon_by_hand():
    # ranks 1, 2, 3, all positive: of 2^3 sign patterns the two extreme ones are as far out
    assert wilcoxon(np.array([[0.1], [0.2], [0.3]])) == pytest.approx([2 / 8])


def statistic(one, other, axis):
    return np.mean(one - other, axis=axis)


@pytest.mark.parametrize("seed", range(3))
def test_randomisation_tries_all_patterns_of_few_queries_as_scipy_does(seed):
    values = differences(seed, n_queries=10)
    expected = [
        stats.permutation_test(
            (column, np.zeros(10)), statistic, permutation_type="samples", n_resamples=math.inf, vectorized=True
        ).pvalue
        for column in values.T
    ]
    assert randomisation(values) == pytest.approx(expected, abs=1e-12)


def test_randomisation_of_many_queries_is_near_scipys_and_the_t_tests():
    values = differences(1, n_queries=200)
    expected = [
        stats.permutation_test(
            (column, np.zeros(200)), statistic, permutation_type="samples", n_resamples=9999, vectorized=True, rng=1
        ).pvalue
        for column in values.T
    ]
    found = randomisation(values, samples=9999)
    assert found == pytest.approx(expected, abs=0.025)  # five standard errors of two estimates near 0.5
    assert found == pytest.approx(t_test(values), abs=0.025)
    assert found.min() >= 1 / 10_000


def test_randomisation_by_hand():
    # +1 and +2 and +4: the sums of the 8 patterns are +-7, +-5, +-3, +-1; only +-7 reach 7, four reach 5
    assert randomisation(np.array([[1.0, -1.0], [2.0, 2.0], [4.0, 4.0]])).tolist() == [2 / 8, 4 / 8]


def test_randomisation_never_claims_a_p_of_zero():
    alike = np.linspace(0.1, 0.2, 40)[:, None]  # one of 2^39 patterns reaches the sum: no random one will
    assert randomisation(alike, samples=99).tolist() == [1 / 100]


def test_bootstrap_is_scipys_percentile_interval():
    values = differences(2, n_queries=100)
    low, high = bootstrap(values)
    for column in range(values.shape[1]):
        expected = stats.bootstrap((values[:, column],), np.mean, method="percentile", n_resamples=10_000, rng=3)
        assert low[column] == pytest.approx(expected.confidence_interval.low, abs=0.006)
        assert high[column] == pytest.approx(expected.confidence_interval.high, abs=0.006)


def test_bootstrap_covers_the_truth_95_times_in_100():
    rng = np.random.default_rng(5)
    low, high = bootstrap(rng.normal(0.1, 0.3, (100, 400)), samples=1000)
    assert 0.91 <= np.mean((low <= 0.1) & (high >= 0.1)) <= 0.98


# --------------------------------------------------------------------------------------------------- corrections


def test_holm_by_hand():
    # sorted: .005 x 5 = .025, .01 x 4 = .04, .02 x 3 = .06, .03 x 2 = .06, .5 x 1 = .5
    assert holm(np.array([0.03, 0.005, 0.5, 0.02, 0.01])) == pytest.approx([0.06, 0.025, 0.5, 0.06, 0.04])
    # .01 x 4 = .04; then .013 x 3 = .039 is raised to .04
    assert holm(np.array([0.01, 0.013, 0.6, 0.7])) == pytest.approx([0.04, 0.04, 1, 1])


def test_what_was_not_tested_is_not_counted():
    p_values = np.array([0.01, math.nan, 0.04])
    assert holm(p_values) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)
    assert bonferroni(p_values) == pytest.approx([0.02, math.nan, 0.08], nan_ok=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.randoms())
def test_holm_lies_between_the_p_values_and_bonferroni_in_any_order(p_values, random):
    p_values = np.array(p_values)
    found = holm(p_values)
    assert (p_values <= found).all() and (found <= bonferroni(p_values)).all()
    order = list(range(len(p_values)))
    random.shuffle(order)
    assert holm(p_values[order]) == pytest.approx(found[order])
    assert found.min() == bonferroni(p_values).min()


# ------------------------------------------------------------------------------------------------------- compare


def test_compare_gathers_it_all():
    values = differences()
    found = compare(as_results(values), "base", "wilcoxon", "bonferroni")
    assert list(found) == ["run0", "run1", "run2", "run3"]
    low, high = bootstrap(values)
    for column in range(4):
        one = found[f"run{column}"]["RR"]
        ours = values[:, column]
        assert one.difference == pytest.approx(ours.mean())
        assert one.effect_size == pytest.approx(ours.mean() / ours.std(ddof=1))
        assert (one.wins, one.ties, one.losses) == ((ours > 0).sum(), (ours == 0).sum(), (ours < 0).sum())
        assert (one.zeros, one.baseline_zeros) == ((ours == 0).sum(), 60)
        assert one.p_value == pytest.approx(stats.wilcoxon(ours).pvalue)
        assert one.corrected == pytest.approx(min(4 * one.p_value, 1))
        assert (one.low, one.high) == (low[column], high[column]) and one.low < one.difference < one.high


def test_the_family_is_runs_times_measures():
    values = as_results(differences(n_comparisons=2))
    twice = {run: {**measures, "AP": measures["RR"]} for run, measures in values.items()}
    once, both = (compare(results, "base", correction="bonferroni") for results in (values, twice))
    assert once["run1"]["RR"].corrected == pytest.approx(2 * once["run1"]["RR"].p_value)
    assert both["run1"]["RR"].corrected == pytest.approx(4 * once["run1"]["RR"].p_value)
    none = compare(twice, "base", correction="none")["run1"]["RR"]
    assert none.corrected == none.p_value == once["run1"]["RR"].p_value


def test_queries_are_paired_by_id_whatever_their_order():
    base = {"q1": 0.5, "q2": 0.0, "q3": 1.0}
    results = {"a": {"AP": base}, "b": {"AP": dict(reversed(base.items()))}}
    found = compare(results, "a")["b"]["AP"]
    assert (found.difference, found.p_value, found.ties) == (0, 1, 3)


@pytest.mark.parametrize("test", significance.TESTS)
def test_edges(test):
    same = as_results(np.zeros((5, 1)))
    assert compare(same, "base", test)["run0"]["RR"] == (0, 0, 0, 1, 1, 0, 0, 5, 0, 5, 5)
    noise = as_results(np.full((5, 1), 1e-15))  # rounding is no difference
    assert compare(noise, "base", test)["run0"]["RR"] == (0, 0, 0, 1, 1, 0, 0, 5, 0, 0, 5)
    alike = compare(as_results(np.full((5, 1), -0.25)), "base", test)["run0"]["RR"]
    assert (alike.difference, alike.low, alike.high, alike.effect_size, alike.losses) == (-0.25, -0.25, -0.25, -math.inf, 5)
    assert alike.p_value == pytest.approx(0 if test == "t" else 2 / 2**5, abs=0.03 if test == "wilcoxon" else 1e-12)
    single = compare(as_results(np.array([[0.5]])), "base", test)["run0"]["RR"]
    assert single.difference == 0.5 and math.isnan(single.p_value) and math.isnan(single.corrected)
    assert math.isnan(single.effect_size) and single.wins == 1
    assert compare({"base": same["base"]}, "base", test) == {}


@pytest.mark.parametrize("test", significance.TESTS)
def test_the_sign_of_a_difference_does_not_change_its_p_value(test):
    values = differences(3)
    ours, theirs = (compare(as_results(v), "base", test)["run2"]["RR"] for v in (values, -values))
    assert ours.p_value == pytest.approx(theirs.p_value)
    assert (ours.effect_size, ours.wins) == (pytest.approx(-theirs.effect_size), theirs.losses)


def test_seeds():
    results = as_results(differences(4))
    first, again, other = (compare(results, "base", "randomisation", samples=500, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["run0"]["RR"] != other["run0"]["RR"]


def test_effect_size_by_hand():
    # mean 0.3, deviations -0.2, 0, 0.2: variance 0.08 / 2
    assert effect_size(np.array([0.1, 0.3, 0.5])) == pytest.approx(0.3 / 0.2)
