"""The distinct (query, document) pairs of candidates: each is scored once, in however many groups it is.

The pairs of forty million triples are told apart by hashes and numbers in files (`columns`), without a list of ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyserini_kd.distillation.candidates import Group, n_docs
from pyserini_kd.distillation.hashing import pair_hashes
from pyserini_kd.storage.arrays import Floats, Hashes, column, let_go, spans

BLOCK = 1 << 14  # groups hashed at a time
PART = 20  # 2^PART hashes, about, are sorted in memory at a time


class Block(NamedTuple):
    """Some pairs that follow each other: their place among all pairs, and their ids."""

    rows: slice
    query_ids: list[str]
    doc_ids: list[str]


class Pairs:
    """The distinct (query, document) pairs of groups, in the order of their first place in the groups."""

    def __init__(self, groups: Sequence[Group], folder: Path | None = None) -> None:
        """Tell the pairs of groups apart by their hashes, in memory or in files of a folder."""
        self._groups = groups
        keys = column(folder, n_docs(groups), np.uint64)
        rest, end = iter(groups), 0
        while some := list(itertools.islice(rest, BLOCK)):
            own = pair_hashes(some)
            keys[end : end + len(own)] = own
            end += len(own)
            let_go(keys)
        self._numbers = column(folder, len(keys), np.int64)  # for every document of every group, the number of its pair
        _first_places(keys, self._numbers)
        self._count = _number(self._numbers)

    def __len__(self) -> int:
        """Number of pairs."""
        return self._count

    def _are_new(self) -> Iterator[bool]:
        """For every document of every group: whether it is the first place of its pair."""
        before = -1
        for some in spans(len(self._numbers)):
            highest = np.maximum(np.maximum.accumulate(self._numbers[some]), before)
            yield from (highest > np.r_[before, highest[:-1]]).tolist()
            before = highest[-1]
            let_go(self._numbers)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(query_id, doc_id) of every pair."""
        every = ((group.query_id, doc_id) for group in self._groups for doc_id in group.doc_ids)
        return itertools.compress(every, self._are_new())

    def blocks(self, size: int) -> Iterator[Block]:
        """The pairs, `size` at a time."""
        rest, start = iter(self), 0
        while some := list(itertools.islice(rest, size)):
            yield Block(slice(start, start + len(some)), [q for q, _ in some], [d for _, d in some])
            start += len(some)

    def each(self, values: Floats) -> Iterator[tuple[Group, list[float]]]:
        """Every group with the values of its documents; `values` has one a pair."""
        rest = (value for some in spans(len(self._numbers)) for value in self._of(values, some))
        return ((group, list(itertools.islice(rest, len(group.doc_ids)))) for group in self._groups)

    def _of(self, values: Floats, some: slice) -> list[float]:
        found: list[float] = values[self._numbers[some]].tolist()
        let_go(values, self._numbers)
        return found


def _first_places(keys: Hashes, places: npt.NDArray[np.int64]) -> None:
    """Write for every key the place of the first key that is equal. Few keys are sorted, and in memory, at a time."""
    bits = max(1, (len(keys) >> PART).bit_length())
    for part in range(1 << bits if len(keys) else 0):  # the keys with these highest bits
        found = []
        for some in spans(len(keys)):
            rows = some.start + np.flatnonzero(keys[some] >> np.uint64(64 - bits) == part)
            found.append((rows, keys[rows]))
            let_go(keys)
        rows, own = (np.concatenate(each) for each in zip(*found, strict=True))
        _, first, inverse = np.unique(own, return_index=True, return_inverse=True)
        first_rows = rows[first][inverse]
        for some in spans(len(rows)):
            places[rows[some]] = first_rows[some]
            let_go(places)


def _number(places: npt.NDArray[np.int64]) -> int:
    """Replace the places of first keys by numbers from 0 on; returns how many different keys there are."""
    count = 0
    for some in spans(len(places)):
        first = np.array(places[some])
        is_new = first == np.arange(some.start, some.stop)
        after = count + int(is_new.sum())
        places[some][is_new] = np.arange(count, after)
        places[some][~is_new] = places[first[~is_new]]
        count = after
        let_go(places)
    return count
