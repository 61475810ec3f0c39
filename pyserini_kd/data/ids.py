"""Ids and texts compared by 64-bit hashes, so that memory holds 8 bytes for each and not the strings.

Of 16 million, any two have the same hash with a probability of 1 in 100,000.
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
    """Anything with the id of a document."""

    @property
    def doc_id(self) -> str:
        """The id."""


D = TypeVar("D", bound=HasId)


def id_hash(text: str) -> int:
    """Stable 64-bit hash of a string (unlike `hash()`, the same in every process)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def hashes_of(ids: Iterable[str]) -> Hashes:
    """The 64-bit hash of each id."""
    return np.fromiter(map(id_hash, ids), np.uint64)


def look_up(known: Hashes, hashes: Hashes) -> tuple[npt.NDArray[np.bool_], Rows]:
    """For each hash whether it is among the known ones, which are sorted, and its place there.

    >>> look_up(np.uint64([2, 5]), np.uint64([5, 4]))
    (array([ True, False]), array([1, 1]))
    """
    if not len(known):
        return np.zeros(len(hashes), bool), np.zeros(len(hashes), np.int64)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[places] == hashes, places


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


def merge_into(known: list[Hashes], values: Hashes) -> None:
    """Add sorted hashes to sorted arrays of them, each at least twice as long as the next."""
    known.append(values)
    while len(known) > 1 and 2 * len(known[-1]) > len(known[-2]):
        known[-2:] = [np.union1d(known[-2], known[-1])]


def unique_docs(docs: Iterable[D], places: Callable[[str], Iterable[str]], block: int = 10_000) -> Iterator[D]:
    """Pass documents on; InputError at the first id that comes twice.

    Keeps 8 bytes per document: sorted arrays of 64-bit hashes. `places` reads the collection again and says where an id stands;
    so a collision of hashes never refuses a good collection.
    """
    seen: list[Hashes] = []
    confirmed: set[str] = set()  # ids whose hash is also another id's
    for some in chunks(docs, block):
        hashes = hashes_of(doc.doc_id for doc in some)
        values, codes, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        suspect = counts[codes] > 1
        for old in seen:
            suspect |= look_up(old, hashes)[0]
        for doc_id in {some[row].doc_id: None for row in np.flatnonzero(suspect).tolist()}:
            if doc_id not in confirmed and len(found := list(islice(places(doc_id), 2))) > 1:
                raise InputError(f"{found[1]}: duplicate document id {doc_id!r}, first at {found[0]}")
            confirmed.add(doc_id)
        merge_into(seen, values)
        yield from some
