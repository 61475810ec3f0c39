"""The published score files of Hofstätter et al. 2020: 40 million teacher-scored triples, on disk.

A file has five tab-separated columns and no header: `pos_score neg_score query_id pos_id neg_id`. For training it is converted
once into an array in a file; afterwards a triple is 24 bytes read from there.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd.data.lines import numbered_lines
from pyserini_kd.distillation.candidates import Group, Groups, pairs
from pyserini_kd.distillation.text_store import Texts
from pyserini_kd.storage.arrays import Ints, chunks
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, require_file
from pyserini_kd.storage.records import read_json, write_json

logger = logging.getLogger(__name__)

BLOCK = 1 << 16  # triples converted, or read, at a time
RECORD = np.dtype("<i4, <i4, <i4, <f4, <f4, <i4")
RECORD.names = ("query", "pos", "neg", "pos_score", "neg_score", "length")
"""A triple: rows of its texts, its teacher scores, and the bytes of its longer document."""

NO_QUERY, NO_DOC = "query that is not among the topics", "document that is not in the collection"


def five_columns(path: Path) -> Iterator[tuple[float, float, str, str, str]]:
    """Rows of a published score file."""
    for where, line in numbered_lines(path, "score file"):
        fields = line.split("\t")
        if len(fields) != 5:
            raise InputError(f"{where}: expected `pos_score neg_score query_id pos_id neg_id`, found {len(fields)} columns")
        try:
            pos_score, neg_score = float(fields[0]), float(fields[1])
        except ValueError:
            raise InputError(f"{where}: the first two columns must be scores, found {fields[0]!r}, {fields[1]!r}") from None
        if not (abs(pos_score) < np.inf and abs(neg_score) < np.inf):
            raise InputError(f"{where}: scores must be finite")
        yield pos_score, neg_score, fields[2], fields[3], fields[4]


def write_triples(scored: Iterable[tuple[Group, list[float]]], path: str | Path, *, overwrite: bool = False) -> int:
    """Write groups with their scores as a published score file; returns the number of triples."""
    count = 0
    with atomic_file(path, overwrite=overwrite) as out:
        for group, own in scored:
            found = dict(zip(group.doc_ids, own, strict=True))
            for pos, neg in pairs(group):
                out.write(f"{found[pos]:.9g}\t{found[neg]:.9g}\t{group.query_id}\t{pos}\t{neg}\n")
                count += 1
    return count


class Triples(Groups):
    """The rows of a published score file as groups of two, with their teacher scores. The block of a group is its row."""

    unit = "triples"

    def __init__(self, path: Path, queries: Texts, docs: Texts) -> None:
        """Open a file that `build` wrote."""
        self.queries, self.docs, self.folder = queries, docs, path.parent
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - open as long as this lives
        self._count = path.stat().st_size // RECORD.itemsize

    @classmethod
    def build(cls, path: Path, scores: Path, queries: Texts, docs: Texts) -> Triples:
        """Convert a score file as it streams by. Triples with an id that has no text are left out; a warning counts them.

        InputError if the file is malformed, or no triple has all its texts.
        """
        rows = five_columns(require_file(scores, "score file"))
        total, kept, absent, examples = 0, 0, Counter[str](), dict[str, str]()
        with open(path, "wb") as out, tqdm(desc=f"read {scores.name}", unit=" triples", disable=None) as bar:
            for some in chunks(rows, BLOCK):
                block = np.zeros(len(some), RECORD)
                block["pos_score"], block["neg_score"], query_ids, pos_ids, neg_ids = zip(*some, strict=True)
                block["query"] = queries.rows(query_ids)
                block["pos"], block["neg"] = docs.rows(pos_ids), docs.rows(neg_ids)
                no_query = block["query"] < 0
                no_doc = ~no_query & ((block["pos"] < 0) | (block["neg"] < 0))
                doc_ids = np.where(block["pos"] < 0, pos_ids, neg_ids)
                for what, wrong, ids in ((NO_QUERY, no_query, query_ids), (NO_DOC, no_doc, doc_ids)):
                    if wrong.any():
                        absent[what] += int(wrong.sum())
                        examples.setdefault(what, ids[wrong.argmax()])
                block = block[~(no_query | no_doc)]
                block["length"] = np.maximum(docs.lengths(block["pos"]), docs.lengths(block["neg"]))
                out.write(block.tobytes())
                total, kept = total + len(some), kept + len(block)
                bar.update(len(some))
        words = "; ".join(f"{count} with a {what}, e.g. {examples[what]}" for what, count in absent.items())
        if not kept:
            raise InputError(f"{scores}: none of its {total} triples has all its texts: {words}")
        if kept < total:
            logger.warning("%s: %d of %d triples are left out: %s", scores, total - kept, total, words)
        return cls(path, queries, docs)

    def _read(self, row: int, count: int) -> npt.NDArray[np.void]:
        return np.frombuffer(os.pread(self._file.fileno(), count * RECORD.itemsize, row * RECORD.itemsize), RECORD)

    def _every(self) -> Iterator[npt.NDArray[np.void]]:
        return (self._read(start, min(BLOCK, self._count - start)) for start in range(0, self._count, BLOCK))

    def __getitem__(self, row: int) -> Group:  # type: ignore[override]
        """The triple of a row as a group."""
        if not 0 <= row < self._count:
            raise IndexError(row)
        (record,) = self._read(row, 1)
        doc_ids = [self.docs.record(int(record[name]))[0] for name in ("pos", "neg")]
        return Group(self.queries.record(int(record["query"]))[0], doc_ids, [1, 0], int(row))

    def __len__(self) -> int:
        return self._count

    @property
    def n_docs(self) -> int:
        """Documents of all triples: two each."""
        return 2 * self._count

    def blocks(self) -> None:
        """None: every triple is a block of its own."""

    def lengths(self, docs: Mapping[str, str] | None = None) -> Ints:
        """Bytes of the longer document of every triple. They were counted at the conversion; `docs` is not used."""
        lengths = np.empty(self._count, np.int32)
        for number, block in enumerate(self._every()):
            lengths[number * BLOCK :][: len(block)] = block["length"]
        return lengths

    def of(self, group: Group) -> list[float]:
        """Teacher scores of a group's positive and negative: those of its own row."""
        (record,) = self._read(group.block, 1)
        return [float(record["pos_score"]), float(record["neg_score"])]

    def missing(self) -> int:
        """Number of pairs without a score: none, as every triple has its own."""
        return 0

    def largest(self) -> float:
        """The largest absolute score."""
        scores = (block[name] for block in self._every() for name in ("pos_score", "neg_score"))
        return max((float(np.abs(own).max()) for own in scores), default=0.0)


def build(folder: Path, scores: Path, queries: Iterable[tuple[str, str]], docs: Iterable[tuple[str, str]]) -> Triples:
    """Write topics, a collection and a score file into a new folder."""
    topics = Texts.build(folder / "queries", queries, "topics")
    return Triples.build(folder / "triples", scores, topics, Texts.build(folder / "docs", docs, "collection"))


def load(folder: Path) -> Triples:
    """Open what `build` wrote into a folder."""
    return Triples(folder / "triples", Texts(folder / "queries"), Texts(folder / "docs"))


def build_once(folder: Path, made_from: Mapping[str, Any], make: Callable[[], object]) -> None:
    """Fill a folder with `make`, unless it is there already, complete and made from the same."""
    record, made_from = folder / "made_from.json", json.loads(json.dumps(made_from))
    if record.exists() and read_json(record, "record of converted data") == made_from:
        logger.info("%s: converted before, by a run that was interrupted", folder)
        return
    shutil.rmtree(folder, ignore_errors=True)
    try:
        make()
        write_json(record, dict(made_from))  # last: a folder without it is not complete
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
