"""The records beside runs: how a run was made, and from which other runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import read_json, record_path

Record = dict[str, Any]


def record_of(run: str | Path) -> Record | None:
    """The record beside a run; None if there is none, or if the file of that name is another program's."""
    path = record_path(Path(run))
    if path == Path(run) or not path.is_file():
        return None
    try:
        return read_json(path, "record")
    except InputError:
        return None


def config_of(record: Record) -> Record:
    """The settings of the command that made a run; empty if the record has none."""
    config = record.get("config")
    return config if isinstance(config, dict) else {}


def made_from(record: Record) -> list[str]:
    """The runs that a run was made from (fused, reranked), as its command named them."""
    config = config_of(record)
    runs = config.get("runs")
    return [run for run in [*(runs if isinstance(runs, list) else []), config.get("run")] if isinstance(run, str) and run]
