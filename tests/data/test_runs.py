"""Run: trec_eval's order whatever comes in, ids that stay strings, and files that are whole or not there."""

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


def test_the_tag_of_any_checkpoint_is_a_word(tmp_path, monkeypatch):
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
def test_compressed_runs_are_read_as_written(tmp_path_factory, scores):
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
def test_order_is_that_of_sorted(scores):
    run = Run.from_scores("t", scores)
    for query_id, docs in scores.items():
        pairs = sorted(((np.float32(score), doc_id) for doc_id, score in docs.items()), reverse=True)
        assert run[query_id].doc_ids == [doc_id for _, doc_id in pairs]


def test_hits_cannot_be_changed():
    run = Run.from_scores("t", {"q": {"a": 1.0}})
    with pytest.raises(ValueError, match="read-only"):
        run["q"].scores[0] = 2.0


# ---------------------------------------------------------------------------------------------------------- files


@settings(max_examples=150, deadline=None)
@given(scores=RUNS)
def test_written_and_read_again_is_the_same_run(scores, tmp_path_factory):
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
def test_nine_digits_hold_every_float32(scores):
    for score in np.array(scores, dtype=np.float32):
        assert np.float32(f"{float(score):.9g}") == score


def test_lines_are_those_of_trec(tmp_path):
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


def test_quotes_and_hashes_are_letters(tmp_path):
    run = read(tmp_path / "r", "q Q0 \"a 1 3.0 t\nq Q0 b' 2 2.0 t\nq Q0 #c 3 1.0 t\n")
    assert run["q"].doc_ids == ['"a', "b'", "#c"]


def test_tabs_repeated_blanks_and_empty_lines(tmp_path):
    run = read(tmp_path / "r", "q\tQ0\ta\t1\t1.0\tt\n\nq  Q0   b 2    2.0 t  \r\n")
    assert content(run) == {"q": (["b", "a"], [2.0, 1.0])}


def test_rank_column_and_line_order_are_not_trusted(tmp_path):
    run = read(tmp_path / "r", "q Q0 a 1 1.0 t\nq Q0 b 2 3.0 t\nq Q0 c 3 2.0 t\n")
    assert run["q"].doc_ids == ["b", "c", "a"]


def test_queries_may_be_interleaved(tmp_path):
    run = read(tmp_path / "r", "2 Q0 a 1 9 t\n1 Q0 b 1 8 t\n2 Q0 c 2 7 t\n1 Q0 d 2 8.5 t\n2 Q0 e 3 7 t\n")
    assert content(run) == {"2": (["a", "e", "c"], [9, 7, 7]), "1": (["d", "b"], [8.5, 8])}
    assert list(run) == ["2", "1"]


GOOD = "q Q0 a 1 2.0 t\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "q Q0 b 2 1.0\n", r":2: expected `qid Q0 docid rank score tag`, found 5 columns"),
        (GOOD + "q Q0 b b 2 1.0 t\n", r":2: .*found 7 columns"),
        (GOOD + "q b 2\n", r":2: .*found 3 columns"),
        (GOOD + "q  Q0 b 2 1.0\n", r":2: .*found 5 columns"),  # two blanks do not make up for the missing column
        (GOOD + "q Q0  2 1.0 t\n", r":2: .*found 5 columns"),
        (GOOD + "q Q0 b  1.0 t\n", r":2: .*found 5 columns"),
        (GOOD + "q Q0 b 2 high t\n", r":2: expected a score, found 'high'"),
        (GOOD + "q Q0 b 2 nan t\n", r":2: score nan is not finite"),
        (GOOD + "q Q0 b 2 -inf t\n", r":2: score -inf is not finite"),
        (GOOD + "q Q0 b 2 1e39 t\n", r":2: score 1e39 is not finite \(as float32\)"),
        (GOOD + "q2 Q0 a 1 1.0 t\nq Q0 a 2 1.0 t\n", r":3: document a comes twice for query q"),
        ("q a 0\n", r":1: expected a rank, found '0'"),
        ("q a first\n", r":1: expected a rank, found 'first'"),
        ("", r"empty"),
        ("\n \n", r"empty"),
    ],
)
def test_faulty_files_are_refused_with_file_and_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path / "run.faulty", text)
    assert "run.faulty" in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="not found"):
        Run.read(tmp_path / "none")
    with pytest.raises(InputError, match="folder"):
        Run.read(tmp_path)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), 1e39])
def test_scores_must_be_finite_as_float32(score):
    with pytest.raises(InputError, match="document b is not finite"):
        Run.from_scores("t", {"q": {"a": 1.0, "b": score}})


def test_duplicates_and_lengths_are_refused():
    with pytest.raises(InputError, match="query q: document a comes twice"):
        Run.from_hits("t", [("q", ["a", "b", "a"], [1.0, 2.0, 3.0])])
    with pytest.raises(InputError, match="query q comes twice"):
        Run.from_hits("t", [("q", ["a"], [1.0]), ("q", ["b"], [1.0])])
    with pytest.raises(InputError, match="2 documents but 1 scores"):
        Run.from_hits("t", [("q", ["a", "b"], [1.0])])


def test_an_existing_file_is_kept_unless_told(tmp_path):
    path = tmp_path / "run.txt"
    path.write_text("mine")
    run = Run.from_scores("t", {"q": {"a": 1.0}})
    with pytest.raises(InputError, match="--overwrite"):
        run.write(path)
    assert path.read_text() == "mine"
    run.write(path, overwrite=True)
    assert path.read_text() == "q Q0 a 1 1 t\n"


def test_a_failing_write_leaves_no_file_and_keeps_the_old_one(tmp_path):
    class FullDisk(str):
        def __format__(self, spec):
            raise OSError(28, "No space left on device")

    run = Run.from_scores("t", {"q": {"a": 1.0}, "r": {"b": 1.0}})
    run.tag = FullDisk("t")
    with pytest.raises(OSError, match="No space"):
        run.write(tmp_path / "new.txt")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(OSError, match="No space"):
        run.write(tmp_path / "old.txt", overwrite=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("old.txt", "old")]


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
def test_a_stream_gives_what_the_whole_run_holds_in_any_order(scores, random, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.txt"
    Run.from_scores("tag", scores).write(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_files, "BLOCK", 64)  # topics go over the ends of blocks
        stream = runs.open_run(path)
        assert isinstance(stream, runs.RunStream)
        whole = Run.read(path)
        assert (list(stream), stream.n_hits, stream.depth) == (list(whole), whole.n_hits, whole.depth)
        found = {query_id: stream.get(query_id) for query_id in random.sample(list(whole), len(whole))}
    assert content(whole) == {query_id: (found[query_id].doc_ids, found[query_id].scores.tolist()) for query_id in whole}
    assert stream.get("lacking") is None


def test_a_stream_holds_only_what_was_passed_by(tmp_path):
    read(tmp_path / "r", "".join(f"{query_id} Q0 d 1 1 t\n" for query_id in "12345"))
    stream = runs.open_run(tmp_path / "r")
    stream.get("1")
    assert stream.get("6") is None and not stream._passed
    stream.get("4")
    assert list(stream._passed) == ["2", "3"]
    assert stream.get("3").doc_ids == ["d"] and list(stream._passed) == ["2"]


@pytest.mark.parametrize(
    "text",
    [
        "2 Q0 a 1 9 t\n1 Q0 b 1 8 t\n2 Q0 c 2 7 t\n",
        "q\tQ0\ta\t1\t1.0\tt\n",
        "q a 1\nq b 2\n",
        "\nq Q0 a 1 1 t\n\nr Q0 a 1 1 t\n",
    ],
    ids=["interleaved", "tabs", "msmarco", "empty lines"],
)
def test_unusual_files_are_opened_too(text, tmp_path):
    whole = read(tmp_path / "r", text)
    opened = runs.open_run(tmp_path / "r")
    assert content({query_id: opened.get(query_id) for query_id in opened}) == content(whole)


@pytest.mark.parametrize(
    ("line", "message"),
    [("r Q0 b 2 high t\n", ":3: expected a score"), ("r Q0 a 2 1 t\n", ":3: document a comes twice"), ("r  b 2 1 t\n", ":3: ")],
)
def test_a_stream_names_the_faulty_line_when_it_comes_there(line, message, tmp_path):
    (tmp_path / "run").write_text("q Q0 a 1 1 t\nr Q0 a 1 1 t\n" + line)
    with pytest.raises(InputError, match=message):
        stream = runs.open_run(tmp_path / "run")
        for query_id in stream:
            stream.get(query_id)


def test_signs_and_percents_are_written_as_they_are(tmp_path):
    run = Run.from_scores("100%s", {"%d": {"50%": 1.0, "%%": -0.0}})
    run.write(tmp_path / "r")
    assert (tmp_path / "r").read_text() == "%d Q0 50% 1 1 100%s\n%d Q0 %% 2 0 100%s\n"
    assert content(Run.read(tmp_path / "r")) == content(run)


@pytest.mark.parametrize(
    "lines", ["q\td1\t1\nq\td2\t2\n", "# ir_metadata.start\n# a: b\n# ir_metadata.end\nq Q0 d1 1 2.5 t\nq Q0 d2 2 1.5 t\n"]
)
def test_compressed_runs_of_every_format(tmp_path, lines):
    (tmp_path / "run.txt").write_text(lines)
    (tmp_path / "run.gz").write_bytes(gzip.compress(lines.encode()))
    plain, compressed = Run.read(tmp_path / "run.txt"), Run.read(tmp_path / "run.gz")
    assert plain["q"].doc_ids == compressed["q"].doc_ids == ["d1", "d2"]
    assert np.array_equal(plain["q"].scores, compressed["q"].scores)


def test_text_that_is_no_utf8_is_an_input_error(tmp_path):
    lines = [f"q Q0 d{n} {n} {9000 - n}.5 {'café' if n == 2500 else 'x'}\n" for n in range(1, 5000)]
    (tmp_path / "run.txt").write_bytes("".join(lines).encode("latin-1"))
    (tmp_path / "packed.gz").write_bytes(gzip.compress("".join(lines).encode("latin-1")))
    for name in ("run.txt", "packed.gz"):
        with pytest.raises(InputError, match=rf"{name}:2500: not valid UTF-8$"):
            Run.read(tmp_path / name)
    double = gzip.compress(b"q Q0 d1 1 2.5 t\nq Q0 d1 2 1.5 t\n")
    (tmp_path / "run.gz").write_bytes(double)
    with pytest.raises(InputError, match="run.gz:2: document d1 comes twice for query q"):
        Run.read(tmp_path / "run.gz")
    (tmp_path / "run.gz").write_bytes(double[:-9])
    with pytest.raises(InputError, match="run.gz"):
        Run.read(tmp_path / "run.gz")
