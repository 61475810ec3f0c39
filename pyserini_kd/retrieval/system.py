"""A search system: indexes and rankers, opened together and used for any number of queries."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyserini_kd.data import passages
from pyserini_kd.data.runs import Run, default_tag
from pyserini_kd.data.types import Query
from pyserini_kd.models import hardware
from pyserini_kd.models.engine import load
from pyserini_kd.retrieval.search_settings import Settings
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import read_json

if TYPE_CHECKING:
    from pyserini_kd.models.bert_dot import BertDot
    from pyserini_kd.retrieval.bm25_search import BM25Index
    from pyserini_kd.retrieval.dense_index import DenseIndex
    from pyserini_kd.retrieval.query_cache import QueryCache
    from pyserini_kd.retrieval.reranking import Source
    from pyserini_kd.retrieval.text_sources import Fetch

FUSION_DEPTH = 1000  # hits of each run that fusion sees, at least


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a search holds in memory, loaded once for any number of queries; None where the settings need it not."""

    index: DenseIndex | None
    encoder: BertDot | None
    reranker: Any
    source: Source | None  # where the reranker takes documents from
    fetch: Fetch | None
    cache: QueryCache | None
    sparse: BM25Index | None


def open_all(settings: Settings, *, texts: bool = False) -> Opened:
    """Load what the settings name: indexes, encoder, reranker; and with `texts` (or a reranker) the way to stored texts."""
    from pyserini_kd.retrieval import reranking
    from pyserini_kd.retrieval.bm25_search import BM25Index

    if settings.threads and (settings.encoder != "bm25" or settings.rerank):
        hardware.use_threads(settings.threads)
    index = encoder = reranker = fetch = sparse = None
    source: Source | None = None
    if settings.encoder != "bm25":
        index, encoder = _open_dense(settings)
    if sparse_index := settings.index if settings.encoder == "bm25" else settings.sparse_index:
        sparse = BM25Index.open(sparse_index)
        record = Path(sparse_index) / "manifest.json"
        if index is not None and record.is_file():
            passages.refuse_mixture((index.folder, index.manifest), (sparse_index, read_json(record, "manifest")))
    own: Any = {"device": settings.device, "precision": settings.precision, "backend": settings.backend}
    if texts or (settings.rerank and not settings.rerank_index):
        source = fetch = _fetch(settings, index)
    if settings.rerank and settings.rerank_index:
        reranker, source = reranking.open_source(settings.rerank, [settings.rerank_index], **own)
    elif settings.rerank:
        if fetch is None:
            raise InputError("--rerank needs texts: an index of ours that stores them, a --sparse-index, or a --rerank-index")
        reranker = load(settings.rerank, **own)
    cache = None
    if encoder is not None and settings.query_cache:
        from pyserini_kd.retrieval import query_cache

        cache = query_cache.QueryCache.of(settings.query_cache, encoder, settings.encoder, settings.precision)
    return Opened(index, encoder, reranker, source, fetch, cache, sparse)


def search(
    settings: Settings, opened: Opened, queries: list[Query], stages: dict[str, Run] | None = None, work: Path | None = None
) -> tuple[Run, dict[str, Any]]:
    """Retrieve, fuse and rerank as the settings say; the run and the seconds of each stage.

    `stages` takes their runs, `work` is the folder for a reranker's finished scores.
    """
    from pyserini_kd.retrieval import dense_search, fusion, reranking

    hits = settings.hits  # what comes out; the first stage goes deeper where something is fused or reranked
    deep = max(hits, FUSION_DEPTH if settings.sparse_index else 0, settings.depth if settings.rerank else 0)
    settings = dataclasses.replace(settings, hits=deep)
    tag = settings.runtag or default_tag(settings.encoder)
    timing: dict[str, Any] = {}

    def timed(stage: str, begun: float, result: Run) -> None:
        timing[f"{stage}_seconds"] = round(time.monotonic() - begun, 3)
        if stages is not None:
            stages[stage] = result

    def sparse() -> Run:
        assert opened.sparse is not None
        begun = time.monotonic()
        threads = settings.threads or hardware.threads()
        bm25: dict[str, Any] = {"k1": settings.k1, "b": settings.b, "rm3": settings.rm3}
        run = opened.sparse.search(queries, hits=settings.hits, threads=threads, tag=tag, **bm25)
        timed("sparse", begun, run)
        return run

    if settings.encoder == "bm25":
        run = sparse()
    else:
        begun = time.monotonic()
        assert opened.index is not None and opened.encoder is not None
        run = dense_search.dense(
            opened.index,
            opened.encoder,
            queries,
            hits=settings.hits,
            ef_search=settings.ef_search,
            nprobe=settings.nprobe,
            precision=settings.precision,
            batch_size=settings.batch_size,
            cache=opened.cache,
            tag=tag,
        )
        timed("dense", begun, run)
        if settings.sparse_index:
            other = sparse()
            begun = time.monotonic()
            if settings.fusion == "rrf":
                engine = "auto" if settings.topics else "fast"  # who waits for one query need not wait for trectools to load
                run = fusion.rrf([other, run], rrf_k=settings.rrf_k, k=deep, tag=tag, engine=engine)
                timing["fusion"] = f"sum of 1 / ({settings.rrf_k} + rank)"
            else:
                run = fusion.interpolation(other, run, alpha=settings.alpha, k=deep, tag=tag)
                timing["fusion"] = f"{settings.alpha} * sparse + {1 - settings.alpha:g} * dense, missing = 0"
            timed("fuse", begun, run)
    if settings.remove_query:
        run = run.without_query_docs(settings.max_passage_delimiter if settings.max_passage else None)
    if settings.rerank:
        begun = time.monotonic()
        assert opened.source is not None
        reranker = settings.runtag or default_tag(settings.rerank)
        run = reranking.rerank(
            run, opened.reranker, queries, opened.source, depth=settings.depth, precision=settings.precision,
            batch_size=settings.batch_size, tag=reranker, work=work,
        )  # fmt: skip
        timed("rerank", begun, run)
    run = run.top(hits)
    if settings.max_passage:
        run = passages.max_passage(run, settings.max_passage_hits, settings.max_passage_delimiter)
    return run, timing


def _open_dense(settings: Settings) -> tuple[DenseIndex, BertDot]:
    from pyserini_kd.retrieval import lucene
    from pyserini_kd.retrieval.open_index import open_with_encoder

    named = [settings.index or "", *settings.more_indexes]
    return open_with_encoder(
        [name if Path(name).exists() else lucene.prebuilt_index(name, "FAISS") for name in named],
        settings.encoder,
        mmap=settings.mmap,
        device=settings.device,
        precision=settings.precision,
        backend=settings.backend,
        ignore_mismatch=settings.ignore_encoder_mismatch,
        pooling=settings.pooling,
        l2_norm=settings.l2_norm,
        query_prefix=settings.query_prefix,
        doc_prefix=settings.doc_prefix,
        max_query_len=settings.max_length,
    )


def _fetch(settings: Settings, index: DenseIndex | None) -> Fetch | None:
    """Where texts come from: our dense index, else the sparse one; None where neither is there to have them."""
    from pyserini_kd.retrieval import text_sources
    from pyserini_kd.retrieval.stored_docs import has_docs, stored_docs

    if settings.encoder == "bm25":
        return text_sources.fetch_from(settings.index or "")
    folders = [Path(name) for name in (settings.index or "", *settings.more_indexes)]
    if has_docs(*folders):
        return stored_docs(*folders, known=index.doc_ids if index else None)
    return text_sources.fetch_from(settings.sparse_index) if settings.sparse_index else None
