"""reproduce against failing commands, malformed matrices and a machine without git."""

import re
import subprocess
from pathlib import Path

import pytest

from pyserini_kd import reproduce
from pyserini_kd.evaluation import experiments
from pyserini_kd.storage import environment
from pyserini_kd.storage.errors import InputError
from tests.evaluation.test_reproduce import FUSED, made, place, row, run_matrix, table


def test_a_command_that_fails_fails_its_row_alone(run_matrix, made, capfd):
    broken = made | {"name": "broken", "commands": ["pyserini-kd fuse --runs {home}/none {home}/b.txt --output {directory}/x"]}
    unmade = made | {"name": "unmade", "run": "{directory}/nothing.txt"}
    result = run_matrix([broken, unmade, made], "--all")
    assert result.exit_code == 1
    found = table(result.output)
    assert (
        found["broken", "RR@10"] == found["unmade", "RR@10"] == ["0.3333", "-", "FAIL"] and found["fused", "RR@10"][-1] == "OK"
    )
    assert "FAIL, exit code 2 of: pyserini-kd fuse --runs" in result.output and "run file not found" in result.output
    assert "run file not found" in capfd.readouterr().err  # the command's own words


HOLDS_ITSELF: list = []


HOLDS_ITSELF.append(HOLDS_ITSELF)


BAD_ROWS = {
    "unknown key": ({"expect": {}}, "row 1 (fused): unknown key `expect`; did you mean `expected`?"),
    "far key": ({"zzz": 1}, "unknown key `zzz`; known: name,"),
    "no source": ({"source": None}, "`source`: input should be a valid string, found None"),
    "nothing expected": ({"expected": {}}, "`expected`: dictionary should have at least 1 item"),
    "number for text": ({"run": 7}, "`run`: input should be a valid string, found 7"),
    "text for list": ({"commands": FUSED}, "`commands`: must be a list of texts"),
    "list in itself": ({"needs": HOLDS_ITSELF}, "`needs`: must be a list of texts, found one that holds itself"),
    "number in list": ({"needs": [1]}, "`needs.0`: input should be a valid string, found 1"),
    "word for value": ({"expected": {"AP": "high"}}, "`expected.AP`: input should be a valid number, found 'high'"),
    "list for values": ({"expected": [1]}, "`expected`: input should be a valid dictionary, found [1]"),
    "unknown measure": ({"expected": {"nDGC@10": 0.1}}, "did you mean nDCG@10?"),
    "tolerance": ({"tolerance": -1}, "`tolerance`: input should be greater than or equal to 0, found -1"),
    "unknown place": ({"run": "{nowhere}/run.txt"}, "'{nowhere}/run.txt' names a place that is unknown; known: {directory}"),
    "attribute of a place": ({"run": "{home.x}/r"}, "names a place that is unknown"),
    "open brace": ({"qrels": "{home/q"}, "names a place that is unknown"),
    "other program": ({"commands": ["rm -r {home}"]}, "a command must begin with `pyserini-kd` or `python -m`"),
    "open quote": ({"commands": ["pyserini-kd 'fuse"]}, "is no command (No closing quotation)"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_malformed_row_is_one_line_and_exit_code_2(run_matrix, row, name):
    change, message = BAD_ROWS[name]
    result = run_matrix([row | change], "--list")
    assert result.exit_code == 2 and message in result.output and "matrix.yaml: row 1 (fused)" in result.output, result.output


def test_other_bad_input(run_matrix, row, place, invoke):
    def refused(message, *words):
        result = invoke(reproduce.main, *words)
        assert result.exit_code == 2 and message in result.output, result.output

    refused("give exactly one of --list, --condition NAME and --all")
    refused("give exactly one of", "--list", "--all")
    refused("unknown condition 'bm25-scifat'; did you mean bm25-scifact?", "--condition", "bm25-scifat")
    refused("known: bm25-cacm, bm25-scifact, ", "--condition", "zzz")
    refused("matrix not found", "--matrix", place / "none.yaml", "--list")
    refused("does not exist", "--data", place / "none", "--all")
    for text, message in (
        ("a: [1\nb: 2", "bad.yaml:2: not valid YAML"),
        ("- 1", "expected `conditions:`"),
        ("conditions: [x]", "row 1: input should be a valid dictionary"),
    ):
        (place / "bad.yaml").write_text(text)
        refused(message, "--matrix", place / "bad.yaml", "--list")
    assert "two rows are named fused" in run_matrix([row, row], "--list").output


def test_the_commit_and_no_failure_without_git(monkeypatch, tmp_path):
    if (Path(environment.__file__).parents[2] / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", environment.environment()["commit"])
    for error in (FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10), subprocess.CalledProcessError(128, "git")):

        def fail(*args, error=error, **kwargs):
            raise error

        environment._commit.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "run", fail)
            assert "commit" not in environment.environment()
    environment._commit.cache_clear()
    with monkeypatch.context() as patch:  # an installed package inside somebody's checkout is no checkout of ours
        patch.setattr(environment, "__file__", str(tmp_path / "pyserini_kd" / "storage" / "environment.py"))
        assert "commit" not in environment.environment()
    environment._commit.cache_clear()


def test_a_matrix_that_is_not_text(tmp_path):
    (tmp_path / "m.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not valid YAML"):
        experiments.read_matrix(tmp_path / "m.yaml")
