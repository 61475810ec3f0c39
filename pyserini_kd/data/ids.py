"""Check that ids are unique, also in collections that do not fit into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pyserini_kd.data.types import Query
from pyserini_kd.storage.errors import InputError


class HasId(Protocol):
    """Anything with the id of a document."""

    @property
    def doc_id(self) -> str:
        """The id."""


D = TypeVar("D", bound=HasId)


def unique_docs(docs: Iterable[D], places: Callable[[str], Iterable[str]], block: int = 10_000) -> Iterator[D]:
    """Pass documents on; InputError at the first id seen twice.

    Keeps 8 bytes per document (64-bit hashes, in sorted arrays that are merged as they grow), not the ids. `places` reads the
    collection again, as far as is asked, and says where an id stands: so a collision of hashes never refuses a good collection.
    """
    seen: list[npt.NDArray[np.uint64]] = []  # sorted; each at least twice as long as the next
    confirmed: set[str] = set()  # ids whose hash collides with another id's
    pending: list[D] = []

    def flush() -> Iterator[D]:
        hashes = np.array([id_hash(doc.doc_id) for doc in pending], dtype=np.uint64)
        values, codes, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        suspect = counts[codes] > 1
        for old in seen:
            suspect |= old[np.minimum(np.searchsorted(old, hashes), len(old) - 1)] == hashes
        for row in np.flatnonzero(suspect).tolist():
            doc_id = pending[row].doc_id
            if doc_id not in confirmed:
                if len(found := list(islice(places(doc_id), 2))) > 1:
                    raise InputError(f"{found[1]}: duplicate document id {doc_id!r}, first at {found[0]}")
                confirmed.add(doc_id)
        merge_into(seen, values)
        yield from pending
        pending.clear()

    for doc in docs:
        pending.append(doc)
        if len(pending) == block:
            yield from flush()
    if pending:
        yield from flush()


def merge_into(known: list[npt.NDArray[np.uint64]], values: npt.NDArray[np.uint64]) -> None:
    """Add sorted hashes to sorted arrays of them, each at least twice as long as the next."""
    known.append(values)
    while len(known) > 1 and 2 * len(known[-1]) > len(known[-2]):
        known[-2:] = [np.union1d(known[-2], known[-1])]


def id_hash(text: str) -> int:
    """Stable 64-bit hash of a string (unlike `hash()`, the same in every process)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def unique_queries(queries: Iterable[tuple[str, Query]], source: str) -> list[Query]:
    """The queries, each of which comes with its place, as a list; InputError if there are none or an id comes twice."""
    found: dict[str, Query] = {}
    for where, query in queries:
        if query.query_id in found:
            raise InputError(f"{where}: duplicate query id {query.query_id!r}")
        found[query.query_id] = query
    if not found:
        raise InputError(f"{source}: no topics found")
    return list(found.values())
