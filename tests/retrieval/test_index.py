"""Dense indexes: brute force as the oracle, several folders, encoders that must match."""

import dataclasses
import json
import subprocess
import sys

import faiss
import numpy as np
import pytest

from pyserini_kd import index
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.retrieval import dense_build, searching
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.open_index import check_encoder, load_encoder, open_with_encoder
from pyserini_kd.retrieval.text_sources import has_docs, stored_docs
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.manifest import Manifest
from tests.conftest import as_ranker, encode


@pytest.fixture(scope="module")
def encoder(tiny_dot):
    return load_encoder(str(tiny_dot))


def vectors(encoder, corpus):
    return encode(encoder, [doc.contents for doc in corpus], "doc", precision="fp32")


def test_search_is_brute_force(dense_index, encoder, corpus, queries):
    run = searching.dense(DenseIndex.open(dense_index), as_ranker(encoder, precision="fp32"), queries, hits=7)
    doc_vecs = vectors(encoder, corpus)
    query_vecs = encode(encoder, [q.text for q in queries], "query", precision="fp32")
    for query, scores in zip(queries, query_vecs @ doc_vecs.T, strict=True):
        best = np.argsort(-scores)[:7]
        assert run[query.query_id].doc_ids == [corpus[i].doc_id for i in best]
        assert np.allclose(run[query.query_id].scores, scores[best], atol=1e-4)


def test_more_hits_than_documents_and_blank_queries(dense_index, encoder, caplog):
    queries = [Query("full", "the cat"), Query("blank", "  ")]
    opened = DenseIndex.open(dense_index)
    run = searching.dense(opened, as_ranker(encoder), queries, hits=1000)
    assert not opened.doc_ids._strings.any()  # a service stores no found ids
    assert len(run["full"].doc_ids) == 20
    assert run["blank"].doc_ids == []
    with pytest.raises(InputError, match="1 queries have a duplicate id"):
        searching.dense(DenseIndex.open(dense_index), as_ranker(encoder), [*queries, queries[0]])
    searching.warn_blank(queries)
    assert "1 blank queries get no hits: blank" in caplog.text


@pytest.mark.parametrize("kind", ["Flat", "SQ8", "HNSW8", "IVF2,Flat"])
def test_kinds_keep_inner_product_order(tmp_path, encoder, tiny_dot, corpus, queries, kind):
    many = [Doc(f"{doc.doc_id}-{n}", doc.title, f"{doc.text} {n * 'hay '}") for n in range(10) for doc in corpus]
    dense_build.index_dense(many, as_ranker(encoder, tiny_dot, precision="fp32"), tmp_path / "x", kind=kind)
    opened = DenseIndex.open(tmp_path / "x")
    assert faiss.read_index(str(tmp_path / "x" / "index")).metric_type == faiss.METRIC_INNER_PRODUCT
    query_vecs = encode(encoder, [q.text for q in queries], "query", precision="fp32")
    exact = np.argsort(-(query_vecs @ vectors(encoder, many).T), axis=1)[:, :10]
    _, rows = opened.search(query_vecs, 10, nprobe=2 if kind.startswith("IVF") else None)
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, rows, strict=True)])
    assert overlap >= (1.0 if kind in ("Flat", "IVF2,Flat") else 0.8)


def test_manifest_and_stored_documents(dense_index, corpus):
    opened = DenseIndex.open(dense_index)
    assert opened.manifest.n_docs == 20 and opened.manifest.encoder["pooling"] == "mean"
    fetch = stored_docs(dense_index)
    assert list(fetch(["sleep-cat", "eat-dog"])) == [corpus[10], corpus[1]]
    with pytest.raises(InputError, match="not in the index"):
        list(fetch(["nobody"]))
    assert np.allclose(opened.vectors(["eat-dog"]), opened.store.reconstruct(1))


def test_encoder_must_match(dense_index, tiny_dot, tmp_path, encoder):
    opened = DenseIndex.open(dense_index)
    check_encoder(opened, as_ranker(encoder, tiny_dot))
    other = load_encoder(str(tiny_dot), pooling="cls")
    with pytest.raises(InputError, match="pooling is cls, the index was made with mean"):
        check_encoder(opened, as_ranker(other, tiny_dot))
    check_encoder(opened, as_ranker(other, tiny_dot), ignore=True)
    manifest = Manifest.read(dense_index)
    manifest.encoder["sha256"] = "0" * 64
    with pytest.raises(InputError, match="sha256"):
        check_encoder(dataclasses.replace(opened, manifest=manifest), as_ranker(encoder, tiny_dot))
    with pytest.raises(InputError, match="vectors of width 384"):
        check_encoder(opened, as_ranker(load_encoder("minilm"), tiny_dot))


def test_search_uses_the_prefixes_of_the_index(tmp_path, tiny_dot, corpus, queries):
    made = load_encoder(str(tiny_dot), precision="fp32", doc_prefix="barn ", pooling="cls")
    dense_build.index_dense(corpus, made, tmp_path / "x")
    opened, encoder = open_with_encoder(tmp_path / "x", str(tiny_dot))
    assert (encoder.reader.settings.doc_prefix, encoder.reader.settings.pooling) == ("barn ", "cls")
    with pytest.raises(InputError, match="pooling is mean, the index was made with cls"):
        open_with_encoder(tmp_path / "x", str(tiny_dot), pooling="mean")


def test_command(tmp_path, invoke, files, tiny_dot, tiny_cross):
    good = ["--collection", files["docs"], "--encoder", tiny_dot, "--index", tmp_path / "out"]
    result = invoke(index.main, *good, "--no-store-docs")
    assert result.exit_code == 0 and "20 documents" in result.output
    assert not has_docs(tmp_path / "out")
    assert invoke(index.main, *good).exit_code == 2  # exists
    for wrong, word in (
        (["--faiss", "Magic7"], "factory string"),
        (["--collection-class", "HtmlCollection"], "bm25"),
        (["--dtype", "fp16"], "--dtype: requires --for"),
        (["--collection", tmp_path / "nowhere"], "not found"),
        (["--encoder", tiny_cross], "bert_dot"),
        (["--encoder", "unheard-of"], "not found; tried:"),
        (["--device", "cuda:99"], "--device"),
    ):
        result = invoke(index.main, *good, "--overwrite", *wrong)
        assert result.exit_code == 2 and word in result.output, result.output
    (tmp_path / "twice.jsonl").write_text('{"id": "a", "contents": "x"}\n{"id": "a", "contents": "y"}\n')
    result = invoke(index.main, "--collection", tmp_path / "twice.jsonl", "--encoder", tiny_dot, "--index", tmp_path / "dup")
    assert result.exit_code == 2 and "twice.jsonl:2: duplicate document id 'a', first at " in result.output
    assert not (tmp_path / "dup").exists() and not list(tmp_path.glob(".*"))


@pytest.fixture
def halves(tmp_path, encoder, tiny_dot, corpus):
    """The corpus with every text four times (ties), as one index and as three."""
    many = [Doc(f"{doc.doc_id}-{n}", doc.title, doc.text) for n in range(4) for doc in corpus]
    for name, part in {"whole": many, "a": many[:30], "b": many[30:33], "c": many[33:]}.items():
        dense_build.index_dense(part, as_ranker(encoder, tiny_dot, precision="fp32"), tmp_path / name)
    return many, tmp_path / "whole", [tmp_path / name for name in "abc"]


def test_several_folders_are_searched_as_one(halves, encoder, queries):
    many, whole, parts = halves
    one, joined = DenseIndex.open(whole), DenseIndex.open(*parts)
    assert list(joined.doc_ids) == [doc.doc_id for doc in many]
    for hits in (1, 3, 10, 100):
        a, b = (searching.dense(opened, as_ranker(encoder, precision="fp32"), queries, hits=hits) for opened in (one, joined))
        for query in queries:
            assert a[query.query_id].doc_ids == b[query.query_id].doc_ids
            assert np.array_equal(a[query.query_id].scores, b[query.query_id].scores)
    asked = [many[n].doc_id for n in (79, 0, 31, 33)]
    assert np.array_equal(one.vectors(asked), joined.vectors(asked))
    assert list(stored_docs(*parts)(asked)) == [many[n] for n in (79, 0, 31, 33)]
    with pytest.raises(InputError, match="not in the index .*a or .*b or .*c"):
        list(stored_docs(*parts)(["nobody"]))


def test_a_manifest_of_shards_opens_its_folders(halves, encoder, queries, tmp_path, invoke, files, tiny_dot):
    from pyserini_kd import search
    from pyserini_kd.retrieval import text_sources

    many, whole, parts = halves
    (tmp_path / "shards.json").write_text(json.dumps({"shards": ["a", str(parts[1]), "c"]}))  # relative or absolute
    (tmp_path / "as-folder").mkdir()
    (tmp_path / "as-folder" / "manifest.json").write_text(json.dumps({"shards": ["../a", "../b", "../c"]}))
    expected = searching.dense(DenseIndex.open(whole), as_ranker(encoder, precision="fp32"), queries, hits=9)
    for name in ("shards.json", "as-folder"):
        opened = DenseIndex.open(tmp_path / name)
        assert list(opened.doc_ids) == [doc.doc_id for doc in many]
        run = searching.dense(opened, as_ranker(encoder, precision="fp32"), queries, hits=9)
        assert {q: run[q].doc_ids for q in run} == {q: expected[q].doc_ids for q in expected}
        assert list(stored_docs(tmp_path / name)([many[33].doc_id])) == [many[33]] and has_docs(tmp_path / name)
        result = invoke(search.main, "--index", tmp_path / name, "--encoder", tiny_dot, "--query", "the cat eats")
        assert result.exit_code == 0 and "eats hay" in result.output, result.output
    assert list(text_sources.fetch_from(str(tmp_path / "as-folder"))([many[33].doc_id])) == [many[33]]
    for text, message in (
        ("[]", "expected a JSON object"),
        ("{}", 'expected {"shards": '),
        ('{"shards": "a"}', 'expected {"shards": '),
        ('{"shards": []}', 'expected {"shards": '),
        ('{"shards": ["a", "nowhere"]}', "index not found: .*nowhere"),
        ('{"shards": ["a", "a"]}', "in more than one index"),
        (b"\xff\xfe", r"not valid JSON \(not UTF-8"),
    ):
        (tmp_path / "shards.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError, match=message):
            DenseIndex.open(tmp_path / "shards.json")
    with pytest.raises(InputError, match="index is a file; name the index folder"):
        DenseIndex.open(tmp_path / "a" / "index")


def test_search_command_over_several_folders(halves, invoke, files, tiny_dot, tmp_path):
    from pyserini_kd import search

    _, whole, parts = halves
    common = ["--encoder", tiny_dot, "--topics", files["topics"], "--hits", 7, "--precision", "fp32", "--runtag", "x"]
    for name, folders in (("one", [whole]), ("many", parts)):
        words = [word for folder in folders for word in ("--index", folder)]
        result = invoke(search.main, *common, *words, "--output", tmp_path / name)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "one").read_text() == (tmp_path / "many").read_text()
    several = [word for folder in parts for word in ("--index", folder)]
    result = invoke(search.main, "--encoder", tiny_dot, "--query", "the cat eats", *several, "--mmap")
    assert result.exit_code == 0 and "eats hay" in result.output
    for wrong, message in ((["--nprobe", 2], "--nprobe: is for IVF"), (["--bm25"], "is for a dense --encoder")):
        result = invoke(search.main, *common, *several, *wrong, "--output", tmp_path / "no")
        assert result.exit_code == 2 and message in result.output, result.output


def test_dense_search_never_starts_java(dense_index, files, tiny_dot, tmp_path):
    words = ["--index", dense_index, "--encoder", tiny_dot, "--topics", files["topics"], "--output", tmp_path / "run.txt"]
    code = f"""
import sys
from pyserini_kd.search import main
main({[str(word) for word in words]!r}, standalone_mode=False)
assert "faiss" in sys.modules and not {{"jnius", "pyserini"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
