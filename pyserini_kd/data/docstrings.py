"""The embedded collection `pydocs`: the API documentation of the installed scientific Python packages.

Each documented public function, class or method gives one topic and one document. The topic is the summary line of the
docstring; its only relevant document is the rest of the docstring. Source files are parsed, not imported. A stable hash of the
module name assigns entries to train, dev or test.
"""

import ast
import functools
import importlib.metadata
import importlib.util
import inspect
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pyserini_kd.data import formats
from pyserini_kd.data.ids import id_hash
from pyserini_kd.data.types import Doc, Qrels, Query
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, home, refuse_existing

PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "scipy", "sklearn")
DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # where the distribution has another name
SPLITS = ("train", "dev", "test")
MIN_WORDS = 3  # shorter summaries ("Return self.") are useless as topics
MAX_SUMMARY_LINES = 3


class Entry(NamedTuple):
    """A documented object: dotted name, module, summary line, and the rest of its docstring."""

    name: str
    module: str
    summary: str
    body: str


@functools.cache
def entries() -> tuple[Entry, ...]:
    """All entries, sorted by name. Of identical texts only the first name is kept.

    Parsing takes seconds, so entries are cached in `indexes/pydocs-STAMP.jsonl`; see `stamp`.
    """
    cached = home() / "indexes" / f"pydocs-{stamp()}.jsonl"
    if cached.exists():
        with open(cached, encoding="utf-8") as lines:
            return tuple(Entry(*json.loads(line)) for line in lines)
    found = _find_entries()
    with atomic_file(cached) as out:
        out.writelines(json.dumps(entry) + "\n" for entry in found)
    return found


def stamp() -> str:
    """Hex hash of what the entries depend on: the versions of the packages and the source of this module."""
    versions = [f"{name} {_version(name)}" for name in PACKAGES]
    return f"{id_hash(' '.join([*versions, Path(__file__).read_text(encoding='utf-8')])):016x}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(package, package))
    except importlib.metadata.PackageNotFoundError:  # not installed (an error when it is parsed), or no metadata
        return ""


def _find_entries() -> tuple[Entry, ...]:
    found: dict[str, Entry] = {}
    for package in PACKAGES:
        for entry in _package_entries(package):
            found.setdefault(entry.name, entry)
    first: dict[str, Entry] = {}
    for name in sorted(found):
        first.setdefault(found[name].body, found[name])
    return tuple(first.values())


def docs() -> Iterator[Doc]:
    """The documents: the id is the dotted name; the text is the docstring without its summary line."""
    return (Doc(entry.name, "", entry.body) for entry in entries())


def topics(split: str) -> list[Query]:
    """The topics (summary lines) of a split: `train`, `dev` or `test`."""
    return [Query(entry.name, entry.summary) for entry in _of_split(split)]


def qrels(split: str) -> Qrels:
    """The qrels of a split: each topic has one relevant document, the one with its docstring."""
    return {entry.name: {entry.name: 1} for entry in _of_split(split)}


def write_files(folder: Path, *, overwrite: bool = False) -> Iterator[tuple[Path, str]]:
    """Write `docs.jsonl`, and `topics.SPLIT.tsv` and `qrels.SPLIT.txt` for each split; yields (path, content)."""
    paths = [folder / "docs.jsonl"]
    paths += [folder / name for split in SPLITS for name in (f"topics.{split}.tsv", f"qrels.{split}.txt")]
    for path in paths:
        refuse_existing(path, overwrite)
    yield paths[0], f"{formats.write_collection(docs(), paths[0], overwrite=overwrite)} documents"
    for split, topics_path, qrels_path in zip(SPLITS, paths[1::2], paths[2::2], strict=True):
        formats.write_topics(topics(split), topics_path, overwrite=overwrite)
        formats.write_qrels(qrels(split), qrels_path, overwrite=overwrite)
        yield topics_path, f"{len(topics(split))} topics"


def _of_split(split: str) -> list[Entry]:
    if split not in SPLITS:
        raise InputError(f"pydocs has no split {split!r}; expected one of {', '.join(SPLITS)}")
    return [entry for entry in entries() if split_of(entry.module) == split]


def split_of(module: str) -> str:
    """The split of a module. Of 11 hash buckets, 0 is dev, 1 is test and the others are train."""
    return {0: "dev", 1: "test"}.get(id_hash(module) % 11, "train")


def _package_entries(package: str) -> Iterator[Entry]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(f"pydocs needs the package {package}, which is not installed")
    root = Path(spec.origin).parent
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        if any(part in ("tests", "testing", "conftest") or part.startswith("test_") for part in parts):
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # invalid escapes in docstrings
            try:
                tree = ast.parse(path.read_bytes())
            except SyntaxError:  # a template, or code for a newer Python
                continue
        yield from _node_entries(tree, module, module)


def _node_entries(node: ast.AST, prefix: str, module: str) -> Iterator[Entry]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not child.name.startswith("_"):
            name = f"{prefix}.{child.name}"
            summary, body = _split_docstring(ast.get_docstring(child, clean=False) or "")
            if body and len(summary.split()) >= MIN_WORDS:
                yield Entry(name, module, summary, body)
            if isinstance(child, ast.ClassDef):
                yield from _node_entries(child, name, module)


def _split_docstring(docstring: str) -> tuple[str, str]:
    """(summary, rest) of a docstring with white space folded; a summary may take MAX_SUMMARY_LINES lines."""
    lines = inspect.cleandoc(docstring).split("\n")
    end = next((n for n, line in enumerate(lines) if not line.strip()), len(lines))
    if end > MAX_SUMMARY_LINES or lines[0].rstrip().endswith("."):
        end = 1
    return " ".join(" ".join(lines[:end]).split()), " ".join(" ".join(lines[end:]).split())
