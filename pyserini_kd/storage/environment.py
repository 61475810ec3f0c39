"""The environment of a result, for its record: versions, commit, hardware, energy, checksums."""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

PACKAGES = ("pyserini-kd", "pyserini", "faiss-cpu", "torch", "transformers", "trectools", "numpy")
Hardware = dict[str, str | int | float | None]


class Environment(TypedDict, total=False):
    """The environment in a record; `commit` exists only for a checkout."""

    versions: dict[str, str]
    commit: str
    hardware: Hardware


def sha256(*paths: str | Path) -> str:
    """Hex SHA-256 of the concatenated contents of the files."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def environment() -> Environment:
    """Versions, commit (of a checkout) and hardware, for a record."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    commit = _commit()
    return {"versions": versions, **({"commit": commit} if commit else {}), "hardware": _hardware()}


@functools.cache
def _commit() -> str | None:
    """The commit of this checkout, with `-dirty` after local changes; None for an installed package."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # git is missing, or the disk is very slow
        return subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    return None


def _hardware() -> Hardware:
    import psutil

    cpu = platform.processor()
    with contextlib.suppress(OSError, StopIteration):  # Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    hardware: Hardware = {"machine": platform.machine(), "cpu": cpu, "cpus": os.cpu_count(), "memory_gib": memory}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        hardware["gpu"] = torch.cuda.get_device_name()
    return hardware


RAPL = Path("/sys/class/powercap")  # Linux energy counters of CPU packages, in microjoules; often readable only by root


def _counters() -> dict[Path, int]:
    counters = {}
    for zone in RAPL.glob("intel-rapl:?"):
        with contextlib.suppress(OSError, ValueError):
            counters[zone] = int((zone / "energy_uj").read_text())
    return counters


_AT_START = _counters()  # read at import, because `energy` counts from the start of the process


def energy() -> float | None:
    """Joules used by the CPU packages since this process started, by all processes together; None if unknown."""
    total = 0
    for zone, now in _counters().items():
        if zone in _AT_START:
            spent = now - _AT_START[zone]
            total += spent if spent >= 0 else spent + int((zone / "max_energy_range_uj").read_text())  # counter overflow
    return round(total / 1e6, 1) if total else None


def command_line() -> str:
    """The command line as the user typed it, for records."""
    program = Path(sys.argv[0])
    name = program.name
    if name == "__main__.py":
        name = "python -m pyserini_kd"
    elif program.suffix == ".py" and program.parent.name == "pyserini_kd":
        name = f"python -m pyserini_kd.{program.stem}"
    return f"{name} {shlex.join(sys.argv[1:])}".strip()
