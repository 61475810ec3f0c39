"""Tests of significance against arguments that make no sense."""

import pytest

from pyserini_kd.evaluation.significance import compare
from pyserini_kd.storage.errors import InputError
from tests.evaluation.test_significance import as_results, differences


def test_bad_input():
    results = as_results(differences())
    with pytest.raises(InputError, match="test must be one of t, wilcoxon, randomisation, not 'z'"):
        compare(results, "base", "z")
    with pytest.raises(InputError, match="correction must be one of holm, bonferroni, none, not 'sidak'"):
        compare(results, "base", correction="sidak")
    with pytest.raises(ValueError, match="b and the baseline must hold RR of the same queries"):
        compare({"a": {"RR": {"q1": 1.0}}, "b": {"RR": {"q2": 1.0}}}, "a")
