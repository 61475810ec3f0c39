"""Texts of documents by id, from an index folder or a collection."""

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pyserini_kd.data import sources
from pyserini_kd.data.doc_ids import DocIds
from pyserini_kd.data.types import Doc
from pyserini_kd.retrieval import lucene
from pyserini_kd.retrieval.bm25_search import BM25Index
from pyserini_kd.storage.errors import InputError, NotFound
from pyserini_kd.storage.files import read_at, require_file
from pyserini_kd.storage.records import read_json

Fetch = Callable[[Sequence[str]], Iterator[Doc]]
"""A function from ids to documents, in the order of the ids."""


def shards(*paths: str | Path) -> list[Path]:
    """Resolve paths to index folders: folders themselves, and the folders in a manifest of shards.

    A manifest of shards is a JSON file `{"shards": ["a", "b", ...]}`, or a folder with it as `manifest.json`. Its paths are
    absolute or relative to the manifest. InputError for another file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_file() and path.suffix != ".json":
            raise InputError(f"{path} is a file; name the index folder, or a manifest of shards (.json)")
        manifest = path / "manifest.json" if path.is_dir() else path
        listed = read_json(manifest, "index").get("shards") if manifest.is_file() else None
        if path.is_file() or listed is not None:
            if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
                raise InputError(f'{manifest}: expected {{"shards": ["folder", ...]}}')
            found += [manifest.parent / name for name in listed]
        else:
            found.append(path)
    return found


def has_docs(*paths: Path) -> bool:
    """Whether all index folders are ours and store texts."""
    return all((folder / name).is_file() for folder in shards(*paths) for name in ("docid", "docs.jsonl", "docs.offsets"))


def stored_docs(*paths: Path, known: DocIds | None = None) -> Fetch:
    """A function from ids to stored documents of our index folders, without loading vectors.

    `known` are the folders' ids if an open index has them, so that memory holds them once.
    """
    folders = shards(*paths)
    texts = [_Lines(folder) for folder in folders]
    starts = np.cumsum([0, *map(len, texts)]).tolist()
    ids = DocIds.read(*folders) if known is None else known
    ids.get_ready()  # now, not at the first request
    if starts[-1] != len(ids):
        raise InputError(f"{' and '.join(map(str, folders))}: docid and docs.offsets do not belong to one collection")

    def fetch(doc_ids: Sequence[str]) -> Iterator[Doc]:
        for doc_id in doc_ids:
            row = ids.row(doc_id)
            if row < 0:
                raise NotFound(f"document {doc_id!r} is not in the index {' or '.join(map(str, folders))}")
            part = bisect_right(starts, row) - 1
            doc = texts[part].doc(row - starts[part])
            if doc.doc_id != doc_id:
                raise InputError(f"{folders[part]} was replaced after it was opened ({doc.doc_id} for {doc_id}); start again")
            yield doc

    return fetch


class _Lines:
    """Stored documents of a folder by row; the file stays open, so a new index in its place changes nothing."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "docs.jsonl"
        self._file = open(self._path, "rb", buffering=0)  # noqa: SIM115 - open for the object's lifetime
        starts = np.memmap(require_file(folder / "docs.offsets", "offsets"), dtype="<u8", mode="r")
        self._starts, self._end = starts, os.fstat(self._file.fileno()).st_size

    def __len__(self) -> int:
        return len(self._starts)

    def doc(self, row: int) -> Doc:
        start = int(self._starts[row])
        end = int(self._starts[row + 1]) if row + 1 < len(self) else self._end
        try:
            return Doc(*json.loads(read_at(self._file.fileno(), end - start, start)))
        except (ValueError, OSError):
            raise InputError(f"{self._path} is damaged: no document at byte {start}") from None


def fetch_from(source: str | Iterable[Doc], *more: str, fields: str | None = None) -> Fetch:
    """A function from ids to documents of an index folder (Lucene or ours), a prebuilt index, or a collection.

    A collection is read once for each call; `fields` names its columns. `more` are further index folders, all of ours.
    """
    if isinstance(source, str):
        folders = [Path(source), *map(Path, more)]
        if all(path.is_dir() for path in folders) and has_docs(*folders):
            return stored_docs(*folders)
        for path in folders:
            if (path / "docid").exists() and not has_docs(path):
                raise InputError(f"index {path} stores no text; name the collection instead")
        if more:
            raise InputError(f"several indexes must be folders from `pyserini-kd index`, found {source} and {', '.join(more)}")
        path = folders[0]
        if lucene.is_lucene_index(path) or not _is_collection(source):
            return BM25Index.open(source).fetch_docs

    def scan(doc_ids: Sequence[str]) -> Iterator[Doc]:
        wanted, docs = set(doc_ids), sources.collection(source, fields=fields) if isinstance(source, str) else source
        found = {doc.doc_id: doc for doc in docs if doc.doc_id in wanted}
        missing = [doc_id for doc_id in doc_ids if doc_id not in found]
        if missing:
            raise InputError(f"{len(missing)} documents are not in the collection {source}, e.g. {missing[0]}")
        return (found[doc_id] for doc_id in doc_ids)

    return scan


def _is_collection(source: str) -> bool:
    return Path(source).exists() or source == "pydocs" or source.startswith(sources.IR_DATASETS)
