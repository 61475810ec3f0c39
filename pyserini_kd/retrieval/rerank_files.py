"""Settings and work of the command `rerank`."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from pyserini_kd.data import passages, sources
from pyserini_kd.data.run_files import check_tag, ir_metadata
from pyserini_kd.data.runs import Run, default_tag
from pyserini_kd.data.texts import Top1000
from pyserini_kd.data.types import Doc
from pyserini_kd.models import rankers
from pyserini_kd.retrieval import reranking
from pyserini_kd.retrieval.text_sources import Fetch, fetch_from
from pyserini_kd.storage import settings as shared
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import refuse_existing_run, write_record
from pyserini_kd.storage.settings import Settings, option


class RerankSettings(Settings):
    """First-stage run, ranker, texts and output."""

    run: Path = option("--run", help="First-stage run to rescore, or a top1000 file (qid, pid, query, passage).")
    encoder: str = option("--encoder", help="Checkpoint: name, folder or hub id; any architecture.")
    collection: str | None = option("--collection", None, "Texts: a path, ir_datasets:<id> or pydocs.")
    fields: shared.Fields = None
    index: tuple[str, ...] = option(
        "--index",
        (),
        "Instead: an index with texts (folder or prebuilt name) or with this checkpoint's representations; may be repeated.",
    )
    topics: str | None = option("--topics", None, "Topics of the run: a file, ir_datasets:<id>, pydocs:SPLIT, a Pyserini set.")
    depth: int = option("--depth", 100, "Documents rescored per query; the others are dropped.", ge=1)
    segment: shared.Segment = None
    aggregate: Literal["maxp", "firstp", "sump", "avgp"] = option(
        "--aggregate", "maxp", "With --segment: how passage scores give a document score."
    )
    output: Path = option("--output", help="Run to write.")
    output_format: shared.OutputFormat = "trec"
    runtag: shared.RunTag = None
    batch_size: shared.BatchSize = None
    max_length: int | None = option("--max-length", None, "Tokens per document or pair [default: from the checkpoint].", ge=3)
    precision: shared.Precision = "auto"
    backend: shared.Backend = "auto"
    device: shared.Device = "cpu"
    ir_metadata: shared.IrMetadata = False
    overwrite: shared.Overwrite = False

    @model_validator(mode="after")
    def rules(self) -> Self:
        """InputError if settings conflict."""
        if self.runtag is not None:
            check_tag(self.runtag)
        self.only("ir_metadata", self.output_format == "trec", "is for `output_format` trec")
        if Top1000.is_at(self.run):
            self.only("collection index topics depth", False, "does not go with a top1000 file: it has its texts, and no ranks")
        elif self.topics is None:
            raise InputError("missing; name the topics of the run", "topics")
        elif (self.collection is None) == (not self.index):
            raise InputError("give either `collection` or `index` for the texts")
        self.only("fields", self.collection, "requires `collection`: it names its columns")
        if self.segment:
            passages.parse(self.segment)
        self.only("aggregate", self.segment, "requires `segment`: it aggregates passage scores")
        return self


def rerank_files(settings: RerankSettings) -> Run:
    """Rescore a run file and write the result, with a record beside it; returns the new run.

    After a kill, the next call resumes a cross-encoder's reranking.
    """
    output, depth, segment, aggregate = settings.output, settings.depth, settings.segment, settings.aggregate
    with_texts = Top1000(settings.run) if Top1000.is_at(settings.run) else None
    refuse_existing_run(output, settings.overwrite)
    started = time.monotonic()
    if with_texts:
        run, queries = with_texts.read()
        depth = run.depth
    else:
        run, queries = Run.read(settings.run), sources.topics(settings.topics or "")
    loading: dict[str, Any] = {name: getattr(settings, name) for name in ("device", "precision", "backend", "batch_size")}
    loading["max_doc_len"] = settings.max_length
    source: reranking.Source
    if texts := with_texts or settings.collection:
        scorer, source = rankers.load(settings.encoder, **loading), fetch_from(texts, fields=settings.fields)
    else:
        scorer, source = reranking.open_source(settings.encoder, settings.index, segment=segment, **loading)
    clock = {"open": time.monotonic() - started, "fetch": 0.0}
    begun, record = time.monotonic(), scorer.record()
    source = _timed(source, clock) if callable(source) else source
    tag = settings.runtag or default_tag(record["name"])
    with reranking.unfinished(output, scorer) as work:
        resumed = {"resumed": True} if work.exists() else {}
        how: dict[str, Any] = {"depth": depth, "segment": segment, "aggregate": aggregate, "tag": tag}
        reranked = reranking.rerank(run, scorer, queries, source, work=work, **how)
        clock["score"] = time.monotonic() - begun - clock["fetch"]
        begun = time.monotonic()
        method = {"first stage": str(settings.run), "reranker": settings.encoder, "depth": depth}
        comments = ir_metadata(tag, method, {"topics": settings.topics or settings.run}) if settings.ir_metadata else []
        reranked.write(output, output_format=settings.output_format, overwrite=settings.overwrite, comments=comments)
    clock["write"] = time.monotonic() - begun
    config = {"run": str(settings.run), "encoder": settings.encoder, "sha256": record["sha256"], "depth": depth}
    config |= {"topics": settings.topics, "precision": scorer.precision}
    config |= {"segment": segment, "aggregate": aggregate} if segment else {}
    stages = {f"{stage}_seconds": round(spent, 3) for stage, spent in clock.items()}
    write_record(output, config=config, seconds=round(time.monotonic() - started, 2), **stages, **resumed)
    return reranked


def _timed(fetch: Fetch, clock: dict[str, float]) -> Fetch:
    """Wrap `fetch`; its seconds are added to the clock's `fetch`."""

    def timed(doc_ids: Sequence[str]) -> Iterator[Doc]:
        begun = time.monotonic()
        docs = list(fetch(doc_ids))
        clock["fetch"] += time.monotonic() - begun
        return iter(docs)

    return timed
