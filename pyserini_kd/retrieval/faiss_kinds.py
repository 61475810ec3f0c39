"""FAISS kinds by factory string: what is accepted, and what a kind needs."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from pyserini_kd.retrieval import faiss_training
from pyserini_kd.storage.errors import InputError

Floats = npt.NDArray[np.float32]


TRAIN_SAMPLE = 100_000  # vectors that a quantiser is trained on, at most; more where it has many lists
PER_LIST = 64  # training vectors for each inverted list, or each centroid of a code
ROTATION_CENTROIDS = 256  # of the product quantisers by which FAISS finds OPQ's rotation, whatever the index has


def new(width: int, kind: str) -> Any:
    """An empty inner-product index of a factory string; InputError where it is none for vectors of this width."""
    import faiss

    try:
        index = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise InputError(f"--faiss {kind!r} is not a FAISS factory string for width {width} (Flat, HNSW32, SQ8 ...)") from None
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:  # as of HNSW over PQ
        raise InputError(f"--faiss {kind!r}: FAISS has no such index for inner products")
    _refuse_unfit(index, kind)
    for transform in transforms(index):
        if not isinstance(transform, (faiss.OPQMatrix, faiss.RandomRotationMatrix, faiss.RemapDimensionsTransform)):
            name = type(transform).__name__.removesuffix("Matrix").removesuffix("Transform")
            raise InputError(f"--faiss {kind!r}: {name} changes inner products (it centres or scales); OPQ and RR rotate only")
    return index


def _refuse_unfit(index: Any, kind: str) -> None:
    """InputError for kinds that FAISS makes but that cannot be filled block by block, or not with such vectors."""
    import faiss

    inner: Any = inner_index(index)
    if isinstance(index, faiss.IndexIDMap) or isinstance(inner, faiss.IndexIDMap):
        raise InputError(f"--faiss {kind!r}: ids are kept beside the index, in `docid`; leave IDMap out")
    if isinstance(inner, faiss.IndexNSG):
        raise InputError(f"--faiss {kind!r}: FAISS fills an NSG at once or not at all; take HNSW32")
    if isinstance(inner, faiss.IndexHNSW):
        graph: Any = inner.hnsw
        if graph.cum_nneighbor_per_level.size() < 3 or graph.nb_neighbors(1) < 2:  # of each floor the sum so far, from 0 on
            raise InputError(f"--faiss {kind!r}: a graph needs 2 links a document at least; take HNSW32")
    if getattr(inner, "nlist", 1) < 1:
        raise InputError(f"--faiss {kind!r}: there must be one inverted list at least")
    storage: Any = faiss.downcast_index(inner.storage) if isinstance(inner, faiss.IndexHNSW) else inner
    if getattr(getattr(storage, "sq", None), "qtype", None) == faiss.ScalarQuantizer.QT_8bit_direct:
        raise InputError(f"--faiss {kind!r} takes whole numbers from 0 to 255; take SQ8")


def transforms(index: Any) -> list[Any]:
    """What is done to vectors before they come into the index: OPQ's rotation, for one."""
    import faiss

    if isinstance(index, faiss.IndexRefine):
        return transforms(faiss.downcast_index(index.base_index))
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    chain: Any = index.chain
    return [faiss.downcast_VectorTransform(chain.at(number)) for number in range(chain.size())]


def inner_index(index: Any) -> Any:
    """The index behind OPQ and the like, and before the refinement of `,RFlat`."""
    import faiss

    while isinstance(index, (faiss.IndexPreTransform, faiss.IndexRefine)):
        index = faiss.downcast_index(index.index if isinstance(index, faiss.IndexPreTransform) else index.base_index)
    return index


def vector_bytes(index: Any) -> int:
    """Bytes that each vector takes in the index, about: its code, its id in an inverted list, its links in an HNSW graph."""
    import faiss

    if isinstance(index, faiss.IndexRefine):
        return vector_bytes(faiss.downcast_index(index.base_index)) + 4 * index.d
    inner = inner_index(index)
    if isinstance(inner, faiss.IndexHNSW):
        storage: Any = faiss.downcast_index(inner.storage)
        graph: Any = inner.hnsw
        return int(storage.code_size + 4 * (graph.nb_neighbors(0) + graph.nb_neighbors(1)))
    return int(getattr(inner, "code_size", 4 * index.d) + (8 if hasattr(inner, "nlist") else 0))


def needed(index: Any) -> tuple[int, str]:
    """How many vectors the index must be trained on at least, and what for."""
    import faiss

    inner = inner_index(index)
    pq = getattr(inner, "pq", None)
    lists, codes = int(getattr(inner, "nlist", 1)), int(pq.ksub) if pq is not None else 1
    parts = [(lists, f"{lists} inverted lists"), (codes, f"product quantisation with {codes} centroids")]
    if any(isinstance(transform, faiss.OPQMatrix) for transform in transforms(index)):
        parts.append((ROTATION_CENTROIDS, f"OPQ, whose rotation is found with {ROTATION_CENTROIDS} centroids"))
    return max(parts, key=lambda part: part[0])


def train_size(index: Any) -> int:
    """How many vectors the index is trained on at most."""
    return max(TRAIN_SAMPLE, PER_LIST * needed(index)[0])


def forecast(index: Any, sample: Floats, count: int) -> float:
    """Seconds that training and filling the index with `count` vectors take here, about, from a trial with a few of them.

    A graph takes n log n. Lists and product quantisers take comparisons with centroids, of whole vectors or of parts: in each
    round of training for each vector of the training sample, then once for each vector.
    """
    import faiss

    inner: Any = inner_index(index)
    seconds, trained = 0.0, min(count, train_size(index))
    for rotation in transforms(index):
        if isinstance(rotation, faiss.OPQMatrix):
            rounds = rotation.niter_pq_0 + (rotation.niter - 1) * rotation.niter_pq
            part = sample[:, : rotation.d_out // rotation.M]
            seconds += rotation.M * _comparison(part) * ROTATION_CENTROIDS * rounds * min(trained, rotation.max_train_points)
    if isinstance(inner, faiss.IndexHNSW):
        graph: Any = inner.hnsw
        trial: Any = faiss.IndexHNSWFlat(index.d, graph.nb_neighbors(1), faiss.METRIC_INNER_PRODUCT)
        begun = time.perf_counter()
        with faiss_training.one_thread(True):
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
    """Seconds that it takes to compare two of the vectors, where many are compared with a few hundred centroids."""
    import faiss

    many, few = np.tile(sample, (8, 1)), np.ascontiguousarray(sample[:ROTATION_CENTROIDS])  # so that starting threads is little
    trials = []
    for _ in range(3):
        begun = time.perf_counter()
        faiss.knn(many, few, 1)
        trials.append(time.perf_counter() - begun)
    return min(trials) / (len(many) * len(few))
