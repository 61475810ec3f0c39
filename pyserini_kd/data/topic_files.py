"""Topics in files: TSV, BEIR's `queries.jsonl` and TREC topics."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyserini_kd.data.ids import unique_queries
from pyserini_kd.data.lines import json_id, json_line, json_text, numbered_lines, one_line, one_word, refuse_header
from pyserini_kd.data.types import Query
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, require_file


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


def _tsv_topic(line: str, where: str) -> Query:
    query_id, tab, text = line.partition("\t")
    if not tab:
        raise InputError(f"{where}: expected `id<TAB>text`, found no tab")
    if where.endswith(":1"):
        refuse_header(line.split("\t"), where)
    return Query(one_word(query_id, where), one_line(text))


def _json_topics(path: Path) -> Iterator[tuple[str, Query]]:
    for where, line in numbered_lines(path, "topics file"):
        record = json_line(line, where)
        query_id = json_id(record, ("_id", "id", "query_id", "qid"), where)
        name = next((n for n in ("text", "query", "title", "contents", "question") if n in record), None)
        if name is None:
            raise InputError(f"{where}: a topic needs `text`, found {sorted(record)}")
        yield where, Query(query_id, one_line(json_text(record, name, where)))


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
        yield where, Query(one_word(number.group(1) or number.group(2), where), one_line(html.unescape(text)))


def write_topics(queries: Iterable[Query], path: str | Path, *, overwrite: bool = False) -> None:
    """Write topics as TSV: `id<TAB>text`."""
    with atomic_file(path, overwrite=overwrite) as out:
        out.writelines(f"{query.query_id}\t{one_line(query.text)}\n" for query in queries)
