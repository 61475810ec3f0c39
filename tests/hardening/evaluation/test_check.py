"""check against many faults at once, faults that cannot be repaired, and wrong arguments."""

import pytest

from pyserini_kd import check
from pyserini_kd.evaluation import submission
from tests.evaluation.test_check import FAULTS, FIT, run_check


def test_many_faults_are_counted_and_a_few_shown(run_check):
    text = "".join(f"1 0 d{99 - n} {n + 1} {99 - n} mine\n" for n in range(50)) + "2 Q0 d1 1 1 mine\n"
    code, output = run_check(text)
    assert code == 1 and "second column is not Q0 (50):" in output and "  and 45 more\n" in output
    assert output.count("run.txt:") == submission.LISTED + 1
    code, output = run_check(text, "--show", 50)
    assert all(f"  run.txt:{n}: expected Q0, found 0\n" in output for n in range(1, 51)) and "more" not in output


@pytest.mark.parametrize("name", ["five columns", "missing topic", "nan", "duplicate", "word"])
def test_fix_refuses_to_guess(run_check, tmp_path, name):
    number, line, _ = FAULTS[name]
    lines = FIT.splitlines()
    lines[number - 1] = line
    code, output = run_check("\n".join(lines) + "\n", "--fix", tmp_path / "out.txt")
    assert code == 1 and "out.txt was not written; a repair would be a guess" in output
    assert not (tmp_path / "out.txt").exists() and not (tmp_path / "out.json").exists()


def test_wrong_arguments_are_one_line_and_exit_code_2(run_check, tmp_path, invoke):
    code, output = run_check(FIT, topics=tmp_path / "none.tsv")
    assert code == 2 and "topics not found" in output
    code, output = run_check("")
    assert code == 2 and "run is empty" in output
    result = invoke(check.main, tmp_path / "nowhere.txt", "--topics", tmp_path / "topics.tsv")
    assert result.exit_code == 2 and "run not found" in result.output
    assert run_check(FIT, "--max-hits", 0)[0] == 2
    assert run_check(FIT, "--qrels", tmp_path / "none")[0] == 2
    assert run_check(FIT, "--collection", tmp_path / "none")[0] == 2
