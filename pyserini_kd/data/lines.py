"""Read text files line by line. An error names the file and the line."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file


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


def refuse_header(fields: list[str], where: str) -> None:
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


def json_text(record: dict[str, Any], name: str, where: str) -> str:
    """The text that a record has under a name, or nothing; InputError where it is no text."""
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


def one_line(text: str) -> str:
    """The text with each stretch of white space as one blank."""
    return " ".join(text.split())
