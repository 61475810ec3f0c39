"""Files of teacher scores: our store, which knows who scored what, and the published 5-column file."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyserini_kd.distillation import candidates
from pyserini_kd.distillation.candidates import Group
from pyserini_kd.distillation.pairs import Pairs
from pyserini_kd.distillation.text_store import Floats, Hashes, look_up, text_hash
from pyserini_kd.distillation.triples import Scores, five_columns
from pyserini_kd.storage.arrays import column, let_go, spans
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, require_file
from pyserini_kd.storage.records import comparable

WRITTEN = 1 << 17  # pairs written to the store at a time
LOOKED = 10_000  # pairs of a store, about, whose texts are compared with those at hand


class Taught(NamedTuple):
    """Scores of (query, document) pairs: one column a teacher, and their ensemble."""

    pairs: Pairs
    texts: Hashes  # hash of the two texts that were scored
    raw: dict[str, Floats]
    score: Floats


class Known(NamedTuple):
    """What a checkpoint has scored before: its record in an older store, and its scores by the (sorted) hash of the texts."""

    teacher: dict[str, Any]
    texts: Hashes
    scores: Floats


def write_scores(taught: Taught, path: str | Path, record: dict[str, Any], *, overwrite: bool = False) -> None:
    """Write the score store: parquet with query_id, doc_id, texts (a hash), score, `raw:NAME` a teacher, and the record."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = pa.dictionary(pa.int32(), pa.string())
    fields = [("query_id", ids), ("doc_id", ids), ("texts", pa.uint64()), ("score", pa.float32())]
    fields += [(f"raw:{name}", pa.float32()) for name in taught.raw]
    schema = pa.schema(fields, {"pyserini_kd": json.dumps(record)})
    numbers: list[Any] = [taught.texts, taught.score, *taught.raw.values()]
    with atomic_file(path, overwrite=overwrite, binary=True) as out, pq.ParquetWriter(out, schema) as writer:
        for some, both in taught.pairs.blocks(WRITTEN):
            columns = [pa.array(ids).dictionary_encode() for ids in both] + [pa.array(values[some]) for values in numbers]
            writer.write_table(pa.table(columns, schema=schema))
            let_go(*numbers)


def write_triples(scored: Iterable[tuple[Group, list[float]]], path: str | Path, *, overwrite: bool = False) -> int:
    """Write groups with their scores in the published format, no header: `pos_score neg_score query_id pos_id neg_id`."""
    count = 0
    with atomic_file(path, overwrite=overwrite) as out:
        for group, own in scored:
            found = dict(zip(group.doc_ids, own, strict=True))
            for pos, neg in candidates.pairs(group):
                out.write(f"{found[pos]:.9g}\t{found[neg]:.9g}\t{group.query_id}\t{pos}\t{neg}\n")
                count += 1
    return count


def read_scores(path: str | Path, groups: Sequence[Group]) -> Scores:
    """The groups' scores in a score store (parquet) or a published 5-column file (anything else), as it streams by."""
    path = require_file(path, "score file")
    return Scores(groups).fill(_parquet_pairs(path) if path.suffix == ".parquet" else _triple_pairs(path))


def check_texts(path: str | Path, queries: Mapping[str, str], docs: Mapping[str, str]) -> None:
    """InputError where a score store is of other texts than its ids have here; of a large one some pairs are looked at."""
    import pyarrow.parquet as pq

    looked = 0
    wrong: list[tuple[str, str]] = []
    with pq.ParquetFile(path) as file:
        if "texts" not in file.schema_arrow.names:  # not of our making
            return
        step = 1 + file.metadata.num_rows // LOOKED
        for batch in _batches(file, "query_id", "doc_id", "texts"):
            for query_id, doc_id, known in zip(*(column[::step].to_pylist() for column in batch.columns), strict=True):
                query, doc = queries.get(query_id), docs.get(doc_id)
                if query is not None and doc is not None:
                    looked += 1
                    wrong += [(query_id, doc_id)] if text_hash(query, doc) != known else []
    if wrong:
        raise InputError(
            f"{path}: {len(wrong)} of {looked} pairs were scored with other texts than they have here, e.g. of query "
            f"{wrong[0][0]} and document {wrong[0][1]} (another --segment, or a changed collection?); teach --reuse {path} "
            "scores those again"
        )


def read_known(path: str | Path, scratch: Path | None = None) -> list[Known]:
    """What the checkpoints of a score store have scored; in files of a folder, or in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = require_file(path, "score store")
    try:
        with pq.ParquetFile(path) as file:
            record = json.loads(file.schema_arrow.metadata[b"pyserini_kd"])
            columns = [name for name in file.schema_arrow.names if name.startswith("raw:")]
            scored = dict(zip(columns, record["teachers"], strict=True))
            scored = {name: who for name, who in scored.items() if "architecture" in who}  # a run's scores cost nothing
            texts, raw = _by_hash(file, list(scored), scratch)
        return [Known(unweighted(who), texts, own) for who, own in zip(scored.values(), raw, strict=True)]
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a score store of teach: {str(error).splitlines()[0]}") from error


def known_of(taught: Taught, record: Mapping[str, Any]) -> list[Known]:
    """The same of scores that are not in a file yet."""
    order = np.argsort(taught.texts)
    scored = zip(record["teachers"], taught.raw.values(), strict=True)
    return [Known(unweighted(who), taught.texts[order], raw[order]) for who, raw in scored if "architecture" in who]


def _batches(file: Any, *names: str) -> Iterator[Any]:
    """Columns of a parquet file, some rows at a time. A row group by itself: pyarrow keeps what it has read until the end."""
    groups = range(file.num_row_groups)
    return itertools.chain.from_iterable(file.iter_batches(WRITTEN, row_groups=[group], columns=names) for group in groups)


def _by_hash(file: Any, names: Sequence[str], scratch: Path | None) -> tuple[Hashes, list[Floats]]:
    """The hashes of a store's texts in rising order, and its columns of scores in that order.

    In files of a folder, if any: then 8 bytes a pair are in memory.
    """
    count = file.metadata.num_rows
    found = {name: column(scratch, count, np.float32) for name in names}
    texts = column(scratch, count, np.uint64)
    place = 0
    for batch in _batches(file, "texts", *names):
        some = slice(place, place := place + len(batch))
        texts[some] = batch["texts"].to_numpy(zero_copy_only=False)
        for name, values in found.items():
            values[some] = batch[name].to_numpy(zero_copy_only=False).astype(np.float32)
        let_go(texts, *found.values())
    order = np.argsort(texts)

    def placed(values: Any) -> Any:
        ordered = column(scratch, count, values.dtype)
        for some in spans(count):
            ordered[some] = values[order[some]]
            let_go(values, ordered)
        return ordered

    return placed(texts), [placed(values) for values in found.values()]


def unweighted(teacher: Mapping[str, Any]) -> dict[str, Any]:
    """A teacher's record without its weight: what decides its raw scores."""
    plain: dict[str, Any] = comparable({name: value for name, value in teacher.items() if name != "weight"})
    return plain


def _triple_pairs(path: Path) -> Iterator[tuple[str, str, float]]:
    for pos_score, neg_score, query_id, pos, neg in five_columns(path):
        yield query_id, pos, pos_score
        yield query_id, neg, neg_score


def _parquet_pairs(path: Path) -> Iterator[tuple[str, str, float]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in _batches(file, "query_id", "doc_id", "score"):
                scores = batch["score"].cast(pa.float32()).to_pylist()
                if not all(score is not None and math.isfinite(score) for score in scores):
                    raise InputError(f"{path}: scores must be finite")
                yield from zip(batch["query_id"].to_pylist(), batch["doc_id"].to_pylist(), scores, strict=True)
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"{path} is not a score store: {str(error).splitlines()[0]}") from error


def fill_from_store(path: Path, texts: Hashes, scores: Floats, scratch: Path | None = None) -> None:
    """Write the scores that a store has for pairs of these texts, NaN for the others; its ids may mean other texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = require_file(path, "score store")
    try:
        with pq.ParquetFile(path) as file:
            known, (values,) = _by_hash(file, ["score"], scratch)
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a score store of teach: {str(error).splitlines()[0]}") from error
    for some in spans(len(texts)):
        found, places = look_up(known, texts[some])
        scores[some] = np.where(found, values[places] if len(values) else np.nan, np.nan)
        let_go(scores, texts, known, values)


def fill_from_triples(name: str, groups: Sequence[Group], pairs: Pairs, scores: Floats) -> None:
    """Write the scores that a published file has for pairs of these ids, NaN for the others."""
    rest = itertools.chain.from_iterable(own for _, own in read_scores(name, groups).each(groups))
    for some in spans(len(pairs.numbers)):
        scores[pairs.numbers[some]] = np.fromiter(itertools.islice(rest, some.stop - some.start), np.float32)
        let_go(scores, pairs.numbers)
