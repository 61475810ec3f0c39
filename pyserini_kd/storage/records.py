"""Records: JSON files beside results that document how the results were made."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pyserini_kd.storage.environment import command_line, energy, environment, sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, refuse_existing, require_file

Record = dict[str, Any]
"""A JSON object."""

T = TypeVar("T")

HUGE = 1 << 33
"""Files of this many bytes or more get no checksum. MS MARCO passages (3 GB) are smaller and take a few seconds."""


def comparable(record: T) -> T:
    """Normalise a record for comparison: as after a JSON round trip, and without any `name`, so that only weights count.

    >>> comparable({"encoder": {"name": "a", "sizes": (1, 2)}})
    {'encoder': {'sizes': [1, 2]}}
    """
    return json.loads(json.dumps(record), object_pairs_hook=lambda pairs: {k: v for k, v in pairs if k != "name"})


def difference(wanted: Mapping[str, object], found: Mapping[str, object]) -> str:
    """The first setting that differs, as text for a message."""
    for name, mine in wanted.items():
        theirs = found.get(name)
        if isinstance(mine, dict) and isinstance(theirs, dict) and mine != theirs:
            return difference(mine, theirs)
        if mine != theirs:
            return f"{name} {theirs} instead of {mine}"
    return "other settings"


def stamp(files: Iterable[Path]) -> str:
    """Hex hash of names, sizes and modification times of files, to detect changes without reading them."""
    found = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def write_json(path: str | Path, record: Mapping[str, object]) -> None:
    """Write a record atomically, with keys in the given order. Bytes that are not UTF-8 are escaped."""
    with atomic_file(path, binary=True) as out:
        out.write(f"{json.dumps(record, indent=2, ensure_ascii=False)}\n".encode(errors="backslashreplace"))


def read_json(path: str | Path, what: str) -> Record:
    """Read a JSON object; InputError with file and line for anything else."""
    path = require_file(path, what)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid JSON (not UTF-8 text)") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}:1: expected a JSON object, found {type(record).__name__}")
    return record


def record_path(output: Path) -> Path:
    """The record path of an output: `run.json` for `run.txt`, `t.csv.json` for a table, else `NAME.record.json`."""
    if output.suffix == ".txt":
        return output.with_suffix(".json")
    return output.with_name(f"{output.name}{'' if output.suffix in ('.csv', '.parquet') else '.record'}.json")


def refuse_existing_run(output: Path, overwrite: bool) -> None:
    """InputError if a run or its record exists, unless `overwrite` is true."""
    refuse_existing(output, overwrite)
    refuse_existing(record_path(output), overwrite)


def write_record(output: Path, **fields: object) -> None:
    """Write the record of a run: command, `fields`, checksums, versions, commit, hardware, energy.

    Checksums cover the run, and all files and index folders (their manifests) in `config`. HUGE files get their size instead.
    """
    config = fields.get("config")
    values = config.values() if isinstance(config, dict) else ()
    named = [word for value in values for word in (value if isinstance(value, list | tuple) else [value])]
    checksums = {}
    for word in (str(output), *map(str, named)):
        path = os.path.join(word, "manifest.json") if os.path.isdir(word) else word
        if os.path.isfile(path):
            size = os.path.getsize(path)
            checksums[word] = sha256(path) if size < HUGE else f"not taken: {size} bytes"
    record = {"command": command_line(), **fields, "sha256": checksums, **environment()}
    write_json(record_path(output), record | ({"energy_joules": joules} if (joules := energy()) else {}))
