"""Measures equal trec_eval's (through pytrec_eval) with both engines, on ties, gaps and grades; the mean is that of `-c`."""

import csv
import json
import logging
import math

import numpy as np
import pyarrow.parquet
import pytest
import pytrec_eval
from click.testing import CliRunner
from scipy import stats

from pyserini_kd.data import formats
from pyserini_kd.data.runs import Run
from pyserini_kd.evaluate import main
from pyserini_kd.evaluation.engines import by_pytrec_eval, compare, disagreement, evaluate, mean
from pyserini_kd.evaluation.measures import DEFAULT_MEASURES, PRESETS
from pyserini_kd.evaluation.run_files import EvaluateConfig, evaluate_files
from pyserini_kd.evaluation.significance import Comparison
from pyserini_kd.evaluation.tables import Report, latex, markdown, table, write_per_query
from pyserini_kd.storage.errors import InputError

BOTH = pytest.mark.parametrize("engine", ["trectools", "fast"])


# ---------------------------------------------------------------------------------------------- against trec_eval

ORACLE = {"nDCG@10": "ndcg_cut_10", "nDCG": "ndcg", "P@10": "P_10", "R@5": "recall_5", "R@1000": "recall_1000"}
ORACLE |= {"AP": "map", "AP@3": "map_cut_3", "RR": "recip_rank"}
ORACLE |= {"Rprec": "Rprec", "Bpref": "bpref", "Success@1": "success_1", "Success@5": "success_5"}


def trec_eval(run, qrels, level):
    """ir_measures' names -> query_id -> value; every judged query, missing ones 0. RR@10 is that of the run cut at 10."""
    families = {
        name.rsplit("_", 1)[0] + "." + name.rsplit("_", 1)[1] if name[-1].isdigit() else name for name in ORACLE.values()
    }
    useful = {
        q: docs for q, docs in qrels.items() if any(rel > 0 for rel in docs.values())
    }  # it crashes where all are negative
    evaluator = pytrec_eval.RelevanceEvaluator(useful, families, relevance_level=level)
    as_dict = {q: dict(zip(hits.doc_ids, hits.scores.tolist(), strict=True)) for q, hits in run.items()}
    found = evaluator.evaluate(as_dict)
    values = {ours: {q: found.get(q, {}).get(theirs, 0.0) for q in qrels} for ours, theirs in ORACLE.items()}
    cut = {q: dict(sorted(docs.items(), key=lambda hit: (hit[1], hit[0]), reverse=True)[:10]) for q, docs in as_dict.items()}
    found = pytrec_eval.RelevanceEvaluator(useful, {"recip_rank"}, relevance_level=level).evaluate(cut)
    values["RR@10"] = {q: found.get(q, {}).get("recip_rank", 0.0) for q in qrels}
    return values


def random_case(seed, n_queries=6):
    """A run full of ties, against grades from -2 to 3; some queries missing, some unjudged, some without relevant documents."""
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
            grades = rng.integers(-2, top + 1, depth) * (rng.random(depth) < 0.5)
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
        ("Rprec", 1 / 3),  # three are relevant; of a, b, c one is
        ("Rprec(rel=3)", 0),
        ("RBP", 0.2 * (0.8 + 0.8**3)),
        ("RBP(p=0.5)@2", 0.5 * 0.5),
        ("RBP(p=0.5,rel=2)", 0.5 * 0.5**3),
        ("RBP(rel=4)", 0),
        ("Judged@3", 2 / 3),  # a and b, however bad; c is not
        ("Judged@10", 3 / 4),  # of the four there are
        ("Success@1", 0),
        ("Success@2", 1),
        ("Success(rel=2)@3", 0),
        ("Success(rel=2)@4", 1),
    ],
)
def test_values_by_hand(engine, name, value):
    found = evaluate(RUN, QRELS, [name], engine)[name]
    assert found == {"q1": pytest.approx(value, abs=1e-12), "missing": 0.0}
    assert mean(found) == pytest.approx(value / 2)


@BOTH
def test_bpref_by_hand(engine):
    run = Run.from_scores("t", {"q": {d: -float(i) for i, d in enumerate(["n1", "r1", "?", "n2", "n3", "r2", "r3"])}})
    judged = {"r1": 2, "r2": 1, "r3": 2, "r4": 1, "n1": 0, "n2": 0, "n3": 0, "n4": 0, "n5": 0, "spam": -2}
    # four are relevant: r1 has 1 of the first 4 irrelevant ones above it, r2 and r3 have 3; r4 is not found
    found = evaluate(run, {"q": judged}, ["Bpref", "Bpref(rel=2)"], engine)
    assert found["Bpref"]["q"] == pytest.approx(((1 - 1 / 4) + 2 * (1 - 3 / 4)) / 4)
    # two are relevant from 2 on: r2 is irrelevant then, so r3 has four above it, of which two count
    assert found["Bpref(rel=2)"]["q"] == pytest.approx(((1 - 1 / 2) + (1 - 2 / 2)) / 2)


@BOTH
def test_bpref_of_positives_only_is_the_share_found(engine):
    run = Run.from_scores("t", {"q": {"x": 3.0, "a": 2.0, "y": 1.0}})
    assert evaluate(run, {"q": {"a": 1, "b": 1}}, ["Bpref"], engine)["Bpref"]["q"] == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_both_engines_are_equal_where_trec_eval_has_no_measure(seed):
    run, qrels = random_case(seed, n_queries=40)
    names = ["RBP", "RBP(p=0.95)@7", "RBP(rel=2,p=0.5)", "Judged@10"]
    ours, theirs = (evaluate(run, qrels, names, engine) for engine in ("fast", "trectools"))
    assert list(ours) == list(theirs) == names
    for name in names:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-12)
    for query_id, docs in qrels.items():
        top = run[query_id].doc_ids[:10] if query_id in run else []
        assert ours["Judged@10"][query_id] == (len(set(top) & set(docs)) / len(top) if top else 0)


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
    names = ["nDCG@10", "RR", "AP", "P@10", "R@10", "Rprec", "Bpref", "RBP", "Success@5"]
    assert evaluate(RUN, {"q1": {"a": 0}}, names, engine) == {name: {"q1": 0.0} for name in names}
    empty = Run.from_hits("t", [("q1", [], [])])
    assert evaluate(empty, QRELS, names, engine) == {name: {"q1": 0.0, "missing": 0.0} for name in names}


def test_auto_leaves_large_runs_to_our_kernels(monkeypatch):
    from pyserini_kd.evaluation import engines

    monkeypatch.setattr(engines, "_by_trectools", lambda *_: {"engine": "trectools"})
    assert evaluate(RUN, QRELS, ["AP"]) == {"engine": "trectools"}
    monkeypatch.setattr(engines, "TRECTOOLS_ROWS", 3)
    assert evaluate(RUN, QRELS, ["AP"])["AP"]["q1"] == pytest.approx(1 / 3)


# ---------------------------------------------------------------------------------------------------- comparison


def test_compare_is_the_paired_t_test():
    ours, theirs = {"a": 0.3, "b": 0.9, "c": 0.5, "d": 0.0}, {"d": 0.1, "c": 0.1, "b": 0.5, "a": 0.1}
    difference, p_value = compare(ours, theirs)
    assert difference == pytest.approx(0.225)
    assert p_value == pytest.approx(stats.ttest_rel([0.3, 0.9, 0.5, 0.0], [0.1, 0.5, 0.1, 0.1]).pvalue)


def test_table_is_aligned():
    assert table(["run", "AP"], [["a", 0.5], ["long.name", 0.12345]]).splitlines() == [
        "run            AP",
        "a          0.5000",
        "long.name  0.1235",
    ]


def test_markdown_and_latex():
    assert markdown(["run", "AP"], [["a|b", 0.5]]).splitlines() == ["| run | AP |", "|:--|--:|", "| a|b | 0.5000 |"]
    assert latex(["run", "AP"], [["a", 0.5], ["b", "x"]]).splitlines() == [
        r"\begin{tabular}{lr}",
        r"  \toprule",
        r"  run & AP \\",
        r"  \midrule",
        r"  a & 0.5000 \\",
        r"  b & x \\",
        r"  \bottomrule",
        r"\end{tabular}",
    ]


def report(correction="holm", corrected=0.04):
    """Two runs over two queries; the comparison is made up."""
    results = {"x/a_1": {"AP": {"q1": 0.5, "q2": 0.25}}, "x/b|2": {"AP": {"q1": 1.0, "q2": 0.5}}}
    found = Comparison(0.375, 0.25, 0.5, 0.00001, corrected, math.inf, 2, 0, 0, 3, 4)
    settings = {"test": "t", "correction": correction, "samples": 10, "seed": 1}
    return Report(results, "x/a_1", {"x/b|2": {"AP": found}}, settings)


def test_a_report_for_readers(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pyserini-kd", "evaluate", "a -->\nb"])  # neither may end the comment
    title = "paired t-test over 2 queries, Holm's correction for all 1 comparisons (* p < 0.05); d = Cohen's d; W/T/L = wins/ties/losses; "
    title += "zeros = queries with value 0 in the run/in the baseline"
    assert report().readable("table").splitlines() == [
        "run       AP",
        "a_1  0.3750",
        "b|2  0.7500*",
        "",
        f"Difference to a_1: {title}",
        "run  measure  difference        95% interval        p  p corrected     d  W/T/L  zeros",
        "b|2       AP     +0.3750  [+0.2500, +0.5000]  <0.0001       0.0400  +inf  2/0/0    3/4",
    ]
    markdown_lines = report().readable("markdown").splitlines()
    assert markdown_lines[0] == "<!-- pyserini-kd evaluate 'a -- > b' -->"
    assert markdown_lines[1:5] == ["| run | AP |", "|:--|--:|", "| a_1 | 0.3750 |", r"| b\|2 | **0.7500**\* |"]
    assert markdown_lines[-1] == r"| b\|2 | AP | +0.3750 | [+0.2500, +0.5000] | <0.0001 | 0.0400 | +inf | 2/0/0 | 3/4 |"
    latex_lines = report().readable("latex").splitlines()
    assert latex_lines[:2] == ["% pyserini-kd evaluate 'a -- > b'", r"\begin{tabular}{lr}"]
    assert r"  a\_1 & 0.3750 \\" in latex_lines and r"  b|2 & \textbf{0.7500}$^{*}$ \\" in latex_lines
    assert f"% Difference to a_1: {title}" in latex_lines
    assert r"  run & measure & difference & 95\% interval & p & p corrected & d & W/T/L & zeros \\" in latex_lines
    assert latex_lines[-3] == r"  b|2 & AP & +0.3750 & [+0.2500, +0.5000] & $<$0.0001 & 0.0400 & +inf & 2/0/0 & 3/4 \\"


def test_only_what_is_significant_after_correction_is_marked():
    assert "0.7500*" in report(corrected=0.0499).readable("table")
    assert "0.7500*" not in report(corrected=0.05).readable("table")


def test_a_report_without_correction_has_one_p():
    text = report("none").readable("table")
    assert "not corrected" in text and "p corrected" not in text


def test_a_report_for_machines():
    assert list(csv.DictReader(report().as_csv().splitlines()))[1] == {
        "run": "x/b|2", "measure": "AP", "mean": "0.75", "zeros": "3", "difference": "0.375", "low": "0.25", "high": "0.5", "p_value": "1e-05",
        "corrected": "0.04", "effect_size": "", "wins": "2", "ties": "0", "losses": "0", "baseline_zeros": "4",
    }  # fmt: skip
    found = json.loads(report().as_json())
    assert {key: found[key] for key in ("queries", "baseline", "test", "correction", "seed")} == {
        "queries": 2, "baseline": "x/a_1", "test": "t", "correction": "holm", "seed": 1,
    }  # fmt: skip
    assert found["runs"]["x/a_1"] == {"AP": {"mean": 0.375, "zeros": 0}}
    assert found["runs"]["x/b|2"]["AP"]["p_value"] == 1e-5 and found["runs"]["x/b|2"]["AP"]["effect_size"] is None
    assert Report(report().results, None, {}, {}).as_csv() == "run,measure,mean,zeros\nx/a_1,AP,0.375,0\nx/b|2,AP,0.75,0"


def test_a_report_with_latency():
    with_ms = Report(report().results, None, {}, {}, {"x/a_1": 2.04, "x/b|2": None})
    assert with_ms.readable("table").splitlines() == ["run      AP  ms/query", "a_1  0.3750       2.0", "b|2  0.7500         -"]
    assert with_ms.readable("latex").splitlines()[4:6] == [r"  \midrule", r"  a\_1 & 0.3750 & 2.0 \\"]
    assert with_ms.records()["x/b|2"]["ms/query"] == {"mean": None} and with_ms.records()["x/a_1"]["ms/query"] == {"mean": 2.04}


# ---------------------------------------------------------------------------------------------------- cross-check


@pytest.mark.parametrize("seed", range(3))
def test_pytrec_eval_agrees_on_all_that_it_knows(seed):
    run, qrels = random_case(seed, n_queries=40)
    names = [
        *DEFAULT_MEASURES,
        *PRESETS["dl19"].measures,
        "RR",
        "P@7",
        "Rprec",
        "Rprec(rel=2)",
        "Bpref",
        "Success(rel=2)@3",
        "RBP",
    ]
    ours = evaluate(run, qrels, names, "fast")
    theirs = by_pytrec_eval(run, qrels, names)
    assert [name for name in ours if name not in theirs] == ["RBP"]
    assert disagreement(ours, theirs) is None


def test_a_disagreement_names_the_worst_case():
    ours = {"AP": {"q1": 0.5, "q2": 0.3}, "RR": {"q1": 1.0, "q2": 0.0}, "RBP": {"q1": 0.0, "q2": 0.0}}
    theirs = {"AP": {"q1": 0.5 + 9e-7, "q2": 0.3}, "RR": {"q1": 0.5, "q2": 2e-6}}
    assert disagreement(ours, theirs) == (
        "2 values differ by more than 1e-06; the worst is RR of query q1: 1.0000000 here, 0.5000000 by pytrec_eval"
    )
    assert disagreement(ours, {"AP": {"q1": 0.5 + 9e-7, "q2": 0.3}}) is None
    assert "AP of query q1" in disagreement(ours, {"AP": {"q1": math.nan, "q2": 0.3}})


# ------------------------------------------------------------------------------------------------------ real runs


@BOTH
@pytest.mark.parametrize(
    ("name", "ndcg"),
    [("bm25", 0.5058), ("bm25-rm3", 0.5216), ("distilbert-tas-b", 0.7210), ("openai-ada2", 0.7035), ("splade-pp-ed", 0.7308)],
)
def test_published_runs_of_dl19(shared_data, name, ndcg, engine):
    folder = shared_data / "msmarco-dl19"
    qrels = formats.read_qrels(folder / "qrels.dl19.txt")
    run = Run.read(folder / "runs" / f"{name}.dl19.trec")
    found = evaluate(run, qrels, ["nDCG@10", "AP(rel=2)"], engine)
    assert round(mean(found["nDCG@10"]), 4) == ndcg
    assert found["AP(rel=2)"] == pytest.approx(trec_eval(run, qrels, 2)["AP"], abs=1e-6)


# -------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    formats.write_qrels({"q1": {"b": 1}, "q2": {"a": 1}}, "qrels.txt")
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


def test_programs_evaluate_files_too(files):
    config = EvaluateConfig(runs=("one.txt", "two.txt"), qrels="qrels.txt", measures=("RR",), baseline="one.txt")
    report = evaluate_files(config)
    assert report.results["two.txt"]["RR"] == {"q1": 1.0, "q2": 0.5} and report.comparisons["two.txt"]["RR"].wins == 2
    with pytest.raises(InputError, match="compares runs to a baseline"):
        EvaluateConfig(runs=("one.txt",), qrels="qrels.txt", test="wilcoxon")


def test_default_measures_and_per_query_csv(files):
    result = run_command("one.txt", "two.txt", "--per-query", "values.csv")
    header, first, second = result.stdout.splitlines()
    assert header.split() == ["run", "nDCG@10", "RR@10", "AP", "R@100", "R@1000"]
    assert first.startswith("one.txt") and second.startswith("two.txt")
    rows = list(csv.DictReader((files / "values.csv").open()))
    assert [(row["run"], row["query_id"], float(row["RR@10"])) for row in rows] == [
        ("one.txt", "q1", 0.5),
        ("one.txt", "q2", 0.0),
        ("two.txt", "q1", 1.0),
        ("two.txt", "q2", 0.5),
    ]
    again = run_command("two.txt", "--per-query", "values.csv")
    assert again.exit_code == 2 and "--overwrite" in again.stderr


def test_per_query_parquet_holds_the_same(files):
    for name in ("values.csv", "values.parquet", "again.parquet"):
        assert run_command("one.txt", "two.txt", "-m", "RR", "P@1", "--per-query", name).exit_code == 0
    rows = pyarrow.parquet.read_table(files / "values.parquet").to_pylist()
    assert rows[0] == {"run": "one.txt", "query_id": "q1", "RR": 0.5, "P@1": 0.0} and len(rows) == 4
    assert [{k: str(v) for k, v in row.items()} for row in rows] == list(csv.DictReader((files / "values.csv").open()))
    assert (files / "values.parquet").read_bytes() == (files / "again.parquet").read_bytes()
    with pytest.raises(InputError, match="must end in .csv or .parquet, not 'values.xlsx'"):
        write_per_query("values.xlsx", {})


def test_per_query_values_have_a_record_of_their_own(files):
    (files / "two.json").write_text("the record of the run two.txt")
    words = ("two.txt", "--baseline", "one.txt", "-m", "RR", "--per-query", "two.csv")
    assert run_command(*words).exit_code == 0
    record = json.loads((files / "two.csv.json").read_text())
    assert record["config"]["runs"] == ["one.txt", "two.txt"] and record["config"]["test"] == "t"
    assert record["results"]["two.txt"]["RR"]["wins"] == 2 and record["engines"] == {
        "one.txt": "trectools",
        "two.txt": "trectools",
    }
    assert set(record["sha256"]) == {"two.csv", "one.txt", "two.txt", "qrels.txt"} and record["hardware"] and record["versions"]
    assert record["measure_seconds"] > 0 and record["compare_seconds"] > 0 and record["command"]
    assert (files / "two.json").read_text() == "the record of the run two.txt"
    (files / "two.csv").unlink()
    result = run_command(*words)
    assert result.exit_code == 2 and "two.csv.json exists; set --overwrite" in result.stderr
    assert run_command(*words, "--overwrite").exit_code == 0


def test_latency(files, caplog):
    (files / "two.json").write_text('{"seconds": 3, "open_seconds": 2, "dense_seconds": 0.5}')  # two queries
    result = run_command("one.txt", "two.txt", "-m", "RR", "--latency")
    assert result.stdout.splitlines() == ["run          RR  ms/query", "one.txt  0.2500         -", "two.txt  0.7500     250.0"]
    assert "one.txt: time unknown: no record one.json" in caplog.messages
    found = run_command("one.txt", "two.txt", "-m", "RR", "--latency", "--format", "csv").stdout.splitlines()
    assert found[2] == "one.txt,ms/query,," and found[4] == "two.txt,ms/query,250.0,"


def test_presets_and_more_measures(files):
    result = run_command("one.txt", "--preset", "dl19", "-m", "Judged@10", "nDCG@10")
    assert result.stdout.split()[:7] == ["run", *PRESETS["dl19"].measures, "Judged@10"]


def test_measures_with_parameters_may_hold_commas_and_blanks(files):
    result = run_command("one.txt", "-m", "RBP(p=0.5, rel=1)@10,RR", "RBP(rel=1,p=0.8)")
    assert result.stdout.split()[:4] == ["run", "RBP(p=0.5,rel=1)@10", "RR", "RBP(rel=1,p=0.8)"]


def test_baseline(files):
    result = run_command("two.txt", "--baseline", "one.txt", "-m", "RR", "--correction", "none")
    *means, blank, title, header, difference = result.stdout.splitlines()
    assert [line.split()[0] for line in means] == ["run", "one.txt", "two.txt"] and blank == ""
    assert title.startswith("Difference to one.txt: paired t-test over 2 queries, not corrected")
    assert header.split() == ["run", "measure", "difference", "95%", "interval", "p", "d", "W/T/L", "zeros"]
    assert difference.split() == ["two.txt", "RR", "+0.5000", "[+0.5000,", "+0.5000]", "<0.0001", "+inf", "2/0/0", "0/1"]


def test_a_pattern_of_runs_may_hold_the_baseline(files):
    plain = run_command("two.txt", "--baseline", "one.txt")
    assert plain.exit_code == 0 and run_command("./one.txt", "two.txt", "--baseline", "one.txt").stdout == plain.stdout


@pytest.mark.parametrize("test", ["t", "wilcoxon", "randomisation"])
@pytest.mark.parametrize("correction", ["holm", "bonferroni", "none"])
def test_json(files, test, correction):
    flags = [
        "-m",
        "R@10",
        "AP",
        "--format",
        "json",
        "--test",
        test,
        "--correction",
        correction,
        "--seed",
        "7",
        "--samples",
        "100",
    ]
    result = run_command("two.txt", "--baseline", "one.txt", *flags)
    assert result.stdout == run_command("two.txt", "--baseline", "one.txt", *flags).stdout
    found = json.loads(result.stdout)
    assert (found["test"], found["correction"], found["seed"], found["samples"]) == (test, correction, 7, 100)
    assert found["runs"]["one.txt"]["R@10"] == {"mean": 0.5, "zeros": 1}
    two = found["runs"]["two.txt"]
    assert (two["R@10"]["mean"], two["R@10"]["difference"], two["R@10"]["wins"], two["R@10"]["ties"]) == (1.0, 0.5, 1, 1)
    p_values = {name: two[name]["p_value"] for name in ("R@10", "AP")}
    assert p_values["R@10"] == pytest.approx({"t": 0.5, "randomisation": 1.0, "wilcoxon": 1.0}[test])
    expected = {"none": p_values["R@10"], "bonferroni": min(2 * p_values["R@10"], 1), "holm": p_values["R@10"]}
    assert two["R@10"]["corrected"] == pytest.approx(expected[correction])


def test_cross_check(files, monkeypatch, caplog):
    plain = run_command("two.txt", "-m", "RR", "RBP")
    with caplog.at_level(logging.INFO):
        checked = run_command("two.txt", "-m", "RR", "RBP", "--cross-check")
    assert (checked.exit_code, checked.stdout) == (0, plain.stdout)
    assert "two.txt: RR equal pytrec_eval's values; it does not support RBP" in caplog.text
    from pyserini_kd.evaluation import measures

    wrong = measures.KINDS["RR"]._replace(kernel=lambda topic, measure: 1 / (topic.found[0][0] + 1))
    monkeypatch.setitem(measures.KINDS, "RR", wrong)
    failed = run_command("two.txt", "-m", "RR", "--cross-check", "--engine", "fast")
    assert failed.exit_code == 1 and failed.stdout == ""
    assert failed.stderr == (
        "Error: two.txt: 2 values differ by more than 1e-06; "
        "the worst is RR of query q1: 0.5000000 here, 1.0000000 by pytrec_eval\n"
    )


def test_caveats_are_said(files, caplog):
    result = run_command("one.txt", "two.txt", "--preset", "dl19")
    assert result.exit_code == 0
    assert caplog.messages == [
        "qrels.txt: the judgements do not fit preset dl19 with grades 0 to 3: the highest grade is 1",
        "qrels.txt: no judgement reaches the level of RR(rel=2)@10, AP(rel=2), R(rel=2)@100, R(rel=2)@1000: the highest grade is 1",
        "one.txt: lacks 1 of 2 judged queries, e.g. q2; they count as 0",
        "no run has more than 2 hits per query, but nDCG@10, RR(rel=2)@10, R(rel=2)@100, R(rel=2)@1000 would use more",
    ]
