"""Write whole files and folders: a temporary sibling first, the final name only when it is complete."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.locks import flock, is_at, locked


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
            flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
