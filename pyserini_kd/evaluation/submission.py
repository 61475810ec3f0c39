"""Check whether a run is fit for TREC or the MS MARCO leaderboard, and report every fault with its line.

The file is read as a stream, one topic at a time. Documents are ordered as in trec_eval: by score as float32, ties by document
id, descending; ranks are ignored.
"""

import collections
import itertools
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from pyserini_kd.data import sources
from pyserini_kd.data.lines import WORD, numbered_lines
from pyserini_kd.data.runs import Run, Scores
from pyserini_kd.data.types import Qrels
from pyserini_kd.storage.files import require_file
from pyserini_kd.storage.records import refuse_existing_run, write_record
from pyserini_kd.storage.settings import Fields, Settings, option

LISTED = 5  # faults of each kind to show by default
TAG = re.compile(r"[A-Za-z0-9._-]{1,20}")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
Format = Literal["trec", "msmarco"]
WIDTH = {"trec": 6, "msmarco": 3}
PLACE = {"trec": "TREC", "msmarco": "the MS MARCO leaderboard"}


class Kind(NamedTuple):
    """A kind of fault: what is wrong, and how `fix` repairs it; None if a repair would be a guess."""

    what: str
    mended: str | None


KINDS = {
    "mark": Kind("byte order mark: trec_eval reads it as part of the first topic id", "dropped"),
    "comment": Kind("comment lines, which trec_eval does not accept", "dropped"),
    "columns": Kind("lines with a wrong number of columns", None),
    "blanks": Kind("columns not separated by tabs", "tabs"),
    "missing": Kind("topics without hits", None),
    "unknown": Kind("topics that are not in the topic set", "dropped"),
    "apart": Kind("topics whose lines are not together", "grouped"),
    "Q0": Kind("second column is not Q0", "Q0"),
    "score": Kind("scores that are not finite float32 numbers", None),
    "order": Kind("scores higher than on the line before", "sorted by score"),
    "tie": Kind("tied scores (as float32) not in trec_eval's order (document id descending)", "sorted in this order"),
    "rank": Kind("ranks are not 1, 2, 3, ...", "renumbered"),
    "no rank": Kind("ranks that are not whole numbers from 1, or repeated ranks", None),
    "repeat": Kind("repeated documents with the same score", "the second dropped"),
    "duplicate": Kind("repeated documents with different scores or ranks", None),
    "hits": Kind("topics with too many hits", "cut"),
    "tag": Kind("tag must be 1-20 of A-Z a-z 0-9 . _ - and the same on every line", "the first line's, repaired"),
    "document": Kind("documents that are not in the collection", None),
}  # fmt: skip


class CheckConfig(Settings):
    """The options of `check`."""

    run: Path = option("RUN")
    topics: str = option("--topics", help="Topics to answer: a file, ir_datasets:<id>, pydocs:SPLIT, a Pyserini set.")
    max_hits: int = option("--max-hits", 1000, "Maximum hits per topic.", ge=1)
    qrels: str | None = option(
        "--qrels", None, "Also report how much of the run is judged: a file, ir_datasets:<id> or pydocs:SPLIT."
    )
    collection: str | None = option(
        "--collection", None, "Also check that the run's documents exist in it: a path, ir_datasets:<id> or pydocs."
    )
    fields: Fields = None
    output_format: Format = option("--format", "trec", "Target of the submission.")
    listed: int = option("--show", LISTED, "Faults to list per kind; the others are counted.", ge=1)
    fixed: Path | None = option("--fix", None, "Write a repaired copy.", metavar="OUT")
    overwrite: bool = option("--overwrite", False, "Replace OUT if it exists.")


class Block(NamedTuple):
    """Consecutive lines of one topic: the place (file:line) and the columns of each."""

    query_id: str
    where: list[str]
    rows: list[list[str]]

    @property
    def doc_ids(self) -> list[str]:
        """The document ids, in the order of the lines."""
        column = 2 if len(self.rows[0]) == 6 else 1
        return [row[column] for row in self.rows]


class Report:
    """The contents and the faults of a run."""

    def __init__(self, config: CheckConfig, topics: set[str]) -> None:
        self.config, self.topics = config, topics
        self.faults: collections.Counter[str] = collections.Counter()  # kind -> number
        self.shown: dict[str, list[str]] = {}  # kind -> the first few faults, each with its line
        self.tag, self.n_lines = "", 0
        self.tops: dict[str, list[str]] = {}  # topic -> its first ten documents
        self.doc_ids: set[str] = set()  # all documents, if a collection is given; `check` removes the known ones

    def add(self, kind: str, where: str, message: str) -> None:
        """Count a fault; `where` is file:line."""
        self.faults[kind] += 1
        if self.faults[kind] <= self.config.listed:
            self.shown.setdefault(kind, []).append(f"{where}: {message}")

    def lines(self) -> Iterator[str]:
        """The faults as text, kind by kind."""
        for kind, (what, _) in KINDS.items():
            if self.faults[kind]:
                yield f"{what} ({self.faults[kind]}):"
                yield from (f"  {line}" for line in self.shown[kind])
                if self.faults[kind] > self.config.listed:
                    yield f"  and {self.faults[kind] - self.config.listed} more"

    def blocks(self) -> Iterator[Block]:
        """A block for each group of consecutive lines of one topic."""
        for query_id, hits in itertools.groupby(self._hits(), key=lambda hit: hit[1][0]):
            where, rows = zip(*hits, strict=True)
            yield Block(query_id, list(where), list(rows))

    def _hits(self) -> Iterator[tuple[str, list[str]]]:
        """(file:line, columns) of each hit. Other lines are added to the faults and left out."""
        width, top = WIDTH[self.config.output_format], True
        for where, line in numbered_lines(self.config.run, "run", blank=True):
            row = WORD.findall(line)
            top = top and row[:1] == ["#"]
            if top:
                self.add("comment", where, line)
            elif len(row) != width:
                self.add("columns", where, f"expected {width} columns, found {len(row)}")
            else:
                if width == 3 and line.count("\t") != 2:
                    self.add("blanks", where, "expected `qid<TAB>docid<TAB>rank`")
                yield where, row

    def read(self, blocks: Iterable[Block]) -> None:
        """Check these blocks for all faults."""
        max_hits, is_trec = self.config.max_hits, self.config.output_format == "trec"
        for block in blocks:
            query_id, doc_ids = block.query_id, block.doc_ids
            self.n_lines += len(doc_ids)
            if query_id in self.tops:
                self.add("apart", block.where[0], f"topic {query_id} starts again")
            elif query_id not in self.topics:
                self.add("unknown", block.where[0], f"topic {query_id} is not among the topics")
            self.tops.setdefault(query_id, doc_ids[:10])
            if self.config.collection:
                self.doc_ids.update(doc_ids)
            if (count := len(doc_ids)) > max_hits:
                self.add("hits", block.where[max_hits], f"topic {query_id} has {count} hits; the maximum is {max_hits}")
            self._check_duplicates(block, self._check_trec(block) if is_trec else self._check_ranks(block))
        for query_id in sorted(self.topics - self.tops.keys()):
            self.add("missing", query_id, "no hit for this topic")

    def _check_trec(self, block: Block) -> Scores:
        """Check second column, tag, scores, order, ties and ranks; returns the scores as float32, NaN if invalid."""
        _, second, doc_ids, ranks, texts, tags = zip(*block.rows, strict=True)
        if not self.tag:
            self.tag = tags[0]
            if not TAG.fullmatch(self.tag):
                self.add("tag", block.where[0], f"tag {self.tag} ({len(self.tag)} characters)")
        with np.errstate(over="ignore"):
            scores = np.array([float(text) if NUMBER.fullmatch(text) else np.nan for text in texts], dtype=np.float32)
        scores[~np.isfinite(scores)] = np.nan
        for row in np.flatnonzero(np.isnan(scores)).tolist():
            self.add("score", block.where[row], f"score {texts[row]}")
        for name, column, wanted in (("Q0", second, "Q0"), ("tag", tags, self.tag)):
            for where, found in zip(block.where, column, strict=True):
                if found != wanted:
                    self.add(name, where, f"expected {wanted}, found {found}")
        for row in (np.flatnonzero(scores[:-1] < scores[1:]) + 1).tolist():
            self.add("order", block.where[row], f"score {texts[row]} comes after {texts[row - 1]}")
        for row in (np.flatnonzero(scores[:-1] == scores[1:]) + 1).tolist():
            if doc_ids[row - 1] < doc_ids[row]:
                scored = f"scores {texts[row - 1]} and {texts[row]} are equal as float32"
                self.add("tie", block.where[row], f"{scored}; trec_eval puts {doc_ids[row]} before {doc_ids[row - 1]}")
        wrong = next((row for row, rank in enumerate(ranks) if rank != str(row + 1)), None)
        if wrong is not None:
            self.add("rank", block.where[wrong], f"topic {block.query_id}: expected rank {wrong + 1}, found {ranks[wrong]}")
        return scores

    def _check_ranks(self, block: Block) -> Scores:
        """Check the ranks of an MS MARCO run, whose lines may be in any order; returns the negated ranks as scores."""
        texts = [row[2] for row in block.rows]
        ranks = np.array([int(text) if re.fullmatch(r"[1-9]\d{0,6}", text, re.ASCII) else 0 for text in texts])
        for row in np.flatnonzero(ranks == 0).tolist():
            self.add("no rank", block.where[row], f"rank {texts[row]}")
        order = np.argsort(ranks, kind="stable")
        for before, row in zip(order.tolist(), order[1:].tolist(), strict=False):
            if ranks[row] == ranks[before] > 0:
                self.add("no rank", block.where[row], f"topic {block.query_id}: rank {ranks[row]} is repeated")
        wrong = np.flatnonzero(ranks[order] != np.arange(1, len(ranks) + 1))
        if len(wrong) and len(set(texts)) == len(texts) and ranks.all():
            row = int(order[wrong[0]])
            self.add("rank", block.where[row], f"topic {block.query_id}: expected rank {wrong[0] + 1}, found {texts[row]}")
        return -ranks.astype(np.float32)

    def _check_duplicates(self, block: Block, scores: Scores) -> None:
        first: dict[str, int] = {}
        for row, doc_id in enumerate(block.doc_ids):
            if (before := first.setdefault(doc_id, row)) != row:
                kind = "repeat" if scores[row] == scores[before] else "duplicate"
                place = f"line {block.where[before].rpartition(':')[2]} (topic {block.query_id})"
                self.add(kind, block.where[row], f"document {doc_id} is already on {place}")


def check(config: CheckConfig, topics: set[str]) -> Report:
    """Read a run and find all its faults; `topics` are the ids of the topics to answer."""
    report = Report(config, topics)
    report.read(report.blocks())
    if report.faults["apart"]:  # again, with each topic's lines together, to check its ranks and documents
        apart, report = report, Report(config, topics)
        report.faults["apart"], report.shown["apart"] = apart.faults["apart"], apart.shown["apart"]
        report.read(_together(report.blocks()))
    with open(config.run, "rb") as file:
        if file.read(3) == b"\xef\xbb\xbf":
            report.add("mark", f"{config.run}:1", "byte order mark")
    if config.collection:
        report.doc_ids.difference_update(doc.doc_id for doc in sources.collection(config.collection, fields=config.fields))
    for block in Report(config, topics).blocks() if report.doc_ids else ():
        for where, doc_id in zip(block.where, block.doc_ids, strict=True):
            if doc_id in report.doc_ids:
                report.add("document", where, f"document {doc_id}")
    return report


def _together(blocks: Iterable[Block]) -> Iterable[Block]:
    """One block per topic. This holds the whole run in memory."""
    topics: dict[str, Block] = {}
    for block in blocks:
        whole = topics.setdefault(block.query_id, Block(block.query_id, [], []))
        whole.where.extend(block.where)
        whole.rows.extend(block.rows)
    return topics.values()


def notes(tops: dict[str, list[str]], qrels: Qrels) -> Iterator[str]:
    """How much of the run is judged. Few judged documents are not a fault, but hint at a wrong collection or topic set."""
    together = [query_id for query_id in tops if query_id in qrels]
    yield f"judged topics: {len(together)} of {len(qrels)} in the qrels"
    shown = [doc_id in qrels[query_id] for query_id in together for doc_id in tops[query_id]]
    if shown:
        yield f"judged documents among the first ten: {sum(shown) / len(shown):.1%}"
    if not any(shown):
        yield "warning: no document among the first ten is judged; do ids, topics and qrels belong to one collection?"


def fix(report: Report) -> Run:
    """The repaired run, for runs whose faults can be repaired without guessing."""
    blocks: Iterable[Block] = Report(report.config, report.topics).blocks()
    is_trec = report.config.output_format == "trec"

    def hits() -> Iterator[tuple[str, list[str], list[float]]]:
        for block in _together(blocks) if report.faults["apart"] else blocks:
            if block.query_id in report.topics:
                numbers = (float(row[4]) if is_trec else -int(row[2]) for row in block.rows)
                scored = dict(zip(block.doc_ids, numbers, strict=True))
                yield block.query_id, list(scored), list(scored.values())

    tag = re.sub(r"[^A-Za-z0-9._-]", "-", report.tag)[:20] or "run"
    return Run.from_hits(tag, hits()).top(report.config.max_hits)


class Verdict(NamedTuple):
    """Lines to print, whether the run (or its repaired copy) is fit, and why no repaired copy was written."""

    lines: list[str]
    fit: bool
    refused: str = ""


def check_file(config: CheckConfig) -> Verdict:
    """Check a run file against topics, judgements and a collection, and write a repaired copy if `fixed` is set."""
    path, fixed = require_file(config.run, "run"), config.fixed
    if fixed:
        refuse_existing_run(fixed, config.overwrite)
    started = time.monotonic()
    wanted = {query.query_id for query in sources.topics(config.topics)}
    judged = sources.qrels(config.qrels) if config.qrels else None
    report = check(config, wanted)
    faults = report.faults
    lines = [*report.lines(), *(notes(report.tops, judged) if judged is not None else ())]
    held = f"{len(report.tops)} topics, {report.n_lines} lines" + (f", tag {report.tag}" if report.tag else "")
    lines.append(f"{path}: {held}: {'unfit' if faults.total() else 'fit'} for {PLACE[config.output_format]}")
    if not fixed:
        return Verdict(lines, not faults.total())
    if stuck := [kind.what for name, kind in KINDS.items() if faults[name] and kind.mended is None]:
        return Verdict(lines, False, f"{fixed} was not written; a repair would be a guess: {'; '.join(stuck)}")
    checked = time.monotonic()
    fix(report).write(fixed, output_format=config.output_format, overwrite=config.overwrite)
    seconds = {"check_seconds": round(checked - started, 3), "write_seconds": round(time.monotonic() - checked, 3)}
    made = {"run": str(path), "topics": config.topics, "max_hits": config.max_hits}
    write_record(fixed, config=made, mended=dict(faults), **seconds)
    how = ", ".join(f"{name} ({KINDS[name].mended})" for name in KINDS if faults[name])
    return Verdict([*lines, f"{fixed}: repaired copy: {how or 'no faults'}"], True)
