"""Vectors in Lucene against kills at each stage and wrong input."""

import shutil

import numpy as np
import pytest

from pyserini_kd import index, search
from pyserini_kd.data.types import Doc
from pyserini_kd.models import rankers
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.retrieval import dense_build, faiss_build, lucene_vectors
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.storage.errors import InputError
from tests.conftest import as_ranker
from tests.retrieval.test_lucene_vectors import by_command, lengths, opened


def test_an_interrupted_assembly_encodes_nothing_again(tmp_path, corpus, tiny_dot, monkeypatch):
    encoder = load_encoder(str(tiny_dot))
    settings = {"kind": "lucene-hnsw", "block": 6}
    add = lucene_vectors._add

    def dying(writer, blocks, kind):
        add(writer, (next(iter(blocks)) for _ in range(2)), kind)
        raise KeyboardInterrupt

    monkeypatch.setattr(lucene_vectors, "_add", dying)
    with pytest.raises(KeyboardInterrupt):
        dense_build.index_dense(corpus, as_ranker(encoder, tiny_dot), tmp_path / "x", **settings)
    assert not (tmp_path / "x").exists()
    monkeypatch.setattr(lucene_vectors, "_add", add)
    monkeypatch.setattr(rankers.Encoder, "encode_docs", lambda *a, **k: pytest.fail("encoded again"))
    assert dense_build.index_dense(corpus, as_ranker(encoder, tiny_dot), tmp_path / "x", **settings) == 20
    assert DenseIndex.open(tmp_path / "x").store.count == 20
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "x" / "write.lock").exists()


class Cut(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("row", [0, 204, 205, 500, 799, "merging", "moving"])
def test_a_killed_build_resumes_to_the_same_graph(tmp_path, monkeypatch, caplog, lengths, row):
    caplog.set_level("INFO")
    monkeypatch.setattr(lucene_vectors, "BUFFER", 1)
    monkeypatch.setattr(lucene_vectors, "OVERHEAD", 5000)  # 205 documents per segment: 1 MiB / (16 * 4 + 16 * 4 + 5000) + 1
    vectors, queries = lengths
    ids, whole, cut, kept = [f"d{n}" for n in range(800)], tmp_path / "whole", tmp_path / "cut", tmp_path / "kept"

    def blocks(until=800):
        for start, end in ((0, 300), (300, 550), (550, 800)):
            yield ids[start : min(end, until)], vectors[start : min(end, until)]
            if until < end:
                raise Cut

    def raising(*args):
        raise Cut

    with monkeypatch.context() as patch:
        if row == "merging":
            patch.setattr(lucene_vectors, "_merge_policy", raising)
        if row == "moving":
            patch.setattr(lucene_vectors.os, "replace", raising)
        cut.mkdir()
        with pytest.raises(Cut):
            lucene_vectors.write(blocks(row if isinstance(row, int) else 800), "lucene-hnsw", cut, kept)
    assert not list(cut.iterdir())
    whole.mkdir()
    lucene_vectors.write(blocks(), "lucene-hnsw", whole)
    assert "resuming" not in caplog.text
    lucene_vectors.write(blocks(), "lucene-hnsw", cut, kept)
    there = {"merging": 615, "moving": 800}[row] if isinstance(row, str) else row // 205 * 205
    assert (f"resuming from an index of {there} vectors" in caplog.text) == (there > 0)
    one, other = lucene_vectors.LuceneStore(whole), lucene_vectors.LuceneStore(cut)
    assert other.count == 800 and np.array_equal(other.reconstruct(np.arange(800)), vectors)
    for mine, theirs in zip(one.search(queries, 10, ef_search=12), other.search(queries, 10, ef_search=12), strict=True):
        assert np.array_equal(mine, theirs)
    assert not kept.exists() and not (cut / "write.lock").exists()


def test_partly_moved_segments_are_made_again(tmp_path, lengths):
    folder, kept = tmp_path / "x", tmp_path / "kept"
    folder.mkdir()
    kept.mkdir()
    (kept / "_0.fdm").write_text("left by a kill")
    lucene_vectors.write([(["a", "b"], lengths[0][:2])], "lucene-flat", folder, kept)
    assert (
        lucene_vectors.LuceneStore(folder).count == 2
        and not kept.exists()
        and not (folder / "_0.fdm").read_bytes().startswith(b"left")
    )


def test_wrong_input_is_refused(tmp_path, by_command, opened, bm25_index, tiny_dot, files, invoke, corpus):
    dense = ["--encoder", tiny_dot, "--topics", files["topics"], "--output", tmp_path / "no"]
    for words, message in (
        ([*dense, "--index", by_command, "--ef-search", 5], "--ef-search: is for HNSW"),
        ([*dense, "--index", by_command, "--nprobe", 5], "--nprobe: is for IVF"),
        ([*dense, "--index", by_command, "--pooling", "cls"], "pooling is cls, the index was made with mean"),
        ([*dense, "--index", by_command, "--encoder", "minilm"], "does not match index"),
        ([*dense, "--index", bm25_index], "is a text index; search it with the encoder bm25"),
        ([*dense, "--index", by_command, "--encoder", "bm25"], "holds vectors, not text"),
        ([*dense, "--index", by_command, "--sparse-index", by_command], "holds vectors, not text"),
    ):
        result = invoke(search.main, *words)
        assert result.exit_code == 2 and message in result.output, result.output
    good = ["--collection", files["docs"], "--encoder", tiny_dot, "--index", tmp_path / "no"]
    for words, message in (
        ([*good, "--lucene-hnsw", "--faiss", "SQ8"], "--lucene-hnsw: conflicts with --faiss"),
        ([*good, "--lucene-hnsw", "--encoder", "bm25"], "--lucene-hnsw: is for dense indexes only"),
    ):
        result = invoke(index.main, *words)
        assert result.exit_code == 2 and message in result.output, result.output
    with pytest.raises(InputError, match="at most 4096 numbers, the encoder makes 4097"):
        faiss_build.estimate(4097, "lucene-flat")
    with pytest.raises(InputError, match="nprobe: is for IVF"):
        opened["lucene-hnsw"].search(np.ones((1, 16), np.float32), 5, nprobe=3)
    encoder = load_encoder(str(tiny_dot))
    with pytest.raises(InputError, match="could not write .* term"):
        dense_build.index_dense(
            [Doc("x" * 40_000, "", "the hen")], as_ranker(encoder, tiny_dot), tmp_path / "no", kind="lucene-flat"
        )
    with pytest.raises(InputError, match="not a Lucene vector index .* its similarity is missing"):
        lucene_vectors.LuceneStore(bm25_index)
    assert not (tmp_path / "no").exists()
    broken = shutil.copytree(by_command, tmp_path / "broken")
    (broken / "docid").write_text("a\n")
    with pytest.raises(InputError, match="20 vectors but 1 document ids"):
        DenseIndex.open(broken)
