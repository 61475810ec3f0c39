"""pydocs: entries from source files, splits, and the output of the command."""

import subprocess
import sys

import pytest

from pyserini_kd import pydocs
from pyserini_kd.data import docstrings, formats

SOURCE = '''
"""Module docstrings are not taken."""

def plain(x):
    """Return the doubled value.

    The body of
        plain.
    """

def wrapped(x):
    """Return the value of a long
    expression over two lines

    Body of wrapped."""

def unfinished(x):
    """Sort the array in place.
    This line is body already.
    """

def endless(x):
    """One two three
    four
    five
    six without a blank line."""

def summary_only(x):
    """Return the doubled value."""

def short(x):
    """Return self.

    Too short a summary to be a topic.
    """

def _private(x):
    """Return the hidden value.

    Never taken."""

class Thing:
    """Hold the thing itself.

    Body of Thing."""

    def method(self):
        """Do the thing now.

        Body of method."""

    def _hidden(self):
        """Do the hidden thing.

        Never taken."""

def twin(x):
    """Return another summary line.

    The body of plain.
    """
'''


@pytest.fixture
def fake_package(tmp_path, monkeypatch):
    """A package `zoo` with public, private and test modules, and one that does not parse."""
    root = tmp_path / "zoo"
    (root / "tests").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "_core.py").write_text(SOURCE)
    (root / "template.py").write_text("def {name}(): pass\n")
    for name in ("tests/data.py", "test_core.py", "conftest.py", "testing.py"):
        (root / name).write_text('def tested(x):\n    """Return the tested value.\n\n    Never taken."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(docstrings, "PACKAGES", ("zoo",))
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path / "home"))
    docstrings.entries.cache_clear()
    yield root
    docstrings.entries.cache_clear()


def test_entries_of_a_source_file(fake_package):
    assert [(entry.name, entry.summary, entry.body) for entry in docstrings.entries()] == [
        ("zoo._core.Thing", "Hold the thing itself.", "Body of Thing."),
        ("zoo._core.Thing.method", "Do the thing now.", "Body of method."),
        ("zoo._core.endless", "One two three", "four five six without a blank line."),
        ("zoo._core.plain", "Return the doubled value.", "The body of plain."),
        ("zoo._core.unfinished", "Sort the array in place.", "This line is body already."),
        ("zoo._core.wrapped", "Return the value of a long expression over two lines", "Body of wrapped."),
    ]  # twin and plain have the same text: only the first name is kept


def test_nothing_is_imported(fake_package):
    (fake_package / "__init__.py").write_text("raise SystemExit('imported')\n")
    assert len(docstrings.entries()) == 6
    assert "zoo._core" not in sys.modules


def test_entries_are_cached_until_the_packages_change(fake_package, tmp_path, monkeypatch):
    parsed = docstrings.entries()
    (kept,) = (tmp_path / "home" / "indexes").iterdir()
    (fake_package / "_core.py").unlink()
    docstrings.entries.cache_clear()
    assert docstrings.entries() == parsed, "read, not parsed again"
    monkeypatch.setattr(docstrings, "_version", lambda name: "another")
    docstrings.entries.cache_clear()
    assert docstrings.entries() == ()


def test_readers_read_the_output_of_the_command(fake_package, tmp_path, invoke):
    splits = {split: docstrings.topics(split) for split in docstrings.SPLITS}
    done = invoke(pydocs.main, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "docs.jsonl: 6 documents" in done.output
    assert list(formats.read_collection(tmp_path / "out")) == list(docstrings.docs())  # topics in the folder are not documents
    for split, topics in splits.items():
        written = (tmp_path / "out" / f"topics.{split}.tsv").read_text()
        assert written == "".join(f"{query.query_id}\t{query.text}\n" for query in topics)
        qrels = (tmp_path / "out" / f"qrels.{split}.txt").read_text()
        assert qrels == "".join(f"{query.query_id} 0 {query.query_id} 1\n" for query in topics)


# b2sum -l 64 of the module name, modulo 11: 0 is dev, 1 is test
SPLIT_OF = {
    "numpy.linalg._linalg": "dev",
    "scipy.stats._qmc": "dev",
    "numpy.lib._function_base_impl": "test",
    "networkx.algorithms.tree.mst": "test",
    "pandas.core.frame": "train",
    "sklearn.svm._classes": "train",
}


def test_splits_are_stable():
    """Modules have the same split in every process; `hash()` would change it."""
    script = f"from pyserini_kd.data.docstrings import split_of; print(*map(split_of, {list(SPLIT_OF)}))"
    env = {"PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert there.stdout.split() == list(SPLIT_OF.values()) == [docstrings.split_of(module) for module in SPLIT_OF]
    shares = [sum(docstrings.split_of(f"m{n}") == split for n in range(11_000)) / 11_000 for split in docstrings.SPLITS]
    assert shares == pytest.approx([9 / 11, 1 / 11, 1 / 11], abs=0.01)


@pytest.fixture
def fresh_entries(tmp_path, monkeypatch):
    """No cached entries of other runs or code versions."""
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path))
    docstrings.entries.cache_clear()
    yield
    docstrings.entries.cache_clear()


@pytest.mark.slow
def test_the_real_collection(fresh_entries):
    entries = docstrings.entries()
    names = [entry.name for entry in entries]
    assert 7_000 < len(entries) < 12_000
    assert names == sorted(set(names)), "ids are unique and sorted"
    assert len({entry.body for entry in entries}) == len(entries), "texts are unique"
    assert all(len(entry.summary.split()) >= 3 and entry.body for entry in entries)
    own = [entry.name.removeprefix(entry.module + ".") for entry in entries]
    assert not [name for name in own if name.startswith("_") or "._" in name], "private names"
    assert not [entry.module for entry in entries if {"tests", "testing"} & set(entry.module.split("."))]
    told = [entry.name for entry in entries if entry.body.startswith(entry.summary)]
    assert len(told) <= len(entries) / 1000, f"topics that begin their own document: {told}"

    modules = {
        split: {entry.module for entry in entries if docstrings.split_of(entry.module) == split} for split in docstrings.SPLITS
    }
    assert not (modules["train"] & modules["test"] or modules["train"] & modules["dev"] or modules["dev"] & modules["test"])
    topics = {split: docstrings.topics(split) for split in docstrings.SPLITS}
    assert sum(map(len, topics.values())) == len(entries)
    assert len(topics["train"]) > 5_000 and len(topics["dev"]) > 300 and len(topics["test"]) > 300
    for split in docstrings.SPLITS:
        assert docstrings.qrels(split) == {query.query_id: {query.query_id: 1} for query in topics[split]}
    assert {doc.doc_id for doc in docstrings.docs()} == set(names)
