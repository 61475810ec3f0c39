"""Run: the one ranking type. Canonical order, TREC and MS MARCO formats, to and from trectools.

Only this module orders documents: score descending, ties by document id descending (trec_eval's order), scores compared
as float32 (as trec_eval does).
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyserini_kd.data import numbered_lines
from pyserini_kd.files import InputError, atomic_file, command_line, environment, require_file

if TYPE_CHECKING:
    import pyarrow as pa
    import trectools

logger = logging.getLogger(__name__)

Scores = npt.NDArray[np.float32]
AnyScores = Sequence[float] | npt.NDArray[np.floating[Any]]


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

        Raises:
            InputError: a query or a document of a query comes twice, or a score is not finite.
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

        With a delimiter also its passages: what stands before the first of them in their ids is the document's.
        """
        kept: dict[str, Hits] = {}
        for query_id, hits in self._hits.items():
            own = [doc_id == query_id or bool(delimiter and doc_id.startswith(query_id + delimiter)) for doc_id in hits.doc_ids]
            if any(own):
                others = [doc_id for doc_id, drop in zip(hits.doc_ids, own, strict=True) if not drop]
                hits = Hits(others, hits.scores[~np.array(own)])
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
        try:
            topics = _topics(path)
            tag, first = next(topics)
            return cls.from_hits(tag, chain([first], (topic for _, topic in topics)))
        except (InputError, _NotPlain):  # the slow way says which line is wrong, and takes tabs and repeated blanks
            return _read_slowly(path)

    def write(
        self, path: str | Path, *, output_format: str = "trec", overwrite: bool = False, comments: Iterable[str] = ()
    ) -> None:
        """Write the run atomically: `trec` (scores with 9 significant digits) or `msmarco` (`qid docid rank`).

        Comments (ir_metadata) are written at the top, each behind `# `; trec_eval does not know such lines.
        """
        write_run(path, self.tag, self.items(), output_format=output_format, overwrite=overwrite, comments=comments)

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


def check_tag(tag: str) -> None:
    """InputError where a tag does not fit into a run's column."""
    if len(tag.split()) != 1:
        raise InputError(f"a run's tag must be one word without blanks, found {tag!r}")


def default_tag(encoder: str) -> str:
    """The tag of a checkpoint's runs where none is given: the last part of its name, as one word.

    >>> default_tag("models/my student")
    'my_student'
    """
    return "_".join((Path(encoder).name or Path(encoder).resolve().name).split()) or "run"


def write_run(
    path: str | Path,
    tag: str,
    topics: Iterable[tuple[str, Hits]],
    *,
    output_format: str = "trec",
    overwrite: bool = False,
    comments: Iterable[str] = (),
) -> None:
    """`Run.write` of topics that may come one by one: only one of them is held."""
    check_tag(tag)
    if output_format not in ("trec", "msmarco"):
        raise InputError(f"output format must be trec or msmarco, not {output_format!r}")
    with atomic_file(path, overwrite=overwrite) as out:
        out.writelines(f"# {line}\n" for line in comments)
        for query_id, (doc_ids, scores) in topics:
            n = len(doc_ids)
            start, end = (f"{text}".replace("%", "%%") for text in (query_id, tag))
            line = f"{start} Q0 %s %d %.9g {end}\n" if output_format == "trec" else f"{start}\t%s\t%d\n"
            columns = [doc_ids, range(1, n + 1), *([scores.tolist()] if output_format == "trec" else [])]
            out.write(line * n % tuple(chain.from_iterable(zip(*columns, strict=True))))  # much quicker than line by line


def ir_metadata(tag: str, method: Mapping[str, Any], collection: Mapping[str, Any]) -> list[str]:
    """What is known of a run's making, as comments for the top of it (Breuer, Keller, Schaer 2022; www.ir-metadata.org).

    Args:
        tag: the run's.
        method: what made it; entries without a value are left out.
        collection: its topics and judgements.
    """
    import yaml

    made = environment()
    hardware = made["hardware"]
    cpu = {"model": hardware["cpu"], "architecture": hardware["machine"], "number of cores": hardware["cpus"]}
    metadata = {
        "tag": tag,
        "platform": {
            "hardware": {"cpu": cpu, "ram": f"{hardware.get('memory_gib', 'unknown')} GiB"},
            "operating system": {"platform": platform.system(), "kernel": platform.release()},
            "software": {"libraries": {"python": [f"{name} {version}" for name, version in made["versions"].items()]}},
        },
        "implementation": {"executable": {"cmd": command_line()}, "source": {"lang": "python", "commit": made.get("commit")}},
        "method": {"automatic": True, "retrieval": [{"name": tag} | {name: value for name, value in method.items() if value}]},
        "data": {"test collection": dict(collection)},
    }
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=4096)
    return ["ir_metadata.start", *text.splitlines(), "ir_metadata.end"]


def canonical(doc_ids: Sequence[str], scores: AnyScores, where: str) -> Hits:
    """Hits in canonical order; InputError, which begins with `where`, for a document that comes twice."""
    doc_ids = list(doc_ids)
    if len(scores) != len(doc_ids):
        raise InputError(f"{where}: {len(doc_ids)} documents but {len(scores)} scores")
    if len(set(doc_ids)) != len(doc_ids):
        seen: set[str] = set()
        twice = next(d for d in doc_ids if d in seen or seen.add(d))  # type: ignore[func-returns-value]
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


# --------------------------------------------------------------------------------------------------- topic by topic


class RunStream:
    """A run file read forwards, topic by topic: holds only the topics that were passed by on the way to another.

    `get` hands out each topic once. Built by `open_run`.
    """

    def __init__(self, path: Path, lengths: dict[str, int]) -> None:
        self._path, self._lengths = path, lengths
        self._topics = (topic for _, topic in _topics(path))
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
            except (InputError, _NotPlain):  # the slow way says which line is wrong
                self._whole = _read_slowly(self._path)
        return None if self._whole is None else self._whole[query_id]


def open_run(path: str | Path) -> Run | RunStream:
    """A run file to be read topic by topic; read at once where it is unusual, or a topic's lines do not stand together."""
    path = require_file(path, "run file")
    lengths: dict[str, int] = {}
    last = None
    try:
        for batch in _batches(path, ["query"]):
            for query_id, n in _stretches(batch["query"]):
                if query_id in lengths and query_id != last:
                    return Run.read(path)
                lengths[query_id] = lengths.get(query_id, 0) + n
                last = query_id
    except _NotPlain:
        return Run.read(path)
    return RunStream(path, lengths)


class _NotPlain(Exception):
    """The file is not six columns between single blanks."""


def _topics(path: Path) -> Iterator[tuple[str, tuple[str, list[str], npt.NDArray[np.float64]]]]:
    """(tag, (query id, doc ids, scores)) of each stretch of lines of one query, as they stand in a plain run file."""
    import pyarrow.compute as pc

    tag: str | None = None
    query_id, doc_ids, scores = "", list[str](), list[npt.NDArray[np.float64]]()
    for batch in _batches(path, list(COLUMNS)):
        if any(pc.min(pc.binary_length(batch[name])).as_py() == 0 for name in COLUMNS if name != "score"):
            raise _NotPlain  # two blanks in a row
        tag = tag or batch["tag"][0].as_py()
        docs, values, start = batch["doc"].to_numpy(zero_copy_only=False).tolist(), batch["score"].to_numpy(), 0
        for found, n in _stretches(batch["query"]):
            if scores and found != query_id:
                yield tag, (query_id, doc_ids, np.concatenate(scores))
                doc_ids, scores = [], []
            query_id = found
            doc_ids += docs[start : start + n]
            scores.append(values[start : start + n])
            start += n
    if tag is None:
        raise _NotPlain
    yield tag, (query_id, doc_ids, np.concatenate(scores))


COLUMNS = ("query", "q0", "doc", "rank", "score", "tag")


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Blocks of lines of a plain run file, never empty; _NotPlain where it is none."""
    import pyarrow as pa
    import pyarrow.csv

    try:
        with pyarrow.csv.open_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=list(COLUMNS), block_size=BLOCK, skip_rows=_header(path)),
            parse_options=pyarrow.csv.ParseOptions(delimiter=" ", quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(COLUMNS, pa.string()) | {"score": pa.float64()},
                include_columns=columns,
                null_values=[],
                strings_can_be_null=False,
            ),
        ) as reader:
            for batch in reader:
                if batch.num_rows:
                    yield batch
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:  # OSError: a damaged .gz
        raise _NotPlain from error


BLOCK = 1 << 20
"""Bytes of a run file read at once."""


def _stretches(column: pa.StringArray) -> Iterator[tuple[str, int]]:
    """(value, how often in a row) of a column."""
    import pyarrow.compute as pc

    encoded = pc.run_end_encode(column)
    ends = encoded.run_ends.to_numpy()
    yield from zip(encoded.values.to_pylist(), np.diff(ends, prepend=0).tolist(), strict=True)


def _header(path: Path) -> int:
    """Number of lines that ir_metadata take at the top of a run."""
    lines = numbered_lines(path, "run", blank=True)
    if next(lines, ("", ""))[1].rstrip() == "# ir_metadata.start":
        for number, (_, line) in enumerate(lines, start=2):
            if line.rstrip() == "# ir_metadata.end":
                return number
        raise InputError(f"{path}:1: ir_metadata has no `# ir_metadata.end`")
    return 0


def _read_slowly(path: Path) -> Run:
    """Read line by line, checking everything; for files that are faulty or unusual."""
    hits: dict[str, dict[str, float]] = {}
    tag, columns, header = path.stem, 0, _header(path)
    for where, line in islice(numbered_lines(path, "run", blank=True), header, None):
        fields = line.split()
        if not fields:
            continue
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
        if "_" in text or (reciprocal and int(text) < 1):  # Python reads 1_0 as 10
            raise ValueError
        score = 1.0 / int(text) if reciprocal else float(text)
    except ValueError:
        raise InputError(f"{where}: expected a {'rank' if reciprocal else 'score'}, found {text!r}") from None
    with np.errstate(over="ignore"):
        if not np.isfinite(np.float32(score)):
            raise InputError(f"{where}: score {text} is not finite (as float32)")
    return score
