"""Impact indexes: results equal Pyserini's LuceneImpactSearcher and brute force; quantisation, resuming, hybrid, errors."""

import sys

import numpy as np
import pytest

from pyserini_kd import index, rerank, search
from pyserini_kd.data import formats
from pyserini_kd.data.java import start_jvm
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.models import checkpoint_folder, rankers
from pyserini_kd.retrieval import fusion, impact_build
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.impact_index import ImpactIndex, is_impact_index
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.retrieval.system import System
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.manifest import Manifest
from pyserini_kd.storage.records import read_json, record_path
from tests.conftest import search_by_name
from tests.models.test_splade import for_pyserini, masked_lm


@pytest.fixture(scope="module")
def mlm(tokenizer, tmp_path_factory):
    """A random SPLADE. Its path contains `splade`, because Pyserini chooses the query encoder by this word."""
    return masked_lm(tokenizer, tmp_path_factory.mktemp("models") / "splade-mlm", seed=11)


@pytest.fixture(scope="module")
def encoder(mlm):
    return rankers.load(str(mlm), precision="fp32")


@pytest.fixture(scope="module")
def impact(tmp_path_factory, encoder, corpus):
    folder = tmp_path_factory.mktemp("indexes") / "corpus.splade"
    assert impact_build.index_impacts(corpus, encoder, folder) == 20
    return folder


def frequencies(encoder, texts):
    """Number of texts with an impact of each token."""
    found = list(impact_build.impacts(encoder, texts, "doc"))
    return {token: sum(token in one for one in found) for one in found for token in one}


def test_quantisation_equals_that_of_pyserini(encoder):
    weights = np.float32([0.0, 0.009, 0.00977, 0.48828125, 0.0097656, 2.7946, 3.5, 9.0])
    assert impact_build.quantised(weights).tolist() == [round(float(weight) / 5 * 256) for weight in weights]
    text = "the pig eats hay"
    (found,) = impact_build.impacts(encoder, [text], "query")
    vector, tokens = encoder.encode_queries([text]).toarray()[0], encoder.tokens()
    expected = {tokens[n]: round(float(weight) / 5 * 256) for n, weight in enumerate(vector)}
    assert found == {token: number for token, number in expected.items() if vector[tokens.index(token)] > 0}


def test_scores_are_sums_of_products_of_impacts(impact, encoder, corpus, queries):
    run = ImpactIndex.open(impact, str(encoder.folder), precision="fp32").search(queries, hits=20)
    docs = dict(
        zip([doc.doc_id for doc in corpus], impact_build.impacts(encoder, [d.contents for d in corpus], "doc"), strict=True)
    )
    df = frequencies(encoder, [doc.contents for doc in corpus])
    assert max(df.values()) == 20 > min(df.values())  # one or more tokens are in every document
    for query, weights in zip(queries, impact_build.impacts(encoder, [q.text for q in queries], "query"), strict=True):
        kept = {token: weight for token, weight in weights.items() if 0 < df.get(token, 0) < 20}
        assert len(kept) < len(weights)
        expected = {d: sum(weight * impacts.get(token, 0) for token, weight in kept.items()) for d, impacts in docs.items()}
        hits = run[query.query_id]
        matched = {d: score for d, score in expected.items() if kept.keys() & docs[d].keys()}
        assert {d: round(s) for d, s in zip(hits.doc_ids, hits.scores.tolist(), strict=True)} == matched


def test_pyserini_opens_the_index_and_ranks_like_us(impact, mlm, encoder, queries, tmp_path):
    start_jvm()
    from pyserini.search.lucene import LuceneImpactSearcher

    theirs = LuceneImpactSearcher(str(impact), for_pyserini(mlm, tmp_path / "splade"))
    everywhere = {token for token, idf in theirs.idf.items() if idf <= 0}
    assert everywhere & set(theirs.query_encoder.encode(queries[0].text))  # min_idf removes tokens here
    ours = ImpactIndex.open(impact, str(mlm), precision="fp32").search(queries, hits=15, threads=2)
    batch = theirs.batch_search([q.text for q in queries], [q.query_id for q in queries], 15, 2)
    for query in queries:
        mine, other = ours[query.query_id], theirs.search(query.text, 15)
        assert mine.doc_ids == [hit.docid for hit in other] == [hit.docid for hit in batch[query.query_id]]
        assert np.allclose(mine.scores, [hit.score for hit in other], rtol=1e-5)


def test_threads_do_not_mix_queries(impact, mlm, queries):
    """Java calls of jnius are not thread-safe. Each query keeps its tokens if the threads switch all the time."""
    opened = ImpactIndex.open(impact, str(mlm), precision="fp32")
    many = [Query(f"{query.query_id}-{n}", query.text) for n in range(60) for query in queries]
    expected, interval = opened.search(many), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        found = opened.search(many, threads=4)
    finally:
        sys.setswitchinterval(interval)
    for query in many:
        hits, other = found[query.query_id], expected[query.query_id]
        assert hits.doc_ids == other.doc_ids and hits.scores.tolist() == other.scores.tolist()


def test_commands_index_and_search(tmp_path, files, mlm, invoke, queries, corpus):
    result = invoke(
        index.main, "--collection", files["docs"], "--encoder", mlm, "--index", tmp_path / "ix", "--precision", "fp32"
    )
    assert result.exit_code == 0 and "20 documents" in result.output, result.output
    manifest = Manifest.read(tmp_path / "ix")
    assert (manifest.kind, manifest.index, manifest.n_docs) == ("impact", "impact", 20)
    assert manifest.made_by["sha256"] == checkpoint_folder.fingerprint(mlm) and manifest.made_by["strategy"] == "max"
    words = ["--encoder", mlm, "--index", tmp_path / "ix", "--topics", files["topics"], "--precision", "fp32"]
    result = invoke(search.main, *words, "--qrels", files["qrels"], "--output", tmp_path / "run.txt")
    assert result.exit_code == 0 and "RR@10" in result.output, result.output
    run = Run.read(tmp_path / "run.txt")
    direct = ImpactIndex.open(tmp_path / "ix", precision="fp32").search(queries)  # encoder from the manifest
    assert {q: hits.doc_ids for q, hits in run.items()} == {q: hits.doc_ids for q, hits in direct.items()}
    record = read_json(record_path(tmp_path / "run.txt"), "record")
    assert record["encoder_sha256"] == checkpoint_folder.fingerprint(mlm) and record["precision"] == "fp32"
    result = invoke(
        search.main, "--encoder", mlm, "--index", tmp_path / "ix", "--query", "what the cow eats", "--precision", "fp32"
    )
    assert result.exit_code == 0 and "the horse sleeps in the barn" in result.output, result.output  # the index stores texts
    result = invoke(rerank.main, "--run", tmp_path / "run.txt", "--topics", files["topics"], "--index", tmp_path / "ix",
                    "--encoder", mlm, "--precision", "fp32", "--output", tmp_path / "again.txt")  # fmt: skip
    assert result.exit_code == 0, result.output


def test_hybrid_of_impacts_and_vectors(tmp_path, impact, dense_index, tiny_dot, queries, bm25_index, encoder):
    settings = SystemSettings(
        encoder=str(tiny_dot), index=(str(dense_index),), sparse_index=str(impact), precision="fp32", rrf_k=10
    )
    run, timing = System.open(settings).search(queries, 10)
    sparse = ImpactIndex.open(impact, precision="fp32").search(queries)
    dense = search_by_name(queries, str(dense_index), str(tiny_dot))
    expected = fusion.rrf([sparse, dense], rrf_k=10).top(10)
    assert {q: hits.doc_ids for q, hits in run.items()} == {q: hits.doc_ids for q, hits in expected.items()}
    assert "sparse_seconds" in timing
    with pytest.raises(InputError, match="k1: is for BM25; .* holds impacts"):
        System.open(SystemSettings(**settings.model_dump(exclude_unset=True), k1=1.0))


def test_a_killed_build_resumes_at_the_next_block(tmp_path, mlm, encoder, corpus, impact, queries, monkeypatch):
    calls, make = [], impact_build.impacts

    def dying(one, texts, *more):
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return make(one, texts, *more)

    monkeypatch.setattr(impact_build, "impacts", dying)
    with pytest.raises(KeyboardInterrupt):
        impact_build.index_impacts(corpus, encoder, tmp_path / "ix", block=6)
    assert not (tmp_path / "ix").exists()
    write = impact_build._write

    def cut_short(blocks, new, threads):
        write(blocks, new, threads)
        raise KeyboardInterrupt

    monkeypatch.setattr(impact_build, "_write", cut_short)
    with pytest.raises(KeyboardInterrupt):
        impact_build.index_impacts(corpus, encoder, tmp_path / "ix", block=6)
    monkeypatch.setattr(impact_build, "_write", write)
    assert impact_build.index_impacts(corpus, encoder, tmp_path / "ix", block=6) == 20
    assert calls == [6, 6, 6, 6, 2]
    monkeypatch.undo()
    runs = [ImpactIndex.open(folder, precision="fp32").search(queries) for folder in (tmp_path / "ix", impact)]
    assert [{q: (hits.doc_ids, hits.scores.tolist()) for q, hits in run.items()} for run in runs][0] == {
        q: (hits.doc_ids, hits.scores.tolist()) for q, hits in runs[1].items()
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ix"]


def test_texts_without_weights_odd_ids_and_blank_queries(tmp_path, encoder, caplog, monkeypatch):
    docs = [Doc("a/b", "", "the cat eats hay"), Doc("né", "", 'the "dog" \\ eats'), Doc("none", "", "the cow")]
    make = impact_build.impacts
    with monkeypatch.context() as patch:
        patch.setattr(impact_build, "impacts", lambda *args: [*make(*args)][:2] + [{}])
        assert impact_build.index_impacts(docs, encoder, tmp_path / "ix") == 3
    assert "1 of 3 documents cannot be found: no impact above 0" in caplog.text
    run = ImpactIndex.open(tmp_path / "ix", precision="fp32").search([Query("q", "cat dog"), Query("blank", " ")])
    assert set(run["q"].doc_ids) <= {"a/b", "né"} and run["blank"].doc_ids == [] and list(run) == ["q", "blank"]
    with pytest.raises(InputError, match="no documents"):
        impact_build.index_impacts([], encoder, tmp_path / "none")


def test_errors_are_one_line(tmp_path, impact, files, mlm, tokenizer, tiny_dot, dense_index, bm25_index, invoke):
    other = masked_lm(tokenizer, tmp_path / "other", seed=12)

    def refused(command, match, *words):
        result = invoke(command, *words)
        assert result.exit_code == 2 and match in result.output.splitlines()[-1], result.output

    topics = ["--topics", files["topics"], "--output", tmp_path / "x.txt"]
    refused(search.main, "encoder does not match index", "--encoder", other, "--index", impact, *topics)
    refused(search.main, "holds the impacts of a splade", "--encoder", tiny_dot, "--index", impact, *topics)
    refused(
        search.main,
        "holds the impacts of a splade, not text; search it with the encoder that made it",
        "--encoder",
        "bm25",
        "--index",
        impact,
        *topics,
    )
    refused(search.main, "a dense index needs a bert_dot", "--encoder", mlm, "--index", dense_index, *topics)
    refused(search.main, "--ef-search: has no effect on", "--encoder", mlm, "--index", impact, "--ef-search", 9, *topics)
    cached = ("--query-cache", tmp_path / "cache")
    refused(
        search.main, "--query-cache: keeps vectors for dense indexes", "--encoder", mlm, "--index", impact, *cached, *topics
    )
    refused(
        search.main,
        "--index: a search takes one impact index only",
        "--encoder",
        mlm,
        "--index",
        impact,
        "--index",
        dense_index,
        *topics,
    )
    made = ["--collection", files["docs"], "--encoder", mlm, "--index", tmp_path / "new"]
    refused(index.main, "--faiss: is for a dense index; a splade makes an impact index", *made, "--faiss", "HNSW32")
    refused(index.main, "exists", "--collection", files["docs"], "--encoder", mlm, "--index", impact)
    with pytest.raises(InputError, match="holds the impacts of a splade, not vectors"):
        DenseIndex.open(impact)
    result = invoke(search.main, "--encoder", other, "--index", impact, "--ignore-encoder-mismatch", *topics)
    assert result.exit_code == 0, result.output
    assert is_impact_index(impact) and not is_impact_index(dense_index) and not is_impact_index(bm25_index)


def test_a_splade_searches_an_index_of_another_program(tmp_path, impact, mlm, queries):
    import shutil

    shutil.copytree(impact, tmp_path / "theirs")
    (tmp_path / "theirs" / "manifest.json").unlink()
    assert is_impact_index(tmp_path / "theirs", str(mlm)) and not is_impact_index(tmp_path / "theirs")
    with pytest.raises(InputError, match="names no encoder; name the encoder that made the index"):
        ImpactIndex.open(tmp_path / "theirs")
    run = ImpactIndex.open(tmp_path / "theirs", str(mlm), precision="fp32").search(queries)
    assert run["q0"].doc_ids == ImpactIndex.open(impact, precision="fp32").search(queries)["q0"].doc_ids


def test_pooling_makes_a_language_model_a_bi_encoder(tmp_path, files, mlm, invoke):
    result = invoke(
        index.main, "--collection", files["docs"], "--encoder", mlm, "--pooling", "mean", "--index", tmp_path / "dense"
    )
    assert result.exit_code == 0, result.output
    assert Manifest.read(tmp_path / "dense").kind == "dense"


def test_splade_tiny_ranks_like_pyserini(tmp_path, shared_data):
    """Real weights, 300 passages and 20 queries of MS MARCO."""
    start_jvm()
    from pyserini.search.lucene import LuceneImpactSearcher

    docs = [
        doc
        for _, doc in zip(
            range(300), formats.read_collection(str(shared_data / "msmarco-dl19" / "collection.tsv")), strict=False
        )
    ]
    queries = formats.read_topics(shared_data / "msmarco-dl19" / "queries.dl19.tsv")[:20]
    encoder = rankers.load(str(shared_data / "splade-tiny"), precision="fp32")
    impact_build.index_impacts(docs, encoder, tmp_path / "ix", threads=2)
    theirs = LuceneImpactSearcher(str(tmp_path / "ix"), for_pyserini(shared_data / "splade-tiny", tmp_path / "splade"))
    ours = ImpactIndex.open(tmp_path / "ix", precision="fp32").search(queries, hits=100)
    for query in queries:
        other = theirs.search(query.text, 100)
        assert ours[query.query_id].doc_ids == [hit.docid for hit in other]
        assert np.allclose(ours[query.query_id].scores, [hit.score for hit in other], rtol=1e-5)
