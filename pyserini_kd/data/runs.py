"""Run: the ranking type of the package. It keeps canonical order and reads and writes TREC and MS MARCO files.

Only this module orders documents. The order is that of trec_eval: by float32 score descending, ties by document id descending.
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

Scores = Floats  # scores of one ranking
AnyScores = Sequence[float] | npt.NDArray[np.float32] | npt.NDArray[np.float64]


class Hits(NamedTuple):
    """One query's ranking: document ids and float32 scores, best first; rank = position + 1."""

    doc_ids: list[str]
    scores: Scores


class Run(Mapping[str, Hits]):
    """Immutable rankings of documents: query_id -> Hits, in the order of the queries.

    Build one with `Run.from_scores`, `Run.from_hits` or `Run.read`.
    """

    def __init__(self, tag: str, hits: dict[str, Hits]) -> None:
        """Take hits in canonical order; use the class methods for hits in any other order."""
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
        """Number of hits: the lines of the run file."""
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
        """Build a run from (query_id, doc_ids, scores), in any order within a query.

        InputError for a duplicate query, a duplicate document in a query, or a score that is not finite.
        """
        ordered: dict[str, Hits] = {}
        for query_id, doc_ids, scores in hits:
            if query_id in ordered:
                raise InputError(f"run {tag}: duplicate query {query_id}")
            ordered[query_id] = canonical(doc_ids, scores, f"run {tag}, query {query_id}")
        return cls(tag, ordered)

    def top(self, k: int) -> Run:
        """A run with the first k documents of each query."""
        return Run(self.tag, {q: Hits(hits.doc_ids[:k], hits.scores[:k]) for q, hits in self._hits.items()})

    def without_query_docs(self, delimiter: str | None = None) -> Run:
        """Drop the document with the id of the query (Pyserini's --remove-query; needed for BEIR's ArguAna and Quora).

        With a delimiter, drop also ids that begin with the query id and the delimiter: the passages of that document.
        """
        kept: dict[str, Hits] = {}
        for query_id, hits in self._hits.items():
            other = [d != query_id and not (delimiter and d.startswith(query_id + delimiter)) for d in hits.doc_ids]
            kept[query_id] = hits if all(other) else Hits(list(compress(hits.doc_ids, other)), hits.scores[np.array(other)])
        return Run(self.tag, kept)

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """Read a TREC run (six columns) or an MS MARCO run (`qid docid rank`, scored 1/rank).

        Documents are sorted into canonical order. The rank column of TREC runs and ir_metadata at the top are ignored.
        InputError, with file:line, for a malformed line, a duplicate document or a score that is not finite.
        """
        path = require_file(path, "run file")
        try:
            topics = read_topics_of(path)
            tag, first = next(topics)
            return cls.from_hits(tag, chain([first], (topic for _, topic in topics)))
        except (InputError, NotPlain):  # the slow reader names the line and accepts tabs and repeated blanks
            return cls.from_scores(*read_slowly(path))

    def write(
        self, path: str | Path, *, output_format: str = "trec", overwrite: bool = False, comments: Iterable[str] = ()
    ) -> None:
        """Write the run atomically: `trec` (scores with 9 significant digits) or `msmarco` (`qid docid rank`).

        Comments (ir_metadata) go to the top, each after `# `. trec_eval does not accept such lines.
        """
        write_run(path, self.tag, self.items(), output_format=output_format, overwrite=overwrite, comments=comments)


def default_tag(encoder: str) -> str:
    """The default run tag of a checkpoint: the last part of its name, as one word.

    >>> default_tag("models/my student")
    'my_student'
    """
    return "_".join((Path(encoder).name or Path(encoder).resolve().name).split()) or "run"


def canonical(doc_ids: Sequence[str], scores: AnyScores, where: str) -> Hits:
    """Hits in canonical order; InputError (beginning with `where`) for a duplicate document or a score that is not finite."""
    doc_ids = list(doc_ids)
    if len(scores) != len(doc_ids):
        raise InputError(f"{where}: {len(doc_ids)} documents but {len(scores)} scores")
    if len(set(doc_ids)) != len(doc_ids):
        duplicate = Counter(doc_ids).most_common(1)[0][0]
        raise InputError(f"{where}: duplicate document {duplicate}")
    return ordered(doc_ids, scores, where)


def ordered(doc_ids: list[str], scores: AnyScores, where: str) -> Hits:
    """Hits in canonical order, for doc_ids without duplicates. Modifies the list `doc_ids`."""
    with np.errstate(over="ignore"):
        values = np.asarray(scores, dtype=np.float32) + np.float32(0)  # copies the array and turns -0 into 0
    if not np.isfinite(values).all():
        row = int(np.nonzero(~np.isfinite(values))[0][0])
        raise InputError(f"{where}: score of document {doc_ids[row]} is not finite (as float32)")
    if (values[:-1] < values[1:]).any():
        order = np.argsort(-values, kind="stable")
        values, doc_ids = values[order], list(map(doc_ids.__getitem__, order.tolist()))
    tied = values[:-1] == values[1:]
    if tied.any():
        _order_ties(doc_ids, tied)
    values.setflags(write=False)
    return Hits(doc_ids, values)


def _order_ties(doc_ids: list[str], tied: npt.NDArray[np.bool_]) -> None:
    """Sort ids with equal scores in descending order; tied[n] says that n and n + 1 have equal scores."""
    ends = np.flatnonzero(np.diff(np.concatenate(([False], tied, [False])))).tolist()
    for start, last in zip(ends[::2], ends[1::2], strict=True):
        if last > start + 1:
            doc_ids[start : last + 1] = sorted(doc_ids[start : last + 1], reverse=True)
        elif doc_ids[start] < doc_ids[last]:  # most ties of RRF are pairs: a fast path
            doc_ids[start], doc_ids[last] = doc_ids[last], doc_ids[start]


class RunStream:
    """A run file that is read forwards, topic by topic; `open_run` builds it.

    Topics that a call of `get` skips stay in memory. `get` returns each topic once.
    """

    def __init__(self, path: Path, lengths: dict[str, int]) -> None:
        self._path, self._lengths = path, lengths
        self._topics = (topic for _, topic in read_topics_of(path))
        self._skipped: dict[str, Hits] = {}
        self._whole: Run | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._lengths)

    @property
    def n_hits(self) -> int:
        """Number of hits: the lines of the file."""
        return sum(self._lengths.values())

    @property
    def depth(self) -> int:
        """Length of the longest ranking."""
        return max(self._lengths.values())

    def get(self, query_id: str) -> Hits | None:
        """The hits of a topic, or None if the run lacks it; InputError with file:line for a malformed file."""
        if query_id not in self._lengths:
            return None
        if query_id in self._skipped:
            return self._skipped.pop(query_id)
        if self._whole is None:
            try:
                for found, doc_ids, scores in self._topics:
                    hits = canonical(doc_ids, scores, found)
                    if found == query_id:
                        return hits
                    self._skipped[found] = hits
            except (InputError, NotPlain):  # the slow reader names the line
                self._whole = Run.from_scores(*read_slowly(self._path))
        return None if self._whole is None else self._whole[query_id]


def open_run(path: str | Path) -> Run | RunStream:
    """Open a run file for reading by topic. Unusual files and files with scattered topics are read at once."""
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
