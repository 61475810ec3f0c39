"""Whether a run is fit to be submitted, to TREC or to the MS MARCO leaderboard; every fault with its line.

The file is read as a stream, one topic at a time. What trec_eval would make of it counts: it reads scores as float32,
ignores the rank column, and orders ties by document id descending.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyserini_kd.data import sources
from pyserini_kd.data.lines import numbered_lines
from pyserini_kd.data.runs import Run, Scores
from pyserini_kd.data.types import Qrels

LISTED = 5  # faults of a kind that are shown, unless more are asked for
TAG = re.compile(r"[A-Za-z0-9._-]{1,20}")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
WIDTH = {"trec": 6, "msmarco": 3}
PLACE = {"trec": "TREC", "msmarco": "the MS MARCO leaderboard"}


class Kind(NamedTuple):
    """A kind of fault: what is wrong, and how `--fix` mends it; None where that would be guessing."""

    what: str
    mended: str | None


KINDS = {
    "mark": Kind("byte order mark: trec_eval takes it for a part of the first topic's id", "dropped"),
    "comment": Kind("comment lines, which trec_eval does not know", "dropped"),
    "columns": Kind("lines that are no hits", None),
    "blanks": Kind("columns not separated by tabs", "tabs"),
    "missing": Kind("topics without a hit", None),
    "unknown": Kind("topics that are not among --topics", "dropped"),
    "apart": Kind("topics whose lines do not stand together", "brought together"),
    "Q0": Kind("second column is not Q0", "Q0"),
    "score": Kind("scores that are no finite float32 number", None),
    "order": Kind("score higher than that of the line before", "sorted by score"),
    "tie": Kind("tied scores (as float32) in another order than trec_eval's (document id descending)", "sorted as there"),
    "rank": Kind("ranks are not 1, 2, 3, ...", "numbered again"),
    "no rank": Kind("ranks that are no whole number from 1 on, or come twice", None),
    "repeat": Kind("a document comes twice with the same score", "the second dropped"),
    "duplicate": Kind("a document comes twice with different scores or ranks", None),
    "hits": Kind("topics with more hits than --max-hits", "cut"),
    "tag": Kind("tag must be 1-20 of A-Z a-z 0-9 . _ - and the same on every line", "the first line's, mended"),
    "document": Kind("documents that are not in --collection", None),
}  # fmt: skip


class Faults(collections.Counter[str]):
    """How many faults there are of each kind, and the first few of each with their lines."""

    def __init__(self, listed: int = LISTED) -> None:
        super().__init__()
        self.listed = listed
        self.shown: dict[str, list[str]] = {}

    def add(self, kind: str, where: str, message: str) -> None:
        """Count a fault; `where` is file:line."""
        self[kind] += 1
        if self[kind] <= self.listed:
            self.shown.setdefault(kind, []).append(f"{where}: {message}")

    def lines(self) -> Iterator[str]:
        """The faults, kind by kind, as they are printed."""
        for kind, (what, _) in KINDS.items():
            if self[kind]:
                yield f"{what} ({self[kind]}):"
                yield from (f"  {line}" for line in self.shown[kind])
                if self[kind] > self.listed:
                    yield f"  and {self[kind] - self.listed} more"


class Block(NamedTuple):
    """The lines of one topic: where each stands (file:line) and its columns."""

    query_id: str
    where: list[str]
    rows: list[list[str]]


class Report(NamedTuple):
    """What a run holds, and what is wrong with it."""

    faults: Faults
    tag: str
    n_lines: int
    tops: dict[str, list[str]]
    """The first ten documents of each topic."""
    doc_ids: set[str]
    """All documents; empty unless asked for."""


def check(
    path: Path,
    topics: set[str],
    *,
    max_hits: int = 1000,
    output_format: str = "trec",
    keep_ids: bool = False,
    listed: int = LISTED,
) -> Report:
    """Read a run through and say all that is wrong with it; `keep_ids` also collects its document ids."""
    faults = Faults(listed)
    report = _walk(_blocks(path, output_format, faults), faults, topics, max_hits, output_format, keep_ids)
    if faults["apart"]:  # again, each topic's lines together, so that its ranks and documents can be judged
        again = Faults(listed)
        again["apart"], again.shown["apart"] = faults["apart"], faults.shown["apart"]
        blocks = _gather(_blocks(path, output_format, again))
        report = _walk(blocks, again, topics, max_hits, output_format, keep_ids)
    with open(path, "rb") as file:
        if file.read(3) == b"\xef\xbb\xbf":
            report.faults.add("mark", f"{path}:1", "byte order mark")
    return report


def _blocks(path: Path, output_format: str, faults: Faults) -> Iterator[Block]:
    """A block for each stretch of lines of one topic; lines that are no hits are faults, and left out."""
    width = WIDTH[output_format]
    block, top = Block("", [], []), True
    for where, line in numbered_lines(path, "run", blank=True):
        row = line.split()
        if top and row[:1] == ["#"]:
            faults.add("comment", where, line)
            continue
        top = False
        if len(row) != width:
            faults.add("columns", where, f"expected {width} columns, found {len(row)}")
            continue
        if width == 3 and line.count("\t") != 2:
            faults.add("blanks", where, "expected `qid<TAB>docid<TAB>rank`")
        if row[0] != block.query_id:
            if block.rows:
                yield block
            block = Block(row[0], [], [])
        block.where.append(where)
        block.rows.append(row)
    if block.rows:
        yield block


def _gather(blocks: Iterator[Block]) -> Iterator[Block]:
    """One block a topic; holds the whole run."""
    topics: dict[str, Block] = {}
    for block in blocks:
        whole = topics.setdefault(block.query_id, Block(block.query_id, [], []))
        whole.where.extend(block.where)
        whole.rows.extend(block.rows)
    yield from topics.values()


def _walk(
    blocks: Iterator[Block], faults: Faults, topics: set[str], max_hits: int, output_format: str, keep_ids: bool
) -> Report:
    tag, n_lines = "", 0
    tops: dict[str, list[str]] = {}
    doc_ids: set[str] = set()
    for block in blocks:
        found = _doc_ids(block)
        n_lines += len(found)
        if block.query_id in tops:
            faults.add("apart", block.where[0], f"topic {block.query_id} begins again")
        elif block.query_id not in topics:
            faults.add("unknown", block.where[0], f"topic {block.query_id} is not among the topics")
        tops.setdefault(block.query_id, found[:10])
        if keep_ids:
            doc_ids.update(found)
        if len(found) > max_hits:
            found_hits = f"topic {block.query_id} has {len(found)} hits, at most {max_hits} may be"
            faults.add("hits", block.where[max_hits], found_hits)
        if output_format == "trec":
            tag = tag or _first_tag(block, faults)
            scores = _check_scores(block, faults)
            _check_trec(block, scores, tag, faults)
        else:
            scores = _check_ranks(block, faults)
        _check_duplicates(block, scores, faults)
    for query_id in sorted(topics - tops.keys()):
        faults.add("missing", query_id, "no hit for this topic")
    return Report(faults, tag, n_lines, tops, doc_ids)


def _doc_ids(block: Block) -> list[str]:
    column = 2 if len(block.rows[0]) == 6 else 1
    return [row[column] for row in block.rows]


def _first_tag(block: Block, faults: Faults) -> str:
    tag = block.rows[0][5]
    if not TAG.fullmatch(tag):
        faults.add("tag", block.where[0], f"tag {tag} ({len(tag)} characters)")
    return tag


def _check_scores(block: Block, faults: Faults) -> Scores:
    """The scores, as trec_eval compares them; NaN where there is none."""
    texts = [row[4] for row in block.rows]
    together = "".join(texts)
    with np.errstate(over="ignore"):
        try:
            scores = np.array(list(map(float, texts)), dtype=np.float32)
            if np.isfinite(scores).all() and together.isascii() and "_" not in together:  # Python reads 1_0 as 10
                return scores
        except ValueError:
            pass
        scores = np.array([float(text) if NUMBER.fullmatch(text) else np.nan for text in texts], dtype=np.float32)
    scores[~np.isfinite(scores)] = np.nan
    for row in np.flatnonzero(np.isnan(scores)).tolist():
        faults.add("score", block.where[row], f"score {texts[row]}")
    return scores


def _check_trec(block: Block, scores: Scores, tag: str, faults: Faults) -> None:
    """Second column, tag, order, ties, ranks."""
    _, second, doc_ids, ranks, texts, tags = zip(*block.rows, strict=True)
    for name, column, wanted in (("Q0", second, "Q0"), ("tag", tags, tag)):
        if set(column) != {wanted}:
            for where, found in zip(block.where, column, strict=True):
                if found != wanted:
                    faults.add(name, where, f"expected {wanted}, found {found}")
    for row in (np.flatnonzero(scores[:-1] < scores[1:]) + 1).tolist():
        faults.add("order", block.where[row], f"score {texts[row]} comes after {texts[row - 1]}")
    for row in (np.flatnonzero(scores[:-1] == scores[1:]) + 1).tolist():
        if doc_ids[row - 1] < doc_ids[row]:
            scored = f"scores {texts[row - 1]} and {texts[row]} are equal to trec_eval"
            faults.add("tie", block.where[row], f"{scored}, which puts {doc_ids[row]} before {doc_ids[row - 1]}")
    expected = tuple(map(str, range(1, len(ranks) + 1)))
    if ranks != expected:
        row = next(row for row, rank in enumerate(expected) if ranks[row] != rank)
        faults.add("rank", block.where[row], f"topic {block.query_id}: expected rank {row + 1}, found {ranks[row]}")


def _check_ranks(block: Block, faults: Faults) -> Scores:
    """The ranks of an MS MARCO run, negated, as scores; lines may stand in any order."""
    texts = [row[2] for row in block.rows]
    ranks = np.array([int(text) if re.fullmatch(r"[1-9]\d{0,6}", text, re.ASCII) else 0 for text in texts])
    for row in np.flatnonzero(ranks == 0).tolist():
        faults.add("no rank", block.where[row], f"rank {texts[row]}")
    order = np.argsort(ranks, kind="stable")
    for before, row in zip(order.tolist(), order[1:].tolist(), strict=False):
        if ranks[row] == ranks[before] > 0:
            faults.add("no rank", block.where[row], f"topic {block.query_id}: rank {ranks[row]} comes twice")
    wrong = np.flatnonzero(ranks[order] != np.arange(1, len(ranks) + 1))
    if len(wrong) and len(set(texts)) == len(texts) and ranks.all():
        row = int(order[wrong[0]])
        faults.add("rank", block.where[row], f"topic {block.query_id}: expected rank {wrong[0] + 1}, found {texts[row]}")
    return -ranks.astype(np.float32)


def _check_duplicates(block: Block, scores: Scores, faults: Faults) -> None:
    doc_ids = _doc_ids(block)
    if len(set(doc_ids)) == len(doc_ids):
        return
    first: dict[str, int] = {}
    for row, doc_id in enumerate(doc_ids):
        before = first.setdefault(doc_id, row)
        if before != row:
            kind = "repeat" if scores[row] == scores[before] else "duplicate"
            line = block.where[before].rpartition(":")[2]
            faults.add(kind, block.where[row], f"document {doc_id} stands in line {line} already (topic {block.query_id})")


def check_collection(path: Path, collection: str, report: Report, output_format: str = "trec") -> None:
    """Add a fault for each line whose document the collection does not have."""
    unknown = set(report.doc_ids)
    for doc in sources.collection(collection):
        unknown.discard(doc.doc_id)
    if unknown:
        for block in _blocks(path, output_format, Faults()):
            for where, doc_id in zip(block.where, _doc_ids(block), strict=True):
                if doc_id in unknown:
                    report.faults.add("document", where, f"document {doc_id}")


def notes(tops: dict[str, list[str]], qrels: Qrels) -> Iterator[str]:
    """What the judgements say: nothing of it makes a run unfit, but a wrong collection or topic set shows here."""
    together = [query_id for query_id in tops if query_id in qrels]
    yield f"judged topics: {len(together)} of {len(qrels)} in the qrels"
    shown = [doc_id in qrels[query_id] for query_id in together for doc_id in tops[query_id]]
    if shown:
        yield f"judged documents among the first ten: {sum(shown) / len(shown):.1%}"
    if not any(shown):
        yield "warning: no document among the first ten is judged; are ids, topics and qrels of one collection?"


def fix(path: Path, report: Report, topics: set[str], max_hits: int, output_format: str) -> Run:
    """The run with everything mended that can be mended without guessing; for runs with no other faults."""
    blocks = _blocks(path, output_format, Faults())
    if report.faults["apart"]:
        blocks = _gather(blocks)

    def hits() -> Iterator[tuple[str, Sequence[str], Sequence[float]]]:
        for block in blocks:
            if block.query_id in topics:
                numbers = (-int(row[2]) if output_format == "msmarco" else float(row[4]) for row in block.rows)
                scored = dict(zip(_doc_ids(block), numbers, strict=True))
                yield block.query_id, list(scored), list(scored.values())

    tag = re.sub(r"[^A-Za-z0-9._-]", "-", report.tag)[:20] or "run"
    return Run.from_hits(tag, hits()).top(max_hits)
