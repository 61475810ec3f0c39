"""Read text files line by line; errors name file and line. Also the rules for ids, texts and JSON records."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyserini_kd.data.types import Query
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file
from pyserini_kd.storage.records import Record

ID_COLUMNS = {"id", "_id", "doc", "docid", "doc_id", "docno", "document_id", "pid", "passage_id", "ticket", "ticket_id"}
ID_COLUMNS |= {"qid", "query_id", "query-id", "topic_id"}
TEXT_COLUMNS = {"text", "contents", "content", "body", "passage", "title", "subject", "abstract", "url", "description"}
TEXT_COLUMNS |= {"query", "question"}
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def numbered_lines(path: Path, what: str, blank: bool = False) -> Iterator[tuple[str, str]]:
    """Stream (`file:line`, text); `blank` keeps blank lines. Only LF ends a line, because texts may contain U+2028."""
    require_file(path, what)
    where = f"{path}:1"
    try:
        with io.BufferedReader(gzip.open(path)) if path.suffix == ".gz" else open(path, "rb") as lines:
            for number, raw in enumerate(lines, start=1):
                where = f"{path}:{number}"
                line = raw.decode().rstrip("\r\n")
                if number == 1:
                    line = line.removeprefix("\ufeff")  # a byte order mark
                if blank or line.strip():
                    yield where, line
    except UnicodeDecodeError:
        raise InputError(f"{where}: not valid UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError(f"{path}: not a complete gzip file") from None


def refuse_header(fields: list[str], where: str) -> None:
    """InputError if the first line of a TSV file is a header, as pandas writes it, because it would become a record."""
    names = [field.strip().lower() for field in fields]
    if where.endswith(":1") and names[0] in ID_COLUMNS and len(names) > 1 and names[1] in TEXT_COLUMNS:
        raise InputError(f"{where}: looks like a header ({', '.join(names)}); TSV files must have no header, remove it")


def json_line(line: str, where: str) -> Record:
    """The JSON object of a line; InputError if the line is anything else."""
    try:
        record = json.loads(line)
        if HALF_PAIR.search(line):
            json.dumps(record, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg}); expected one JSON object per line") from None
    except UnicodeEncodeError:
        raise InputError(f"{where}: text contains half of a surrogate pair, which is not a character") from None
    except (ValueError, RecursionError):
        raise InputError(f"{where}: JSON with too many digits in a number or too many nested brackets") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected one JSON object per line, found {type(record).__name__}")
    return record


def json_id(record: Record, names: tuple[str, ...], where: str) -> str:
    """The id under the first of `names` that holds a string or an integer; InputError without one."""
    for name in names:
        if isinstance(record.get(name), (str, int)) and not isinstance(record[name], bool):
            return one_word(str(record[name]), where)
    raise InputError(f"{where}: no id; expected one of {', '.join(names)} as a string, found {sorted(record)}")


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
