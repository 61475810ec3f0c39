"""Stores of document vectors: FAISS, Lucene, or several joined. `open_store` opens the store of an index folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np

from pyserini_kd.retrieval import lucene
from pyserini_kd.retrieval.faiss_kinds import FaissIndex, has_graph, inner_index, layers
from pyserini_kd.retrieval.lucene_vectors import LuceneStore
from pyserini_kd.storage.arrays import Floats, Nearest, Rows
from pyserini_kd.storage.errors import InputError

FAISS: Any = faiss  # the stubs lack the arguments of search parameters


class VectorStore(Protocol):
    """Document vectors by row, compared by inner product."""

    width: int  # H, the length of a vector
    count: int  # N, the number of vectors
    is_exact: bool  # vectors are not quantised

    def search(self, query_vecs: Floats, k: int, *, ef_search: int | None = None, nprobe: int | None = None) -> Nearest:
        """The k best vectors for each query (Q, H): scores float32 (Q, k) and rows int64 (Q, k), best first.

        A row is -1 where fewer than k are found. `ef_search` is the queue length of an HNSW graph, `nprobe` the number of
        inverted lists visited; InputError if the store has no graph or no lists.
        """

    def reconstruct(self, rows: Rows) -> Floats:
        """Stored vectors float32 (N, H) of some rows; approximate if the store is not exact."""


class FaissStore:
    """Vectors in a FAISS index; `name` names it in messages."""

    def __init__(self, index: FaissIndex, name: str = "this index") -> None:
        self._index, self._name = index, name
        self.width, self.count = int(index.d), int(index.ntotal)
        self.is_exact = type(index) in (faiss.IndexFlat, faiss.IndexFlatIP)

    def search(self, query_vecs: Floats, k: int, *, ef_search: int | None = None, nprobe: int | None = None) -> Nearest:
        """See `VectorStore.search`."""
        depth = None if ef_search is None and nprobe is None else self._depth(ef_search, nprobe)
        return self._index.search(query_vecs, k, params=depth)

    def _depth(self, ef_search: int | None, nprobe: int | None) -> object:
        """FAISS's parameters for one search."""
        inner = inner_index(self._index)
        has_lists = isinstance(inner, faiss.IndexIVF)
        graph = faiss.downcast_index(inner.quantizer) if has_lists else inner
        if ef_search is not None and not has_graph(graph):
            raise InputError(f"is for HNSW indexes; {self._name} is not one", "ef_search")
        if nprobe is not None and not has_lists:
            raise InputError(f"is for IVF indexes; {self._name} is not one", "nprobe")
        depth: object = None
        if ef_search is not None:
            depth = FAISS.SearchParametersHNSW(efSearch=ef_search)
        if has_lists:
            depth = FAISS.SearchParametersIVF(nprobe=nprobe or inner.nprobe, quantizer_params=depth)
        return _wrapped(self._index, depth)

    def reconstruct(self, rows: Rows) -> Floats:
        """See `VectorStore.reconstruct`; InputError for `fs` codes, which FAISS cannot read back."""
        if "FastScan" in type(inner_index(self._index)).__name__:  # FAISS would crash
            raise InputError("vectors cannot be read back from a FAISS index of the kind `fs`")
        ivf: FaissIndex = faiss.try_extract_index_ivf(self._index)
        if ivf is not None:
            ivf.make_direct_map()
        return self._index.reconstruct_batch(rows)


def _wrapped(index: FaissIndex, depth: object) -> object:
    """Wrap parameters of the innermost index in those of its outer indexes (OPQ, refinement)."""
    if isinstance(index, faiss.IndexPreTransform):
        return FAISS.SearchParametersPreTransform(index_params=_wrapped(faiss.downcast_index(index.index), depth))
    if isinstance(index, faiss.IndexRefine):
        base = _wrapped(faiss.downcast_index(index.base_index), depth)
        return FAISS.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=base)
    return depth


class JoinedStore:
    """Several stores as one; row numbers continue across stores."""

    def __init__(self, parts: Sequence[VectorStore]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(part.count for part in parts)]).tolist()
        self.width, self.count = parts[0].width, self._starts[-1]
        self.is_exact = all(part.is_exact for part in parts)

    def search(self, query_vecs: Floats, k: int, *, ef_search: int | None = None, nprobe: int | None = None) -> Nearest:
        """See `VectorStore.search`."""
        found = [part.search(query_vecs, k, ef_search=ef_search, nprobe=nprobe) for part in self._parts]
        rows = [np.where(rows < 0, rows, rows + start) for (_, rows), start in zip(found, self._starts, strict=False)]
        scores = np.stack([scores for scores, _ in found])
        return faiss.merge_knn_results(scores, np.stack(rows), keep_max=True)

    def reconstruct(self, rows: Rows) -> Floats:
        """See `VectorStore.reconstruct`."""
        vectors = np.empty((len(rows), self.width), np.float32)
        for part, start in zip(self._parts, self._starts, strict=False):
            here = (rows >= start) & (rows < start + part.count)
            if here.any():
                vectors[here] = part.reconstruct(rows[here] - start)
        return vectors


def open_store(folder: Path, mmap: bool = False, foreign: bool = True, any_metric: bool = False) -> VectorStore:
    """Open the vectors of an index folder: `index` (FAISS) or a Lucene index.

    With `mmap`, FAISS's vectors stay on disk, as Lucene's always do. In a `foreign` folder, perhaps from another program, row
    numbers are checked. With `any_metric`, an index with L2 distance is opened too, to read its vectors.

    Raises:
        InputError: there are no vectors, their metric is not inner product, or they have their own row numbers.
    """
    path = folder / "index"
    if not path.is_file():
        if lucene.is_lucene_index(folder):
            return LuceneStore(folder)
        raise InputError(f"index folder {folder} is incomplete: no file index (expected index and docid)")
    index = read_faiss(path, mmap)
    parts = list(layers(index))
    if foreign and (any(isinstance(part, faiss.IndexIDMap) for part in parts) or _has_own_rows(index)):
        raise InputError(f"{path} has its own ids; only rows in the order of the docid file can be searched")
    if not any_metric and any(part.metric_type != faiss.METRIC_INNER_PRODUCT for part in parts):
        raise InputError(
            f"{path} uses L2 distance; only inner-product indexes can be searched, and "
            f"`pyserini-kd index --vectors {folder} --index NEW` makes one of its vectors"
        )
    return FaissStore(index, str(folder))


def _has_own_rows(index: FaissIndex) -> bool:
    """Whether inverted lists have row numbers beyond the index."""
    ivf: FaissIndex = faiss.try_extract_index_ivf(index)
    if ivf is None:
        return False
    lists = faiss.downcast_InvertedLists(ivf.invlists)
    sizes = [(number, lists.list_size(number)) for number in range(ivf.nlist)]
    return any(faiss.rev_swig_ptr(lists.get_ids(number), size).max() >= index.ntotal for number, size in sizes if size)


def read_faiss(path: Path, mmap: bool = False) -> FaissIndex:
    """Read a FAISS index file; InputError if it is not one."""
    flags = [0]
    if mmap:  # the first maps all but inverted lists, where it fails; the second maps only those
        flags = [faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_MMAP, faiss.IO_FLAG_MMAP]
    for flag in flags:
        try:
            return faiss.read_index(str(path), flag)
        except RuntimeError as caught:
            error = caught
    raise InputError(f"{path} is not a FAISS index: {str(error).splitlines()[0]}") from error
