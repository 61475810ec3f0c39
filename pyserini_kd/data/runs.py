"""Run: the one ranking type, in canonical order, read from and written to TREC and MS MARCO files.

Only this module orders documents, as trec_eval does: by score descending, equal scores by document id descending. Scores are
compared as float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyserini_kd.data.run_files import NotPlain, read_batches, read_slowly, read_topics_of, stretches, write_run
from pyserini_kd.storage.arrays import Floats
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file

Scores = Floats  # of one ranking
AnyScores = Sequence[float] | npt.NDArray[np.float32] | npt.NDArray[np.float64]


class Hits(NamedTuple):
    """One query's ranking: document ids and float32 scores, best first; rank = position + 1."""

    doc_ids: list[str]
    scores: Scores


class Run(Mapping[str, Hits]):
    """An immutable ranking of documents for each of some queries: query_id -> Hits, in the order the queries came.

    Build one with `Run.from_scores`, `Run.from_hits` or `Run.read`.
    """

    def __init__(self, tag: str, hits: dict[str, Hits]) -> None:
        """Take hits that are canonical already; use the class methods for anything else."""
        self.tag = tag
        self._hits = hits

    def __getitem__(self, query_id: str) -> Hits:
        return self._hits[query_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hits)

    def __len__(self) -> int:
        return len(self._hits)

    def __repr__(self) -> str:
        return f"Run({self.tag!r}, {len(self)} queries, {self.n_hits} hits)"

    @property
    def n_hits(self) -> int:
        """Number of lines the run would have."""
        return sum(len(hits.doc_ids) for hits in self._hits.values())

    @property
    def depth(self) -> int:
        """Length of the longest ranking."""
        return max((len(hits.doc_ids) for hits in self._hits.values()), default=0)

    @classmethod
    def from_scores(cls, tag: str, scores: Mapping[str, Mapping[str, float]]) -> Run:
        """Build a run from query_id -> {doc_id: score}.

        >>> run = Run.from_scores("demo", {"q1": {"a": 1.0, "b": 2.0, "c": 2.0}})
        >>> run["q1"].doc_ids
        ['c', 'b', 'a']
        """
        return cls.from_hits(tag, ((q, list(docs), list(docs.values())) for q, docs in scores.items()))

    @classmethod
    def from_hits(cls, tag: str, hits: Iterable[tuple[str, Sequence[str], AnyScores]]) -> Run:
        """Build a run from (query_id, doc_ids, scores); any order within a query.

        InputError if a query or a document of a query comes twice, or a score is not finite.
        """
        ordered: dict[str, Hits] = {}
        for query_id, doc_ids, scores in hits:
            if query_id in ordered:
                raise InputError(f"run {tag}: query {query_id} comes twice")
            ordered[query_id] = canonical(doc_ids, scores, f"run {tag}, query {query_id}")
        return cls(tag, ordered)

    def top(self, k: int) -> Run:
        """The same run cut at the first k documents of each query."""
        return Run(self.tag, {q: Hits(hits.doc_ids[:k], hits.scores[:k]) for q, hits in self._hits.items()})

    def without_query_docs(self, delimiter: str | None = None) -> Run:
        """Drop the document whose id is the query's (Pyserini's --remove-query; BEIR's ArguAna and Quora need it).

        With a delimiter also its passages, whose ids begin with the query's id and the delimiter.
        """
        kept: dict[str, Hits] = {}
        for query_id, hits in self._hits.items():
            other = [d != query_id and not (delimiter and d.startswith(query_id + delimiter)) for d in hits.doc_ids]
            kept[query_id] = hits if all(other) else Hits(list(compress(hits.doc_ids, other)), hits.scores[np.array(other)])
        return Run(self.tag, kept)

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """Read a TREC run (six columns) or an MS MARCO run (`qid docid rank`, scored 1/rank).

        Documents are put in canonical order by score; the rank column is ignored, and so is ir_metadata at the top.
        InputError, with file:line, for a malformed line, a duplicate document or a score that is not finite.
        """
        path = require_file(path, "run file")
        try:
            topics = read_topics_of(path)
            tag, first = next(topics)
            return cls.from_hits(tag, chain([first], (topic for _, topic in topics)))
        except (InputError, NotPlain):  # the slow reader names the line; it takes tabs and repeated blanks
            return cls.from_scores(*read_slowly(path))

    def write(
        self, path: str | Path, *, output_format: str = "trec", overwrite: bool = False, comments: Iterable[str] = ()
    ) -> None:
        """Write the run atomically: `trec` (scores with 9 significant digits) or `msmarco` (`qid docid rank`).

        Comments (ir_metadata) are written at the top, each behind `# `; trec_eval does not know such lines.
        """
        write_run(path, self.tag, self.items(), output_format=output_format, overwrite=overwrite, comments=comments)


def default_tag(encoder: str) -> str:
    """The tag of a checkpoint's runs where none is given: the last part of its name, as one word.

    >>> default_tag("models/my student")
    'my_student'
    """
    return "_".join((Path(encoder).name or Path(encoder).resolve().name).split()) or "run"


def canonical(doc_ids: Sequence[str], scores: AnyScores, where: str) -> Hits:
    """Hits in canonical order; InputError, which begins with `where`, for a document that comes twice."""
    doc_ids = list(doc_ids)
    if len(scores) != len(doc_ids):
        raise InputError(f"{where}: {len(doc_ids)} documents but {len(scores)} scores")
    if len(set(doc_ids)) != len(doc_ids):
        twice = Counter(doc_ids).most_common(1)[0][0]
        raise InputError(f"{where}: document {twice} comes twice")
    return ordered(doc_ids, scores, where)


def ordered(doc_ids: list[str], scores: AnyScores, where: str) -> Hits:
    """Hits in canonical order, of documents that are known to be different ones; their list is put in order itself."""
    with np.errstate(over="ignore"):
        values = np.asarray(scores, dtype=np.float32) + np.float32(0)  # our own array, and -0 is 0
    if not np.isfinite(values).all():
        row = int(np.nonzero(~np.isfinite(values))[0][0])
        raise InputError(f"{where}: score of document {doc_ids[row]} is not finite (as float32)")
    if (values[:-1] < values[1:]).any():
        order = np.argsort(-values, kind="stable")
        values, doc_ids = values[order], list(map(doc_ids.__getitem__, order.tolist()))
    alike = values[:-1] == values[1:]
    if alike.any():
        _order_ties(doc_ids, alike)
    values.setflags(write=False)
    return Hits(doc_ids, values)


def _order_ties(doc_ids: list[str], alike: npt.NDArray[np.bool_]) -> None:
    """Put documents with equal scores in descending order; alike[n]: do n and n + 1 score alike?"""
    ends = np.flatnonzero(np.diff(np.concatenate(([False], alike, [False])))).tolist()
    for start, last in zip(ends[::2], ends[1::2], strict=True):
        if last > start + 1:
            doc_ids[start : last + 1] = sorted(doc_ids[start : last + 1], reverse=True)
        elif doc_ids[start] < doc_ids[last]:  # most of what RRF ties, so it should be quick
            doc_ids[start], doc_ids[last] = doc_ids[last], doc_ids[start]


class RunStream:
    """A run file read forwards, topic by topic. It holds only topics that were skipped on the way to another.

    `get` gives each topic once. Built by `open_run`.
    """

    def __init__(self, path: Path, lengths: dict[str, int]) -> None:
        self._path, self._lengths = path, lengths
        self._topics = (topic for _, topic in read_topics_of(path))
        self._passed: dict[str, Hits] = {}
        self._whole: Run | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._lengths)

    @property
    def n_hits(self) -> int:
        """Number of lines of the file."""
        return sum(self._lengths.values())

    @property
    def depth(self) -> int:
        """Length of the longest ranking."""
        return max(self._lengths.values())

    def get(self, query_id: str) -> Hits | None:
        """A topic's hits, None where the run lacks it; InputError with file:line where the file is faulty."""
        if query_id not in self._lengths:
            return None
        if query_id in self._passed:
            return self._passed.pop(query_id)
        if self._whole is None:
            try:
                for found, doc_ids, scores in self._topics:
                    hits = canonical(doc_ids, scores, found)
                    if found == query_id:
                        return hits
                    self._passed[found] = hits
            except (InputError, NotPlain):  # the slow reader names the line
                self._whole = Run.from_scores(*read_slowly(self._path))
        return None if self._whole is None else self._whole[query_id]


def open_run(path: str | Path) -> Run | RunStream:
    """A run file to be read topic by topic. It is read at once if it is unusual, or the lines of a topic are scattered."""
    path = require_file(path, "run file")
    lengths: dict[str, int] = {}
    last = None
    try:
        for batch in read_batches(path, ["query"]):
            for query_id, n in stretches(batch["query"]):
                if query_id in lengths and query_id != last:
                    raise NotPlain
                lengths[query_id] = lengths.get(query_id, 0) + n
                last = query_id
    except NotPlain:
        return Run.read(path)
    return RunStream(path, lengths)
