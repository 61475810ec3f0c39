"""Retrieval: queries in, a Run out; sparse through Lucene, dense through FAISS. Dense retrieval never starts Java."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyserini_kd import inference
from pyserini_kd.data import Query
from pyserini_kd.index import DenseIndex
from pyserini_kd.lucene import search as sparse
from pyserini_kd.runs import Run, Scores

if TYPE_CHECKING:
    from pyserini_kd.models.bert_dot import BertDot

__all__ = ["dense", "sparse", "warn_blank"]

logger = logging.getLogger(__name__)

SEARCH_BLOCK = 1024  # queries searched at a time: bounds the (Q, K) arrays


def dense(
    index: DenseIndex,
    encoder: BertDot,
    queries: Sequence[Query],
    *,
    hits: int = 1000,
    ef_search: int | None = None,
    nprobe: int | None = None,
    precision: str = "auto",
    batch_size: int | None = None,
    tag: str = "dense",
) -> Run:
    """Search all queries; blank queries get no hits."""
    asked = [query for query in queries if query.text.strip()]
    vectors = inference.encode(
        encoder,
        [query.text for query in asked],
        "query",
        precision=precision,
        batch_size=batch_size,
        label="encode queries",
    )

    def found() -> Iterator[tuple[str, list[str], Scores]]:
        for start in range(0, len(asked), SEARCH_BLOCK):
            some = asked[start : start + SEARCH_BLOCK]
            scores, rows = index.search(vectors[start : start + SEARCH_BLOCK], hits, ef_search=ef_search, nprobe=nprobe)
            for query, query_scores, query_rows in zip(some, scores, rows, strict=True):
                real = query_rows >= 0  # approximate indexes may find fewer
                yield query.query_id, index.doc_ids[query_rows[real]].tolist(), query_scores[real]

    by_query = {query_id: (doc_ids, scores) for query_id, doc_ids, scores in found()}
    nothing: tuple[list[str], Scores] = ([], np.empty(0, np.float32))
    return Run.from_hits(tag, ((q.query_id, *by_query.get(q.query_id, nothing)) for q in queries))


def warn_blank(queries: Sequence[Query]) -> None:
    """Say which queries are blank: they retrieve nothing."""
    blank = [query.query_id for query in queries if not query.text.strip()]
    if blank:
        listed = ", ".join(blank[:10]) + (" ..." if len(blank) > 10 else "")
        logger.warning("%d blank queries get no hits: %s", len(blank), listed)
