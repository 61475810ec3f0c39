"""A system: the order of its stages."""

import time

import pytest

from pyserini_kd.retrieval import system
from pyserini_kd.retrieval.bm25_search import BM25Index
from pyserini_kd.retrieval.search_settings import SystemSettings


@pytest.mark.parametrize("one_query", [True, False])
def test_only_interactive_searches_overlap_so_that_the_seconds_of_a_run_are_wall_time(
    dense_index, bm25_index, tiny_dot, queries, monkeypatch, one_query
):
    spans = {}

    def slow(name, find):
        def found(*args, **settings):
            begun = time.monotonic()
            time.sleep(0.2)
            run = find(*args, **settings)
            spans[name] = begun, time.monotonic()
            return run

        return found

    opened = system.System.open(SystemSettings(index=(str(dense_index),), encoder=str(tiny_dot), sparse_index=str(bm25_index)))
    expected, _ = opened.search(queries, 5, one_query=one_query)
    monkeypatch.setattr(system, "dense", slow("dense", system.dense))
    monkeypatch.setattr(BM25Index, "search", slow("sparse", BM25Index.search))
    begun = time.monotonic()
    run, timing = opened.search(queries, 5, one_query=one_query)
    wall = time.monotonic() - begun
    (dense_start, dense_end), (sparse_start, sparse_end) = spans["dense"], spans["sparse"]
    assert (max(dense_start, sparse_start) < min(dense_end, sparse_end)) is one_query
    if not one_query:
        assert sum(value for name, value in timing.items() if name.endswith("_seconds")) <= wall + 0.01
    assert {query: hits.doc_ids for query, hits in run.items()} == {query: hits.doc_ids for query, hits in expected.items()}
