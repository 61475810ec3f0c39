"""The command `rerank`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from pyserini_kd.cli import command
from pyserini_kd.data import passages, sources
from pyserini_kd.data.run_files import check_tag, ir_metadata
from pyserini_kd.data.runs import Run, default_tag
from pyserini_kd.data.types import Doc
from pyserini_kd.models import checkpoint_names, engine, hardware
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.reranking import Source, open_source, rerank, unfinished
from pyserini_kd.retrieval.text_sources import Fetch, fetch_from
from pyserini_kd.retrieval.token_index import TokenIndex
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import refuse_existing_run, write_record


@command(
    name="rerank",
    example="pyserini-kd rerank --run runs/run.docs.bm25.test.txt --encoder models/reranker --collection docs.jsonl "
    "--topics test.tsv --depth 100 --output runs/run.docs.reranked.test.txt",
    epilog="A killed reranking by a cross-encoder that is started again goes on where it was. For other architectures `index` "
    "keeps what they make of documents.",
)
@click.option("--run", "run_path", required=True, type=click.Path(path_type=Path), help="First-stage run to rescore.")
@click.option("--encoder", required=True, help="Checkpoint: name, folder or hub id; any architecture.")
@click.option("--collection", help="Texts: a path, ir_datasets:<id> or pydocs.")
@click.option(
    "--index", "indexes", multiple=True,
    help="Instead: an index with texts (Lucene, a prebuilt name, ours), or with what this checkpoint stored; may be repeated.",
)  # fmt: skip
@click.option("--topics", required=True, help="Topics of the run: a file, ir_datasets:<id>, pydocs:SPLIT, a Pyserini set.")
@click.option("--depth", default=100, type=click.IntRange(1), help="Documents rescored a query; the others are dropped.")
@click.option("--segment", metavar="WORDS:STRIDE", help="Score passages of so many words, e.g. 150:75, not whole documents.")
@click.option("--aggregate", type=click.Choice(list(passages.AGGREGATES)), help="With --segment  [default: maxp]")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Run to write.")
@click.option("--output-format", default="trec", type=click.Choice(["trec", "msmarco"]), help="Run format.")
@click.option("--runtag", help="[default: the checkpoint's name]")
@click.option("--batch-size", "--batch", type=click.IntRange(1), help="Pairs a batch [default: by token budget].")
@click.option("--max-length", type=click.IntRange(3), help="Tokens a document or pair [default: from the checkpoint].")
@click.option("--precision", default="auto", type=click.Choice(list(hardware.PRECISIONS)), help="Arithmetic.")
@click.option("--backend", default="auto", type=click.Choice(list(hardware.BACKENDS)), help="What computes.")
@click.option("--device", default="cpu", help="cpu, cuda or cuda:N.")
@click.option("--ir-metadata", "metadata", is_flag=True, help="Begin the run with ir_metadata comments.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
def main(
    run_path: Path,
    encoder: str,
    collection: str | None,
    indexes: tuple[str, ...],
    topics: str,
    depth: int,
    segment: str | None,
    aggregate: str | None,
    output: Path,
    output_format: str,
    runtag: str | None,
    batch_size: int | None,
    max_length: int | None,
    precision: str,
    backend: str,
    device: str,
    metadata: bool,
    overwrite: bool,
) -> None:
    """Rerank a run with a checkpoint of any architecture."""
    refuse_existing_run(output, overwrite)
    if runtag is not None:
        check_tag(runtag)
    if metadata and output_format != "trec":
        raise InputError("--ir-metadata is for --output-format trec")
    started = time.monotonic()
    if (collection is None) == (not indexes):
        raise InputError("say where the texts are: --collection or --index (one of them)")
    if segment:
        passages.parse(segment)
    elif aggregate:
        raise InputError("--aggregate brings passages back as documents: it needs --segment")
    run = Run.read(run_path)
    queries = sources.topics(topics)
    settings: dict[str, Any] = {"device": device, "precision": precision, "backend": backend, "max_doc_len": max_length}
    source: Source
    if collection is not None:
        model, source = engine.load(encoder, **settings), fetch_from(collection)
    else:
        model, source = open_source(encoder, indexes, segment=segment, **settings)
    clock = {"open": time.monotonic() - started, "fetch": 0.0}
    begun = time.monotonic()
    folder = checkpoint_names.resolve(encoder)
    with unfinished(output, model, folder, precision=precision, batch_size=batch_size) as work:
        resumed = {"resumed": True} if work.exists() else {}
        reranked = rerank(
            run,
            model,
            queries,
            source if isinstance(source, TokenIndex | DenseIndex) else _timed(source, clock),
            depth=depth,
            segment=segment,
            aggregate=aggregate or "maxp",
            precision=precision,
            batch_size=batch_size,
            tag=runtag or default_tag(checkpoint_names.name_of(folder)),
            work=work,
        )
        clock["score"] = time.monotonic() - begun - clock["fetch"]
        begun = time.monotonic()
        method = {"first stage": str(run_path), "reranker": encoder, "depth": depth}
        comments = ir_metadata(reranked.tag, method, {"topics": topics}) if metadata else []
        reranked.write(output, output_format=output_format, overwrite=overwrite, comments=comments)
    clock["write"] = time.monotonic() - begun
    stages = {f"{stage}_seconds": round(spent, 3) for stage, spent in clock.items()}
    config: dict[str, Any] = {"run": str(run_path), "encoder": encoder, "sha256": checkpoint_names.fingerprint(folder)}
    config |= {"depth": depth, "topics": topics, "precision": engine.precision_of(model, precision)}
    config |= {"segment": segment, "aggregate": aggregate or "maxp"} if segment else {}
    write_record(output, config=config, seconds=round(time.monotonic() - started, 2), **stages, **resumed)
    click.echo(f"{output}: {len(reranked)} queries, {reranked.n_hits} lines")


def _timed(fetch: Fetch, clock: dict[str, float]) -> Fetch:
    def timed(doc_ids: Sequence[str]) -> Iterator[Doc]:
        begun = time.monotonic()
        docs = list(fetch(doc_ids))
        clock["fetch"] += time.monotonic() - begun
        return iter(docs)

    return timed


if __name__ == "__main__":
    main()
