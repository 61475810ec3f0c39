"""Locks on files and folders, so that two commands do not write the same thing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pyserini_kd.storage.errors import InputError


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
        flock(handle, how)
    except BlockingIOError:
        os.close(handle)
        raise
    return handle


def flock(handle: int, how: int) -> None:
    """Lock an open file; a file system without locks is passed over."""
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
