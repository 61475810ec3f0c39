"""Ids and texts compared by 64-bit hashes, so that memory holds 8 bytes for each and not the strings.

Of 16 million pairs, any two have the same hash with a probability of 1 in 100,000.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyserini_kd.data.ids import id_hash
from pyserini_kd.storage.arrays import Floats, Hashes, let_go, spans


def hashes_of(ids: Iterable[str]) -> Hashes:
    """The 64-bit hash of each id."""
    return np.fromiter(map(id_hash, ids), dtype=np.uint64)


def hashes_of_pairs(pairs: Iterable[tuple[str, str]]) -> Hashes:
    """The hash of each pair of strings: (query_id, doc_id), or the two texts."""
    return hashes_of(f"{query}\0{doc}" for query, doc in pairs)


def distinct(hashes: Hashes) -> Hashes:
    """Sorted distinct hashes, in the memory (or file) of the given ones."""
    hashes.sort()
    count, last = 0, None
    for some in spans(len(hashes)):
        own = hashes[some]
        found = own[np.r_[own[0] != last, own[1:] != own[:-1]]]
        last = own[-1]
        hashes[count : count + len(found)] = found
        count += len(found)
        let_go(hashes)
    return hashes[:count]


def look_up(known: Hashes, hashes: Hashes) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """For each hash whether it is among the known ones, which are sorted, and its place there.

    >>> look_up(np.uint64([2, 5]), np.uint64([5, 4]))
    (array([ True, False]), array([1, 1]))
    """
    if not len(known):
        return np.zeros(len(hashes), bool), np.zeros(len(hashes), np.int64)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[places] == hashes, places


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
