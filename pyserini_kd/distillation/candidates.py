"""Candidates: groups of labelled documents, one group per training query, and their files."""

import gzip
import itertools
import json
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from pyserini_kd.data.lines import numbered_lines, text_kind
from pyserini_kd.storage.arrays import Ints
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, read_at, require_file

READ_GROUPS = 4096  # groups read at a time; a multiple of STRIDE
STRIDE = 16  # one line offset is kept for every STRIDE groups


class Group(NamedTuple):
    """One query's candidates: G doc_ids, G labels (1 relevant, 0 not) and the block of the group (-1: none)."""

    query_id: str
    doc_ids: list[str]
    labels: list[int]
    block: int


class Groups(Sequence[Group]):
    """Groups to train on, in memory. Subclasses read them from a file.

    Attributes:
        unit: the name of a group in messages and records.
        folder: the folder for columns of numbers about the groups; None keeps columns in memory.
    """

    unit = "queries"
    folder: Path | None = None

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups

    def __getitem__(self, row: int) -> Group:  # type: ignore[override]
        return self._groups[row]

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def n_docs(self) -> int:
        """Number of documents of all groups. A document counts once for each group."""
        return sum(len(group.doc_ids) for group in self)

    def blocks(self) -> npt.NDArray[np.int64] | None:
        """Return the block of each group (-1: none), or None if no two groups share a block."""
        return np.fromiter((group.block for group in self), np.int64, len(self))

    def lengths(self, docs: Mapping[str, str]) -> Ints:
        """Return the length of the longest document of each group, in characters."""
        return np.fromiter((max(len(docs[doc_id]) for doc_id in group.doc_ids) for group in self), np.int32, len(self))


def as_groups(groups: Sequence[Group]) -> Groups:
    """Wrap a sequence of groups as `Groups`."""
    return groups if isinstance(groups, Groups) else Groups(groups)


def n_docs(groups: Sequence[Group]) -> int:
    """Number of documents of all groups. A document counts once for each group."""
    return as_groups(groups).n_docs


def pairs(group: Group) -> Iterator[tuple[str, str]]:
    """Yield all (positive, negative) pairs of a group."""
    positives = [d for d, label in zip(group.doc_ids, group.labels, strict=True) if label > 0]
    negatives = [d for d, label in zip(group.doc_ids, group.labels, strict=True) if label <= 0]
    return itertools.product(positives, negatives)


def write_candidates(groups: Iterable[Group], path: str | Path, *, overwrite: bool = False) -> None:
    """Write groups as JSON lines, or as triples (`query_id<TAB>pos_id<TAB>neg_id`) if the path ends in .tsv or .tsv.gz."""
    as_triples = str(path).removesuffix(".gz").endswith(".tsv")
    with atomic_file(path, overwrite=overwrite) as out:
        for group in groups:
            if as_triples:
                out.writelines(f"{group.query_id}\t{pos}\t{neg}\n" for pos, neg in pairs(group))
            else:
                out.write(json.dumps(group._asdict()) + "\n")


class Candidates(Groups):
    """The groups of a candidates file. Opening checks every line; access reads lines again.

    Memory holds half a byte per group: the offset of every STRIDEth line.
    """

    def __init__(self, path: str | Path) -> None:
        """Open groups (JSON lines) or triples (TSV). A triple becomes a group of two without a block.

        Raises:
            InputError: a line is malformed; a group has no positive, no negative, or a document twice; the file is empty.
        """
        self.path = require_file(path, "candidates file")
        self._file = _unpacked(self.path)
        self._starts, end, self._count, self._n_docs = array("q"), 0, 0, 0
        with open(self._file.fileno(), "rb", closefd=False) as raw:
            for (where, line), data in zip(numbered_lines(self.path, "candidates file", blank=True), raw, strict=True):
                if line.strip():
                    group = _group(line, where)
                    _check_group(group, where)
                    if self._count % STRIDE == 0:
                        self._starts.append(end)
                    self._count += 1
                    self._n_docs += len(group.doc_ids)
                end += len(data)
        if not self._count:
            raise InputError(f"candidates file is empty: {path}")
        self._starts.append(end)

    @property
    def n_docs(self) -> int:
        """Number of documents of all groups. A document counts once for each group."""
        return self._n_docs

    def _lines(self, first: int, last: int) -> Iterator[str]:
        """Yield the lines of groups `first` (a multiple of STRIDE) to `last`, and possibly some more."""
        start, end = self._starts[first // STRIDE], self._starts[-(-last // STRIDE)]
        text = read_at(self._file.fileno(), end - start, start).decode("utf-8" if start else "utf-8-sig")
        return (line.rstrip("\r") for line in text.split("\n") if line.strip())

    def __getitem__(self, row: int) -> Group:  # type: ignore[override]
        if not 0 <= row < len(self):
            raise IndexError(row)
        offset = row % STRIDE
        return _group(next(itertools.islice(self._lines(row - offset, row + 1), offset, None)), str(self.path))

    def __iter__(self) -> Iterator[Group]:
        """Yield the groups in file order."""
        for first in range(0, len(self), READ_GROUPS):
            yield from (_group(line, str(self.path)) for line in self._lines(first, min(first + READ_GROUPS, len(self))))

    def __len__(self) -> int:
        return self._count


def read_candidates(path: str | Path) -> Candidates:
    """Open groups (JSON lines) or triples (TSV)."""
    return Candidates(path)


def _unpacked(path: Path) -> IO[bytes]:
    """Open the file. A .gz file is unpacked into a temporary file, which is deleted on close."""
    if path.suffix != ".gz":
        return open(path, "rb", buffering=0)
    for _ in numbered_lines(path, "candidates file"):  # raises a precise error for a damaged file
        pass
    unpacked = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - stays open
    with gzip.open(path) as packed:
        shutil.copyfileobj(packed, unpacked)
    unpacked.seek(0)
    return unpacked


def _check_group(group: Group, where: str) -> None:
    if not any(label > 0 for label in group.labels):
        raise InputError(f"{where}: query {group.query_id} has no positive document")
    if all(label > 0 for label in group.labels):
        raise InputError(f"{where}: query {group.query_id} has no negative document")
    if len(set(group.doc_ids)) != len(group.doc_ids):
        raise InputError(f"{where}: query {group.query_id} lists a document twice")


def _group(line: str, where: str) -> Group:
    """Parse a line: a JSON object or a triple."""
    if line.lstrip().startswith("{"):
        return _json_group(line, where)
    fields = line.split("\t")
    if len(fields) != 3 or " " in line.strip():
        raise InputError(f"{where}: expected `query_id<TAB>pos_id<TAB>neg_id`, found {len(fields)} columns{text_kind(line)}")
    return Group(fields[0], fields[1:], [1, 0], -1)


def _json_group(line: str, where: str) -> Group:
    try:
        record = json.loads(line)
        listed, labels, block = record["doc_ids"], record["labels"], record.get("block", -1)
        if not (isinstance(listed, list) and isinstance(labels, list) and all(type(n) is int for n in [*labels, block])):
            raise TypeError
        np.array([*labels, block], np.int64)  # OverflowError for more than 64 bits
        group = Group(str(record["query_id"]), [str(d) for d in listed], labels, block)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        raise InputError(f"{where}: expected an object with query_id, doc_ids, labels and block") from None
    if len(group.doc_ids) != len(group.labels):
        raise InputError(f"{where}: {len(group.doc_ids)} doc_ids but {len(group.labels)} labels")
    return group
