"""The published score files of Hofstätter et al. 2020, on disk: 40 million teacher-scored triples."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd.data.lines import numbered_lines
from pyserini_kd.distillation.candidates import Group
from pyserini_kd.distillation.text_store import BLOCK, DOCS, Texts, distinct, hashes_of, look_up, pair_hashes
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file
from pyserini_kd.storage.records import read_json, write_json

Rows = npt.NDArray[np.int32]


logger = logging.getLogger(__name__)
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
