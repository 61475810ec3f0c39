"""Open FAISS and Lucene vectors, tune the search, join several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyserini_kd.retrieval import lucene, lucene_vectors
from pyserini_kd.retrieval.faiss_kinds import inner_index
from pyserini_kd.storage.errors import InputError

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def read(folder: Path, mmap: bool, *, foreign: bool = True) -> Any:
    """Open the vectors of an index folder; InputError where there are none, or they are not compared by inner product.

    With `mmap` FAISS leaves them on disk, as Lucene always does. A `foreign` index may have ids of its own.
    """
    import faiss

    if not (folder / "index").is_file():
        if lucene.is_lucene_index(folder):
            return lucene_vectors.VectorIndex(folder)
        raise InputError(f"index folder {folder} is incomplete: no file `index` (expected `index` and `docid`)")
    index = read_faiss(folder / "index", mmap)
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise InputError(f"{folder / 'index'} measures L2 distance; only inner-product indexes are searched")
    if foreign and (isinstance(index, faiss.IndexIDMap) or _numbered_otherwise(index)):
        raise InputError(f"{folder / 'index'} has ids of its own; only rows that `docid` names in their order are searched")
    return index


def _numbered_otherwise(index: Any) -> bool:
    """Whether the inverted lists of an index, if it has any, name a row that it does not have."""
    import faiss

    ivf: Any = faiss.try_extract_index_ivf(index)
    lists: Any = faiss.downcast_InvertedLists(ivf.invlists) if ivf is not None else None
    sizes = [(number, lists.list_size(number)) for number in range(ivf.nlist)] if lists is not None else []
    return any(faiss.rev_swig_ptr(lists.get_ids(n), size).max() >= index.ntotal for n, size in sizes if size)


def read_faiss(path: Path, mmap: bool) -> Any:
    """Read a FAISS index file; InputError where it is none."""
    import faiss

    flags = [0]
    if mmap:  # the first maps everything, but refuses inverted lists; the second maps those alone
        flags = [faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_MMAP, faiss.IO_FLAG_MMAP]
    for flag in flags:
        try:
            return faiss.read_index(str(path), flag)
        except RuntimeError as caught:
            error = caught
    raise InputError(f"{path} is not a FAISS index: {str(error).splitlines()[0]}") from error


def is_flat(index: Any) -> bool:
    """Whether an index keeps its vectors as they are."""
    import faiss

    return type(index) in (faiss.IndexFlat, faiss.IndexFlatIP)


def tune(index: Any, folder: Path, ef_search: int | None = None, nprobe: int | None = None) -> None:
    """Set how thoroughly an approximate index is searched; InputError where it is not of the kind that has the setting."""
    import faiss

    if isinstance(index, Joined):
        for part in index.parts:
            tune(part, folder, ef_search, nprobe)
        return
    for option, name, value, kind in (("--ef-search", "efSearch", ef_search, "HNSW"), ("--nprobe", "nprobe", nprobe, "IVF")):
        if value is None:
            continue
        if isinstance(index, lucene_vectors.VectorIndex) and kind == "HNSW" and index.has_graph:
            index.ef_search = value
            continue
        try:
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        except (RuntimeError, TypeError, AttributeError):
            raise InputError(f"{option} is for {kind} indexes; {folder} is none") from None


class Joined:
    """Several indexes as one: rows are counted through."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts, self.d = parts, parts[0].d
        self.starts = np.cumsum([0, *(part.ntotal for part in parts)])
        self.ntotal = int(self.starts[-1])

    def search(self, query_vecs: Floats, k: int) -> tuple[Floats, Rows]:
        """Scores float32 (Q, k) and rows int64 (Q, k), best first; row -1 where there are fewer than k."""
        import faiss

        found = [part.search(query_vecs, k) for part in self.parts]
        rows = [np.where(rows < 0, rows, rows + start) for (_, rows), start in zip(found, self.starts, strict=False)]
        merged: tuple[Floats, Rows] = faiss.merge_knn_results(np.stack([s for s, _ in found]), np.stack(rows), keep_max=True)
        return merged


def vectors_of(index: Any, rows: Rows) -> Floats:
    """Stored vectors float32 (N, H) of rows; approximate where the index quantises."""
    import faiss

    if isinstance(index, Joined):
        vectors = np.empty((len(rows), index.d), np.float32)
        for part, start in zip(index.parts, index.starts, strict=False):
            here = (rows >= start) & (rows < start + part.ntotal)
            if here.any():
                vectors[here] = vectors_of(part, rows[here] - start)
        return vectors
    if not isinstance(index, lucene_vectors.VectorIndex):
        if "FastScan" in type(inner_index(index)).__name__:  # FAISS crashes
            raise InputError("vectors cannot be read back from a FAISS index of the kind `fs`")
        ivf: Any = faiss.try_extract_index_ivf(index)
        if ivf is not None:
            ivf.make_direct_map()
    found: Floats = index.reconstruct_batch(rows)
    return found
