"""For programs: the stages as functions of names, paths and Runs.

>>> from pyserini_kd.api import evaluate, mean, rerank, rrf, search

A program that imports Pyserini itself calls `start_jvm` before: Pyserini alone does not find the Java of a wheel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyserini_kd.data import sources
from pyserini_kd.data.java import start_jvm
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Query
from pyserini_kd.evaluation.engines import evaluate, mean
from pyserini_kd.models import engine, hardware
from pyserini_kd.retrieval import bm25_search, dense_search, reranking, text_sources
from pyserini_kd.retrieval.fusion import interpolation, rrf
from pyserini_kd.retrieval.open_index import open_with_encoder
from pyserini_kd.storage.errors import InputError

__all__ = ["evaluate", "interpolation", "mean", "rerank", "rrf", "search", "start_jvm"]


def search(
    queries: str | Sequence[Query],
    index: str | Sequence[str],
    encoder: str = "student",
    *,
    hits: int = 1000,
    **settings: Any,
) -> Run:
    """Search an index; returns a Run.

    Args:
        queries: Query tuples, or whatever `--topics` takes (a file, `ir_datasets:<id>`, `pydocs:test`).
        index: a dense index folder or several to search as one, or for `bm25` a Lucene index folder or prebuilt name.
        encoder: a checkpoint (name, folder, hub id), or `bm25`.
        hits: documents a query.
        settings: of `retrieve.dense` or `lucene.search`.
    """
    asked = sources.topics(queries) if isinstance(queries, str) else list(queries)
    if encoder == "bm25":
        if not isinstance(index, str):
            raise InputError("several indexes are for a dense encoder")
        return bm25_search.search(index, asked, hits=hits, **{"threads": hardware.threads(), **settings})
    opened, model = open_with_encoder(index, encoder, precision=settings.get("precision", "auto"))
    return dense_search.dense(opened, model, asked, hits=hits, **settings)


def rerank(run: Run, queries: str | Sequence[Query], texts: str, encoder: str, *, depth: int = 100, **settings: Any) -> Run:
    """Rescore the top of a run with a checkpoint of any architecture; returns a Run.

    Args:
        run: the first stage.
        queries: as for `search`.
        texts: where the documents' texts are: an index folder, a prebuilt name, or whatever `--collection` takes. What an
            index stores of this checkpoint (vectors, `index --for`) is reused.
        encoder: the checkpoint.
        depth: documents rescored a query; the others are dropped.
        settings: of `rerank.rerank`.
    """
    asked = sources.topics(queries) if isinstance(queries, str) else list(queries)
    precision = settings.get("precision", "auto")
    model, source = (
        reranking.open_source(encoder, [texts], segment=settings.get("segment"), precision=precision)
        if text_sources.is_index(texts)
        else (engine.load(encoder, precision=precision), text_sources.fetch_from(texts))
    )
    return reranking.rerank(run, model, asked, source, depth=depth, **settings)
