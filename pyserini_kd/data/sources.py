"""From a name to data. A collection, topics or qrels are named by a path, `ir_datasets:<id>` or `pydocs`.

Topics may also have the name of a Pyserini topic set (`dl19-passage`). It is looked up once, through Java, and kept as TSV
under `PYSERINI_KD_HOME/indexes/topics/`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyserini_kd.data import docstrings, formats, passages
from pyserini_kd.data.ids import unique_docs
from pyserini_kd.data.java import java_message, start_jvm
from pyserini_kd.data.lines import one_line, unique_queries
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
            return map(_ir_doc, _ir_records(spec, "docs"))
        return formats.read_collection(spec)

    def places(doc_id: str) -> Iterator[str]:
        numbered = ((f"{spec}, document {number}", doc) for number, doc in enumerate(read(), start=1))
        return (where for where, doc in (numbered if is_named(spec) else formats.located_docs(spec)) if doc.doc_id == doc_id)

    found = unique_docs(read(), places)
    return passages.segment(found, segment) if segment else found


def topics(spec: str) -> list[Query]:
    """Topics: a file, `ir_datasets:<id>`, `pydocs:SPLIT` (`pydocs` alone is its test split), or a Pyserini topic set."""
    if is_pydocs(spec):
        return docstrings.topics(_split(spec))
    if spec.startswith(IR_DATASETS):
        queries = (Query(query.query_id, one_line(query.default_text())) for query in _ir_records(spec, "queries"))
        return unique_queries(((spec, query) for query in queries), spec)
    kept = home() / "indexes" / "topics" / f"{spec}.tsv"
    for path in (Path(spec), kept):
        if path.exists():
            return formats.read_topics(path)
    if "/" not in spec and not spec.endswith(FILE_ENDINGS):
        found = read_topic_set(spec)
        if found is not None:
            formats.write_topics(found, kept, overwrite=True)
            return found
    raise InputError(
        f"topics not found: {spec} is neither a file, `ir_datasets:<id>`, `pydocs:SPLIT` nor a topic set of Pyserini"
    )


def read_topic_set(name: str) -> list[Query] | None:
    """One of Pyserini's own topic sets by name (`dl19-passage`, ...); None where it has no such set."""
    start_jvm()
    from pyserini.search import _base

    if name not in _base.topics_mapping:
        return None
    try:
        topics = _base.JTopicReader.getTopicsWithStringIds(_base.topics_mapping[name])  # keeps 007 a string
    except Exception as error:
        raise InputError(f"topic set {name} could not be read: {java_message(error)}") from error
    queries = []
    for query_id in topics.keySet().toArray():
        text = topics.get(query_id).get("title")
        if text is None:
            raise InputError(f"topic set {name} holds no plain text, but perhaps vectors or pictures")
        queries.append(Query(str(query_id), one_line(text)))
    return unique_queries(((name, query) for query in sorted(queries, key=_id_order)), name)


def _id_order(query: Query) -> tuple[int, int, str]:
    """Whole numbers by value first, then the rest as text: Pyserini's order."""
    return (0, int(query.query_id), query.query_id) if query.query_id.isdecimal() else (1, 0, query.query_id)


def qrels(spec: str) -> Qrels:
    """Qrels: a file, `ir_datasets:<id>`, or `pydocs:SPLIT` (`pydocs` alone is its test split)."""
    if is_pydocs(spec):
        return docstrings.qrels(_split(spec))
    if not spec.startswith(IR_DATASETS):
        return formats.read_qrels(spec)
    found: Qrels = {}
    for qrel in _ir_records(spec, "qrels"):
        found.setdefault(qrel.query_id, {})[qrel.doc_id] = qrel.relevance
    return found


def _ir_records(spec: str, what: str) -> Iterator[Any]:
    """The `docs`, `queries` or `qrels` of an ir_datasets id. It downloads on first use, and may raise any exception."""
    import ir_datasets

    dataset_id = spec.removeprefix(IR_DATASETS)
    try:
        dataset = ir_datasets.load(dataset_id)
    except KeyError:
        raise InputError(f"ir_datasets has no dataset {dataset_id!r}; `ir_datasets list` shows what exists") from None
    if not getattr(dataset, f"has_{what}")():
        raise InputError(f"{spec} has no {what}")

    def read() -> Iterator[Any]:
        try:
            yield from getattr(dataset, f"{what}_iter")()
        except Exception as error:
            raise InputError(f"{spec} could not be read: {error}") from error

    return read()


def _ir_doc(doc: Any) -> Doc:
    title = one_line(getattr(doc, "title", "") or "")
    for name in ("text", "abstract", "body"):
        if hasattr(doc, name):
            return Doc(doc.doc_id, title, (getattr(doc, name) or "").strip())
    return Doc(doc.doc_id, "", doc.default_text().strip())


def is_named(spec: str) -> bool:
    """Whether data are asked for by a name of their own, not by a path."""
    return is_pydocs(spec) or spec.startswith(IR_DATASETS)


def is_pydocs(spec: str) -> bool:
    """Whether `pydocs` or one of its splits is meant, and not a file whose name begins so."""
    return spec.split(":")[0] == "pydocs"


def files(spec: str) -> list[Path]:
    """The files of a collection; none if it is named, or not there."""
    return formats.collection_files(spec) if spec and not is_named(spec) and Path(spec).exists() else []


def stamp(spec: str) -> str:
    """Changes when a collection changes: made of names, sizes and times of its files, or versions for `pydocs`; else ""."""
    if is_pydocs(spec):
        return docstrings.stamp()
    found = files(spec)
    return records.stamp(found) if found else ""


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
