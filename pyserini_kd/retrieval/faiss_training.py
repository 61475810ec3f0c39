"""What FAISS trains an index to: OPQ's rotation, the centroids of inverted lists; learnt round by round, kept on disk.

FAISS trains an index in one call, of minutes for a hundred thousand vectors and of hours for tens of thousands of lists. Here
each of its rounds is a call of its own, which a bar shows and after which a kill costs nothing. What is left when these parts
are trained (product quantisers, scalar ones) takes a minute or two, whatever the collection, and is FAISS's own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd.storage.files import atomic_file

Floats = npt.NDArray[np.float32]

SHARE = 10  # how many times as long as keeping what is learnt takes there must be between two times


def train(transforms: Sequence[Any], inner: Any, sample: Floats, path: Path | None = None) -> None:
    """Train the parts of an index that take long; `index.train(sample)` does the rest, and finds these trained.

    The same bytes come out however often the work is cut short (by the same number of threads): OPQ's rotation is FAISS's own,
    lists are too but for rounding (each call scales their centroids to unit length, which they have already).

    Args:
        transforms: what vectors go through before they come into `inner`, trained in this order (`faiss.VectorTransform`).
        inner: the index proper; its lists are trained where it has some, and finds them by a Flat or an HNSW.
        sample: vectors as they come into the first of the transforms.
        path: where to keep what is learnt; the work goes on from what is there.

    Raises:
        RuntimeError: FAISS's own, as where there are fewer vectors than centroids.
    """
    learnt = _Learnt(path)
    for number, transform in enumerate(transforms):
        _train_transform(transform, sample, learnt, f"rotation {number}")
        sample = transform.apply(sample)
    _train_lists(inner, sample, learnt)


def keep(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file of unfinished work anew, in a folder in which no other process writes it."""
    for stray in path.parent.glob(f".{path.name}.*"):  # of a kill while it was written
        stray.unlink()
    with atomic_file(path, binary=True) as out:
        write(out)


@contextlib.contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """One thread for FAISS, where it is `wanted`: several would build another graph each time."""
    import faiss

    threads = faiss.omp_get_max_threads()
    if wanted:
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


class _Learnt:
    """Arrays by name, and how many rounds of each part are done."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.arrays: dict[str, Any] = {}
        if path is not None and path.exists():
            with np.load(path, allow_pickle=False) as found:
                self.arrays = dict(found)
        self._kept, self._spent = time.monotonic(), 0.0

    def rounds(self, part: str, count: int) -> Iterator[int]:
        """The numbers of the rounds that are left; what one has learnt belongs into `arrays` before the next is taken."""
        name = f"{part}, rounds"
        done = int(self.arrays.get(name, 0))
        for number in tqdm(range(done, count), part, count, initial=done, unit=" rounds", disable=None):
            yield number
            self.arrays[name] = number + 1
            self._keep_now_and_then()

    def _keep_now_and_then(self) -> None:
        begun = time.monotonic()
        if self.path is not None and begun - self._kept >= SHARE * self._spent:
            keep(self.path, lambda out: np.savez(out, **self.arrays))
            self._kept = time.monotonic()
            self._spent = self._kept - begun


def _train_transform(transform: Any, sample: Floats, learnt: _Learnt, part: str) -> None:
    import faiss

    if transform.is_trained:
        return
    if not isinstance(transform, faiss.OPQMatrix):
        transform.train(sample)
        return
    quantiser = faiss.ProductQuantizer(transform.d_out, transform.M, 8)  # FAISS would make the same, and not give it away
    quantiser.cp.min_points_per_centroid = 1  # else each part of each round says that the vectors are few
    transform.pq = quantiser
    first, later, count = transform.niter_pq_0, transform.niter_pq, transform.niter
    if transform.d_out > transform.d_in:  # FAISS does not go on from such a rotation: it cuts off a part in the end
        transform.train(sample)
    else:
        transform.niter = 1
        for number in learnt.rounds(part, count):
            if number:
                faiss.copy_array_to_vector(learnt.arrays[part].ravel(), transform.A)
                faiss.copy_array_to_vector(learnt.arrays[f"{part}, centroids"].ravel(), quantiser.centroids)
                quantiser.train_type = faiss.ProductQuantizer.Train_hot_start
                transform.niter_pq_0 = later
            transform.train(sample)
            learnt.arrays[part] = faiss.vector_to_array(transform.A)
            learnt.arrays[f"{part}, centroids"] = faiss.vector_to_array(quantiser.centroids)
        faiss.copy_array_to_vector(learnt.arrays[part].ravel(), transform.A)  # where no round was left
        transform.is_trained = transform.is_orthonormal = True
        transform.niter, transform.niter_pq_0 = count, first
    transform.pq = None  # a pointer, which does not keep what it points to


def _train_lists(inner: Any, sample: Floats, learnt: _Learnt) -> None:
    """Centroids of inverted lists, by k-means as `faiss.IndexIVF` does it."""
    import faiss

    if inner.is_trained or not hasattr(inner, "nlist"):
        return
    quantiser: Any = faiss.downcast_index(inner.quantizer)
    if type(quantiser) not in (faiss.IndexFlat, faiss.IndexFlatIP, faiss.IndexHNSWFlat):
        return
    part = "lists"
    clustering: Any = faiss.Clustering(inner.d, inner.nlist, inner.cp)
    clustering.niter = 1
    nearest = faiss.IndexFlat(inner.d, inner.metric_type)
    for number in learnt.rounds(part, inner.cp.niter):
        if number:
            faiss.copy_array_to_vector(learnt.arrays[part].ravel(), clustering.centroids)
        clustering.train(sample, nearest)
        learnt.arrays[part] = faiss.vector_to_array(clustering.centroids)
    quantiser.reset()
    with one_thread(True):
        quantiser.add(learnt.arrays[part].reshape(inner.nlist, inner.d))
