"""Resumable work in numbered parts, kept in a folder beside the result until the result is complete.

A part is done when its seal lies there: the file `000007.done`, written last. It holds a digest of what the part was made
from. `made_from.json` says what all parts were made from. A killed command that is started again makes only what is missing.

Several processes may share a job. The kernel keeps who does what, and forgets it when a process dies: every process holds a
shared lock on the file `users`; who makes part n holds byte n of the file `blocks`; who assembles the result holds the byte
behind them all.
"""

import contextlib
import dataclasses
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import alone, atomic_file, is_at, put_back, replace_folder, sync
from pyserini_kd.storage.records import Record, comparable, difference, read_json, write_json

logger = logging.getLogger(__name__)

RECORD = "made_from.json"
LOCKS = ("lock", "users", "blocks")  # lock files of running processes
FINAL = "final"  # where the result is put together
ASSEMBLY = 1 << 40  # the byte of `blocks` that stands for the assembly


class Job:
    """Work in numbered parts, kept in `folder`. Call `begin` first. The name of a file is the number of its part and an ending.

    `states` is a pattern of files in the folder that hold the state of an unfinished part. `begin` counts them as parts.
    `leavings` are prefixes of names. A killed process may leave such files in a folder that has no record yet.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, object], states: str = "", leavings: tuple[str, ...] = ()) -> None:
        self.folder, self.made_from = folder, comparable(dict(made_from))
        self.states, self.leavings = states, (*leavings, *LOCKS)

    def begin(self, *, overwrite: bool = False) -> int:
        """Go on with the parts that were made from the same; returns how many are done.

        InputError if there are parts that were made from something else (with `overwrite` they are removed instead), or the
        folder holds something and is no job of ours.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.folder / RECORD
        if not record.exists() and not all(path.name.startswith(self.leavings) for path in self.folder.iterdir()):
            raise InputError(f"{self.folder} is in the way: unfinished work is kept in a folder of this name; move it")
        known = self.known()
        done = len(self.parts()) + (len(list(self.folder.glob(self.states))) if self.states else 0) if known else 0
        if known == self.made_from:
            if done:
                logger.info("going on from %d finished parts in %s", done, self.folder)
            return done
        if done and not overwrite:
            raise InputError(f"{self.folder} holds {done} finished parts made with {difference(self.made_from, known)}; go on "
                             f"with the same, or remove that folder (or give --overwrite) to start anew")  # fmt: skip
        for part in self.parts():  # first, so that no part looks finished if the process is killed here
            self.start(part)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (*LOCKS, RECORD):
                path.unlink()
        write_json(record, self.made_from)
        return 0

    def known(self) -> Record:
        """What the parts that lie there were made from; nothing where there are none."""
        record = self.folder / RECORD
        return read_json(record, "record of unfinished work") if record.exists() else {}

    def path(self, part: int, ending: str) -> Path:
        """A file of a part."""
        return self.folder / f"{part:06d}.{ending}"

    def parts(self) -> list[int]:
        """The numbers of the parts that are done."""
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.done"))

    def is_done(self, part: int, digest: str = "") -> bool:
        """Whether a part was finished, from what has this digest."""
        try:
            return self.path(part, "done").read_text(encoding="utf-8") == digest
        except FileNotFoundError:
            return False

    def start(self, part: int) -> None:
        """Break the seal of a part that is made again."""
        self.path(part, "done").unlink(missing_ok=True)

    def finish(self, part: int, digest: str = "") -> None:
        """Seal a part, after its files are written."""
        with atomic_file(self.path(part, "done")) as out:
            out.write(digest)

    def remove(self) -> None:
        """Remove the folder, when the result is complete or nothing is worth keeping."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def open_job(folder: Path, made_from: Mapping[str, object], who: str, *, overwrite: bool = False) -> Iterator[Job]:
    """A job for this process alone. InputError if another `who` works on it, or if `begin` refuses the folder."""
    with alone(folder, who):
        job = Job(folder, made_from)
        job.begin(overwrite=overwrite)
        try:
            yield job
        finally:
            if all(path.name in (*LOCKS, RECORD) for path in folder.glob("*")):  # nothing that is worth keeping
                (folder / RECORD).unlink(missing_ok=True)


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
    result: Path, made_from: Mapping[str, object], only_result: Mapping[str, object], *, overwrite: bool = False
) -> Iterator[SharedJob]:
    """Begin or go on with the unfinished `result`, whose parts are made from `made_from`.

    While another process is at work there, `only_result` (what no part depends on) must be the same too.
    InputError if there are parts made from something else, or another process makes a different result.
    """
    folder, said = _work(result), comparable(dict(only_result))
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
    """Finish the last renames of a process that was killed: no temporary file of ours stays."""
    work = _work(result)
    gone = _gone(work)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):  # there is nothing, or half of it has been removed
            fcntl.flock(stack.enter_context(open(gone / "users", "r+b")), fcntl.LOCK_EX)  # wait for the other process
        if (gone / FINAL).exists() and not work.exists():
            os.replace(gone, work)
        shutil.rmtree(gone, ignore_errors=True)
    put_back(result)


def _work(result: Path) -> Path:
    return result.parent / f".{result.name}.partial"


def _gone(work: Path) -> Path:
    return work.with_name(f"{work.name}.gone")
