"""Passages: windows cover all words; aggregation equals hand-computed values and brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyserini_kd.data import passages
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc
from pyserini_kd.storage.errors import InputError


def texts(text, windows):
    return [p.text for p in passages.segment([Doc("d", "t", text)], windows)]


def test_windows_by_hand():
    assert texts("a b c", "3:2") == ["a b c"]
    assert texts("a b c d", "3:2") == ["a b c", "c d"]
    assert texts("a b c d e", "3:2") == ["a b c", "c d e"]
    assert texts("a b c d", "2:2") == ["a b", "c d"]
    assert texts("", "3:2") == [""]
    found = list(passages.segment([Doc("x", "Title", "a b c"), Doc("y#z", "", "a")], "2:1"))
    assert found == [Doc("x#0", "Title", "a b"), Doc("x#1", "Title", "b c"), Doc("y#z#0", "", "a")]


@given(st.integers(0, 60), st.integers(1, 12), st.data())
def test_passages_cover_all_words_and_none_is_inside_the_previous(length, size, data):
    stride = data.draw(st.integers(1, size))
    words = [f"w{n}" for n in range(length)]
    cut = [text.split() for text in texts(" ".join(words), f"{size}:{stride}")]
    assert {word for window in cut for word in window} == set(words)
    assert all(window == words[n * stride : n * stride + size] for n, window in enumerate(cut))
    assert all(set(after) - set(before) for before, after in zip(cut, cut[1:], strict=False))


RUN = Run.from_scores("t", {"q": {"a#0": 1.0, "a#10": 4.0, "a#2": 2.5, "b#3": 3.0, "b#1": 2.0, "c#0": 3.0}, "none": {}})


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("maxp", {"a": 4.0, "c": 3.0, "b": 3.0}),
        ("firstp", {"c": 3.0, "b": 2.0, "a": 1.0}),
        ("sump", {"a": 1.0 + 4.0 + 2.5, "b": 3.0 + 2.0, "c": 3.0}),
        ("avgp", {"c": 3.0, "b": (3.0 + 2.0) / 2, "a": (1.0 + 4.0 + 2.5) / 3}),
    ],
)
def test_aggregation_by_hand(how, expected):
    run = passages.aggregate(RUN, how)
    assert run.tag == "t" and list(run) == ["q", "none"] and run["none"].doc_ids == []
    assert run["q"].doc_ids == list(expected)
    assert np.array_equal(run["q"].scores, np.float32(list(expected.values())))
    assert passages.aggregate(RUN, how, k=2)["q"].doc_ids == list(expected)[:2]


ids = st.tuples(st.sampled_from("abcd"), st.integers(0, 12)).map(lambda pair: f"{pair[0]}#{pair[1]}")


@given(st.dictionaries(ids, st.floats(-50, 50, width=32), max_size=30), st.integers(1, 5))
def test_maxp_equals_brute_force(scores, k):
    run = Run.from_scores("t", {"q": scores})
    best = {d: max(s for p, s in scores.items() if p.startswith(d)) for d in {p[0] for p in scores}}
    expected = sorted(best.items(), key=lambda item: (item[1], item[0]), reverse=True)[:k]
    for merged in (passages.aggregate(run, "maxp", k), passages.max_passage(run, k)):
        assert list(zip(merged["q"].doc_ids, merged["q"].scores.tolist(), strict=True)) == expected


def test_max_passage_splits_as_pyserini_does():
    run = Run.from_scores("t", {"q": {"a#1#2": 3.0, "a#0": 4.0, "plain": 1.0, "b.7": 2.0}})
    assert passages.max_passage(run)["q"].doc_ids == ["a", "b.7", "plain"]
    assert passages.max_passage(run, 2, ".")["q"].doc_ids == ["a#0", "a#1#2"]
    with pytest.raises(InputError, match="delimiter"):
        passages.max_passage(run, delimiter="")


def test_passages_get_the_grade_of_their_document():
    cut = list(passages.segment([Doc("a", "", "1 2 3"), Doc("b", "", "1"), Doc("c", "", "1 2")], "1:1"))
    qrels = passages.segment_qrels({"q": {"a": 1, "b": 0, "gone": 2}, "r": {"c": 2}}, cut)
    assert qrels == {"q": {"a#0": 1, "a#1": 1, "a#2": 1, "b#0": 0}, "r": {"c#0": 2, "c#1": 2}}
