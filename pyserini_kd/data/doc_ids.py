"""Document ids of an index: the bytes of `docid` and the offset of each line. Only requested ids become strings.

The 8.8 million ids of MS MARCO take 0.18 GB, and look-up by id takes 0.1 GB more. A dictionary of strings takes 1.2 GB.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from pyserini_kd.storage.arrays import Rows
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file

CHUNK = 1 << 16  # ids decoded at a time when all ids are read


class DocIds(Sequence[str]):
    """A sequence of document ids by row, with look-up of rows by id."""

    def __init__(self, lines: bytes) -> None:
        """Take the content of one or more `docid` files; every line ends with a newline."""
        self._lines = lines
        ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n"))
        self._starts = np.zeros(len(ends) + 1, np.uint32 if len(lines) < 1 << 32 else np.uint64)
        self._starts[1:] = ends + 1
        self._strings = np.zeros(len(ends), object)  # 0 until an id is decoded
        self._decoded: list[Rows] = []

    @classmethod
    def read(cls, *folders: Path) -> DocIds:
        """Read `docid` of each index folder, in order, without trailing blanks; InputError if missing, empty or not UTF-8."""
        return cls(b"".join(map(_read, folders)))

    @classmethod
    def join(cls, parts: Iterable[DocIds]) -> DocIds:
        """Concatenate several id sequences."""
        return cls(b"".join(part._lines for part in parts))

    def __len__(self) -> int:
        return len(self._strings)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        """The id of a row, or the ids of a slice with step 1."""
        if not isinstance(row, slice):
            if not 0 <= row < len(self):
                raise IndexError(row)
            return self._lines[int(self._starts[row]) : int(self._starts[row + 1]) - 1].decode()
        if row.step not in (None, 1):
            raise ValueError("slices of ids must have step 1")
        first, end, _ = row.indices(len(self))
        return self._lines[int(self._starts[first]) : int(self._starts[max(end, first)])].decode().split("\n")[:-1]

    def __iter__(self) -> Iterator[str]:
        """Iterate over all ids; only CHUNK of them are decoded at a time."""
        return chain.from_iterable(self[start : start + CHUNK] for start in range(0, len(self), CHUNK))

    def take(self, rows: Rows) -> list[str]:
        """The ids of rows. The same row gives the same string object until `forget` is called."""
        found = self._strings[rows]
        missing = found == 0
        if missing.any():
            new_rows, lines = rows[missing], self._lines
            begins, ends = self._starts[new_rows].tolist(), self._starts[new_rows + 1].tolist()
            found[missing] = [lines[begin : end - 1].decode() for begin, end in zip(begins, ends, strict=True)]
            self._strings[new_rows] = found[missing]
            self._decoded.append(new_rows)
        ids: list[str] = found.tolist()
        return ids

    def forget(self) -> None:
        """Drop all decoded strings, so that a service does not collect one for every document it ever returns."""
        decoded, self._decoded = self._decoded, []
        for rows in decoded:
            self._strings[rows] = 0

    def rows(self, doc_ids: Iterable[str]) -> Rows:
        """The row of each id as int64; -1 for unknown ids."""
        return np.fromiter(map(self.row, doc_ids), np.int64)

    def row(self, doc_id: str) -> int:
        """The first row of an id; -1 for an unknown id."""
        hashes, rows = self._by_hash
        key = hash(doc_id)
        place = int(hashes.searchsorted(key))
        while place < len(hashes) and hashes[place] == key:
            if self[row := int(rows[place])] == doc_id:
                return row
            place += 1
        return -1

    def __contains__(self, doc_id: object) -> bool:
        return isinstance(doc_id, str) and self.row(doc_id) >= 0

    def twice(self) -> str | None:
        """The first duplicate id, or None."""
        hashes, rows = self._by_hash
        repeats = np.sort(rows[1:][hashes[1:] == hashes[:-1]]).tolist()
        return next((self[row] for row in repeats if self.row(self[row]) != row), None)

    def get_ready(self) -> None:
        """Build the look-up by id now instead of at first use; this takes a third of a second per million ids."""
        _ = self._by_hash

    @functools.cached_property
    def _by_hash(self) -> tuple[Rows, npt.NDArray[np.uint32]]:
        """The sorted hashes of the ids, and the row of each."""
        hashes = np.fromiter(map(hash, self), np.int64, len(self))
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order.astype(np.uint32)


def _read(folder: Path) -> bytes:
    path = require_file(folder / "docid", "docid file")
    lines = path.read_bytes()
    try:
        lines.isascii() or lines.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    lines += b"" if lines.endswith(b"\n") else b"\n"
    is_foreign = any(space in lines for space in (b" \n", b"\t\n", b"\r\n"))  # our own ids have no blanks
    return re.sub(rb"[ \t\r]+\n", b"\n", lines) if is_foreign else lines
