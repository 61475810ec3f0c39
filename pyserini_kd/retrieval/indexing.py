"""Index a collection as the command `index` asks for it: BM25, dense vectors, or token representations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pyserini_kd.data import passages, sources
from pyserini_kd.models import hardware
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.retrieval.index_folder import Options, Shard
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import refuse_existing
from pyserini_kd.storage.settings import (
    Backend,
    BatchSize,
    Device,
    Overwrite,
    Pooling,
    Precision,
    Segment,
    Settings,
    Threads,
    option,
)
from pyserini_kd.storage.sharing import mend


class IndexSettings(Settings):
    """What is indexed, with what, and where the index goes."""

    collection: Annotated[str | None, option("--collection", help="Collection: a path, ir_datasets:<id> or pydocs.")] = None
    encoder: Annotated[
        str | None, option("--encoder", help="Checkpoint (name, folder or hub id), or bm25 for a Lucene index.")
    ] = None
    vectors: Annotated[
        Path | None,
        option(
            "--vectors", help="Instead of --collection: vectors made elsewhere, .npy, Pyserini's embeddings.jsonl, an index."
        ),
    ] = None
    ids: Annotated[Path | None, option("--ids", help="With --vectors X.npy: ids of the rows, one a line.")] = None
    index: Annotated[Path, option("--index", help="Index folder to write.")]
    architecture: Annotated[
        Literal["colbert", "prettr", "tk"] | None,
        option("--for", help="Store what this architecture's reranking reuses of a document, instead of a FAISS index."),
    ] = None
    dtype: Annotated[Literal["fp16", "fp32"], option("--dtype", help="With --for: numbers stored.")] = "fp16"
    faiss: Annotated[
        str | None,
        option("--faiss", metavar="KIND", help="FAISS factory string: HNSW32, SQ8, IVF4096,PQ64 ...  [default: Flat]"),
    ] = None
    lucene_hnsw: Annotated[bool, option("--lucene-hnsw", help="Vectors in Lucene, with an HNSW graph.")] = False
    lucene_flat: Annotated[bool, option("--lucene-flat", help="Vectors in Lucene, every one compared.")] = False
    segment: Segment = None
    collection_class: Annotated[
        str | None,
        option("--collection-class", help="With bm25: one of Anserini's readers (HtmlCollection, ...) for a folder."),
    ] = None
    batch_size: BatchSize = None
    max_length: Annotated[
        int | None, Field(ge=3), option("--max-length", help="Tokens a document [default: from the checkpoint].")
    ] = None
    pooling: Pooling = None
    l2_norm: Annotated[bool | None, option("--l2-norm/--no-l2-norm", help="[default: from the checkpoint]")] = None
    doc_prefix: Annotated[str | None, option("--doc-prefix", help="[default: from the checkpoint]")] = None
    precision: Precision = "auto"
    backend: Backend = "auto"
    shard_num: Annotated[
        int | None, Field(ge=1), option("--shard-num", help="Processes that share the work, one command each [default: 1].")
    ] = None
    shard_id: Annotated[
        int | None, Field(ge=0), option("--shard-id", help="Which of them this is, from 0 [default: torchrun's RANK].")
    ] = None
    block: Annotated[int | None, Field(ge=1), option("--block", help="Documents a block.", hidden=True)] = None
    device: Device = "cpu"
    threads: Threads = None
    store_docs: Annotated[bool, option("--store-docs/--no-store-docs", help="Keep the texts in the index folder.")] = True
    overwrite: Overwrite = False

    @property
    def kind(self) -> str:
        """Where vectors go: a FAISS factory string, or Lucene."""
        return "lucene-hnsw" if self.lucene_hnsw else "lucene-flat" if self.lucene_flat else self.faiss or "Flat"

    @property
    def shard(self) -> Shard:
        """(I, N) from the options, else from what `torchrun` and `accelerate launch` tell each process."""
        if self.shard_num is None and self.shard_id is None:
            return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        return self.shard_id or 0, self.shard_num or 1

    @model_validator(mode="after")
    def rules(self) -> Self:
        """InputError where settings do not go together."""
        sparse, tokens, one_home = self.encoder == "bm25", self.architecture is not None, "vectors have one home"
        self.only("lucene_hnsw lucene_flat", not self.faiss, f"does not go with `faiss`: {one_home}")
        self.only("lucene_flat", not self.lucene_hnsw, one_home)
        self.only(
            "faiss lucene_hnsw lucene_flat",
            not (tokens or sparse),
            "says where the vectors of a dense index live; not with `architecture` or bm25",
        )
        self.only("dtype", tokens, "is of what `architecture` stores")
        self.only(
            "architecture",
            not sparse and not self.collection_class,
            "stores what a checkpoint computes; it does not go with bm25 or `collection_class`",
        )
        self.only("collection_class", sparse or self.vectors, "is for `encoder` bm25")
        self.only("segment", not self.collection_class, "cuts what we read ourselves, not what a `collection_class` reads")
        self.only("ids", self.vectors, "goes with `vectors`")
        if self.segment:
            passages.parse(self.segment)
        if (self.shard_num is None) != (self.shard_id is None) or self.shard[0] >= self.shard[1]:
            raise InputError("`shard_id` and `shard_num` go together: shards of N are counted from 0 to N - 1")
        if self.shard[1] > 1:
            self.only("overwrite", False, "does not go with several processes: one could remove what another has just finished")
            if sparse:
                raise InputError("several processes share the work of what a checkpoint computes, not that of bm25")
        if self.vectors:
            if self.collection or self.segment or tokens or self.collection_class or sparse or self.shard[1] > 1:
                raise InputError("goes with `index`, `ids`, a kind and the name of the `encoder` only", "vectors")
        elif self.collection is None or self.encoder is None:
            raise InputError("`collection` and `encoder` are needed, or else `vectors`")
        return self


def index(settings: IndexSettings) -> int | None:
    """Write the index; returns the number of documents, or None where other processes have work left."""
    from pyserini_kd.retrieval import bm25_build, build, token_index  # only here: importing FAISS takes long

    overwrite, folder = settings.overwrite, settings.index
    mend(folder)
    if settings.shard[1] == 1:
        refuse_existing(folder, overwrite, folder=True)
    loaded = settings.model_dump(include={"device", "precision", "backend", "batch_size", "l2_norm", "doc_prefix"})
    loaded["max_doc_len"] = settings.max_length
    if settings.vectors:
        maker = load_encoder(settings.encoder, pooling=settings.pooling, **loaded) if settings.encoder else None
        return build.build_from_vectors(
            settings.vectors, settings.ids, folder, kind=settings.kind, encoder=maker, overwrite=overwrite
        )
    assert settings.collection is not None and settings.encoder is not None
    if settings.encoder == "bm25":
        threads = settings.threads or hardware.threads()
        if settings.collection_class:
            return bm25_build.build_index_with_reader(
                Path(settings.collection), settings.collection_class, folder, threads=threads, overwrite=overwrite
            )
        stamp, docs = sources.stamp(settings.collection), sources.collection(settings.collection, settings.segment)
        return bm25_build.build_index(
            docs, folder, threads=threads, overwrite=overwrite, collection_stamp=stamp, segment=settings.segment
        )
    if settings.threads:
        hardware.use_threads(settings.threads)
    options: Options = {"store_docs": settings.store_docs, "overwrite": overwrite, "block": settings.block}
    options |= {"shard": settings.shard, "collection": settings.collection, "segment": settings.segment}
    if settings.architecture:
        scorer = token_index.load_scorer(settings.encoder, settings.architecture, **loaded)
        docs = sources.collection(settings.collection, settings.segment)
        return token_index.build(docs, scorer, folder, dtype=settings.dtype, **options)
    encoder = load_encoder(settings.encoder, pooling=settings.pooling, **loaded)
    docs = sources.collection(settings.collection, settings.segment)
    return build.build(docs, encoder, folder, kind=settings.kind, **options)
