"""Generate pages of the documentation from data files and from the code.

`python docs/build_pages.py` writes the pages that are committed (results, recipes, commands) into docs/. mkdocs runs this
script through the plugin mkdocs-gen-files, which adds README, CONTRIBUTING, CHANGELOG and the notebooks to the site. To add
a generated page, write a function that yields `Page`s and add it to COMMITTED or SITE_ONLY.
"""

import csv
import functools
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jinja2

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100  # characters of a line of --help
FIGURE = re.compile(r"-|[-+]?\.?\d[^A-Za-z]*([ ]?[A-Za-z/%]+)?")
"""A cell of figures: `-` for none, or a number, with anything but words behind it and at most one unit."""
SEPARATOR = re.compile(r"\|([ ]*:?-+:?[ ]*\|)+")
"""The second line of a Markdown table."""


class Page(NamedTuple):
    """A generated page."""

    path: str
    """Where the page is in the documentation."""
    source: str
    """The file in the repository that a reader should edit."""
    text: str


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    r"""A Markdown table; the first row is the header.

    >>> print(markdown_table([["run", "AP"], ["a|b", "0.25"]]))
    | run | AP |
    |---|---|
    | a\|b | 0.25 |
    """
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def read_table(folder: Path, name: str) -> str:
    """The CSV file `name` of a folder as a Markdown table."""
    with open(folder / name, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError(f"{folder / name}: every row must have as many cells as the header")
    return markdown_table(rows)


def cells(line: str) -> list[str]:
    """The cells of one line of a Markdown table."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def alignment(rows: Sequence[Sequence[str]]) -> str:
    """The second line of a Markdown table: to the right where a column holds figures only, else to the left.

    >>> alignment([["bm25", "0.25", "139"], ["student", "+0.01 (0.5)", ""]])
    '|:--|--:|--:|'
    """
    columns = [[cell for cell in column if cell] for column in zip(*rows, strict=True)]
    figures = [bool(column) and all(map(FIGURE.fullmatch, column)) for column in columns]
    return "|" + "".join("--:|" if right else ":--|" for right in figures)


def align_figures(text: str) -> str:
    """The same page, with the columns of figures in its Markdown tables aligned to the right."""
    lines = text.split("\n")
    for start, line in enumerate(lines):
        if SEPARATOR.fullmatch(line):
            end = start + 1
            while end < len(lines) and lines[end].startswith("|"):
                end += 1
            lines[start] = alignment([cells(row) for row in lines[start + 1 : end]])
    return "\n".join(lines)


def load_module(path: Path) -> ModuleType:
    """The Python file `path` as a module."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def render(template: Path) -> str:
    """The text of a page.md: `table` reads a CSV file beside it; `tables` is the module tables.py beside it, if any."""
    folder = template.parent
    names: dict[str, object] = {"table": functools.partial(read_table, folder)}
    if (folder / "tables.py").exists():
        names["tables"] = load_module(folder / "tables.py")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return align_figures(environment.from_string(template.read_text(encoding="utf-8")).render(names))


def mark_generated(text: str, origin: str) -> str:
    """The same page, with front matter that says where it comes from and repeats the title."""
    title = text.split("\n", 1)[0].removeprefix("# ")
    return f"---\n# Generated from {origin}; do not edit.\ntitle: {json.dumps(title, ensure_ascii=False)}\n---\n\n{text}"


def result_pages() -> Iterator[Page]:
    """A page for each study in experiments/."""
    for template in sorted((ROOT / "experiments").glob("*/page.md")):
        study = template.parent.name
        text = mark_generated(render(template), f"experiments/{study}/")
        yield Page(f"results/{study}.md", template.relative_to(ROOT).as_posix(), text)


def recipes_page() -> Iterator[Page]:
    """The list that `train --list` prints."""
    from pyserini_kd.distillation.recipes import RECIPES

    rows = [["recipe", "what it does", "source"], *([f"`{r.name}`", r.what, r.source] for r in RECIPES.values())]
    stages = "\n\n".join(recipe.describe() for recipe in RECIPES.values())
    text = f"""# Recipes

A recipe is one training procedure of a paper. `pyserini-kd train --recipe NAME` runs it.

{markdown_table(rows)}

## Stages and defaults

This is what `pyserini-kd train --list` prints.

```
{stages}
```
"""
    yield Page("reference/recipes.md", "pyserini_kd/distillation/recipes.py", mark_generated(text, "the recipes"))


def commands_page() -> Iterator[Page]:
    """The text of `--help` of every command."""
    import click

    from pyserini_kd.__main__ import COMMANDS, main

    parts = ["# Commands", "`pyserini-kd STAGE` and `python -m pyserini_kd.STAGE` are the same command."]
    group = click.Context(main, info_name="pyserini-kd", terminal_width=WIDTH, max_content_width=WIDTH, **main.context_settings)
    for name in COMMANDS:
        command = main.get_command(group, name)
        assert command is not None
        context = click.Context(command, parent=group, info_name=name)
        parts.append(f"## {name}\n\n```\n{command.get_help(context)}\n```")
    yield Page("reference/commands.md", "pyserini_kd/__main__.py", mark_generated("\n\n".join(parts) + "\n", "pyserini_kd"))


def pages_of_the_repository() -> Iterator[Page]:
    """README, CONTRIBUTING and CHANGELOG as pages of the site. Their links into docs/ become links inside the site."""
    names = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
    text_files = {"LICENSE": "licence.md", "CITATION.cff": "citation.md"}
    for source, path in names.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = text.replace("](docs/", "](").replace("](setup.cfg)", "](index.md#install)")
        for name, place in {**names, **text_files}.items():
            text = text.replace(f"]({name})", f"]({place})")
        yield Page(path, source, mark_generated(text, source))
    for source, path in text_files.items():
        shown = (ROOT / source).read_text(encoding="utf-8")
        yield Page(path, source, mark_generated(f"# {source}\n\n```\n{shown}```\n", source))


def notebooks() -> Iterator[Page]:
    """The notebooks in examples/, with their output."""
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        source = notebook.relative_to(ROOT).as_posix()
        yield Page(source, source, notebook.read_text(encoding="utf-8"))


COMMITTED: Sequence[Callable[[], Iterator[Page]]] = (result_pages, recipes_page, commands_page)
"""Pages that are committed, so that they can be read without building the site."""
SITE_ONLY: Sequence[Callable[[], Iterator[Page]]] = (pages_of_the_repository, notebooks)
"""Copies of files outside docs/."""


def write_to_folder(folder: Path) -> None:
    """Write the committed pages below a folder."""
    for source in COMMITTED:
        for page in source():
            path = folder / page.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page.text, encoding="utf-8")


def write_to_site() -> None:
    """Add the other pages to the site that mkdocs builds."""
    import mkdocs_gen_files

    for page in (page for source in SITE_ONLY for page in source()):
        with mkdocs_gen_files.open(page.path, "w", encoding="utf-8") as file:
            file.write(page.text)
        mkdocs_gen_files.set_edit_path(page.path, f"../{page.source}")  # edit paths begin in docs/


if __name__ == "__main__":
    write_to_folder(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
elif __name__ == "<run_path>":  # what mkdocs-gen-files calls a script
    write_to_site()
