"""Document vectors made elsewhere: `.npy` with a file of ids, Pyserini's `embeddings.jsonl`, an existing index folder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyserini_kd.data.ids import unique_docs
from pyserini_kd.data.lines import json_id, json_line, numbered_lines, one_word
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.storage.arrays import Floats
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file

STEP = 8192  # vectors read from an index at a time


class Embedded(NamedTuple):
    """A document's id, its vector float32 (H,), and where it was read."""

    doc_id: str
    vector: Floats
    where: str


def read(path: Path, ids: Path | None, load: Callable[[Path], DenseIndex]) -> Iterator[Embedded]:
    """Stream vectors, checked: one width, no NaN or infinity, as many ids as vectors, no id twice.

    Args:
        path: an `.npy` array (N, H); Pyserini's `embeddings.jsonl`, or a folder of such files; or an index folder with `docid`.
        ids: with an `.npy` array, a file with the id of each row, one a line.
        load: opens an index folder (`DenseIndex.load`).

    Raises:
        InputError: naming file and line (`.npy`: the line of the id).
    """

    def opened() -> Iterator[Embedded]:
        if path.suffix == ".npy":
            if ids is None:
                raise InputError(f"{path} needs a file with the id of each row, one a line", "ids")
            return _npy(path, ids)
        if ids is not None:
            raise InputError(f"goes with an .npy file; {path} holds its own ids", "ids")
        return _index(path, load(path)) if (path / "docid").is_file() else _jsonl(path)

    def places(doc_id: str) -> Iterator[str]:
        return (one.where for one in opened() if one.doc_id == doc_id)

    return unique_docs(_checked(path, opened()), places)


def _checked(path: Path, found: Iterator[Embedded]) -> Iterator[Embedded]:
    width = None
    for one in found:
        width = width or len(one.vector)
        if one.vector.shape != (width,) or not width:
            raise InputError(f"{one.where}: vector of {one.vector.shape}, those before are of {width}")
        if not np.isfinite(one.vector).all():
            raise InputError(f"{one.where}: the vector of {one.doc_id!r} holds NaN, infinity or more than float32 can")
        yield one
    if width is None:
        raise InputError(f"{path} holds no vectors")


def _npy(path: Path, ids: Path) -> Iterator[Embedded]:
    require_file(path, "vectors")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path} is not a complete .npy array of numbers: {error}") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        raise InputError(f"{path}: expected an array (N, H) of floats, found shape {array.shape} of {array.dtype}")
    for row, line in enumerate(itertools.zip_longest(range(len(array)), numbered_lines(ids, "ids"))):
        if None in line:
            count = sum(1 for _ in numbered_lines(ids, "ids"))
            raise InputError(f"{path} has {len(array)} vectors, but {ids} {count} ids")
        where, doc_id = line[1]
        yield Embedded(one_word(doc_id, where), _float32(array[row]), where)


def _jsonl(path: Path) -> Iterator[Embedded]:
    files = sorted(path.glob("*.json*")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: a folder without .jsonl files, and without `index` and `docid`")
    for file in files:
        for where, line in numbered_lines(file, "vectors"):
            record = json_line(line, where)
            try:
                vector = np.array(record.get("vector"))
            except ValueError:  # lists of unequal length
                vector = np.array(None)
            if vector.ndim != 1 or vector.dtype.kind not in "fiu":
                raise InputError(f'{where}: expected {{"id": ..., "vector": [numbers]}}, as Pyserini writes')
            yield Embedded(json_id(record, ("id",), where), _float32(vector), where)


def _index(folder: Path, index: DenseIndex) -> Iterator[Embedded]:
    for start in range(0, len(index.doc_ids), STEP):
        some: list[str] = index.doc_ids[start : start + STEP]
        found = index.store.reconstruct(np.arange(start, start + len(some)))
        for row, (doc_id, vector) in enumerate(zip(some, found, strict=True), start=start + 1):
            yield Embedded(doc_id, vector, f"{folder / 'docid'}:{row}")


def _float32(vector: npt.ArrayLike) -> Floats:
    with np.errstate(over="ignore"):
        return np.asarray(vector, dtype=np.float32)
