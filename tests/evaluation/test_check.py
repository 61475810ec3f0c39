"""check: every fault with its line, a fit run passes, and a repaired copy is fit and means the same to trec_eval."""

import gzip
import json

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from pyserini_kd import check
from pyserini_kd.data.runs import Run
from pyserini_kd.evaluation import submission

FIT = """\
1 Q0 d1 1 3.5 mine
1 Q0 d3 2 2.0 mine
1 Q0 d2 3 2.0 mine
2 Q0 d1 1 0.5 mine
"""


@pytest.fixture
def run_check(tmp_path, invoke):
    """Check a run given as text: exit code, output without the folder's name."""
    (tmp_path / "topics.tsv").write_text("1\tone\n2\ttwo\n")

    def run(text, *words, topics=None):
        (tmp_path / "run.txt").write_text(text)
        result = invoke(check.main, tmp_path / "run.txt", "--topics", topics or tmp_path / "topics.tsv", *words)
        assert "Traceback" not in result.output, result.output
        return result.exit_code, result.output.replace(f"{tmp_path}/", "")

    return run


def test_a_fit_run(run_check):
    assert run_check(FIT) == (0, "run.txt: 2 topics, 4 lines, tag mine: fit for TREC\n")
    assert run_check("1\td1\t1\n1\td2\t2\n2\td1\t1\n", "--format", "msmarco") == (
        0, "run.txt: 2 topics, 3 lines: fit for the MS MARCO leaderboard\n",
    )  # fmt: skip


def test_what_our_own_commands_write_is_fit(tmp_path, run_check):
    rng = np.random.default_rng(0)
    scores = {q: {f"d{n}": float(s) for n, s in enumerate(rng.integers(0, 5, 50) / 3)} for q in "12"}
    Run.from_scores("a-b_c.D", scores).write(tmp_path / "ours.txt")
    assert run_check((tmp_path / "ours.txt").read_text())[0] == 0


FAULTS = {  # name: (line of FIT replaced, by what, expected in the output)
    "five columns": (2, "1 Q0 d3 2 2.0", "run.txt:2: expected 6 columns, found 5"),
    "blank line": (2, "", "run.txt:2: expected 6 columns, found 0"),
    "Q0": (2, "1 0 d3 2 2.0 mine", "run.txt:2: expected Q0, found 0"),
    "long tag": (1, f"1 Q0 d1 1 3.5 {'x' * 21}", f"run.txt:1: tag {'x' * 21} (21 characters)"),
    "odd tag": (1, "1 Q0 d1 1 3.5 mine+bm25", "run.txt:1: tag mine+bm25 (9 characters)"),
    "other tag": (3, "1 Q0 d2 3 2.0 other", "run.txt:3: expected mine, found other"),
    "unknown topic": (4, "3 Q0 d1 1 0.5 mine", "run.txt:4: topic 3 is not among the topics"),
    "missing topic": (4, "1 Q0 d0 4 0.5 mine", "2: no hit for this topic"),
    "rank": (2, "1 Q0 d3 3 2.0 mine", "run.txt:2: topic 1: expected rank 2, found 3"),
    "rank 0": (1, "1 Q0 d1 0 3.5 mine", "run.txt:1: topic 1: expected rank 1, found 0"),
    "order": (2, "1 Q0 d3 2 4 mine", "run.txt:2: score 4 comes after 3.5"),
    "tie": (2, "1 Q0 d1x 2 2 mine", "run.txt:3: scores 2 and 2.0 are equal as float32; trec_eval puts d2 before d1x"),
    "float32 tie": (1, "1 Q0 d2x 1 2.00000001 mine", "run.txt:2: scores 2.00000001 and 2.0 are equal as float32; trec_eval puts d3 before d2x"),
    "nan": (4, "2 Q0 d1 1 nan mine", "run.txt:4: score nan"),
    "infinity": (4, "2 Q0 d1 1 -inf mine", "run.txt:4: score -inf"),
    "beyond float32": (4, "2 Q0 d1 1 1e39 mine", "run.txt:4: score 1e39"),
    "word": (4, "2 Q0 d1 1 high mine", "run.txt:4: score high"),
    "Python's own number": (4, "2 Q0 d1 1 1_0 mine", "run.txt:4: score 1_0"),
    "other digits": (4, "2 Q0 d1 1 ٣ mine", "run.txt:4: score ٣"),
    "duplicate": (2, "1 Q0 d1 2 2.0 mine", "run.txt:2: document d1 is already on line 1 (topic 1)"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named_with_its_line(run_check, name):
    number, line, expected = FAULTS[name]
    lines = FIT.splitlines()
    lines[number - 1] = line
    code, output = run_check("\n".join(lines) + "\n")
    assert code == 1 and expected in output and output.endswith("unfit for TREC\n"), output


def test_a_fault_is_reported_once_and_nothing_else_with_it(run_check):
    code, output = run_check(FIT.replace("d1 1 3.5", "d1 1 1.5"))
    assert code == 1 and output.splitlines()[:-1] == [
        "scores higher than on the line before (1):",
        "  run.txt:2: score 2.0 comes after 1.5",
    ]


def test_too_many_hits(run_check):
    code, output = run_check(FIT, "--max-hits", 2)
    assert code == 1 and "run.txt:3: topic 1 has 3 hits; the maximum is 2" in output
    assert run_check(FIT, "--max-hits", 3)[0] == 0


def test_topics_whose_lines_stand_apart_are_judged_together(run_check):
    code, output = run_check(FIT + "1 Q0 d1 4 1.0 mine\n1 Q0 d0 5 0.5 mine\n")
    assert code == 1 and output.splitlines()[:-1] == [
        "topics whose lines are not together (1):",
        "  run.txt:5: topic 1 starts again",
        "repeated documents with different scores or ranks (1):",
        "  run.txt:5: document d1 is already on line 1 (topic 1)",
    ]  # the ranks 4 and 5 go on where the first lines ended


def test_marks_and_comments_that_trec_eval_does_not_know(run_check):
    code, output = run_check("\ufeff# ir_metadata.start\n# platform:\n#\n" + FIT)
    assert code == 1 and "run.txt:1: byte order mark" in output and "run.txt:2: # platform:" in output
    assert "comment lines, which trec_eval does not accept (3):" in output and "number of columns (" not in output


def test_gzip_is_read(tmp_path, invoke):
    (tmp_path / "t.tsv").write_text("1\tone\n2\ttwo\n")
    (tmp_path / "run.gz").write_bytes(gzip.compress(FIT.encode()))
    assert invoke(check.main, tmp_path / "run.gz", "--topics", tmp_path / "t.tsv").exit_code == 0


MSMARCO = {
    "blanks": ("1 d1 1\n2\td1\t1\n", "run.txt:1: expected `qid<TAB>docid<TAB>rank`"),
    "TREC line": ("1\td1\t1\n2 Q0 d1 1 3 x\n", "run.txt:2: expected 3 columns, found 6"),
    "rank 0": ("1\td1\t0\n2\td1\t1\n", "run.txt:1: rank 0"),
    "no rank": ("1\td1\tx\n2\td1\t1\n", "run.txt:1: rank x"),
    "rank twice": ("1\td1\t1\n1\td2\t1\n2\td1\t1\n", "run.txt:2: topic 1: rank 1 is repeated"),
    "gap": ("1\td1\t1\n1\td2\t3\n2\td1\t1\n", "run.txt:2: topic 1: expected rank 2, found 3"),
    "document twice": ("1\td1\t1\n1\td1\t2\n2\td1\t1\n", "run.txt:2: document d1 is already on line 1"),
}


@pytest.mark.parametrize("name", MSMARCO)
def test_each_fault_of_an_msmarco_run(run_check, name):
    text, expected = MSMARCO[name]
    code, output = run_check(text, "--format", "msmarco")
    assert code == 1 and expected in output and "unfit for the MS MARCO" in output, output


def test_msmarco_lines_may_stand_in_any_order(run_check, tmp_path):
    assert run_check("1\td2\t2\n1\td1\t1\n2\td1\t1\n", "--format", "msmarco")[0] == 0
    code, output = run_check("1\td2\t7\n1\td1\t3\n2 d1 1\n", "--format", "msmarco", "--fix", tmp_path / "out.tsv")
    assert code == 0 and (tmp_path / "out.tsv").read_text() == "1\td1\t1\n1\td2\t2\n2\td1\t1\n"


def test_documents_that_do_not_exist(run_check, tmp_path):
    (tmp_path / "docs.tsv").write_text("d1\tone\nd2\ttwo\n")
    code, output = run_check(FIT, "--collection", tmp_path / "docs.tsv")
    assert code == 1 and output.splitlines()[:-1] == [
        "documents that are not in the collection (1):",
        "  run.txt:2: document d3",
    ]
    (tmp_path / "docs.tsv").write_text("d1\tone\nd2\ttwo\nd3\tthree\n")
    assert run_check(FIT, "--collection", tmp_path / "docs.tsv")[0] == 0


def test_judgements_are_notes_not_faults(run_check, tmp_path):
    (tmp_path / "qrels").write_text("1 0 d1 1\n1 0 d2 0\n2 0 d9 1\n7 0 d1 1\n")
    code, output = run_check(FIT, "--qrels", tmp_path / "qrels")
    assert code == 0 and "judged topics: 2 of 3 in the qrels\njudged documents among the first ten: 50.0%\n" in output
    (tmp_path / "qrels").write_text("1 0 x1 1\n")
    code, output = run_check(FIT, "--qrels", tmp_path / "qrels")
    assert code == 0 and "do ids, topics and qrels belong to one collection?" in output


def test_fix_mends_what_is_certain(run_check, tmp_path):
    text = """\
# a comment
2 0 a 1 1 my+tag
3 Q0 a 1 1 my+tag
1 Q0 b 7 2.0 my+tag
1 Q0 c 8 2.0 other
1 Q0 c 9 2.00 my+tag
1 Q0 a 9 9.25 my+tag
2 Q0 b 1 2 my+tag
1 Q0 d 1 1 my+tag
"""
    code, output = run_check(text, "--fix", tmp_path / "out.txt", "--max-hits", 3)
    assert code == 0, output
    assert (tmp_path / "out.txt").read_text() == (
        "2 Q0 b 1 2 my-tag\n2 Q0 a 2 1 my-tag\n1 Q0 a 1 9.25 my-tag\n1 Q0 c 2 2 my-tag\n1 Q0 b 3 2 my-tag\n"
    )
    assert json.loads((tmp_path / "out.json").read_text())["mended"]["apart"] == 2
    assert run_check((tmp_path / "out.txt").read_text(), "--max-hits", 3)[0] == 0
    code, output = run_check(text, "--fix", tmp_path / "out.txt")
    assert code == 2 and "--overwrite" in output


LINES = st.lists(
    st.tuples(st.sampled_from("12"), st.sampled_from([f"d{n}" for n in range(30)]), st.integers(0, 9), st.sampled_from([1.0, 2.0, 2.00000001, -3.5])),
    min_size=1, unique_by=lambda line: line[:2],
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(lines=LINES)
def test_a_mended_copy_is_fit_and_the_same_to_trec_eval(lines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.txt").write_text("".join(f"{q} Q0 {d} {rank} {score!r} x\n" for q, d, rank, score in lines))
    topics = {q for q, *_ in lines}
    report = submission.check(submission.CheckConfig(run=folder / "run.txt", topics="1, 2"), topics)
    submission.fix(report).write(folder / "out.txt")
    mended = submission.CheckConfig(run=folder / "out.txt", topics="1, 2")
    assert not submission.check(mended, topics).faults.total()
    qrels = {q: {f"d{n}": n % 3 for n in range(30)} for q in "12"}
    values = []
    for name in ("run.txt", "out.txt"):
        with open(folder / name) as file:
            run = pytrec_eval.parse_run(file)
        values.append(pytrec_eval.RelevanceEvaluator(qrels, {"map", "ndcg", "recip_rank", "P_5"}).evaluate(run))
    assert values[0] == values[1]
    if not report.faults.total():  # what is called fit stays as it is
        assert Run.read(folder / "run.txt")[lines[0][0]].doc_ids == [d for q, d, *_ in lines if q == lines[0][0]]
