"""Existing vectors against kills, faulty lines and wrong counts."""

import numpy as np
import pytest

from pyserini_kd.retrieval import dense_build
from pyserini_kd.storage import arrays
from pyserini_kd.storage.errors import InputError
from tests.retrieval.test_vectors import IDS, made


def test_finished_blocks_are_not_written_again(made, monkeypatch, caplog):
    folder, _, _ = made
    monkeypatch.setattr(dense_build, "BLOCK", 7)
    dense_build.build_from_vectors(folder / "v.npy", folder / "ids.txt", folder / "unbroken")
    real, saved = arrays.keep, []

    def keep(path, found):
        saved.append(int(path.stem))
        if len(saved) == 3:
            raise KeyboardInterrupt
        real(path, found)

    monkeypatch.setattr(arrays, "keep", keep)
    with pytest.raises(KeyboardInterrupt):
        dense_build.build_from_vectors(folder / "pyserini", None, folder / "x")
    assert not (folder / "x").exists()
    with caplog.at_level("INFO"):
        assert dense_build.build_from_vectors(folder / "pyserini", None, folder / "x") == 30
    assert saved == [0, 1, 2, 2, 3, 4] and "resuming after 2 finished parts" in caplog.text
    for file in ("index", "docid"):
        assert (folder / "x" / file).read_bytes() == (folder / "unbroken" / file).read_bytes()
    assert not list(folder.glob(".*"))


def test_no_vectors_give_no_index(made):
    folder, _, _ = made
    np.save(folder / "v.npy", np.empty((0, 32), np.float32))
    (folder / "ids.txt").write_text("\n")
    (folder / "none").mkdir()
    (folder / "none" / "embeddings.jsonl").write_text("\n")
    for path, ids in ((folder / "v.npy", folder / "ids.txt"), (folder / "none", None)):
        with pytest.raises(InputError, match="holds no vectors"):
            dense_build.build_from_vectors(path, ids, folder / "x")
        assert not (folder / "x").exists() and not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x", "vector": [1, 2]}', r"embeddings.jsonl:31: vector of shape \(2,\), earlier vectors have width 32"),
        ('{"id": "x", "vector": [' + ", ".join(["NaN"] * 32) + "]}", r"embeddings.jsonl:31: .*'x' has NaN"),
        ('{"id": "x", "vector": [' + ", ".join(["1e39"] * 32) + "]}", r"embeddings.jsonl:31: .*has NaN"),
        ('{"id": "x"}', 'embeddings.jsonl:31: expected {"id"'),
        ('{"id": "two words", "vector": [1]}', "embeddings.jsonl:31: an id must be one word"),
        ("nonsense", "embeddings.jsonl:31: not valid JSON"),
        ('{"id": "x", "vector": 5}', 'embeddings.jsonl:31: expected {"id"'),
        ('{"id": "x", "vector": null}', 'embeddings.jsonl:31: expected {"id"'),
        ('{"id": "x", "vector": ["1", "2"]}', 'embeddings.jsonl:31: expected {"id"'),
        ('{"id": "x", "vector": [[1], [1, 2]]}', 'embeddings.jsonl:31: expected {"id"'),
        ('{"id": null, "vector": [1]}', "embeddings.jsonl:31: no id"),
        ('{"id": "\\ud800", "vector": [1]}', "embeddings.jsonl:31: text contains half of a surrogate pair"),
    ],
)
def test_wrong_lines(made, line, message):
    folder, _, _ = made
    with open(folder / "pyserini" / "embeddings.jsonl", "a") as out:
        out.write(line + "\n")
    with pytest.raises(InputError, match=message):
        dense_build.build_from_vectors(folder / "pyserini", None, folder / "x")
    assert not (folder / "x").exists() and not list(folder.glob(".*"))


def test_wrong_counts_and_ids(made):
    folder, found, _ = made
    for ids, message in ((IDS[:-1], "30 vectors, but .* 29 ids"), ([*IDS, "e"], "30 vectors, but .* 31 ids")):
        (folder / "ids.txt").write_text("".join(f"{doc_id}\n" for doc_id in ids))
        with pytest.raises(InputError, match=message):
            dense_build.build_from_vectors(folder / "v.npy", folder / "ids.txt", folder / "x")
    (folder / "ids.txt").write_text("".join(f"{doc_id}\n" for doc_id in [*IDS[:-1], "d3"]))
    with pytest.raises(InputError, match=r"ids.txt:30: duplicate document id 'd3', first at .*ids.txt:4"):
        dense_build.build_from_vectors(folder / "v.npy", folder / "ids.txt", folder / "x")
    np.save(folder / "v.npy", found.ravel())
    with pytest.raises(InputError, match=r"expected an array \(N, H\) of floats"):
        dense_build.build_from_vectors(folder / "v.npy", folder / "ids.txt", folder / "x")
