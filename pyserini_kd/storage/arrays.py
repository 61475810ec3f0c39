"""Arrays in memory or in files. With files, memory holds only the rows in use."""

import itertools
import math
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]
Nearest = tuple[Floats, Rows]  # scores and rows, each (Q, k), of the nearest vectors of each query, best first
AnyArray = npt.NDArray[Any]

T = TypeVar("T")

SPAN = 1 << 16  # rows processed at a time


def save(out: IO[bytes], array: AnyArray) -> None:
    """Like `np.save`, but fails when the disk is full; NumPy does not notice a truncated file."""
    array = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(out, np.lib.format.header_data_from_array_1_0(array))
    out.write(array.data)


def keep(path: Path, array: AnyArray) -> None:
    """Write an array to an `.npy` file, atomically."""
    with atomic_file(path, binary=True) as out:
        save(out, array)


def column(folder: Path | None, count: int, dtype: npt.DTypeLike) -> AnyArray:
    """`count` zeros in memory, or in an unnamed file in `folder`; `let_go` frees the memory of the latter."""
    if folder is None or not count:
        return np.zeros(count, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        for rows in spans(count):  # a full disk is an error here; later, a write to the map would crash
            file.write(bytes((rows.stop - rows.start) * np.dtype(dtype).itemsize))
        file.flush()
        return np.memmap(file, dtype, "r+", shape=(count,))


def let_go(*columns: AnyArray) -> None:
    """Free the memory of columns in files. Their content stays in the files."""
    for values in columns:
        owner: object = values
        while isinstance(owner, np.ndarray):
            owner = owner.base
        if isinstance(owner, mmap.mmap):
            owner.madvise(mmap.MADV_DONTNEED)


def spans(count: int) -> Iterator[slice]:
    """Slices of at most SPAN rows that cover `count` rows."""
    return (slice(start, min(start + SPAN, count)) for start in range(0, count, SPAN))


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut a stream into lists of `size` items; the last may be shorter.

    >>> list(chunks("abc", 2))
    [['a', 'b'], ['c']]
    """
    rest = iter(items)
    return iter(lambda: list(itertools.islice(rest, size)), [])


def count_numbers(folder: Path) -> int:
    """How many numbers the safetensors files of a folder hold; InputError if there is no such file."""
    from safetensors import safe_open

    files, count = sorted(folder.glob("*.safetensors")), 0
    if not files:
        raise InputError(f"{folder} has no *.safetensors to count")
    for path in files:
        with safe_open(path, "np") as weights:
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return count
