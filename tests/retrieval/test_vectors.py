"""Existing vectors: every source gives the same index."""

import json

import numpy as np
import pytest

from pyserini_kd import index
from pyserini_kd.retrieval import dense_build
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.open_index import open_with_encoder

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
    monkeypatch.setattr(dense_build, "BLOCK", 7)
    assert dense_build.build_from_vectors(folder / "v.npy", folder / "ids.txt", folder / "a") == 30
    for name, source in (("b", "pyserini"), ("c", "pyserini/embeddings.jsonl"), ("d", "a")):
        dense_build.build_from_vectors(folder / source, None, folder / name)
        for file in ("index", "docid"):
            assert (folder / name / file).read_bytes() == (folder / "a" / file).read_bytes()
    opened = DenseIndex.open(folder / "a")
    assert opened.manifest.encoder == {"name": "unknown"}
    assert np.array_equal(opened.vectors(IDS), found)
    assert np.array_equal(opened.search(found[:5], 4)[1], np.argsort(-(found[:5] @ found.T), axis=1)[:, :4])


def test_command(made, invoke, tiny_dot):
    folder, _, _ = made
    words = ["--vectors", folder / "v.npy", "--ids", folder / "ids.txt", "--index", folder / "x"]
    result = invoke(index.main, *words, "--encoder", tiny_dot, "--faiss", "SQ8")
    assert result.exit_code == 0 and "30 vectors" in result.output
    opened, encoder = open_with_encoder(folder / "x", str(tiny_dot))
    assert opened.manifest.index == "SQ8" and opened.manifest.encoder == encoder.record()
    for wrong, message in (
        (["--vectors", folder / "v.npy"], "--ids: "),
        (["--vectors", folder / "v.npy", "--collection", "pydocs"], "--vectors: goes only with"),
        (["--collection", "pydocs"], "give --collection and --encoder, or --vectors"),
        (["--vectors", folder / "v.npy", "--ids", folder / "ids.txt", "--encoder", "minilm"], "the encoder has width 384"),
    ):
        result = invoke(index.main, *wrong, "--index", folder / "y")
        assert result.exit_code == 2 and message in result.output, result.output
        assert not (folder / "y").exists()
