"""Candidates: contracts of groups, reasons counted, files round trip, bad lines named."""

import pytest

from pyserini_kd import mine
from pyserini_kd.data import Doc, Query
from pyserini_kd.files import InputError
from pyserini_kd.runs import Run

DOCS = [Doc(f"d{n}", "", f"text number {n}") for n in range(8)] + [Doc("twin", "", "text  number 0")]
QUERIES = [Query("a", "x"), Query("b", "y"), Query("c", "z"), Query("none", "w")]
QRELS = {"a": {"d0": 1, "d1": 0}, "b": {"d2": 2}, "c": {"d3": 1, "gone": 1}, "none": {"gone": 1}}
RUN = Run.from_scores("r", {"a": {"twin": 9.0, "d1": 8.0, "d4": 7.0, "d0": 6.0, "d5": 5.0}, "b": {"d6": 1.0}})


def by_query(groups):
    return {group.query_id: group for group in groups}


def test_hard_negatives():
    mined = mine.mine(QUERIES, QRELS, [RUN], DOCS, negatives=2, depth=4, seed=1)
    groups = by_query(mined.groups)
    assert groups["a"].doc_ids[0] == "d0" and groups["a"].labels == [1, 0, 0]
    assert set(groups["a"].doc_ids[1:]) == {"d1", "d4"}  # the twin equals the positive, d5 lies below depth 4
    assert groups["b"].doc_ids == ["d2", "d6"]
    assert (mined.without_positive, mined.without_negative, mined.equal_to_positive) == (1, 1, 1)


def test_shared_negatives_are_the_block_s_other_positives():
    mined = mine.mine(QUERIES, QRELS, [], DOCS, negatives=0, shared=3)
    groups = by_query(mined.groups)
    assert {q: set(g.doc_ids[1:]) for q, g in groups.items()} == {"a": {"d2", "d3"}, "b": {"d0", "d3"}, "c": {"d0", "d2"}}
    assert {g.block for g in mined.groups} == {0}
    pairs = mine.mine(QUERIES, QRELS, [], DOCS, negatives=0, shared=2)
    assert sorted(len(g.doc_ids) for g in pairs.groups) == [2, 2] and pairs.without_negative == 1


def test_same_seed_same_groups():
    first, again = (mine.mine(QUERIES, QRELS, [RUN], DOCS, negatives=1, shared=3, seed=5) for _ in range(2))
    assert first == again


def test_files_round_trip(tmp_path):
    groups = mine.mine(QUERIES, QRELS, [RUN], DOCS, negatives=2, shared=3).groups
    mine.write_candidates(groups, tmp_path / "c.jsonl")
    assert mine.read_candidates(tmp_path / "c.jsonl") == groups
    mine.write_candidates(groups, tmp_path / "c.tsv")
    triples = mine.read_candidates(tmp_path / "c.tsv")
    assert [(g.query_id, *g.doc_ids) for g in triples] == [(g.query_id, *p) for g in groups for p in mine.pairs(g)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\n", ":1: expected `query_id<TAB>pos_id<TAB>neg_id`, found 2"),
        ('{"query_id": "a"}\n', ":1: expected an object"),
        ('{"query_id": "a", "doc_ids": ["x"], "labels": []}\n', ":1: 1 doc_ids but 0 labels"),
        ('{"query_id": "a", "doc_ids": ["x"], "labels": [0]}\n', ":1: query a has no positive"),
        ("\n", "is empty"),
    ],
)
def test_bad_candidates(tmp_path, text, message):
    (tmp_path / "c").write_text(text)
    with pytest.raises(InputError) as error:
        mine.read_candidates(tmp_path / "c")
    assert message in str(error.value)


def test_command(tmp_path, invoke, files, bm25_index):
    base = ["--collection", files["docs"], "--topics", files["topics"], "--qrels", files["qrels"], "--output", tmp_path / "c.jsonl"]
    result = invoke(mine.main, *base, "--index", bm25_index, "--negatives", 3)
    assert result.exit_code == 0 and "10 queries, 40 documents" in result.output, result.output
    assert invoke(mine.main, *base, "--index", bm25_index).exit_code == 2
    for wrong, word in ((["--negatives", 1], "--index or --runs"), (["--index", "x", "--run", "y"], "not both")):
        result = invoke(mine.main, *base, "--overwrite", *wrong)
        assert result.exit_code == 2 and word in result.output
