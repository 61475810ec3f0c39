"""Vectors in Lucene: brute force and FAISS Flat as oracles, unnormalised vectors, ties, the same commands."""

import shutil

import numpy as np
import pytest

from pyserini_kd import index, search
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Query
from pyserini_kd.retrieval import faiss_build, lucene, lucene_vectors, service, text_sources
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.retrieval.system import System
from pyserini_kd.retrieval.text_sources import stored_docs
from tests.conftest import search_by_name

KINDS = tuple(lucene_vectors.INDEXERS)


def folder_of(path, vectors, kind, cuts=(300, 550), ids=None):
    """An index folder of vectors in blocks; document n is called dn, or ids[n]."""
    path.mkdir()
    for number, block in enumerate(np.split(vectors, cuts)):
        np.save(path / f"{number}.npy", block)
    (path / "docid").write_text("".join(f"{doc_id}\n" for doc_id in ids or [f"d{n}" for n in range(len(vectors))]))
    faiss_build.write(sorted(path.glob("*.npy")), vectors.shape[1], kind, path)
    return DenseIndex.open(path)


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
    rounding = 2e-6 * np.abs(queries) @ np.abs(vectors).T  # terms may cancel out, in an order that depends on the processor
    scores, rows = opened[kind].search(queries, 800)  # all of them, also those far below -1
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
    """The inverse of Lucene's scaleMaxInnerProductScore: 1 + x for x >= 0, 1 / (1 - x) below."""
    products = np.array([0, 0.5, 99, -0.25, -3, -1e6])
    scores = np.where(products >= 0, 1 + products, 1 / (1 - np.minimum(products, 0)))
    assert np.allclose(lucene_vectors._products(scores), products, rtol=1e-9)


def test_rows_stay_in_order_over_many_segments(tmp_path, monkeypatch):
    """Segments of 1 MiB; the first is the smallest on disk, and Lucene's default merge would move it to the end."""
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
    joined = DenseIndex.open(tmp_path / "Flat", tmp_path / "hnsw")
    _, rows = joined.search(lengths[1], 1000)
    products = lengths[1] @ np.concatenate([vectors, lengths[0]]).T
    assert np.array_equal(np.sort(rows), np.tile(np.arange(1000), (40, 1)))
    found = np.take_along_axis(products, rows, 1)
    assert (found[:, :-1] - found[:, 1:] > -1e-4).all()
    assert np.array_equal(joined.vectors(["e5", "d9"]), [lengths[0][5], vectors[9]])


@pytest.mark.parametrize("kind", KINDS)
def test_anserini_can_search_it(opened, lengths, kind):
    """Pyserini's Lucene*DenseSearcher is a thin wrapper of this class; its scores are Lucene's: 1 + x, or 1 / (1 - x)."""
    from jnius import JavaException, autoclass

    name = f"io.anserini.search.{'Hnsw' if 'hnsw' in kind else 'Flat'}DenseSearcher"
    args = autoclass(f"{name}$Args")()
    args.index = str(opened[kind].folder)
    try:
        searcher = autoclass(name)(args)
    except JavaException as error:
        if "prebuilt" not in str(error):
            raise
        pytest.skip("Anserini of Pyserini 2.4 downloads its list of prebuilt indexes here")
    vector = lengths[1][0]
    hits = searcher.search(str(vector.tolist()), 7)
    scores, rows = opened[kind].search(vector[None], 7)
    assert [hit.docid for hit in hits] == [f"d{row}" for row in rows[0]]
    assert np.allclose([hit.score for hit in hits], np.where(scores[0] >= 0, 1 + scores[0], 1 / (1 - scores[0])), rtol=1e-4)


@pytest.fixture(scope="module")
def by_command(tmp_path_factory, corpus, tiny_dot):
    """The corpus as indexed by `index --lucene-flat`."""
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
    manifest = DenseIndex.open(by_command).manifest
    assert manifest.index == "lucene-flat" and manifest.n_docs == 20 and manifest.encoder["pooling"] == "mean"
    assert list(stored_docs(by_command)(["sleep-cat"])) == [corpus[10]]
    assert list(text_sources.fetch_from(str(by_command))(["eat-dog"])) == [corpus[1]]
    run = search_by_name([Query("q", "the goose"), Query("blank", " ")], str(by_command), str(tiny_dot), hits=30)
    assert len(run["q"].doc_ids) == 20 and run["blank"].doc_ids == []
    system = System.open(SystemSettings(encoder=str(tiny_dot), index=(str(by_command),)), texts=True)
    (body,) = service.answers(system, [service.Asked(query="the goose", hits=20)])
    assert [f'"{doc_id}"' in body.decode() for doc_id in run["q"].doc_ids] == [True] * 20


def test_vectors_move_between_faiss_and_lucene(tmp_path, dense_index, invoke, tiny_dot):
    words = ["--encoder", tiny_dot, "--vectors"]
    assert invoke(index.main, *words, dense_index, "--index", tmp_path / "a", "--lucene-hnsw").exit_code == 0
    assert invoke(index.main, *words, tmp_path / "a", "--index", tmp_path / "b").exit_code == 0
    for name in ("index", "docid"):
        assert (tmp_path / "b" / name).read_bytes() == (dense_index / name).read_bytes()


def test_results_do_not_depend_on_threads(opened, lengths, monkeypatch):
    import faiss

    expected = opened["lucene-hnsw"].search(lengths[1], 5)
    for count in (1, 3):
        faiss.omp_set_num_threads(count)
        for mine, theirs in zip(opened["lucene-hnsw"].search(lengths[1], 5), expected, strict=True):
            assert np.array_equal(mine, theirs)
