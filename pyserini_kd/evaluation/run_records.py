"""Records beside runs: how a run was made, from which other runs, and how long its queries took."""

from collections.abc import Set
from pathlib import Path

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import Record, read_json, record_path

YEAR = 365 * 86_400.0  # seconds
ONCE = ("open_seconds", "read_seconds", "check_seconds", "write_seconds")  # stages other than answering queries


def record_of(run: str | Path) -> Record | None:
    """The record beside a run; None if there is none or if another program wrote the file."""
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
    """The source runs of a fused or reranked run, as its command named them."""
    config = config_of(record)
    runs = config.get("runs")
    return [run for run in [*(runs if isinstance(runs, list) else []), config.get("run")] if isinstance(run, str) and run]


def ms_per_query(path: str | Path, n_queries: int) -> tuple[float | None, str]:
    """Milliseconds per query of a run, and the runs included; or None and the reason why the time is unknown."""
    seconds, what = seconds_of(path)
    return None if seconds is None else 1000 * seconds / max(1, n_queries), what


def seconds_of(path: str | Path) -> tuple[float | None, str]:
    """Wall time of answering the queries of a run, and the runs included; or None and the reason why it is unknown.

    Source runs are included. Each run counts once.
    """
    spent: dict[Path, float] = {}
    why = _gather(Path(path), spent, set())
    if why is None and not sum(spent.values()) > 0:
        why = f"{record_path(Path(path)).name} has no times"
    return (sum(spent.values()), " + ".join(run.name for run in spent)) if why is None else (None, why)


def _gather(path: Path, spent: dict[Path, float], above: Set[Path]) -> str | None:
    """Add the seconds of a run and its source runs to `spent`; returns the reason if this fails."""
    name, run = record_path(path).name, path.resolve()
    if run in above:
        return "it was made from itself"
    if run in spent:
        return None
    if (record := record_of(path)) is None:
        is_there = record_path(path).exists() and record_path(path) != path
        return f"{name} is not the record of a run" if is_there else f"no record {name}"
    if record.get("resumed"):
        return f"{name} has only the time since its reranking resumed"
    if (own := _answering(record)) is None:
        return f"{name} has no times"
    spent[run] = own
    for source in made_from(record):
        beside = path.parent / Path(source).name
        if why := _gather(Path(source) if record_path(Path(source)).exists() else beside, spent, above | {run}):
            return f"it was made from {source}: {why}"
    return None


def _answering(record: Record) -> float | None:
    """Seconds of the stages that answer queries; the total if the record names no stages."""
    spent = {name: float(value) for name, value in record.items() if isinstance(value, int | float) and 0 <= value < YEAR}
    stages = {name: value for name, value in spent.items() if name.endswith("_seconds")}
    return sum(value for name, value in stages.items() if name not in ONCE) if stages else spent.get("seconds")
