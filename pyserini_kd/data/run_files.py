"""Read run files (TREC, MS MARCO) in blocks of lines, and write them topic by topic."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyserini_kd.data.lines import JSON_START, WORD, header_columns, json_cells, numbered_lines, text_kind
from pyserini_kd.storage.arrays import Floats
from pyserini_kd.storage.environment import command_line, environment
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("query", "q0", "doc", "rank", "score", "tag")
LAYOUTS = {
    6: {"query": 0, "doc": 2, "score": 4},
    4: {"query": 0, "doc": 1, "score": 3},  # ColBERT
    3: {"query": 0, "doc": 1, "score": 2},  # or MS MARCO's ranks
}
"""Number of columns -> places of those that are read."""
BLOCK = 1 << 20
"""Bytes of a run file read at once."""


class NotPlain(Exception):
    """The file is not in the plain format: six columns with single blanks between them."""


def check_tag(tag: str) -> None:
    """InputError if a tag is not one word, which a run file needs."""
    if len(tag.split()) != 1:
        raise InputError(f"a run tag must be one word without blanks, found {tag!r}")


def write_run(
    path: str | Path,
    tag: str,
    topics: Iterable[tuple[str, tuple[list[str], Floats]]],
    *,
    output_format: str = "trec",
    overwrite: bool = False,
    comments: Iterable[str] = (),
) -> None:
    """`Run.write` for streamed topics: only one topic is in memory."""
    check_tag(tag)
    if output_format not in ("trec", "msmarco"):
        raise InputError(f"output format must be trec or msmarco, not {output_format!r}")
    with atomic_file(path, overwrite=overwrite) as out:
        out.writelines(f"# {line}\n" for line in comments)
        for query_id, (doc_ids, scores) in topics:
            start, end = (f"{text}".replace("%", "%%") for text in (query_id, tag))
            columns: list[Sequence[object]] = [doc_ids, range(1, len(doc_ids) + 1)]
            line = f"{start}\t%s\t%d\n"
            if output_format == "trec":
                line = f"{start} Q0 %s %d %.9g {end}\n"
                columns.append(scores.tolist())
            out.write(line * len(doc_ids) % tuple(chain.from_iterable(zip(*columns, strict=True))))  # faster than line by line


def ir_metadata(tag: str, method: Mapping[str, object], collection: Mapping[str, object]) -> list[str]:
    """Comment lines for the top of a run file (Breuer, Keller, Schaer 2022; www.ir-metadata.org).

    `method` describes the system; entries without a value are dropped. `collection` names topics and qrels.
    """
    import yaml

    found = environment()
    hardware = found["hardware"]
    cpu = {"model": hardware["cpu"], "architecture": hardware["machine"], "number of cores": hardware["cpus"]}
    metadata = {
        "tag": tag,
        "platform": {
            "hardware": {"cpu": cpu, "ram": f"{hardware.get('memory_gib', 'unknown')} GiB"},
            "operating system": {"platform": platform.system(), "kernel": platform.release()},
            "software": {"libraries": {"python": [f"{name} {version}" for name, version in found["versions"].items()]}},
        },
        "implementation": {"executable": {"cmd": command_line()}, "source": {"lang": "python", "commit": found.get("commit")}},
        "method": {"automatic": True, "retrieval": [{"name": tag} | {name: value for name, value in method.items() if value}]},
        "data": {"test collection": dict(collection)},
    }
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=4096)
    return ["ir_metadata.start", *text.splitlines(), "ir_metadata.end"]


def read_topics_of(path: Path) -> Iterator[tuple[str, tuple[str, list[str], npt.NDArray[np.float64]]]]:
    """Stream (tag, (query id, doc ids, scores)) of a plain run file; consecutive lines of one query form an item."""
    import pyarrow.compute as pc

    tag, query_id, doc_ids, scores = "", "", list[str](), list[npt.NDArray[np.float64]]()
    for batch in read_batches(path, COLUMNS):
        if any(pc.min(pc.binary_length(batch[name])).as_py() == 0 for name in COLUMNS if name != "score"):
            raise NotPlain  # repeated blanks
        tag = tag or batch["tag"][0].as_py()
        docs, values, start = batch["doc"].to_numpy(zero_copy_only=False).tolist(), batch["score"].to_numpy(), 0
        for found, n in stretches(batch["query"]):
            if scores and found != query_id:
                yield tag, (query_id, doc_ids, np.concatenate(scores))
                doc_ids, scores = [], []
            query_id = found
            doc_ids += docs[start : start + n]
            scores.append(values[start : start + n])
            start += n
    if not scores:
        raise NotPlain
    yield tag, (query_id, doc_ids, np.concatenate(scores))


def read_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Stream non-empty batches of lines of a plain run file; NotPlain for any other file."""
    import pyarrow as pa
    from pyarrow import csv

    if header_columns(*next(((line, where) for where, line in numbered_lines(path, "run")), ("", ""))):
        raise NotPlain
    reading = csv.ReadOptions(column_names=COLUMNS, block_size=BLOCK, skip_rows=_header(path))
    parsing = csv.ParseOptions(delimiter=" ", quote_char=False)
    types = dict.fromkeys(COLUMNS, pa.string()) | {"score": pa.float64()}
    converting = csv.ConvertOptions(column_types=types, include_columns=columns, null_values=[], strings_can_be_null=False)
    try:
        with csv.open_csv(path, reading, parsing, converting) as reader:
            yield from (batch for batch in reader if batch.num_rows)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:  # OSError: a damaged .gz
        raise NotPlain from error


def stretches(column: pa.StringArray) -> Iterator[tuple[str, int]]:
    """Stream (value, run length) for consecutive equal values of a column."""
    import pyarrow.compute as pc

    encoded = pc.run_end_encode(column)
    yield from zip(encoded.values.to_pylist(), np.diff(encoded.run_ends.to_numpy(), prepend=0).tolist(), strict=True)


def _header(path: Path) -> int:
    """The number of ir_metadata lines at the top of a run."""
    lines = numbered_lines(path, "run", blank=True)
    if next(lines, ("", ""))[1].rstrip() != "# ir_metadata.start":
        return 0
    for number, (_, line) in enumerate(lines, start=2):
        if line.rstrip() == "# ir_metadata.end":
            return number
    raise InputError(f"{path}:1: ir_metadata has no `# ir_metadata.end`")


def read_slowly(path: Path) -> tuple[str, dict[str, dict[str, float]]]:
    """(tag, query_id -> {doc_id: score}), read line by line with all checks; for malformed or unusual files.

    Takes TREC's 6 columns, ColBERT's 4 (`qid docid rank score`), `qid docid rank`, `qid docid score`, columns with a header,
    and JSON `{query_id: {doc_id: score}}`. Ranks become scores 1/rank.
    """
    hits: dict[str, dict[str, float]] = {}
    lines = islice(numbered_lines(path, "run", blank=True), _header(path), None)
    rows = ((where, words, line) for where, line in lines if (words := WORD.findall(line)))
    start, head, first = next(rows, ("", [], ""))
    if not head:
        raise InputError(f"run file is empty: {path}")
    if JSON_START.match(first):
        for query_id, doc_id, number in json_cells(path, "run"):
            hits.setdefault(query_id, {})[doc_id] = _number(str(number), str(path))
        return path.stem, hits
    header = header_columns(first, start)
    width, columns = len(head), header or LAYOUTS.get(len(head), {})
    value = "score" if "score" in columns else "rank"
    tag = path.stem if header or width != 6 else head[-1]
    for where, words, line in rows if header else chain([(start, head, first)], rows):
        if len(words) != width or not columns:
            raise InputError(f"{where}: expected `qid Q0 docid rank score tag`, found {len(words)} columns{text_kind(line)}")
        query_id, doc_id = words[columns["query"]], words[columns["doc"]]
        if width == 4 and not header and not words[2].isdecimal():
            raise InputError(f"{where}: expected a rank in column 3, found {words[2]!r}; are these judgements?")
        if doc_id in (found := hits.setdefault(query_id, {})):
            raise InputError(f"{where}: duplicate document {doc_id} for query {query_id}")
        found[doc_id] = _number(words[columns[value]], where, line)
    if not hits:
        raise InputError(f"{path}: no line after the header")
    if width == 4 and not header and {doc_id for found in hits.values() for doc_id in found} <= {"0", "Q0"}:
        raise InputError(f"{path}: these are judgements (`qid 0 docid relevance`), not a run")
    if value == "rank" or (width == 3 and not header):
        return tag, _scores(hits, path, is_named=bool(header))
    return tag, hits


def _scores(hits: dict[str, dict[str, float]], path: Path, is_named: bool) -> dict[str, dict[str, float]]:
    """Turn ranks into scores 1/rank. Numbers are ranks if they are 1 to n, or if a header says so. Other numbers are scores.

    InputError for whole numbers that ascend from 0 or 1 with gaps, which may be ranks.
    """
    columns = [list(found.values()) for found in hits.values()]
    if is_named and min(map(min, columns)) < 1:
        raise InputError(f"{path}: ranks begin at 1, found {min(map(min, columns)):g}")
    if is_named or all(sorted(column) == list(range(1, len(column) + 1)) for column in columns):
        falling = all(column == sorted(column, reverse=True) for column in columns)  # n to 1, best first: scores
        if is_named or not falling or all(len(column) == 1 for column in columns):
            return {query_id: {doc_id: 1 / rank for doc_id, rank in found.items()} for query_id, found in hits.items()}
    elif all(column[0] in (0, 1) and column == sorted({*map(round, column)}) for column in columns):
        if any(len(column) > 1 for column in columns):
            raise InputError(f"{path}: column 3 ascends, but not from 1 to n: ranks or scores? Write all six columns")
    return hits


def _number(text: str, where: str, line: str = "") -> float:
    """The score or rank of a line."""
    try:
        if "_" in text:  # float() accepts 1_0
            raise ValueError
        score = float(text)
    except ValueError:
        raise InputError(f"{where}: expected a score, found {text!r}{text_kind(line)}") from None
    with np.errstate(over="ignore"):
        if not np.isfinite(np.float32(score)):
            raise InputError(f"{where}: score {text} is not finite (as float32)")
    return score
