"""Queries, documents, relevance judgements, and the files they come in.

Readers stream; ids are always strings (`007` stays `007`, `NA` stays `NA`); a malformed line is an InputError that
names file and line.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pyserini_kd.files import InputError, atomic_file, require_file

Qrels = dict[str, dict[str, int]]
"""query_id -> {doc_id: relevance}."""


class Query(NamedTuple):
    """A topic: its id and its text."""

    query_id: str
    text: str


class Doc(NamedTuple):
    """A document (or passage): its id, its title (may be empty) and its text."""

    doc_id: str
    title: str
    text: str

    @property
    def contents(self) -> str:
        """Title, space, text: what BM25 indexes and what encoders see."""
        return f"{self.title} {self.text}" if self.title else self.text


# --------------------------------------------------------------------------------------------------- collections


NOT_DOCS = (".", "queries", "topics", "qrels")  # how the names of a folder's other files start


def read_collection(path: str | Path) -> Iterator[Doc]:
    """Stream the documents of a collection.

    Accepts a BEIR folder (`corpus.jsonl`), a folder of Pyserini JSONL files, or one file: JSONL (`id` and `contents`,
    or `_id`, `title`, `text`) or MS MARCO TSV (`id text` or `id url title body`); each may end in `.gz`. In a folder, hidden
    files and files named `queries*`, `topics*` or `qrels*` are no documents.
    """
    return (doc for _, doc in located_docs(path))


def located_docs(path: str | Path) -> Iterator[tuple[str, Doc]]:
    """(`file:line`, document) of each that `read_collection` gives."""
    for file in collection_files(path):
        yield from _read_doc_file(file)


def collection_files(path: str | Path) -> list[Path]:
    """The files that `read_collection` reads, in their order; hidden folders and our own indexes hold no documents."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"collection not found: {path} (a path, `ir_datasets:<id>` or `pydocs` was expected)")
    if not path.is_dir():
        return [path]
    corpus = [p for p in (path / "corpus.jsonl", path / "corpus.jsonl.gz") if p.exists()]
    files = corpus[:1] or sorted(p for p in _below(path) if _kind(p) and not _is_foreign(p.relative_to(path), p))
    if not files:
        raise InputError(f"collection folder {path} holds no .jsonl, .json or .tsv file (.gz allowed)")
    return files


def _below(path: Path) -> Iterator[Path]:
    """The files in a folder and in those below it, links to folders included; each folder once."""
    seen = set()
    for folder, below, names in os.walk(path, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in names)


def _is_foreign(name: Path, path: Path) -> bool:
    with_vectors, in_lucene = path.with_name("docid").is_file(), any(path.parent.glob("segments_*"))
    in_index = path.with_name("manifest.json").is_file() and (with_vectors or in_lucene)
    return path.name.startswith(NOT_DOCS) or any(part.startswith(".") for part in name.parts) or in_index


def _kind(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return {".jsonl": "jsonl", ".json": "jsonl", ".tsv": "tsv"}.get(Path(name).suffix, "")


def _read_doc_file(path: Path) -> Iterator[tuple[str, Doc]]:
    kind = _kind(path)
    if not kind:
        raise InputError(f"collection file {path}: expected .jsonl, .json or .tsv (.gz allowed); for .csv see README.md")
    for where, line in numbered_lines(path, "collection"):
        yield where, _json_doc(line, where) if kind == "jsonl" else _tsv_doc(line, where)


def _json_doc(line: str, where: str) -> Doc:
    record = json_line(line, where)
    doc_id = json_id(record, ("id", "_id", "docid", "doc_id"), where)
    title = _json_text(record, "title", where)
    if "contents" in record:
        contents = _json_text(record, "contents", where)
        return Doc(doc_id, _one_line(title), contents.strip()) if title.strip() else Doc(doc_id, *split_contents(contents))
    for name in ("text", "body", "segment", "passage"):
        if name in record:
            return Doc(doc_id, _one_line(title), _json_text(record, name, where).strip())
    raise InputError(f"{where}: a document needs `contents` or `text`, found {sorted(record)}")


def split_contents(contents: str) -> tuple[str, str]:
    """(title, text) of Pyserini's `contents`, whose first line is the title where there are several lines."""
    title, newline, text = contents.partition("\n")
    return (_one_line(title), text.strip()) if newline else ("", contents.strip())


def _tsv_doc(line: str, where: str) -> Doc:
    fields = line.split("\t")
    if where.endswith(":1"):
        _refuse_header(fields, where)
    if len(fields) == 2:
        return Doc(one_word(fields[0], where), "", fields[1].strip())
    if len(fields) == 4:  # MS MARCO documents: id, url, title, body
        return Doc(one_word(fields[0], where), _one_line(fields[2]), fields[3].strip())
    raise InputError(f"{where}: expected `id<TAB>text` or `id<TAB>url<TAB>title<TAB>body`, found {len(fields)} columns")


def write_collection(docs: Iterable[Doc], path: str | Path, *, overwrite: bool = False) -> int:
    """Write Pyserini JSONL (`id`, `contents` = title, newline, text); returns the number of documents."""
    count = 0
    with atomic_file(path, overwrite=overwrite) as out:
        for doc in docs:
            title = _one_line(doc.title)
            contents = f"{title}\n{doc.text}" if title or "\n" in doc.text else doc.text
            out.write(json.dumps({"id": doc.doc_id, "contents": contents}, ensure_ascii=False) + "\n")
            count += 1
    return count


class HasId(Protocol):
    """Anything with the id of a document."""

    @property
    def doc_id(self) -> str:
        """The id."""


D = TypeVar("D", bound=HasId)


def unique_docs(docs: Iterable[D], places: Callable[[str], Iterable[str]], block: int = 10_000) -> Iterator[D]:
    """Pass documents on; InputError at the first id seen twice.

    Keeps 8 bytes per document (64-bit hashes, in sorted arrays that are merged as they grow), not the ids. `places` reads the
    collection again, as far as is asked, and says where an id stands: so a collision of hashes never refuses a good collection.
    """
    seen: list[npt.NDArray[np.uint64]] = []  # sorted; each at least twice as long as the next
    confirmed: set[str] = set()  # ids whose hash collides with another id's
    pending: list[D] = []

    def flush() -> Iterator[D]:
        hashes = np.array([id_hash(doc.doc_id) for doc in pending], dtype=np.uint64)
        values, codes, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        suspect = counts[codes] > 1
        for old in seen:
            suspect |= old[np.minimum(np.searchsorted(old, hashes), len(old) - 1)] == hashes
        for row in np.flatnonzero(suspect).tolist():
            doc_id = pending[row].doc_id
            if doc_id not in confirmed:
                if len(found := list(islice(places(doc_id), 2))) > 1:
                    raise InputError(f"{found[1]}: duplicate document id {doc_id!r}, first at {found[0]}")
                confirmed.add(doc_id)
        merge_into(seen, values)
        yield from pending
        pending.clear()

    for doc in docs:
        pending.append(doc)
        if len(pending) == block:
            yield from flush()
    if pending:
        yield from flush()


def merge_into(known: list[npt.NDArray[np.uint64]], values: npt.NDArray[np.uint64]) -> None:
    """Add sorted hashes to sorted arrays of them, each at least twice as long as the next."""
    known.append(values)
    while len(known) > 1 and 2 * len(known[-1]) > len(known[-2]):
        known[-2:] = [np.union1d(known[-2], known[-1])]


def id_hash(text: str) -> int:
    """Stable 64-bit hash of a string (unlike `hash()`, the same in every process)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


# -------------------------------------------------------------------------------------------------------- topics


def read_topics(path: str | Path) -> list[Query]:
    """Read topics: TSV (`id<TAB>text`), BEIR `queries.jsonl`, or TREC topics (`<top>` or `<DOC>` blocks); `.gz` allowed.

    Blank queries are kept (they retrieve nothing); a duplicate id is an InputError.
    """
    path = require_file(path, "topics file")
    first = next((line for _, line in numbered_lines(path, "topics file")), "")
    if first.lstrip().startswith("{"):
        queries = _json_topics(path)
    elif re.match(r"\s*<(top|doc)\b", first, re.IGNORECASE):
        queries = _trec_topics(path)
    elif "\t" in first:
        queries = ((where, _tsv_topic(line, where)) for where, line in numbered_lines(path, "topics file"))
    else:
        raise InputError(
            f"{path}:1: topics format unknown; expected TSV (id<TAB>text), JSON lines (_id, text) or TREC <top> blocks"
        )
    return unique_queries(queries, str(path))


def unique_queries(queries: Iterable[tuple[str, Query]], source: str) -> list[Query]:
    """The queries, each of which comes with its place, as a list; InputError if there are none or an id comes twice."""
    found: dict[str, Query] = {}
    for where, query in queries:
        if query.query_id in found:
            raise InputError(f"{where}: duplicate query id {query.query_id!r}")
        found[query.query_id] = query
    if not found:
        raise InputError(f"{source}: no topics found")
    return list(found.values())


def _tsv_topic(line: str, where: str) -> Query:
    query_id, tab, text = line.partition("\t")
    if not tab:
        raise InputError(f"{where}: expected `id<TAB>text`, found no tab")
    if where.endswith(":1"):
        _refuse_header(line.split("\t"), where)
    return Query(one_word(query_id, where), _one_line(text))


def _json_topics(path: Path) -> Iterator[tuple[str, Query]]:
    for where, line in numbered_lines(path, "topics file"):
        record = json_line(line, where)
        query_id = json_id(record, ("_id", "id", "query_id", "qid"), where)
        name = next((n for n in ("text", "query", "title", "contents", "question") if n in record), None)
        if name is None:
            raise InputError(f"{where}: a topic needs `text`, found {sorted(record)}")
        yield where, Query(query_id, _one_line(_json_text(record, name, where)))


_TOPIC = re.compile(r"<(top|doc)>(.*?)(?=</\1>|<\1>|\Z)", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"<num>\s*(?:Number:)?\s*(\S+?)\s*(?=<|\n|$)|<docno>\s*(\S+)\s*</docno>", re.IGNORECASE)
_FIELDS = "title|desc|narr|num|dom|smry|con|fac|def|head|top|doc|docno|question|query|concept|subtopic|aspect"
_TITLE = re.compile(rf"<title>\s*(?:Topic:)?(.*?)(?=</?(?:{_FIELDS})\b|\n\s*</?[a-z]|\Z)", re.IGNORECASE | re.DOTALL)


def _trec_topics(path: Path) -> Iterator[tuple[str, Query]]:
    """TREC ad hoc topics (`<num>`, `<title>`) and CACM's (`<DOCNO>`, then bare text)."""
    content = "\n".join(line for _, line in numbered_lines(path, "topics file", blank=True))
    for block in _TOPIC.finditer(content):
        where = f"{path}:{content.count(chr(10), 0, block.start()) + 1}"
        body = block.group(2)
        number = _NUMBER.search(body)
        if number is None:
            raise InputError(f"{where}: topic without <num> or <DOCNO>")
        title = _TITLE.search(body)
        text = title.group(1) if title else re.sub(r"</?[a-z][^>]*>", " ", body[number.end() :], flags=re.IGNORECASE)
        yield where, Query(one_word(number.group(1) or number.group(2), where), _one_line(html.unescape(text)))


def write_topics(queries: Iterable[Query], path: str | Path, *, overwrite: bool = False) -> None:
    """Write topics as TSV: `id<TAB>text`."""
    with atomic_file(path, overwrite=overwrite) as out:
        out.writelines(f"{query.query_id}\t{_one_line(query.text)}\n" for query in queries)


# --------------------------------------------------------------------------------------------------------- qrels


def read_qrels(path: str | Path) -> Qrels:
    """Read TREC qrels (`qid 0 docid rel`) or BEIR's TSV with a header (`query-id corpus-id score`)."""
    path = require_file(path, "qrels file")
    qrels: Qrels = {}
    for where, line in numbered_lines(path, "qrels file"):
        fields = line.split()
        if where.endswith(":1") and fields[:1] == ["query-id"] and fields[-1] == "score":
            continue
        if len(fields) == 4:
            query_id, _, doc_id, relevance = fields
        elif len(fields) == 3:
            query_id, doc_id, relevance = fields
        else:
            raise InputError(f"{where}: expected `qid 0 docid relevance`, found {len(fields)} columns")
        try:
            grade = int(relevance if relevance.isascii() and "_" not in relevance else "")  # Python reads 1_0 as 10
        except ValueError:
            raise InputError(f"{where}: relevance must be a whole number, found {relevance!r}") from None
        if not -(1 << 31) <= grade < 1 << 31:
            raise InputError(f"{where}: relevance must fit into 32 bits, found {relevance}")
        judged = qrels.setdefault(query_id, {})
        if judged.setdefault(doc_id, grade) != grade:
            raise InputError(f"{where}: document {doc_id} is judged twice, differently, for query {query_id}")
    if not qrels:
        raise InputError(f"{path}: no judgements found")
    return qrels


def write_qrels(qrels: Qrels, path: str | Path, *, overwrite: bool = False) -> None:
    """Write TREC qrels."""
    with atomic_file(path, overwrite=overwrite) as out:
        for query_id, judged in qrels.items():
            out.writelines(f"{query_id} 0 {doc_id} {grade}\n" for doc_id, grade in judged.items())


# --------------------------------------------------------------------------------------------------- ir_datasets


def read_ir_dataset(dataset_id: str, what: str) -> Any:
    """Documents (stream), queries (list) or qrels of an ir_datasets id; `what` is `docs`, `queries` or `qrels`."""
    import ir_datasets

    try:
        dataset = ir_datasets.load(dataset_id)
    except KeyError:
        raise InputError(f"ir_datasets has no dataset {dataset_id!r}; `ir_datasets list` shows what exists") from None
    if not getattr(dataset, f"has_{what}")():
        raise InputError(f"ir_datasets:{dataset_id} has no {what}")
    if what == "docs":
        return (_ir_doc(doc) for doc in _ir_records(dataset.docs_iter, dataset_id))
    if what == "queries":
        records = _ir_records(dataset.queries_iter, dataset_id)
        return unique_queries(((dataset_id, Query(q.query_id, _one_line(q.default_text()))) for q in records), dataset_id)
    qrels: Qrels = {}
    for qrel in _ir_records(dataset.qrels_iter, dataset_id):
        qrels.setdefault(qrel.query_id, {})[qrel.doc_id] = qrel.relevance
    return qrels


def _ir_records(read: Callable[[], Iterator[Any]], dataset_id: str) -> Iterator[Any]:
    """Records of ir_datasets, which downloads on first use and lets every kind of exception through."""
    try:
        yield from read()
    except Exception as error:
        raise InputError(f"ir_datasets:{dataset_id} could not be had: {error}") from error


def _ir_doc(doc: Any) -> Doc:
    title = getattr(doc, "title", "") or ""
    for name in ("text", "abstract", "body"):
        if hasattr(doc, name):
            return Doc(doc.doc_id, _one_line(title), (getattr(doc, name) or "").strip())
    return Doc(doc.doc_id, "", doc.default_text().strip())


# --------------------------------------------------------------------------------------------------------- lines


def _open(path: Path) -> IO[str]:
    # utf-8-sig: a byte order mark is no text. newline: only \n ends a line, texts may hold a lone \r or U+2028.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
    return open(path, encoding="utf-8-sig", newline="\n")


def numbered_lines(path: Path, what: str, blank: bool = False) -> Iterator[tuple[str, str]]:
    """(`file:line`, text) of every line; blank ones only if asked for."""
    require_file(path, what)
    try:
        with _open(path) as handle:
            for number, line in enumerate(handle, start=1):
                if blank or line.strip():
                    yield f"{path}:{number}", line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise InputError(f"{path}:{_foreign_line(path)}: not valid UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError(f"{path}: not a complete gzip file") from None


def _foreign_line(path: Path) -> int:
    """The number of the first line that is no UTF-8: text is decoded in blocks, whose errors do not say."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as raw:
        for number, line in enumerate(raw, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    raise AssertionError(f"{path} is UTF-8")


_ID_COLUMNS = {"id", "_id", "doc", "docid", "doc_id", "docno", "document_id", "pid", "passage_id", "ticket", "ticket_id"}
_ID_COLUMNS |= {"qid", "query_id", "query-id", "topic_id"}
_TEXT_COLUMNS = {"text", "contents", "content", "body", "passage", "title", "subject", "abstract", "url", "description"}
_TEXT_COLUMNS |= {"query", "question"}


def _refuse_header(fields: list[str], where: str) -> None:
    """InputError where the first line of a TSV file names columns, as pandas writes them: it would become a record."""
    names = [field.strip().lower() for field in fields]
    if names[0] in _ID_COLUMNS and len(names) > 1 and names[1] in _TEXT_COLUMNS:
        raise InputError(f"{where}: looks like a header ({', '.join(names)}); TSV files have none here, remove the line")


_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def json_line(line: str, where: str) -> dict[str, Any]:
    """The object of a line; InputError where it is none."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg}); expected one JSON object a line") from None
    except (ValueError, RecursionError):
        raise InputError(f"{where}: JSON with thousands of digits in a number, or of brackets in brackets") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected one JSON object a line, found {type(record).__name__}")
    if _HALF_PAIR.search(line):
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InputError(f"{where}: text with half of a surrogate pair, which is no character") from None
    return record


def json_id(record: dict[str, Any], names: tuple[str, ...], where: str) -> str:
    """The id that a record has under the first of the names; InputError where it has none."""
    for name in names:
        if isinstance(record.get(name), (str, int)) and not isinstance(record[name], bool):
            return one_word(str(record[name]), where)
    raise InputError(f"{where}: no id; expected one of {', '.join(names)} as a string, found {sorted(record)}")


def _json_text(record: dict[str, Any], name: str, where: str) -> str:
    value = record.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise InputError(f"{where}: `{name}` must be a string, found {type(value).__name__}")


def one_word(text: str, where: str) -> str:
    """An id, stripped; InputError where it is empty or has blanks in it."""
    text = text.strip()
    if not text or len(text.split()) != 1:
        raise InputError(f"{where}: an id must be one word without blanks, found {text!r}")
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())
