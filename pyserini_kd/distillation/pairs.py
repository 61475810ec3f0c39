"""The distinct (query, document) pairs of candidates: each is scored once, however many groups it is in.

Of forty million triples they are told apart in files (`columns`), by hashes and numbers, without a list of ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyserini_kd.distillation.candidates import Group, n_docs
from pyserini_kd.distillation.text_store import Floats, Hashes, pair_hashes
from pyserini_kd.storage.arrays import column, let_go, spans

BLOCK = 1 << 14  # pairs scored, and kept against a kill, at a time; their texts are in memory. Also groups hashed at a time

Ids = tuple[list[str], list[str]]
"""query_ids and doc_ids of some pairs."""


class Pairs:
    """The distinct (query, document) pairs of groups, in the order in which they first come, some at a time.

    `numbers` tells of every document of every group which of the pairs it is.
    """

    def __init__(self, groups: Sequence[Group], folder: Path | None = None) -> None:
        """Tell the pairs of groups apart by their hashes, in memory or in files of a folder."""
        self._groups = groups
        count = n_docs(groups)
        keys = column(folder, count, np.uint64)
        rest, end = iter(groups), 0
        while some := list(itertools.islice(rest, BLOCK)):
            own = pair_hashes(some)
            keys[end : end + len(own)] = own
            end += len(own)
            let_go(keys)
        self.numbers = column(folder, count, np.int64)
        _first_places(keys, self.numbers)
        self._count = _number(self.numbers)

    def __len__(self) -> int:
        """Number of pairs."""
        return self._count

    def _are_new(self) -> Iterator[bool]:
        """Of every document of every group whether its pair comes for the first time."""
        before = -1
        for some in spans(len(self.numbers)):
            highest = np.maximum(np.maximum.accumulate(self.numbers[some]), before)
            yield from (highest > np.r_[before, highest[:-1]]).tolist()
            before = highest[-1]
            let_go(self.numbers)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(query_id, doc_id) of every pair."""
        every = ((group.query_id, doc_id) for group in self._groups for doc_id in group.doc_ids)
        return itertools.compress(every, self._are_new())

    def blocks(self, size: int) -> Iterator[tuple[slice, Ids]]:
        """The pairs `size` at a time: which they are, and their ids."""
        rest, start = iter(self), 0
        while some := list(itertools.islice(rest, size)):
            yield slice(start, start + len(some)), ([q for q, _ in some], [d for _, d in some])
            start += len(some)

    def each(self, values: Floats) -> Iterator[tuple[Group, list[float]]]:
        """Every group with the values of its documents, of which there is one a pair."""
        rest = (value for some in spans(len(self.numbers)) for value in self._of(values, some))
        return ((group, list(itertools.islice(rest, len(group.doc_ids)))) for group in self._groups)

    def _of(self, values: Floats, some: slice) -> list[float]:
        found: list[float] = values[self.numbers[some]].tolist()
        let_go(values, self.numbers)
        return found


def _first_places(keys: Hashes, places: npt.NDArray[np.int64]) -> None:
    """Write for every key the place where it first comes; sorts only as many at a time as memory should hold."""
    bits = max(1, (len(keys) >> 20).bit_length())
    for part in range(1 << bits if len(keys) else 0):  # the keys whose highest bits are these
        found = []
        for some in spans(len(keys)):
            rows = some.start + np.flatnonzero(keys[some] >> np.uint64(64 - bits) == part)
            found.append((rows, keys[rows]))
            let_go(keys)
        rows, own = (np.concatenate(each) for each in zip(*found, strict=True))
        order = np.argsort(own, kind="stable")
        is_new = np.r_[True, own[order][1:] != own[order][:-1]][: len(own)]
        first = np.empty_like(rows)
        first[order] = rows[order][is_new][np.cumsum(is_new) - 1]
        for some in spans(len(rows)):
            places[rows[some]] = first[some]
            let_go(places)


def _number(places: npt.NDArray[np.int64]) -> int:
    """Put a number from 0 on where there is the place of the first of equal keys; returns how many different ones there are."""
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
