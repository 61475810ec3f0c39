"""Reranking: rescore the top of a Run with a checkpoint. Documents below `depth` are dropped, never mixed in."""

from __future__ import annotations

import contextlib
import hashlib
import json
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
from pyserini_kd.dense_index import DenseIndex, has_docs, shards, stored_docs
from pyserini_kd.files import (
    InputError,
    alone,
    clear,
    comparable,
    read_json,
    refuse_existing_run,
    write_record,
)
from pyserini_kd.models import checkpoints
from pyserini_kd.runs import Run, Scores, check_tag, default_tag, ir_metadata
from pyserini_kd.token_index import TokenIndex

logger = logging.getLogger(__name__)

Fetch = Callable[[Sequence[str]], Iterator[Doc]]
Source = Fetch | TokenIndex | DenseIndex
LOGITS = "cross_encoder", "prettr"  # architectures whose scores are logits


def rerank(
    run: Run,
    model: Any,
    queries: Sequence[Query],
    source: Source,
    *,
    depth: int = 100,
    segment: str | None = None,
    aggregate: str = "maxp",
    precision: str = "auto",
    batch_size: int | None = None,
    tag: str = "rerank",
    work: Path | None = None,
) -> Run:
    """Rescore the first `depth` documents of each query; the rest are dropped.

    Args:
        run: a first-stage run.
        model: any checkpoint of ours, of any architecture.
        queries: texts of the run's queries.
        source: gives the documents for ids, in the order asked; or holds what this model stored of them.
        depth: documents rescored a query.
        segment: `WORDS:STRIDE` cuts documents into passages (or finds them in the index), each scored with the query; None
            takes documents whole.
        aggregate: how passages' scores become their document's: maxp, firstp, sump or avgp. The last two add the
            probabilities of a cross-encoder or PreTTR, not their logits, as Dai and Callan, and Chen et al., do: a sum of
            logits would hold each irrelevant passage against its document. A TK's scores, which may be negative as well, are
            no logits: its passages are not summed.
        precision: arithmetic, as in `inference`.
        batch_size: pairs (or texts) a batch; by token budget where None.
        tag: the new run's tag.
        work: folder for finished scores, as in `inference.score`.
    """
    if segment and aggregate == "sump" and model.architecture == "tk":
        raise InputError("--aggregate sump: a tk's scores may be negative, and a document's further passages would count "
                         "against it; take maxp, firstp or avgp")  # fmt: skip
    texts = {query.query_id: query.text for query in queries}
    missing = [query_id for query_id in run if query_id not in texts]
    if missing:
        raise InputError(f"{len(missing)} queries of the run are not among the topics, e.g. {missing[0]}")
    top = run.top(depth)
    wanted = list(dict.fromkeys(doc_id for hits in top.values() for doc_id in hits.doc_ids))
    contents: dict[str, str] = {}
    if isinstance(source, TokenIndex):
        parts = source.parts(wanted, segment)
    elif isinstance(source, DenseIndex):
        if segment:
            raise InputError("--segment needs texts; the stored vectors are of whole documents")
        parts = {doc_id: [doc_id] for doc_id in wanted}
    else:
        docs = {doc.doc_id: list(passages.segment([doc], segment)) if segment else [doc] for doc in source(wanted)}
        contents = {part.doc_id: part.contents for found in docs.values() for part in found}
        parts = {doc_id: [part.doc_id for part in found] for doc_id, found in docs.items()}
    candidates = {q: [part for doc_id in hits.doc_ids for part in parts[doc_id]] for q, hits in top.items()}
    pairs = [(texts[q], part) for q, found in candidates.items() for part in found]
    if not pairs:
        return Run.from_hits(tag, ((query_id, [], []) for query_id in top))
    scores = _scores(model, source, pairs, contents, precision=precision, batch_size=batch_size, work=work)
    if segment and aggregate in passages.ADDED and model.architecture in LOGITS:
        scores = (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
    pieces = np.split(scores, np.cumsum([len(found) for found in candidates.values()])[:-1])
    rescored = Run.from_hits(tag, ((q, ids, s) for (q, ids), s in zip(candidates.items(), pieces, strict=True)))
    return passages.aggregate(rescored, aggregate) if segment else rescored


def _scores(
    model: Any, source: Source, pairs: Sequence[tuple[str, str]], contents: dict[str, str], work: Path | None, **settings: Any
) -> Scores:
    """Scores (P,) of (query, doc_id) pairs, from what is stored or from the documents' contents."""
    queries, doc_ids = [query for query, _ in pairs], [doc_id for _, doc_id in pairs]
    if isinstance(source, TokenIndex):
        return token_index.score(source, model, queries, doc_ids, **settings)
    if isinstance(source, DenseIndex):
        return source.score(model, queries, doc_ids, **settings)
    return inference.score(model, queries, [contents[doc_id] for doc_id in doc_ids], work=work, **settings)


@contextlib.contextmanager
def unfinished(output: Path, model: Any, folder: Path, *, precision: str, batch_size: int | None) -> Iterator[Path]:
    """A folder beside a run for finished scores by a checkpoint in `folder`; it goes when the run is written, not before.

    InputError where another process reranks for the same output.
    """
    how = [checkpoints.record_of(model, folder), inference.arithmetic(model, precision, batch_size), batch_size]
    work = output.with_name(f"{output.name}.partial")
    with alone(work, "rerank"):
        yield work / hashlib.sha256(json.dumps(comparable(how)).encode()).hexdigest()
        clear(work, "[0-9a-f]" * 64)


def fetch_from(source: str | Iterable[Doc], *more: str) -> Fetch:
    """How to get documents by id: from an index folder (Lucene or ours), a prebuilt index, or a collection (read once).

    More sources are further index folders of ours.
    """
    if isinstance(source, str):
        folders = [Path(source), *map(Path, more)]
        if all(path.is_dir() for path in folders) and has_docs(*folders):
            return stored_docs(*folders)
        for path in folders:
            if (path / "docid").exists() and not has_docs(path):
                raise InputError(f"index {path} stores no text; name the --collection instead")
        if more:
            raise InputError(f"several --index are folders that `pyserini-kd index` wrote, not {source} and {', '.join(more)}")
        path = folders[0]
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


def open_source(
    encoder: str, indexes: Sequence[str], *, segment: str | None = None, precision: str = "auto", **settings: Any
) -> tuple[Any, Source]:
    """A checkpoint, and the best that indexes have for it: its own representations or vectors, else texts.

    Vectors are reused for whole documents, where they are exact (Flat) and are what this checkpoint would make. `settings` as
    for `inference.load`; lengths, prefix and normalisation of stored representations are those of their index.
    """
    checkpoint, folders = checkpoints.resolve(encoder), shards(*indexes)
    architecture = token_index.architecture_in(folders[0])
    same = len({token_index.architecture_in(folder) for folder in folders}) == 1
    if not same:
        logger.info("the indexes are of several kinds: documents are scored from their texts")
    if architecture and same:
        index = TokenIndex.load(*folders)
        made_by = index.manifest["encoder"]
        if made_by["sha256"] == checkpoints.fingerprint(checkpoint):
            given = {name: value for name, value in settings.items() if value is not None}
            kept = {name: made_by[name] for name in ("l2_norm", "doc_prefix", "max_doc_len")}
            model = token_index.load_model(encoder, architecture, precision=precision, **kept | given)
            token_index.check_encoder(index, model, checkpoint)
            return model, index
        if not has_docs(*folders):
            raise InputError(f"{folders[0]} holds what {made_by['name']} makes of documents, nothing of {encoder}, and no "
                             f"texts: name the --collection, or make an index --for this checkpoint")  # fmt: skip
        logger.info("%s is not %s, which made the index: documents are scored from its texts", encoder, made_by["name"])
    model = inference.load(encoder, precision=precision, **settings)
    if model.architecture == "bert_dot" and not segment:
        if all(_has_vectors(folder, model, checkpoint, precision) for folder in folders):
            logger.info("the documents' vectors are taken from the index")
            return model, DenseIndex.load(*folders, mmap=True)
    return model, fetch_from(*map(str, folders))


def _has_vectors(folder: Path, model: Any, checkpoint: Path, precision: str) -> bool:
    """Whether a folder holds exactly the vectors that the model would make."""
    path = folder / "manifest.json"
    manifest = read_json(path, "manifest") if path.is_file() else {}
    made_by, mine = manifest.get("encoder", {}), checkpoints.record_of(model, checkpoint)
    sides = ("sha256", "pooling", "l2_norm", "doc_prefix", "max_doc_len")
    exact = manifest.get("index") == "Flat" and manifest.get("precision") == inference.precision_of(model, precision)
    return exact and all(made_by.get(name) == mine[name] for name in sides)


def is_index(source: str) -> bool:
    """Whether documents are to be had from an index, ours, Lucene's or a prebuilt one, rather than from a collection."""
    path = Path(source)
    ours = (path / "docid").exists() or (path / "manifest.json").exists()
    return ours or lucene.is_lucene_index(path) or not _is_collection(source)


def _is_collection(source: str) -> bool:
    return Path(source).exists() or source == "pydocs" or source.startswith(sources.IR_DATASETS)


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
@click.option("--precision", default="auto", type=click.Choice(list(inference.PRECISIONS)), help="Arithmetic.")
@click.option("--backend", default="auto", type=click.Choice(list(inference.BACKENDS)), help="What computes.")
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
        model, source = inference.load(encoder, **settings), fetch_from(collection)
    else:
        model, source = open_source(encoder, indexes, segment=segment, **settings)
    clock = {"open": time.monotonic() - started, "fetch": 0.0}
    begun = time.monotonic()
    folder = checkpoints.resolve(encoder)
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
            tag=runtag or default_tag(checkpoints.name_of(folder)),
            work=work,
        )
        clock["score"] = time.monotonic() - begun - clock["fetch"]
        begun = time.monotonic()
        method = {"first stage": str(run_path), "reranker": encoder, "depth": depth}
        comments = ir_metadata(reranked.tag, method, {"topics": topics}) if metadata else []
        reranked.write(output, output_format=output_format, overwrite=overwrite, comments=comments)
    clock["write"] = time.monotonic() - begun
    stages = {f"{stage}_seconds": round(spent, 3) for stage, spent in clock.items()}
    config: dict[str, Any] = {"run": str(run_path), "encoder": encoder, "sha256": checkpoints.fingerprint(folder)}
    config |= {"depth": depth, "topics": topics, "precision": inference.precision_of(model, precision)}
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
