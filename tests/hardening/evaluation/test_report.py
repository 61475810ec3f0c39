"""report against foreign text, strange names, broken records and wrong arguments: the page stays harmless."""

import html
import re

import pytest

from pyserini_kd import report
from pyserini_kd.evaluation import figures
from pyserini_kd.evaluation.page import loss_curves
from pyserini_kd.storage.errors import InputError
from tests.evaluation.test_report import EVIL, browse, full_page, given_files, made, order

STRANGE = {
    "systems": [{"name": name, "ms": 1.0 + n, "means": [n / 9], "recall": [n / 9, None]} for n, name in enumerate(["$a_{$", "../b", "ü\n"])],
    "baseline": 0, "measures": ["RR"], "values": [[[0, 5000]]] * 3, "fronts": [[0]], "depths": [1, 2], "level": 1,
    "training": [{"name": "t", "losses": {"kl": [[1, 2.0]]}, "dev": {}}], "command": "pyserini-kd report <a> & b",
}  # fmt: skip


@pytest.mark.parametrize("style", ["svg", "png"])
def test_figures_survive_strange_names_and_are_the_same_each_time(style, tmp_path):
    paths = figures.draw(STRANGE, tmp_path / "f", style)
    names = ("pareto", "recall", "wins.1...-b", "wins.2.--", "loss.0.t")
    assert [path.name for path in paths] == [f"{name}.{style}" for name in names]
    before = [path.read_bytes() for path in paths]
    figures.draw(STRANGE, tmp_path / "f", style, overwrite=True)
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("text", ['{"seconds": 3}\n{"seconds": 4}\n', "[1]", "caf\udce9"])
def test_a_file_of_somebody_else_s_is_no_record(text, given_files, invoke, monkeypatch):
    monkeypatch.chdir(given_files)
    (given_files / "run.x.weak.json").write_bytes(text.encode(errors="surrogateescape"))
    result = invoke(report.main, "--qrels", "qrels.txt", "run.x.weak.txt", "--output", "page.html")
    assert result.exit_code == 0 and (given_files / "page.html").exists(), result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--measures", "nDGC@10"), "unknown measure 'nDGC@10'; did you mean nDCG@10?"),
        (("--baseline", "gone.txt"), "run file not found: gone.txt"),
        (("--index", "x", "--collection", "y"), "--index: texts come from a collection or from an index, not from both"),
        (("--training", "qrels.json"), "training record not found: qrels.json"),
        (("--training", "run.x.strong.json"), "not a record of training"),
        (("--output", "old.html"), "old.html exists; set --overwrite"),
        (("--figures", "old"), "exists; set --overwrite"),
        (("run.x.weak.txt",), "is named twice"),
        (("other.txt",), "share no query"),
        (("elsewhere.txt", "lone.txt"), "share no judged query"),
        (("empty.txt",), "run file is empty: empty.txt"),
        (("--test", "wilcoxon"), "give --baseline"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(words, message, given_files, invoke, monkeypatch):
    monkeypatch.chdir(given_files)
    (given_files / "old.html").write_text("old")
    (given_files / "other.txt").write_text("z Q0 d 1 1.0 t\n")
    (given_files / "lone.txt").write_text("q1 Q0 d 1 1.0 t\n")
    (given_files / "elsewhere.txt").write_text("q2 Q0 d 1 1.0 t\n")
    (given_files / "empty.txt").write_text("")
    (given_files / "old").mkdir()
    (given_files / "old" / "recall.pdf").write_text("old")
    before = sorted(given_files.rglob("*"))
    result = invoke(report.main, "--qrels", "qrels.txt", "run.x.weak.txt", *words)
    assert result.exit_code == 2 and message in result.output, result.output
    assert len([line for line in result.output.splitlines() if line.startswith("Error")]) == 1
    assert sorted(given_files.rglob("*")) == before and (given_files / "old" / "recall.pdf").read_text() == "old"


@pytest.mark.parametrize(
    "log",
    [
        '{"stages": [{"name": "x"}]}',
        '{"log": [3]}',
        '{"log": [{"kl": 1}]}',
        '{"stages": [1]}',
        '{"stages": 5}',
        '{"stages": [{"log": []}, {"log": []}]}',
        '{"stages": [{"log": [], "dev": 7}]}',
        '{"log": [{"step": "one", "kl": 1}]}',
    ],
)
def test_a_bad_training_record_is_named(log, tmp_path):
    (tmp_path / "training.json").write_text(log)
    with pytest.raises(InputError, match=r"training.json: "):
        loss_curves(tmp_path / "training.json")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["", "0"])
def test_foreign_text_is_harmless(script, full_page, browse):
    dom = browse(full_page, "q=1&a=2&b=1", script=script)  # "0": without the content security policy
    assert "<title>Runs compared</title>" in dom and "<img" not in dom
    assert html.escape(" ".join(EVIL.split()), quote=False) in re.sub("</?mark>", "", dom)


@pytest.mark.slow
def test_no_other_script_runs(full_page, browse, tmp_path):
    page = tmp_path / "more.html"
    page.write_text(full_page.read_text().replace("</body>", "<script>document.title = 'owned'</script></body>"))
    assert "<title>Runs compared</title>" in browse(page)


@pytest.mark.slow
def test_what_is_not_there_is_said(made, browse):
    dom = browse(made(runs=["weak"]), "q=99&a=-5&sort=x&m=7&%zz")
    for text in ("Name a run with --baseline", "No run has a record", "Give --training", "Only ids are known"):
        assert text in dom
    assert order(dom) == [0]
