"""Texts and teacher-scored triples on disk. A batch reads what it needs, so training data need not fit into memory.

A collection is read once and written into plain arrays in a folder. After that, a text is a few hundred bytes of a file. Memory
holds 8 bytes for the hash of each document (24 more bytes while the hashes are sorted). If there are candidates, only the texts
that they name are written.

The published score files of Hofstätter et al. 2020 hold 40 million triples in five tab-separated columns without a header:
`pos_score neg_score query_id pos_id neg_id`. Such a file becomes an array in a file, where a triple has 24 bytes.

Arrow files are no better: after 200,000 random reads of 4 million texts, a memory map holds 1.4 GB of memory (here 0.1 GB), and
`index_in` hashes all ids for each look-up, which takes 12 times as long.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd.data.ids import distinct, hashes_of, id_hash, look_up, merge_into
from pyserini_kd.data.lines import numbered_lines
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.distillation.candidates import Group, Groups, pairs
from pyserini_kd.storage.arrays import Hashes, Ints, chunks, keep
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, read_at, require_file
from pyserini_kd.storage.records import read_json, write_json

logger = logging.getLogger(__name__)

BLOCK = 1 << 16  # groups whose ids are hashed, or triples converted or read, at a time
DOCS = 1 << 12  # documents of a collection that memory holds at a time
RECORD = np.dtype("<i4, <i4, <i4, <f4, <f4, <i4")
RECORD.names = ("query", "pos", "neg", "pos_score", "neg_score", "length")
"""A triple: the rows of its texts, its teacher scores, and the number of bytes of its longer document."""

NO_QUERY, NO_DOC = "query that is not among the topics", "document that is not in the collection"


class Texts(Mapping[str, str]):
    """id -> text, in a folder: `texts` (id, newline, text; one after the other), their ends, and 64-bit hashes of the ids."""

    def __init__(self, folder: Path) -> None:
        """Open a folder that `build` wrote."""
        arrays = (np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ("ends", "hashes", "rows"))
        self._ends, self._hashes, self._rows = arrays
        self._file = open(folder / "texts", "rb", buffering=0)  # noqa: SIM115 - open as long as this lives

    @classmethod
    def build(cls, folder: Path, texts: Iterable[tuple[str, str]], label: str) -> Texts:
        """Write a stream of (id, text) pairs. All ids differ."""
        folder.mkdir(parents=True)
        ends, hashes, end = array("q"), array("Q"), 0
        with open(folder / "texts", "wb") as out:
            for text_id, text in tqdm(texts, desc=label, unit=" texts", disable=None):
                end += out.write(f"{text_id}\n{text}".encode())
                ends.append(end)
                hashes.append(id_hash(text_id))
        keep(folder / "ends.npy", np.array(ends))
        del ends
        found = np.array(hashes)
        order = np.argsort(found)
        found = found[order]
        twice = np.flatnonzero(found[1:] == found[:-1])
        if len(twice):  # one in 500,000 collections of the size of MS MARCO has such ids
            raise InputError(f"{label}: the {order[twice[0]] + 1}th id has the same 64-bit hash as another id; rename one")
        keep(folder / "hashes.npy", found)
        keep(folder / "rows.npy", order.astype(np.int32))
        return cls(folder)

    def rows(self, ids: Sequence[str]) -> Ints:
        """The row of each id; -1 for an id that has no text."""
        found, places = look_up(self._hashes, hashes_of(ids))
        return np.where(found, self._rows[places], np.int32(-1)) if len(self) else np.full(len(ids), -1, np.int32)

    def lengths(self, rows: Ints) -> Ints:
        """The number of bytes of the texts in these rows, with their ids."""
        starts = np.where(rows > 0, self._ends[rows - 1], 0)
        return (self._ends[rows] - starts).astype(np.int32)

    def record(self, row: int) -> tuple[str, str]:
        """The (id, text) of a row."""
        start = int(self._ends[row - 1]) if row else 0
        data = read_at(self._file.fileno(), int(self._ends[row]) - start, start)
        text_id, _, text = data.decode().partition("\n")
        return text_id, text

    def __getitem__(self, text_id: str) -> str:
        """The text of an id; KeyError if it has none."""
        place = int(self._hashes.searchsorted(np.uint64(id_hash(text_id))))
        found, text = self.record(int(self._rows[place])) if place < len(self) else ("", "")
        if found != text_id:
            raise KeyError(text_id)
        return text

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        """The ids, in the order in which they were written."""
        return (self.record(row)[0] for row in range(len(self)))


class PlainTexts(Sequence[str]):
    """Some of the texts of a folder, without their ids."""

    def __init__(self, texts: Texts, rows: Ints) -> None:
        self._texts, self._rows = texts, rows

    def lengths(self) -> Ints:
        """The number of bytes of every text, with its id."""
        return self._texts.lengths(self._rows)

    def __getitem__(self, row: int) -> str:  # type: ignore[override]
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._texts.record(int(self._rows[row]))[1]

    def __len__(self) -> int:
        return len(self._rows)


def wanted(groups: Iterable[Group]) -> tuple[Hashes, Hashes]:
    """The sorted hashes of the distinct queries, and of the distinct documents, of groups."""
    queries: list[Hashes] = [np.empty(0, np.uint64)]
    docs: list[Hashes] = [np.empty(0, np.uint64)]
    for some in chunks(groups, BLOCK):
        merge_into(queries, distinct(hashes_of(group.query_id for group in some)))
        merge_into(docs, distinct(hashes_of(doc_id for group in some for doc_id in group.doc_ids)))
    return distinct(np.concatenate(queries)), distinct(np.concatenate(docs))


def chosen(texts: Iterable[tuple[str, str]], hashes: Hashes) -> Iterator[tuple[str, str]]:
    """The (id, text) pairs of a stream whose id has one of these hashes, which are sorted."""
    for some in chunks(texts, DOCS):
        found, _ = look_up(hashes, hashes_of(text_id for text_id, _ in some))
        yield from itertools.compress(some, found.tolist())


def load_texts(
    groups: Sequence[Group], queries: Iterable[Query], docs: Iterable[Doc], folder: Path | None = None
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The texts of the queries and documents of groups, in memory or in new folders of `folder`; InputError if one has none."""
    query_ids, doc_ids = wanted(groups)
    query_texts = _kept(chosen(((q.query_id, q.text) for q in queries), query_ids), folder, "queries")
    if missing := len(query_ids) - len(query_texts):
        example = next(group.query_id for group in groups if group.query_id not in query_texts)
        raise InputError(f"{missing} queries of the candidates are not among the topics, e.g. {example}")
    doc_texts = _kept(chosen(((doc.doc_id, doc.contents) for doc in docs), doc_ids), folder, "docs")
    if missing := len(doc_ids) - len(doc_texts):
        example = next(doc_id for group in groups for doc_id in group.doc_ids if doc_id not in doc_texts)
        raise InputError(f"{missing} documents of the candidates are not in the collection, e.g. {example}")
    return query_texts, doc_texts


def _kept(texts: Iterator[tuple[str, str]], folder: Path | None, name: str) -> Mapping[str, str]:
    return dict(texts) if folder is None else Texts.build(folder / name, texts, f"texts of {name}")


def five_columns(path: Path) -> Iterator[tuple[float, float, str, str, str]]:
    """The rows of a published score file."""
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
    """Write groups with their scores in the format of a published score file; returns the number of triples."""
    count = 0
    with atomic_file(path, overwrite=overwrite) as out:
        for group, own in scored:
            found = dict(zip(group.doc_ids, own, strict=True))
            for pos, neg in pairs(group):
                out.write(f"{found[pos]:.9g}\t{found[neg]:.9g}\t{group.query_id}\t{pos}\t{neg}\n")
                count += 1
    return count


class Triples(Groups):
    """The rows of a published score file as groups of two documents, with teacher scores. The block of a group is its row."""

    unit = "triples"

    def __init__(self, path: Path, queries: Texts, docs: Texts) -> None:
        """Open a file that `build_triples` wrote."""
        self.queries, self.docs, self.folder = queries, docs, path.parent
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - open as long as this lives
        self._count = path.stat().st_size // RECORD.itemsize

    @classmethod
    def build(cls, path: Path, scores: Path, queries: Texts, docs: Texts) -> Triples:
        """Convert a score file. Triples with an id that has no text are left out; a warning says how many.

        InputError if the file is malformed, or if no triple has all its texts.
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
        return np.frombuffer(read_at(self._file.fileno(), count * RECORD.itemsize, row * RECORD.itemsize), RECORD)

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
        """The number of documents of all triples: two each."""
        return 2 * self._count

    def blocks(self) -> None:
        """Return None: every triple is a block of its own."""

    def lengths(self, docs: Mapping[str, str] | None = None) -> Ints:
        """The number of bytes of the longer document of every triple, as counted at the conversion. `docs` is not used."""
        lengths = np.empty(self._count, np.int32)
        for number, block in enumerate(self._every()):
            lengths[number * BLOCK :][: len(block)] = block["length"]
        return lengths

    def of(self, group: Group) -> list[float]:
        """The teacher scores of a group's positive and negative document, from its own row."""
        (record,) = self._read(group.block, 1)
        return [float(record["pos_score"]), float(record["neg_score"])]

    def missing(self) -> int:
        """The number of pairs without a score: 0, because every triple has its scores."""
        return 0

    def largest(self) -> float:
        """The largest absolute score."""
        scores = (block[name] for block in self._every() for name in ("pos_score", "neg_score"))
        return max((float(np.abs(own).max()) for own in scores), default=0.0)


def build_triples(folder: Path, scores: Path, queries: Iterable[tuple[str, str]], docs: Iterable[tuple[str, str]]) -> Triples:
    """Convert topics, a collection and a score file, and write them into a new folder."""
    topics = Texts.build(folder / "queries", queries, "topics")
    return Triples.build(folder / "triples", scores, topics, Texts.build(folder / "docs", docs, "collection"))


def load_triples(folder: Path) -> Triples:
    """Open what `build_triples` wrote into a folder."""
    return Triples(folder / "triples", Texts(folder / "queries"), Texts(folder / "docs"))


def build_once(folder: Path, made_from: Mapping[str, object], make: Callable[[], object]) -> None:
    """Fill a folder by `make`, unless the folder is already complete and made from the same."""
    record, made_from = folder / "made_from.json", json.loads(json.dumps(made_from))
    if record.exists() and read_json(record, "record of converted data") == made_from:
        logger.info("%s: converted before, by a run that was interrupted", folder)
        return
    shutil.rmtree(folder, ignore_errors=True)
    try:
        make()
        write_json(record, dict(made_from))  # written last: a folder without it is not complete
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
