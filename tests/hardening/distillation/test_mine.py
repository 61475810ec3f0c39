"""Mining against odd and faulty files, and against a cut in the middle."""

import gzip

import pytest

from pyserini_kd import mine
from pyserini_kd.distillation import candidates
from pyserini_kd.storage.errors import InputError


def test_blank_lines_foreign_line_ends_and_packed_files_are_read(tmp_path):
    text = '\ufeff007\tNA\t1\r\n\n  \n{"query_id": "b", "doc_ids": ["x", "é"], "labels": [1, 0], "block": 3}\n\nc\ty\tz'
    (tmp_path / "c.tsv").write_text(text, newline="")
    (tmp_path / "c.tsv.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("c.tsv", "c.tsv.gz"):
        read = candidates.read_candidates(tmp_path / name)
        groups = [
            candidates.Group("007", ["NA", "1"], [1, 0], -1),
            candidates.Group("b", ["x", "é"], [1, 0], 3),
            candidates.Group("c", ["y", "z"], [1, 0], -1),
        ]
        assert list(read) == groups and [read[row] for row in (2, 1, 0)] == groups[::-1]
    (tmp_path / "half.gz").write_bytes(gzip.compress(text.encode())[:-9])
    with pytest.raises(InputError, match="not a complete gzip file"):
        candidates.read_candidates(tmp_path / "half.gz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\n", ":1: expected `query_id<TAB>pos_id<TAB>neg_id`, found 2"),
        ('{"query_id": "a"}\n', ":1: expected an object"),
        ('{"query_id": "a", "doc_ids": ["x"], "labels": []}\n', ":1: 1 doc_ids but 0 labels"),
        ('{"query_id": "a", "doc_ids": ["x"], "labels": [0]}\n', ":1: query a has no positive"),
        ('{"query_id": "a", "doc_ids": ["x"], "labels": [Infinity]}\n', ":1: expected an object"),
        ('{"query_id": "a", "doc_ids": ["x"], "labels": [0.9]}\n', ":1: expected an object"),
        ('{"query_id": "a", "doc_ids": "xy", "labels": [1, 0]}\n', ":1: expected an object"),
        ("a\tb\tc\n\na\tb\tb\n", ":3: query a lists a document twice"),
        ("\n", "is empty"),
    ],
)
def test_bad_candidates(tmp_path, text, message):
    (tmp_path / "c").write_text(text)
    with pytest.raises(InputError) as error:
        candidates.read_candidates(tmp_path / "c")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(KeyboardInterrupt(), 130, "Interrupted"), (OSError(28, "No space left on device"), 2, "No space left on device")],
)
def test_interrupted_mining_leaves_nothing(tmp_path, invoke, files, monkeypatch, error, code, words):
    def broken(record):
        if record["query_id"] == "q5":
            raise error
        return "{}"

    monkeypatch.setattr(candidates.json, "dumps", broken)
    before = {path.name for path in tmp_path.iterdir()}
    base = [
        "--collection",
        files["docs"],
        "--topics",
        files["topics"],
        "--qrels",
        files["qrels"],
        "--output",
        tmp_path / "c.jsonl",
    ]
    result = invoke(mine.main, *base, "--negatives", 0, "--shared", 5)
    assert result.exit_code == code and words in result.output, result.output
    assert {path.name for path in tmp_path.iterdir()} == before
