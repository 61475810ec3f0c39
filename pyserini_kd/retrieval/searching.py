"""Search an open index: queries in, a Run out."""

import logging
from collections.abc import Sequence

import numpy as np

from pyserini_kd.data.runs import Hits, Run, ordered
from pyserini_kd.data.types import Query
from pyserini_kd.models.rankers import Encoder, Scorer
from pyserini_kd.retrieval.bm25_search import BM25Index
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.open_index import check_encoder
from pyserini_kd.retrieval.query_cache import QueryCache
from pyserini_kd.storage.errors import InputError

logger = logging.getLogger(__name__)


SEARCH_BLOCK = 1024  # queries per search, to bound the (Q, K) arrays


def search(
    index: DenseIndex | BM25Index, queries: Sequence[Query], encoder: Scorer | None = None, *, hits: int = 1000, tag: str = ""
) -> Run:
    """Search an open index: a dense one with the encoder that made it, a BM25 index without one.

    `DenseIndex.search` takes vectors, `BM25Index.search` takes BM25's parameters.

    Raises:
        InputError: the encoder is missing, not needed, or did not make the index, or two queries share an id.
    """
    if isinstance(index, BM25Index):
        if encoder is not None:
            raise InputError("is for a dense index; BM25 takes no encoder", "encoder")
        return index.search(queries, hits=hits, tag=tag or "bm25")
    if not isinstance(encoder, Encoder):
        found = "none" if encoder is None else f"a {encoder.architecture}"
        raise InputError(f"a dense index needs the bert_dot that made it, found {found}", "encoder")
    check_encoder(index, encoder)
    return dense(index, encoder, queries, hits=hits, tag=tag or "dense")


def dense(
    index: DenseIndex,
    encoder: Encoder,
    queries: Sequence[Query],
    *,
    hits: int = 1000,
    ef_search: int | None = None,
    nprobe: int | None = None,
    cache: QueryCache | None = None,
    tag: str = "dense",
) -> Run:
    """Search all queries; blank queries get no hits. `cache` (of this encoder) supplies known vectors and stores new ones."""
    nonblank = [query for query in queries if query.text.strip()]
    texts = [query.text for query in nonblank]
    vectors = cache.encode(texts, encoder.encode_queries) if cache else encoder.encode_queries(texts)
    hits_of = {query.query_id: Hits([], np.empty(0, np.float32)) for query in queries}
    if len(hits_of) < len(queries):
        raise InputError(f"{len(queries) - len(hits_of)} queries have a duplicate id")
    for start in range(0, len(nonblank), SEARCH_BLOCK):
        block = nonblank[start : start + SEARCH_BLOCK]
        scores, rows = index.search(vectors[start : start + SEARCH_BLOCK], hits, ef_search=ef_search, nprobe=nprobe)
        found = (rows >= 0).sum(axis=1).tolist()  # approximate indexes may find fewer than `hits`
        for query, query_scores, query_rows, count in zip(block, scores, rows, found, strict=True):
            doc_ids = index.doc_ids.take(query_rows[:count])
            hits_of[query.query_id] = ordered(doc_ids, query_scores[:count], f"query {query.query_id}")
    index.doc_ids.forget()
    return Run(tag, hits_of)


def warn_blank(queries: Sequence[Query]) -> None:
    """Warn about blank queries, which get no hits."""
    blank = [query.query_id for query in queries if not query.text.strip()]
    if blank:
        listed = ", ".join(blank[:10]) + (" ..." if len(blank) > 10 else "")
        logger.warning("%d blank queries get no hits: %s", len(blank), listed)
