"""Locks on files and folders: two commands never write the same thing at the same time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pyserini_kd.storage.errors import InputError


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, or of a file that is made where there is no folder. The holder may remove what it locks.

    The lock of a folder holds on one machine. The lock of a file also holds on a network file system. A file system without
    locks lets all processes in.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
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
    """Be the only process in a folder of unfinished work. The folder is removed at the end, unless something is left in it.

    Raises:
        InputError: another process (`who` says which command) works there.
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
