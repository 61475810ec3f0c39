"""Run files with unusual and malformed lines, wrong encodings, full disks and existing files."""

import gzip

import pytest

from pyserini_kd.data import runs
from pyserini_kd.data.runs import Run
from pyserini_kd.storage.errors import InputError
from tests.data.test_runs import content, read

# ---------------------------------------------------------------------------------------------------------- files


def test_quotes_and_hashes_have_no_special_meaning(tmp_path):
    run = read(tmp_path / "r", "q Q0 \"a 1 3.0 t\nq Q0 b' 2 2.0 t\nq Q0 #c 3 1.0 t\n")
    assert run["q"].doc_ids == ['"a', "b'", "#c"]


def test_tabs_repeated_blanks_and_empty_lines(tmp_path):
    run = read(tmp_path / "r", "q\tQ0\ta\t1\t1.0\tt\n\nq  Q0   b 2    2.0 t  \r\n")
    assert content(run) == {"q": (["b", "a"], [2.0, 1.0])}


def test_rank_column_and_line_order_are_ignored(tmp_path):
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
        (GOOD + "q  Q0 b 2 1.0\n", r":2: .*found 5 columns"),  # two blanks do not form a column
        (GOOD + "q Q0  2 1.0 t\n", r":2: .*found 5 columns"),
        (GOOD + "q Q0 b  1.0 t\n", r":2: .*found 5 columns"),
        (GOOD + "q Q0 b 2 high t\n", r":2: expected a score, found 'high'"),
        (GOOD + "q Q0 b 2 nan t\n", r":2: score nan is not finite"),
        (GOOD + "q Q0 b 2 -inf t\n", r":2: score -inf is not finite"),
        (GOOD + "q Q0 b 2 1e39 t\n", r":2: score 1e39 is not finite \(as float32\)"),
        (GOOD + "q2 Q0 a 1 1.0 t\nq Q0 a 2 1.0 t\n", r":3: duplicate document a for query q"),
        ("q a first\n", r":1: expected a score, found 'first'"),
        ("", r"empty"),
        ("\n \n", r"empty"),
    ],
)
def test_malformed_files_are_refused_with_file_and_line(tmp_path, text, message):
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
    with pytest.raises(InputError, match="query q: duplicate document a"):
        Run.from_hits("t", [("q", ["a", "b", "a"], [1.0, 2.0, 3.0])])
    with pytest.raises(InputError, match="duplicate query q"):
        Run.from_hits("t", [("q", ["a"], [1.0]), ("q", ["b"], [1.0])])
    with pytest.raises(InputError, match="2 documents but 1 scores"):
        Run.from_hits("t", [("q", ["a", "b"], [1.0])])


def test_an_existing_file_is_kept_without_overwrite(tmp_path):
    path = tmp_path / "run.txt"
    path.write_text("mine")
    run = Run.from_scores("t", {"q": {"a": 1.0}})
    with pytest.raises(InputError, match="set `overwrite` to replace it"):
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


# ------------------------------------------------------------------------------------------------- topic by topic


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
def test_unusual_files_can_be_opened(text, tmp_path):
    whole = read(tmp_path / "r", text)
    opened = runs.open_run(tmp_path / "r")
    assert content({query_id: opened.get(query_id) for query_id in opened}) == content(whole)


@pytest.mark.parametrize(
    ("line", "message"),
    [("r Q0 b 2 high t\n", ":3: expected a score"), ("r Q0 a 2 1 t\n", ":3: duplicate document a"), ("r  b 2 1 t\n", ":3: ")],
)
def test_a_stream_names_the_malformed_line_when_it_reaches_it(line, message, tmp_path):
    (tmp_path / "run").write_text("q Q0 a 1 1 t\nr Q0 a 1 1 t\n" + line)
    with pytest.raises(InputError, match=message):
        stream = runs.open_run(tmp_path / "run")
        for query_id in stream:
            stream.get(query_id)


def test_percent_signs_and_negative_zero_in_files(tmp_path):
    run = Run.from_scores("100%s", {"%d": {"50%": 1.0, "%%": -0.0}})
    run.write(tmp_path / "r")
    assert (tmp_path / "r").read_text() == "%d Q0 50% 1 1 100%s\n%d Q0 %% 2 0 100%s\n"
    assert content(Run.read(tmp_path / "r")) == content(run)


def test_text_that_is_not_utf8_is_an_input_error(tmp_path):
    lines = [f"q Q0 d{n} {n} {9000 - n}.5 {'café' if n == 2500 else 'x'}\n" for n in range(1, 5000)]
    (tmp_path / "run.txt").write_bytes("".join(lines).encode("latin-1"))
    (tmp_path / "packed.gz").write_bytes(gzip.compress("".join(lines).encode("latin-1")))
    for name in ("run.txt", "packed.gz"):
        with pytest.raises(InputError, match=rf"{name}:2500: not valid UTF-8$"):
            Run.read(tmp_path / name)
    double = gzip.compress(b"q Q0 d1 1 2.5 t\nq Q0 d1 2 1.5 t\n")
    (tmp_path / "run.gz").write_bytes(double)
    with pytest.raises(InputError, match="run.gz:2: duplicate document d1 for query q"):
        Run.read(tmp_path / "run.gz")
    (tmp_path / "run.gz").write_bytes(double[:-9])
    with pytest.raises(InputError, match="run.gz"):
        Run.read(tmp_path / "run.gz")
