"""Settings and work of the command `queries`: training and held-out queries from a collection without topics."""

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from pydantic import model_validator
from tqdm import tqdm

from pyserini_kd.data import formats, passages, sources
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Qrels, Query
from pyserini_kd.distillation import made_queries
from pyserini_kd.distillation.made_queries import MEASURING, Found, MadeQuery
from pyserini_kd.models import hardware
from pyserini_kd.retrieval import bm25_build
from pyserini_kd.retrieval.bm25_search import BM25Index
from pyserini_kd.storage.environment import command_line, environment
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_folder, refuse_existing
from pyserini_kd.storage.records import Record, write_json, write_record
from pyserini_kd.storage.settings import Collection, Device, Fields, Overwrite, Segment, Settings, option

logger = logging.getLogger(__name__)

RECORD = "queries.json"
GIVEN = "given"  # kind of the topics that the user gave
RUN_DEPTH = 100  # hits per query in the written runs


class QueryConfig(Settings):
    """Collection, sizes and output of `queries`."""

    collection: Collection[str]
    fields: Fields = None
    segment: Segment = None
    topics: str | None = option("--topics", None, "Also take these topics, e.g. of a query log: a file or ir_datasets:<id>.")
    qrels: str | None = option("--qrels", None, "Judgements of --topics; a part of these topics is then held out.")
    docs: int = option("--docs", 20_000, "Sample this many documents of a larger collection.", ge=10)
    train: int = option("--train", 5_000, "Keep this many training queries; those of --topics come first.", ge=1)
    dev: int = option("--dev", 300, "Documents (or judged topics) held out: they measure, and nothing trains on them.", ge=1)
    depth: int = option("--depth", 20, "Keep a query if BM25 finds its document among this many hits.", ge=1, le=RUN_DEPTH)
    generator: str | None = option(
        "--query-generator", None, "Also generate questions with this seq2seq checkpoint (doc2query, GPL's models)."
    )
    per_doc: int | None = option("--per-doc", None, "With --query-generator: questions per document [default: 2].", ge=1)
    device: Device = "cpu"
    seed: int = option("--seed", 42, "Random seed.", ge=0)
    output: Path = option("--output", help="Folder to write.")
    overwrite: Overwrite = False

    @model_validator(mode="after")
    def rules(self) -> Self:
        """InputError if settings conflict."""
        self.only("qrels", self.topics, "judges the topics of `topics`")
        self.only("per_doc device", self.generator, "is for `generator`")
        if self.segment:
            passages.parse(self.segment)
        return self


@dataclasses.dataclass(frozen=True)
class QueryFiles:
    """The files of an output folder of `queries`."""

    folder: Path

    @property
    def docs(self) -> Path:
        """The sampled documents, without the titles and sentences that became queries."""
        return self.folder / "docs.jsonl"

    @property
    def bm25(self) -> Path:
        """BM25 index of `docs`."""
        return self.folder / "indexes" / "bm25"

    @property
    def texts(self) -> Path:
        """All training queries, also those that BM25 does not find again: plain texts for the recipe `vectors`."""
        return self.folder / "texts.tsv"

    def topics(self, split: str) -> Path:
        """Queries of `train` or `dev`."""
        return self.folder / f"{split}.tsv"

    def qrels(self, split: str) -> Path:
        """Their judgements. A query made from a document has this document as its only relevant one."""
        return self.folder / f"{split}.qrels.txt"

    def run(self, split: str) -> Path:
        """BM25's run of the queries over `docs`."""
        return self.folder / f"{split}.bm25.txt"


class Judged(NamedTuple):
    """Queries with their judgements."""

    queries: list[Query]
    qrels: Qrels


def make_files(config: QueryConfig) -> Record:
    """Make queries and write the folder; return its record: counts of documents, and of queries by kind.

    InputError if the collection has no text, or no query is left.
    """
    refuse_existing(config.output, config.overwrite, folder=True)
    given = Judged(sources.topics(config.topics) if config.topics else [], sources.qrels(config.qrels) if config.qrels else {})
    if config.qrels and not any(query.query_id in given.qrels for query in given.queries):
        raise InputError(f"qrels {config.qrels} and topics {config.topics} share no query", "qrels")
    if config.segment:
        docs = sources.collection(config.collection, config.segment, config.fields)
        given = given._replace(qrels=passages.segment_qrels(given.qrels, docs))
    found = _read(config, given)
    cut, made = made_queries.make(found, remove=not given.qrels)
    if config.generator:
        from pyserini_kd.distillation import query_generator  # lazy: loads torch

        made += query_generator.generate(config.generator, cut, config.per_doc or 2, seed=config.seed, device=config.device)
    with atomic_folder(config.output, overwrite=config.overwrite) as partial:
        files = QueryFiles(partial)
        formats.write_collection(cut, files.docs)
        bm25_build.index_bm25(cut, files.bm25, threads=hardware.threads())
        splits = _splits(made, given, [doc.doc_id for doc in cut], config)
        formats.write_topics(splits["train"].queries, files.texts)
        kept = {split: _find_again(files, split, judged, config) for split, judged in splits.items()}
        counts = {split: Counter(_kind(query.query_id) for query in queries) for split, queries in kept.items()}
        about: Record = {"collection": config.collection, "n_docs": found.n_docs, "n_empty": found.n_empty}
        about |= {"n_duplicates": found.n_duplicates, "sampled": len(cut), "words": round(found.words, 1)}
        about |= {"english": round(found.english, 3), "made": Counter(query.kind for query in made), "kept": counts}
        settings = config.model_dump(mode="json", exclude={"output", "overwrite"})
        about |= {"config": settings, "command": command_line(), **environment()}
        write_json(partial / RECORD, about)
    return about


def _read(config: QueryConfig, given: Judged) -> Found:
    """Sample the collection, with all documents that the given topics judge relevant."""
    docs = sources.collection(config.collection, config.segment, config.fields)
    wanted = {doc_id for grades in given.qrels.values() for doc_id, grade in grades.items() if grade > 0}
    found = made_queries.sample(
        tqdm(docs, desc="read collection", unit=" docs", disable=None), config.docs, config.seed, always=wanted
    )
    if not found.docs:
        raise InputError(f"{config.collection} has no document with text", "collection")
    return found


def _splits(made: Sequence[MadeQuery], given: Judged, doc_ids: Sequence[str], config: QueryConfig) -> dict[str, Judged]:
    """Split queries into train and dev. Judged topics are dev's, if there are some; else queries of held-out documents.

    At most a fifth of the topics or documents is held out.
    """
    rng = np.random.default_rng(config.seed)
    judged = [query for query in given.queries if any(grade > 0 for grade in given.qrels.get(query.query_id, {}).values())]
    held = _draw(rng, [query.query_id for query in judged] or doc_ids, config.dev)
    train, dev = Judged([], {}), Judged([], {})
    for query in given.queries:
        side = dev if judged and query.query_id in held else train
        side.queries.append(Query(f"{GIVEN}.{query.query_id}", query.text))
        side.qrels[f"{GIVEN}.{query.query_id}"] = given.qrels.get(query.query_id, {})
    for number, one in enumerate(made):
        is_held = not judged and one.doc_id in held
        if is_held and one.kind not in MEASURING:
            continue
        side = dev if is_held else train
        side.queries.append(Query(f"{one.kind}.{number}", one.text))
        side.qrels[f"{one.kind}.{number}"] = {one.doc_id: 1}
    return {"train": train, "dev": dev}


def _draw(rng: np.random.Generator, names: Sequence[str], most: int) -> set[str]:
    return {names[row] for row in rng.permutation(len(names))[: min(most, max(1, len(names) // 5))].tolist()}


def _kind(query_id: str) -> str:
    return query_id.partition(".")[0]


def _find_again(files: QueryFiles, split: str, judged: Judged, config: QueryConfig) -> list[Query]:
    """Write the queries that are kept, with their judgements and BM25's run; return them.

    A query made from a document is kept if BM25 finds the document. A given query is kept. Without judgements, BM25's first hit
    counts as its relevant document.
    """
    index, begun = BM25Index.open(files.bm25), time.monotonic()
    run = index.search(judged.queries, hits=RUN_DEPTH, threads=hardware.threads())
    seconds = (time.monotonic() - begun) / len(judged.queries)
    kept, qrels = list[Query](), dict(judged.qrels)
    for query in judged.queries:
        hits = run[query.query_id].doc_ids if query.query_id in run else []
        if _kind(query.query_id) != GIVEN:
            if qrels[query.query_id].keys() & set(hits[: config.depth]):
                kept.append(query)
        elif qrels[query.query_id] or hits:
            qrels[query.query_id] = qrels[query.query_id] or {hits[0]: 1}
            kept.append(query)
    if not kept:
        raise InputError(f"no {split} query finds its document among {config.depth} hits of BM25; are the documents all alike?",
                         "collection")  # fmt: skip
    if split == "train" and len(kept) > config.train:
        order = np.random.default_rng(config.seed).permutation(len(kept)).tolist()
        first = sorted(order, key=lambda row: _kind(kept[row].query_id) != GIVEN)[: config.train]
        kept = [kept[row] for row in sorted(first)]
    formats.write_topics(kept, files.topics(split))
    formats.write_qrels({query.query_id: qrels[query.query_id] for query in kept}, files.qrels(split))
    Run(run.tag, {query.query_id: run[query.query_id] for query in kept if query.query_id in run}).write(files.run(split))
    write_record(files.run(split), config={"index": str(files.bm25)}, seconds=round(seconds * len(kept), 3))
    return kept
