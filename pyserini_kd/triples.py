"""Training data that memory need not hold: texts and teacher-scored triples on disk, read where a batch needs them.

The published score files have 40 million rows over 8.8 million passages. Both are converted once, as they stream by, into
plain arrays in a folder; afterwards a triple is 24 bytes read from one file and a text a few hundred read from another. What
stays in memory are 8 bytes a document for its hash (24 more while they are sorted) and some 60 a batch for the epoch's order.
Of candidates, only the texts that they name are written; `Scores` holds 12 bytes a pair, `teach` keeps its numbers in columns.

Ids are compared by 64-bit hashes. Of 16 million pairs, any two have the same one with a probability of 1 in 100,000.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd import columns
from pyserini_kd.data import Doc, Query, id_hash, merge_into, numbered_lines
from pyserini_kd.files import InputError, read_json, require_file, write_json
from pyserini_kd.mine import Group

logger = logging.getLogger(__name__)

Rows = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]

BLOCK = 1 << 16  # triples converted at a time
DOCS = 1 << 12  # documents held while a collection streams by
RECORD = np.dtype("<i4, <i4, <i4, <f4, <f4, <i4")
RECORD.names = ("query", "pos", "neg", "pos_score", "neg_score", "length")
"""A triple: rows of its texts, its teacher scores, and the bytes of its longer document."""


def five_columns(path: Path) -> Iterator[tuple[float, float, str, str, str]]:
    """Rows of a published score file, no header: `pos_score neg_score query_id pos_id neg_id`, tab-separated."""
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


def hashes_of(ids: Iterable[str]) -> Hashes:
    """The 64-bit hash of each id."""
    return np.fromiter(map(id_hash, ids), dtype=np.uint64)


def pair_hashes(groups: Iterable[Group]) -> Hashes:
    """The hash of the ids of every (query, document) pair of groups, one after the other."""
    return hashes_of(f"{group.query_id}\0{doc_id}" for group in groups for doc_id in group.doc_ids)


def text_hash(query: str, doc: str) -> int:
    """Stable 64-bit hash of the two texts of a pair: its ids may mean other texts in another collection."""
    return id_hash(f"{query}\0{doc}")


def look_up(known: Hashes, hashes: Hashes) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """For each hash whether it is among the known ones, which are sorted, and its place there.

    >>> look_up(np.uint64([2, 5]), np.uint64([5, 4]))
    (array([ True, False]), array([1, 1]))
    """
    if not len(known):
        return np.zeros(len(hashes), bool), np.zeros(len(hashes), np.int64)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[places] == hashes, places


def distinct(hashes: Hashes) -> Hashes:
    """Sorted distinct hashes, in the memory of those that are given, which is cut short."""
    hashes.sort()
    count, last = 0, None
    for some in columns.spans(len(hashes)):
        own = hashes[some]
        found = own[np.r_[own[0] != last, own[1:] != own[:-1]]]
        last = own[-1]
        hashes[count : count + len(found)] = found
        count += len(found)
    hashes.resize(count, refcheck=False)
    return hashes


class Texts(Mapping[str, str]):
    """id -> text, in a folder: `texts` (id, newline, text; one after the other), where each ends, 64-bit hashes of the ids."""

    def __init__(self, folder: Path) -> None:
        """Open a folder that `build` wrote."""
        arrays = (np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ("ends", "hashes", "rows"))
        self._ends, self._hashes, self._rows = arrays
        self._file = open(folder / "texts", "rb", buffering=0)  # noqa: SIM115 - open as long as this lives

    @classmethod
    def build(cls, folder: Path, texts: Iterable[tuple[str, str]], label: str) -> Texts:
        """Write (id, text) pairs, whose ids differ, as they stream by."""
        folder.mkdir(parents=True)
        ends, hashes, end = array("q"), array("Q"), 0
        with open(folder / "texts", "wb") as out:
            for text_id, text in tqdm(texts, desc=label, unit=" texts", disable=None):
                end += out.write(f"{text_id}\n{text}".encode())
                ends.append(end)
                hashes.append(id_hash(text_id))
        cls._save(folder / "ends.npy", np.array(ends))
        del ends
        found = np.array(hashes)
        order = np.argsort(found)
        found = found[order]
        twice = np.flatnonzero(found[1:] == found[:-1])
        if len(twice):  # for all of MS MARCO, once in 500,000 collections
            raise InputError(f"{label}: rename the {order[twice[0]] + 1}th id: its hash is another's")
        cls._save(folder / "hashes.npy", found)
        cls._save(folder / "rows.npy", order.astype(np.int32))
        return cls(folder)

    @staticmethod
    def _save(path: Path, numbers: npt.NDArray[Any]) -> None:
        with open(path, "wb") as out:
            columns.save(out, numbers)

    def rows(self, ids: Sequence[str]) -> Rows:
        """Row of each id, -1 for those that are not there."""
        found, places = look_up(self._hashes, hashes_of(ids))
        return np.where(found, self._rows[places], np.int32(-1)) if len(self) else np.full(len(ids), -1, np.int32)

    def lengths(self, rows: Rows) -> Rows:
        """Bytes of the texts in these rows, ids included."""
        starts = np.where(rows > 0, self._ends[rows - 1], 0)
        return (self._ends[rows] - starts).astype(np.int32)

    def record(self, row: int) -> tuple[str, str]:
        """(id, text) of a row."""
        start = int(self._ends[row - 1]) if row else 0
        data = os.pread(self._file.fileno(), int(self._ends[row]) - start, start)
        text_id, _, text = data.decode().partition("\n")
        return text_id, text

    def __getitem__(self, text_id: str) -> str:
        """The text of an id; KeyError for one that is not there."""
        place = int(self._hashes.searchsorted(np.uint64(id_hash(text_id))))
        found, text = self.record(int(self._rows[place])) if place < len(self) else ("", "")
        if found != text_id:
            raise KeyError(text_id)
        return text

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        """The ids, in the order they were written in."""
        return (self.record(row)[0] for row in range(len(self)))


def wanted(groups: Iterable[Group]) -> tuple[Hashes, Hashes]:
    """Sorted hashes of the distinct queries and of the distinct documents of groups."""
    queries: list[Hashes] = []
    docs: list[Hashes] = []
    groups = iter(groups)
    while some := list(itertools.islice(groups, BLOCK)):
        merge_into(queries, distinct(hashes_of(group.query_id for group in some)))
        merge_into(docs, distinct(hashes_of(doc_id for group in some for doc_id in group.doc_ids)))
    none = np.empty(0, np.uint64)
    return distinct(np.concatenate([none, *queries])), distinct(np.concatenate([none, *docs]))


def chosen(texts: Iterable[tuple[str, str]], hashes: Hashes) -> Iterator[tuple[str, str]]:
    """Of (id, text) pairs that stream by those whose id's hash is among the sorted ones."""
    texts = iter(texts)
    while some := list(itertools.islice(texts, DOCS)):
        found, _ = look_up(hashes, hashes_of(text_id for text_id, _ in some))
        yield from itertools.compress(some, found.tolist())


def load_texts(
    groups: Sequence[Group], queries: Iterable[Query], docs: Iterable[Doc], folder: Path | None = None
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Texts of the queries and documents of groups, in memory or in new folders of `folder`.

    Raises:
        InputError: texts are missing; counts their ids.
    """
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


class PlainTexts(Sequence[str]):
    """Some of the texts of a folder, without their ids."""

    def __init__(self, texts: Texts, rows: Rows) -> None:
        self._texts, self._rows = texts, rows

    def lengths(self) -> Rows:
        """Bytes of every text, its id included."""
        return self._texts.lengths(self._rows)

    def __getitem__(self, row: Any) -> Any:
        """The text of a row."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._texts.record(int(self._rows[row]))[1]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._rows)


class Scores:
    """Teacher scores of the pairs of some groups."""

    def __init__(self, groups: Iterable[Group]) -> None:
        """Room for the scores of every (query, document) pair of the groups."""
        self._keys = distinct(pair_hashes(groups))
        self._values = np.full(len(self._keys), np.nan, np.float32)

    def fill(self, scored: Iterable[tuple[str, str, float]]) -> Scores:
        """Take (query_id, doc_id, score) as they stream by, those of other groups aside; the last score of a pair counts."""
        scored = iter(scored)
        while some := list(itertools.islice(scored, BLOCK)):
            found, places = look_up(self._keys, hashes_of(f"{query_id}\0{doc_id}" for query_id, doc_id, _ in some))
            self._values[places[found]] = np.array([score for *_, score in some], np.float32)[found]
        return self

    def each(self, groups: Iterable[Group]) -> Iterator[tuple[Group, list[float]]]:
        """Groups with the scores of their documents; NaN where there is none."""
        groups = iter(groups)
        while some := list(itertools.islice(groups, DOCS)):
            found, places = look_up(self._keys, pair_hashes(some))
            values = np.full(len(found), np.nan, np.float32)
            values[found] = self._values[places[found]]
            rest = iter(values.tolist())
            yield from ((group, list(itertools.islice(rest, len(group.doc_ids)))) for group in some)

    def of(self, group: Group) -> list[float]:
        """Scores of a group's documents; NaN where there is none."""
        ((_, scores),) = self.each([group])
        return scores

    def missing(self) -> int:
        """Number of pairs without a score."""
        return int(np.isnan(self._values).sum())

    def largest(self) -> float:
        """The largest absolute score."""
        return float(np.nanmax(np.abs(self._values), initial=0.0))

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._keys)


class Triples(Sequence[Group]):
    """The rows of a published score file as groups of two, each a block of its own; the scores are those of its own row."""

    def __init__(self, path: Path, queries: Texts, docs: Texts) -> None:
        """Open a file that `build` wrote."""
        self.queries, self.docs, self.folder = queries, docs, path.parent
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - open as long as this lives
        self._count = path.stat().st_size // RECORD.itemsize

    @classmethod
    def build(cls, path: Path, scores: Path, queries: Texts, docs: Texts) -> Triples:
        """Convert a score file as it streams by. Triples with an id that has no text are left out; a warning counts them."""
        rows = five_columns(require_file(scores, "score file"))
        total, kept, absent = 0, 0, {"query": 0, "document": 0}
        examples: dict[str, str] = {}
        with open(path, "wb") as out, tqdm(desc=f"read {scores.name}", unit=" triples", disable=None) as bar:
            while some := list(itertools.islice(rows, BLOCK)):
                block = np.zeros(len(some), RECORD)
                block["pos_score"], block["neg_score"], *ids = zip(*some, strict=True)
                for name, texts, own in zip(("query", "pos", "neg"), (queries, docs, docs), ids, strict=True):
                    block[name] = texts.rows(own)
                    if (missing := np.flatnonzero(block[name] < 0)).size:
                        examples.setdefault("query" if name == "query" else "document", own[missing[0]])
                no_query, no_doc = block["query"] < 0, (block["pos"] < 0) | (block["neg"] < 0)
                absent["query"] += int(no_query.sum())
                absent["document"] += int((no_doc & ~no_query).sum())
                block = block[~(no_query | no_doc)]
                block["length"] = np.maximum(docs.lengths(block["pos"]), docs.lengths(block["neg"]))
                out.write(block.tobytes())
                total, kept = total + len(some), kept + len(block)
                bar.update(len(some))
        _report(scores, total, kept, absent, examples)
        return cls(path, queries, docs)

    def _record(self, row: int) -> Any:
        return np.frombuffer(os.pread(self._file.fileno(), RECORD.itemsize, row * RECORD.itemsize), RECORD)[0]

    def __getitem__(self, row: Any) -> Any:
        """The triple of a row as a group; its block is the row."""
        if not 0 <= row < self._count:
            raise IndexError(row)
        record = self._record(int(row))
        doc_ids = [self.docs.record(int(record[name]))[0] for name in ("pos", "neg")]
        return Group(self.queries.record(int(record["query"]))[0], doc_ids, [1, 0], int(row))

    def of(self, group: Group) -> list[float]:
        """Teacher scores of a group's positive and negative: those of its own row."""
        record = self._record(group.block)
        return [float(record["pos_score"]), float(record["neg_score"])]

    def _blocks(self) -> Iterator[Any]:
        for start in range(0, self._count, BLOCK):
            size = min(BLOCK, self._count - start) * RECORD.itemsize
            yield np.frombuffer(os.pread(self._file.fileno(), size, start * RECORD.itemsize), RECORD)

    def lengths(self) -> Rows:
        """Bytes of the longer document of every triple."""
        found, start = np.empty(self._count, np.int32), 0
        for block in self._blocks():
            found[start : start + len(block)] = block["length"]
            start += len(block)
        return found

    @property
    def n_docs(self) -> int:
        """Documents of all groups."""
        return 2 * self._count

    def largest(self) -> float:
        """The largest absolute score of the first block that has one above 1, or of all."""
        most = 0.0
        for block in self._blocks():
            most = max(most, float(np.abs(block["pos_score"]).max()), float(np.abs(block["neg_score"]).max()))
            if most > 1:
                break
        return most

    def __len__(self) -> int:
        """Number of triples."""
        return self._count


def _report(path: Path, total: int, kept: int, absent: Mapping[str, int], examples: Mapping[str, str]) -> None:
    places = {"query": "not among the topics", "document": "not in the collection"}
    found = [(what, example) for what, example in examples.items() if absent[what]]
    words = [f"{absent[what]} with a {what} that is {places[what]}, e.g. {example}" for what, example in found]
    if not kept:
        raise InputError(f"{path}: none of its {total} triples has all its texts: {'; '.join(words)}")
    if kept < total:
        logger.warning("%s: %d of %d triples are left out: %s", path, total - kept, total, "; ".join(words))


def build(folder: Path, scores: Path, queries: Iterable[tuple[str, str]], docs: Iterable[tuple[str, str]]) -> Triples:
    """Write topics, a collection and a score file into a new folder."""
    topics = Texts.build(folder / "queries", queries, "topics")
    return Triples.build(folder / "triples", scores, topics, Texts.build(folder / "docs", docs, "collection"))


def load(folder: Path) -> Triples:
    """Open what `build` wrote into a folder."""
    return Triples(folder / "triples", Texts(folder / "queries"), Texts(folder / "docs"))


def build_once(folder: Path, made_from: Mapping[str, Any], make: Callable[[], object]) -> None:
    """Make what belongs into a folder, unless it lies there, complete and made from the same."""
    record, made_from = folder / "made_from.json", json.loads(json.dumps(made_from))
    if record.exists() and read_json(record, "record of converted data") == made_from:
        logger.info("%s: converted before, by a run that was cut short", folder)
        return
    shutil.rmtree(folder, ignore_errors=True)
    try:
        make()
        write_json(record, dict(made_from))  # last: a folder without it is not complete
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
