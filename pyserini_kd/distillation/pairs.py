"""The distinct (query, document) pairs of candidates: each is scored once, in however many groups it is.

Pairs are told apart by the hashes of their ids, which lie sorted in a file if there are many. The place of its hash is the
place of a pair in every column of numbers about pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyserini_kd.data.ids import distinct, hashes_of, look_up
from pyserini_kd.distillation.candidates import Group, n_docs
from pyserini_kd.storage.arrays import Floats, Hashes, Rows, chunks, column, let_go, spans

BLOCK = 1 << 12  # groups hashed at a time


class Block(NamedTuple):
    """Some pairs: their places in columns, and their ids."""

    places: Rows
    query_ids: list[str]
    doc_ids: list[str]


class Table(NamedTuple):
    """Scores by hash; the keys are sorted."""

    keys: Hashes
    scores: Floats

    def find(self, hashes: Hashes) -> Floats:
        """The score of each hash; NaN where there is none."""
        found, places = look_up(self.keys, hashes)
        scores = np.full(len(hashes), np.nan, np.float32)
        scores[found] = self.scores[places[found]]
        let_go(self.keys, self.scores)
        return scores


class Pairs:
    """The distinct (query, document) pairs of groups.

    Attributes:
        keys: the hash of each pair's ids, sorted.
        folder: where columns about the pairs lie; None for memory.
    """

    def __init__(self, groups: Sequence[Group], folder: Path | None = None) -> None:
        """Hash the pairs of groups."""
        self._groups, self.folder = groups, folder
        self._hashes = group_hashes(groups, folder)
        keys = column(folder, len(self._hashes), np.uint64)
        keys[:] = self._hashes
        self.keys: Hashes = distinct(keys)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.keys)

    def __iter__(self) -> Iterator[tuple[int, str, str]]:
        """(place, query_id, doc_id) of every pair, in the order of their first place in the groups."""
        every = pair_ids(self._groups)
        seen = column(self.folder, len(self), np.bool_)
        for some in spans(len(self._hashes)):
            _, places = look_up(self.keys, self._hashes[some])
            is_new = np.zeros(len(places), bool)
            is_new[np.unique(places, return_index=True)[1]] = True
            is_new &= ~seen[places]
            seen[places] = True
            let_go(self.keys, self._hashes, seen)
            for new, place, (query_id, doc_id) in zip(is_new.tolist(), places.tolist(), every, strict=False):
                if new:
                    yield place, query_id, doc_id

    def blocks(self, size: int) -> Iterator[Block]:
        """The pairs in the same order, `size` at a time."""
        for some in chunks(self, size):
            places, query_ids, doc_ids = zip(*some, strict=True)
            yield Block(np.array(places), list(query_ids), list(doc_ids))


def pair_ids(groups: Iterable[Group]) -> Iterator[tuple[str, str]]:
    """(query_id, doc_id) of every document of groups."""
    return ((group.query_id, doc_id) for group in groups for doc_id in group.doc_ids)


def hashes_of_pairs(pairs: Iterable[tuple[str, str]]) -> Hashes:
    """The hash of each pair of strings: (query_id, doc_id), or the two texts."""
    return hashes_of(f"{query}\0{doc}" for query, doc in pairs)


def group_hashes(groups: Sequence[Group], folder: Path | None = None) -> Hashes:
    """The hash of the ids of every document of every group, in memory or in a file of a folder."""
    hashes, end = column(folder, n_docs(groups), np.uint64), 0
    for some in chunks(groups, BLOCK):
        own = hashes_of_pairs(pair_ids(some))
        hashes[end : end + len(own)] = own
        end += len(own)
        let_go(hashes)
    return hashes
