"""Write FAISS index files without holding the index in memory: Flat, scalar-quantised, and those with inverted lists.

The bytes are those that `faiss.write_index` writes of an index that was filled in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pyserini_kd.retrieval.faiss_kinds import FaissIndex
from pyserini_kd.storage.arrays import Floats, let_go

COUNT = 8  # byte of an index file at which its number of vectors stands, behind its kind (4 bytes) and width (4)
NO_LISTS = 12  # bytes at the end of a file without vectors: `sprs` and the number 0


def streams(index: FaissIndex) -> bool:
    """Whether the index can be written block by block."""
    import faiss

    with_lists = (faiss.IndexIVFFlat, faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer)
    return _is_plain(index) or type(_behind(index)) in with_lists  # exact types: others (Panorama, Dedup) differ on disk


def _is_plain(index: FaissIndex) -> bool:
    import faiss

    return type(index) in (faiss.IndexFlat, faiss.IndexFlatIP, faiss.IndexScalarQuantizer)


def _behind(index: FaissIndex) -> FaissIndex:
    """The index behind a transform such as OPQ, or the index itself."""
    import faiss

    return faiss.downcast_index(index.index if isinstance(index, faiss.IndexPreTransform) else index)


def write(index: FaissIndex, blocks: Iterable[Floats], total: int, path: Path) -> None:
    """Write an empty, trained index with the `total` vectors of the blocks.

    Memory holds a block, and 12 bytes a vector while inverted lists are sorted; disk holds their codes twice meanwhile.
    """
    if _is_plain(index):
        _write_codes(index, blocks, total, path)
    else:
        _write_lists(index, _behind(index), blocks, total, path)


def _write_codes(index: FaissIndex, blocks: Iterable[Floats], total: int, path: Path) -> None:
    """Header with the count, number of codes, codes."""
    import faiss

    head = bytearray(faiss.serialize_index(index).tobytes())
    unit = 4 if isinstance(index, faiss.IndexFlat) else 1  # a Flat index counts floats, the others bytes
    head[COUNT : COUNT + 8] = total.to_bytes(8, "little")
    head[-8:] = int(total * index.code_size // unit).to_bytes(8, "little")
    with open(path, "wb") as out:
        out.write(head)
        for block in blocks:
            out.write(index.sa_encode(block).tobytes())


def _write_lists(index: FaissIndex, inner: FaissIndex, blocks: Iterable[Floats], total: int, path: Path) -> None:
    """Header with the count, sizes of the lists, and for each list its codes and then its rows."""
    import faiss

    unsorted = path.with_name(f"{path.name}.codes")
    number = inner.coarse_code_size()  # bytes before a code that tell its list
    lists = np.empty(total, np.int32)
    done = 0
    with open(unsorted, "wb") as out:
        for block in blocks:
            codes = index.sa_encode(block)
            wide = np.zeros((len(codes), 4), np.uint8)
            wide[:, :number] = codes[:, :number]
            lists[done : done + len(codes)] = wide.view("<i4")[:, 0]
            out.write(codes.tobytes())
            done += len(codes)
    sizes = np.bincount(lists, minlength=inner.nlist)
    rows = np.argsort(lists, kind="stable")
    del lists
    used = np.flatnonzero(sizes)
    few = len(used) <= inner.nlist // 2
    listed = np.stack([used, sizes[used]], axis=1).ravel() if few else sizes
    head = bytearray(faiss.serialize_index(index).tobytes())
    own = len(head) - len(faiss.serialize_index(inner))  # where the index behind OPQ or the like begins
    for start in {0, own}:
        head[start + COUNT : start + COUNT + 8] = total.to_bytes(8, "little")
    head[-NO_LISTS:] = (b"sprs" if few else b"full") + len(listed).to_bytes(8, "little") + listed.astype("<u8").tobytes()
    codes = np.memmap(unsorted, np.uint8, "r", shape=(total, number + inner.code_size))
    with open(path, "wb") as out:
        out.write(head)
        for some in np.split(rows, np.cumsum(sizes)[:-1]):
            out.write(codes[some, number:].tobytes())
            out.write(some.astype("<i8").tobytes())
            let_go(codes)
    unsorted.unlink()
