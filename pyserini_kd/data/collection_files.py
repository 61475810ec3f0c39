"""Collections in files: Pyserini JSONL, BEIR folders and MS MARCO TSV."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyserini_kd.data.lines import json_id, json_line, json_text, numbered_lines, one_line, one_word, refuse_header
from pyserini_kd.data.types import Doc
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file

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
    title = json_text(record, "title", where)
    if "contents" in record:
        contents = json_text(record, "contents", where)
        return Doc(doc_id, one_line(title), contents.strip()) if title.strip() else Doc(doc_id, *split_contents(contents))
    for name in ("text", "body", "segment", "passage"):
        if name in record:
            return Doc(doc_id, one_line(title), json_text(record, name, where).strip())
    raise InputError(f"{where}: a document needs `contents` or `text`, found {sorted(record)}")


def split_contents(contents: str) -> tuple[str, str]:
    """(title, text) of Pyserini's `contents`, whose first line is the title where there are several lines."""
    title, newline, text = contents.partition("\n")
    return (one_line(title), text.strip()) if newline else ("", contents.strip())


def _tsv_doc(line: str, where: str) -> Doc:
    fields = line.split("\t")
    if where.endswith(":1"):
        refuse_header(fields, where)
    if len(fields) == 2:
        return Doc(one_word(fields[0], where), "", fields[1].strip())
    if len(fields) == 4:  # MS MARCO documents: id, url, title, body
        return Doc(one_word(fields[0], where), one_line(fields[2]), fields[3].strip())
    raise InputError(f"{where}: expected `id<TAB>text` or `id<TAB>url<TAB>title<TAB>body`, found {len(fields)} columns")


def write_collection(docs: Iterable[Doc], path: str | Path, *, overwrite: bool = False) -> int:
    """Write Pyserini JSONL (`id`, `contents` = title, newline, text); returns the number of documents."""
    count = 0
    with atomic_file(path, overwrite=overwrite) as out:
        for doc in docs:
            title = one_line(doc.title)
            contents = f"{title}\n{doc.text}" if title or "\n" in doc.text else doc.text
            out.write(json.dumps({"id": doc.doc_id, "contents": contents}, ensure_ascii=False) + "\n")
            count += 1
    return count
