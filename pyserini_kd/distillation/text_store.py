"""Training data that memory need not hold: texts and teacher-scored triples on disk, read where a batch needs them.

The published score files have 40 million rows over 8.8 million passages. Both are converted once, as they stream by, into
plain arrays in a folder; afterwards a triple is 24 bytes read from one file and a text a few hundred read from another. What
stays in memory are 8 bytes a document for its hash (24 more while they are sorted) and some 60 a batch for the epoch's order.
Of candidates, only the texts that they name are written; `Scores` holds 12 bytes a pair, `teach` keeps its numbers in columns.

Ids are compared by 64-bit hashes. Of 16 million pairs, any two have the same one with a probability of 1 in 100,000.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd.data.ids import id_hash, merge_into
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.distillation.candidates import Group
from pyserini_kd.storage.arrays import save, spans
from pyserini_kd.storage.errors import InputError

Rows = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]

BLOCK = 1 << 16  # triples converted at a time
DOCS = 1 << 12  # documents held while a collection streams by


def hashes_of(ids: Iterable[str]) -> Hashes:
    """The 64-bit hash of each id."""
    return np.fromiter(map(id_hash, ids), dtype=np.uint64)


def pair_hashes(groups: Iterable[Group]) -> Hashes:
    """The hash of the ids of every (query, document) pair of groups, one after the other."""
    return hashes_of(f"{group.query_id}\0{doc_id}" for group in groups for doc_id in group.doc_ids)


def text_hash(query: str, doc: str) -> int:
    """Stable 64-bit hash of the two texts of a pair: its ids may mean other texts in another collection."""
    return id_hash(f"{query}\0{doc}")


def look_up(known: Hashes, hashes: Hashes) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """For each hash whether it is among the known ones, which are sorted, and its place there.

    >>> look_up(np.uint64([2, 5]), np.uint64([5, 4]))
    (array([ True, False]), array([1, 1]))
    """
    if not len(known):
        return np.zeros(len(hashes), bool), np.zeros(len(hashes), np.int64)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[places] == hashes, places


def distinct(hashes: Hashes) -> Hashes:
    """Sorted distinct hashes, in the memory of those that are given, which is cut short."""
    hashes.sort()
    count, last = 0, None
    for some in spans(len(hashes)):
        own = hashes[some]
        found = own[np.r_[own[0] != last, own[1:] != own[:-1]]]
        last = own[-1]
        hashes[count : count + len(found)] = found
        count += len(found)
    hashes.resize(count, refcheck=False)
    return hashes


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
        cls._save(folder / "ends.npy", np.array(ends))
        del ends
        found = np.array(hashes)
        order = np.argsort(found)
        found = found[order]
        twice = np.flatnonzero(found[1:] == found[:-1])
        if len(twice):  # for all of MS MARCO, once in 500,000 collections
            raise InputError(f"{label}: rename the {order[twice[0]] + 1}th id: its hash is another's")
        cls._save(folder / "hashes.npy", found)
        cls._save(folder / "rows.npy", order.astype(np.int32))
        return cls(folder)

    @staticmethod
    def _save(path: Path, numbers: npt.NDArray[Any]) -> None:
        with open(path, "wb") as out:
            save(out, numbers)

    def rows(self, ids: Sequence[str]) -> Rows:
        """Row of each id, -1 for those that are not there."""
        found, places = look_up(self._hashes, hashes_of(ids))
        return np.where(found, self._rows[places], np.int32(-1)) if len(self) else np.full(len(ids), -1, np.int32)

    def lengths(self, rows: Rows) -> Rows:
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
        """The text of an id; KeyError for one that is not there."""
        place = int(self._hashes.searchsorted(np.uint64(id_hash(text_id))))
        found, text = self.record(int(self._rows[place])) if place < len(self) else ("", "")
        if found != text_id:
            raise KeyError(text_id)
        return text

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        """The ids, in the order they were written in."""
        return (self.record(row)[0] for row in range(len(self)))


def wanted(groups: Iterable[Group]) -> tuple[Hashes, Hashes]:
    """Sorted hashes of the distinct queries and of the distinct documents of groups."""
    queries: list[Hashes] = []
    docs: list[Hashes] = []
    groups = iter(groups)
    while some := list(itertools.islice(groups, BLOCK)):
        merge_into(queries, distinct(hashes_of(group.query_id for group in some)))
        merge_into(docs, distinct(hashes_of(doc_id for group in some for doc_id in group.doc_ids)))
    none = np.empty(0, np.uint64)
    return distinct(np.concatenate([none, *queries])), distinct(np.concatenate([none, *docs]))


def chosen(texts: Iterable[tuple[str, str]], hashes: Hashes) -> Iterator[tuple[str, str]]:
    """Of (id, text) pairs that stream by those whose id's hash is among the sorted ones."""
    texts = iter(texts)
    while some := list(itertools.islice(texts, DOCS)):
        found, _ = look_up(hashes, hashes_of(text_id for text_id, _ in some))
        yield from itertools.compress(some, found.tolist())


def load_texts(
    groups: Sequence[Group], queries: Iterable[Query], docs: Iterable[Doc], folder: Path | None = None
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Texts of the queries and documents of groups, in memory or in new folders of `folder`.

    Raises:
        InputError: texts are missing; counts their ids.
    """
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


class PlainTexts(Sequence[str]):
    """Some of the texts of a folder, without their ids."""

    def __init__(self, texts: Texts, rows: Rows) -> None:
        self._texts, self._rows = texts, rows

    def lengths(self) -> Rows:
        """Bytes of every text, its id included."""
        return self._texts.lengths(self._rows)

    def __getitem__(self, row: Any) -> Any:
        """The text of a row."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._texts.record(int(self._rows[row]))[1]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._rows)
