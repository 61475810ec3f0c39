"""Texts and triples on disk: what goes in comes out, missing ids are counted, memory does not grow."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyserini_kd import batches, train, triples
from pyserini_kd.files import InputError
from pyserini_kd.mine import Group
from pyserini_kd.models import checkpoints

ids = st.text(st.characters(exclude_categories=("Cs", "Z", "C")), min_size=1)


@given(st.dictionaries(ids, st.text(st.characters(exclude_categories=("Cs",)))))
@settings(max_examples=30, deadline=None)
def test_texts_are_a_mapping(tmp_path_factory, known):
    texts = triples.Texts.build(tmp_path_factory.mktemp("texts") / "t", known.items(), "texts")
    assert dict(texts) == known and list(texts) == list(known) and len(texts) == len(known)
    assert texts.rows([*known, "no such id"]).tolist() == [*range(len(known)), -1]
    with pytest.raises(KeyError):
        texts["no such id"]


def built(tmp_path, lines, queries=("007", "8"), docs=("NA", "0010", "0011")):
    (tmp_path / "s.tsv").write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    return triples.build(tmp_path / "data", tmp_path / "s.tsv", [(q, f"query {q}") for q in queries], [(d, d * 3) for d in docs])


def test_rows_keep_ids_negative_margins_and_their_own_scores(tmp_path):
    lines = [(-1.5, 2.25, "007", "NA", "0010"), (3, 1e-3, "8", "0011", "NA"), (-2.5, 9, "007", "NA", "0010")]
    found = built(tmp_path, lines)
    assert list(found) == [Group("007", ["NA", "0010"], [1, 0], 0), Group("8", ["0011", "NA"], [1, 0], 1),
                           Group("007", ["NA", "0010"], [1, 0], 2)]  # fmt: skip
    assert [found.scores(row) for row in range(3)] == [[-1.5, 2.25], [3.0, pytest.approx(1e-3)], [-2.5, 9.0]]
    assert found.queries["007"] == "query 007" and found.docs["0010"] == "001000100010"
    again = triples.load(tmp_path / "data")
    assert list(again) == list(found)
    assert found.lengths().tolist() == [17, 17, 17]  # id, newline, text


def test_missing_ids_are_counted_and_left_out(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(triples, "BLOCK", 2)
    good = (1, 0, "8", "NA", "0010")
    lines = [good, (1, 0, "9", "NA", "0010"), (1, 0, "8", "x", "NA"), (1, 0, "8", "NA", "y"), (1, 0, "9", "z", "z"), good]
    found = built(tmp_path, lines)
    assert [g.query_id for g in found] == ["8", "8"] and [g.block for g in found] == [0, 1]
    (record,) = caplog.records
    assert record.message.endswith("s.tsv: 4 of 6 triples are left out: 2 with a query that is not among the topics, e.g. 9; "
                                   "2 with a document that is not in the collection, e.g. x")  # fmt: skip
    with pytest.raises(InputError, match="none of its 1 triples has all its texts: 1 with a query that is not among the topics, e.g. 9"):
        triples.Triples.build(tmp_path / "none", bad_file(tmp_path), found.queries, found.docs)


def bad_file(tmp_path):
    (tmp_path / "bad.tsv").write_text("1\t0\t9\tNA\tNA\n")
    return tmp_path / "bad.tsv"


def test_batches_of_triples_are_those_of_groups(tmp_path):
    found = built(tmp_path, [(n, -n, "8", ("NA", "0010")[n % 2], "0011") for n in range(50)])
    for lengths in (None, found.lengths()):
        lazy, held = (batches.cut_batches(groups, 4, 3, lengths) for groups in (found, list(found)))
        assert list(lazy) == list(held) and len(lazy) == 13
        assert sorted(g.block for batch in lazy for g in batch) == list(range(50))


def test_training_on_a_score_file_leaves_nothing_behind_and_equals_training_on_groups(tmp_path, files, invoke, tiny_dot):
    rows = [(5.0 + n, -n / 2, f"q{n % 5}", "eat-cat", f"sleep-{name}") for n, name in enumerate(["cow", "dog", "pig", "hen"] * 5)]
    (tmp_path / "s.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in [*rows, (1, 0, "q0", "gone", "eat-cat")]))
    words = ["--recipe", "margin-mse", "--collection", files["docs"], "--topics", files["topics"], "--init", tiny_dot]
    words += ["--scores", tmp_path / "s.tsv", "--max-steps", 3, "--batch-size", 4, "--precision", "fp32", "--length-buckets"]
    result = invoke(train.main, *words, "--output", tmp_path / "m")
    assert result.exit_code == 0 and "trained on 20 queries" in result.output, result.output
    assert json.loads((tmp_path / "m" / "training.json").read_text())["data"]["pairs"] == 40
    assert sorted(p.name for p in tmp_path.glob("m*")) == ["m"]
    again = invoke(train.main, *words, "--output", tmp_path / "again")
    assert again.exit_code == 0 and checkpoints.fingerprint(tmp_path / "m") == checkpoints.fingerprint(tmp_path / "again")


def peak(tmp_path, count):
    """Bytes held at most while `count` triples over as many passages are converted and their first batches read."""

    def lines():
        rng = np.random.default_rng(0)
        for _ in range(0, count, 5_000):
            for q, p, n in zip(*rng.integers([500, count, count], size=(5_000, 3)).T.tolist(), strict=True):
                yield f"{q % 17 - 3.5}\t{n % 11 - 9.5}\tq{q}\t{p}\t{n}\n"

    (tmp_path / f"{count}.tsv").write_text("".join(lines()))
    queries, docs = ((f"q{n}", f"query {n}") for n in range(500)), ((str(n), f"passage {n} " * 20) for n in range(count))
    tracemalloc.start()
    found = triples.build(tmp_path / f"data-{count}", tmp_path / f"{count}.tsv", queries, docs)
    cut = batches.cut_batches(found, 32, 0)
    assert sum(len(found.docs[d]) for batch in cut[:20] for g in batch for d in g.doc_ids) > 0
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_memory_grows_by_numbers_not_by_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(triples, "BLOCK", 1 << 10)
    small, large = peak(tmp_path, 5_000), peak(tmp_path, 20_000)
    assert large - small < 15_000 * 50  # a text here has 290 bytes, a triple as objects 500
