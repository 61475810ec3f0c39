"""Run: the order of trec_eval, ids as strings, and round trips through files."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyserini_kd.data import run_files, runs
from pyserini_kd.data.runs import Run
from pyserini_kd.data.trectools_adapter import from_trectools, to_trectools
from pyserini_kd.storage.errors import InputError

IDS = st.text("0123456789abNA.-_:/#'\"é", min_size=1, max_size=6)
SCORES = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 2.5]), st.floats(width=32, allow_nan=False, allow_infinity=False))
RUNS = st.dictionaries(IDS, st.dictionaries(IDS, SCORES, min_size=1, max_size=8), min_size=1, max_size=4)


def read(path, text):
    path.write_text(text, encoding="utf-8")
    return Run.read(path)


def content(run):
    return {query_id: (hits.doc_ids, hits.scores.tolist()) for query_id, hits in run.items()}


def test_every_default_tag_is_one_word(tmp_path, monkeypatch):
    (tmp_path / "a student").mkdir()
    monkeypatch.chdir(tmp_path / "a student")
    assert [runs.default_tag(name) for name in ("models/s", "own/hub-id", "my model/", ".", "/")] == [
        "s",
        "hub-id",
        "my_model",
        "a_student",
        "run",
    ]


@given(RUNS)
@settings(max_examples=20, deadline=None)
def test_compressed_runs_round_trip(tmp_path_factory, scores):
    path = tmp_path_factory.mktemp("run") / "run.txt.gz"
    run = Run.from_scores("t", scores)
    run.write(path)
    assert path.read_bytes()[:2] == b"\x1f\x8b" and content(Run.read(path)) == content(run)


# ---------------------------------------------------------------------------------------------------------- order


def test_order_is_score_descending_then_doc_id_descending():
    run = Run.from_scores("t", {"q": {"d1": 1.0, "d10": 1.0, "d2": 1.0, "top": 9.0, "last": -3.0}})
    assert run["q"].doc_ids == ["top", "d2", "d10", "d1", "last"]
    assert run["q"].scores.tolist() == [9.0, 1.0, 1.0, 1.0, -3.0]


def test_scores_that_differ_only_beyond_float32_are_ties():
    run = Run.from_scores("t", {"q": {"a": 1.0 + 1e-9, "b": 1.0}})
    assert run["q"].doc_ids == ["b", "a"]
    assert run["q"].scores.dtype == np.float32


@given(RUNS)
def test_order_equals_sorted(scores):
    run = Run.from_scores("t", scores)
    for query_id, docs in scores.items():
        pairs = sorted(((np.float32(score), doc_id) for doc_id, score in docs.items()), reverse=True)
        assert run[query_id].doc_ids == [doc_id for _, doc_id in pairs]


def test_hits_are_immutable():
    run = Run.from_scores("t", {"q": {"a": 1.0}})
    with pytest.raises(ValueError, match="read-only"):
        run["q"].scores[0] = 2.0


# ---------------------------------------------------------------------------------------------------------- files


@settings(max_examples=150, deadline=None)
@given(scores=RUNS)
def test_run_round_trip(scores, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.txt"
    run = Run.from_scores("tag", scores)
    run.write(path)
    again = Run.read(path)
    assert content(again) == content(run)
    assert list(again) == list(run) and again.tag == "tag"


@settings(max_examples=150, deadline=None)
@given(scores=RUNS)
def test_fast_and_slow_reader_agree(scores, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.txt"
    Run.from_scores("tag", scores).write(path)
    assert content(Run.from_scores(*run_files.read_slowly(path))) == content(Run.read(path))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50, unique=True))
def test_nine_digits_represent_every_float32(scores):
    for score in np.array(scores, dtype=np.float32):
        assert np.float32(f"{float(score):.9g}") == score


def test_trec_lines(tmp_path):
    Run.from_scores("bm25", {"1": {"a": 0.1, "b": 12.5}}).write(tmp_path / "run.txt")
    assert (tmp_path / "run.txt").read_text() == "1 Q0 b 1 12.5 bm25\n1 Q0 a 2 0.100000001 bm25\n"


def test_msmarco_format_keeps_the_order(tmp_path):
    run = Run.from_scores("t", {"1": {"a": 0.1, "b": 12.5, "c": 12.5}})
    run.write(tmp_path / "run.tsv", output_format="msmarco")
    assert (tmp_path / "run.tsv").read_text() == "1\tc\t1\n1\tb\t2\n1\ta\t3\n"
    again = Run.read(tmp_path / "run.tsv")
    assert again["1"].doc_ids == ["c", "b", "a"]
    assert again["1"].scores.tolist() == pytest.approx([1, 1 / 2, 1 / 3])
    with pytest.raises(InputError, match="trec or msmarco"):
        run.write(tmp_path / "other", output_format="json")


def test_ids_stay_strings(tmp_path):
    run = read(tmp_path / "r", "007 Q0 NA 1 3.0 t\n007 Q0 0010 2 2.0 t\n7 Q0 null 1 1e3 t\nNA Q0 1e3 1 5 t\n")
    assert {query_id: hits.doc_ids for query_id, hits in run.items()} == {"007": ["NA", "0010"], "7": ["null"], "NA": ["1e3"]}


# ------------------------------------------------------------------------------------------------------ the rest


def test_top_and_sizes():
    run = Run.from_scores("t", {"q": {"a": 3.0, "b": 2.0, "c": 1.0}, "r": {"a": 1.0}})
    assert (run.n_hits, run.depth, len(run)) == (4, 3, 2)
    assert content(run.top(2)) == {"q": (["a", "b"], [3.0, 2.0]), "r": (["a"], [1.0])}
    assert run.n_hits == 4


def test_without_query_docs():
    run = Run.from_scores("t", {"a": {"a": 3.0, "b": 2.0}, "b": {"a": 1.0}})
    assert content(run.without_query_docs()) == {"a": (["b"], [2.0]), "b": (["a"], [1.0])}
    cut = Run.from_scores("t", {"a": {"a#1": 3.0, "ab#0": 2.5, "b#0": 2.0, "a#0": 1.0}})
    assert content(cut.without_query_docs("#")) == {"a": (["ab#0", "b#0"], [2.5, 2.0])}


@settings(deadline=None)
@given(RUNS)
def test_trectools_round_trip(scores):
    run = Run.from_scores("tag", scores)
    again = from_trectools(to_trectools(run), "tag")
    assert content(again) == content(run)
    assert list(again) == list(run)


def test_trectools_frame_is_canonical_and_ids_are_strings():
    run = Run.from_scores("tag", {"007": {"NA": 1.0, "0010": 1.0, "x": 2.0}, "q": {"y": 5.0}})
    frame = to_trectools(run, distinct_scores=True).run_data
    assert frame[["query", "docid", "rank"]].values.tolist() == [
        ["007", "x", 1],
        ["007", "NA", 2],
        ["007", "0010", 3],
        ["q", "y", 1],
    ]
    assert frame["score"].tolist() == [3.0, 2.0, 1.0, 3.0]


# ------------------------------------------------------------------------------------------------- topic by topic


@settings(max_examples=100, deadline=None)
@given(scores=RUNS, random=st.randoms(use_true_random=False))
def test_a_stream_gives_the_hits_of_the_run_in_any_order(scores, random, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.txt"
    Run.from_scores("tag", scores).write(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_files, "BLOCK", 64)  # topics cross block boundaries
        stream = runs.open_run(path)
        assert isinstance(stream, runs.RunStream)
        whole = Run.read(path)
        assert (list(stream), stream.n_hits, stream.depth) == (list(whole), whole.n_hits, whole.depth)
        found = {query_id: stream.get(query_id) for query_id in random.sample(list(whole), len(whole))}
    assert content(whole) == {query_id: (found[query_id].doc_ids, found[query_id].scores.tolist()) for query_id in whole}
    assert stream.get("lacking") is None


def test_a_stream_keeps_only_skipped_topics(tmp_path):
    read(tmp_path / "r", "".join(f"{query_id} Q0 d 1 1 t\n" for query_id in "12345"))
    stream = runs.open_run(tmp_path / "r")
    stream.get("1")
    assert stream.get("6") is None and not stream._skipped
    stream.get("4")
    assert list(stream._skipped) == ["2", "3"]
    assert stream.get("3").doc_ids == ["d"] and list(stream._skipped) == ["2"]


@pytest.mark.parametrize(
    "lines", ["q\td1\t1\nq\td2\t2\n", "# ir_metadata.start\n# a: b\n# ir_metadata.end\nq Q0 d1 1 2.5 t\nq Q0 d2 2 1.5 t\n"]
)
def test_compressed_runs_of_every_format(tmp_path, lines):
    (tmp_path / "run.txt").write_text(lines)
    (tmp_path / "run.gz").write_bytes(gzip.compress(lines.encode()))
    plain, compressed = Run.read(tmp_path / "run.txt"), Run.read(tmp_path / "run.gz")
    assert plain["q"].doc_ids == compressed["q"].doc_ids == ["d1", "d2"]
    assert np.array_equal(plain["q"].scores, compressed["q"].scores)
