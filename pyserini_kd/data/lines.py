"""Read text files line by line; errors name file and line. Also the rules for ids, texts and JSON records."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pyserini_kd.data.types import Query
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file
from pyserini_kd.storage.records import Record

WORD = re.compile(r"[^ \t\r\n\f\v]+")
FOREIGN = (  # first byte, bytes there, what such a file is
    (0, b"PAR1", "a Parquet file, which `collection` takes"),
    (0, b"PK\x03\x04", "a zip archive or a spreadsheet; unpack it, or save the sheet as CSV for `collection`"),
    (257, b"ustar", "a tar archive; unpack it"),
    (0, b"\x1f\x8b", "compressed with gzip; its name must end in .gz"),
    (0, b"\xff\xfe", "UTF-16 text; save it as UTF-8"),
    (0, b"BZh", "compressed with bzip2; unpack it"),
    (0, b"\xfd7zXZ", "compressed with xz; unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it"),
    (0, b"ARROW1", "an Arrow file; `collection` takes the folder of a Hugging Face dataset"),
    (0, b"\xff\xff\xff\xff", "an Arrow stream; `collection` takes the folder of a Hugging Face dataset"),
    (0, b"\x93NUMPY", "a NumPy array, which `vectors` takes"),
    (0, b"%PDF", "a PDF document; extract its text"),
    (0, b"SQLite format 3", "an SQLite database; export its table as CSV for `collection`"),
    (0, b"\x80\x04", "a pickle, which can run code; save the data as text"),
)
DOC_FIELDS = {
    "id": ("id", "_id", "pid", "docid", "doc_id", "docno", "passage_id", "document_id", "ticket", "ticket_id"),
    "title": ("title", "subject"),
    "text": ("contents", "text", "body", "segment", "passage", "content", "abstract", "description"),
}
"""Names of the columns or JSON fields of documents, in order of preference."""
ID_COLUMNS = {*DOC_FIELDS["id"], "doc", "qid", "query_id", "query-id", "topic_id"}
TEXT_COLUMNS = {*DOC_FIELDS["title"], *DOC_FIELDS["text"], "url", "query", "question"}
"""Names by which a header of documents or topics is recognised."""
TAB = "\t"
JSON_START = re.compile(r'\s*\{\s*("|$)')
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[io.BufferedReader[Any]]:
    """Open a text file, unpacked if its name ends in `.gz`; InputError if it is no text file, damaged or not UTF-8."""
    require_file(path, what)
    try:
        with io.BufferedReader(gzip.open(path)) if path.suffix == ".gz" else open(path, "rb") as raw:
            if found := foreign(raw.peek(512)):
                raise InputError(f"{what} {path} is {found}")
            yield raw
    except UnicodeDecodeError:
        raise InputError(f"{path}: not valid UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError(f"{path}: not a complete gzip file") from None


def numbered_lines(path: Path, what: str, blank: bool = False) -> Iterator[tuple[str, str]]:
    """Stream (`file:line`, text); `blank` keeps blank lines. Only LF ends a line, because texts may contain U+2028."""
    with reading(path, what) as lines:
        for number, raw in enumerate(lines, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode().rstrip("\r\n")
            except UnicodeDecodeError:
                raise InputError(f"{where}: not valid UTF-8") from None
            if number == 1:
                line = line.removeprefix("\ufeff")  # a byte order mark
            if blank or line.strip():
                yield where, line


def foreign(head: bytes) -> str:
    """Describe a file that is not a text file by its first 512 bytes; "" for a text file."""
    return next((what for place, mark, what in FOREIGN if head[place:].startswith(mark)), "")


def text_kind(line: str) -> str:
    """Describe the kind of a text file by its first line, and say which option reads it; "" for an unknown kind."""
    start = line.lstrip()[:200].lower()
    comma, tab = (sep in line and set(_names(line, sep)) & ID_COLUMNS for sep in ",\t")
    kinds = [
        (start.startswith("["), "a JSON array, which `collection` takes; other data have one object per line"),
        (start.startswith("{"), "JSON; `collection`, `topics` and `candidates` take one object per line"),
        (start.startswith("<doc>"), "TREC SGML, which `collection` takes (queries in it: `topics`)"),
        (start.startswith("<"), "SGML or XML; `topics` takes the topics of TREC tracks"),
        (comma, f"CSV with a header ({line.strip()[:80]}); `collection` takes it, other data need tabs, not commas"),
        (re.match(r"[^\s,]+,\S", line), "CSV; separate its columns by tabs"),
        (tab, f"TSV with a header ({', '.join(_names(line, TAB))[:80]}), which `collection` and `qrels` take"),
        (len(line.split(TAB)) == 4 and " " in line.split(TAB)[3], "a top1000 file, which `rerank --run` takes"),
        (line.count(TAB) == 2 and " " in line.split(TAB)[2], "triples of texts, which `mine --triples` takes"),
    ]
    return next((f"; this is {what}" for is_it, what in kinds if is_it), "")


def _names(line: str, separator: str) -> list[str]:
    return [name.strip().strip('"').lower() for name in line.split(separator)]


def refuse_header(fields: list[str], where: str) -> None:
    """InputError if the first line of a TSV file is a header, as pandas writes it, because it would become a record."""
    names = [field.strip().lower() for field in fields]
    if where.endswith(":1") and is_header(names):
        raise InputError(f"{where}: looks like a header ({', '.join(names)}); TSV files must have no header, remove it")


def is_header(names: list[str]) -> bool:
    """Whether lower-case fields of a first line name the columns: one for the id, one for the text."""
    return len(names) > 1 and bool(ID_COLUMNS & set(names)) and bool(TEXT_COLUMNS & set(names))


RUN_COLUMNS = {
    "query": {"query", "qid", "query_id", "query-id", "queryid", "topic", "topic_id", "q_id"},
    "doc": {"doc", "docid", "doc_id", "corpus-id", "corpus_id", "docno", "document", "document_id", "pid", "passage_id", "did"},
    "rank": {"rank", "ranking", "position"},
    "score": {"score", "relevance", "rel", "label", "grade", "judgment", "judgement", "relevancy", "qrel", "sim"},
}


def header_columns(line: str, where: str) -> dict[str, int]:
    """Role (query, doc, rank, score) -> place of its column, if the first line of qrels or of a run names the columns.

    InputError for a header without a column for queries, for documents, or for ranks and scores.
    """
    names = [name.lower() for name in WORD.findall(line)]
    found = {role: place for role, known in RUN_COLUMNS.items() for place, name in enumerate(names) if name in known}
    if len(found) < 2 or len(names) < 3 or not where.endswith(":1") or any(name.lstrip("+-").isdigit() for name in names):
        return {}
    if not {"query", "doc"} <= found.keys() or not {"rank", "score"} & found.keys():
        raise InputError(f"{where}: the header ({', '.join(names)}) must name a query, a document, and a score or relevance")
    return found


def json_cells(path: Path, what: str) -> Iterator[tuple[str, str, float]]:
    """Stream (query id, document id, number) of a JSON file `{query_id: {doc_id: number}}`, as pytrec_eval takes it."""
    with reading(path, what) as raw:
        try:
            table = json.load(raw)
            rows = [(query_id, doc_id, number) for query_id, cells in table.items() for doc_id, number in cells.items()]
        except (ValueError, RecursionError, AttributeError):
            raise InputError(f"{path}: expected JSON of the form {{query_id: {{doc_id: number}}}}") from None
    for query_id, doc_id, number in rows:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise InputError(f"{path}: expected a number for document {doc_id} of query {query_id}, found {number!r}")
        yield one_word(query_id, str(path)), one_word(doc_id, str(path)), number


def json_line(line: str, where: str) -> Record:
    """The JSON object of a line; InputError if the line is anything else."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg}); expected one JSON object per line{text_kind(line)}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{where}: JSON with too many digits in a number or too many nested brackets") from None
    return check_record(record, line, where)


def check_record(record: object, text: str, where: str) -> Record:
    """Return a parsed JSON value. InputError if it is not an object, or if `text` has half of a surrogate pair."""
    try:
        if HALF_PAIR.search(text):
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: text contains half of a surrogate pair, which is not a character") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected one JSON object per line, found {type(record).__name__}")
    return record


def json_id(record: Record, names: Sequence[str], where: str, more: str = "") -> str:
    """The id under the first of `names` that holds a string or an integer; InputError without one."""
    for name in names:
        if isinstance(record.get(name), (str, int)) and not isinstance(record[name], bool):
            return one_word(str(record[name]), where)
    raise InputError(f"{where}: no id; expected one of {', '.join(names)} as a string, found {sorted(record)[:12]}{more}")


def json_text(record: Record, name: str, where: str) -> str:
    """The text under `name`, or ""; InputError if the value is not a string."""
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: `{name}` must be a string, found {type(value).__name__}")
    return value or ""


def one_word(text: str, where: str) -> str:
    """The stripped id; InputError if it is empty or contains blanks."""
    text = text.strip()
    if len(text.split()) != 1:
        raise InputError(f"{where}: an id must be one word without blanks, found {text!r}")
    return text


def one_line(text: str) -> str:
    """The text with white space folded to single blanks."""
    return " ".join(text.split())


def unique_queries(queries: Iterable[tuple[str, Query]], source: str) -> list[Query]:
    """The queries of (`file:line`, query) pairs; InputError for a duplicate id or no queries."""
    found: dict[str, Query] = {}
    for where, query in queries:
        if query.query_id in found:
            raise InputError(f"{where}: duplicate query id {query.query_id!r}")
        found[query.query_id] = query
    if not found:
        raise InputError(f"{source}: no topics found")
    return list(found.values())
