"""Settings and work of the command `index`: BM25, dense vectors, impacts, or token representations."""

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from pyserini_kd.data import passages, sources
from pyserini_kd.models import checkpoint_folder, hardware
from pyserini_kd.models.rankers import load, load_encoder
from pyserini_kd.models.sparse_encoder import SparseEncoder
from pyserini_kd.retrieval.index_folder import Options, Shard
from pyserini_kd.storage import settings as shared
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import refuse_existing
from pyserini_kd.storage.job import mend
from pyserini_kd.storage.settings import Settings, option


class IndexSettings(Settings):
    """Collection, encoder and output of an index."""

    collection: shared.Collection[str | None] = None
    fields: shared.Fields = None
    encoder: str | None = option("--encoder", None, "Checkpoint (name, folder or hub id), or bm25 for a Lucene index.")
    vectors: Path | None = option(
        "--vectors", None, "Instead of --collection: existing vectors (.npy, Pyserini's embeddings.jsonl, an index)."
    )
    ids: Path | None = option("--ids", None, "With --vectors X.npy: file with one id per line.")
    index: Path = option("--index", help="Index folder to write.")
    architecture: Literal["colbert", "prettr", "tk"] | None = option(
        "--for", None, "Store document representations for reranking with this architecture, instead of a vector index."
    )
    dtype: Literal["fp16", "fp32"] = option("--dtype", "fp16", "With --for: number format.")
    faiss: str | None = option(
        "--faiss", None, "FAISS factory string: HNSW32, SQ8, IVF4096,PQ64 ...  [default: Flat]", metavar="KIND"
    )
    lucene_hnsw: bool = option("--lucene-hnsw", False, "Store vectors in Lucene, with an HNSW graph.")
    lucene_flat: bool = option("--lucene-flat", False, "Store vectors in Lucene, for exhaustive search.")
    segment: shared.Segment = None
    collection_class: str | None = option(
        "--collection-class", None, "With bm25: Anserini's reader for a folder (HtmlCollection, ...)."
    )
    batch_size: shared.BatchSize = None
    max_length: int | None = option("--max-length", None, "Tokens per document [default: from the checkpoint].", ge=3)
    pooling: shared.Pooling = None
    l2_norm: shared.L2Norm = None
    doc_prefix: str | None = option("--doc-prefix", None, "[default: from the checkpoint]")
    precision: shared.Precision = "auto"
    backend: shared.Backend = "auto"
    shard_num: int | None = option(
        "--shard-num", None, "Number of processes that share the work, one command each [default: 1].", ge=1
    )
    shard_id: int | None = option("--shard-id", None, "Number of this process, from 0 [default: torchrun's RANK].", ge=0)
    block: int | None = option("--block", None, "Documents per block.", ge=1, hidden=True)
    device: shared.Device = "cpu"
    threads: shared.Threads = None
    store_docs: bool = option("--store-docs/--no-store-docs", True, "Keep the texts in the index folder.")
    overwrite: shared.Overwrite = False

    @property
    def kind(self) -> str:
        """Kind of vector index: a FAISS factory string, `lucene-hnsw` or `lucene-flat`."""
        return "lucene-hnsw" if self.lucene_hnsw else "lucene-flat" if self.lucene_flat else self.faiss or "Flat"

    @property
    def is_impact(self) -> bool:
        """Whether the encoder is a splade: Lucene then stores its weights as impacts."""
        if self.encoder in (None, "bm25") or self.vectors or self.architecture or self.pooling:
            return False
        return checkpoint_folder.architecture_of(checkpoint_folder.resolve(str(self.encoder))) == "splade"

    @property
    def shard(self) -> Shard:
        """(I, N) from the options, else from the variables of `torchrun` and `accelerate launch`."""
        if self.shard_num is None and self.shard_id is None:
            return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        return self.shard_id or 0, self.shard_num or 1

    @model_validator(mode="after")
    def rules(self) -> Self:
        """InputError if settings conflict."""
        sparse, tokens = self.encoder == "bm25", self.architecture is not None
        self.only("lucene_hnsw lucene_flat", not self.faiss, "conflicts with `faiss`; choose one kind of index")
        self.only("lucene_flat", not self.lucene_hnsw, "conflicts with `lucene_hnsw`; choose one kind of index")
        dense_only = "is for dense indexes only; conflicts with `architecture` and bm25"
        self.only("faiss lucene_hnsw lucene_flat", not (tokens or sparse), dense_only)
        self.only("dtype", tokens, "requires `architecture`")
        of_checkpoint = not sparse and not self.collection_class
        self.only("architecture", of_checkpoint, "needs a checkpoint; conflicts with bm25 and `collection_class`")
        self.only("collection_class", sparse or self.vectors, "is for `encoder` bm25")
        self.only("segment fields", not self.collection_class, "conflicts with `collection_class`")
        self.only("ids", self.vectors, "requires `vectors`")
        if self.segment:
            passages.parse(self.segment)
        if (self.shard_num is None) != (self.shard_id is None) or self.shard[0] >= self.shard[1]:
            raise InputError("`shard_id` and `shard_num` go together; shards of N are numbered from 0 to N - 1")
        if self.shard[1] > 1:
            self.only("overwrite", False, "does not go with several processes: one could delete another's result")
            if sparse:
                raise InputError("several processes can share the work of a checkpoint, but not of bm25")
        if self.vectors:
            if self.collection or self.segment or self.fields or tokens or self.collection_class or sparse or self.shard[1] > 1:
                raise InputError(
                    "goes only with `index`, `ids`, a kind of index and a checkpoint as `encoder`, in one process", "vectors"
                )
        elif self.collection is None or self.encoder is None:
            raise InputError("give `collection` and `encoder`, or `vectors`")
        return self


def index(settings: IndexSettings) -> int | None:
    """Write the index; returns the number of documents, or None while other processes have work left."""
    from pyserini_kd.retrieval import bm25_build, dense_build, impact_build, token_index  # lazy: importing FAISS is slow

    overwrite, folder = settings.overwrite, settings.index
    if settings.is_impact:
        settings.only("faiss lucene_hnsw lucene_flat l2_norm", False, "is for a dense index; a splade makes an impact index")
    mend(folder)
    if settings.shard[1] == 1:
        refuse_existing(folder, overwrite, folder=True)
    loaded = settings.model_dump(include={"device", "precision", "backend", "batch_size", "l2_norm", "doc_prefix"})
    loaded["max_doc_len"] = settings.max_length
    if settings.vectors:
        maker = load_encoder(settings.encoder, pooling=settings.pooling, **loaded) if settings.encoder else None
        return dense_build.build_from_vectors(
            settings.vectors, settings.ids, folder, kind=settings.kind, encoder=maker, overwrite=overwrite
        )
    assert settings.collection is not None and settings.encoder is not None
    asked = settings.collection, settings.segment, settings.fields
    if settings.encoder == "bm25":
        threads = settings.threads or hardware.threads()
        if settings.collection_class:
            return bm25_build.build_index_with_reader(
                Path(settings.collection), settings.collection_class, folder, threads=threads, overwrite=overwrite
            )
        stamp, docs = (
            sources.stamp(settings.collection),
            sources.collection(*asked),
        )
        return bm25_build.index_bm25(
            docs, folder, threads=threads, overwrite=overwrite, collection_stamp=stamp, segment=settings.segment
        )
    if settings.threads:
        hardware.use_threads(settings.threads)
    options: Options = {"store_docs": settings.store_docs, "overwrite": overwrite, "block": settings.block}
    options |= {
        "shard": settings.shard,
        "collection": settings.collection,
        "segment": settings.segment,
        "fields": settings.fields,
    }
    if settings.architecture:
        scorer = token_index.load_scorer(settings.encoder, settings.architecture, **loaded)
        docs = sources.collection(*asked)
        return token_index.build(docs, scorer, folder, dtype=settings.dtype, **options)
    if settings.is_impact:
        sparse = load(settings.encoder, **loaded)
        assert isinstance(sparse, SparseEncoder)
        docs = sources.collection(*asked)
        return impact_build.index_impacts(docs, sparse, folder, threads=settings.threads or hardware.threads(), **options)
    encoder = load_encoder(settings.encoder, pooling=settings.pooling, **loaded)
    docs = sources.collection(*asked)
    return dense_build.index_dense(docs, encoder, folder, kind=settings.kind, **options)
