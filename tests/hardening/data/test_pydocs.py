"""The embedded collection with missing packages, unknown splits and existing files."""

import pytest

from pyserini_kd import pydocs
from pyserini_kd.data import docstrings
from pyserini_kd.storage.errors import InputError
from tests.data.test_pydocs import fake_package


def test_missing_package_and_unknown_split(fake_package, monkeypatch):
    with pytest.raises(InputError, match="no split 'tset'; expected one of train, dev, test"):
        docstrings.topics("tset")
    monkeypatch.setattr(docstrings, "PACKAGES", ("no_such_package",))
    docstrings.entries.cache_clear()
    with pytest.raises(InputError, match="needs the package no_such_package"):
        docstrings.entries()


def test_command_refuses_to_overwrite_anything(fake_package, tmp_path, invoke):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "qrels.dev.txt").write_text("mine")
    done = invoke(pydocs.main, "--output", tmp_path / "out")
    assert done.exit_code == 2 and "qrels.dev.txt exists; set --overwrite" in done.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["qrels.dev.txt"]
    assert (tmp_path / "out" / "qrels.dev.txt").read_text() == "mine"
    assert invoke(pydocs.main, "--output", tmp_path / "out", "--overwrite").exit_code == 0
    assert (tmp_path / "out" / "qrels.dev.txt").read_text() != "mine"
