"""The document ids of an index: the lines of `docid` and where each begins. Only ids that were asked for become strings.

8.8 million ids like MS MARCO's take 0.18 GB, and 0.1 more once documents are looked up by id. A dictionary of strings would
take 1.2 GB.
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

CHUNK = 1 << 16  # ids that are strings at the same time when all are read


class DocIds(Sequence[str]):
    """Ids by row, and rows by id."""

    def __init__(self, lines: bytes) -> None:
        """Take the lines of one `docid` file or of several, each ended by a newline."""
        self._lines = lines
        ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n"))
        self._starts = np.zeros(len(ends) + 1, np.uint32 if len(lines) < 1 << 32 else np.uint64)
        self._starts[1:] = ends + 1
        self._strings = np.zeros(len(ends), object)  # 0 where nobody has asked yet
        self._asked: list[Rows] = []

    @classmethod
    def read(cls, *folders: Path) -> DocIds:
        """The ids of some index folders, in their order, without blanks at the ends of lines; InputError if there are none."""
        return cls(b"".join(map(_read, folders)))

    @classmethod
    def join(cls, parts: Iterable[DocIds]) -> DocIds:
        """The ids of several, one after the other."""
        return cls(b"".join(part._lines for part in parts))

    def __len__(self) -> int:
        return len(self._strings)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        """The id of a row, or the ids of a slice without steps."""
        if not isinstance(row, slice):
            if not 0 <= row < len(self):
                raise IndexError(row)
            return self._lines[int(self._starts[row]) : int(self._starts[row + 1]) - 1].decode()
        if row.step not in (None, 1):
            raise ValueError("ids come without steps")
        first, end, _ = row.indices(len(self))
        return self._lines[int(self._starts[first]) : int(self._starts[max(end, first)])].decode().split("\n")[:-1]

    def __iter__(self) -> Iterator[str]:
        """All ids, a few at a time in memory."""
        return chain.from_iterable(self[start : start + CHUNK] for start in range(0, len(self), CHUNK))

    def take(self, rows: Rows) -> list[str]:
        """The ids of some rows. Until `forget` a document is always the same string object."""
        found = self._strings[rows]
        unknown = found == 0
        if unknown.any():
            missing, lines = rows[unknown], self._lines
            begins, ends = self._starts[missing].tolist(), self._starts[missing + 1].tolist()
            found[unknown] = [lines[begin : end - 1].decode() for begin, end in zip(begins, ends, strict=True)]
            self._strings[missing] = found[unknown]
            self._asked.append(missing)
        ids: list[str] = found.tolist()
        return ids

    def forget(self) -> None:
        """Drop all strings. Otherwise a service would keep one for every document that was ever found."""
        asked, self._asked = self._asked, []
        for rows in asked:
            self._strings[rows] = 0

    def rows(self, doc_ids: Iterable[str]) -> Rows:
        """The row of each id, -1 for unknown ids."""
        return np.fromiter(map(self.row, doc_ids), np.int64)

    def row(self, doc_id: str) -> int:
        """The first row of an id, -1 for an unknown id."""
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
        """The first id that repeats an earlier one; None if all differ."""
        hashes, rows = self._by_hash
        repeats = np.sort(rows[1:][hashes[1:] == hashes[:-1]]).tolist()
        return next((self[row] for row in repeats if self.row(self[row]) != row), None)

    def get_ready(self) -> None:
        """Prepare the look-up by id now, not at its first use: a third of a second per million ids."""
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
    is_foreign = any(space in lines for space in (b" \n", b"\t\n", b"\r\n"))  # ours are one word
    return re.sub(rb"[ \t\r]+\n", b"\n", lines) if is_foreign else lines
