"""Read run files (TREC, MS MARCO) in blocks of lines, and write them topic by topic."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyserini_kd.data.lines import numbered_lines
from pyserini_kd.storage.arrays import Floats
from pyserini_kd.storage.environment import command_line, environment
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("query", "q0", "doc", "rank", "score", "tag")
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
    """(tag, query_id -> {doc_id: score}), read line by line with all checks; for malformed or unusual files."""
    hits: dict[str, dict[str, float]] = {}
    tag, columns = path.stem, 0
    for where, line in islice(numbered_lines(path, "run", blank=True), _header(path), None):
        fields = line.split()
        if not fields:
            continue
        columns = columns or len(fields)
        if len(fields) != columns or columns not in (3, 6):
            raise InputError(f"{where}: expected `qid Q0 docid rank score tag`, found {len(fields)} columns")
        if columns == 6:
            query_id, _, doc_id, _, score, tag = fields
        else:
            query_id, doc_id, score = fields
        if doc_id in (judged := hits.setdefault(query_id, {})):
            raise InputError(f"{where}: duplicate document {doc_id} for query {query_id}")
        judged[doc_id] = _score(score, where, is_rank=columns == 3)
    if not hits:
        raise InputError(f"run file is empty: {path}")
    return tag, hits


def _score(text: str, where: str, is_rank: bool) -> float:
    """The score of a line; 1/rank in an MS MARCO run."""
    try:
        if "_" in text or (is_rank and int(text) < 1):  # int() accepts 1_0
            raise ValueError
        score = 1.0 / int(text) if is_rank else float(text)
    except ValueError:
        raise InputError(f"{where}: expected a {'rank' if is_rank else 'score'}, found {text!r}") from None
    with np.errstate(over="ignore"):
        if not np.isfinite(np.float32(score)):
            raise InputError(f"{where}: score {text} is not finite (as float32)")
    return score
