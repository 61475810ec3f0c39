"""Open collections, topics and qrels by name: a path, `ir_datasets:<id>` or `pydocs`.

Topics may also be a Pyserini topic set (`dl19-passage`). It is read once, through Java, and cached as TSV in
`PYSERINI_KD_HOME/indexes/topics/`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyserini_kd.data import docstrings, formats, passages, pyserini_versions
from pyserini_kd.data.ids import unique_docs
from pyserini_kd.data.java import java_message, start_jvm
from pyserini_kd.data.lines import one_line, unique_queries
from pyserini_kd.data.types import Doc, Qrels, Query
from pyserini_kd.storage import records
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import home

IR_DATASETS = "ir_datasets:"
FILE_ENDINGS = (".gz", ".tsv", ".csv", ".jsonl", ".json", ".txt", ".xml", ".parquet")


def collection(spec: str, segment: str | None = None, fields: str | None = None) -> Iterator[Doc]:
    """Stream a collection; `segment` (`WORDS:STRIDE`) cuts it into passages, `fields` names columns of files.

    InputError for a duplicate id.
    """
    if fields and is_named(spec):
        raise InputError(f"names columns of files; {spec} is no file", "fields")

    def read() -> Iterator[Doc]:
        if spec == "pydocs":
            return docstrings.docs()
        if spec.startswith(IR_DATASETS):
            return map(_ir_doc, _ir_records(spec, "docs"))
        return formats.read_collection(spec, fields)

    def places(doc_id: str) -> Iterator[str]:
        numbered = ((f"{spec}, document {number}", doc) for number, doc in enumerate(read(), start=1))
        return (
            where for where, doc in (numbered if is_named(spec) else formats.located_docs(spec, fields)) if doc.doc_id == doc_id
        )

    found = unique_docs(read(), places)
    return passages.segment(found, segment) if segment else found


def topics(spec: str) -> list[Query]:
    """Topics: a file, `ir_datasets:<id>`, `pydocs:SPLIT` (`pydocs` means `pydocs:test`), or a Pyserini topic set."""
    if is_pydocs(spec):
        return docstrings.topics(_split(spec))
    if spec.startswith(IR_DATASETS):
        queries = (Query(query.query_id, one_line(query.default_text())) for query in _ir_records(spec, "queries"))
        return unique_queries(((spec, query) for query in queries), spec)
    cached = home() / "indexes" / "topics" / f"{spec}.tsv"
    for path in (Path(spec), cached):
        if path.exists():
            return formats.read_topics(path)
    if "/" not in spec and not spec.endswith(FILE_ENDINGS):
        found = read_topic_set(spec)
        if found is not None:
            formats.write_topics(found, cached, overwrite=True)
            return found
    raise InputError(f"topics not found: {spec} is no file, `ir_datasets:<id>`, `pydocs:SPLIT` or name of a Pyserini topic set")


def read_topic_set(name: str) -> list[Query] | None:
    """A Pyserini topic set by name (`dl19-passage`, ...), in Pyserini's order; None if there is no such set."""
    start_jvm()
    import jnius

    with pyserini_versions.needing_list(f"topics not found: {name} is no file", "topic sets"):
        entry = pyserini_versions.topic_set(name)
    if entry is None:
        return None
    try:  # string ids: 007 stays 007
        topics = jnius.autoclass("io.anserini.search.topicreader.TopicReader").getTopicsWithStringIds(entry)
    except jnius.JavaException as error:
        message = java_message(error)
        raise InputError(f"topic set {name} could not be read; the first time it needs the network: {message}") from error
    queries = []
    for query_id in topics.keySet().toArray():
        text = topics.get(query_id).get("title") or topics.get(query_id).get("query")  # TREC-COVID
        if text is None:
            raise InputError(f"topic set {name} has no plain text (perhaps vectors or images)")
        queries.append(Query(str(query_id), one_line(text)))
    return unique_queries(((name, query) for query in sorted(queries, key=_id_order)), name)


def _id_order(query: Query) -> tuple[int, int, str]:
    """Pyserini's order: whole numbers by value, then other ids as text."""
    return (0, int(query.query_id), query.query_id) if query.query_id.isdecimal() else (1, 0, query.query_id)


def qrels(spec: str) -> Qrels:
    """Qrels: a file, `ir_datasets:<id>`, or `pydocs:SPLIT` (`pydocs` means `pydocs:test`)."""
    if is_pydocs(spec):
        return docstrings.qrels(_split(spec))
    if not spec.startswith(IR_DATASETS):
        return formats.read_qrels(spec)
    found: Qrels = {}
    for qrel in _ir_records(spec, "qrels"):
        found.setdefault(qrel.query_id, {})[qrel.doc_id] = qrel.relevance
    return found


def _ir_records(spec: str, what: str) -> Iterator[Any]:
    """The `docs`, `queries` or `qrels` of an ir_datasets id. First use downloads them, which may raise any exception."""
    import ir_datasets

    dataset_id = spec.removeprefix(IR_DATASETS)
    try:
        dataset = ir_datasets.load(dataset_id)
    except KeyError:
        raise InputError(f"ir_datasets has no dataset {dataset_id!r}; `ir_datasets list` lists them") from None
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
    """Whether `spec` is `ir_datasets:<id>` or pydocs, not a path."""
    return is_pydocs(spec) or spec.startswith(IR_DATASETS)


def is_pydocs(spec: str) -> bool:
    """Whether `spec` is `pydocs` or `pydocs:SPLIT`."""
    return spec.split(":")[0] == "pydocs"


def files(spec: str) -> list[Path]:
    """The files of a collection; none for a name or a missing path."""
    return formats.collection_files(spec) if spec and not is_named(spec) and Path(spec).exists() else []


def stamp(spec: str) -> str:
    """A hash of names, sizes and times of the files, or of versions for `pydocs`; "" for anything else."""
    if is_pydocs(spec):
        return docstrings.stamp()
    found = files(spec)
    return records.stamp(found) if found else ""


def short_name(spec: str) -> str:
    """A name for output files: the last part of a path or id, without endings (`queries.dl19.tsv` -> `queries.dl19`)."""
    name = spec.removeprefix(IR_DATASETS).rstrip("/").replace(":", "-")
    if Path(spec).exists():
        name = Path(spec).resolve().name
        for ending in FILE_ENDINGS:
            name = name.removesuffix(ending)
    return name.replace("/", "-")


def _split(spec: str) -> str:
    return spec.partition(":")[2] or "test"
