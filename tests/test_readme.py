"""README.md, docs/ and the pages of experiments/: every command in them has the flags it uses, examples run."""

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


def test_python_examples_run(tmp_path, monkeypatch, capsys, dense_index, bm25_index, tiny_dot, tiny_cross):
    """The examples, word for word, over small models and indexes of the names that they use."""
    places = {"indexes/pydocs.student": dense_index, "indexes/pydocs.bm25": bm25_index}
    places |= {"models/student": tiny_dot, "models/reranker": tiny_cross}
    for name, made in places.items():
        shutil.copytree(made, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path))
    names = {}
    for code in re.findall(r"```python\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL):
        exec(code, names)
    run = Run.read("run.txt")
    assert run["1"].doc_ids == names["run"]["1"].doc_ids and len(run["1"].doc_ids) == 20
    assert [hit.docid for hit in names["hits"]] == names["dense"]["1"].doc_ids[:3]
