"""Texts on disk, read where a batch needs them: training data need not fit into memory.

A collection is converted once, as it streams by, into plain arrays in a folder. Afterwards a text is a few hundred bytes read
from a file. Memory holds 8 bytes a document for its hash (24 more while they are sorted). Of the texts that candidates need,
only those that they name are written.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pyserini_kd.data.ids import distinct, hashes_of, id_hash, look_up, merge_into
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.distillation.candidates import Group
from pyserini_kd.storage.arrays import Hashes, Ints, chunks, keep
from pyserini_kd.storage.errors import InputError

BLOCK = 1 << 16  # groups whose ids are hashed at a time
DOCS = 1 << 12  # documents held while a collection streams by


class Texts(Mapping[str, str]):
    """id -> text, in a folder: `texts` (id, newline, text; one after the other), where each ends, 64-bit hashes of the ids."""

    def __init__(self, folder: Path) -> None:
        """Open a folder that `build` wrote."""
        arrays = (np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ("ends", "hashes", "rows"))
        self._ends, self._hashes, self._rows = arrays
        self._file = open(folder / "texts", "rb", buffering=0)  # noqa: SIM115 - open as long as this lives

    @classmethod
    def build(cls, folder: Path, texts: Iterable[tuple[str, str]], label: str) -> Texts:
        """Write (id, text) pairs, whose ids differ, as they stream by."""
        folder.mkdir(parents=True)
        ends, hashes, end = array("q"), array("Q"), 0
        with open(folder / "texts", "wb") as out:
            for text_id, text in tqdm(texts, desc=label, unit=" texts", disable=None):
                end += out.write(f"{text_id}\n{text}".encode())
                ends.append(end)
                hashes.append(id_hash(text_id))
        keep(folder / "ends.npy", np.array(ends))
        del ends
        found = np.array(hashes)
        order = np.argsort(found)
        found = found[order]
        twice = np.flatnonzero(found[1:] == found[:-1])
        if len(twice):  # for all of MS MARCO, once in 500,000 collections
            raise InputError(f"{label}: the {order[twice[0]] + 1}th id has the same 64-bit hash as another id; rename one")
        keep(folder / "hashes.npy", found)
        keep(folder / "rows.npy", order.astype(np.int32))
        return cls(folder)

    def rows(self, ids: Sequence[str]) -> Ints:
        """Row of each id, -1 for an id that has no text."""
        found, places = look_up(self._hashes, hashes_of(ids))
        return np.where(found, self._rows[places], np.int32(-1)) if len(self) else np.full(len(ids), -1, np.int32)

    def lengths(self, rows: Ints) -> Ints:
        """Bytes of the texts in these rows, ids included."""
        starts = np.where(rows > 0, self._ends[rows - 1], 0)
        return (self._ends[rows] - starts).astype(np.int32)

    def record(self, row: int) -> tuple[str, str]:
        """(id, text) of a row."""
        start = int(self._ends[row - 1]) if row else 0
        data = os.pread(self._file.fileno(), int(self._ends[row]) - start, start)
        text_id, _, text = data.decode().partition("\n")
        return text_id, text

    def __getitem__(self, text_id: str) -> str:
        """The text of an id; KeyError for an id that has none."""
        place = int(self._hashes.searchsorted(np.uint64(id_hash(text_id))))
        found, text = self.record(int(self._rows[place])) if place < len(self) else ("", "")
        if found != text_id:
            raise KeyError(text_id)
        return text

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        """The ids, in the order in which they were written."""
        return (self.record(row)[0] for row in range(len(self)))


class PlainTexts(Sequence[str]):
    """Some of the texts of a folder, without their ids."""

    def __init__(self, texts: Texts, rows: Ints) -> None:
        self._texts, self._rows = texts, rows

    def lengths(self) -> Ints:
        """Bytes of every text, its id included."""
        return self._texts.lengths(self._rows)

    def __getitem__(self, row: int) -> str:  # type: ignore[override]
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._texts.record(int(self._rows[row]))[1]

    def __len__(self) -> int:
        return len(self._rows)


def wanted(groups: Iterable[Group]) -> tuple[Hashes, Hashes]:
    """Sorted hashes of the distinct queries and of the distinct documents of groups."""
    queries: list[Hashes] = [np.empty(0, np.uint64)]
    docs: list[Hashes] = [np.empty(0, np.uint64)]
    for some in chunks(groups, BLOCK):
        merge_into(queries, distinct(hashes_of(group.query_id for group in some)))
        merge_into(docs, distinct(hashes_of(doc_id for group in some for doc_id in group.doc_ids)))
    return distinct(np.concatenate(queries)), distinct(np.concatenate(docs))


def chosen(texts: Iterable[tuple[str, str]], hashes: Hashes) -> Iterator[tuple[str, str]]:
    """Of (id, text) pairs that stream by those whose id's hash is among the sorted ones."""
    for some in chunks(texts, DOCS):
        found, _ = look_up(hashes, hashes_of(text_id for text_id, _ in some))
        yield from itertools.compress(some, found.tolist())


def load_texts(
    groups: Sequence[Group], queries: Iterable[Query], docs: Iterable[Doc], folder: Path | None = None
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Texts of the queries and documents of groups, in memory or in new folders of `folder`; InputError if some are missing."""
    query_ids, doc_ids = wanted(groups)
    query_texts = _kept(chosen(((q.query_id, q.text) for q in queries), query_ids), folder, "queries")
    if missing := len(query_ids) - len(query_texts):
        example = next(group.query_id for group in groups if group.query_id not in query_texts)
        raise InputError(f"{missing} queries of the candidates are not among the topics, e.g. {example}")
    doc_texts = _kept(chosen(((doc.doc_id, doc.contents) for doc in docs), doc_ids), folder, "docs")
    if missing := len(doc_ids) - len(doc_texts):
        example = next(doc_id for group in groups for doc_id in group.doc_ids if doc_id not in doc_texts)
        raise InputError(f"{missing} documents of the candidates are not in the collection, e.g. {example}")
    return query_texts, doc_texts


def _kept(texts: Iterator[tuple[str, str]], folder: Path | None, name: str) -> Mapping[str, str]:
    return dict(texts) if folder is None else Texts.build(folder / name, texts, f"texts of {name}")
