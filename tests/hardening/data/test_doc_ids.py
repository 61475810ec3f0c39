"""Ids of an index: missing rows, and files of other programs."""

import pytest

from pyserini_kd.data.doc_ids import DocIds
from pyserini_kd.storage.errors import InputError
from tests.data.test_doc_ids import of


def test_missing_rows():
    ids = of(["a", "b"])
    for row in (-1, 2):
        with pytest.raises(IndexError):
            ids[row]
    with pytest.raises(ValueError, match="must have step 1"):
        ids[::2]
    assert 5 not in ids and ids.row("") == -1 and of([]).rows(["a"]).tolist() == [-1]


def test_files_of_other_programs(tmp_path):
    """Trailing blanks, Windows line ends, and a last line without a newline."""
    for name, lines in (("a", b"x1 \ny\t\r\n"), ("b", b"z\n\xc3\xa4"), ("bad", b"x\n\xff\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "docid").write_bytes(lines)
    assert list(DocIds.read(tmp_path / "a", tmp_path / "b")) == ["x1", "y", "z", "ä"]
    with pytest.raises(InputError, match="docid is not UTF-8 text: invalid start byte at byte 2"):
        DocIds.read(tmp_path / "bad")
    with pytest.raises(InputError, match="docid file not found"):
        DocIds.read(tmp_path / "none")
