"""The command `rerank`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import click
from pydantic import model_validator

from pyserini_kd.cli import command
from pyserini_kd.data import passages, sources
from pyserini_kd.data.run_files import check_tag, ir_metadata
from pyserini_kd.data.runs import Run, default_tag
from pyserini_kd.data.types import Doc
from pyserini_kd.storage import settings as shared
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import refuse_existing_run, write_record
from pyserini_kd.storage.settings import Settings, option


class RerankSettings(Settings):
    """A run, the ranker that rescores it, and where the texts are."""

    run: Path = option("--run", help="First-stage run to rescore.")
    encoder: str = option("--encoder", help="Checkpoint: name, folder or hub id; any architecture.")
    collection: str | None = option("--collection", None, "Texts: a path, ir_datasets:<id> or pydocs.")
    index: tuple[str, ...] = option(
        "--index",
        (),
        "Instead: an index with texts (Lucene, a prebuilt name, ours), or with what this checkpoint stored; may be repeated.",
    )
    topics: str = option("--topics", help="Topics of the run: a file, ir_datasets:<id>, pydocs:SPLIT, a Pyserini set.")
    depth: int = option("--depth", 100, "Documents rescored a query; the others are dropped.", ge=1)
    segment: shared.Segment = None
    aggregate: Literal["maxp", "firstp", "sump", "avgp"] = option(
        "--aggregate", "maxp", "With --segment: how passages' scores become their document's."
    )
    output: Path = option("--output", help="Run to write.")
    output_format: shared.OutputFormat = "trec"
    runtag: shared.RunTag = None
    batch_size: shared.BatchSize = None
    max_length: int | None = option("--max-length", None, "Tokens a document or pair [default: from the checkpoint].", ge=3)
    precision: shared.Precision = "auto"
    backend: shared.Backend = "auto"
    device: shared.Device = "cpu"
    ir_metadata: shared.IrMetadata = False
    overwrite: shared.Overwrite = False

    @model_validator(mode="after")
    def rules(self) -> Self:
        """InputError where settings do not go together."""
        if self.runtag is not None:
            check_tag(self.runtag)
        self.only("ir_metadata", self.output_format == "trec", "is for `output_format` trec")
        if (self.collection is None) == (not self.index):
            raise InputError("say where the texts are: `collection` or `index` (one of them)")
        if self.segment:
            passages.parse(self.segment)
        self.only("aggregate", self.segment, "brings passages back as documents: it needs `segment`")
        return self


@command(
    name="rerank",
    example="pyserini-kd rerank --run runs/run.docs.bm25.test.txt --encoder models/reranker --collection docs.jsonl "
    "--topics test.tsv --depth 100 --output runs/run.docs.reranked.test.txt",
    epilog="A killed reranking by a cross-encoder that is started again goes on where it was. For other architectures `index` "
    "keeps what they make of documents.",
    settings=RerankSettings,
)
def main(settings: RerankSettings) -> None:
    """Rerank a run with a checkpoint of any architecture."""
    from pyserini_kd.models import rankers
    from pyserini_kd.retrieval import reranking, text_sources

    output = settings.output
    refuse_existing_run(output, settings.overwrite)
    started = time.monotonic()
    run, queries = Run.read(settings.run), sources.topics(settings.topics)
    own: dict[str, Any] = {name: getattr(settings, name) for name in ("device", "precision", "backend", "batch_size")}
    own["max_doc_len"] = settings.max_length
    source: reranking.Source
    if settings.collection is not None:
        scorer, source = rankers.load(settings.encoder, **own), text_sources.fetch_from(settings.collection)
    else:
        scorer, source = reranking.open_source(settings.encoder, settings.index, segment=settings.segment, **own)
    clock = {"open": time.monotonic() - started, "fetch": 0.0}
    begun, record = time.monotonic(), scorer.record()
    with reranking.unfinished(output, scorer) as work:
        resumed = {"resumed": True} if work.exists() else {}
        reranked = reranking.rerank(
            run, scorer, queries, _timed(source, clock) if callable(source) else source, depth=settings.depth,
            segment=settings.segment, aggregate=settings.aggregate, work=work,
            tag=settings.runtag or default_tag(record["name"]),
        )  # fmt: skip
        clock["score"] = time.monotonic() - begun - clock["fetch"]
        begun = time.monotonic()
        method = {"first stage": str(settings.run), "reranker": settings.encoder, "depth": settings.depth}
        comments = ir_metadata(reranked.tag, method, {"topics": settings.topics}) if settings.ir_metadata else []
        reranked.write(output, output_format=settings.output_format, overwrite=settings.overwrite, comments=comments)
    clock["write"] = time.monotonic() - begun
    stages = {f"{stage}_seconds": round(spent, 3) for stage, spent in clock.items()}
    config: dict[str, Any] = {"run": str(settings.run), "encoder": settings.encoder, "sha256": record["sha256"]}
    config |= {"depth": settings.depth, "topics": settings.topics, "precision": scorer.precision}
    config |= {"segment": settings.segment, "aggregate": settings.aggregate} if settings.segment else {}
    write_record(output, config=config, seconds=round(time.monotonic() - started, 2), **stages, **resumed)
    click.echo(f"{output}: {len(reranked)} queries, {reranked.n_hits} lines")


def _timed(fetch: Any, clock: dict[str, float]) -> Any:
    def timed(doc_ids: Sequence[str]) -> Iterator[Doc]:
        begun = time.monotonic()
        docs = list(fetch(doc_ids))
        clock["fetch"] += time.monotonic() - begun
        return iter(docs)

    return timed


if __name__ == "__main__":
    main()
