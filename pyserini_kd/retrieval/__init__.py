"""Build and open indexes, search, rerank, fuse."""

from typing import TYPE_CHECKING

from pyserini_kd.storage.exports import lazily

if TYPE_CHECKING:
    from pyserini_kd.data.java import start_jvm
    from pyserini_kd.retrieval.bm25_build import index_bm25
    from pyserini_kd.retrieval.bm25_search import BM25Index
    from pyserini_kd.retrieval.dense_build import index_dense
    from pyserini_kd.retrieval.dense_index import DenseIndex
    from pyserini_kd.retrieval.fusion import interpolation, rrf
    from pyserini_kd.retrieval.reranking import rerank
    from pyserini_kd.retrieval.searching import search
    from pyserini_kd.retrieval.text_sources import fetch_from

_HOMES = {
    "BM25Index": "pyserini_kd.retrieval.bm25_search",
    "DenseIndex": "pyserini_kd.retrieval.dense_index",
    "fetch_from": "pyserini_kd.retrieval.text_sources",
    "index_bm25": "pyserini_kd.retrieval.bm25_build",
    "index_dense": "pyserini_kd.retrieval.dense_build",
    "interpolation": "pyserini_kd.retrieval.fusion",
    "rerank": "pyserini_kd.retrieval.reranking",
    "rrf": "pyserini_kd.retrieval.fusion",
    "search": "pyserini_kd.retrieval.searching",
    "start_jvm": "pyserini_kd.data.java",
}
__all__ = [
    "BM25Index", "DenseIndex", "fetch_from", "index_bm25", "index_dense", "interpolation", "rerank", "rrf", "search",
    "start_jvm",
]  # fmt: skip
__getattr__ = lazily(__name__, _HOMES)
