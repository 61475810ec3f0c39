"""Read and write collections, topics and qrels. All readers accept `.gz`."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple, Self

from pyserini_kd.data import tables, trec
from pyserini_kd.data.lines import (
    DOC_FIELDS,
    JSON_START,
    WORD,
    header_columns,
    is_header,
    json_cells,
    json_id,
    json_line,
    json_text,
    numbered_lines,
    one_line,
    one_word,
    reading,
    refuse_header,
    text_kind,
    unique_queries,
)
from pyserini_kd.data.types import Doc, Qrels, Query
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, require_file
from pyserini_kd.storage.records import Record, read_json
from pyserini_kd.storage.settings import named_fields

NOT_DOCS = re.compile(r"^\.|^(queries|topics|qrels)|[._-](queries|qrels)\b|\.topics\.", re.IGNORECASE)
"""Names of files and folders that hold no documents."""
OF_DATASETS = {"state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
KINDS = {".jsonl": "json", ".json": "json", ".ndjson": "json", ".tsv": "tsv", ".csv": "csv", ".parquet": "parquet"}
EXPECTED = ".jsonl, .json, .tsv, .csv (.gz allowed) or .parquet"
SAY_FIELDS = "; or say which: `fields` id=NAME,title=NAME,text=NAME"


def read_collection(path: str | Path, fields: str | None = None) -> Iterator[Doc]:
    """Stream the documents of a collection.

    Accepts a BEIR folder (`corpus.jsonl`), a Hugging Face dataset on disk, a folder of files, or one file: JSON lines or an
    array, MS MARCO TSV (`id text` or `id url title body`), CSV or TSV with a header, Parquet, or TREC SGML. In a folder, hidden
    files and files or folders named `queries*`, `topics*` or `qrels*` are ignored. In a folder without such files, every .txt
    or .md file is a document. Columns are found by name, unless `fields` names
    them: `id=ticket,title=subject,text=body`.
    """
    return (doc for _, doc in located_docs(path, fields))


def located_docs(path: str | Path, fields: str | None = None) -> Iterator[tuple[str, Doc]]:
    """Stream (`file:line`, document) pairs; see `read_collection`."""
    names = Names.of(fields)
    for file in collection_files(path):
        kind = _kind(file)
        if kind == "tsv" and not fields and not _has_header(file):
            yield from ((where, _tsv_doc(line, where)) for where, line in numbered_lines(file, "collection"))
        elif kind in ("", "text", "sgml") and fields:
            raise InputError(f"names columns or JSON fields; {file} has none", "fields")
        elif kind == "text":
            yield str(file), _text_doc(file, Path(path))
        elif kind == "sgml":
            yield from ((str(file), doc) for doc in trec.read_docs(file))
        elif not kind:
            _, first = next(numbered_lines(file, "collection"), ("", ""))
            raise InputError(f"collection file {file}: expected {EXPECTED}{text_kind(first)}")
        else:
            read = {"json": tables.json_records, "arrow": tables.arrow_records, "parquet": names.from_parquet}
            records = read.get(kind, tables.csv_records)(file)
            yield from ((where, _record_doc(record, where, names)) for where, record in records)


def collection_files(collection: str | Path) -> list[Path]:
    """The files that `read_collection` reads, in order. Hidden folders and our own indexes are ignored."""
    path = Path(collection)
    if not path.exists():
        raise InputError(f"collection not found: {path} (expected a path, `ir_datasets:<id>` or `pydocs`)")
    if not path.is_dir():
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = read_json(path / "dataset_dict.json", "dataset").get("splits", [])
        if len(splits) != 1:
            raise InputError(f"{path} is a dataset with the splits {', '.join(splits)}; name the folder of one, {path}/NAME")
        path /= str(splits[0])
    if (path / "state.json").is_file() and (listed := read_json(path / "state.json", "dataset").get("_data_files")):
        return [path / file["filename"] for file in listed]
    corpus = [file for file in (path / "corpus.jsonl", path / "corpus.jsonl.gz") if file.exists()]
    every = sorted(file for file in _below(path) if not _is_ignored(file, path))
    files = corpus[:1] or [file for file in every if _kind(file) not in ("", "text", "sgml")]
    for kind in ("sgml", "text"):
        files = files or [file for file in every if _kind(file) == kind]
    if not files:
        raise InputError(f"collection folder {path} holds no {EXPECTED} file, no TREC SGML, no .txt and no .md")
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
    return in_index or file.name in OF_DATASETS or any(NOT_DOCS.search(part) for part in file.relative_to(top).parts)


def _kind(path: Path) -> str:
    """The kind of a collection file, by its name, else by its first bytes; "" for other files."""
    name = path.name.removesuffix(".gz")
    with open(path, "rb") as file:
        if file.read(4) == b"PAR1":
            return "parquet"
    if kind := KINDS.get(Path(name).suffix.lower()):
        return kind
    with contextlib.suppress(InputError, OSError), reading(path, "collection") as raw:
        if raw.peek(512).lstrip()[:5].upper() == b"<DOC>":
            return "sgml"
    return "arrow" if path.suffix == ".arrow" else "text" if Path(name).suffix.lower() in (".txt", ".md") else ""


def _has_header(file: Path) -> bool:
    _, first = next(numbered_lines(file, "collection"), ("", ""))
    return is_header([name.strip().strip('"').lower() for name in first.split("\t")])


class Names(NamedTuple):
    """Names of the columns or JSON fields of documents, in order of preference; `fixed` are those that the user chose."""

    ids: Sequence[str]
    titles: Sequence[str]
    texts: Sequence[str]
    fixed: Mapping[str, str]

    @classmethod
    def of(cls, fields: str | None) -> Self:
        """The names for the option `fields`: its own, and for other roles the usual ones."""
        fixed = named_fields(fields) if fields else {}
        usual = ([name for name in names if name not in fixed.values()] for names in DOC_FIELDS.values())
        ids, titles, texts = ([fixed[role]] if role in fixed else names for role, names in zip(DOC_FIELDS, usual, strict=True))
        return cls(ids, titles, texts, fixed)

    def from_parquet(self, path: Path) -> Iterator[tuple[str, Record]]:
        """The rows of a Parquet file, with the columns of these names only."""
        return tables.parquet_records(path, {*self.ids, *self.titles, *self.texts}, self.fixed.values())


def _record_doc(record: Record, where: str, names: Names) -> Doc:
    """The document of a JSON object or of a row."""
    for asked in names.fixed.values():
        if asked not in record:
            raise InputError(f"{where}: no {asked!r} among {', '.join(map(str, record))}", "fields")
    name = _first(names.texts, record)
    if not name or not _first(names.ids, record):
        record = {str(name).lower(): value for name, value in record.items()} | record
        name = _first(names.texts, record)
    doc_id = json_id(record, names.ids, where, SAY_FIELDS)
    if not name:
        raise InputError(f"{where}: a document needs `contents` or `text`, found {sorted(record)[:12]}{SAY_FIELDS}")
    titled, text = _first(names.titles, record), json_text(record, name, where)
    title = one_line(json_text(record, titled, where)) if titled else ""  # pandas names a column ""
    if name == "contents" and not title and "text" not in names.fixed:
        return Doc(doc_id, *split_contents(text))
    return Doc(doc_id, title, text.strip())


def _first(names: Sequence[str], record: Record) -> str:
    for name in names:
        if name in record:
            return name
    return ""


def split_contents(contents: str) -> tuple[str, str]:
    """(title, text) of Pyserini's `contents`. The first of several lines is the title."""
    title, newline, text = contents.partition("\n")
    return (one_line(title), text.strip()) if newline else ("", contents.strip())


def _text_doc(file: Path, top: Path) -> Doc:
    """The document of a text file. Its id is the path below the folder (blanks: `%20`), its title a Markdown heading."""
    doc_id = "%20".join(file.relative_to(top).as_posix().split()) if file != top else ""
    if not doc_id:
        _, first = next(numbered_lines(file, "collection"), ("", ""))
        more = text_kind(first) or "; in a folder without these, each .txt or .md file is a document"
        raise InputError(f"collection file {file}: expected {EXPECTED}{more}")
    text = "\n".join(line for _, line in numbered_lines(file, "collection", blank=True)) if file.stat().st_size else ""
    heading = re.match(r"\s*#+\s+(.*)", text) if file.suffix.lower() == ".md" else None
    return Doc(doc_id, one_line(heading[1]) if heading else "", text[heading.end() if heading else 0 :].strip())


def _tsv_doc(line: str, where: str) -> Doc:
    columns = line.split("\t")
    if len(columns) == 2:
        return Doc(one_word(columns[0], where), "", columns[1].strip())
    if len(columns) == 4:  # MS MARCO documents: id, url, title, body
        return Doc(one_word(columns[0], where), one_line(columns[2]), columns[3].strip())
    raise InputError(
        f"{where}: expected `id<TAB>text` or `id<TAB>url<TAB>title<TAB>body`, found {len(columns)} columns"
        + (text_kind(line) or (SAY_FIELDS if where.endswith(":1") else ""))
    )


def write_collection(docs: Iterable[Doc], path: str | Path, *, overwrite: bool = False) -> int:
    """Write Pyserini JSONL (`id`; `contents` = title, newline, text). Returns the number of documents."""
    with atomic_file(path, overwrite=overwrite) as out:
        return write_docs(docs, out)


def write_docs(docs: Iterable[Doc], out: IO[str]) -> int:
    """Write Pyserini JSONL to an open file; see `write_collection`."""
    count = 0
    for doc in docs:
        title = one_line(doc.title)
        contents = f"{title}\n{doc.text}" if title or "\n" in doc.text else doc.text
        out.write(json.dumps({"id": doc.doc_id, "contents": contents}, ensure_ascii=False) + "\n")
        count += 1
    return count


def read_topics(path: str | Path) -> list[Query]:
    """Read topics: TSV (`id<TAB>text`), BEIR `queries.jsonl`, `id:text` (TREC's million queries), or TREC's SGML and XML.

    Blank queries are kept; they retrieve nothing. A duplicate id is an InputError.
    """
    path = require_file(path, "topics file")
    lines = numbered_lines(path, "topics file")
    _, first = next(numbered_lines(path, "topics file"), ("", ""))
    if first.lstrip().startswith("{"):
        return unique_queries(((where, _json_topic(line, where)) for where, line in lines), str(path))
    if re.match(r"\s*<[?!\w]", first):
        content = "\n".join(line for _, line in numbered_lines(path, "topics file", blank=True))
        return unique_queries(trec.read_topics(content, path), str(path))
    if "\t" in first or COLONS.match(first):
        return unique_queries(((where, _tsv_topic(line, where)) for where, line in lines), str(path))
    raise InputError(
        f"{path}:1: unknown topics format; expected TSV (id<TAB>text), JSON lines (_id, text) or TREC <top> blocks"
        f"{text_kind(first)}"
    )


COLONS = re.compile(r"(\d+):(?:\d+:)?([^\t]*)$")
"""A topic of the million query track: id, perhaps a priority, text."""


def _tsv_topic(line: str, where: str) -> Query:
    """The topic of a line. Further columns are ignored, as in Anserini."""
    if found := COLONS.match(line):
        return Query(found[1], one_line(found[2]))
    query_id, tab, text = line.partition("\t")
    if not tab:
        raise InputError(f"{where}: expected `id<TAB>text`, found no tab")
    refuse_header(line.split("\t"), where)
    return Query(one_word(query_id, where), one_line(text.partition("\t")[0]))


def _json_topic(line: str, where: str) -> Query:
    record = json_line(line, where)
    query_id = json_id(record, ("_id", "id", "query_id", "qid"), where)
    for name in ("text", "query", "title", "contents", "question"):
        if name in record:
            return Query(query_id, one_line(json_text(record, name, where)))
    raise InputError(f"{where}: a topic needs `text`, found {sorted(record)}")


def write_topics(queries: Iterable[Query], path: str | Path, *, overwrite: bool = False) -> None:
    """Write topics as TSV: `id<TAB>text`."""
    with atomic_file(path, overwrite=overwrite) as out:
        out.writelines(f"{query.query_id}\t{one_line(query.text)}\n" for query in queries)


def read_qrels(path: str | Path) -> Qrels:
    """Read TREC qrels (`qid 0 docid rel`), three columns, columns with a header (BEIR), or a JSON object of objects.

    A relevance may be written `1.0`.
    """
    qrels: Qrels = {}
    for where, query_id, doc_id, relevance, line in _judgements(Path(path)):
        try:
            grade = float(relevance if relevance.isascii() and "_" not in relevance else "")  # float() accepts 1_0
            if not grade.is_integer():
                raise ValueError
        except ValueError:
            raise InputError(f"{where}: relevance must be a whole number, found {relevance!r}{text_kind(line)}") from None
        if not -(1 << 31) <= grade < 1 << 31:
            raise InputError(f"{where}: relevance must fit into 32 bits, found {relevance}")
        if qrels.setdefault(query_id, {}).setdefault(doc_id, int(grade)) != grade:
            raise InputError(f"{where}: document {doc_id} has two different judgements for query {query_id}")
    if not qrels:
        raise InputError(f"{path}: no judgements found")
    return qrels


def _judgements(path: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Stream (`file:line`, query id, document id, relevance, line)."""
    lines = numbered_lines(path, "qrels file")
    start, first = next(lines, ("", ""))
    if JSON_START.match(first):
        yield from ((str(path), *cell[:2], str(cell[2]), "") for cell in json_cells(path, "qrels file"))
        return
    width, header = len(WORD.findall(first)), header_columns(first, start)
    columns = header or {3: {"query": 0, "doc": 1, "score": 2}, 4: {"query": 0, "doc": 2, "score": 3}}.get(width, {})
    for where, line in lines if header else chain([(start, first)], lines):
        words = WORD.findall(line)
        if len(words) != width or "score" not in columns:
            raise InputError(f"{where}: expected `qid 0 docid relevance`, found {len(words)} columns{text_kind(line)}")
        yield where, words[columns["query"]], words[columns["doc"]], words[columns["score"]], line


def write_qrels(qrels: Qrels, path: str | Path, *, overwrite: bool = False) -> None:
    """Write TREC qrels (`qid 0 docid rel`)."""
    with atomic_file(path, overwrite=overwrite) as out:
        for query_id, judged in qrels.items():
            out.writelines(f"{query_id} 0 {doc_id} {grade}\n" for doc_id, grade in judged.items())
