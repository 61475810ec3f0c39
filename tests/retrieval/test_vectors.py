"""Vectors made elsewhere: every source gives the same index; each fault is named with its place."""

import json

import numpy as np
import pytest

from pyserini_kd import index
from pyserini_kd.retrieval import build
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.open_index import open_with_encoder
from pyserini_kd.storage import arrays
from pyserini_kd.storage.errors import InputError

IDS = [f"d{n}" for n in range(30)]


@pytest.fixture
def made(tmp_path):
    """The same vectors in every form."""
    found = np.random.default_rng(3).standard_normal((30, 32)).astype(np.float32)
    np.save(tmp_path / "v.npy", found)
    (tmp_path / "ids.txt").write_text("".join(f"{doc_id}\n" for doc_id in IDS))
    (tmp_path / "pyserini").mkdir()
    lines = [json.dumps({"id": d, "contents": "x", "vector": v.tolist()}) + "\n" for d, v in zip(IDS, found, strict=True)]
    (tmp_path / "pyserini" / "embeddings.jsonl").write_text("".join(lines))
    return tmp_path, found, lines


def test_every_source_gives_the_same_index(made, monkeypatch):
    folder, found, _ = made
    monkeypatch.setattr(build, "BLOCK", 7)
    assert build.build_from_vectors(folder / "v.npy", folder / "ids.txt", folder / "a") == 30
    for name, source in (("b", "pyserini"), ("c", "pyserini/embeddings.jsonl"), ("d", "a")):
        build.build_from_vectors(folder / source, None, folder / name)
        for file in ("index", "docid"):
            assert (folder / name / file).read_bytes() == (folder / "a" / file).read_bytes()
    opened = DenseIndex.load(folder / "a")
    assert opened.manifest.encoder == {"name": "unknown"}
    assert np.array_equal(opened.vectors(IDS), found)
    assert np.array_equal(opened.search(found[:5], 4)[1], np.argsort(-(found[:5] @ found.T), axis=1)[:, :4])


def test_what_was_read_before_a_kill_is_not_written_again(made, monkeypatch, caplog):
    folder, _, _ = made
    monkeypatch.setattr(build, "BLOCK", 7)
    build.build_from_vectors(folder / "v.npy", folder / "ids.txt", folder / "unbroken")
    real, saved = arrays.keep, []

    def keep(path, found):
        saved.append(int(path.stem))
        if len(saved) == 3:
            raise KeyboardInterrupt
        real(path, found)

    monkeypatch.setattr(arrays, "keep", keep)
    with pytest.raises(KeyboardInterrupt):
        build.build_from_vectors(folder / "pyserini", None, folder / "x")
    assert not (folder / "x").exists()
    with caplog.at_level("INFO"):
        assert build.build_from_vectors(folder / "pyserini", None, folder / "x") == 30
    assert saved == [0, 1, 2, 2, 3, 4] and "going on from 2 finished parts" in caplog.text
    for file in ("index", "docid"):
        assert (folder / "x" / file).read_bytes() == (folder / "unbroken" / file).read_bytes()
    assert not list(folder.glob(".*"))


def test_no_vectors_are_no_index(made):
    folder, _, _ = made
    np.save(folder / "v.npy", np.empty((0, 32), np.float32))
    (folder / "ids.txt").write_text("\n")
    (folder / "none").mkdir()
    (folder / "none" / "embeddings.jsonl").write_text("\n")
    for path, ids in ((folder / "v.npy", folder / "ids.txt"), (folder / "none", None)):
        with pytest.raises(InputError, match="holds no vectors"):
            build.build_from_vectors(path, ids, folder / "x")
        assert not (folder / "x").exists() and not list(folder.glob(".*"))


def test_command(made, invoke, tiny_dot):
    folder, _, _ = made
    words = ["--vectors", folder / "v.npy", "--ids", folder / "ids.txt", "--index", folder / "x"]
    result = invoke(index.main, *words, "--encoder", tiny_dot, "--faiss", "SQ8")
    assert result.exit_code == 0 and "30 vectors" in result.output
    opened, encoder = open_with_encoder(folder / "x", str(tiny_dot))
    assert opened.manifest.index == "SQ8" and opened.manifest.encoder == encoder.record()
    for wrong, message in (
        (["--vectors", folder / "v.npy"], "--ids: "),
        (["--vectors", folder / "v.npy", "--collection", "pydocs"], "--vectors: goes with"),
        (["--collection", "pydocs"], "--collection and --encoder are needed"),
        (["--vectors", folder / "v.npy", "--ids", folder / "ids.txt", "--encoder", "minilm"], "makes vectors of 384"),
    ):
        result = invoke(index.main, *wrong, "--index", folder / "y")
        assert result.exit_code == 2 and message in result.output, result.output
        assert not (folder / "y").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x", "vector": [1, 2]}', r"embeddings.jsonl:31: vector of \(2,\), those before are of 32"),
        ('{"id": "x", "vector": [' + ", ".join(["NaN"] * 32) + "]}", r"embeddings.jsonl:31: .*'x' holds NaN"),
        ('{"id": "x", "vector": [' + ", ".join(["1e39"] * 32) + "]}", r"embeddings.jsonl:31: .*holds NaN"),
        ('{"id": "x"}', 'embeddings.jsonl:31: expected {"id"'),
        ('{"id": "two words", "vector": [1]}', "embeddings.jsonl:31: an id must be one word"),
        ("nonsense", "embeddings.jsonl:31: not valid JSON"),
        ('{"id": "x", "vector": 5}', 'embeddings.jsonl:31: expected {"id"'),
        ('{"id": "x", "vector": null}', 'embeddings.jsonl:31: expected {"id"'),
        ('{"id": "x", "vector": ["1", "2"]}', 'embeddings.jsonl:31: expected {"id"'),
        ('{"id": "x", "vector": [[1], [1, 2]]}', 'embeddings.jsonl:31: expected {"id"'),
        ('{"id": null, "vector": [1]}', "embeddings.jsonl:31: no id"),
        ('{"id": "\\ud800", "vector": [1]}', "embeddings.jsonl:31: text with half of a surrogate pair"),
    ],
)
def test_wrong_lines(made, line, message):
    folder, _, _ = made
    with open(folder / "pyserini" / "embeddings.jsonl", "a") as out:
        out.write(line + "\n")
    with pytest.raises(InputError, match=message):
        build.build_from_vectors(folder / "pyserini", None, folder / "x")
    assert not (folder / "x").exists() and not list(folder.glob(".*"))


def test_wrong_counts_and_ids(made):
    folder, found, _ = made
    for ids, message in ((IDS[:-1], "30 vectors, but .* 29 ids"), ([*IDS, "e"], "30 vectors, but .* 31 ids")):
        (folder / "ids.txt").write_text("".join(f"{doc_id}\n" for doc_id in ids))
        with pytest.raises(InputError, match=message):
            build.build_from_vectors(folder / "v.npy", folder / "ids.txt", folder / "x")
    (folder / "ids.txt").write_text("".join(f"{doc_id}\n" for doc_id in [*IDS[:-1], "d3"]))
    with pytest.raises(InputError, match=r"ids.txt:30: duplicate document id 'd3', first at .*ids.txt:4"):
        build.build_from_vectors(folder / "v.npy", folder / "ids.txt", folder / "x")
    np.save(folder / "v.npy", found.ravel())
    with pytest.raises(InputError, match=r"expected an array \(N, H\) of floats"):
        build.build_from_vectors(folder / "v.npy", folder / "ids.txt", folder / "x")
