"""Teacher scores of (query, document) pairs, in memory and in score stores, the parquet files of `teach`.

Each distinct pair of the candidates is scored once, even if it is in several groups. The hash of its ids identifies a pair. The
hashes are sorted; if there are many, they are in a file. All columns about pairs have the order of the hashes.

A store has the columns query_id, doc_id, texts (a 64-bit hash of the two texts that were scored), score (of the ensemble) and
raw:NAME for each teacher. The metadata of the file holds the record of the teachers.

Arrow's `Table.join` does the same as the sorted hashes, but needs 1.1 GB of memory for 10 million pairs (here 0.2 GB).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from pyserini_kd.data.ids import distinct, hashes_of, look_up
from pyserini_kd.distillation.candidates import Group, n_docs
from pyserini_kd.distillation.text_store import five_columns
from pyserini_kd.storage.arrays import AnyArray, Floats, Hashes, Rows, chunks, column, let_go, spans
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, require_file
from pyserini_kd.storage.records import Record, comparable

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BLOCK = 1 << 16  # scores that `Scores.fill` takes at a time
GROUPS = 1 << 12  # groups that are hashed, or whose scores are read, at a time
WRITTEN = 1 << 17  # pairs that are written or read at a time
LOOKED = 10_000  # of a store, the texts of about so many pairs are compared with the texts that are there now


class Block(NamedTuple):
    """Some pairs: their places in the columns, and their ids."""

    places: Rows
    query_ids: list[str]
    doc_ids: list[str]


class Table(NamedTuple):
    """Scores by hash. The keys are sorted."""

    keys: Hashes
    scores: Floats

    def find(self, hashes: Hashes) -> Floats:
        """The score of each hash; NaN where there is none."""
        found, places = look_up(self.keys, hashes)
        scores = np.full(len(hashes), np.nan, np.float32)
        scores[found] = self.scores[places[found]]
        let_go(self.keys, self.scores)
        return scores


class Pairs:
    """The distinct (query, document) pairs of groups. `keys` are the sorted hashes of their ids.

    The columns about the pairs are files in `folder`, or in memory if it is None.
    """

    def __init__(self, groups: Sequence[Group], folder: Path | None = None) -> None:
        self._groups, self.folder = groups, folder
        self._hashes = group_hashes(groups, folder)
        keys = column(folder, len(self._hashes), np.uint64)
        keys[:] = self._hashes
        self.keys: Hashes = distinct(keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[tuple[int, str, str]]:
        """The (place, query_id, doc_id) of every pair, in the order in which the groups name them first."""
        every = pair_ids(self._groups)
        seen = column(self.folder, len(self), np.bool_)
        for some in spans(len(self._hashes)):
            _, places = look_up(self.keys, self._hashes[some])
            is_new = np.zeros(len(places), bool)
            is_new[np.unique(places, return_index=True)[1]] = True
            is_new &= ~seen[places]
            seen[places] = True
            let_go(self.keys, self._hashes, seen)
            for new, place, (query_id, doc_id) in zip(is_new.tolist(), places.tolist(), every, strict=False):
                if new:
                    yield place, query_id, doc_id

    def blocks(self, size: int) -> Iterator[Block]:
        """The pairs in the same order, `size` of them at a time."""
        for some in chunks(self, size):
            places, query_ids, doc_ids = zip(*some, strict=True)
            yield Block(np.array(places), list(query_ids), list(doc_ids))


def pair_ids(groups: Iterable[Group]) -> Iterator[tuple[str, str]]:
    """The (query_id, doc_id) of every document of groups."""
    return ((group.query_id, doc_id) for group in groups for doc_id in group.doc_ids)


def hashes_of_pairs(pairs: Iterable[tuple[str, str]]) -> Hashes:
    """The hash of each pair of strings. The strings are query_id and doc_id, or the two texts."""
    return hashes_of(f"{query}\0{doc}" for query, doc in pairs)


def group_hashes(groups: Sequence[Group], folder: Path | None = None) -> Hashes:
    """The hash of the ids of every document of every group, in memory or in a file of a folder."""
    hashes, end = column(folder, n_docs(groups), np.uint64), 0
    for some in chunks(groups, GROUPS):
        own = hashes_of_pairs(pair_ids(some))
        hashes[end : end + len(own)] = own
        end += len(own)
        let_go(hashes)
    return hashes


class TeacherScores(Protocol):
    """Teacher scores of the documents of groups. `Scores` and `text_store.Triples` implement this protocol."""

    def of(self, group: Group) -> list[float]:
        """The scores of a group's documents; NaN where there is none."""

    def missing(self) -> int:
        """The number of (query, document) pairs without a score."""

    def largest(self) -> float:
        """The largest absolute score."""


class Scores:
    """Teacher scores of the (query, document) pairs of some groups. A pair needs 12 bytes of memory."""

    def __init__(self, groups: Sequence[Group] | Pairs, scores: Floats | None = None) -> None:
        """`scores` are those of all pairs, in the order of the keys. If None, no pair has a score at first."""
        keys = groups.keys if isinstance(groups, Pairs) else distinct(group_hashes(groups))
        self._table = Table(keys, np.full(len(keys), np.nan, np.float32) if scores is None else scores)

    def fill(self, scored: Iterable[tuple[str, str, float]]) -> Scores:
        """Take a stream of (query_id, doc_id, score). Pairs of no group are skipped. The last score of a pair counts."""
        keys, scores = self._table
        for some in chunks(scored, BLOCK):
            found, places = look_up(keys, hashes_of_pairs((query_id, doc_id) for query_id, doc_id, _ in some))
            scores[places[found]] = np.array([score for *_, score in some], np.float32)[found]
        return self

    def find(self, pairs: Iterable[tuple[str, str]]) -> Floats:
        """The score of each (query_id, doc_id); NaN where there is none."""
        return self._table.find(hashes_of_pairs(pairs))

    def each(self, groups: Iterable[Group]) -> Iterator[tuple[Group, list[float]]]:
        """Each group with the scores of its documents; NaN where there is none."""
        for some in chunks(groups, GROUPS):
            scores = iter(self.find(pair_ids(some)).tolist())
            yield from ((group, list(itertools.islice(scores, len(group.doc_ids)))) for group in some)

    def of(self, group: Group) -> list[float]:
        """The scores of a group's documents; NaN where there is none."""
        return self.find(pair_ids([group])).tolist()

    def missing(self) -> int:
        """The number of pairs without a score."""
        return int(np.isnan(self._table.scores).sum())

    def largest(self) -> float:
        """The largest absolute score."""
        return float(np.nanmax(np.abs(self._table.scores), initial=0.0))

    def __len__(self) -> int:
        return len(self._table.keys)


class Known(NamedTuple):
    """What a checkpoint scored earlier: its record without a weight, and its scores by the hash of the texts."""

    teacher: Record
    scores: Table

    def is_of(self, teacher: Record) -> bool:
        """Whether this teacher would give the same raw scores."""
        return self.teacher == unweighted(teacher)


class Taught(NamedTuple):
    """Scores of (query, document) pairs, in the order of their keys. Each teacher has a column, and so has the ensemble."""

    pairs: Pairs
    texts: Hashes  # hash of the two texts that were scored
    raw: dict[str, Floats]
    score: Floats
    record: Record  # the teachers that gave the scores

    def known(self) -> list[Known]:
        """What the checkpoints among the teachers scored."""
        order = np.argsort(self.texts)
        scored = zip(self.record["teachers"], self.raw.values(), strict=True)
        return [Known(unweighted(who), Table(self.texts[order], raw[order])) for who, raw in scored if "architecture" in who]


def unweighted(teacher: Mapping[str, object]) -> Record:
    """A teacher's record without its weight and its name. The rest decides its raw scores."""
    return comparable({name: value for name, value in teacher.items() if name != "weight"})


def write_scores(taught: Taught, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a score store."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = pa.dictionary(pa.int32(), pa.string())
    fields = [("query_id", ids), ("doc_id", ids), ("texts", pa.uint64()), ("score", pa.float32())]
    fields += [(f"raw:{name}", pa.float32()) for name in taught.raw]
    schema = pa.schema(fields, {"pyserini_kd": json.dumps(taught.record)})
    numbers: list[AnyArray] = [taught.texts, taught.score, *taught.raw.values()]
    with atomic_file(path, overwrite=overwrite, binary=True) as out, pq.ParquetWriter(out, schema) as writer:
        for places, *both in taught.pairs.blocks(WRITTEN):
            columns = [pa.array(ids).dictionary_encode() for ids in both] + [pa.array(values[places]) for values in numbers]
            writer.write_table(pa.table(columns, schema=schema))
            let_go(*numbers)


class ScoreStore:
    """A score store. Every method reads the file part by part, and raises InputError if the file is not a score store."""

    def __init__(self, path: str | Path) -> None:
        self.path = require_file(path, "score store")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                yield file
        except InputError:
            raise
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.path} is not a score store of teach: {str(error).splitlines()[0]}") from error

    def pairs(self) -> Iterator[tuple[str, str, float]]:
        """The (query_id, doc_id, score) of every pair."""
        import pyarrow as pa

        with self._opened() as file:
            for batch in _batches(file, "query_id", "doc_id", "score"):
                scores = batch["score"].cast(pa.float32()).to_pylist()
                if not all(score is not None and math.isfinite(score) for score in scores):
                    raise InputError(f"{self.path}: scores must be finite")
                yield from zip(batch["query_id"].to_pylist(), batch["doc_id"].to_pylist(), scores, strict=True)

    def check_texts(self, queries: Mapping[str, str], docs: Mapping[str, str]) -> None:
        """InputError if scored pairs have other texts now. Of a large store, only some pairs are compared."""
        looked, wrong = 0, list[tuple[str, str]]()
        with self._opened() as file:
            if "texts" not in file.schema_arrow.names:  # another program wrote it
                return
            step = 1 + file.metadata.num_rows // LOOKED
            for batch in _batches(file, "query_id", "doc_id", "texts"):
                for query_id, doc_id, known in zip(*(values[::step].to_pylist() for values in batch.columns), strict=True):
                    query, doc = queries.get(query_id), docs.get(doc_id)
                    if query is not None and doc is not None:
                        looked += 1
                        wrong += [(query_id, doc_id)] if hashes_of_pairs([(query, doc)]) != known else []
        if wrong:
            raise InputError(
                f"{self.path}: {len(wrong)} of {looked} pairs were scored with other texts than they have here, e.g. of query "
                f"{wrong[0][0]} and document {wrong[0][1]} (cut otherwise, or a changed collection?); teach scores those again "
                "if it reuses this store"
            )

    def ensemble(self, scratch: Path | None = None) -> Table:
        """The ensemble's scores by the hash of the texts, in files in a folder or in memory."""
        with self._opened() as file:
            return _by_texts(file, ["score"], scratch)[0]

    def known(self, scratch: Path | None = None) -> list[Known]:
        """What the checkpoints of the store scored, in files in a folder or in memory."""
        with self._opened() as file:
            columns = [name for name in file.schema_arrow.names if name.startswith("raw:")]
            teachers = json.loads(file.schema_arrow.metadata[b"pyserini_kd"])["teachers"]
            scored = {name: who for name, who in zip(columns, teachers, strict=True) if "architecture" in who}
            tables = _by_texts(file, list(scored), scratch)
        return [Known(unweighted(who), table) for who, table in zip(scored.values(), tables, strict=True)]


def read_scores(path: str | Path, groups: Sequence[Group] | Pairs) -> Scores:
    """The groups' scores from a score store (.parquet) or from a published file of five columns (any other name)."""
    if Path(path).suffix == ".parquet":
        return Scores(groups).fill(ScoreStore(path).pairs())
    rows = five_columns(require_file(path, "score file"))
    return Scores(groups).fill(
        (query_id, doc_id, score) for pos_score, neg_score, query_id, *both in rows
        for doc_id, score in zip(both, (pos_score, neg_score), strict=True)
    )  # fmt: skip


def _batches(file: pq.ParquetFile, *names: str) -> Iterator[pa.RecordBatch]:
    """Columns of a parquet file, some rows at a time. Each row group is read separately: pyarrow frees it only at the end."""
    groups = range(file.num_row_groups)
    return itertools.chain.from_iterable(file.iter_batches(WRITTEN, row_groups=[group], columns=names) for group in groups)


def _by_texts(file: pq.ParquetFile, names: Sequence[str], scratch: Path | None) -> list[Table]:
    """Columns of scores, in the order of the hashes of their texts. With a folder, a pair needs 8 bytes of memory."""
    count, end = file.metadata.num_rows, 0
    keys = column(scratch, count, np.uint64)
    values = [column(scratch, count, np.float32) for _ in names]
    for batch in _batches(file, "texts", *names):
        some = slice(end, end := end + len(batch))
        for name, own in zip(("texts", *names), (keys, *values), strict=True):
            own[some] = batch[name].to_numpy(zero_copy_only=False).astype(own.dtype)
        let_go(keys, *values)
    order = np.argsort(keys)

    def placed(own: AnyArray) -> AnyArray:
        ordered = column(scratch, count, own.dtype)
        for some in spans(count):
            ordered[some] = own[order[some]]
            let_go(own, ordered)
        return ordered

    keys = placed(keys)
    return [Table(keys, placed(own)) for own in values]
