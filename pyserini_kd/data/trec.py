"""Read TREC's SGML and XML: topics (ad hoc, web, clinical, TREC-COVID, NTCIR ...), and documents by Anserini."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from pyserini_kd.data.java import java_message, start_jvm
from pyserini_kd.data.lines import one_line, one_word
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.storage.errors import InputError

NO_TEXT = re.compile(r"<!--.*?-->|<!DOCTYPE[^\[>]*(?:\[.*?\]\s*)?>", re.DOTALL)
CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
BLOCK = re.compile(r"<(top|doc|topic|query)\b([^>]*)>(.*?)(?=</\1\s*>|<\1\b|\Z)", re.IGNORECASE | re.DOTALL)
NUM = re.compile(r"<num>\s*(?:Number:)?\s*([^\s<]+)\s*(?=<|\n|$)", re.IGNORECASE)
OTHER_ID = re.compile(r"<(?:docno|number|qid|id|topic_?id|query_?id)>\s*([^\s<]+)\s*(?=<)", re.IGNORECASE)
ATTRIBUTE = re.compile(r"\b(?:number|num|qid|id|topic_?id|query_?id)\s*=\s*[\"']?\s*([^\"'>]*?)\s*(?:[\"']|$)", re.IGNORECASE)
TEXTS = ("title", "query", "content", "docid", "text", "description", "desc")
"""Fields that can hold the text of a topic. The first of them in the topic is its query."""
FIELDS = "title|desc|narr|num|dom|smry|con|fac|def|head|top|doc|docno|question|query|concept|subtopic|aspect|url|docid"


def read_topics(content: str, path: Path) -> Iterator[tuple[str, Query]]:
    """Stream (`path:line`, query) of the topics in a file's content. Ids are whole numbers as in Anserini: 051 becomes 51.

    A topic without a field for the query is bare text (CACM), or the text of all its fields (clinical tracks).
    """
    content = NO_TEXT.sub(lambda found: "\n" * found.group().count("\n"), content)
    line, end = 1, 0
    for block in BLOCK.finditer(content):
        line, end = line + content.count("\n", end, block.start()), block.start()
        where, body = f"{path}:{line}", block[3]
        if block[1].lower() == "doc" and "<text>" in body.lower():
            raise InputError(f"{where}: these are TREC documents, not topics; `collection` takes them")
        numbered, other = NUM.search(body), ATTRIBUTE.search(block[2]) or OTHER_ID.search(body)
        found = numbered or other
        if found is None:
            raise InputError(f"{where}: topic without <num>, <DOCNO> or a number")
        digits = re.fullmatch(r"[A-Za-z]*0*(\d+)" if numbered else r"0*(\d+)", found[1])  # MB051 of Microblog is 51
        fields = (re.search(_FIELD.format(name), body, re.IGNORECASE | re.DOTALL) for name in TEXTS)
        text = next((field[1] for field in fields if field), None)
        if text is None:
            bare = body[found.end() :] if found.re is not ATTRIBUTE else body
            text = re.sub(r"</?[a-z][^>]*>", " ", bare, flags=re.IGNORECASE)
        yield where, Query(one_word(digits[1] if digits else found[1], where), one_line(html.unescape(CDATA.sub(r"\1", text))))


_LANGUAGE = "(?:[a-z]{{2}}-)?"  # CLEF: <EN-title>
_END = rf"</{_LANGUAGE}{{0}}\s*>|</?{_LANGUAGE}(?:{FIELDS})\b|\n\s*</?[a-z]|\Z"
_FIELD = rf"<{_LANGUAGE}{{0}}(?:\s[^>]*)?>\s*(?:Topic:|Description:)?(.*?)(?={_END})"


def read_docs(path: Path) -> Iterator[Doc]:
    """Stream the documents of an SGML file (`<DOC>`, `<DOCNO>`) as Anserini's TrecCollection reads them."""
    start_jvm()
    from jnius import autoclass

    place = autoclass("java.nio.file.Paths").get(str(path))
    segment = autoclass("io.anserini.collection.TrecCollection")().createFileSegment(place)
    try:
        found = segment.iterator()
        while found.hasNext():
            doc = found.next()
            yield Doc(one_word(doc.id(), str(path)), "", doc.contents().strip())
        if segment.getErrorStatus():
            raise InputError(f"{path}: damaged TREC SGML after the last whole document")
    except Exception as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {java_message(error)}") from error
    finally:
        segment.close()
