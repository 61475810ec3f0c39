"""Check that document ids are unique, also in collections that do not fit into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np

from pyserini_kd.storage.arrays import Hashes
from pyserini_kd.storage.errors import InputError


class HasId(Protocol):
    """Anything with the id of a document."""

    @property
    def doc_id(self) -> str:
        """The id."""


D = TypeVar("D", bound=HasId)


def unique_docs(docs: Iterable[D], places: Callable[[str], Iterable[str]], block: int = 10_000) -> Iterator[D]:
    """Pass documents on; InputError at the first id that comes twice.

    Keeps 8 bytes per document: sorted arrays of 64-bit hashes. `places` reads the collection again and says where an id stands;
    so a collision of hashes never refuses a good collection.
    """
    seen: list[Hashes] = []  # sorted; each at least twice as long as the next
    confirmed: set[str] = set()  # ids whose hash is also another id's
    stream = iter(docs)
    for some in iter(lambda: list(islice(stream, block)), []):
        hashes = np.array([id_hash(doc.doc_id) for doc in some], dtype=np.uint64)
        values, codes, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        suspect = counts[codes] > 1
        for old in seen:
            suspect |= old[np.minimum(np.searchsorted(old, hashes), len(old) - 1)] == hashes
        for doc_id in {some[row].doc_id: None for row in np.flatnonzero(suspect).tolist()}:
            if doc_id not in confirmed and len(found := list(islice(places(doc_id), 2))) > 1:
                raise InputError(f"{found[1]}: duplicate document id {doc_id!r}, first at {found[0]}")
            confirmed.add(doc_id)
        merge_into(seen, values)
        yield from some


def merge_into(known: list[Hashes], values: Hashes) -> None:
    """Add sorted hashes to sorted arrays of them, each at least twice as long as the next."""
    known.append(values)
    while len(known) > 1 and 2 * len(known[-1]) > len(known[-2]):
        known[-2:] = [np.union1d(known[-2], known[-1])]


def id_hash(text: str) -> int:
    """Stable 64-bit hash of a string (unlike `hash()`, the same in every process)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
