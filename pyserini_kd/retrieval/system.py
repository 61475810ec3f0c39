"""A search system: indexes and rankers, opened once for any number of queries."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pyserini_kd.data import passages
from pyserini_kd.data.runs import Run, default_tag
from pyserini_kd.data.types import Query
from pyserini_kd.models import hardware, rankers
from pyserini_kd.models.rankers import Encoder, Scorer
from pyserini_kd.models.sparse_encoder import SparseEncoder
from pyserini_kd.retrieval import fusion, lucene, reranking
from pyserini_kd.retrieval.bm25_search import BM25Index
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.impact_index import ImpactIndex, is_impact_index
from pyserini_kd.retrieval.open_index import open_with_encoder
from pyserini_kd.retrieval.query_cache import QueryCache
from pyserini_kd.retrieval.reranking import Source
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.retrieval.searching import dense
from pyserini_kd.retrieval.text_sources import Fetch, fetch_from, has_docs, stored_docs
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.manifest import Manifest

MODEL = {"device", "precision", "backend", "batch_size"}  # settings of every loaded model
FUSION_DEPTH = 1000  # minimum hits of each run for fusion

Timing = dict[str, float | str]
"""Seconds of each stage, and the fusion formula."""


@dataclasses.dataclass(frozen=True)
class System:
    """The loaded parts of a search; None if the settings do not need a part."""

    settings: SystemSettings
    index: DenseIndex | None
    encoder: Encoder | SparseEncoder | None
    sparse: BM25Index | ImpactIndex | None
    reranker: Scorer | None
    source: Source | None  # of the reranker's documents
    fetch: Fetch | None
    cache: QueryCache | None
    beside: ThreadPoolExecutor = dataclasses.field(default_factory=lambda: ThreadPoolExecutor(1), repr=False)
    """The thread for sparse search during dense search. It is kept, as the JVM remembers each thread that called it."""

    @classmethod
    def open(cls, settings: SystemSettings, *, texts: bool = False, query_cache: str | None = None) -> System:
        """Load indexes, encoder, reranker and (with `texts` or a reranker) a source of texts.

        Raises:
            InputError: a part cannot be opened, or the parts do not fit together.
        """
        if settings.threads and (not settings.is_sparse or settings.rerank):
            hardware.use_threads(settings.threads)
        loading = settings.model_dump(include=MODEL)
        index: DenseIndex | None = None
        encoder: Encoder | SparseEncoder | None = None
        sparse: BM25Index | ImpactIndex | None = None
        cache = None
        if settings.is_sparse:
            sparse = BM25Index.open(settings.index[0])
        elif any(is_impact_index(name, settings.encoder) for name in settings.index):
            if query_cache:
                raise InputError(f"keeps vectors for dense indexes; {settings.index[0]} is an impact index", "query_cache")
            sparse = impacts = _open_impacts(settings)
            encoder = impacts.encoder
        else:
            index, encoder = open_with_encoder(
                [name if Path(name).exists() else lucene.prebuilt_index(name, "FAISS") for name in settings.index],
                settings.encoder,
                mmap=settings.mmap,
                ignore_mismatch=settings.ignore_encoder_mismatch,
                max_query_len=settings.max_length,
                **settings.model_dump(include={*MODEL, "pooling", "l2_norm", "query_prefix", "doc_prefix"}),
            )
            cache = QueryCache.of(query_cache, encoder) if query_cache else None
            sparse = _open_sparse(settings.sparse_index, settings, index) if settings.sparse_index else None
        reranker, source = None, None
        fetch = _fetch(settings, index) if texts or (settings.rerank and not settings.rerank_index) else None
        if settings.rerank and settings.rerank_index:
            reranker, source = reranking.open_source(settings.rerank, [settings.rerank_index], **loading)
        elif settings.rerank:
            if fetch is None:
                raise InputError(
                    "needs texts: give an index folder that stores them, a `sparse_index` or a `rerank_index`", "rerank"
                )
            reranker, source = rankers.load(settings.rerank, **loading), fetch
        return cls(settings, index, encoder, sparse, reranker, source, fetch, cache)

    def search(
        self,
        queries: Sequence[Query],
        hits: int = 1000,
        *,
        tag: str | None = None,
        remove_query: bool = False,
        max_passage: tuple[int, str] | None = None,
        one_query: bool = False,
        stages: dict[str, Run] | None = None,
        work: Path | None = None,
    ) -> tuple[Run, Timing]:
        """Retrieve, fuse and rerank; returns the run, and the seconds of each stage.

        Args:
            queries: the queries.
            hits: documents per query; stages before fusion or reranking retrieve more.
            tag: the run's tag; by default the encoder's (or reranker's) name.
            remove_query: drop the document with the query's id.
            max_passage: (documents, delimiter) returns documents instead of passages.
            one_query: the search is interactive: do not load trectools, and run dense and sparse search at the same time.
            stages: gets the run of each stage.
            work: folder for a reranker's finished scores.
        """
        settings, timing = self.settings, Timing()
        deep = max(hits, FUSION_DEPTH if settings.is_hybrid else 0, settings.depth if self.reranker else 0)
        first_tag = tag or default_tag("bm25" if settings.is_sparse else settings.encoder)

        def timed(stage: str, find: Callable[[], Run]) -> Run:
            begun, result = time.monotonic(), find()
            timing[f"{stage}_seconds"] = round(time.monotonic() - begun, 3)
            if stages is not None:
                stages[stage] = result
            return result

        finders = self._finders(queries, deep, first_tag)
        if len(finders) == 1:
            ((stage, find),) = finders.items()
            run = timed(stage, find)
        else:  # a file of queries keeps all processors busy in each stage, and the record needs the time of each stage
            later = self.beside.submit(timed, "sparse", finders["sparse"]) if one_query else None
            dense_run = timed("dense", finders["dense"])
            sparse_run = later.result() if later else timed("sparse", finders["sparse"])
            run = timed("fuse", partial(self._fuse, sparse_run, dense_run, deep, first_tag, one_query, timing))
        if remove_query:
            run = run.without_query_docs(max_passage[1] if max_passage else None)
        if self.reranker is not None and self.source is not None:
            rerank_tag = tag or default_tag(settings.rerank or "")
            run = timed("rerank", partial(self._rerank, run, queries, rerank_tag, work))
        run = run.top(hits)
        return (passages.max_passage(run, *max_passage) if max_passage else run), timing

    def _finders(self, queries: Sequence[Query], deep: int, tag: str) -> dict[str, Callable[[], Run]]:
        """The first stages: dense search, sparse search, or both."""
        settings, finders = self.settings, dict[str, Callable[[], Run]]()
        if self.index is not None and isinstance(self.encoder, Encoder):
            finders["dense"] = partial(
                dense, self.index, self.encoder, queries,
                hits=deep, ef_search=settings.ef_search, nprobe=settings.nprobe, cache=self.cache, tag=tag,
            )  # fmt: skip
        if self.sparse is not None:
            threads = settings.threads or hardware.threads()
            bm25 = {"k1": settings.k1, "b": settings.b, "rm3": settings.rm3} if isinstance(self.sparse, BM25Index) else {}
            find: Callable[..., Run] = self.sparse.search
            finders["sparse"] = partial(find, queries, hits=deep, threads=threads, tag=tag, **bm25)
        return finders

    def _rerank(self, run: Run, queries: Sequence[Query], tag: str, work: Path | None) -> Run:
        assert self.reranker is not None and self.source is not None
        depth, alpha = self.settings.depth, self.settings.rerank_alpha
        reranked = reranking.rerank(run, self.reranker, queries, self.source, depth=depth, tag=tag, work=work)
        return reranked if alpha is None else fusion.interpolation(run.top(depth), reranked, alpha=alpha, tag=tag)

    def _fuse(self, sparse: Run, run: Run, k: int, tag: str, one_query: bool, timing: Timing) -> Run:
        rrf_k, alpha = self.settings.rrf_k, self.settings.alpha
        if self.settings.fusion == "rrf":
            timing["fusion"] = f"sum of 1 / ({rrf_k} + rank)"
            return fusion.rrf([sparse, run], rrf_k=rrf_k, k=k, tag=tag, engine="fast" if one_query else "auto")
        timing["fusion"] = f"{alpha} * sparse + {1 - alpha:g} * dense, missing = 0"
        return fusion.interpolation(sparse, run, alpha=alpha, k=k, tag=tag)


def _open_sparse(name: str, settings: SystemSettings, dense_index: DenseIndex) -> BM25Index | ImpactIndex:
    """Open the sparse side of a hybrid: BM25, or impacts with the encoder that the manifest names."""
    if is_impact_index(name):
        settings.only("k1 b rm3", False, f"is for BM25; {name} holds impacts")
        sparse: BM25Index | ImpactIndex = ImpactIndex.open(name, **settings.model_dump(include=MODEL))
    else:
        sparse = BM25Index.open(name)
    passages.refuse_mixture(dense_index.manifest, Manifest.find(name))
    return sparse


def _open_impacts(settings: SystemSettings) -> ImpactIndex:
    """Open an impact index for a search with a SPLADE; InputError for settings of other kinds of index."""
    names = "sparse_index fusion alpha rrf_k k1 b rm3 ef_search nprobe mmap pooling l2_norm"
    settings.only(names, False, f"has no effect on {settings.index[0]}, which is an impact index")
    if len(settings.index) > 1:
        raise InputError("a search takes one impact index only; fuse the runs of several with the command fuse", "index")
    more = settings.model_dump(include={*MODEL, "query_prefix", "doc_prefix"}) | {"max_query_len": settings.max_length}
    return ImpactIndex.open(settings.index[0], settings.encoder, ignore_mismatch=settings.ignore_encoder_mismatch, **more)


def _fetch(settings: SystemSettings, index: DenseIndex | None) -> Fetch | None:
    """The source of texts: the dense index if it stores texts, else the sparse index; None without either."""
    if settings.is_sparse:
        return fetch_from(settings.index[0])
    folders = [Path(name) for name in settings.index]
    if has_docs(*folders):
        return stored_docs(*folders, known=index.doc_ids if index else None)
    return fetch_from(settings.sparse_index) if settings.sparse_index else None
