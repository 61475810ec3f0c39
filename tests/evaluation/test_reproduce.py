"""reproduce: rows are checked, run, judged and skipped as the matrix says; run records hold what a reader needs."""

import csv
import hashlib
import importlib
import json
import re
from pathlib import Path

import pytest
import yaml

from pyserini_kd import fuse, reproduce
from pyserini_kd.data.runs import Run
from pyserini_kd.evaluation import experiments, tables
from pyserini_kd.storage import environment, records

FUSED = "pyserini-kd fuse --runs {home}/a.txt {home}/b.txt --output {directory}/run.fused.txt --overwrite"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two runs and qrels under PYSERINI_KD_HOME; RRF puts d1 first, then d3 and d2 (equal: ids descending)."""
    home = tmp_path / "my home"
    home.mkdir()
    monkeypatch.setenv("PYSERINI_KD_HOME", str(home))
    Run.from_scores("a", {"q": {"d1": 2.0, "d2": 1.0}}).write(home / "a.txt")
    Run.from_scores("b", {"q": {"d1": 2.0, "d3": 1.0}}).write(home / "b.txt")
    Run.from_scores("ab", {"q": {"d1": 2.0, "d3": 1.0, "d2": 1.0}}).write(home / "ab.txt")
    (home / "qrels").write_text("q 0 d2 1\nq 0 d4 1\n")
    return home


@pytest.fixture
def row():
    return {
        "name": "fused", "about": "two runs, fused", "commands": [FUSED], "run": "{directory}/run.fused.txt", "qrels": "{home}/qrels",
        "expected": {"RR@10": 0.3333, "R@10": 0.5}, "source": "by hand",
    }  # fmt: skip


@pytest.fixture
def made(row):
    """The row without its command: the run is there."""
    return row | {"commands": [], "run": "{home}/ab.txt"}


@pytest.fixture
def run_matrix(place, invoke):
    def run(rows, *words):
        (place / "matrix.yaml").write_text(yaml.safe_dump({"conditions": rows}, sort_keys=False))
        return invoke(reproduce.main, "--matrix", place / "matrix.yaml", *words)

    return run


def table(output):
    """{(condition, measure): [expected, got, verdict]} of what was printed."""
    rows = (line.split() for line in output.splitlines())
    return {(row[0], row[1]): row[2:] for row in rows if len(row) == 5 and row[0] != "condition"}


def test_commands_are_run_and_measures_judged(run_matrix, row, place):
    second = row | {
        "name": "again",
        "commands": [],
        "expected": {"RR@10": 0.4, "R@10": 0.52, "AP": 1 / 6, "P@10": None},
        "tolerance": 0.01,
    }
    result = run_matrix([row, second], "--all")
    assert result.exit_code == 1, result.output
    assert table(result.output) == {
        ("fused", "RR@10"): ["0.3333", "0.3333", "OK"],
        ("fused", "R@10"): ["0.5000", "0.5000", "OK"],
        ("again", "RR@10"): ["0.4000", "0.3333", "FAIL"],  # .067 away, the tolerance is .01
        ("again", "R@10"): ["0.5200", "0.5000", "off"],
        ("again", "AP"): ["0.1667", "0.1667", "OK"],  # found at rank 3, one of two relevant
        ("again", "P@10"): ["-", "0.1000", "new"],
    }
    assert result.output.endswith("3 OK, 1 off, 1 FAIL, 1 new\n")
    folder = place / "runs" / "reproduce"
    assert Run.read(folder / "run.fused.txt")["q"].doc_ids == ["d1", "d3", "d2"]
    record = json.loads((folder / "reproduce.json").read_text())
    assert [outcome["verdict"] for outcome in record["outcomes"]] == ["OK", "OK", "FAIL", "off", "OK", "new"]
    assert set(record["seconds"]) == {"fused", "again"} and "numpy" in record["versions"]


@pytest.mark.parametrize(
    ("got", "judged"),
    [(0.51, "OK"), (0.49, "OK"), (0.5101, "off"), (0.55, "off"), (0.45, "off"), (0.5501, "FAIL"), (0.4, "FAIL")],
)
def test_verdicts_round_a_half(got, judged):
    assert experiments.verdict(got, 0.5, 0.01) == judged and experiments.verdict(got, None, 0.01) == "new"


def test_off_and_new_are_no_failures(run_matrix, made):
    result = run_matrix([made | {"expected": {"R@10": 0.52, "P@10": None}, "tolerance": 0.01}], "--all")
    assert result.exit_code == 0 and result.output.endswith("1 off, 1 new\n")


def test_what_is_not_there_is_skipped_and_said(run_matrix, made, place, tmp_path):
    needs = {"hub": "network: HF_HUB_OFFLINE is set", "{home}/models/student": f"{place}/models/student", "numpy==0.1": "numpy==0.1, found",
             "nobody==1": "nobody==1, found none", "{data}/cacm": "a folder of data with cacm"}  # fmt: skip
    rows = [made | {"name": f"row{n}", "needs": [need]} for n, need in enumerate(needs)]
    result = run_matrix(rows, "--all")
    assert result.exit_code == 0 and result.output.endswith("\n10 skipped\n")
    for n, why in enumerate(needs.values()):
        assert f"skipped, needs {why}" in result.output and f"  row{n}\n" in result.output
    assert not list((place / "runs" / "reproduce").glob("run*"))
    (tmp_path / "cacm").mkdir()
    assert run_matrix(rows[-1:], "--all", "--data", tmp_path).output.endswith("\n2 OK\n")
    assert "cacm" in run_matrix(rows[-1:], "--all", "--data", place).output


def test_a_dry_run_prints_commands_that_a_shell_takes_and_runs_nothing(run_matrix, row, place):
    result = run_matrix([row], "--all", "--dry-run", "--directory", place / "out")
    assert result.exit_code == 0 and not (place / "out").exists()
    assert f"fuse --runs '{place}/a.txt' '{place}/b.txt' --output '{place}/out/run.fused.txt' --overwrite\n" in result.output
    assert f"pyserini-kd evaluate '{place}/out/run.fused.txt' --qrels '{place}/qrels' --measures RR@10 R@10\n" in result.output


def test_one_condition_and_markdown(run_matrix, made):
    result = run_matrix([made, made | {"name": "other"}], "--condition", "fused", "--format", "markdown")
    assert result.exit_code == 0 and "other" not in result.output
    assert re.search(
        r"\| *fused *\| *two runs, fused *\| *RR@10 *\| *0\.3333 *\| *by hand *\| *0\.3333 *\| *OK *\|", result.output
    )
    result = run_matrix([made], "--list", "--format", "markdown")
    assert re.search(r"\| *fused *\| *two runs, fused *\| *R@10 *\| *0\.5000 *\| *0\.0001 *\| *by hand *\|", result.output)
    assert "RR@10 0.3333, R@10 0.5000 (+-0.0001; by hand)" in run_matrix([made], "--list").output


def test_lists_may_be_empty_or_hold_lists(place, row):
    rows = [row | {"commands": None, "needs": [["numpy==1", ["{home}/a"]], "hub"]}]
    (place / "matrix.yaml").write_text(yaml.safe_dump({"conditions": rows}))
    (found,) = experiments.read_matrix(place / "matrix.yaml")
    assert found.commands == () and found.needs == ("numpy==1", "{home}/a", "hub")


# ----------------------------------------------------------------------------------------------- our own matrix


def test_our_matrix_names_what_the_docs_promise():
    rows = {row.name: row for row in experiments.read_matrix(experiments.MATRIX)}
    expected = {name: next(iter(row.expected.values())) for name, row in rows.items()}
    assert (
        expected["bm25-cacm"] == 0.3123 and rows["bm25-cacm"].expected["P@30"] == 0.1942 and expected["bm25-scifact"] == 0.6789
    )
    demo = {"bm25-pydocs": 0.4237, "demo-student": 0.5038, "demo-hybrid": 0.5488, "demo-reranked": 0.5522}
    assert demo.items() <= expected.items() and "msmarco-train-margin-mse" in rows
    for system in ("bm25", "margin-mse", "hybrid"):
        assert {f"msmarco-{system}-{topics}" for topics in ("dev", "dl19", "dl20")} < rows.keys()
    assert all("hub" in row.needs for name, row in rows.items() if name.startswith("msmarco"))


def test_the_docs_table_is_of_this_matrix():
    path = Path(__file__).parents[2] / "experiments" / "reproduce" / "conditions.csv"
    with open(path, newline="", encoding="utf-8") as file:
        shown = [line[:5] for line in csv.reader(file)][1:]
    rows = experiments.read_matrix(experiments.MATRIX)
    assert shown == [[r.name, r.about, m, tables.number(v), r.source] for r in rows for m, v in r.expected.items()]


def test_our_commands_have_the_flags_that_they_use():
    for row in experiments.read_matrix(experiments.MATRIX):
        for words in map(experiments.words, row.commands):
            if words[0] == "pyserini-kd":
                command = importlib.import_module(f"pyserini_kd.{words[1]}").main
                known = {flag for parameter in command.params for flag in parameter.opts}
                assert {word for word in words if word.startswith("--")} <= known, words
        assert row.run.startswith("{data}") or f"--output {row.run}" in row.commands[-1]


def test_pydocs_figures_are_for_the_pinned_versions():
    pinned = set((Path(__file__).parents[2] / "constraints.txt").read_text().split())
    needs = next(row.needs for row in experiments.read_matrix(experiments.MATRIX) if row.name == "bm25-pydocs")
    assert len(needs) == 6 and set(needs) <= pinned


def test_published_runs_of_dl19(shared_data, tmp_path, invoke):
    names = [row.name for row in experiments.read_matrix(experiments.MATRIX) if row.name.startswith("dl19-")]
    words = [word for name in names for word in ("--condition", name)]
    result = invoke(reproduce.main, *words, "--data", shared_data, "--directory", tmp_path)
    assert result.exit_code == 0 and result.output.endswith("\n5 OK\n"), result.output


# -------------------------------------------------------------------------------------------------- run records


def test_the_record_beside_a_run(place, invoke):
    result = invoke(fuse.main, "--runs", place / "a.txt", place / "b.txt", "--output", place / "out.txt")
    assert result.exit_code == 0, result.output
    record = json.loads((place / "out.json").read_text())
    paths = [str(place / name) for name in ("out.txt", "a.txt", "b.txt")]
    assert record["sha256"] == {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}
    assert {"command", "seconds", "versions"} <= record.keys() and record["hardware"]["cpus"] >= 1
    assert record["hardware"]["memory_gib"] > 0 and "cpu" in record["hardware"]


def test_checksums_of_index_folders_and_huge_files(tmp_path, monkeypatch):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "manifest.json").write_text("{}")
    for name, size in (("run.txt", 3), ("huge", 100)):
        (tmp_path / name).write_text("x" * size)
    monkeypatch.setattr(records, "HUGE", 50)
    config = {"index": tmp_path / "index", "qrels": str(tmp_path / "huge"), "query": "x" * 5000, "k": 3, "none": None}
    records.write_record(tmp_path / "run.txt", config={name: str(value) for name, value in config.items()})
    found = json.loads((tmp_path / "run.json").read_text())["sha256"]
    expected = {
        "run.txt": hashlib.sha256(b"xxx").hexdigest(),
        "index": hashlib.sha256(b"{}").hexdigest(),
        "huge": "not taken: 100 bytes",
    }
    assert found == {str(tmp_path / name): text for name, text in expected.items()}


def test_energy_where_it_can_be_read(monkeypatch, tmp_path):
    for zone, before in ((0, 1_000_000), (1, 9_000_000)):
        folder = tmp_path / f"intel-rapl:{zone}"
        folder.mkdir()
        (folder / "energy_uj").write_text(str(before))
        (folder / "max_energy_range_uj").write_text("10000000\n")
    (tmp_path / "intel-rapl:0:0").mkdir()  # part of a package: not counted again
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("7")
    monkeypatch.setattr(environment, "RAPL", tmp_path)
    monkeypatch.setattr(environment, "_AT_START", environment._counters())
    assert environment.energy() is None
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("4000000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("500000")  # began again at 0 after 10 J
    assert environment.energy() == 3.0 + 1.5
    (tmp_path / "run.txt").write_text("x")
    records.write_record(tmp_path / "run.txt")
    assert json.loads((tmp_path / "run.json").read_text())["energy_joules"] == 4.5
    monkeypatch.setattr(environment, "RAPL", tmp_path / "none")
    assert environment.energy() is None
