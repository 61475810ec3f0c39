"""The command `index`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from pyserini_kd.cli import command, typed
from pyserini_kd.data import passages, sources
from pyserini_kd.models import checkpoint_names, checkpoint_settings, hardware
from pyserini_kd.retrieval import bm25_build, token_index
from pyserini_kd.retrieval.build import build, build_from_vectors
from pyserini_kd.retrieval.open_index import load_encoder
from pyserini_kd.storage import work
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import refuse_existing


@command(
    name="index",
    example="pyserini-kd index --collection docs.jsonl --encoder models/student --index indexes/docs.student",
)
@click.option("--collection", help="Collection: a path, ir_datasets:<id> or pydocs.")
@click.option("--encoder", help="Checkpoint (name, folder or hub id), or bm25 for a Lucene index.")
@click.option(
    "--vectors", "ready", type=click.Path(path_type=Path),
    help="Instead of --collection: vectors made elsewhere, .npy, Pyserini's embeddings.jsonl, an index folder.",
)  # fmt: skip
@click.option("--ids", type=click.Path(path_type=Path), help="With --vectors X.npy: ids of the rows, one a line.")
@click.option("--index", "folder", required=True, type=click.Path(path_type=Path), help="Index folder to write.")
@click.option(
    "--for",
    "architecture",
    type=click.Choice(list(token_index.ARCHITECTURES)),
    help="Store what this architecture's reranking reuses of a document, instead of a FAISS index.",
)
@click.option("--dtype", default="fp16", type=click.Choice(list(token_index.DTYPES)), help="With --for: numbers stored.")
@click.option("--faiss", metavar="KIND", help="FAISS factory string: HNSW32, SQ8, IVF4096,PQ64 ...  [default: Flat]")
@click.option("--lucene-hnsw", "in_lucene", flag_value="lucene-hnsw", help="Vectors in Lucene, with an HNSW graph.")
@click.option("--lucene-flat", "in_lucene", flag_value="lucene-flat", help="Vectors in Lucene, every one compared.")
@click.option("--segment", metavar="WORDS:STRIDE", help="Index passages `docid#n` of so many words, e.g. 150:75.")
@click.option("--collection-class", help="With bm25: one of Anserini's readers (HtmlCollection, ...) for a folder.")
@click.option("--batch-size", "--batch", type=click.IntRange(1), help="Documents a batch [default: by token budget].")
@click.option("--max-length", type=click.IntRange(3), help="Tokens a document [default: from the checkpoint].")
@click.option("--pooling", type=click.Choice(["cls", "mean"]), help="[default: from the checkpoint]")
@click.option("--l2-norm/--no-l2-norm", default=None, help="[default: from the checkpoint]")
@click.option("--doc-prefix", help="[default: from the checkpoint]")
@click.option("--precision", default="auto", type=click.Choice(list(hardware.PRECISIONS)), help="Arithmetic.")
@click.option("--backend", default="auto", type=click.Choice(list(hardware.BACKENDS)), help="What computes.")
@click.option("--shard-num", type=click.IntRange(1), help="Processes that share the work, one command each [default: 1].")
@click.option("--shard-id", type=click.IntRange(0), help="Which of them this is, from 0 [default: torchrun's RANK].")
@click.option("--block", type=click.IntRange(1), hidden=True, help="Documents a block.")
@click.option("--device", default="cpu", help="cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1), help="[default: all processors]")
@click.option("--store-docs/--no-store-docs", default=True, help="Keep the texts in the index folder.")
@click.option("--overwrite", is_flag=True, help="Replace the index if it exists.")
def main(
    collection: str | None,
    encoder: str | None,
    ready: Path | None,
    ids: Path | None,
    folder: Path,
    architecture: str | None,
    dtype: str,
    faiss: str | None,
    in_lucene: str | None,
    segment: str | None,
    collection_class: str | None,
    batch_size: int | None,
    max_length: int | None,
    pooling: str | None,
    l2_norm: bool | None,
    doc_prefix: str | None,
    precision: str,
    backend: str,
    shard_num: int | None,
    shard_id: int | None,
    block: int | None,
    device: str,
    threads: int | None,
    store_docs: bool,
    overwrite: bool,
) -> None:
    """Index a collection: dense with a BERT_DOT checkpoint (FAISS or Lucene), or sparse with BM25 (Lucene)."""
    if faiss and in_lucene:
        raise InputError(f"--faiss and --{in_lucene} do not go together: vectors have one home")
    if (faiss or in_lucene) and (architecture or encoder == "bm25"):
        raise InputError("--faiss and --lucene-hnsw or -flat say where a dense index lives; not with --for or bm25")
    kind = in_lucene or faiss or "Flat"
    shard = _shard(shard_id, shard_num, overwrite)
    work.mend(folder)
    if shard[1] == 1:
        refuse_existing(folder, overwrite, folder=True)
    started = time.monotonic()
    count_threads = threads or hardware.threads()
    if ready:
        if collection or segment or architecture or collection_class or encoder == "bm25" or shard[1] > 1:
            raise InputError("--vectors goes with --index, --ids, --faiss, --lucene-* and the name of the --encoder only")
        who = _who(encoder, pooling=pooling, l2_norm=l2_norm, doc_prefix=doc_prefix, max_doc_len=max_length)
        written = build_from_vectors(ready, ids, folder, kind=kind, overwrite=overwrite, **who)
        click.echo(f"{folder}: {written} vectors")
        return
    if collection is None or encoder is None or ids:
        raise InputError("--collection and --encoder are needed, or else --vectors; --ids goes with --vectors")
    _refuse_contradictions(encoder, architecture, segment, collection_class, shard)
    docs = passages.segment(sources.collection(collection), segment) if segment else sources.collection(collection)
    count: int | None
    if architecture:
        if threads:
            hardware.use_threads(threads)
        reader = token_index.load_model(
            encoder, architecture, device=device, precision=precision, backend=backend, l2_norm=l2_norm, doc_prefix=doc_prefix,
            max_doc_len=max_length,
        )  # fmt: skip
        count = token_index.build(
            docs,
            reader,
            checkpoint_names.resolve(encoder),
            folder,
            dtype=dtype,
            segment=segment,
            precision=precision,
            batch_size=batch_size,
            store_docs=store_docs,
            overwrite=overwrite,
            block=block,
            shard=shard,
            collection=collection,
        )
    elif encoder == "bm25":
        if collection_class:
            count = bm25_build.build_index_with_reader(
                Path(collection), collection_class, folder, threads=count_threads, overwrite=overwrite
            )
        else:
            stamp = sources.stamp(collection)
            count = bm25_build.build_index(
                docs, folder, threads=count_threads, overwrite=overwrite, collection_stamp=stamp, segment=segment
            )
    else:
        model = load_encoder(
            encoder, device, threads, precision=precision, backend=backend, pooling=pooling, l2_norm=l2_norm,
            doc_prefix=doc_prefix, max_doc_len=max_length,
        )  # fmt: skip
        count = build(
            docs,
            model,
            checkpoint_names.resolve(encoder),
            folder,
            kind=kind,
            precision=precision,
            batch_size=batch_size,
            store_docs=store_docs,
            overwrite=overwrite,
            block=block,
            shard=shard,
            collection=collection,
            segment=segment,
        )
    if count is None:  # other processes have work left
        return
    seconds = time.monotonic() - started
    click.echo(f"{folder}: {count} documents in {seconds:.0f} s ({count / seconds:.0f} a second)")


def _refuse_contradictions(
    encoder: str, architecture: str | None, segment: str | None, collection_class: str | None, shard: tuple[int, int]
) -> None:
    """InputError where options do not go together."""
    if segment and collection_class:
        raise InputError("--segment cuts what we read ourselves, not what a --collection-class reads")
    if segment:
        passages.parse(segment)
    if shard[1] > 1 and encoder == "bm25":
        raise InputError("several processes share the work of what a checkpoint computes, not that of bm25")
    if typed("dtype") and not architecture:
        raise InputError("--dtype is of what --for stores")
    if architecture and (collection_class or encoder == "bm25"):
        raise InputError("--for stores what a checkpoint computes; it does not go with bm25 or --collection-class")
    if collection_class and encoder != "bm25":
        raise InputError("--collection-class is for --encoder bm25")


def _who(encoder: str | None, **overrides: Any) -> dict[str, Any]:
    """What is known of who made ready vectors: the record and width of an encoder, or nothing."""
    if encoder is None:
        return {}
    model = load_encoder(encoder, **overrides)
    return {"encoder": checkpoint_settings.record_of(model, checkpoint_names.resolve(encoder)), "width": model.width}


def _shard(shard_id: int | None, shard_num: int | None, overwrite: bool) -> tuple[int, int]:
    """(I, N) from the options, else from what `torchrun` and `accelerate launch` tell each process."""
    if shard_num is None and shard_id is None:
        shard_id, shard_num = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if shard_num is None or shard_id is None or shard_id >= shard_num:
        raise InputError("--shard-id and --shard-num go together: shards of N are counted from 0 to N - 1")
    if shard_num > 1 and overwrite:
        raise InputError("--overwrite does not go with several processes: one could remove what another has just finished")
    return shard_id, shard_num


if __name__ == "__main__":
    main()
