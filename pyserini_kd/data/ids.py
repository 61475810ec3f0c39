"""Compare ids and texts by 64-bit hashes: 8 bytes of memory each, instead of the strings.

Among 16 million texts, a collision has a probability of 1 in 100,000.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pyserini_kd.storage.arrays import Hashes, Rows, chunks, let_go, spans
from pyserini_kd.storage.errors import InputError


class HasId(Protocol):
    """An object with a document id."""

    @property
    def doc_id(self) -> str:
        """The document id."""


D = TypeVar("D", bound=HasId)


def id_hash(text: str) -> int:
    """Stable 64-bit hash of a string; unlike `hash()`, it is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def hashes_of(ids: Iterable[str]) -> Hashes:
    """The 64-bit hash of each id as uint64."""
    return np.fromiter(map(id_hash, ids), np.uint64)


def look_up(known: Hashes, hashes: Hashes) -> tuple[npt.NDArray[np.bool_], Rows]:
    """(is known, position) of each hash in the sorted array `known`; a position means nothing where the hash is unknown.

    >>> look_up(np.uint64([2, 5]), np.uint64([5, 4]))
    (array([ True, False]), array([1, 1]))
    """
    if not len(known):
        return np.zeros(len(hashes), bool), np.zeros(len(hashes), np.int64)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[places] == hashes, places


def distinct(hashes: Hashes) -> Hashes:
    """Sort and deduplicate hashes in place; returns a view of the given array."""
    hashes.sort()
    count, last = 0, None
    for rows in spans(len(hashes)):
        values = hashes[rows]
        found = values[np.r_[values[0] != last, values[1:] != values[:-1]]]
        last = values[-1]
        hashes[count : count + len(found)] = found
        count += len(found)
        let_go(hashes)
    return hashes[:count]


def merge_into(known: list[Hashes], values: Hashes) -> None:
    """Add a sorted array to a list of sorted arrays; merging keeps each at least twice as long as the next."""
    known.append(values)
    while len(known) > 1 and 2 * len(known[-1]) > len(known[-2]):
        known[-2:] = [np.union1d(known[-2], known[-1])]


def unique_docs(docs: Iterable[D], places: Callable[[str], Iterable[str]], block: int = 10_000) -> Iterator[D]:
    """Stream documents; InputError at the first duplicate id.

    Memory: 8 bytes per document, in sorted arrays of 64-bit hashes. Where two hashes are equal, `places` reads the collection
    again and gives the positions of the id. So a hash collision is not an error.
    """
    seen: list[Hashes] = []
    confirmed: set[str] = set()  # ids without duplicates, despite equal hashes
    for chunk in chunks(docs, block):
        hashes = hashes_of(doc.doc_id for doc in chunk)
        values, codes, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        suspect = counts[codes] > 1
        for old in seen:
            suspect |= look_up(old, hashes)[0]
        for doc_id in {chunk[row].doc_id: None for row in np.flatnonzero(suspect).tolist()}:
            if doc_id not in confirmed and len(found := list(islice(places(doc_id), 2))) > 1:
                raise InputError(f"{found[1]}: duplicate document id {doc_id!r}, first at {found[0]}")
            confirmed.add(doc_id)
        merge_into(seen, values)
        yield from chunk
