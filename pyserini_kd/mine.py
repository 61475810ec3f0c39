"""Candidates: for each training query a group of documents with labels, and the files they come in.

A group is its query's positives followed by negatives: hard ones, sampled from runs, and those of its block. Queries come
in blocks that share their documents: with `--shared 32`, every query of a block has the positives of the 31 others among
its negatives. A training batch is then one block, and each document is encoded once for all of its queries.
"""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import click
import numpy as np
from tqdm import tqdm

from pyserini_kd import inference, passages, sources
from pyserini_kd.cli import Runs, command
from pyserini_kd.data import Doc, Qrels, Query, id_hash, numbered_lines
from pyserini_kd.files import InputError, atomic_file, refuse_existing, require_file
from pyserini_kd.runs import Run

logger = logging.getLogger(__name__)

AT_ONCE = 4096  # groups, a multiple of STRIDE
STRIDE = 16  # groups whose lines are read to get at one of them


class Group(NamedTuple):
    """One query's candidates: G doc_ids, their labels (1 relevant, 0 not), and the block the group belongs to (-1: none)."""

    query_id: str
    doc_ids: list[str]
    labels: list[int]
    block: int


class Mined(NamedTuple):
    """Groups, and why some queries or documents are not among them."""

    groups: list[Group]
    without_positive: int
    without_negative: int
    equal_to_positive: int


def left_out(mined: Mined) -> str:
    """What is not among the groups, in words."""
    return (
        f"left out: {mined.without_positive} queries without a positive in the collection, "
        f"{mined.without_negative} without a negative, {mined.equal_to_positive} documents equal to a positive"
    )


def mine(
    queries: Sequence[Query],
    qrels: Qrels,
    runs: Sequence[Run],
    docs: Iterable[Doc],
    *,
    depth: int = 100,
    negatives: int = 1,
    shared: int = 0,
    seed: int = 42,
) -> Mined:
    """Sample candidates for every query with a positive.

    Args:
        queries: training queries.
        qrels: their judgements; grade 1 and above is positive.
        runs: first-stage runs whose top `depth` gives hard negatives, taken together; may be empty if `shared` is set.
        docs: the collection; read once, to find documents whose text equals a positive's (dropped and counted).
        depth: how deep into the runs negatives may lie.
        negatives: hard negatives a query.
        shared: queries a block whose documents are shared; 0 or 1 for none.
        seed: of the sampling and of the order of the queries.
    """
    rng = np.random.default_rng(seed)
    positives = {q.query_id: [d for d, grade in qrels.get(q.query_id, {}).items() if grade > 0] for q in queries}
    pools = {
        q.query_id: sorted({d for run in runs if q.query_id in run for d in run[q.query_id].doc_ids[:depth]})
        for q in queries
        if positives[q.query_id]
    }
    texts = _text_hashes(docs, {d for ids in positives.values() for d in ids} | {d for ids in pools.values() for d in ids})
    positives = {query_id: [d for d in ids if d in texts] for query_id, ids in positives.items()}
    usable = [q.query_id for q in queries if positives[q.query_id]]
    usable = [usable[i] for i in rng.permutation(len(usable))]
    groups: list[Group] = []
    equal, without_negative = 0, 0
    size = max(1, shared)
    for block, start in enumerate(range(0, len(usable), size)):
        members = usable[start : start + size]
        for query_id in members:
            own = {texts[d] for d in positives[query_id]}
            judged = qrels[query_id]
            others = [d for other in members if other != query_id for d in positives[other]] if shared > 1 else []
            pool = [d for d in pools[query_id] if judged.get(d, 0) <= 0 and d in texts]
            same = {d for d in [*pool, *others] if texts[d] in own and judged.get(d, 0) <= 0}
            equal += len(same)
            pool = [d for d in pool if d not in same]
            hard = [pool[i] for i in sorted(rng.permutation(len(pool))[:negatives])]
            rest = [d for d in dict.fromkeys(others) if d not in same and judged.get(d, 0) <= 0 and d not in hard]
            if not hard and not rest:
                without_negative += 1
                continue
            doc_ids = [*positives[query_id], *hard, *rest]
            labels = [1] * len(positives[query_id]) + [0] * (len(hard) + len(rest))
            groups.append(Group(query_id, doc_ids, labels, block))
    return Mined(groups, len(queries) - len(usable), without_negative, equal)


def first_hits(runs: Sequence[Run]) -> Qrels:
    """What stands in for judgements where there are none: the first hit of each query, in the first run that has one."""
    return {query_id: {hits.doc_ids[0]: 1} for run in reversed(runs) for query_id, hits in run.items() if hits.doc_ids}


def _text_hashes(docs: Iterable[Doc], wanted: set[str]) -> dict[str, int]:
    """doc_id -> hash of its text, for the wanted documents of a collection."""
    found = {}
    for doc in tqdm(docs, desc="read collection", unit=" docs", disable=None):
        if doc.doc_id in wanted:
            found[doc.doc_id] = id_hash(" ".join(doc.contents.split()))
    return found


def write_candidates(groups: Iterable[Group], path: str | Path, *, overwrite: bool = False) -> None:
    """Write groups as JSON lines, or as triples (`query_id<TAB>pos_id<TAB>neg_id`) where the path ends in .tsv or .tsv.gz."""
    as_triples = str(path).removesuffix(".gz").endswith(".tsv")
    with atomic_file(path, overwrite=overwrite) as out:
        for group in groups:
            if as_triples:
                out.writelines(f"{group.query_id}\t{pos}\t{neg}\n" for pos, neg in pairs(group))
            else:
                out.write(json.dumps(group._asdict()) + "\n")


def pairs(group: Group) -> Iterator[tuple[str, str]]:
    """All (positive, negative) pairs of a group."""
    positives = [d for d, label in zip(group.doc_ids, group.labels, strict=True) if label > 0]
    negatives = [d for d, label in zip(group.doc_ids, group.labels, strict=True) if label <= 0]
    return ((pos, neg) for pos in positives for neg in negatives)


class Candidates(Sequence[Group]):
    """The groups of a candidates file, checked when it is opened and read again when they are asked for.

    Memory holds half a byte a group: where every STRIDEth line starts.
    """

    def __init__(self, path: str | Path) -> None:
        """Open groups (JSON lines) or triples (TSV); every triple is a group of two, in no block.

        Raises:
            InputError: a line is malformed, or a group lacks a positive or a negative, or lists a document twice.
        """
        self.path = require_file(path, "candidates file")
        self._file = _unpacked(self.path)
        starts, end, self._count, self.n_docs = array("q"), 0, 0, 0
        with open(self._file.fileno(), "rb", closefd=False) as raw:
            for (where, line), data in zip(numbered_lines(self.path, "candidates file", blank=True), raw, strict=True):
                if line.strip():
                    group = _group(line, where)
                    _check_group(group, where)
                    if self._count % STRIDE == 0:
                        starts.append(end)
                    self._count += 1
                    self.n_docs += len(group.doc_ids)
                end += len(data)
        if not self._count:
            raise InputError(f"candidates file is empty: {path}")
        starts.append(end)
        self._starts = starts

    def _lines(self, first: int, last: int) -> Iterator[str]:
        """The lines of a range of groups that begins at a multiple of STRIDE, and some more."""
        start, end = self._starts[first // STRIDE], self._starts[-(-last // STRIDE)]
        text = os.pread(self._file.fileno(), end - start, start).decode("utf-8" if start else "utf-8-sig")
        return (line.rstrip("\r") for line in text.split("\n") if line.strip())

    def __getitem__(self, row: Any) -> Any:
        """The group of a row."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        offset = row % STRIDE
        return _group(next(itertools.islice(self._lines(row - offset, row + 1), offset, None)), str(self.path))

    def __iter__(self) -> Iterator[Group]:
        """The groups, some thousand read at a time."""
        for first in range(0, len(self), AT_ONCE):
            yield from (_group(line, str(self.path)) for line in self._lines(first, min(first + AT_ONCE, len(self))))

    def __len__(self) -> int:
        """Number of groups."""
        return self._count


def n_docs(groups: Sequence[Group]) -> int:
    """Documents of all groups, each as often as it comes."""
    known: int | None = getattr(groups, "n_docs", None)  # of those that lie in a file
    return sum(len(group.doc_ids) for group in groups) if known is None else known


def read_candidates(path: str | Path) -> Candidates:
    """Open groups (JSON lines) or triples (TSV)."""
    return Candidates(path)


def _unpacked(path: Path) -> IO[bytes]:
    """The file, open for reading; what a .gz file holds in a temporary one that is gone when it is closed."""
    if path.suffix != ".gz":
        return open(path, "rb", buffering=0)
    for _ in numbered_lines(path, "candidates file"):  # says what is wrong with it
        pass
    unpacked = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open as long as its owner lives
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
    return _json_group(line, where) if line.lstrip().startswith("{") else _triple(line, where)


def _json_group(line: str, where: str) -> Group:
    try:
        record = json.loads(line)
        listed, labels, block = record["doc_ids"], record["labels"], record.get("block", -1)
        if not (isinstance(listed, list) and isinstance(labels, list) and all(type(n) is int for n in [*labels, block])):
            raise TypeError
        if max(map(abs, [*labels, block])) >= 1 << 63:
            raise OverflowError
        group = Group(str(record["query_id"]), [str(d) for d in listed], labels, block)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        raise InputError(f"{where}: expected an object with query_id, doc_ids, labels and block") from None
    if len(group.doc_ids) != len(group.labels):
        raise InputError(f"{where}: {len(group.doc_ids)} doc_ids but {len(group.labels)} labels")
    return group


def _triple(line: str, where: str) -> Group:
    fields = line.split("\t")
    if len(fields) != 3:
        raise InputError(f"{where}: expected `query_id<TAB>pos_id<TAB>neg_id`, found {len(fields)} columns")
    return Group(fields[0], fields[1:], [1, 0], -1)


@command(
    name="mine",
    example="pyserini-kd mine --collection docs.jsonl --topics train.tsv --qrels train.txt --index indexes/docs.bm25 "
    "--output candidates.jsonl",
    epilog="Without --qrels, each query's first hit stands in for its positive: enough for losses on teacher scores, such as "
    "margin-mse, which learn from labels only what to compare; of no use to losses on labels, such as ranknet. With "
    "--segment, every passage of a positive document is a positive, and --index or --runs hold passages cut in the same way "
    "(`index --segment`); `teach --segment` scores them.",
)
@click.option("--collection", required=True, help="Collection: a path, ir_datasets:<id> or pydocs.")
@click.option("--topics", required=True, help="Training topics: a file, ir_datasets:<id> or pydocs:train.")
@click.option("--qrels", help="Their judgements: a file, ir_datasets:<id> or pydocs:train.")
@click.option("--index", help="BM25 index to take hard negatives from (a folder or a prebuilt name).")
@click.option("--runs", "--run", cls=Runs, multiple=True, help="Runs to take hard negatives from instead.")
@click.option("--depth", default=100, type=click.IntRange(1), help="How deep negatives may lie.")
@click.option("--negatives", default=1, type=click.IntRange(0), help="Hard negatives a query.")
@click.option("--shared", default=0, type=click.IntRange(0), help="Queries a block that share their documents.")
@click.option("--segment", metavar="WORDS:STRIDE", help="Candidates are passages `docid#n` of so many words, e.g. 150:75.")
@click.option("--seed", default=42, type=click.IntRange(0), help="Seed of the sampling.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Groups (.jsonl) or triples (.tsv).")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
def main(
    collection: str,
    topics: str,
    qrels: str | None,
    index: str | None,
    runs: tuple[str, ...],
    depth: int,
    negatives: int,
    shared: int,
    segment: str | None,
    seed: int,
    output: Path,
    overwrite: bool,
) -> None:
    """Mine negatives for training: groups of (query, positives, negatives), or triples."""
    refuse_existing(output, overwrite)
    if index and runs:
        raise InputError("give --index or --runs, not both")
    if negatives and not (index or runs):
        raise InputError("hard negatives need --index or --runs (or --negatives 0 with --shared)")
    if qrels is None and not (index or runs):
        raise InputError("without --qrels, --index or --runs must say which documents to compare")
    queries = sources.topics(topics)
    judged = sources.qrels(qrels) if qrels else None
    docs = sources.collection(collection)
    if segment:
        judged = passages.segment_qrels(judged, passages.segment(docs, segment)) if judged else None
        docs = passages.segment(sources.collection(collection), segment)
    found = [Run.read(run) for run in runs]
    if index:
        from pyserini_kd import lucene

        asked = [q for q in queries if judged is None or q.query_id in judged]
        found = [lucene.search(index, asked, hits=depth, threads=inference.threads())]
    if segment and found and not any("#" in doc_id for run in found for hits in run.values() for doc_id in hits.doc_ids):
        raise InputError(f"--segment {segment}: negatives come from whole documents, not from passages `docid#n`; "
                         f"index them with --segment {segment}")  # fmt: skip
    if judged is None:
        judged = first_hits(found)
        logger.warning("no --qrels: labels are the first stage's; train with a loss on teacher scores, not on labels")
    mined = mine(
        queries,
        judged,
        found,
        docs,
        depth=depth,
        negatives=negatives,
        shared=shared,
        seed=seed,
    )
    if not mined.groups and not any(query.query_id in judged for query in queries):
        raise InputError(f"qrels {qrels} and topics {topics} share no query")
    if not mined.groups:
        more = "; --negatives 0 wants --shared, or there are none" if negatives == 0 and not shared else ""
        raise InputError(f"no query has both a positive in the collection and a negative{more}")
    write_candidates(mined.groups, output, overwrite=overwrite)
    count = sum(len(group.doc_ids) for group in mined.groups)
    click.echo(f"{output}: {len(mined.groups)} queries, {count} documents to score")
    click.echo(left_out(mined))


if __name__ == "__main__":
    main()
