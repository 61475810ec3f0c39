"""Records: JSON files beside results that say how the results were made."""

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
"""Bytes of a file from which no checksum is taken: MS MARCO's 3 GB of passages are less, and take a few seconds."""


def comparable(record: T) -> T:
    """A record as its file gives it back, without names of checkpoints: equal where the same weights did the same.

    >>> comparable({"encoder": {"name": "a", "sizes": (1, 2)}})
    {'encoder': {'sizes': [1, 2]}}
    """
    return json.loads(json.dumps(record), object_pairs_hook=lambda pairs: {k: v for k, v in pairs if k != "name"})


def difference(wanted: Mapping[str, object], found: Mapping[str, object]) -> str:
    """The first setting that is not the same, in words."""
    for name, mine in wanted.items():
        theirs = found.get(name)
        if isinstance(mine, dict) and isinstance(theirs, dict) and mine != theirs:
            return difference(mine, theirs)
        if mine != theirs:
            return f"another {name}: {theirs}, here {mine}"
    return "other settings"


def stamp(files: Iterable[Path]) -> str:
    """A digest of the names, sizes and times of files, not of their contents: it tells whether they have changed."""
    found = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def write_json(path: str | Path, record: Mapping[str, object]) -> None:
    """Write a record atomically, keys in the given order, one line per entry. Bytes that are no text are escaped."""
    with atomic_file(path, binary=True) as out:
        out.write(f"{json.dumps(record, indent=2, ensure_ascii=False)}\n".encode(errors="backslashreplace"))


def read_json(path: str | Path, what: str) -> Record:
    """Read a JSON object; InputError names the file and line where it is not one."""
    path = require_file(path, what)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid JSON (no UTF-8 text)") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}:1: expected a JSON object, found {type(record).__name__}")
    return record


def record_path(output: Path) -> Path:
    """The path of an output's record: `run.json` for `run.txt`, `t.csv.json` for a table, else `NAME.record.json`."""
    if output.suffix == ".txt":
        return output.with_suffix(".json")
    return output.with_name(f"{output.name}{'' if output.suffix in ('.csv', '.parquet') else '.record'}.json")


def refuse_existing_run(output: Path, overwrite: bool) -> None:
    """InputError if a run or its record exists and may not be replaced."""
    refuse_existing(output, overwrite)
    refuse_existing(record_path(output), overwrite)


def write_record(output: Path, **fields: object) -> None:
    """Write the record beside a run: command, what the caller adds, checksums, versions, commit, hardware, energy.

    Checksums are those of the run and of the files and index folders (their manifests) that `config` names. A file that is
    HUGE has its size here instead.
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
