"""Reranking: rescore the top of a Run with a checkpoint. Documents below `depth` are dropped, never mixed in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from pyserini_kd import inference, lucene, passages, sources, token_index
from pyserini_kd.cli import command
from pyserini_kd.data import Doc, Query
from pyserini_kd.files import InputError, refuse_existing_run, write_record
from pyserini_kd.index import has_docs, stored_docs
from pyserini_kd.models import checkpoints
from pyserini_kd.runs import Run

logger = logging.getLogger(__name__)

Fetch = Callable[[Sequence[str]], Iterator[Doc]]


def rerank(
    run: Run,
    model: Any,
    queries: Sequence[Query],
    fetch: Fetch | token_index.TokenIndex,
    *,
    depth: int = 100,
    segment: str | None = None,
    aggregate: str = "maxp",
    precision: str = "auto",
    batch_size: int | None = None,
    tag: str = "rerank",
) -> Run:
    """Rescore the first `depth` documents of each query; the rest are dropped.

    Args:
        run: a first-stage run.
        model: any checkpoint of ours (cross-encoder, BERT_DOT, ColBERT).
        queries: texts of the run's queries.
        fetch: gives the documents for ids, in the order asked; or holds their representations, stored by this model.
        depth: documents rescored a query.
        segment: `WORDS:STRIDE` cuts documents into passages, each scored with the query; None takes documents whole.
        aggregate: how passages' scores become their document's: maxp, firstp, sump or avgp.
        precision: arithmetic, as in `inference`.
        batch_size: pairs (or texts) a batch; by token budget where None.
        tag: the new run's tag.
    """
    texts = {query.query_id: query.text for query in queries}
    missing = [query_id for query_id in run if query_id not in texts]
    if missing:
        raise InputError(f"{len(missing)} queries of the run are not among the topics, e.g. {missing[0]}")
    top = run.top(depth)
    wanted = list(dict.fromkeys(doc_id for hits in top.values() for doc_id in hits.doc_ids))
    if isinstance(fetch, token_index.TokenIndex):
        if segment:
            raise InputError("--segment needs texts; stored token states are of whole documents")
        pairs = [(texts[query_id], doc_id) for query_id, hits in top.items() for doc_id in hits.doc_ids]
        stored = token_index.score(fetch, model, [q for q, _ in pairs], [d for _, d in pairs], precision=precision,
                                   batch_size=batch_size)  # fmt: skip
        cuts = np.split(stored, np.cumsum([len(hits.doc_ids) for hits in top.values()])[:-1]) if pairs else [stored] * len(top)
        return Run.from_hits(tag, ((q, hits.doc_ids, s) for (q, hits), s in zip(top.items(), cuts, strict=True)))
    parts = {doc.doc_id: list(passages.segment([doc], segment)) if segment else [doc] for doc in fetch(wanted)}
    contents = {part.doc_id: part.contents for found in parts.values() for part in found}
    candidates = {q: [part.doc_id for doc_id in hits.doc_ids for part in parts[doc_id]] for q, hits in top.items()}
    pairs = [(query_id, doc_id) for query_id, doc_ids in candidates.items() for doc_id in doc_ids]
    scores = inference.score(
        model,
        [texts[query_id] for query_id, _ in pairs],
        [contents[doc_id] for _, doc_id in pairs],
        precision=precision,
        batch_size=batch_size,
    )
    if not pairs:
        return Run.from_hits(tag, ((query_id, [], []) for query_id in top))
    ends = np.cumsum([len(doc_ids) for doc_ids in candidates.values()])
    pieces = np.split(scores, ends[:-1])
    rescored = Run.from_hits(tag, ((q, ids, s) for (q, ids), s in zip(candidates.items(), pieces, strict=True)))
    return passages.aggregate(rescored, aggregate) if segment else rescored


def fetch_from(source: str | Iterable[Doc]) -> Fetch:
    """How to get documents by id: from an index folder (Lucene or ours), a prebuilt index, or a collection (read once)."""
    if isinstance(source, str):
        path = Path(source)
        if path.is_dir() and (path / "docid").exists():
            if not has_docs(path):
                raise InputError(f"index {source} stores no text; name the --collection instead")
            return stored_docs(path)
        if lucene.is_lucene_index(path) or not _is_collection(source):
            return lambda doc_ids: lucene.fetch_docs(source, doc_ids)

    def scan(doc_ids: Sequence[str]) -> Iterator[Doc]:
        wanted, docs = set(doc_ids), sources.collection(source) if isinstance(source, str) else source
        found = {doc.doc_id: doc for doc in docs if doc.doc_id in wanted}
        missing = [doc_id for doc_id in doc_ids if doc_id not in found]
        if missing:
            raise InputError(f"{len(missing)} documents are not in the collection {source}, e.g. {missing[0]}")
        return (found[doc_id] for doc_id in doc_ids)

    return scan


def _is_collection(source: str) -> bool:
    return Path(source).exists() or source == "pydocs" or source.startswith(sources.IR_DATASETS)


@command(
    name="rerank",
    example="pyserini-kd rerank --run runs/run.docs.bm25.test.txt --encoder models/reranker --collection docs.jsonl "
    "--topics test.tsv --depth 100 --output runs/run.docs.reranked.test.txt",
)
@click.option("--run", "run_path", required=True, type=click.Path(path_type=Path), help="First-stage run to rescore.")
@click.option("--encoder", required=True, help="Checkpoint: name, folder or hub id; any architecture.")
@click.option("--collection", help="Texts: a path, ir_datasets:<id> or pydocs.")
@click.option("--index", help="Texts from an index instead (Lucene, prebuilt name, or a dense index of ours).")
@click.option("--topics", required=True, help="Topics of the run: a file, ir_datasets:<id>, pydocs:SPLIT, a Pyserini set.")
@click.option("--depth", default=100, type=click.IntRange(1), help="Documents rescored a query; the others are dropped.")
@click.option("--segment", metavar="WORDS:STRIDE", help="Cut documents into passages of so many words, e.g. 150:75.")
@click.option("--aggregate", type=click.Choice(list(passages.AGGREGATES)), help="With --segment  [default: maxp]")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Run to write.")
@click.option("--output-format", default="trec", type=click.Choice(["trec", "msmarco"]), help="Run format.")
@click.option("--runtag", help="[default: the checkpoint's name]")
@click.option("--batch-size", "--batch", type=click.IntRange(1), help="Pairs a batch [default: by token budget].")
@click.option("--max-length", type=click.IntRange(3), help="Tokens a document or pair [default: from the checkpoint].")
@click.option("--precision", default="auto", type=click.Choice(list(inference.PRECISIONS)), help="Arithmetic.")
@click.option("--backend", default="auto", type=click.Choice(list(inference.BACKENDS)), help="What computes.")
@click.option("--device", default="cpu", help="cpu, cuda or cuda:N.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
def main(
    run_path: Path,
    encoder: str,
    collection: str | None,
    index: str | None,
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
    overwrite: bool,
) -> None:
    """Rerank a run with a cross-encoder, a BERT_DOT student or a ColBERT."""
    refuse_existing_run(output, overwrite)
    started = time.monotonic()
    if (collection is None) == (index is None):
        raise InputError("say where the texts are: --collection or --index (one of them)")
    if segment:
        passages.parse(segment)
    elif aggregate:
        raise InputError("--aggregate brings passages back as documents: it needs --segment")
    run = Run.read(run_path)
    queries = sources.topics(topics)
    stored_for = token_index.architecture_in(index) if index else None
    fetch: Fetch | token_index.TokenIndex
    if index and stored_for:
        if segment:
            raise InputError(f"{index} holds representations, no texts to cut; give --segment to `index --for` instead")
        model = token_index.load_model(encoder, stored_for, max_doc_len=max_length).to(inference.check_device(device))
        fetch = token_index.TokenIndex.load(index)
        token_index.check_encoder(fetch, model, checkpoints.resolve(encoder))
    else:
        model = inference.load(encoder, device=device, precision=precision, backend=backend, max_doc_len=max_length)
        fetch = fetch_from(collection or index or "")
    clock = {"open": time.monotonic() - started, "fetch": 0.0}
    begun = time.monotonic()
    reranked = rerank(
        run,
        model,
        queries,
        fetch if isinstance(fetch, token_index.TokenIndex) else _timed(fetch, clock),
        depth=depth,
        segment=segment,
        aggregate=aggregate or "maxp",
        precision=precision,
        batch_size=batch_size,
        tag=runtag or checkpoints.resolve(encoder).name,
    )
    clock["score"] = time.monotonic() - begun - clock["fetch"]
    begun = time.monotonic()
    reranked.write(output, output_format=output_format, overwrite=overwrite)
    clock["write"] = time.monotonic() - begun
    stages = {f"{stage}_seconds": round(spent, 3) for stage, spent in clock.items()}
    sha256 = checkpoints.fingerprint(checkpoints.resolve(encoder))
    config: dict[str, Any] = {"run": str(run_path), "encoder": encoder, "sha256": sha256}
    config |= {"depth": depth, "topics": topics, "precision": inference.precision_of(model, precision)}
    config |= {"segment": segment, "aggregate": aggregate or "maxp"} if segment else {}
    write_record(output, config=config, seconds=round(time.monotonic() - started, 2), **stages)
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
