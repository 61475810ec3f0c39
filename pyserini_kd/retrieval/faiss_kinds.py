"""FAISS index kinds (factory strings): accepted kinds, and the vectors, memory and time that each needs."""

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
"""A FAISS index; the library's stubs lack most attributes."""

TRAIN_SAMPLE = 100_000  # largest training sample, unless there are many lists
PER_LIST = 64  # training vectors per inverted list or code centroid
ROTATION_CENTROIDS = 256  # FAISS always trains OPQ with this many centroids
LEVEL_SEED = 12345  # FAISS's seed for the levels of a new HNSW graph


def new(width: int, kind: str) -> FaissIndex:
    """Empty inner-product index from a factory string; InputError for unknown or unsupported kinds, or a wrong width."""
    try:
        index = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise InputError(f"{kind!r} is not a FAISS factory string for width {width} (Flat, HNSW32, SQ8 ...)") from None
    if why := _unfit(index):
        raise InputError(f"FAISS kind {kind!r}: {why}")
    return index


def _unfit(index: FaissIndex) -> str:
    """Why an index does not suit our vectors, or cannot be filled block by block; empty if it can."""
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:  # e.g. HNSW over PQ
        return "FAISS has no such index for inner products"
    inner: FaissIndex = inner_index(index)
    if isinstance(index, faiss.IndexIDMap) or isinstance(inner, faiss.IndexIDMap):
        return "the docid file keeps the ids; leave IDMap out"
    if isinstance(inner, faiss.IndexNSG):
        return "FAISS cannot fill an NSG in blocks; use HNSW32"
    storage = inner
    if has_graph(inner):
        storage = faiss.downcast_index(inner.storage)
        if inner.hnsw.cum_nneighbor_per_level.size() < 3 or inner.hnsw.nb_neighbors(1) < 2:
            return "a graph needs at least 2 links per document; use HNSW32"
    if getattr(inner, "nlist", 1) < 1:
        return "there must be at least one inverted list"
    if getattr(getattr(storage, "sq", None), "qtype", None) == faiss.ScalarQuantizer.QT_8bit_direct:
        return "it only stores whole numbers from 0 to 255; use SQ8"
    for transform in transforms(index):
        if not isinstance(transform, (faiss.OPQMatrix, faiss.RandomRotationMatrix, faiss.RemapDimensionsTransform)):
            name = type(transform).__name__.removesuffix("Matrix").removesuffix("Transform")
            return f"{name} changes inner products (it centres or scales); OPQ and RR rotate only"
    return ""


def transforms(index: FaissIndex) -> list[Any]:
    """Transforms of vectors before they enter the index, such as OPQ's rotation."""
    if isinstance(index, faiss.IndexRefine):
        return transforms(faiss.downcast_index(index.base_index))
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    chain: Any = index.chain
    return [faiss.downcast_VectorTransform(chain.at(number)) for number in range(chain.size())]


def inner_index(index: FaissIndex) -> FaissIndex:
    """The index inside transforms (OPQ) and refinement (`,RFlat`)."""
    while isinstance(index, (faiss.IndexPreTransform, faiss.IndexRefine)):
        index = faiss.downcast_index(index.index if isinstance(index, faiss.IndexPreTransform) else index.base_index)
    return index


def layers(index: FaissIndex) -> Iterator[FaissIndex]:
    """An index and all indexes inside it: below transforms, refinement, id maps, and a graph's storage."""
    yield index
    names = ("index", "base_index", "storage")
    inside = next((inner for name in names if (inner := getattr(index, name, None)) is not None), None)
    if inside is not None:
        yield from layers(faiss.downcast_index(inside))


def has_graph(index: FaissIndex) -> bool:
    """Whether the index is an HNSW graph."""
    return isinstance(index, faiss.IndexHNSW)


def vector_bytes(index: FaissIndex) -> int:
    """Approximate bytes per vector: code, id in an inverted list, links in an HNSW graph."""
    if isinstance(index, faiss.IndexRefine):
        return vector_bytes(faiss.downcast_index(index.base_index)) + 4 * index.d
    inner: FaissIndex = inner_index(index)
    if has_graph(inner):
        storage: FaissIndex = faiss.downcast_index(inner.storage)
        return int(storage.code_size + 4 * (inner.hnsw.nb_neighbors(0) + inner.hnsw.nb_neighbors(1)))
    return int(getattr(inner, "code_size", 4 * index.d) + (8 if hasattr(inner, "nlist") else 0))


def needed(index: FaissIndex) -> tuple[int, str]:
    """The minimum number of training vectors, and the reason."""
    inner = inner_index(index)
    pq = getattr(inner, "pq", None)
    lists, codes = int(getattr(inner, "nlist", 1)), int(pq.ksub) if pq is not None else 1
    parts = [(lists, f"{lists} inverted lists"), (codes, f"product quantisation with {codes} centroids")]
    if any(isinstance(transform, faiss.OPQMatrix) for transform in transforms(index)):
        parts.append((ROTATION_CENTROIDS, f"OPQ, trained with {ROTATION_CENTROIDS} centroids"))
    return max(parts, key=lambda part: part[0])


def train_size(index: FaissIndex) -> int:
    """The maximum number of training vectors."""
    return max(TRAIN_SAMPLE, PER_LIST * needed(index)[0])


def train(index: FaissIndex, sample: Floats) -> None:
    """Train an index on vectors float32 (N, H); FAISS raises RuntimeError, e.g. for fewer vectors than centroids.

    FAISS's repeated warning about few vectors is off. One thread builds the graph over inverted lists, so it is reproducible.
    """
    inner: FaissIndex = inner_index(index)
    parts: list[Any] = [inner, getattr(inner, "pq", None)]
    rotations = [transform for transform in transforms(index) if isinstance(transform, faiss.OPQMatrix)]
    for rotation in rotations:
        rotation.pq = faiss.ProductQuantizer(rotation.d_out, rotation.M, 8)  # as FAISS creates it
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
        graph.hnsw.rng = getattr(faiss, "RandomGenerator")(LEVEL_SEED)  # noqa: B009 - missing in the stubs
        with one_thread():
            graph.add(centroids)


@contextlib.contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Limit FAISS to one thread for a reproducible graph."""
    threads = faiss.omp_get_max_threads()
    if wanted:
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def forecast(index: FaissIndex, sample: Floats, count: int) -> float:
    """Estimated seconds to train the index and fill it with `count` vectors on this machine, from a trial with `sample`.

    A graph takes n log n. Lists and product quantisers compare vectors, or parts of vectors, with centroids: the training
    sample in every training round, then every vector once.
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
    """Seconds per comparison when many vectors are compared with a few hundred centroids."""
    many, few = np.tile(sample, (8, 1)), np.ascontiguousarray(sample[:ROTATION_CENTROIDS])  # many, as threads start slowly
    trials = []
    for _ in range(3):
        begun = time.perf_counter()
        faiss.knn(many, few, 1)
        trials.append(time.perf_counter() - begun)
    return min(trials) / (len(many) * len(few))
