"""Columns of numbers that may lie in files, so that memory holds only what is worked on."""

from __future__ import annotations

import itertools
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt

from pyserini_kd.storage.files import atomic_file

T = TypeVar("T")
Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]

SPAN = 1 << 16  # rows worked on at a time


def save(out: IO[bytes], array: npt.NDArray[Any]) -> None:
    """`np.save` that fails where the disk is full: NumPy's own writes past Python and overlooks that the end was lost."""
    array = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(out, np.lib.format.header_data_from_array_1_0(array))
    out.write(array.data)


def keep(path: Path, array: npt.NDArray[Any]) -> None:
    """An array in a file of its own, which is there whole or not at all."""
    with atomic_file(path, binary=True) as out:
        save(out, array)


def column(folder: Path | None, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Room for `count` numbers, 0 at first: in memory, or in a nameless file of a folder, whose memory can be `let_go` of."""
    if folder is None or not count:
        return np.zeros(count, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        for some in spans(count):  # on a full disk an error here, a crash when memory is written to
            file.write(bytes((some.stop - some.start) * np.dtype(dtype).itemsize))
        file.flush()
        return np.memmap(file, dtype, "r+", shape=(count,))


def let_go(*columns: npt.NDArray[Any]) -> None:
    """Give the memory of columns that lie in files back; what was written to them stays."""
    for values in columns:
        owner: object = values
        while isinstance(owner, np.ndarray):
            owner = owner.base
        if isinstance(owner, mmap.mmap):
            owner.madvise(mmap.MADV_DONTNEED)


def spans(count: int) -> Iterator[slice]:
    """`count` rows, some at a time."""
    return (slice(start, min(start + SPAN, count)) for start in range(0, count, SPAN))


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items of a stream, `size` at a time.

    >>> list(chunks("abc", 2))
    [['a', 'b'], ['c']]
    """
    rest = iter(items)
    return iter(lambda: list(itertools.islice(rest, size)), [])
