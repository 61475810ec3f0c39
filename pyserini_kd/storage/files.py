"""Write whole files and folders, and lock them.

What is written goes into a temporary sibling first, which gets the final name only when it is complete. Locks keep two commands
from writing the same thing at the same time.
"""

import contextlib
import errno
import fcntl
import gzip
import io
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pyserini_kd.storage.errors import InputError

OURS = ("manifest.json", "pyserini_kd.json", "config.json", "docid")
"""A folder that holds one of these is an index or a checkpoint. Only such folders may be replaced."""


def home() -> Path:
    """Folder that holds `indexes/`, `runs/` and `models/`: PYSERINI_KD_HOME, or the current directory."""
    return Path(os.environ.get("PYSERINI_KD_HOME") or ".").expanduser()


def require_file(path: str | Path, what: str) -> Path:
    """The path, if it is a file with something in it; otherwise InputError."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{what} not found: {path}")
    if not path.is_file():
        found = "a folder" if path.is_dir() else "a pipe or a device; files are read more than once"
        raise InputError(f"{what} must be a file, but {path} is {found}")
    if path.stat().st_size == 0:
        raise InputError(f"{what} is empty: {path}")
    return path


def refuse_existing(path: Path, overwrite: bool, *, folder: bool = False) -> None:
    """InputError if `path` holds something that may not be replaced, or if no file (or `folder`) can be written there.

    Without `overwrite` nothing may be replaced; with it, files and our own folders. Commands ask before they start to work.
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
        (filled and overwrite and not ours, "is neither an index nor a checkpoint; --overwrite does not replace such a folder"),
        (not overwrite and (filled or path.is_file()), "exists; give --overwrite to replace it, or another name"),
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
    """Open a temporary sibling for writing. It gets the final name only if the block ends without an error.

    Text is compressed if the name ends in `.gz`; the same text gives the same bytes.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = _sibling(path)
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
            refuse_existing(path, overwrite)  # another command may have written there meanwhile
            os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk does not say which file
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary sibling folder. It gets the final name only if the block ends without an error."""
    path = Path(path)
    put_back(path)
    refuse_existing(path, overwrite, folder=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = _sibling(path, folder=True)
    try:
        yield partial
        refuse_existing(path, overwrite, folder=True)  # another command may have written there meanwhile
        replace_folder(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def _sibling(path: Path, folder: bool = False) -> tuple[int, Path]:
    """(open handle, path) of a new, locked file or folder beside a path. Those that killed commands have left are removed."""
    for name in os.listdir(path.parent):
        if re.fullmatch(rf"\.{re.escape(path.name)}\.\w{{8}}\.partial", name):
            _remove_unlocked(path.parent / name)
    while True:
        made = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        if folder:
            made.mkdir()
        with contextlib.suppress(FileNotFoundError):  # another command has taken it for one of those
            handle = os.open(made, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            with contextlib.suppress(BlockingIOError):  # or does so now
                flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_at(handle, made):
                    return handle, made
            os.close(handle)


def _remove_unlocked(left: Path) -> None:
    with contextlib.suppress(OSError):  # its writer still holds it, or another command removes it
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
    """Give the finished folder `new` its final name, then remove what lay there. After a kill `put_back` repairs the rest."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, but the result is a folder")
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
    """Force the files of a folder to the disk, so that they survive a loss of power."""
    for written in folder.rglob("*"):
        if written.is_file():
            with open(written, "rb") as handle:
                os.fsync(handle.fileno())


def put_back(path: Path) -> None:
    """Repair a killed `replace_folder`: what it moved away gets its name back if nothing took its place; else it is removed."""
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
        old.unlink()  # what it points to is the user's
    else:
        shutil.rmtree(old, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, or of a file that is made where there is no folder. The holder may remove what it locks.

    The lock of a folder holds on one machine. The lock of a file also holds on a network file system. A file system without
    locks lets all processes in. BlockingIOError if another process holds the lock, and `wait` is False.
    """
    while True:
        handle = _open(path)
        try:
            flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(handle, path):  # otherwise the last holder has removed it
                yield
                return
        finally:
            os.close(handle)


@contextlib.contextmanager
def alone(work: Path, who: str) -> Iterator[None]:
    """Be the only process in a folder of unfinished work; InputError if another (`who` says which command) works there.

    The folder is removed at the end, unless something is left in it.
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
    with contextlib.suppress(OSError):  # not there, or not empty
        work.rmdir()


def flock(handle: int, how: int) -> None:
    """Lock an open file. A file system without locks is no error."""
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        raise
    except OSError:
        pass


def _open(path: Path) -> int:
    for _ in range(1000):  # the last holder may remove the file, or its folder, at any moment
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir():
                return os.open(path, os.O_RDONLY)
            with contextlib.suppress(FileExistsError):
                path.parent.mkdir(parents=True)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    path.parent.mkdir(parents=True)  # the error says why nothing can be made here
    raise FileNotFoundError(errno.ENOENT, "cannot be made", str(path))


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False
