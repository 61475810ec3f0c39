"""FAISS index kinds by factory string: what they need, how they are trained, filled and written, a block at a time."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyserini_kd.files import InputError

logger = logging.getLogger(__name__)

TRAIN_SAMPLE = 100_000  # vectors that a quantiser is trained on, at most; more where it has many lists
PER_LIST = 64  # training vectors for each inverted list, at most

Floats = npt.NDArray[np.float32]


def new(width: int, kind: str) -> Any:
    """An empty inner-product index of a factory string; InputError where it is none for vectors of this width."""
    import faiss

    try:
        return faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise InputError(f"--faiss {kind!r} is not a FAISS factory string for width {width} (Flat, HNSW32, SQ8 ...)") from None


def _inner(index: Any) -> Any:
    """The index behind OPQ, PCA and the like."""
    import faiss

    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def vector_bytes(index: Any) -> int:
    """Bytes that each vector takes in the index, about: its code, its id in an inverted list, its links in an HNSW graph."""
    import faiss

    inner = _inner(index)
    if isinstance(inner, faiss.IndexHNSW):
        storage: Any = faiss.downcast_index(inner.storage)
        graph: Any = inner.hnsw
        return int(storage.code_size + 4 * (graph.nb_neighbors(0) + graph.nb_neighbors(1)))
    return int(getattr(inner, "code_size", 4 * index.d) + (8 if hasattr(inner, "nlist") else 0))


def streams(index: Any) -> bool:
    """Whether the index is written without being held: plain codes one after the other."""
    import faiss

    return type(index) in (faiss.IndexFlat, faiss.IndexFlatIP, faiss.IndexScalarQuantizer)


def needed(index: Any) -> tuple[int, str]:
    """How many vectors the index must be trained on at least, and what for."""
    inner = _inner(index)
    pq = getattr(inner, "pq", None)
    lists, codes = int(getattr(inner, "nlist", 1)), int(pq.ksub) if pq is not None else 1
    return (lists, f"{lists} inverted lists") if lists >= codes else (codes, f"product quantisation with {codes} centroids")


def write(blocks: Sequence[Path], index: Any, kind: str, path: Path) -> None:
    """Train the empty index where it needs that, and write it with the vectors of the blocks (`.npy`, in order).

    Flat and scalar-quantised indexes go to the file block by block; the others are built in memory. Training takes a uniform
    sample of all vectors, drawn with seed 0. HNSW is built by one thread: several would build a different graph every time.

    Raises:
        InputError: there are fewer vectors than the kind needs, or the disk is full.
    """
    import faiss

    sizes = [len(np.load(block, mmap_mode="r")) for block in blocks]
    least, why = needed(index)
    if sum(sizes) < least:
        raise InputError(
            f"--faiss {kind} needs at least {least} documents ({why}), the collection has {sum(sizes)}; the same command with "
            "another kind goes on from the vectors encoded now"
        )
    if not index.is_trained:
        index.train(_sample(blocks, sizes, max(TRAIN_SAMPLE, PER_LIST * getattr(_inner(index), "nlist", 0))))
    try:
        if streams(index):
            return _write_codes(blocks, sum(sizes), index, path)
        with _one_thread("HNSW" in kind):
            for block in blocks:
                index.add(np.load(block))
        faiss.write_index(index, str(path))
    except RuntimeError as error:  # FAISS's word for a full disk
        raise InputError(f"{path} could not be written: {str(error).splitlines()[0]}") from error


def _sample(blocks: Sequence[Path], sizes: Sequence[int], most: int) -> Floats:
    """At most so many vectors, every one as likely, in the order of the collection."""
    total = sum(sizes)
    rows = np.array(sorted(random.Random(0).sample(range(total), min(most, total))))
    starts = np.cumsum([0, *sizes])
    cuts = np.searchsorted(rows, starts)
    parts = zip(blocks, starts, cuts[:-1], cuts[1:], strict=False)
    return np.concatenate([np.load(block, mmap_mode="r")[rows[a:b] - start] for block, start, a, b in parts])


def _write_codes(blocks: Sequence[Path], total: int, index: Any, path: Path) -> None:
    """What `faiss.write_index` writes of a Flat or SQ index: header with the count (byte 8), number of codes, codes."""
    import faiss

    head = bytearray(faiss.serialize_index(index).tobytes())
    unit = 4 if isinstance(index, faiss.IndexFlat) else 1  # a Flat index counts floats, the others bytes
    head[8:16] = int(total).to_bytes(8, "little")
    head[-8:] = int(total * index.code_size // unit).to_bytes(8, "little")
    with open(path, "wb") as out:
        out.write(head)
        for block in blocks:
            out.write(index.sa_encode(np.load(block)).tobytes())


@contextlib.contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    import faiss

    threads = faiss.omp_get_max_threads()
    if wanted:
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
