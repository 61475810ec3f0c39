"""Measures equal trec_eval's (through pytrec_eval) with both engines, on ties, gaps and grades; the mean is that of `-c`."""

import csv
import json
import math

import numpy as np
import pytest
import pytrec_eval
from click.testing import CliRunner

from pyserini_kd import data
from pyserini_kd.evaluate import Measure, compare, evaluate, main, mean, table
from pyserini_kd.files import InputError
from pyserini_kd.runs import Run

BOTH = pytest.mark.parametrize("engine", ["trectools", "fast"])


# ---------------------------------------------------------------------------------------------- against trec_eval

ORACLE = {"nDCG@10": "ndcg_cut_10", "nDCG": "ndcg", "P@10": "P_10", "R@5": "recall_5", "R@1000": "recall_1000"}
ORACLE |= {"AP": "map", "AP@3": "map_cut_3", "RR": "recip_rank"}


def trec_eval(run, qrels, level):
    """ir_measures' names -> query_id -> value; every judged query, missing ones 0. RR@10 is that of the run cut at 10."""
    families = {name.rsplit("_", 1)[0] + "." + name.rsplit("_", 1)[1] if name[-1].isdigit() else name for name in ORACLE.values()}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, families, relevance_level=level)
    as_dict = {q: dict(zip(hits.doc_ids, hits.scores.tolist(), strict=True)) for q, hits in run.items()}
    found = evaluator.evaluate(as_dict)
    values = {ours: {q: found.get(q, {}).get(theirs, 0.0) for q in qrels} for ours, theirs in ORACLE.items()}
    cut = {q: dict(sorted(docs.items(), key=lambda hit: (hit[1], hit[0]), reverse=True)[:10]) for q, docs in as_dict.items()}
    found = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}, relevance_level=level).evaluate(cut)
    values["RR@10"] = {q: found.get(q, {}).get("recip_rank", 0.0) for q in qrels}
    return values


def random_case(seed, n_queries=6):
    """A run full of ties, against grades from -1 to 3; some queries missing, some unjudged, some without relevant documents."""
    rng = np.random.default_rng(seed)
    docs = [str(i) if i % 3 else f"d{i:03}" for i in range(30)]
    scores, qrels = {}, {}
    for number in range(n_queries):
        query_id = f"{number:03}"
        depth = int(rng.integers(1, 30))
        if rng.random() < 0.85 or number == 0:
            values = rng.integers(0, 5, depth) / 2 if rng.random() < 0.7 else rng.normal(size=depth)
            scores[query_id] = dict(zip(rng.permutation(docs)[:depth].tolist(), values.tolist(), strict=True))
        if rng.random() < 0.85 or number == 0:
            top = int(rng.integers(0, 4))
            grades = rng.integers(-1, top + 1, depth) * (rng.random(depth) < 0.5)
            qrels[query_id] = dict(zip(rng.permutation(docs)[:depth].tolist(), map(int, grades), strict=True))
    return Run.from_scores("t", scores), qrels


@BOTH
@pytest.mark.parametrize("seed", range(10))
def test_500_random_queries_in_ten_runs_equal_trec_eval(seed, engine):
    run, qrels = random_case(seed, n_queries=50)
    for level in (1, 2):
        expected = trec_eval(run, qrels, level)
        names = {name: name for name in expected}
        if level == 2:
            names = {n: n.partition("@")[0] + "(rel=2)" + "".join(n.partition("@")[1:]) for n in expected if "nDCG" not in n}
        found = evaluate(run, qrels, list(names.values()), engine)
        for plain, name in names.items():
            assert list(found[name]) == list(qrels)
            assert found[name] == pytest.approx(expected[plain], abs=1e-6), name


def test_no_engine_depends_on_the_order_of_the_file(tmp_path):
    run, qrels = random_case(7)
    run.write(tmp_path / "run.txt")
    lines = (tmp_path / "run.txt").read_text().splitlines(keepends=True)
    (tmp_path / "run.txt").write_text("".join(np.random.default_rng(0).permutation(lines)))
    for engine in ("trectools", "fast"):
        shuffled = evaluate(Run.read(tmp_path / "run.txt"), qrels, ["nDCG@10", "AP"], engine)
        assert shuffled == evaluate(run, qrels, ["nDCG@10", "AP"], engine)


# ------------------------------------------------------------------------------------------------ worked by hand

RUN = Run.from_scores("t", {"q1": {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, "unjudged": {"a": 1.0}})
QRELS = {"q1": {"b": 1, "d": 3, "x": 2, "a": -2}, "missing": {"a": 1}}


@BOTH
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nDCG@10", (1 / math.log2(3) + 3 / math.log2(5)) / (3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4))),
        ("nDCG@2", (1 / math.log2(3)) / (3 / math.log2(2) + 2 / math.log2(3))),
        ("RR", 1 / 2),
        ("RR(rel=2)", 1 / 4),
        ("RR(rel=2)@3", 0),
        ("AP", (1 / 2 + 2 / 4) / 3),
        ("AP(rel=2)", (1 / 4) / 2),
        ("P@10", 2 / 10),
        ("P(rel=2)@4", 1 / 4),
        ("R@2", 1 / 3),
        ("R(rel=3)@1000", 1),
        ("R(rel=4)@1000", 0),
    ],
)
def test_values_by_hand(engine, name, value):
    found = evaluate(RUN, QRELS, [name], engine)[name]
    assert found == {"q1": pytest.approx(value, abs=1e-12), "missing": 0.0}
    assert mean(found) == pytest.approx(value / 2)


@BOTH
def test_measures_without_a_cut_look_deeper_than_1000(engine):
    run = Run.from_scores("t", {"q": {f"d{i}": -float(i) for i in range(1, 1501)}})
    found = evaluate(run, {"q": {"d1200": 1, "d1500": 1}}, ["RR", "AP", "RR@1000"], engine)
    assert found["RR"]["q"] == pytest.approx(1 / 1200)
    assert found["AP"]["q"] == pytest.approx((1 / 1200 + 2 / 1500) / 2)
    assert found["RR@1000"]["q"] == 0


@BOTH
def test_ids_such_as_007_and_na_are_strings(engine):
    run = Run.from_scores("t", {"007": {"NA": 2.0, "0010": 1.0}, "7": {"NA": 2.0}})
    assert evaluate(run, {"007": {"0010": 1}, "7": {"10": 1}}, ["RR"], engine)["RR"] == {"007": 0.5, "7": 0.0}


@BOTH
def test_nothing_relevant_and_nothing_found(engine):
    names = ["nDCG@10", "RR", "AP", "P@10", "R@10"]
    assert evaluate(RUN, {"q1": {"a": 0}}, names, engine) == {name: {"q1": 0.0} for name in names}
    empty = Run.from_hits("t", [("q1", [], [])])
    assert evaluate(empty, QRELS, names, engine) == {name: {"q1": 0.0, "missing": 0.0} for name in names}


def test_auto_leaves_large_runs_to_our_kernels(monkeypatch):
    from pyserini_kd import evaluate as module

    monkeypatch.setattr(module, "_by_trectools", lambda *_: {"engine": "trectools"})
    assert evaluate(RUN, QRELS, ["AP"]) == {"engine": "trectools"}
    monkeypatch.setattr(module, "TRECTOOLS_ROWS", 3)
    assert evaluate(RUN, QRELS, ["AP"])["AP"]["q1"] == pytest.approx(1 / 3)


# ------------------------------------------------------------------------------------------------ names of measures


def test_names():
    assert Measure.parse("AP(rel=2)") == Measure("AP", None, 2)
    assert Measure.parse("nDCG@10") == Measure("nDCG", 10, 1)
    assert Measure.parse("RR(rel=3)@10") == Measure("RR", 10, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nDGC@10", "did you mean nDCG@10?"),
        ("ndcg@20", "did you mean nDCG@20?"),
        ("ndcg_cut.10", "did you mean nDCG@10?"),
        ("ndcg_cut_5", "did you mean nDCG@5?"),
        ("recip_rank", "did you mean RR@10?"),
        ("MRR@10", "did you mean RR@10?"),
        ("map", "did you mean AP?"),
        ("recall.1000", "did you mean R@1000?"),
        ("P.30", "did you mean P@30?"),
        ("AP(rel=0)", "did you mean AP?"),
        ("RR@0", "did you mean RR@"),
        ("bpref", "measures are nDCG@10"),
        ("", "measures are nDCG@10"),
        ("P", "for example P@10"),
        ("R(rel=2)", "needs a cut-off"),
        ("nDCG(rel=2)@10", "takes no"),
    ],
)
def test_unknown_measures_are_refused_with_the_near_one(name, message):
    with pytest.raises(InputError) as error:
        Measure.parse(name)
    assert message in str(error.value)


def test_wrong_engine_and_strangers():
    with pytest.raises(InputError, match="auto, trectools, fast"):
        evaluate(RUN, QRELS, ["AP"], "slow")
    with pytest.raises(InputError, match=r"share no query: 2 queries \(q1, unjudged\) against 1 queries \(other\)"):
        evaluate(RUN, {"other": {"a": 1}}, ["AP"])


# ---------------------------------------------------------------------------------------------------- comparison


def test_compare_is_the_paired_t_test():
    ours, theirs = {"a": 0.3, "b": 0.9, "c": 0.5, "d": 0.0}, {"d": 0.1, "c": 0.1, "b": 0.5, "a": 0.1}
    differences = np.array([0.2, 0.4, 0.4, -0.1])
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(4))
    # Student's t with 3 degrees of freedom: F(t) = 1/2 + (x / (1 + x^2) + atan(x)) / pi, x = t / sqrt(3)
    x = t / math.sqrt(3)
    difference, p_value = compare(ours, theirs)
    assert difference == pytest.approx(0.225)
    assert p_value == pytest.approx(2 * (1 / 2 - (x / (1 + x * x) + math.atan(x)) / math.pi))


def test_compare_at_the_edges():
    same = {"a": 0.5, "b": 0.25}
    assert compare(same, dict(same)) == (0.0, 1.0)
    difference, p_value = compare({"a": 0.5}, {"a": 0.25})
    assert difference == 0.25 and math.isnan(p_value)
    with pytest.raises(ValueError, match="same queries"):
        compare({"a": 0.5}, {"b": 0.5})


def test_table_is_aligned():
    assert table(["run", "AP"], [["a", 0.5], ["long.name", 0.12345]]).splitlines() == [
        "run            AP",
        "a          0.5000",
        "long.name  0.1235",
    ]


# ------------------------------------------------------------------------------------------------------ real runs


@BOTH
@pytest.mark.parametrize(
    ("name", "ndcg"),
    [("bm25", 0.5058), ("bm25-rm3", 0.5216), ("distilbert-tas-b", 0.7210), ("openai-ada2", 0.7035), ("splade-pp-ed", 0.7308)],
)
def test_published_runs_of_dl19(shared_data, name, ndcg, engine):
    folder = shared_data / "msmarco-dl19"
    qrels = data.read_qrels(folder / "qrels.dl19.txt")
    run = Run.read(folder / "runs" / f"{name}.dl19.trec")
    found = evaluate(run, qrels, ["nDCG@10", "AP(rel=2)"], engine)
    assert round(mean(found["nDCG@10"]), 4) == ndcg
    assert found["AP(rel=2)"] == pytest.approx(trec_eval(run, qrels, 2)["AP"], abs=1e-6)


# -------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data.write_qrels({"q1": {"b": 1}, "q2": {"a": 1}}, "qrels.txt")
    Run.from_scores("one", {"q1": {"a": 2.0, "b": 1.0}}).write("one.txt")
    Run.from_scores("two", {"q1": {"b": 2.0, "a": 1.0}, "q2": {"b": 2.0, "a": 1.0}}).write("two.txt")
    return tmp_path


def run_command(*args):
    return CliRunner().invoke(main, ["--qrels", "qrels.txt", *args])


EXPECTED = "run          RR     P@1\none.txt  0.2500  0.0000\ntwo.txt  0.7500  0.5000\n"


@pytest.mark.parametrize(
    "args",
    [
        ["one.txt", "two.txt", "--measures", "RR", "P@1"],
        ["--measures", "RR", "P@1", "one.txt", "two.txt"],
        ["--measures", "RR,P@1", "one.txt", "two.txt"],
        ["one.txt", "-m", "RR", "-m", "P@1", "--engine", "fast", "two.txt"],
        ["-m", "RR P@1", "--", "one.txt", "two.txt"],
    ],
)
def test_measures_and_runs_may_come_in_any_order(files, args):
    result = run_command(*args)
    assert (result.exit_code, sorted(result.stdout.splitlines())) == (0, sorted(EXPECTED.splitlines()))


def test_baseline_per_query_and_default_measures(files):
    result = run_command("two.txt", "--baseline", "one.txt", "--per-query", "values.csv")
    header, first, second, blank, title, _, difference = result.stdout.splitlines()
    assert header.split() == ["run", "nDCG@10", "RR@10", "AP", "R@100", "R@1000"]
    assert first.startswith("one.txt") and second.startswith("two.txt") and blank == ""
    assert title == "Difference to one.txt (p-value of a paired t-test)"
    assert "+0.5000 (0.0000)" in difference
    rows = list(csv.DictReader((files / "values.csv").open()))
    assert [(row["run"], row["query_id"], float(row["RR@10"])) for row in rows] == [
        ("one.txt", "q1", 0.5),
        ("one.txt", "q2", 0.0),
        ("two.txt", "q1", 1.0),
        ("two.txt", "q2", 0.5),
    ]
    again = run_command("two.txt", "--per-query", "values.csv")
    assert again.exit_code == 2 and "--overwrite" in again.stderr


def test_json(files):
    result = run_command("two.txt", "--baseline", "one.txt", "-m", "R@10", "--format", "json")
    report = json.loads(result.stdout)
    assert report["one.txt"] == {"R@10": {"mean": 0.5}}
    assert report["two.txt"]["R@10"]["mean"] == 1.0
    assert report["two.txt"]["R@10"]["difference"] == 0.5
    assert report["two.txt"]["R@10"]["p_value"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["one.txt", "-m", "nDGC@10"], "did you mean nDCG@10?"),
        (["none.txt"], "run file not found: none.txt"),
        (["-m", "AP", "none.txt"], "nor is there a run file of that name"),
        ([], "Missing argument"),
        (["strange.txt"], "strange.txt: run s and the qrels share no query"),
        (["faulty.txt"], "faulty.txt:1: expected"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(files, args, message):
    Run.from_scores("s", {"zz": {"a": 1.0}}).write("strange.txt")
    (files / "faulty.txt").write_text("q1 Q0 a\n")
    result = run_command(*args)
    assert result.exit_code == 2
    assert message in result.stderr and "Traceback" not in result.stderr
