"""Write whole files and folders, and lock them.

A command writes into a temporary file or folder beside the final path: the sibling. The sibling gets the final name only when
it is complete. Locks prevent that two commands write the same thing at the same time.
"""

import contextlib
import errno
import gzip
import io
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from pyserini_kd.storage.errors import InputError

OURS = ("manifest.json", "pyserini_kd.json", "config.json", "docid")
"""A folder with one of these names in it is an index or a checkpoint. Only such folders may be replaced."""
_reading = threading.Lock()


def home() -> Path:
    """Folder that holds `indexes/`, `runs/` and `models/`: PYSERINI_KD_HOME, or the current directory."""
    return Path(os.environ.get("PYSERINI_KD_HOME") or ".").expanduser()


def cache() -> Path:
    """The folder for files that can be made again: PYSERINI_KD_CACHE or `~/.cache/pyserini_kd`."""
    return Path(os.environ.get("PYSERINI_KD_CACHE") or Path.home() / ".cache" / "pyserini_kd").expanduser()


def require_file(path: str | Path, what: str) -> Path:
    """Return the path if it is a file that is not empty; otherwise raise InputError."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{what} not found: {path}")
    if not path.is_file():
        found = "a folder" if path.is_dir() else "a pipe or a device; files are read more than once"
        raise InputError(f"{what} must be a file, but {path} is {found}")
    if path.stat().st_size == 0:
        raise InputError(f"{what} is empty: {path}")
    return path


def require_path(path: str | Path, what: str) -> Path:
    """Return the path if it exists; otherwise raise InputError, with a hint if it exists under `home()`."""
    path = Path(path)
    if path.exists():
        return path
    there = home() / path
    hint = f"; there is one in PYSERINI_KD_HOME: {there}" if there.exists() else ""
    raise InputError(f"{what} not found: {path} ({path.absolute()}){hint}")


def refuse_existing(path: Path, overwrite: bool, *, folder: bool = False) -> None:
    """Raise InputError if `path` holds something that may not be replaced, or if no file (or `folder`) can be written there.

    Without `overwrite`, nothing may be replaced. With it, files and our own folders may be replaced. Commands call this before
    they start to work.
    """
    filled, ours = path.is_dir() and _holds_something(path), any((path / name).exists() for name in OURS)
    fixed = folder and (not path.name or os.path.ismount(path))
    special = path.exists() and not path.is_file() and not path.is_dir()
    parents = path.absolute().parents
    named = (*([path] if folder else []), *parents)
    broken = next((link for link in named if link.is_symlink() and not link.exists()), None)
    above = next(parent for parent in parents if parent.exists())
    rules = [
        (fixed, "cannot be replaced by the result; name a folder inside it"),
        (special, "is a pipe or a device; results are written to files and folders"),
        (path.is_dir() and not folder, "is a folder; the name of a file was expected"),
        (path.is_file() and folder and overwrite, "is a file, but the result is a folder"),
        (filled and overwrite and not ours, "is neither an index nor a checkpoint; `overwrite` does not replace such a folder"),
        (not overwrite and (filled or path.is_file()), "exists; set `overwrite` to replace it, or choose another name"),
        (path.is_dir() and path.is_symlink() and not overwrite, "is a link to an empty folder; name that folder itself"),
        (broken, f"cannot be written: {broken} is a broken link"),
        (not above.is_dir(), f"cannot be written: {above} is a file"),
        (not os.access(above, os.W_OK | os.X_OK), f"cannot be written: no permission to write in {above}"),
    ]
    for refused, why in rules:
        if refused:
            raise InputError(f"{path} {why}")


def _holds_something(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):  # another command replaces it at this moment
        return any(folder.iterdir())
    return False


@contextlib.contextmanager
def atomic_file(path: str | Path, *, overwrite: bool = True, binary: bool = False) -> Iterator[IO[Any]]:
    """Open a temporary file beside the path for writing. It gets the final name only if the block ends without an error.

    Text is compressed if the name ends in `.gz`. The same text always gives the same bytes.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = held_sibling(path)
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
            refuse_existing(path, overwrite)  # another command may have written there in the meantime
            os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # the error of a full disk does not name the file
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Make a temporary folder beside the path. It gets the final name only if the block ends without an error."""
    path = Path(path)
    put_back(path)
    refuse_existing(path, overwrite, folder=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = held_sibling(path, folder=True)
    try:
        yield partial
        refuse_existing(path, overwrite, folder=True)  # another command may have written there in the meantime
        replace_folder(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def held_sibling(path: Path, folder: bool = False) -> tuple[int, Path]:
    """Make a new file or folder beside a path and lock it; returns its open handle and its own path.

    The siblings that killed commands left are removed first. A sibling whose command is still at work is locked, and stays.
    """
    for left in siblings(path):
        _remove_unlocked(left)
    while True:
        made = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        if folder:
            made.mkdir()
        with contextlib.suppress(FileNotFoundError):  # another command took it for a leftover and removed it
            handle = os.open(made, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            if take(handle, wait=False) and is_at(handle, made):
                return handle, made
            os.close(handle)  # another command is about to remove it


def siblings(path: Path) -> list[Path]:
    """The siblings of a path that `held_sibling` made, those of killed commands too."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}\.partial")
    return [path.parent / name for name in os.listdir(path.parent) if pattern.fullmatch(name)]


def _remove_unlocked(left: Path) -> None:
    with contextlib.suppress(OSError):  # another command removes it, or the file system has no locks
        handle = os.open(left, os.O_RDONLY if left.is_dir() else os.O_RDWR)
        try:
            if lock_descriptor(handle, blocking=False):  # otherwise its command is still at work
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        finally:
            os.close(handle)


def replace_folder(new: Path, path: Path) -> None:
    """Give the finished folder `new` its final name, then remove the old folder. After a kill, `put_back` repairs the rest."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, but the result is a folder")
    sync(new)  # the caller may remove the sources of this folder next
    with locked(path.parent):
        _put_back(path)
        if path.exists():
            os.replace(path, _old(path))
        try:
            os.replace(new, path)
        finally:
            _put_back(path)


def sync(folder: Path) -> None:
    """Write the files of a folder to the disk, so that they survive a loss of power."""
    for written in folder.rglob("*"):
        if written.is_file():
            with open(written, "rb") as handle:
                os.fsync(handle.fileno())


def put_back(path: Path) -> None:
    """Repair a killed `replace_folder`. The old folder gets its name back; if the new one has that name, the old is removed."""
    if os.path.lexists(_old(path)):
        with locked(path.parent):
            _put_back(path)


def _put_back(path: Path) -> None:
    old = _old(path)
    if not os.path.lexists(old):
        return
    if not path.exists():
        os.replace(old, path)
    elif old.is_symlink():
        old.unlink()  # the folder that the link points to belongs to the user
    else:
        shutil.rmtree(old, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True, make_folder: bool = True) -> Iterator[None]:
    """Hold the lock of a folder or of a file. If nothing is at the path, a file is made there (and its folder: `make_folder`).

    The holder may remove what it locks. The lock of a folder holds on one machine; the lock of a file also holds on a network
    file system. BlockingIOError if another process holds the lock and `wait` is False.
    """
    while True:
        handle = _open(path) if make_folder else os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not take(handle, wait=wait):
                raise BlockingIOError(errno.EAGAIN, "locked by another process", str(path))
            if is_at(handle, path):  # otherwise the last holder has removed it
                yield
                return
        finally:
            os.close(handle)


@contextlib.contextmanager
def alone(work: Path, who: str) -> Iterator[None]:
    """Be the only process in a folder of unfinished work. At the end the folder is removed, unless something is left in it.

    InputError if another process works there; `who` is the name of the command.
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
    """Remove the folders under `work` that match a pattern, and then `work` itself if it is empty."""
    for folder in work.glob(names) if names else ():
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # the folder does not exist, or is not empty
        work.rmdir()


def take(handle: int, *, wait: bool = True) -> bool:
    """Lock an open file or folder until it is closed; False if another process holds it and `wait` is False.

    The lock of a killed process is free at once. On a file system without locks, every process gets the lock.
    """
    try:
        return lock_descriptor(handle, blocking=wait)
    except OSError:
        return True


def _open(path: Path) -> int:
    for _ in range(1000):  # the last holder may remove the file, or its folder, at any moment
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir():
                return os.open(path, os.O_RDONLY)
            with contextlib.suppress(FileExistsError):
                path.parent.mkdir(parents=True)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    path.parent.mkdir(parents=True)  # this error says why nothing can be made here
    raise FileNotFoundError(errno.ENOENT, "cannot be made", str(path))


def read_at(handle: int, size: int, start: int) -> bytes:
    """At most `size` bytes of an open file from the byte `start` on; threads may share the file."""
    if hasattr(os, "pread"):
        return os.pread(handle, size, start)
    with _reading:  # Windows
        os.lseek(handle, start, os.SEEK_SET)
        return os.read(handle, size)


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False
