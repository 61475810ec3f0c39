"""Texts and triples on disk: round trips, counts of missing ids, memory use."""

import json
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyserini_kd import train
from pyserini_kd.data import ids as ids_
from pyserini_kd.data import sources
from pyserini_kd.distillation import batches, teacher_scores, text_store
from pyserini_kd.distillation.candidates import Group, as_groups
from pyserini_kd.models import checkpoint_folder
from pyserini_kd.storage import arrays

ids = st.text(st.characters(exclude_categories=("Cs", "Z", "C")), min_size=1)


@given(st.dictionaries(ids, st.text(st.characters(exclude_categories=("Cs",)))))
@settings(max_examples=30, deadline=None)
def test_texts_are_a_mapping(tmp_path_factory, known):
    texts = text_store.Texts.build(tmp_path_factory.mktemp("texts") / "t", known.items(), "texts")
    assert dict(texts) == known and list(texts) == list(known) and len(texts) == len(known)
    assert texts.rows([*known, "no such id"]).tolist() == [*range(len(known)), -1]
    with pytest.raises(KeyError):
        texts["no such id"]


def built(tmp_path, lines, queries=("007", "8"), docs=("NA", "0010", "0011")):
    (tmp_path / "s.tsv").write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    return text_store.build_triples(
        tmp_path / "data", tmp_path / "s.tsv", [(q, f"query {q}") for q in queries], [(d, d * 3) for d in docs]
    )


def test_rows_keep_ids_negative_margins_and_their_own_scores(tmp_path):
    lines = [(-1.5, 2.25, "007", "NA", "0010"), (3, 1e-3, "8", "0011", "NA"), (-2.5, 9, "007", "NA", "0010")]
    found = built(tmp_path, lines)
    assert list(found) == [Group("007", ["NA", "0010"], [1, 0], 0), Group("8", ["0011", "NA"], [1, 0], 1),
                           Group("007", ["NA", "0010"], [1, 0], 2)]  # fmt: skip
    assert [found.of(group) for group in found] == [[-1.5, 2.25], [3.0, pytest.approx(1e-3)], [-2.5, 9.0]]
    assert found.queries["007"] == "query 007" and found.docs["0010"] == "001000100010"
    again = text_store.load_triples(tmp_path / "data")
    assert list(again) == list(found)
    assert found.lengths().tolist() == [17, 17, 17]  # id, newline, text


def test_groups_in_files_and_in_memory_agree(tmp_path):
    found = built(tmp_path, [(-1.5, 2.25, "007", "NA", "0010"), (3, 1e-3, "8", "0011", "NA")])
    held = as_groups(list(found))
    assert as_groups(held) is held and as_groups(found) is found
    assert (found.unit, held.unit) == ("triples", "queries") and found.n_docs == held.n_docs == 4
    assert found.blocks() is None and held.blocks().tolist() == [0, 1]  # every triple is a block of its own
    assert held.lengths(found.docs).tolist() == [12, 12] and found.lengths(found.docs).tolist() == [17, 17]
    assert found.missing() == 0 and found.largest() == 3.0


def test_batches_of_triples_are_those_of_groups(tmp_path):
    found = built(tmp_path, [(n, -n, "8", ("NA", "0010")[n % 2], "0011") for n in range(50)])
    for lengths in (None, found.lengths()):
        lazy, held = (batches.cut_batches(groups, 4, 3, lengths) for groups in (found, list(found)))
        assert list(lazy) == list(held) and len(lazy) == 13
        assert sorted(g.block for batch in lazy for g in batch) == list(range(50))


def test_training_on_a_score_file_leaves_nothing_behind_and_equals_training_on_groups(tmp_path, files, invoke, tiny_dot):
    rows = [
        (5.0 + n, -n / 2, f"q{n % 5}", "eat-cat", f"sleep-{name}") for n, name in enumerate(["cow", "dog", "pig", "hen"] * 5)
    ]
    (tmp_path / "s.tsv").write_text(
        "".join("\t".join(map(str, row)) + "\n" for row in [*rows, (1, 0, "q0", "gone", "eat-cat")])
    )
    words = ["--recipe", "margin-mse", "--collection", files["docs"], "--topics", files["topics"], "--init", tiny_dot]
    words += ["--scores", tmp_path / "s.tsv", "--max-steps", 3, "--batch-size", 4, "--precision", "fp32", "--length-buckets"]
    result = invoke(train.main, *words, "--output", tmp_path / "m")
    assert result.exit_code == 0 and "trained on 20 triples" in result.output, result.output
    assert json.loads((tmp_path / "m" / "training.json").read_text())["data"]["pairs"] == 40
    assert sorted(p.name for p in tmp_path.glob("m*")) == ["m"]
    again = invoke(train.main, *words, "--output", tmp_path / "again")
    assert again.exit_code == 0 and checkpoint_folder.fingerprint(tmp_path / "m") == checkpoint_folder.fingerprint(
        tmp_path / "again"
    )


def test_scores_are_found_by_pair():
    groups = [Group("q", ["a", "b"], [1, 0], 0), Group("r", ["b", "c"], [1, 0], 1), Group("q", ["a", "c"], [1, 0], 2)]
    scores = teacher_scores.Scores(groups)
    assert len(scores) == 5 and scores.missing() == 5 and scores.largest() == 0.0
    scores.fill([("q", "a", 1.5), ("qa", "", 9.0), ("r", "b", -7.25), ("r", "a", 99.0), ("q", "a", -2.5)])
    assert scores.of(groups[0])[0] == scores.of(groups[2])[0] == -2.5  # the last one
    assert scores.of(groups[1])[0] == -7.25 and np.isnan(scores.of(groups[1])[1])
    assert scores.missing() == 3 and scores.largest() == 7.25
    assert np.isnan(teacher_scores.Scores([]).of(groups[0])).all()


@given(st.lists(st.tuples(st.sampled_from("qrs"), st.sampled_from("abcd"), st.floats(-9, 9, width=32)), max_size=40))
@settings(max_examples=30, deadline=None)
def test_scores_equal_those_of_a_dictionary(scored):
    groups = [Group(query_id, ["a", "c"], [1, 0], 0) for query_id in "qs"]
    known = {(query_id, doc_id): score for query_id, doc_id, score in scored}
    scores = teacher_scores.Scores(groups).fill(scored)
    for group in groups:
        expected = [known.get((group.query_id, doc_id), float("nan")) for doc_id in group.doc_ids]
        assert scores.of(group) == pytest.approx(expected, nan_ok=True)


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=40))
@settings(max_examples=60, deadline=None)
def test_distinct_hashes_equal_those_of_a_set(numbers):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "SPAN", 3)
        assert ids_.distinct(np.array(numbers, np.uint64)).tolist() == sorted(set(numbers))


def test_only_texts_of_the_groups_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(text_store, "DOCS", 2)
    queries, docs = text_store.wanted([Group("q", ["3", "0"], [1, 0], 0), Group("r", ["3", "9"], [1, 0], 0)])
    assert len(queries) == 2 and len(docs) == 3
    assert list(text_store.chosen(((str(n), f"text {n}") for n in range(7)), docs)) == [("0", "text 0"), ("3", "text 3")]
    assert list(text_store.chosen([("a", "b")], ids_.distinct(np.uint64([])))) == []


def test_plain_texts_are_selected_rows_of_a_folder(tmp_path):
    texts = text_store.Texts.build(tmp_path / "t", [("a", "one"), ("b", "two two"), ("c", "drei")], "texts")
    plain = text_store.PlainTexts(texts, np.int32([2, 1]))
    assert list(plain) == ["drei", "two two"] and plain.lengths().tolist() == [len("c\ndrei"), len("b\ntwo two")]
    cut = batches.cut_texts(plain, 1, seed=0)
    assert sorted(text for batch in cut for text in batch) == ["drei", "two two"]


def test_a_complete_folder_is_not_built_again(tmp_path):
    made, folder = [], tmp_path / "folder"

    def make():
        made.append(1)
        folder.mkdir()

    text_store.build_once(folder, {"files": sources.stamp(str(tmp_path / "x"))}, make)
    text_store.build_once(folder, {"files": sources.stamp(str(tmp_path / "x"))}, make)
    assert len(made) == 1
    (tmp_path / "x").write_text("now it is there")
    text_store.build_once(folder, {"files": sources.stamp(str(tmp_path / "x"))}, make)
    assert len(made) == 2
    (folder / "made_from.json").unlink()  # killed before it was complete
    text_store.build_once(folder, {"files": sources.stamp(str(tmp_path / "x"))}, make)
    assert len(made) == 3

    def interrupted():
        make()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        text_store.build_once(folder, {"files": []}, interrupted)
    assert not folder.exists()


def peak(tmp_path, count, n_docs):
    """Peak bytes while `count` triples over `n_docs` passages are converted and their first batches read."""

    def lines():
        rng = np.random.default_rng(0)
        for _ in range(0, count, 5_000):
            for q, p, n in zip(*rng.integers([500, n_docs, n_docs], size=(5_000, 3)).T.tolist(), strict=True):
                yield f"{q % 17 - 3.5}\t{n % 11 - 9.5}\tq{q}\t{p}\t{n}\n"

    (tmp_path / f"{count}.tsv").write_text("".join(lines()))
    queries, docs = ((f"q{n}", f"query {n}") for n in range(500)), ((str(n), f"passage {n} " * 20) for n in range(n_docs))
    tracemalloc.start()
    shutil.rmtree(tmp_path / f"data-{count}", ignore_errors=True)
    found = text_store.build_triples(tmp_path / f"data-{count}", tmp_path / f"{count}.tsv", queries, docs)
    cut = batches.cut_batches(found, 32, 0)
    assert sum(len(found.docs[d]) for batch in cut[:20] for g in batch for d in g.doc_ids) > 0
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.slow
def test_memory_grows_by_numbers_not_by_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(text_store, "BLOCK", 1 << 10)
    peak(tmp_path, 5_000, 5_000)  # imports and caches, once
    small, more_triples, more_docs = peak(tmp_path, 5_000, 5_000), peak(tmp_path, 80_000, 5_000), peak(tmp_path, 20_000, 20_000)
    assert more_triples - small < 75_000 * 4  # a triple as objects takes 500 bytes
    assert more_docs - small < 15_000 * 50  # a text here has 290


def score_peak(count):
    """Peak bytes while the scores of `count` groups of two are read."""
    groups = [Group(f"query{n}", [f"positive{n}", f"negative{n}"], [1, 0], n) for n in range(count)]
    tracemalloc.start()
    scores = teacher_scores.Scores(groups).fill((g.query_id, doc_id, 1.0) for g in groups for doc_id in g.doc_ids)
    assert scores.missing() == 0
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.slow
def test_memory_of_scores_is_a_few_numbers_per_pair(monkeypatch):
    monkeypatch.setattr(teacher_scores, "BLOCK", 1 << 8)
    monkeypatch.setattr(teacher_scores, "GROUPS", 1 << 8)
    small, large = score_peak(1_000), score_peak(16_000)
    assert large - small < 30_000 * 18  # a dictionary of dictionaries takes 200 per pair


def test_texts_without_a_file_have_a_checksum(tmp_path, files, invoke, tiny_dot, corpus, monkeypatch):
    from pyserini_kd.data import sources

    read = sources.collection
    monkeypatch.setattr(sources, "collection", lambda name, **more: iter(corpus) if name == "ir_datasets:ours" else read(name))
    (tmp_path / "c.tsv").write_text("q0\teat-cat\teat-dog\n")
    words = [
        "--recipe",
        "ranknet",
        "--topics",
        files["topics"],
        "--init",
        tiny_dot,
        "--max-steps",
        1,
        "--candidates",
        tmp_path / "c.tsv",
    ]
    kept = []
    for name in ("ir_datasets:ours", files["docs"]):
        result = invoke(train.main, *words, "--collection", name, "--output", tmp_path / "m", "--overwrite")
        assert result.exit_code == 0, result.output
        kept.append(json.loads((tmp_path / "m" / "training.json").read_text())["data"])
    assert len(kept[0]["texts_sha256"]) == 64 and kept[0]["collection"] == "ir_datasets:ours"
    assert "sha256" in kept[1]["collection"] and "texts_sha256" not in kept[1]
