"""Fusion of empty runs, equal scores and faulty files; wrong arguments; existing outputs."""

import numpy as np
import pytest
from click.testing import CliRunner

from pyserini_kd.data.runs import Run
from pyserini_kd.fuse import main
from pyserini_kd.retrieval import fusion, fusion_methods
from pyserini_kd.retrieval.fusion import interpolation, rrf
from pyserini_kd.storage.errors import InputError
from tests.retrieval.test_fuse import FIRST, SECOND, A, B, content, files, run_command, scores

# ---------------------------------------------------------------------------------------------------- engine's choice


def test_runs_without_hits():
    empty = Run.from_hits("e", [("q1", [], [])])
    for engine in ("trectools", "fast"):
        assert content(rrf([empty, empty], engine=engine)) == {"q1": {}}
    assert scores(fusion.combine([empty, A], "normalize"), "q1") == pytest.approx({"x": 1, "y": 0.8, "z": 0})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rrf([A]), "at least two runs, not 1"),
        (lambda: fusion.combine([], "average"), "at least two runs, not 0"),
        (lambda: rrf([A, B], rrf_k=-1), "rrf_k: must be 0 or more"),
        (lambda: rrf([A, B], depth=0), "depth must be 1 or more"),
        (lambda: fusion.combine([A, B], "normalize", k=0), "k must be 1 or more"),
        (lambda: interpolation(A, B, alpha=1.5), "alpha: must lie between 0 and 1, not 1.5"),
        (lambda: interpolation(A, B, alpha=float("nan")), "alpha: must lie between 0 and 1"),
        (lambda: rrf([A, B], engine="ranx"), "auto, trectools, fast"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(InputError, match=message):
        call()


# --------------------------------------------------------------------------------------------------------- command


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--runs", "a.txt"], "at least two runs, found 1"),
        (["--runs", "a.txt", "b.txt", "./a.txt"], "names a run twice"),
        (["--runs", "a.txt", "none.txt"], "run file not found: none.txt"),
        (["--runs", "a.txt", "b.txt", "far.txt"], "runs a.txt and far.txt have no topic in common"),
        (["--runs", "a.txt", "empty.txt"], "run file is empty: empty.txt"),
        (["--runs", "a.txt", "b.txt", "--method", "wsum", "--weights", "1"], "one finite weight per run: 2 runs, weights 1.0"),
        (["--runs", "a.txt", "faulty.txt"], "faulty.txt:2: score nan is not finite"),
        (["--runs", "a.txt", "b.txt", "--method", "interpolation", "--alpha", "2"], "--alpha: must lie between 0 and 1"),
        (["--runs", "a.txt", "b.txt", "faulty.txt", "--method", "interpolation"], "exactly two runs, found 3"),
        (["--runs", "a.txt", "b.txt", "--method", "average", "--engine", "trectools"], "for rrf only"),
        (["--runs", "a.txt", "b.txt", "--runtag", "two words"], "one word"),
        (["--runs", "a.txt", "b.txt", "--alpha", ".5"], "--alpha: is for the method interpolation, not for rrf"),
        (["--runs", "a.txt", "b.txt", "--method", "average", "--rrf.k", "60"], "--rrf.k: is for the method rrf"),  # the default
        (["--runs", "a.txt", "b.txt", "--norm", "minmax"], "--norm: is for the method combsum, combmnz"),
        (["--runs", "a.txt", "b.txt", "--method", "borda", "--norm", "minmax"], "not for borda"),
        (
            ["--runs", "a.txt", "b.txt", "--method", "combsum", "--weights", "1", "9"],
            "--weights: is for the method wsum, not for combsum",
        ),
        (["--runs", "a.txt", "b.txt", "--method", "average", "--rrf.k", "6"], "--rrf.k: is for the method rrf"),
        (["--runs", "a.txt", "b.txt", "--method", "isr", "--rbp.p", ".5"], "--rbp.p: is for the method rbp"),
        (["--runs", "a.txt", "b.txt", "--method", "vote"], "borda"),
        ([], "--runs"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_no_file(files, args, message):
    (files / "faulty.txt").write_text("q1 Q0 a 1 1.0 t\nq1 Q0 b 2 nan t\n")
    (files / "far.txt").write_text("far Q0 a 1 1.0 t\n")
    (files / "empty.txt").write_text("")
    before = sorted(path.name for path in files.iterdir())
    result = run_command(*args, "--output", "c.txt")
    assert result.exit_code == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert sorted(path.name for path in files.iterdir()) == before


def test_an_input_is_not_overwritten(files):
    for name in ("a.txt", "./b.txt"):
        before = (files / name).read_text()
        result = run_command("--runs", "a.txt", "b.txt", "--output", name, "--overwrite")
        assert result.exit_code == 2 and "is an input too" in result.stderr and (files / name).read_text() == before


def test_an_existing_output_is_kept_unless_told(files):
    (files / "c.txt").write_text("mine")
    result = run_command("--runs", "a.txt", "none.txt", "--output", "c.txt")
    assert result.exit_code == 2 and "c.txt exists" in result.stderr  # checked before any run is read
    assert (files / "c.txt").read_text() == "mine"
    assert run_command("--runs", "a.txt", "b.txt", "--output", "c.txt", "--overwrite").exit_code == 0
    assert (files / "c.txt").read_text().startswith("q1 Q0 y 1 ")


# ------------------------------------------------------------------------------------------------- other methods


def test_equal_scores_with_rounded_deviation_have_z_score_zero():
    same = np.full(3, 0.1)
    assert same.std() > 0 and fusion_methods.z_score(same).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "vote"}, "fusion method must be one of rrf, interpolation"),
        ({"method": "combsum", "norm": "max"}, "norm must be one of none, minmax"),
        ({"method": "borda", "norm": "minmax"}, "uses ranks only"),
        ({"method": "combsum", "weights": [1, 2]}, "weights are for wsum"),
        ({"method": "wsum", "weights": [1, 2, 3]}, "one finite weight per run: 2 runs, weights 1 2 3"),
        ({"method": "wsum", "weights": [1, float("nan")]}, "one finite weight per run"),
        ({"method": "rbp", "rbp_p": 1.0}, "rbp_p: must lie between 0 and 1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(InputError, match=message):
        fusion.combine([FIRST, SECOND], **settings)


# ------------------------------------------------------------------------------------------------- topic by topic


def test_a_fault_in_the_last_topic_leaves_no_file(files, tmp_path):
    with open("b.txt", "a") as lines:
        lines.write("last Q0 d 1 nan t\n")
    result = CliRunner().invoke(main, ["--runs", "a.txt", "b.txt", "--method", "combsum", "--output", str(tmp_path / "o")])
    assert result.exit_code == 2 and "is not finite" in result.output and "b.txt:5:" in result.output
    assert not list(tmp_path.glob("*o*.partial")) and not (tmp_path / "o").exists()
