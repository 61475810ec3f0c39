"""What a query cost, by the records that lie beside runs."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import read_json, record_path

YEAR = 365 * 86_400.0  # seconds
ONCE = ("open_seconds", "read_seconds", "check_seconds", "write_seconds")
"""Stages of a record that are no part of answering a query: loading models and indexes, reading, checking, writing runs."""


def ms_per_query(path: str | Path, n_queries: int) -> tuple[float | None, str]:
    """Milliseconds a query that a run took, and by which records (or why it is not known)."""
    seconds, what = seconds_of(path)
    return None if seconds is None else 1000 * seconds / max(1, n_queries), what


def seconds_of(path: str | Path) -> tuple[float | None, str]:
    """Wall time that answering took by the record beside a run, and what it is the time of (or why it is not known).

    A run that was made from others (fused, reranked) took their time too, where its record names them; each counts once.
    """
    spent: dict[Path, float] = {}
    why = _gather(Path(path), spent, set())
    if why is None and not sum(spent.values()) > 0:
        why = f"{record_path(Path(path)).name} has no seconds"
    return (sum(spent.values()), " + ".join(run.name for run in spent)) if why is None else (None, why)


def _gather(path: Path, spent: dict[Path, float], above: Set[Path]) -> str | None:
    """Add the seconds of a run, and of those that it was made from, to `spent`; why that cannot be, where it cannot."""
    record_file, run = record_path(path), path.resolve()
    if run in above:
        return "it is made from itself"
    if run in spent:
        return None
    if not record_file.exists() or record_file == path:
        return f"no record {record_file.name}"
    try:
        record = read_json(record_file, "record")
    except InputError:  # a file of somebody else's
        return f"{record_file.name} is no record of a run"
    if record.get("resumed"):
        return f"{record_file.name} tells the seconds since its reranking was resumed alone"
    own = _answering(record)
    if own is None:
        return f"{record_file.name} has no seconds"
    spent[run] = own
    config = record["config"] if isinstance(record.get("config"), dict) else {}  # else of another's making
    runs = config["runs"] if isinstance(config.get("runs"), list) else []
    for source in (source for source in [*runs, config.get("run")] if isinstance(source, str) and source):
        beside = path.parent / Path(source).name
        why = _gather(Path(source) if record_path(Path(source)).exists() else beside, spent, above | {run})
        if why is not None:
            return f"it was made from {source}: {why}"
    return None


def _answering(record: dict[str, Any]) -> float | None:
    """The stages that answer queries, where a record tells stages apart; otherwise all its seconds."""
    numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
    spent = {name: float(value) for name, value in numbers.items() if 0 <= value < YEAR}
    stages = {name: value for name, value in spent.items() if name.endswith("_seconds")}
    if stages:
        return sum(value for name, value in stages.items() if name not in ONCE)
    return spent.get("seconds")
