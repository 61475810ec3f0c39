"""The settings of a search, and the rules for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pyserini_kd.data.run_files import check_tag
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.settings import (
    Backend,
    BatchSize,
    Device,
    IrMetadata,
    OutputFormat,
    Overwrite,
    Pooling,
    Precision,
    RunTag,
    Settings,
    Threads,
    option,
)

QUERY_HITS, RUN_HITS = 10, 1000  # of a query typed here, and of each topic of a file


class SystemSettings(Settings):
    """What is searched, and how: the options that `search` and `serve` share."""

    encoder: Annotated[str, option("--encoder", help="Checkpoint (name, folder or hub id), or bm25 for sparse search.")] = (
        "student"
    )
    index: Annotated[
        tuple[str, ...],
        option(
            "--index",
            help="Index: a folder, or a Pyserini prebuilt name [default: the embedded one]; several dense ones, or a JSON file "
            'that lists them as "shards", search as one.',
        ),
    ] = ()
    sparse_index: Annotated[str | None, option("--sparse-index", help="Hybrid: fuse with BM25 over this index.")] = None
    fusion: Annotated[Literal["rrf", "interpolation"], option("--fusion", help="How to fuse.")] = "rrf"
    rrf_k: Annotated[int, Field(ge=1), option("--rrf.k", help="RRF's constant.")] = 60
    alpha: Annotated[float, Field(ge=0, le=1), option("--alpha", help="Interpolated: alpha sparse + (1-alpha) dense.")] = 0.5
    k1: Annotated[
        float | None, Field(ge=0), option("--k1", help="BM25's k1 [default: 0.9, or Pyserini's for its prebuilt indexes].")
    ] = None
    b: Annotated[
        float | None, Field(ge=0, le=1), option("--b", help="BM25's b [default: 0.4, or Pyserini's for its prebuilt indexes].")
    ] = None
    bm25: Annotated[bool, option("--bm25", hidden=True, help="The same as --encoder bm25.")] = False
    rm3: Annotated[bool, option("--rm3", help="Expand sparse queries by RM3.")] = False
    rerank: Annotated[str | None, option("--rerank", help="Rerank with this checkpoint.")] = None
    rerank_index: Annotated[
        str | None, option("--rerank-index", metavar="DIR", help="What that checkpoint stored of documents (index --for).")
    ] = None
    depth: Annotated[int, Field(ge=1), option("--depth", help="Documents reranked a query; the others are dropped.")] = 100
    batch_size: BatchSize = None
    threads: Threads = None
    device: Device = "cpu"
    precision: Precision = "auto"
    backend: Backend = "auto"
    max_length: Annotated[
        int | None, Field(ge=3), option("--max-length", help="Tokens a query [default: from the checkpoint].")
    ] = None
    ef_search: Annotated[int | None, Field(ge=1), option("--ef-search", help="HNSW's efSearch.")] = None
    nprobe: Annotated[int | None, Field(ge=1), option("--nprobe", help="IVF's lists visited a query.")] = None
    mmap: Annotated[bool, option("--mmap", help="Leave the dense index on disk, for one larger than memory.")] = False
    pooling: Pooling = None
    l2_norm: Annotated[bool | None, option("--l2-norm/--no-l2-norm", help="[default: from the checkpoint]")] = None
    query_prefix: Annotated[str | None, option("--query-prefix", help="[default: from the checkpoint]")] = None
    doc_prefix: Annotated[
        str | None, option("--doc-prefix", help="What the index was made with [default: from its manifest].")
    ] = None
    encoder_class: Annotated[Literal["auto"], option("--encoder-class", hidden=True)] = "auto"
    ignore_encoder_mismatch: Annotated[
        bool, option("--ignore-encoder-mismatch", help="Search an index that another encoder made.")
    ] = False

    @property
    def is_sparse(self) -> bool:
        """Whether BM25 alone searches, without an encoder."""
        return self.encoder == "bm25" or self.bm25

    @property
    def is_hybrid(self) -> bool:
        """Whether dense and sparse results are fused."""
        return bool(self.sparse_index) and not self.is_sparse

    @model_validator(mode="after")
    def rules(self) -> Self:
        """InputError where settings do not go together."""
        dense, fused = not self.is_sparse, self.is_hybrid
        self.only("fusion", fused, "needs a dense `encoder` and a `sparse_index`")
        self.only("alpha", fused and self.fusion == "interpolation", "is for `fusion` interpolation")
        self.only("rrf_k", fused and self.fusion == "rrf", "is for `fusion` rrf")
        self.only("sparse_index ef_search nprobe mmap pooling max_length l2_norm query_prefix doc_prefix", dense,
                  "is for a dense `encoder`")  # fmt: skip
        self.only("device precision backend", dense or self.rerank, "is for a dense `encoder` or `rerank`")
        self.only("rm3 k1 b", not dense or fused, "is for `encoder` bm25 or a `sparse_index`")
        self.only("rerank_index depth", self.rerank, "is for `rerank`")
        if not dense and len(self.index) > 1:
            raise InputError("several are for a dense `encoder`", "index")
        return self


class SearchSettings(SystemSettings):
    """One search: what is asked, and what becomes of the results."""

    topics: Annotated[
        str | None, option("--topics", help="A file, ir_datasets:<id>, a Pyserini topic set [default: pydocs:test].")
    ] = None
    query: Annotated[str | None, option("--query", help="Search one query typed here and show the hits.")] = None
    explain: Annotated[bool, option("--explain", help="With --query: each hit's rank and score in every stage.")] = False
    qrels: Annotated[
        str | None, option("--qrels", help="Print measures at the end: a file, ir_datasets:<id> or pydocs:SPLIT.")
    ] = None
    output: Annotated[Path | None, option("--output", help="Run to write [default: under runs/].")] = None
    output_format: OutputFormat = "trec"
    runtag: RunTag = None
    hits: Annotated[
        int | None,
        Field(ge=1, le=(1 << 31) - 1),
        option("--hits", help=f"Hits a query [default: {RUN_HITS}, with --query {QUERY_HITS}]."),
    ] = None
    query_cache: Annotated[
        str | None, option("--query-cache", metavar="DIR", help="Folder that keeps query vectors: each query is encoded once.")
    ] = None
    remove_query: Annotated[bool, option("--remove-query", help="Drop the document whose id is the query's.")] = False
    max_passage: Annotated[
        bool, option("--max-passage", help="Bring passages back as documents, each with its best passage's score.")
    ] = False
    max_passage_hits: Annotated[
        int, Field(ge=1), option("--max-passage-hits", help="With --max-passage: documents a query.")
    ] = 100
    max_passage_delimiter: Annotated[
        str, option("--max-passage-delimiter", help="What ends the document's id in a passage's.")
    ] = "#"
    ir_metadata: IrMetadata = False
    overwrite: Overwrite = False

    @property
    def n_hits(self) -> int:
        """Hits of each query."""
        return self.hits or (RUN_HITS if self.query is None else QUERY_HITS)

    @model_validator(mode="after")
    def search_rules(self) -> Self:
        """InputError where settings do not go together."""
        if self.runtag is not None:
            check_tag(self.runtag)
        self.only("query_cache", not self.is_sparse, "is for a dense `encoder`")
        self.only("topics", self.query is None, "give `query` or `topics`, not both")
        self.only("explain", self.query is not None, "needs a `query`")
        self.only("max_passage", self.query is None, "is for `topics`; `query` shows passages")
        self.only("max_passage_hits max_passage_delimiter", self.max_passage, "needs `max_passage`")
        self.only("ir_metadata", self.output_format == "trec", "is for `output_format` trec")
        if not self.max_passage_delimiter:
            raise InputError("is empty", "max_passage_delimiter")
        if self.query is not None and not self.query.strip():
            raise InputError("is blank", "query")
        return self
