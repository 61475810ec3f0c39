"""The lines of run files: TREC and MS MARCO format, read a block at a time, written a topic at a time."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyserini_kd.data.lines import numbered_lines
from pyserini_kd.storage.environment import command_line, environment
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file

if TYPE_CHECKING:
    import pyarrow as pa


def check_tag(tag: str) -> None:
    """InputError where a tag does not fit into a run's column."""
    if len(tag.split()) != 1:
        raise InputError(f"a run's tag must be one word without blanks, found {tag!r}")


def write_run(
    path: str | Path,
    tag: str,
    topics: Iterable[tuple[str, tuple[list[str], npt.NDArray[np.float32]]]],
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


class NotPlain(Exception):
    """The file is not six columns between single blanks."""


def read_topics_of(path: Path) -> Iterator[tuple[str, tuple[str, list[str], npt.NDArray[np.float64]]]]:
    """(tag, (query id, doc ids, scores)) of each stretch of lines of one query, as they stand in a plain run file."""
    import pyarrow.compute as pc

    tag: str | None = None
    query_id, doc_ids, scores = "", list[str](), list[npt.NDArray[np.float64]]()
    for batch in read_batches(path, list(COLUMNS)):
        if any(pc.min(pc.binary_length(batch[name])).as_py() == 0 for name in COLUMNS if name != "score"):
            raise NotPlain  # two blanks in a row
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
    if tag is None:
        raise NotPlain
    yield tag, (query_id, doc_ids, np.concatenate(scores))


COLUMNS = ("query", "q0", "doc", "rank", "score", "tag")


def read_batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Blocks of lines of a plain run file, never empty; NotPlain where it is none."""
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
        raise NotPlain from error


BLOCK = 1 << 20
"""Bytes of a run file read at once."""


def stretches(column: pa.StringArray) -> Iterator[tuple[str, int]]:
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


def read_slowly(path: Path) -> tuple[str, dict[str, dict[str, float]]]:
    """(tag, query_id -> {doc_id: score}), read line by line with all checks; for files that are faulty or unusual."""
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
    return tag, hits


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
