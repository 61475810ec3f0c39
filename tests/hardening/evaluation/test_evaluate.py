"""evaluate against faulty runs, foreign topics, junk judgements and wrong arguments."""

import math

import pytest
import pytrec_eval

from pyserini_kd.data.runs import Run
from pyserini_kd.evaluation.engines import by_pytrec_eval, compare, evaluate
from pyserini_kd.storage.errors import InputError
from tests.evaluation.test_evaluate import QRELS, RUN, files, run_command


def test_wrong_engine_and_strangers():
    with pytest.raises(InputError, match="auto, trectools, fast"):
        evaluate(RUN, QRELS, ["AP"], "slow")
    with pytest.raises(InputError, match=r"share no query: 2 queries \(q1, unjudged\) against 1 queries \(other\)"):
        evaluate(RUN, {"other": {"a": 1}}, ["AP"])


def test_compare_at_the_edges():
    same = {"a": 0.5, "b": 0.25}
    assert compare(same, dict(same)) == (0.0, 1.0)
    difference, p_value = compare({"a": 0.5}, {"a": 0.25})
    assert difference == 0.25 and math.isnan(p_value)
    with pytest.raises(ValueError, match="same queries"):
        compare({"a": 0.5}, {"b": 0.5})


def test_queries_of_junk_alone_never_reach_pytrec_eval_which_would_crash(monkeypatch):
    seen = []
    evaluator = pytrec_eval.RelevanceEvaluator
    monkeypatch.setattr(
        pytrec_eval, "RelevanceEvaluator", lambda q, *args, **more: seen.append(q) or evaluator(q, *args, **more)
    )
    run = Run.from_scores("t", {"junk": {"a": 1.0}, "q": {"a": 1.0, "b": 0.5}})
    found = by_pytrec_eval(run, {"junk": {"a": -2}, "none": {"a": 0}, "q": {"a": -2, "b": 1}}, ["RR"])
    assert found == {"RR": {"junk": 0.0, "none": 0.0, "q": 0.5}} and seen == [{"q": {"a": -2, "b": 1}}]


def test_per_query_values_replace_no_run(files):
    (files / "one.csv").write_bytes((files / "one.txt").read_bytes())
    before = (files / "one.csv").read_bytes()
    result = run_command("one.csv", "--per-query", "one.csv", "--overwrite")
    assert result.exit_code == 2 and "--per-query one.csv is an input too" in result.stderr
    assert (files / "one.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["one.txt", "-m", "nDGC@10"], "did you mean nDCG@10?"),
        (["one.txt", "-m", "RBP(p=2)"], "p must lie between 0 and 1"),
        (["one.txt", "--preset", "dl18"], "'dl18' is not one of 'dl19', 'dl20', 'msmarco', 'beir'"),
        (["none.txt"], "run file not found: none.txt"),
        (["one.txt", "none.txt"], "run file not found: none.txt"),
        (["one.txt", "--baseline", "none.txt"], "run file not found: none.txt"),
        (["-m", "AP", "none.txt"], "(no run file has this name either)"),
        ([], "name at least one run file"),
        (["one.txt", "two.txt", "one.txt"], "run one.txt is named twice\n"),
        (["one.txt", "two.txt", "./one.txt"], "run ./one.txt is named twice (also as one.txt)"),
        (["-m", "AP", "one.txt", "--measures", "RR", "one.txt"], "run one.txt is named twice"),
        (["strange.txt"], "strange.txt: run s and the qrels share no query: 1 queries (zz) against 2 queries (q1, q2)"),
        (["one.txt", "second.txt"], "runs one.txt and second.txt share no judged query"),
        (["two.txt", "second.txt", "--baseline", "one.txt"], "runs one.txt and second.txt share no judged query"),
        (["faulty.txt"], "faulty.txt:1: expected"),
        (["empty.txt"], "run file is empty: empty.txt"),
        (["blank.txt"], "run file is empty: blank.txt"),
        (["one.txt", "--test", "t"], "--test: compares runs to a baseline; give --baseline"),
        (["one.txt", "--correction", "holm"], "--correction: compares runs to a baseline; give --baseline"),
        (["one.txt", "--per-query", "values.txt"], "--per-query: must end in .csv or .parquet, not 'values.txt'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(files, args, message):
    Run.from_scores("s", {"zz": {"a": 1.0}}).write("strange.txt")
    Run.from_scores("s", {"q2": {"a": 1.0}}).write("second.txt")
    (files / "faulty.txt").write_text("q1 Q0 a\n")
    (files / "empty.txt").write_text("")
    (files / "blank.txt").write_text("\n\n")
    before = sorted(files.iterdir())
    result = run_command(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr and "Traceback" not in result.stderr
    assert sorted(files.iterdir()) == before
