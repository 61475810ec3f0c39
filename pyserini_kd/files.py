"""What lies on disk: folders, atomic writes, checksums, records.

Nothing here knows about retrieval. Every file of this package is written to a temporary sibling and renamed when it is
complete, so that a crash, a full disk or Ctrl-C never leaves half a result under a final name.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gzip
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any


class InputError(ValueError):
    """The user's input is wrong; the message says what, where and what was expected. Commands exit with code 2."""


def home() -> Path:
    """Folder that holds `indexes/`, `runs/` and `models/`: PYSERINI_KD_HOME, or the current directory."""
    return Path(os.environ.get("PYSERINI_KD_HOME") or ".").expanduser()


def require_file(path: str | Path, what: str) -> Path:
    """The path, if it is a file with something in it; otherwise InputError."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{what} not found: {path}")
    if path.is_dir():
        raise InputError(f"{what} must be a file, but {path} is a folder")
    if not path.is_file():
        raise InputError(f"{what} must be a file, but {path} is a pipe or a device; files are read more than once")
    if path.stat().st_size == 0:
        raise InputError(f"{what} is empty: {path}")
    return path


OURS = ("manifest.json", "pyserini_kd.json", "config.json", "docid")  # what a folder that we may replace holds


def refuse_existing(path: Path, overwrite: bool, *, folder: bool = False) -> None:
    """InputError if something lies under `path` that may not be replaced, or no file (or `folder`) can be written there.

    Without `overwrite` nothing may be replaced; with it, files and folders of ours. Commands ask before they begin to work.
    """
    if folder and not path.name or folder and os.path.ismount(path):
        raise InputError(f"{path} is no folder of its own that could be replaced by the result; name one inside it")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path} is a pipe or a device; results are written to files and folders")
    if path.is_dir() and not folder:
        raise InputError(f"{path} is a folder; the name of a file was expected")
    if path.is_file() and folder and overwrite:
        raise InputError(f"{path} is a file; a folder was to be written there")
    if overwrite and path.is_dir() and _holds_something(path) and not any((path / name).exists() for name in OURS):
        raise InputError(f"{path} is neither an index nor a checkpoint; --overwrite does not replace such a folder")
    if not overwrite and path.exists() and not (path.is_dir() and not _holds_something(path)):
        raise InputError(f"{path} exists; give --overwrite to replace it, or another name")
    if folder and path.is_dir() and path.is_symlink() and not overwrite:
        raise InputError(f"{path} is a link to an empty folder; name that folder itself")
    for link in (*([path] if folder else []), *path.absolute().parents):
        if link.is_symlink() and not link.exists():
            raise InputError(f"{path} cannot be written: {link} is a link to nothing")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{path} cannot be written: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: no permission to write in {above}")


def _holds_something(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):  # another command is just replacing it
        return any(folder.iterdir())
    return False


@contextlib.contextmanager
def atomic_file(path: str | Path, *, overwrite: bool = True, binary: bool = False) -> Iterator[IO[Any]]:
    """Open a temporary sibling for writing; it takes the final name only when the block ends without an error.

    Text whose name ends in `.gz` is compressed, the same text to the same bytes.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = _sibling(path, tempfile.mkstemp)
    try:
        with os.fdopen(handle, "wb") as out:
            if binary:
                yield out
            else:
                zipped = gzip.GzipFile("", "wb", 6, out, mtime=0) if path.suffix == ".gz" else contextlib.nullcontext(out)
                with zipped as raw:
                    text = io.TextIOWrapper(raw, "utf-8")
                    yield text
                    text.detach()
            out.flush()
            os.fsync(out.fileno())
            os.chmod(name, 0o666 & ~_umask())
            refuse_existing(path, overwrite)  # another command may have written there meanwhile
            os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk does not say which file
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary sibling folder; it takes the final name only when the block ends without an error."""
    path = Path(path)
    put_back(path)
    refuse_existing(path, overwrite, folder=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = _sibling(path, _mkdtemp)
    partial = Path(name)
    try:
        yield partial
        os.chmod(partial, 0o777 & ~_umask())
        refuse_existing(path, overwrite, folder=True)  # another command may have written there meanwhile
        replace_folder(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def _sibling(path: Path, make: Callable[..., tuple[int, str]]) -> tuple[int, str]:
    """(open handle, name) of a new file or folder beside a path, locked; those that killed commands have left there go."""
    prefix, suffix = f".{path.name}.", ".partial"
    for name in os.listdir(path.parent):
        if re.fullmatch(rf"{re.escape(prefix)}\w{{8}}{re.escape(suffix)}", name):
            _remove_unlocked(path.parent / name)
    while True:
        handle, made = make(dir=path.parent, prefix=prefix, suffix=suffix)
        with contextlib.suppress(BlockingIOError):  # another command holds it: it took it for one of those
            _flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(handle, Path(made)):
                return handle, made
        os.close(handle)


def _mkdtemp(**where: Any) -> tuple[int, str]:
    while True:
        name = tempfile.mkdtemp(**where)
        with contextlib.suppress(FileNotFoundError):  # as above
            return os.open(name, os.O_RDONLY), name


def _remove_unlocked(left: Path) -> None:
    with contextlib.suppress(OSError):  # its writer still holds it; another removes it
        handle = os.open(left, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
        finally:
            os.close(handle)


def replace_folder(new: Path, path: Path) -> None:
    """Give the finished folder `new` its final name; what lay there before goes only after that. `put_back` mends a kill."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; a folder was to be written there")
    sync(new)  # what it was made from may be removed next
    with locked(path.parent):
        _put_back(path)
        if path.exists():
            os.replace(path, _old(path))
        try:
            os.replace(new, path)
        finally:
            _put_back(path)


def sync(folder: Path) -> None:
    """See to it that what was written in a folder outlives a loss of power."""
    for written in folder.rglob("*"):
        if written.is_file():
            with open(written, "rb") as handle:
                os.fsync(handle.fileno())


def put_back(path: Path) -> None:
    """What a killed `replace_folder` moved away gets its name again where nothing took its place; else it goes."""
    if os.path.lexists(_old(path)):
        with locked(path.parent):
            _put_back(path)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """One process after the other holds a lock: a folder that is there, else a file of that name. Its holder may remove it.

    The lock of a folder holds on one machine, that of a file also where a network shares it; where there are no locks, all
    processes go on at once.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
    """
    how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    while not is_at(handle := _lock(path, how), path):  # he who held it has removed it
        os.close(handle)
    try:
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def alone(work: Path, who: str) -> Iterator[None]:
    """InputError where another process (`who` it is) works in a folder of unfinished work; else this one does.

    The folder goes when the block ends, unless something is left in it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(work / "lock", wait=False))
        except BlockingIOError:
            raise InputError(f"another {who} is at work in {work}") from None
        try:
            yield
        finally:
            (work / "lock").unlink(missing_ok=True)
            clear(work)


def clear(work: Path, names: str = "") -> None:
    """Remove some of the folders that we made under `work`, and `work` itself where nothing is left; nothing foreign."""
    for folder in work.glob(names) if names else ():
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not there, or holds something
        work.rmdir()


def _lock(path: Path, how: int) -> int:
    handle = _open(path)
    try:
        _flock(handle, how)
    except BlockingIOError:
        os.close(handle)
        raise
    return handle


def _flock(handle: int, how: int) -> None:
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        pass


def _open(path: Path) -> int:
    for turn in range(1000):  # what its last holder removes meanwhile is made anew
        try:
            if path.is_dir():
                return os.open(path, os.O_RDONLY)
            try:
                path.parent.mkdir(parents=True)
            except FileExistsError:
                if path.parent.is_symlink() and not path.parent.exists():  # which points to nothing
                    raise
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if turn == 999:  # not removed: where nothing can be made
                raise
    raise AssertionError


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False


def _put_back(path: Path) -> None:
    old = _old(path)
    if not os.path.lexists(old):
        return
    if not path.exists():
        os.replace(old, path)
    elif old.is_symlink():
        old.unlink()  # what it points to is the user's
    else:
        shutil.rmtree(old, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def comparable(record: Any) -> Any:
    """A record as a file gives it back, without what checkpoints are called: equal where the same weights did the same.

    >>> comparable({"encoder": {"name": "a", "sizes": (1, 2)}})
    {'encoder': {'sizes': [1, 2]}}
    """
    return json.loads(json.dumps(record), object_pairs_hook=lambda pairs: {k: v for k, v in pairs if k != "name"})


def difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The first setting that is not the same, in words."""
    for name, mine in wanted.items():
        theirs = found.get(name)
        if isinstance(mine, dict) and isinstance(theirs, dict) and mine != theirs:
            return difference(mine, theirs)
        if mine != theirs:
            return f"another {name}: {theirs}, here {mine}"
    return "other settings"


def stamp(files: Iterable[Path]) -> str:
    """What tells whether files have changed: a digest of their names, sizes and times, not of their contents."""
    found = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def write_json(path: str | Path, record: dict[str, Any]) -> None:
    """Write a record atomically, keys in the given order, one line per entry; bytes that are no text are escaped."""
    with atomic_file(path, binary=True) as out:
        out.write(f"{json.dumps(record, indent=2, ensure_ascii=False)}\n".encode(errors="backslashreplace"))


def record_path(output: Path) -> Path:
    """Where the record of an output lies: `run.json` of `run.txt`, `t.csv.json` of a table, else `NAME.record.json`."""
    if output.suffix == ".txt":
        return output.with_suffix(".json")
    return output.with_name(f"{output.name}{'' if output.suffix in ('.csv', '.parquet') else '.record'}.json")


def refuse_existing_run(output: Path, overwrite: bool) -> None:
    """InputError if a run, or the record beside it, would be replaced without leave."""
    refuse_existing(output, overwrite)
    refuse_existing(record_path(output), overwrite)


def write_record(output: Path, **fields: Any) -> None:
    """Write the record beside a run: command, what the caller adds, checksums, versions, commit, hardware, energy.

    Checksums are those of the run and of the files and index folders (their manifests) that `config` names. A file that is
    HUGE has its size here instead.
    """
    values = fields.get("config", {}).values()
    named = [word for value in values for word in (value if isinstance(value, list | tuple) else [value])]
    paths = {word: _digestible(word) for word in (str(output), *map(str, named))}
    sizes = {path: os.path.getsize(path) for path in paths.values() if path}
    checksums = {
        word: sha256(path) if sizes[path] < HUGE else f"not taken: {sizes[path]} bytes" for word, path in paths.items() if path
    }
    record = {"command": command_line(), **fields, "sha256": checksums, **environment()}
    write_json(record_path(output), record | ({"energy_joules": joules} if (joules := energy()) else {}))


HUGE = 1 << 33  # bytes; MS MARCO's 3 GB of passages are less, and take a few seconds


def _digestible(word: str) -> str | None:
    """The file whose checksum stands for a path, if it is one."""
    path = os.path.join(word, "manifest.json") if os.path.isdir(word) else word
    return path if os.path.isfile(path) else None


def read_json(path: str | Path, what: str) -> dict[str, Any]:
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


def sha256(*paths: str | Path) -> str:
    """Hex SHA-256 over the contents of the files, in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """Versions, commit (of a checkout) and hardware for a record beside a result."""
    names = ["pyserini-kd", "pyserini", "faiss-cpu", "torch", "transformers", "trectools", "numpy"]
    versions = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    commit = _commit()
    return {"versions": versions, **({"commit": commit} if commit else {}), "hardware": _hardware()}


@functools.cache
def _commit() -> str | None:
    """The commit that this package is a checkout of, with `-dirty` where files differ from it; None for an installed one."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # no git here, or a very slow disk
        return subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    return None


def _hardware() -> dict[str, Any]:
    cpu = platform.processor()
    with contextlib.suppress(OSError):  # Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    hardware: dict[str, Any] = {"machine": platform.machine(), "cpu": cpu, "cpus": os.cpu_count()}
    with contextlib.suppress(ValueError, OSError):
        hardware["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        hardware["gpu"] = torch.cuda.get_device_name()
    return hardware


RAPL = Path("/sys/class/powercap")  # Linux's counters of processor packages, in microjoules; mostly readable by root only


def _counters() -> dict[Path, int]:
    counters = {}
    for zone in RAPL.glob("intel-rapl:?"):
        with contextlib.suppress(OSError, ValueError):
            counters[zone] = int((zone / "energy_uj").read_text())
    return counters


_AT_START = _counters()


def energy() -> float | None:
    """Joules that the processor packages took since this process began, everything else on them included; None if unknown."""
    total = 0
    for zone, now in _counters().items():
        if zone in _AT_START:
            spent = now - _AT_START[zone]
            total += spent if spent >= 0 else spent + int((zone / "max_energy_range_uj").read_text())  # began again at 0
    return round(total / 1e6, 1) if total else None


def command_line() -> str:
    """The command as the user typed it, for records."""
    name = Path(sys.argv[0]).name
    if name == "__main__.py":
        name = "python -m pyserini_kd"
    elif name.endswith(".py") and Path(sys.argv[0]).parent.name == "pyserini_kd":
        name = f"python -m pyserini_kd.{name[:-3]}"
    return f"{name} {shlex.join(sys.argv[1:])}".strip()
