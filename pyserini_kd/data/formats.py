"""Read and write collections, topics and qrels. All readers accept `.gz`."""

import html
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyserini_kd.data.lines import (
    json_id,
    json_line,
    json_text,
    numbered_lines,
    one_line,
    one_word,
    refuse_header,
    unique_queries,
)
from pyserini_kd.data.types import Doc, Qrels, Query
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, require_file

NOT_DOCS = (".", "queries", "topics", "qrels")  # name prefixes of files that hold no documents
KINDS = {".jsonl": "jsonl", ".json": "jsonl", ".tsv": "tsv"}


def read_collection(path: str | Path) -> Iterator[Doc]:
    """Stream the documents of a collection.

    Accepts a BEIR folder (`corpus.jsonl`), a folder of Pyserini JSONL files, or one file: JSONL (`id` and `contents`,
    or `_id`, `title`, `text`) or MS MARCO TSV (`id text` or `id url title body`). In a folder, hidden files and files named
    `queries*`, `topics*` or `qrels*` are ignored.
    """
    return (doc for _, doc in located_docs(path))


def located_docs(path: str | Path) -> Iterator[tuple[str, Doc]]:
    """Stream (`file:line`, document) pairs; see `read_collection`."""
    for file in collection_files(path):
        kind = _kind(file)
        if not kind:
            raise InputError(
                f"collection file {file}: expected .jsonl, .json or .tsv (.gz allowed); convert .csv to .jsonl first"
            )
        for where, line in numbered_lines(file, "collection"):
            yield where, _json_doc(line, where) if kind == "jsonl" else _tsv_doc(line, where)


def collection_files(path: str | Path) -> list[Path]:
    """The files that `read_collection` reads, in order. Hidden folders and our own indexes are ignored."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"collection not found: {path} (expected a path, `ir_datasets:<id>` or `pydocs`)")
    if not path.is_dir():
        return [path]
    corpus = [file for file in (path / "corpus.jsonl", path / "corpus.jsonl.gz") if file.exists()]
    files = corpus[:1] or sorted(file for file in _below(path) if _kind(file) and not _is_ignored(file, path))
    if not files:
        raise InputError(f"collection folder {path} holds no .jsonl, .json or .tsv file (.gz allowed)")
    return files


def _below(path: Path) -> Iterator[Path]:
    """All files below a folder; links are followed, each folder is visited once."""
    seen = set()
    for folder, below, names in os.walk(path, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in names)


def _is_ignored(file: Path, top: Path) -> bool:
    with_vectors, in_lucene = file.with_name("docid").is_file(), any(file.parent.glob("segments_*"))
    in_index = file.with_name("manifest.json").is_file() and (with_vectors or in_lucene)
    hidden = any(part.startswith(".") for part in file.relative_to(top).parts)
    return in_index or hidden or file.name.startswith(NOT_DOCS)


def _kind(path: Path) -> str:
    return KINDS.get(Path(path.name.removesuffix(".gz")).suffix, "")


def _json_doc(line: str, where: str) -> Doc:
    record = json_line(line, where)
    doc_id = json_id(record, ("id", "_id", "docid", "doc_id"), where)
    title = one_line(json_text(record, "title", where))
    if "contents" in record and not title:
        return Doc(doc_id, *split_contents(json_text(record, "contents", where)))
    for name in ("contents", "text", "body", "segment", "passage"):
        if name in record:
            return Doc(doc_id, title, json_text(record, name, where).strip())
    raise InputError(f"{where}: a document needs `contents` or `text`, found {sorted(record)}")


def split_contents(contents: str) -> tuple[str, str]:
    """(title, text) of Pyserini's `contents`. The first of several lines is the title."""
    title, newline, text = contents.partition("\n")
    return (one_line(title), text.strip()) if newline else ("", contents.strip())


def _tsv_doc(line: str, where: str) -> Doc:
    fields = line.split("\t")
    refuse_header(fields, where)
    if len(fields) == 2:
        return Doc(one_word(fields[0], where), "", fields[1].strip())
    if len(fields) == 4:  # MS MARCO documents: id, url, title, body
        return Doc(one_word(fields[0], where), one_line(fields[2]), fields[3].strip())
    raise InputError(f"{where}: expected `id<TAB>text` or `id<TAB>url<TAB>title<TAB>body`, found {len(fields)} columns")


def write_collection(docs: Iterable[Doc], path: str | Path, *, overwrite: bool = False) -> int:
    """Write Pyserini JSONL (`id`; `contents` = title, newline, text). Returns the number of documents."""
    count = 0
    with atomic_file(path, overwrite=overwrite) as out:
        for doc in docs:
            title = one_line(doc.title)
            contents = f"{title}\n{doc.text}" if title or "\n" in doc.text else doc.text
            out.write(json.dumps({"id": doc.doc_id, "contents": contents}, ensure_ascii=False) + "\n")
            count += 1
    return count


TREC_TOPIC = re.compile(r"<(top|doc)>(.*?)(?=</\1>|<\1>|\Z)", re.IGNORECASE | re.DOTALL)
TREC_NUMBER = re.compile(r"<num>\s*(?:Number:)?\s*(\S+?)\s*(?=<|\n|$)|<docno>\s*(\S+)\s*</docno>", re.IGNORECASE)
TREC_FIELDS = "title|desc|narr|num|dom|smry|con|fac|def|head|top|doc|docno|question|query|concept|subtopic|aspect"
TREC_TITLE = re.compile(rf"<title>\s*(?:Topic:)?(.*?)(?=</?(?:{TREC_FIELDS})\b|\n\s*</?[a-z]|\Z)", re.IGNORECASE | re.DOTALL)


def read_topics(path: str | Path) -> list[Query]:
    """Read topics: TSV (`id<TAB>text`), BEIR `queries.jsonl`, or TREC topics (`<top>` or `<DOC>` blocks).

    Blank queries are kept; they retrieve nothing. A duplicate id is an InputError.
    """
    path = require_file(path, "topics file")
    lines = numbered_lines(path, "topics file")
    _, first = next(numbered_lines(path, "topics file"), ("", ""))
    if first.lstrip().startswith("{"):
        return unique_queries(((where, _json_topic(line, where)) for where, line in lines), str(path))
    if re.match(r"\s*<(top|doc)\b", first, re.IGNORECASE):
        return unique_queries(_trec_topics(path), str(path))
    if "\t" in first:
        return unique_queries(((where, _tsv_topic(line, where)) for where, line in lines), str(path))
    raise InputError(
        f"{path}:1: unknown topics format; expected TSV (id<TAB>text), JSON lines (_id, text) or TREC <top> blocks"
    )


def _tsv_topic(line: str, where: str) -> Query:
    query_id, tab, text = line.partition("\t")
    if not tab:
        raise InputError(f"{where}: expected `id<TAB>text`, found no tab")
    refuse_header(line.split("\t"), where)
    return Query(one_word(query_id, where), one_line(text))


def _json_topic(line: str, where: str) -> Query:
    record = json_line(line, where)
    query_id = json_id(record, ("_id", "id", "query_id", "qid"), where)
    for name in ("text", "query", "title", "contents", "question"):
        if name in record:
            return Query(query_id, one_line(json_text(record, name, where)))
    raise InputError(f"{where}: a topic needs `text`, found {sorted(record)}")


def _trec_topics(path: Path) -> Iterator[tuple[str, Query]]:
    """TREC ad hoc topics (`<num>`, `<title>`) and CACM's (`<DOCNO>`, then bare text)."""
    content = "\n".join(line for _, line in numbered_lines(path, "topics file", blank=True))
    for block in TREC_TOPIC.finditer(content):
        where = f"{path}:{content.count(chr(10), 0, block.start()) + 1}"
        body = block.group(2)
        number = TREC_NUMBER.search(body)
        if number is None:
            raise InputError(f"{where}: topic without <num> or <DOCNO>")
        title = TREC_TITLE.search(body)
        text = title.group(1) if title else re.sub(r"</?[a-z][^>]*>", " ", body[number.end() :], flags=re.IGNORECASE)
        yield where, Query(one_word(number.group(1) or number.group(2), where), one_line(html.unescape(text)))


def write_topics(queries: Iterable[Query], path: str | Path, *, overwrite: bool = False) -> None:
    """Write topics as TSV: `id<TAB>text`."""
    with atomic_file(path, overwrite=overwrite) as out:
        out.writelines(f"{query.query_id}\t{one_line(query.text)}\n" for query in queries)


def read_qrels(path: str | Path) -> Qrels:
    """Read TREC qrels (`qid 0 docid rel`) or BEIR's TSV with a header (`query-id corpus-id score`)."""
    qrels: Qrels = {}
    for where, line in numbered_lines(Path(path), "qrels file"):
        fields = line.split()
        if where.endswith(":1") and fields[0] == "query-id" and fields[-1] == "score":
            continue
        if len(fields) not in (3, 4):
            raise InputError(f"{where}: expected `qid 0 docid relevance`, found {len(fields)} columns")
        query_id, doc_id, relevance = fields[0], fields[-2], fields[-1]
        try:
            grade = int(relevance if relevance.isascii() and "_" not in relevance else "")  # int() accepts 1_0
        except ValueError:
            raise InputError(f"{where}: relevance must be a whole number, found {relevance!r}") from None
        if not -(1 << 31) <= grade < 1 << 31:
            raise InputError(f"{where}: relevance must fit into 32 bits, found {relevance}")
        if qrels.setdefault(query_id, {}).setdefault(doc_id, grade) != grade:
            raise InputError(f"{where}: document {doc_id} has two different judgements for query {query_id}")
    if not qrels:
        raise InputError(f"{path}: no judgements found")
    return qrels


def write_qrels(qrels: Qrels, path: str | Path, *, overwrite: bool = False) -> None:
    """Write TREC qrels (`qid 0 docid rel`)."""
    with atomic_file(path, overwrite=overwrite) as out:
        for query_id, judged in qrels.items():
            out.writelines(f"{query_id} 0 {doc_id} {grade}\n" for doc_id, grade in judged.items())
