"""From a name to data: where a collection, topics or qrels are named, a path, `ir_datasets:<id>` and `pydocs` all work.

Topics may also be named as Pyserini names its own sets (`dl19-passage`); such a set is looked up once, through Java, and
kept as TSV under `PYSERINI_KD_HOME/indexes/topics/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pyserini_kd.data import collection_files, docstrings, ids, ir_dataset, passages, qrels_files, topic_files
from pyserini_kd.data.types import Doc, Qrels, Query
from pyserini_kd.storage import records
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import home

IR_DATASETS = "ir_datasets:"
FILE_ENDINGS = (".gz", ".tsv", ".jsonl", ".json", ".txt")


def collection(spec: str, segment: str | None = None) -> Iterator[Doc]:
    """Stream a collection, cut into passages where `segment` (`WORDS:STRIDE`) is given; duplicate ids are an InputError."""

    def read() -> Iterator[Doc]:
        if spec == "pydocs":
            return docstrings.docs()
        if spec.startswith(IR_DATASETS):
            docs: Iterator[Doc] = ir_dataset.read_ir_dataset(spec.removeprefix(IR_DATASETS), "docs")
            return docs
        return collection_files.read_collection(spec)

    def places(doc_id: str) -> Iterator[str]:
        named = ((f"{spec}, document {number}", doc) for number, doc in enumerate(read(), start=1))
        return (
            where for where, doc in (named if is_named(spec) else collection_files.located_docs(spec)) if doc.doc_id == doc_id
        )

    found = ids.unique_docs(read(), places)
    return passages.segment(found, segment) if segment else found


def is_named(spec: str) -> bool:
    """Whether data are asked for by a name of their own, whatever files there are."""
    return is_pydocs(spec) or spec.startswith(IR_DATASETS)


def is_pydocs(spec: str) -> bool:
    """Whether `pydocs` is meant, or one of its splits, and not a file whose name begins so."""
    return spec.split(":")[0] == "pydocs"


def files(spec: str) -> list[Path]:
    """The files of a collection; none where it is named, or not there."""
    return collection_files.collection_files(spec) if spec and not is_named(spec) and Path(spec).exists() else []


def stamp(spec: str) -> str:
    """What tells whether a collection has changed: names, sizes, times of its files, versions for `pydocs`; else nothing."""
    if is_pydocs(spec):
        return docstrings.stamp()
    found = files(spec)
    return records.stamp(found) if found else ""


def topics(spec: str) -> list[Query]:
    """Topics: a file, `ir_datasets:<id>`, `pydocs:SPLIT` (`pydocs` alone is its test split), or a Pyserini topic set."""
    if is_pydocs(spec):
        return docstrings.topics(_split(spec))
    if spec.startswith(IR_DATASETS):
        queries: list[Query] = ir_dataset.read_ir_dataset(spec.removeprefix(IR_DATASETS), "queries")
        return queries
    if Path(spec).exists():
        return topic_files.read_topics(spec)
    kept = home() / "indexes" / "topics" / f"{spec}.tsv"
    if kept.exists():
        return topic_files.read_topics(kept)
    if "/" not in spec and not spec.endswith(FILE_ENDINGS):
        from pyserini_kd.data import topic_sets

        found = topic_sets.read_topic_set(spec)
        if found is not None:
            topic_files.write_topics(found, kept, overwrite=True)
            return found
    raise InputError(
        f"topics not found: {spec} is neither a file, `ir_datasets:<id>`, `pydocs:SPLIT` nor a topic set of Pyserini"
    )


def qrels(spec: str) -> Qrels:
    """Qrels: a file, `ir_datasets:<id>`, or `pydocs:SPLIT` (`pydocs` alone is its test split)."""
    if is_pydocs(spec):
        return docstrings.qrels(_split(spec))
    if spec.startswith(IR_DATASETS):
        found: Qrels = ir_dataset.read_ir_dataset(spec.removeprefix(IR_DATASETS), "qrels")
        return found
    return qrels_files.read_qrels(spec)


def short_name(spec: str) -> str:
    """A word for file names: the last part of a path or id without its endings (`queries.dl19.tsv` -> `queries.dl19`)."""
    name = spec.removeprefix(IR_DATASETS).rstrip("/").replace(":", "-")
    if Path(spec).exists():
        name = Path(spec).resolve().name
        for ending in FILE_ENDINGS:
            name = name.removesuffix(ending)
    return name.replace("/", "-")


def _split(spec: str) -> str:
    return spec.partition(":")[2] or "test"
