"""Let several processes share the parts of one job, and put the result in its place.

The kernel keeps who does what, and forgets it when a process dies: every process holds a shared lock on the file `users`; who
makes part n holds byte n of the file `blocks`; who assembles the result holds the byte behind them all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import put_back, replace_folder, sync
from pyserini_kd.storage.job import Job
from pyserini_kd.storage.locks import is_at
from pyserini_kd.storage.records import comparable, difference, read_json, write_json

logger = logging.getLogger(__name__)

FINAL = "final"  # where the result is put together
ASSEMBLY = 1 << 40  # the byte of `blocks` that stands for the assembly


@dataclasses.dataclass
class SharedJob:
    """A job, and the files whose locks tell the processes that share it apart."""

    job: Job
    users: IO[bytes]
    blocks: IO[bytes]

    @contextlib.contextmanager
    def lock(self, part: int, wait: bool) -> Iterator[bool]:
        """Hold a part; gives False where another process holds it and we do not wait."""
        try:
            fcntl.lockf(self.blocks, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB, 1, part)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self.blocks, fcntl.LOCK_UN, 1, part)

    def is_there(self) -> bool:
        """Whether the folder is still the one that we opened: another process moves it away with the complete result."""
        return is_at(self.users.fileno(), self.job.folder / "users")

    def is_ours_alone(self) -> bool:
        """Whether no other process is at work here. None comes in afterwards."""
        try:
            fcntl.flock(self.users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def remove(self, result: Path | None = None) -> None:
        """Take the folder away in one step; what it holds as `final` becomes the result. `mend` does the rest after a kill."""
        folder = self.job.folder
        gone = _gone(folder)
        if result is not None:
            sync(folder / FINAL)
        os.replace(folder, gone)
        if result is not None:
            replace_folder(gone / FINAL, result)
        shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def open_shared(
    result: Path, made_from: Mapping[str, Any], only_result: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[SharedJob]:
    """Begin or go on with the unfinished `result`, whose parts are made from `made_from`.

    While another process is at work there, `only_result` (what no part depends on) must be the same too.

    Raises:
        InputError: there are parts made from something else, or another process makes a different result.
    """
    folder, said = result.parent / f".{result.name}.partial", comparable(dict(only_result))
    job = Job(folder, made_from)
    with contextlib.ExitStack() as stack:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                users = stack.enter_context(open(folder / "users", "ab"))
            except FileNotFoundError:  # moved away by a process that has just finished
                continue
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_at(users.fileno(), folder / "users"):
                    job.begin(overwrite=overwrite)
                    write_json(folder / "result.json", said)
            except BlockingIOError:
                logger.info("another process is at work on %s", result)
            fcntl.flock(users, fcntl.LOCK_SH)
            if is_at(users.fileno(), folder / "users"):
                break
        found = {"parts": job.known(), "result": read_json(folder / "result.json", "record of unfinished work")}
        wanted = {"parts": job.made_from, "result": said}
        if found != wanted:
            raise InputError(f"another process is writing {result} with {difference(wanted, found)}")
        yield SharedJob(job, users, stack.enter_context(open(folder / "blocks", "ab")))


def mend(result: Path) -> None:
    """Finish what a process that was killed in its last moments had begun: nothing of ours stays under another name."""
    work = result.parent / f".{result.name}.partial"
    gone = _gone(work)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):  # there is nothing, or half of it has been removed
            fcntl.flock(stack.enter_context(open(gone / "users", "r+b")), fcntl.LOCK_EX)  # wait for the other process
        if (gone / FINAL).exists() and not work.exists():
            os.replace(gone, work)
        shutil.rmtree(gone, ignore_errors=True)
    put_back(result)


def _gone(work: Path) -> Path:
    return work.with_name(f"{work.name}.gone")
