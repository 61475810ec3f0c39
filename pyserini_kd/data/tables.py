"""Read records from tables and JSON: CSV and TSV with a header, Parquet, Arrow (Hugging Face datasets), JSON arrays."""

import contextlib
import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pyserini_kd.data.lines import check_record, json_line, numbered_lines, reading, text_kind
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file
from pyserini_kd.storage.records import Record

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1024  # rows of a Parquet file read at once
CHUNK = 1 << 16  # characters of a JSON array read at first
SEPARATORS = ",;\t|"  # of CSV


def csv_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Stream (`file:line`, row) of a CSV or TSV file with a header. Quoted fields may contain line breaks."""
    lines = (f"{line}\n" for _, line in numbered_lines(path, "collection", blank=True))
    first = next(lines, "")
    rows = csv.reader(_chained(first, lines), delimiter=max(SEPARATORS, key=first.count), strict=True)
    csv.field_size_limit(1 << 31 - 1)
    number = 1
    try:
        names = next(rows)
        names = [name if names.index(name) == place else f"{name}.{place}" for place, name in enumerate(names)]  # as pandas
        number = rows.line_num + 1
        for row in rows:
            if row:
                if len(row) != len(names):
                    raise InputError(f"{path}:{number}: found {len(row)} columns, the header has {len(names)}")
                yield f"{path}:{number}", dict(zip(names, row, strict=True))
            number = rows.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{number}: wrong quotes ({error}); write the table with a CSV library") from None


def _chained(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


def parquet_records(path: Path, names: Collection[str], needed: Iterable[str]) -> Iterator[tuple[str, Record]]:
    """Stream (place, row) of a Parquet file. Columns other than `names` are not read, unless one of `needed` is missing."""
    from pyarrow import parquet

    require_file(path, "collection")
    with _arrow_errors(path, "Parquet"), parquet.ParquetFile(path) as file:
        found = file.schema_arrow.names
        columns = [name for name in found if name.lower() in names or name in names]
        yield from _rows(file.iter_batches(ROWS, columns=columns if columns and {*needed} <= {*found} else None), path)


def arrow_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Stream (place, row) of an Arrow file of a Hugging Face dataset."""
    import pyarrow as pa

    with _arrow_errors(path, "Arrow"), pa.memory_map(str(path)) as file:
        yield from _rows(pa.ipc.open_stream(file), path)


@contextlib.contextmanager
def _arrow_errors(path: Path, kind: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError):
        raise InputError(f"{path}: not a complete {kind} file") from None


def _rows(batches: "Iterable[pa.RecordBatch]", path: Path) -> Iterator[tuple[str, Record]]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield f"{path}, row {number}", row


def json_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Stream (`file:line`, object) of JSON lines, of an array of objects, or of objects printed over several lines."""
    with reading(path, "collection") as raw:
        if raw.peek(512).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":  # its first line may be all of it
            return _array_records(path)
    _, first = next(numbered_lines(path, "collection"), ("", ""))
    try:
        one_a_line = isinstance(json.loads(first), dict)
    except json.JSONDecodeError:
        one_a_line = False
    except (ValueError, RecursionError):  # too many digits or brackets
        one_a_line = True
    if one_a_line:
        return ((where, json_line(line, where)) for where, line in numbered_lines(path, "collection"))
    return _array_records(path)


def _array_records(path: Path) -> Iterator[tuple[str, Record]]:
    decoder, line, size, is_open = json.JSONDecoder(), 1, CHUNK, False
    with reading(path, "collection") as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="\n") as file:
        text = file.read(size)
        while True:
            rest = text.lstrip(" \t\r\n,")
            line += text.count("\n", 0, len(text) - len(rest))
            text = rest or file.read(size)
            if not text:
                break
            if not rest:
                continue
            if text[0] in "[]" and is_open == (text[0] == "]"):
                text, is_open = text[1:], not is_open
                continue
            where = f"{path}:{line}"
            try:
                record, end = decoder.raw_decode(text)
            except json.JSONDecodeError as error:
                if (error.pos > len(text) - 12 or error.msg.startswith("Unterminated")) and (more := file.read(size)):
                    text, size = text + more, 2 * size
                    continue
                raise InputError(
                    f"{where}: not valid JSON ({error.msg}); expected one JSON object per line{text_kind(text)}"
                ) from None
            except (ValueError, RecursionError):
                raise InputError(f"{where}: JSON with too many digits in a number or too many nested brackets") from None
            yield where, check_record(record, text[:end], where)
            line, text, size = line + text.count("\n", 0, end), text[end:], CHUNK
    if is_open:
        raise InputError(f"{path}:{line}: not valid JSON (the array has no end)")
