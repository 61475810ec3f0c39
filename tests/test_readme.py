"""README.md, docs/ and the pages of experiments/: every command in them has the flags it uses, examples run."""

import ast
import re
import shlex
import shutil
from pathlib import Path

import pytest

from pyserini_kd.__main__ import COMMANDS, main
from pyserini_kd.data.runs import Run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "experiments").glob("*/page.md"))]


def commands(text):
    """The words of each `pyserini-kd ...` and `python -m pyserini_kd...` line, continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        found = re.search(r"(?:pyserini-kd|python -m pyserini_kd\.?)\s*(\w+ .*)", line.strip("`$ "))
        if found and line.startswith(("pyserini-kd", "$ ", "torchrun", ".venv/bin/python")):
            yield shlex.split(re.sub(r"\[|\]|\.\.\.", " ", found.group(1)), comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_the_flags_that_they_use(page):
    for name, *words in commands(page.read_text(encoding="utf-8")):
        assert name in COMMANDS, (page.name, name)
        known = {
            flag for parameter in main.get_command(None, name).params for flag in (*parameter.opts, *parameter.secondary_opts)
        }
        unknown = {word for word in words if re.match(r"--[a-z]", word)} - known
        assert not unknown, (page.name, name, unknown)


def test_the_readme_shows_every_command():
    """No stage without an example; `make demo` runs the demo."""
    text = PAGES[0].read_text(encoding="utf-8")
    assert set(COMMANDS) <= set(re.findall(r"(?:pyserini-kd|make) (\w+)", text))


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_example_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = python_blocks("README.md")
    exec(code, names := {})
    shown = re.search(r"```\n(\['T-1'.*?)\n```", PAGES[0].read_text(encoding="utf-8"))[1]
    assert capsys.readouterr().out.split("]")[0] == shown.split("]")[0]
    scores = [float(number) for number in re.findall(r"0\.\d+", shown)]
    assert names["run"]["q1"].scores.tolist() == pytest.approx(scores, abs=1e-2)  # bf16 differs from fp32


def test_python_examples_of_the_guide_run(tmp_path, monkeypatch, capsys, dense_index, bm25_index, tiny_dot, tiny_cross):
    """The examples, word for word, over small models and indexes of the names that they use."""
    places = {"indexes/pydocs.student": dense_index, "indexes/pydocs.bm25": bm25_index}
    places |= {"models/student": tiny_dot, "models/reranker": tiny_cross}
    for name, made in places.items():
        shutil.copytree(made, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path))
    names = {}
    for code in python_blocks("docs/guide/search.md"):
        exec(code, names)
    run = Run.read("run.txt")
    assert run["1"].doc_ids == names["run"]["1"].doc_ids and len(run["1"].doc_ids) == 20
    assert [hit.docid for hit in names["hits"]] == names["dense"]["1"].doc_ids[:3]


def constants():
    """All string constants of the code, without docstrings; of an f-string the constant parts."""
    for path in sorted((ROOT / "pyserini_kd").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        strings = (node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
        yield from (node.value for node in strings if id(node) not in docstrings)


def fixed_words(page):
    """The parts of three words or more of the messages in a page's tables, without the variable parts.

    Variable parts are capital words (N, FILE), `...` and flags, which the code writes as names of parameters.
    """
    for table in re.findall(r"^\| (?:message|warning) \|.*\n((?:\|.*\n?)+)", page.read_text(encoding="utf-8"), re.MULTILINE):
        for _, quote in re.findall(r"^\| (`+)(.+?)\1", table, re.MULTILINE):
            parts = (part.strip(" ,;:.?()'`") for part in re.split(r"\.{3}|--[a-z][\w.-]*|\b[A-Z]+\b", quote))
            yield from (part for part in parts if len(part.split()) >= 3)


def test_quoted_messages_have_the_words_of_the_code():
    known = "\n".join(constants())
    quoted = {part: page.name for page in sorted((ROOT / "docs").rglob("*.md")) for part in fixed_words(page)}
    assert len(quoted) > 50
    assert not {part: page for part, page in quoted.items() if part not in known}


def test_the_readme_is_short():
    lines = PAGES[0].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    text = re.sub(r"```.*?```", "", PAGES[0].read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]


def test_one_place_has_the_version():
    from pyserini_kd import __version__

    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {__version__} - " in changes
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"changes-{__version__}-" in PAGES[0].read_text(encoding="utf-8")
