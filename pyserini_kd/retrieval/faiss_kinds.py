"""FAISS kinds by factory string: which are accepted, and what a kind needs in vectors, memory and time."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

from pyserini_kd.storage.arrays import Floats
from pyserini_kd.storage.errors import InputError

FaissIndex = Any
"""A FAISS index; the stubs of the library lack most of its attributes."""

TRAIN_SAMPLE = 100_000  # vectors that a quantiser is trained on, at most; more if it has many lists
PER_LIST = 64  # training vectors for each inverted list, or each centroid of a code
ROTATION_CENTROIDS = 256  # FAISS finds OPQ's rotation with product quantisers of this size, whatever the index has
LEVEL_SEED = 12345  # of the random levels in a new HNSW graph of FAISS


def new(width: int, kind: str) -> FaissIndex:
    """An empty inner-product index of a factory string; InputError if FAISS or we cannot use it for vectors of this width."""
    try:
        index = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise InputError(f"{kind!r} is not a FAISS factory string for width {width} (Flat, HNSW32, SQ8 ...)") from None
    if why := _unfit(index):
        raise InputError(f"FAISS kind {kind!r}: {why}")
    return index


def _unfit(index: FaissIndex) -> str:
    """Why an index that FAISS makes cannot be filled block by block, or not with our vectors; empty if it can."""
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:  # as HNSW over PQ
        return "FAISS has no such index for inner products"
    inner: FaissIndex = inner_index(index)
    if isinstance(index, faiss.IndexIDMap) or isinstance(inner, faiss.IndexIDMap):
        return "the file `docid` keeps the ids; leave IDMap out"
    if isinstance(inner, faiss.IndexNSG):
        return "FAISS fills an NSG at once or not at all; take HNSW32"
    storage = inner
    if has_graph(inner):
        storage = faiss.downcast_index(inner.storage)
        if inner.hnsw.cum_nneighbor_per_level.size() < 3 or inner.hnsw.nb_neighbors(1) < 2:
            return "a graph needs at least 2 links a document; take HNSW32"
    if getattr(inner, "nlist", 1) < 1:
        return "there must be at least one inverted list"
    if getattr(getattr(storage, "sq", None), "qtype", None) == faiss.ScalarQuantizer.QT_8bit_direct:
        return "it takes whole numbers from 0 to 255; take SQ8"
    for transform in transforms(index):
        if not isinstance(transform, (faiss.OPQMatrix, faiss.RandomRotationMatrix, faiss.RemapDimensionsTransform)):
            name = type(transform).__name__.removesuffix("Matrix").removesuffix("Transform")
            return f"{name} changes inner products (it centres or scales); OPQ and RR rotate only"
    return ""


def transforms(index: FaissIndex) -> list[Any]:
    """What is applied to vectors before they enter the index, such as OPQ's rotation."""
    if isinstance(index, faiss.IndexRefine):
        return transforms(faiss.downcast_index(index.base_index))
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    chain: Any = index.chain
    return [faiss.downcast_VectorTransform(chain.at(number)) for number in range(chain.size())]


def inner_index(index: FaissIndex) -> FaissIndex:
    """The index behind OPQ and the like, and before the refinement of `,RFlat`."""
    while isinstance(index, (faiss.IndexPreTransform, faiss.IndexRefine)):
        index = faiss.downcast_index(index.index if isinstance(index, faiss.IndexPreTransform) else index.base_index)
    return index


def has_graph(index: FaissIndex) -> bool:
    """Whether the index is an HNSW graph."""
    return isinstance(index, faiss.IndexHNSW)


def vector_bytes(index: FaissIndex) -> int:
    """Bytes for each vector, about: its code, its id in an inverted list, its links in an HNSW graph."""
    if isinstance(index, faiss.IndexRefine):
        return vector_bytes(faiss.downcast_index(index.base_index)) + 4 * index.d
    inner: FaissIndex = inner_index(index)
    if has_graph(inner):
        storage: FaissIndex = faiss.downcast_index(inner.storage)
        return int(storage.code_size + 4 * (inner.hnsw.nb_neighbors(0) + inner.hnsw.nb_neighbors(1)))
    return int(getattr(inner, "code_size", 4 * index.d) + (8 if hasattr(inner, "nlist") else 0))


def needed(index: FaissIndex) -> tuple[int, str]:
    """The smallest number of vectors that the index can be trained on, and the reason."""
    inner = inner_index(index)
    pq = getattr(inner, "pq", None)
    lists, codes = int(getattr(inner, "nlist", 1)), int(pq.ksub) if pq is not None else 1
    parts = [(lists, f"{lists} inverted lists"), (codes, f"product quantisation with {codes} centroids")]
    if any(isinstance(transform, faiss.OPQMatrix) for transform in transforms(index)):
        parts.append((ROTATION_CENTROIDS, f"OPQ, whose rotation is found with {ROTATION_CENTROIDS} centroids"))
    return max(parts, key=lambda part: part[0])


def train_size(index: FaissIndex) -> int:
    """The largest number of vectors that the index is trained on."""
    return max(TRAIN_SAMPLE, PER_LIST * needed(index)[0])


def train(index: FaissIndex, sample: Floats) -> None:
    """Train an index on vectors float32 (N, H).

    FAISS's warning that the vectors are few is turned off: it would come for each part of the index in each round. The graph
    that finds inverted lists is made by one thread, so that it is always the same.

    Raises:
        RuntimeError: FAISS's own, such as fewer vectors than centroids.
    """
    inner: FaissIndex = inner_index(index)
    parts: list[Any] = [inner, getattr(inner, "pq", None)]
    rotations = [transform for transform in transforms(index) if isinstance(transform, faiss.OPQMatrix)]
    for rotation in rotations:
        rotation.pq = faiss.ProductQuantizer(rotation.d_out, rotation.M, 8)  # as FAISS would make it
        parts.append(rotation.pq)
    for part in parts:
        if hasattr(part, "cp"):
            part.cp.min_points_per_centroid = 1
    try:
        index.train(sample)
    finally:
        for rotation in rotations:
            rotation.pq = None  # `parts` owns it
    graph: FaissIndex = faiss.downcast_index(inner.quantizer) if isinstance(inner, faiss.IndexIVF) else None
    if has_graph(graph):
        centroids = graph.reconstruct_n(0, graph.ntotal)
        graph.reset()
        graph.hnsw.rng = getattr(faiss, "RandomGenerator")(LEVEL_SEED)  # noqa: B009 - the stubs do not know it
        with one_thread():
            graph.add(centroids)


@contextlib.contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """One thread for FAISS: several would build another graph each time."""
    threads = faiss.omp_get_max_threads()
    if wanted:
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def forecast(index: FaissIndex, sample: Floats, count: int) -> float:
    """Seconds for training the index and filling it with `count` vectors on this machine, about, from a trial with a few.

    A graph takes n log n. Lists and product quantisers take comparisons of vectors, or parts of vectors, with centroids: for
    each vector of the training sample in each round of training, then once for each vector.
    """
    inner: FaissIndex = inner_index(index)
    seconds, trained = 0.0, min(count, train_size(index))
    for rotation in transforms(index):
        if isinstance(rotation, faiss.OPQMatrix):
            rounds = rotation.niter_pq_0 + (rotation.niter - 1) * rotation.niter_pq
            part = sample[:, : rotation.d_out // rotation.M]
            seconds += rotation.M * _comparison(part) * ROTATION_CENTROIDS * rounds * min(trained, rotation.max_train_points)
    if has_graph(inner):
        trial: FaissIndex = faiss.IndexHNSWFlat(index.d, inner.hnsw.nb_neighbors(1), faiss.METRIC_INNER_PRODUCT)
        begun = time.perf_counter()
        with one_thread():
            trial.add(sample)
        spent = time.perf_counter() - begun
        return seconds + spent * count * math.log(count + 1) / (len(sample) * math.log(len(sample) + 1))
    if lists := int(getattr(inner, "nlist", 0)):
        seconds += _comparison(sample) * lists * (inner.cp.niter * trained + count)
    if (pq := getattr(inner, "pq", None)) is not None:
        compared = pq.cp.niter * min(trained, pq.cp.max_points_per_centroid * pq.ksub) + count
        seconds += pq.M * _comparison(sample[:, : pq.dsub]) * pq.ksub * compared
    return seconds


def _comparison(sample: Floats) -> float:
    """Seconds for the comparison of two vectors, when many are compared with a few hundred centroids."""
    many, few = np.tile(sample, (8, 1)), np.ascontiguousarray(sample[:ROTATION_CENTROIDS])  # many: threads take time to start
    trials = []
    for _ in range(3):
        begun = time.perf_counter()
        faiss.knn(many, few, 1)
        trials.append(time.perf_counter() - begun)
    return min(trials) / (len(many) * len(few))
