"""The texts that an index folder stores."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from pyserini_kd.data.doc_ids import DocIds
from pyserini_kd.data.types import Doc
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file
from pyserini_kd.storage.records import read_json


def shards(*paths: str | Path) -> list[Path]:
    """The index folders that stand behind some paths: folders themselves, and what a manifest of shards lists.

    Such a manifest is a JSON file `{"shards": ["a", "b", ...]}`, folders beside it or with their whole path, or a folder that
    holds it as `manifest.json`.
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
    """Whether all index folders are ours and hold the texts."""
    return all((folder / name).is_file() for folder in shards(*paths) for name in ("docid", "docs.jsonl", "docs.offsets"))


def stored_docs(*paths: Path, known: DocIds | None = None) -> Callable[[Iterable[str]], Iterator[Doc]]:
    """A function from ids to stored documents of one index folder or several, in the order asked; no vectors are loaded.

    `known` are the ids of the folders where an index of them is open: they then are in memory once.
    """
    folders = shards(*paths)
    texts = [_Lines(folder) for folder in folders]
    starts = np.cumsum([0, *map(len, texts)]).tolist()
    ids = DocIds.read(*folders) if known is None else known
    ids.get_ready()  # while everything is opened, not at the first request
    if starts[-1] != len(ids):
        raise InputError(f"{' and '.join(map(str, folders))}: `docid` and `docs.offsets` are not of one collection")

    def fetch(doc_ids: Iterable[str]) -> Iterator[Doc]:
        for doc_id in doc_ids:
            row = ids.row(doc_id)
            if row < 0:
                raise InputError(f"document {doc_id!r} is not in the index {' or '.join(map(str, folders))}")
            part = bisect_right(starts, row) - 1
            doc = texts[part].doc(row - starts[part])
            if doc.doc_id != doc_id:
                raise InputError(f"{folders[part]} was replaced after it was opened ({doc.doc_id} for {doc_id}); start again")
            yield doc

    return fetch


class _Lines:
    """The stored documents of a folder by row; opened once, so that an index that takes its place changes nothing here."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "docs.jsonl"
        self._file = open(self._path, "rb", buffering=0)  # noqa: SIM115 - open as long as this lives
        starts = np.memmap(require_file(folder / "docs.offsets", "offsets"), dtype="<u8", mode="r")
        self._starts, self._end = starts, os.fstat(self._file.fileno()).st_size

    def __len__(self) -> int:
        return len(self._starts)

    def doc(self, row: int) -> Doc:
        start = int(self._starts[row])
        end = int(self._starts[row + 1]) if row + 1 < len(self) else self._end
        try:
            return Doc(*json.loads(os.pread(self._file.fileno(), end - start, start)))
        except (ValueError, OSError):
            raise InputError(f"{self._path} is damaged: no document at byte {start}") from None
