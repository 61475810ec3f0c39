"""README.md and docs/: every command in them has the flags it uses, every name imported exists, tables are those of what was measured."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pyserini_kd.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(text):
    """The words of each `pyserini-kd ...` and `python -m pyserini_kd...` line, continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        found = re.search(r"(?:pyserini-kd|python -m pyserini_kd\.?)\s*(\w+ .*)", line.strip("`$ "))
        if found and line.startswith(("pyserini-kd", "$ ", "torchrun", ".venv/bin/python")):
            yield shlex.split(re.sub(r"\[|\]|\.\.\.", " ", found.group(1)), comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
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


def test_python_examples_import_what_exists():
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL))
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    ours = [(node.module, alias.name) for node in imports for alias in node.names if node.module.startswith("pyserini_kd")]
    assert ours and all(hasattr(importlib.import_module(module), name) for module, name in ours)


def test_the_tables_of_distillation_are_those_of_what_was_measured():
    script = [sys.executable, str(ROOT / "experiments" / "distillation_table.py")]
    tables = subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True).stdout.strip().split("\n\n")
    page = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")
    assert len(tables) == 4 and all(f"\n{table}\n" in page for table in tables)
