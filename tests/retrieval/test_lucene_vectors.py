"""Vectors in Lucene: brute force and FAISS Flat as oracles, unnormalised vectors, ties, the same commands, clear refusals."""

import shutil

import numpy as np
import pytest
from conftest import as_ranker, search_by_name

from pyserini_kd import index, search
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.models import rankers
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.retrieval import build, faiss_build, lucene, lucene_vectors, service, text_sources
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.retrieval.system import System
from pyserini_kd.retrieval.text_sources import stored_docs
from pyserini_kd.storage.errors import InputError

KINDS = tuple(lucene_vectors.INDEXERS)


def folder_of(path, vectors, kind, cuts=(300, 550), ids=None):
    """An index folder of vectors in blocks; document n is called dn, or ids[n]."""
    path.mkdir()
    for number, block in enumerate(np.split(vectors, cuts)):
        np.save(path / f"{number}.npy", block)
    (path / "docid").write_text("".join(f"{doc_id}\n" for doc_id in ids or [f"d{n}" for n in range(len(vectors))]))
    faiss_build.write(sorted(path.glob("*.npy")), vectors.shape[1], kind, path)
    return DenseIndex.load(path)


@pytest.fixture(scope="module")
def lengths():
    """Vectors of lengths from .1 to 50: most products lie far outside [-1, 1], half of them are negative."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((800, 16)) * np.exp(rng.uniform(-4, 2.5, (800, 1)))
    return vectors.astype(np.float32), rng.standard_normal((40, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def opened(tmp_path_factory, lengths):
    folder = tmp_path_factory.mktemp("vectors")
    return {kind: folder_of(folder / kind, lengths[0], kind) for kind in (*KINDS, "Flat")}


@pytest.mark.parametrize("kind", KINDS)
def test_products_and_order_are_those_of_brute_force(opened, lengths, kind):
    vectors, queries = lengths
    products = queries @ vectors.T
    rounding = (
        2e-6 * np.abs(queries) @ np.abs(vectors).T
    )  # of sums whose terms may cancel out, in an order that is the processor's
    scores, rows = opened[kind].search(queries, 800)  # all of them, those far below -1 too
    assert np.array_equal(rows, np.argsort(-products, axis=1, kind="stable"))
    assert (np.abs(scores - np.take_along_axis(products, rows, 1)) < np.take_along_axis(rounding, rows, 1)).all()
    scores, rows = opened[kind].search(queries, 10)
    flat_scores, flat_rows = opened["Flat"].search(queries, 10)
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, flat_rows, strict=True)])
    assert found == 1 if kind == "lucene-flat" else found > 0.95, found
    if kind == "lucene-flat":
        assert np.array_equal(rows, flat_rows) and np.allclose(scores, flat_scores, rtol=1e-5, atol=1e-5)


def test_numbers_of_json():
    assert lucene.numbers("[[[1.5,7],[-2.5e-4,0]]]").tolist() == [1.5, 7, -2.5e-4, 0]
    assert lucene.numbers("[[]]").tolist() == []


def test_products_from_scores():
    """Lucene's scaleMaxInnerProductScore, turned round: 1 + x for x >= 0, 1 / (1 - x) below."""
    products = np.array([0, 0.5, 99, -0.25, -3, -1e6])
    scores = np.where(products >= 0, 1 + products, 1 / (1 - np.minimum(products, 0)))
    assert np.allclose(lucene_vectors._products(scores), products, rtol=1e-9)


def test_rows_stay_in_order_over_many_segments(tmp_path, monkeypatch):
    """Segments of 1 MiB; long ids make the first the smallest on disk, which Lucene's usual merging would bring to the end."""
    monkeypatch.setattr(lucene_vectors, "BUFFER", 1)
    vectors = np.random.default_rng(1).standard_normal((400, 1024)).astype(np.float32)
    ids = [f"d{n}{'x' * (20_000 if n < 50 else 0)}" for n in range(400)]
    opened = folder_of(tmp_path / "x", vectors, "lucene-flat", [300, 399], ids)
    rows = [399, 0, 350, 0, 101]
    assert np.array_equal(opened.vectors([ids[row] for row in rows]), vectors[rows])
    _, rows = opened.search(vectors[::50] * 3, 1)
    assert rows.ravel().tolist() == list(range(0, 400, 50))


def test_the_same_graph_every_time(tmp_path, opened, lengths):
    again = folder_of(tmp_path / "again", lengths[0], "lucene-hnsw", [10])
    for mine, theirs in zip(
        again.search(lengths[1], 30, ef_search=30), opened["lucene-hnsw"].search(lengths[1], 30, ef_search=30), strict=True
    ):
        assert np.array_equal(mine, theirs)


def test_a_longer_queue_finds_more(tmp_path):
    vectors = np.random.default_rng(2).standard_normal((1200, 64)).astype(np.float32)
    opened, queries = folder_of(tmp_path / "x", vectors, "lucene-hnsw"), vectors[:40] + 1
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :5]
    found = [np.mean(opened.search(queries, 5, ef_search=ef)[1][:, :, None] == exact[:, None]) * 5 for ef in (6, 1000)]
    assert found[0] < found[1] and found[1] > 0.99, found


def test_ties_at_the_end_are_cut_by_id_and_faiss_and_lucene_join(tmp_path, opened, lengths):
    vectors = np.repeat(lengths[0][:50], 4, axis=0)
    both = [folder_of(tmp_path / kind, vectors, kind) for kind in ("Flat", "lucene-flat")]
    for k in (1, 2, 7):
        (_, rows), (_, expected) = (one.search(lengths[1], k) for one in both)
        assert np.array_equal(np.sort(rows), np.sort(expected))
    shutil.copytree(opened["lucene-hnsw"].folder, tmp_path / "hnsw")
    (tmp_path / "hnsw" / "docid").write_text("".join(f"e{n}\n" for n in range(800)))
    joined = DenseIndex.load(tmp_path / "Flat", tmp_path / "hnsw")
    _, rows = joined.search(lengths[1], 1000)
    products = lengths[1] @ np.concatenate([vectors, lengths[0]]).T
    assert np.array_equal(np.sort(rows), np.tile(np.arange(1000), (40, 1)))
    found = np.take_along_axis(products, rows, 1)
    assert (found[:, :-1] - found[:, 1:] > -1e-4).all()
    assert np.array_equal(joined.vectors(["e5", "d9"]), [lengths[0][5], vectors[9]])


@pytest.mark.parametrize("kind", KINDS)
def test_anserini_searches_it_too(opened, lengths, kind):
    """Pyserini's Lucene*DenseSearcher is a thin cover of this class; its scores are Lucene's: 1 + x, or 1 / (1 - x)."""
    from jnius import autoclass

    name = f"io.anserini.search.{'Hnsw' if 'hnsw' in kind else 'Flat'}DenseSearcher"
    args = autoclass(f"{name}$Args")()
    args.index = str(opened[kind].folder)
    searcher = autoclass(name)(args)
    vector = lengths[1][0]
    hits = searcher.search(str(vector.tolist()), 7)
    scores, rows = opened[kind].search(vector[None], 7)
    assert [hit.docid for hit in hits] == [f"d{row}" for row in rows[0]]
    assert np.allclose([hit.score for hit in hits], np.where(scores[0] >= 0, 1 + scores[0], 1 / (1 - scores[0])), rtol=1e-4)


@pytest.fixture(scope="module")
def by_command(tmp_path_factory, corpus, tiny_dot):
    """The corpus as `index --lucene-flat` writes it."""
    from click.testing import CliRunner

    from pyserini_kd.data import formats

    folder = tmp_path_factory.mktemp("lucene")
    formats.write_collection(corpus, folder / "docs.jsonl")
    words = [
        "--collection",
        folder / "docs.jsonl",
        "--encoder",
        tiny_dot,
        "--index",
        folder / "x",
        "--lucene-flat",
        "--precision",
        "fp32",
    ]
    result = CliRunner().invoke(index.main, [str(word) for word in words])
    assert result.exit_code == 0 and "20 documents" in result.output, result.output
    return folder / "x"


@pytest.mark.parametrize("extra", ["dense", "hybrid", "reranked"])
def test_the_same_commands(by_command, dense_index, bm25_index, tiny_dot, tiny_cross, files, invoke, tmp_path, extra):
    words = {"dense": [], "hybrid": ["--sparse-index", bm25_index], "reranked": ["--rerank", tiny_cross, "--depth", 5]}[extra]
    common = ["--encoder", tiny_dot, "--topics", files["topics"], "--precision", "fp32", "--hits", 7, *words]
    for name, folder in (("faiss", dense_index), ("lucene", by_command)):
        result = invoke(search.main, *common, "--index", folder, "--output", tmp_path / name)
        assert result.exit_code == 0, result.output
    ours, expected = Run.read(tmp_path / "lucene"), Run.read(tmp_path / "faiss")
    assert list(ours) == list(expected)
    for query_id in ours:
        assert ours[query_id].doc_ids == expected[query_id].doc_ids
        assert np.allclose(ours[query_id].scores, expected[query_id].scores, rtol=1e-5)


def test_query_texts_manifest_and_service(by_command, tiny_dot, corpus, invoke):
    result = invoke(search.main, "--index", by_command, "--encoder", tiny_dot, "--query", "what the goose eats", "--hits", 3)
    assert result.exit_code == 0 and len(result.output.splitlines()) == 6, result.output
    manifest = DenseIndex.load(by_command).manifest
    assert manifest.index == "lucene-flat" and manifest.n_docs == 20 and manifest.encoder["pooling"] == "mean"
    assert list(stored_docs(by_command)(["sleep-cat"])) == [corpus[10]]
    assert list(text_sources.fetch_from(str(by_command))(["eat-dog"])) == [corpus[1]]
    run = search_by_name([Query("q", "the goose"), Query("blank", " ")], str(by_command), str(tiny_dot), hits=30)
    assert len(run["q"].doc_ids) == 20 and run["blank"].doc_ids == []
    system = System.open(SystemSettings(encoder=str(tiny_dot), index=(str(by_command),)), texts=True)
    body = service.answer(system, service.Asked(query="the goose", hits=20))
    assert [f'"{doc_id}"' in body.decode() for doc_id in run["q"].doc_ids] == [True] * 20


def test_an_interrupted_assembly_encodes_nothing_again(tmp_path, corpus, tiny_dot, monkeypatch):
    encoder = load_encoder(str(tiny_dot))
    settings = {"kind": "lucene-hnsw", "block": 6}
    add = lucene_vectors._add

    def dying(writer, blocks, kind):
        add(writer, (next(iter(blocks)) for _ in range(2)), kind)
        raise KeyboardInterrupt

    monkeypatch.setattr(lucene_vectors, "_add", dying)
    with pytest.raises(KeyboardInterrupt):
        build.build(corpus, as_ranker(encoder, tiny_dot), tmp_path / "x", **settings)
    assert not (tmp_path / "x").exists()
    monkeypatch.setattr(lucene_vectors, "_add", add)
    monkeypatch.setattr(rankers.Encoder, "encode_docs", lambda *a, **k: pytest.fail("encoded again"))
    assert build.build(corpus, as_ranker(encoder, tiny_dot), tmp_path / "x", **settings) == 20
    assert DenseIndex.load(tmp_path / "x").store.count == 20
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "x" / "write.lock").exists()


class Cut(Exception):
    """What happens to a process, in its middle."""


@pytest.mark.parametrize("row", [0, 204, 205, 500, 799, "merging", "moving"])
def test_cut_short_and_gone_on_with_to_the_same_graph(tmp_path, monkeypatch, caplog, lengths, row):
    caplog.set_level("INFO")
    monkeypatch.setattr(lucene_vectors, "BUFFER", 1)
    monkeypatch.setattr(lucene_vectors, "BESIDE", 5000)  # 205 documents a segment: 1 MiB / (16 * 4 + 16 * 4 + 5000) + 1
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
    assert "going on" not in caplog.text
    lucene_vectors.write(blocks(), "lucene-hnsw", cut, kept)
    there = {"merging": 615, "moving": 800}[row] if isinstance(row, str) else row // 205 * 205
    assert (f"going on from an index of {there} vectors" in caplog.text) == (there > 0)
    one, other = lucene_vectors.LuceneStore(whole), lucene_vectors.LuceneStore(cut)
    assert other.count == 800 and np.array_equal(other.reconstruct(np.arange(800)), vectors)
    for mine, theirs in zip(one.search(queries, 10, ef_search=12), other.search(queries, 10, ef_search=12), strict=True):
        assert np.array_equal(mine, theirs)
    assert not kept.exists() and not (cut / "write.lock").exists()


def test_segments_half_moved_away_are_made_anew(tmp_path, lengths):
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


def test_vectors_move_between_faiss_and_lucene(tmp_path, dense_index, invoke, tiny_dot):
    words = ["--encoder", tiny_dot, "--vectors"]
    assert invoke(index.main, *words, dense_index, "--index", tmp_path / "a", "--lucene-hnsw").exit_code == 0
    assert invoke(index.main, *words, tmp_path / "a", "--index", tmp_path / "b").exit_code == 0
    for name in ("index", "docid"):
        assert (tmp_path / "b" / name).read_bytes() == (dense_index / name).read_bytes()


def test_what_does_not_fit_is_refused(tmp_path, by_command, opened, bm25_index, tiny_dot, files, invoke, corpus):
    dense = ["--encoder", tiny_dot, "--topics", files["topics"], "--output", tmp_path / "no"]
    for words, message in (
        ([*dense, "--index", by_command, "--ef-search", 5], "--ef-search: is for HNSW"),
        ([*dense, "--index", by_command, "--nprobe", 5], "--nprobe: is for IVF"),
        ([*dense, "--index", by_command, "--pooling", "cls"], "pooling is cls, the index was made with mean"),
        ([*dense, "--index", by_command, "--encoder", "minilm"], "does not match index"),
        ([*dense, "--index", bm25_index], "is an index of words: search it with the encoder bm25"),
        ([*dense, "--index", by_command, "--encoder", "bm25"], "holds vectors, no words"),
        ([*dense, "--index", by_command, "--sparse-index", by_command], "holds vectors, no words"),
    ):
        result = invoke(search.main, *words)
        assert result.exit_code == 2 and message in result.output, result.output
    good = ["--collection", files["docs"], "--encoder", tiny_dot, "--index", tmp_path / "no"]
    for words, message in (
        ([*good, "--lucene-hnsw", "--faiss", "SQ8"], "--lucene-hnsw: does not go with --faiss"),
        ([*good, "--lucene-hnsw", "--encoder", "bm25"], "vectors of a dense index live"),
    ):
        result = invoke(index.main, *words)
        assert result.exit_code == 2 and message in result.output, result.output
    with pytest.raises(InputError, match="at most 4096 numbers, the encoder makes 4097"):
        faiss_build.estimate(4097, "lucene-flat")
    with pytest.raises(InputError, match="nprobe: is for IVF"):
        opened["lucene-hnsw"].search(np.ones((1, 16), np.float32), 5, nprobe=3)
    encoder = load_encoder(str(tiny_dot))
    with pytest.raises(InputError, match="could not write .* term"):
        build.build([Doc("x" * 40_000, "", "the hen")], as_ranker(encoder, tiny_dot), tmp_path / "no", kind="lucene-flat")
    with pytest.raises(InputError, match="no Lucene index of vectors .* it compares nothing"):
        lucene_vectors.LuceneStore(bm25_index)
    assert not (tmp_path / "no").exists()
    broken = shutil.copytree(by_command, tmp_path / "broken")
    (broken / "docid").write_text("a\n")
    with pytest.raises(InputError, match="20 vectors but 1 document ids"):
        DenseIndex.load(broken)


def test_results_do_not_depend_on_threads(opened, lengths, monkeypatch):
    import faiss

    expected = opened["lucene-hnsw"].search(lengths[1], 5)
    for count in (1, 3):
        faiss.omp_set_num_threads(count)
        for mine, theirs in zip(opened["lucene-hnsw"].search(lengths[1], 5), expected, strict=True):
            assert np.array_equal(mine, theirs)
