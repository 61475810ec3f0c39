"""Search settings and their rules."""

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from pyserini_kd.data.run_files import check_tag
from pyserini_kd.retrieval import system_file
from pyserini_kd.storage import settings as shared
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import Record
from pyserini_kd.storage.settings import Settings, option

QUERY_HITS, RUN_HITS = 10, 1000  # defaults for `query`, and for each topic


class SystemSettings(Settings):
    """The options that `search` and `serve` share."""

    system: str | None = option(
        "--system", None, "Folder of a whole system, from distill; other options replace its settings.", metavar="DIR"
    )
    encoder: str = option("--encoder", "student", "Checkpoint (name, folder or hub id), or bm25 for sparse search.")
    index: tuple[str, ...] = option(
        "--index",
        (),
        "Index: a folder, or a Pyserini prebuilt name [default: the embedded one]; several dense indexes, or a JSON file "
        'that lists them as "shards", are searched as one.',
    )
    sparse_index: str | None = option("--sparse-index", None, "Hybrid: fuse with BM25 over this index.")
    fusion: Literal["rrf", "interpolation"] = option("--fusion", "rrf", "How to fuse.")
    rrf_k: int = option("--rrf.k", 60, "The constant of RRF.", ge=1)
    alpha: float = option("--alpha", 0.5, "Interpolation: alpha sparse + (1-alpha) dense.", ge=0, le=1)
    k1: float | None = option("--k1", None, "BM25's k1 [default: 0.9, or Pyserini's for its prebuilt indexes].", ge=0)
    b: float | None = option("--b", None, "BM25's b [default: 0.4, or Pyserini's for its prebuilt indexes].", ge=0, le=1)
    bm25: bool = option("--bm25", False, "The same as --encoder bm25.", hidden=True)
    rm3: bool = option("--rm3", False, "Expand sparse queries with RM3.")
    rerank: str | None = option("--rerank", None, "Rerank with this checkpoint.")
    rerank_index: str | None = option(
        "--rerank-index", None, "Index of that checkpoint's document representations (index --for).", metavar="DIR"
    )
    depth: int = option("--depth", 100, "Documents reranked per query; the others are dropped.", ge=1)
    rerank_alpha: float | None = option(
        "--rerank-alpha", None, "Rank by alpha first stage + (1-alpha) reranker [default: by the reranker alone].", ge=0, le=1
    )
    batch_size: shared.BatchSize = None
    threads: shared.Threads = None
    device: shared.Device = "cpu"
    precision: shared.Precision = "auto"
    backend: shared.Backend = "auto"
    max_length: int | None = option("--max-length", None, "Tokens per query [default: from the checkpoint].", ge=3)
    ef_search: int | None = option("--ef-search", None, "efSearch of HNSW indexes.", ge=1)
    nprobe: int | None = option("--nprobe", None, "Lists visited per query in IVF indexes.", ge=1)
    mmap: bool = option("--mmap", False, "Keep the dense index on disk, e.g. if it is larger than memory.")
    pooling: shared.Pooling = None
    l2_norm: shared.L2Norm = None
    query_prefix: str | None = option("--query-prefix", None, "[default: from the checkpoint]")
    doc_prefix: str | None = option("--doc-prefix", None, "Document prefix of the index [default: from its manifest].")
    encoder_class: Literal["auto"] = option("--encoder-class", "auto", hidden=True)
    ignore_encoder_mismatch: bool = option("--ignore-encoder-mismatch", False, "Search an index that another encoder made.")

    @property
    def is_sparse(self) -> bool:
        """Whether only BM25 searches, without an encoder."""
        return self.encoder == "bm25" or self.bm25

    @property
    def is_hybrid(self) -> bool:
        """Whether dense and sparse results are fused."""
        return bool(self.sparse_index) and not self.is_sparse

    @model_validator(mode="before")
    @classmethod
    def from_system(cls, values: Record) -> Record:
        """Add the settings of `system`, except those that are given."""
        if values.get("system") is None:
            return values
        return system_file.read(values["system"], set(SystemSettings.model_fields) - {"system"}) | values

    @model_validator(mode="after")
    def rules(self) -> Self:
        """InputError if settings conflict."""
        dense, fused = not self.is_sparse, self.is_hybrid
        self.only("fusion", fused, "needs a dense `encoder` and a `sparse_index`")
        self.only("alpha", fused and self.fusion == "interpolation", "is for `fusion` interpolation")
        self.only("rrf_k", fused and self.fusion == "rrf", "is for `fusion` rrf")
        self.only("sparse_index ef_search nprobe mmap pooling max_length l2_norm query_prefix doc_prefix", dense,
                  "is for a dense `encoder`")  # fmt: skip
        self.only("device precision backend", dense or self.rerank, "is for a dense `encoder` or `rerank`")
        self.only("rm3 k1 b", not dense or fused, "is for `encoder` bm25 or a `sparse_index`")
        self.only("rerank_index rerank_alpha depth", self.rerank, "is for `rerank`")
        if not dense and len(self.index) > 1:
            raise InputError("several indexes need a dense `encoder`", "index")
        return self


class SearchSettings(SystemSettings):
    """One search: topics or a query, and the output."""

    topics: str | None = option("--topics", None, "A file, ir_datasets:<id>, a Pyserini topic set [default: pydocs:test].")
    query: str | None = option("--query", None, "Search for this query and show the hits.")
    explain: bool = option("--explain", False, "With --query: each hit's rank and score in every stage.")
    qrels: str | None = option("--qrels", None, "Print measures at the end: a file, ir_datasets:<id> or pydocs:SPLIT.")
    output: Path | None = option("--output", None, "Run to write [default: under runs/].")
    output_format: shared.OutputFormat = "trec"
    runtag: shared.RunTag = None
    hits: int | None = option(
        "--hits", None, f"Hits per query [default: {RUN_HITS}, with --query {QUERY_HITS}].", ge=1, le=(1 << 31) - 1
    )
    query_cache: str | None = option(
        "--query-cache", None, "Folder that caches query vectors: each query is encoded once.", metavar="DIR"
    )
    remove_query: bool = option("--remove-query", False, "Drop the document with the query's id.")
    max_passage: bool = option(
        "--max-passage", False, "Return documents instead of passages, each with its best passage's score."
    )
    max_passage_hits: int = option("--max-passage-hits", 100, "With --max-passage: documents per query.", ge=1)
    max_passage_delimiter: str = option("--max-passage-delimiter", "#", "Separator after the document id in a passage id.")
    ir_metadata: shared.IrMetadata = False
    overwrite: shared.Overwrite = False

    @property
    def n_hits(self) -> int:
        """Hits per query."""
        return self.hits or (RUN_HITS if self.query is None else QUERY_HITS)

    @model_validator(mode="after")
    def search_rules(self) -> Self:
        """InputError if settings conflict."""
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
