"""Our transformers in the real PyTerrier: its experiments, pipelines and validation."""

import numpy as np
import pytest

from pyserini_kd import pyterrier as transformers
from pyserini_kd.data.types import Doc
from pyserini_kd.evaluation import engines
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.retrieval.system import System
from pyserini_kd.storage.errors import InputError

pt = pytest.importorskip("pyterrier", reason="an optional package (the extra `pyterrier`), which few installations have")
import pandas as pd  # noqa: E402 - PyTerrier brings it


@pytest.fixture(scope="module")
def dense(dense_index, tiny_dot):
    return System.open(SystemSettings(index=(str(dense_index),), encoder=str(tiny_dot)), texts=True)


@pytest.fixture(scope="module")
def reranking(bm25_index, tiny_cross):
    return System.open(SystemSettings(index=(str(bm25_index),), encoder="bm25", rerank=str(tiny_cross), depth=5))


@pytest.fixture(scope="module")
def topics(queries):
    return pd.DataFrame([{"qid": query.query_id, "query": query.text, "query_0": "before"} for query in queries])


def rows_of(frame):
    return list(zip(frame["qid"], frame["docno"], frame["rank"], strict=True))


def ranks_of(run):
    return [(query_id, doc_id, rank) for query_id, hits in run.items() for rank, doc_id in enumerate(hits.doc_ids)]


def test_results_are_those_of_the_system(dense, topics, queries):
    run, _ = dense.search(queries, 4)
    found = transformers.retriever(dense, 4)(topics)
    assert set(found.columns) == {"qid", "query", "query_0", "docno", "score", "rank"}
    assert rows_of(found) == ranks_of(run) and (found["query_0"] == "before").all()
    assert np.allclose(found["score"], np.concatenate([hits.scores for hits in run.values()]))
    assert list(found.groupby("qid", sort=False)["query"].first()) == [query.text for query in queries]


def test_an_experiment_equals_our_measures(dense, reranking, topics, queries, corpus):
    qrels = {query.query_id: {doc.doc_id: int(row < 4) for row, doc in enumerate(corpus)} for query in queries}
    table = pd.DataFrame([{"qid": q, "docno": d, "label": grade} for q, docs in qrels.items() for d, grade in docs.items()])
    systems = [transformers.retriever(dense, 8), transformers.retriever(reranking, 8)]
    found = pt.Experiment(systems, topics, table, ["map", "ndcg_cut_5"], names=["dense", "reranked"]).set_index("name")
    for name, system in (("dense", dense), ("reranked", reranking)):
        ours = engines.evaluate(system.search(queries, 8)[0], qrels, ["AP", "nDCG@5"])
        expected = [engines.mean(values) for values in ours.values()]
        assert found.loc[name].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_pipeline_of_both_equals_the_system_that_reranks(bm25_index, reranking, topics, queries):
    run, _ = reranking.search(queries, 5)
    first = System.open(SystemSettings(index=(str(bm25_index),), encoder="bm25"), texts=True)
    for texts in (False, True):
        pipeline = transformers.retriever(first, 5, texts=texts) >> transformers.reranker(reranking)
        found = pipeline(topics)
        assert rows_of(found) == ranks_of(run) and ("text" in found) == texts
        assert np.allclose(found["score"], np.concatenate([hits.scores for hits in run.values()]), atol=1e-5)
    cut = (transformers.retriever(first, 5) % 2)(topics)
    assert set(cut.groupby("qid").size()) == {2}


def test_texts_are_those_of_the_rows(reranking, dense, topics, corpus):
    by_id = {doc.doc_id: doc for doc in corpus}
    found = transformers.retriever(dense, 3, texts=True)(topics)
    for row in found.itertuples():
        assert (row.title, row.text) == by_id[row.docno][1:]
    scorer = reranking.reranker
    rows = pd.DataFrame(
        [{"qid": "1", "query": "cat", "docno": name, "text": name, "more": 7} for name in ("goose", "hen", "cow")]
    )
    scored = transformers.reranker(reranking)(rows)
    expected = dict(
        zip(rows["docno"], scorer.score(["cat"] * 3, [Doc("", "", text).contents for text in rows["text"]]), strict=True)
    )
    assert list(scored["docno"]) == sorted(expected, key=expected.get, reverse=True) and list(scored["rank"]) == [0, 1, 2]
    assert scored["score"].tolist() == pytest.approx([expected[name] for name in scored["docno"]], abs=1e-5)
    assert (scored["more"] == 7).all()


def test_ties_are_ordered_as_in_our_runs(reranking):
    rows = pd.DataFrame([{"qid": "1", "query": "cat", "docno": name, "text": "the same"} for name in ("a", "c", "b")])
    assert list(transformers.reranker(reranking)(rows)["docno"]) == ["c", "b", "a"]


def test_no_queries_blank_queries_and_no_results(dense, reranking):
    none = pd.DataFrame({"qid": pd.Series(dtype="str"), "query": pd.Series(dtype="str")})
    retrieve, rerank = transformers.retriever(dense, 3, texts=True), transformers.reranker(reranking)
    full = {"qid", "query", "docno", "title", "text", "score", "rank"}
    for frame in (none, pd.DataFrame([{"qid": "1", "query": "  "}])):
        found = retrieve(frame)
        assert len(found) == 0 and set(found.columns) == full
        for results in (found, found.drop(columns=["title", "text"])):
            scored = rerank(results)
            assert len(scored) == 0 and set(scored.columns) == set(results.columns)
            assert scored["rank"].dtype == found["rank"].dtype == "int64"
    mixed = retrieve(pd.DataFrame([{"qid": "1", "query": ""}, {"qid": "2", "query": "goose"}, {"qid": "3", "query": "\t"}]))
    assert set(mixed["qid"]) == {"2"} and list(mixed["rank"]) == [0, 1, 2]


def test_pyterrier_can_look_into_them(dense, reranking):
    pipeline = transformers.retriever(dense, 3, texts=True) >> transformers.reranker(reranking)
    assert set(pt.inspect.transformer_outputs(pipeline, ["qid", "query"])) >= {"qid", "query", "docno", "score", "rank"}
    with pytest.raises(Exception, match="query"):
        transformers.retriever(dense)(pd.DataFrame([{"qid": "1"}]))


def test_wrong_use(dense, reranking, monkeypatch, bm25_index):
    bare = System.open(SystemSettings(index=(str(bm25_index),), encoder="bm25"))
    for build, word in (
        (lambda: transformers.retriever(dense, 0), "hits: must be at least 1"),
        (lambda: transformers.retriever(bare, texts=True), "texts: the system has no texts"),
        (lambda: transformers.reranker(dense), "no reranker"),
    ):
        with pytest.raises(InputError, match=word):
            build()
    unknown = pd.DataFrame([{"qid": "1", "query": "cat", "docno": "nobody"}])
    with pytest.raises(InputError, match="'nobody' is not in"):
        transformers.reranker(reranking)(unknown)
    monkeypatch.setitem(__import__("sys").modules, "pyterrier", None)
    with pytest.raises(InputError, match=r"pip install 'pyserini-kd\[pyterrier\]'"):
        transformers.retriever(dense)
