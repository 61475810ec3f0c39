"""Ids of an index: look-up by row and by id equals that of a list."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyserini_kd.data import doc_ids
from pyserini_kd.data.doc_ids import DocIds

WORDS = st.lists(st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=4), max_size=30)


def of(ids):
    return DocIds("".join(f"{one}\n" for one in ids).encode())


@pytest.mark.parametrize("collide", [False, True])
@given(known=WORDS, asked=WORDS, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rows_and_ids_equal_those_of_a_list(known, asked, seed, collide):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doc_ids, "CHUNK", 4)
        if collide:
            patch.setattr(doc_ids, "hash", lambda text: len(text), raising=False)
        ids = of(known)
        assert list(ids) == known and len(ids) == len(known)
        assert [ids[row] for row in range(len(ids))] == known
        assert [ids[a:b] for a in range(5) for b in range(5)] == [known[a:b] for a in range(5) for b in range(5)]
        first = {doc_id: row for row, doc_id in reversed(list(enumerate(known)))}
        assert ids.rows([*known, *asked]).tolist() == [first.get(doc_id, -1) for doc_id in [*known, *asked]]
        assert [doc_id in ids for doc_id in asked] == [doc_id in first for doc_id in asked]
        assert ids.twice() == next((doc_id for row, doc_id in enumerate(known) if doc_id in known[:row]), None)
        rows = np.random.default_rng(seed).integers(0, max(1, len(known)), 20 * bool(known))
        for _ in range(2):  # decoded, then cached
            assert ids.take(rows) == [known[row] for row in rows]
        assert list(DocIds.join([ids, of(asked), of([])])) == [*known, *asked]


def test_a_row_always_gives_the_same_string_object():
    ids = of(["a1", "b2", "c3"])
    first, again = ids.take(np.array([2, 0])), ids.take(np.array([0, 2, 2]))
    assert again[0] is first[1] and again[1] is first[0]
    ids.forget()
    assert ids.take(np.array([0])) == ["a1"] and [one for one in ids._strings if one] == ["a1"]
