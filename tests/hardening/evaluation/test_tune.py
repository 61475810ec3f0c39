"""tune against runs without common topics and wrong arguments."""

import pytest

from pyserini_kd.evaluation.tuning import best_alpha
from pyserini_kd.storage.errors import InputError
from pyserini_kd.tune import main
from tests.evaluation.test_tune import files, runs


def test_no_common_topics():
    a, b = runs(1.0, 1.0)
    with pytest.raises(InputError, match="share no query"):
        best_alpha(a, b, {"other": {"good": 1}}, (0.5,))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs", "a.txt"], "two or more different runs"),
        (["--runs", "a.txt", "a.txt"], "two or more different runs"),
        (["--runs", "a.txt", "b.txt", "--grid", "2"], "must be between 0 and 1"),
        (["--runs", "a.txt", "b.txt", "--grid", "x"], "'x' is not a valid float"),
        (["--runs", "a.txt", "b.txt", "--folds", "99"], "folds must lie between 2 and the number of topics (40)"),
        (["--runs", "a.txt", "b.txt", "--measure", "nDGC@10"], "did you mean"),
        (["--runs", "a.txt", "other.txt"], "no topic in common"),
        (["--runs", "a.txt", "b.txt", "--norm", "zscore"], "--norm: is for the method wsum, not for interpolation"),
    ],
)
def test_bad_input(files, invoke, monkeypatch, words, message):
    monkeypatch.chdir(files)
    (files / "other.txt").write_text("z Q0 d 1 1.0 t\n")
    result = invoke(main, *words, "--qrels", "qrels")
    assert result.exit_code == 2 and message in result.output
    assert result.output.count("\n") <= 4
