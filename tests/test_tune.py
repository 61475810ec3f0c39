"""tune.py: the chosen weight is the one that the topics agree on, not the luck of one grid point."""

import pytest

from pyserini_kd.files import InputError
from pyserini_kd.runs import Run
from pyserini_kd.tune import best_alpha

QRELS = {f"q{n}": {"good": 1} for n in range(20)}


def runs(good_in_a, good_in_b):
    """Two runs of `good` and `bad`; the margin of `good` in each."""
    a = Run.from_scores("a", {q: {"good": 1.0 + good_in_a, "bad": 1.0} for q in QRELS})
    b = Run.from_scores("b", {q: {"good": 1.0 + good_in_b, "bad": 1.0} for q in QRELS})
    return a, b


def test_the_side_that_is_right_wins():
    # alpha * 1 - (1 - alpha) * 2 > 0 from alpha = 2/3 on; .7 is the smallest such alpha of the grid
    assert best_alpha(*runs(1.0, -2.0), QRELS, (0.1, 0.3, 0.5, 0.7, 0.9)) == 0.7


def test_of_equally_good_alphas_the_smallest():
    assert best_alpha(*runs(1.0, 1.0), QRELS, (0.5, 0.2, 0.9)) == 0.2


def test_same_seed_same_alpha():
    a, b = runs(1.0, -1.0)
    assert len({best_alpha(a, b, QRELS, (0.2, 0.4, 0.6), seed=7) for _ in range(2)}) == 1


def test_no_common_topics():
    a, b = runs(1.0, 1.0)
    with pytest.raises(InputError, match="share no query"):
        best_alpha(a, b, {"other": {"good": 1}}, (0.5,))
