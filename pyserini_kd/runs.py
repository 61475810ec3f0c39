"""Run: the one ranking type. Canonical order, TREC and MS MARCO formats, to and from trectools.

Only this module orders documents: score descending, ties by document id descending (trec_eval's order), scores compared
as float32 (as trec_eval does).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pyserini_kd.files import InputError, atomic_file, require_file

if TYPE_CHECKING:
    import trectools

logger = logging.getLogger(__name__)

Scores = npt.NDArray[np.float32]


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
    def from_hits(cls, tag: str, hits: Iterable[tuple[str, Sequence[str], Sequence[float] | Scores]]) -> Run:
        """Build a run from (query_id, doc_ids, scores); any order within a query.

        Raises:
            InputError: a query or a document of a query comes twice, or a score is not finite.
        """
        ordered: dict[str, Hits] = {}
        for query_id, doc_ids, scores in hits:
            if query_id in ordered:
                raise InputError(f"run {tag}: query {query_id} comes twice")
            ordered[query_id] = _canonical(doc_ids, scores, f"run {tag}, query {query_id}")
        return cls(tag, ordered)

    def top(self, k: int) -> Run:
        """The same run cut at the first k documents of each query."""
        return Run(self.tag, {q: Hits(hits.doc_ids[:k], hits.scores[:k]) for q, hits in self._hits.items()})

    def without_query_docs(self) -> Run:
        """Drop the document whose id is the query's (Pyserini's --remove-query; BEIR's ArguAna and Quora need it)."""
        kept: dict[str, Hits] = {}
        for query_id, hits in self._hits.items():
            if query_id in hits.doc_ids:
                row = hits.doc_ids.index(query_id)
                hits = Hits(hits.doc_ids[:row] + hits.doc_ids[row + 1 :], np.delete(hits.scores, row))
            kept[query_id] = hits
        return Run(self.tag, kept)

    # ------------------------------------------------------------------------------------------------- files

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """Read a TREC run (six columns) or an MS MARCO run (`qid docid rank`, scored 1/rank).

        Documents are put in canonical order by score; the file's rank column is not trusted. ir_metadata at the top is
        passed over.

        Raises:
            InputError: missing or empty file; a malformed line, a duplicate document or a score that is not finite (with
                file:line).
        """
        path = require_file(path, "run file")
        table = _read_fast(path)
        if table is None:  # the slow way says which line is wrong, and takes tabs and repeated blanks
            return _read_slowly(path)
        query_ids, names, doc_ids, scores, tag = table
        try:
            return cls.from_hits(tag, _by_query(query_ids, names, doc_ids, scores))
        except InputError:
            return _read_slowly(path)

    def write(
        self, path: str | Path, *, output_format: str = "trec", overwrite: bool = False, comments: Iterable[str] = ()
    ) -> None:
        """Write the run atomically: `trec` (scores with 9 significant digits) or `msmarco` (`qid docid rank`).

        Comments (ir_metadata) are written at the top, each behind `# `; trec_eval does not know such lines.
        """
        if len(self.tag.split()) != 1:
            raise InputError(f"a run's tag must be one word without blanks, found {self.tag!r}")
        if output_format not in ("trec", "msmarco"):
            raise InputError(f"output format must be trec or msmarco, not {output_format!r}")
        with atomic_file(path, overwrite=overwrite) as out:
            out.writelines(f"# {line}\n" for line in comments)
            for query_id, (doc_ids, scores) in self._hits.items():
                if output_format == "trec":
                    lines = [
                        f"{query_id} Q0 {doc_id} {rank} {score:.9g} {self.tag}\n"
                        for rank, (doc_id, score) in enumerate(zip(doc_ids, scores.tolist(), strict=True), start=1)
                    ]
                else:
                    lines = [f"{query_id}\t{doc_id}\t{rank}\n" for rank, doc_id in enumerate(doc_ids, start=1)]
                out.writelines(lines)

    # --------------------------------------------------------------------------------------------- trectools

    def to_trectools(self, *, distinct_scores: bool = False) -> trectools.TrecRun:
        """The run as a trectools TrecRun whose frame is in canonical order, all ids strings.

        trectools orders ties in several ways of its own; `distinct_scores=True` replaces the scores by strictly decreasing
        whole numbers, so that every one of its functions sees our order.
        """
        import pandas as pd
        import trectools

        lengths = [len(hits.doc_ids) for hits in self._hits.values()]
        ranks = np.concatenate([np.arange(1, n + 1) for n in lengths]) if lengths else np.empty(0, int)
        scores = np.concatenate([h.scores for h in self._hits.values()]) if lengths else np.empty(0)
        frame = pd.DataFrame(
            {
                "query": np.repeat(np.array(list(self._hits), dtype=object), lengths),
                "q0": "Q0",
                "docid": np.array([d for hits in self._hits.values() for d in hits.doc_ids], dtype=object),
                "rank": ranks,
                "score": (self.depth + 1.0 - ranks) if distinct_scores else scores.astype(np.float64),
                "system": self.tag,
            }
        )
        run = trectools.TrecRun()
        run.load_run_from_dataframe(frame)
        return run

    @classmethod
    def from_trectools(cls, run: trectools.TrecRun, tag: str) -> Run:
        """A Run from a trectools TrecRun (its rank column is ignored)."""
        frame = run.run_data
        return cls.from_hits(
            tag,
            (
                (str(query_id), [str(d) for d in group["docid"]], group["score"].to_numpy())
                for query_id, group in frame.groupby("query", sort=False)
            ),
        )


def _canonical(doc_ids: Sequence[str], scores: Sequence[float] | Scores, where: str) -> Hits:
    with np.errstate(over="ignore"):
        values = np.asarray(scores, dtype=np.float32)
    doc_ids = list(doc_ids)
    if len(values) != len(doc_ids):
        raise InputError(f"{where}: {len(doc_ids)} documents but {len(values)} scores")
    if not np.isfinite(values).all():
        row = int(np.nonzero(~np.isfinite(values))[0][0])
        raise InputError(f"{where}: score of document {doc_ids[row]} is not finite (as float32)")
    if len(set(doc_ids)) != len(doc_ids):
        seen: set[str] = set()
        twice = next(d for d in doc_ids if d in seen or seen.add(d))  # type: ignore[func-returns-value]
        raise InputError(f"{where}: document {twice} comes twice")
    falls = values[:-1] > values[1:]
    if not falls.all():  # ties, or out of order: sort by (score desc, doc_id desc)
        ties = np.nonzero(~falls)[0]
        ordered = all(values[i] == values[i + 1] and doc_ids[i] > doc_ids[i + 1] for i in ties)
        if not ordered:
            by_id = sorted(range(len(doc_ids)), key=doc_ids.__getitem__, reverse=True)
            order = np.array(by_id)[np.argsort(-values[by_id], kind="stable")]
            values, doc_ids = values[order], [doc_ids[i] for i in order]
    values.setflags(write=False)
    return Hits(doc_ids, values)


def _read_fast(path: Path) -> tuple[npt.NDArray[np.int64], list[str], list[str], npt.NDArray[np.float64], str] | None:
    """(query code per line, query ids, doc ids, scores, tag), or None where the file is not plain."""
    import pyarrow as pa
    import pyarrow.csv

    columns = ["query", "q0", "doc", "rank", "score", "tag"]
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=columns, block_size=1 << 24, skip_rows=_header(path)),
            parse_options=pyarrow.csv.ParseOptions(delimiter=" ", quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.dictionary(pa.int32(), pa.string()))
                | {"doc": pa.string(), "score": pa.float64()},
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError):
        return None
    table = table.unify_dictionaries()
    doc_ids = table["doc"].to_pylist()
    queries, tags = table["query"].combine_chunks(), table["tag"].combine_chunks()
    words = [table[name].combine_chunks().dictionary.to_pylist() for name in ("query", "q0", "rank", "tag")]
    if table.num_rows == 0 or any("" in column for column in (doc_ids, *words)):  # two blanks in a row
        return None
    codes = queries.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return (
        codes,
        queries.dictionary.to_pylist(),
        doc_ids,
        table["score"].to_numpy(),
        tags.dictionary[0].as_py(),
    )


def _by_query(
    codes: npt.NDArray[np.int64], names: list[str], doc_ids: list[str], scores: npt.NDArray[np.float64]
) -> Iterator[tuple[str, list[str], npt.NDArray[np.float32]]]:
    """Cut columns into one slice a query, in the order of the queries' first lines."""
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    if len(starts) != len(names):  # a query's lines do not stand together
        order = np.argsort(codes, kind="stable")
        codes, scores, doc_ids = codes[order], scores[order], [doc_ids[i] for i in order]
        starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    ends = np.r_[starts[1:], len(codes)]
    with np.errstate(over="ignore"):
        floats = scores.astype(np.float32)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield names[codes[start]], doc_ids[start:end], floats[start:end]


def _header(path: Path) -> int:
    """Number of lines that ir_metadata take at the top of a run."""
    with open(path, "rb") as lines:
        if next(lines, b"").rstrip() == b"# ir_metadata.start":
            for number, line in enumerate(lines, start=2):
                if line.rstrip() == b"# ir_metadata.end":
                    return number
            raise InputError(f"{path}:1: ir_metadata has no `# ir_metadata.end`")
    return 0


def _read_slowly(path: Path) -> Run:
    """Read line by line, checking everything; for files that are faulty or unusual."""
    hits: dict[str, dict[str, float]] = {}
    tag, columns, header = path.stem, 0, _header(path)
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.split()
            if not fields or number <= header:
                continue
            where = f"{path}:{number}"
            columns = columns or len(fields)
            if len(fields) != columns or columns not in (3, 6):
                raise InputError(f"{where}: expected `qid Q0 docid rank score tag`, found {len(fields)} columns")
            query_id, doc_id = fields[0], fields[2] if columns == 6 else fields[1]
            score = _score(fields[4] if columns == 6 else fields[2], where, reciprocal=columns == 3)
            if columns == 6:
                tag = fields[5]
            if hits.setdefault(query_id, {}).setdefault(doc_id, score) is not score:
                raise InputError(f"{where}: document {doc_id} comes twice for query {query_id}")
    if not hits:
        raise InputError(f"run file is empty: {path}")
    return Run.from_scores(tag, hits)


def _score(text: str, where: str, reciprocal: bool) -> float:
    try:
        score = 1.0 / int(text) if reciprocal else float(text)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{where}: expected a {'rank' if reciprocal else 'score'}, found {text!r}") from None
    with np.errstate(over="ignore"):
        if not np.isfinite(np.float32(score)):
            raise InputError(f"{where}: score {text} is not finite (as float32)")
    return score
