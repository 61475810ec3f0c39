"""Resumable jobs in numbered parts. A job keeps its parts in a folder beside the result until the result is complete.

The file `000007.done` marks part 7 as done. It is written last and holds a digest of the input of the part. `made_from.json`
records the input of all parts. A command that is started again after a kill makes only the missing parts.

Several processes may share a job through kernel locks, which end with the process. Each process holds a shared lock on the
file `users`. To make part n, a process locks byte n of the file `blocks`; to assemble the result, it locks byte ASSEMBLY.
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
FINAL = "final"  # folder in which the result is assembled
ASSEMBLY = 1 << 40  # the byte of `blocks` that is locked for the assembly


class Job:
    """A job with numbered parts in `folder`. Call `begin` first. A file is named by the number of its part and an ending.

    `states` is a glob pattern for files that hold the state of an unfinished part; `begin` counts them as parts. `leavings` are
    name prefixes of files that a killed process may leave in a folder without a record.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, object], states: str = "", leavings: tuple[str, ...] = ()) -> None:
        self.folder, self.made_from = folder, comparable(dict(made_from))
        self.states, self.leavings = states, (*leavings, *LOCKS)

    def begin(self, *, overwrite: bool = False) -> int:
        """Resume the job if its input is the same; returns the number of finished parts.

        InputError if finished parts have another input (`overwrite` removes them instead), or if the folder holds other files.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.folder / RECORD
        if not record.exists() and not all(path.name.startswith(self.leavings) for path in self.folder.iterdir()):
            raise InputError(f"{self.folder} holds other files, but unfinished work needs this folder; move it")
        known = self.known()
        done = len(self.parts()) + (len(list(self.folder.glob(self.states))) if self.states else 0) if known else 0
        if known == self.made_from:
            if done:
                logger.info("resuming after %d finished parts in %s", done, self.folder)
            return done
        if done and not overwrite:
            raise InputError(f"{self.folder} holds {done} finished parts made with {difference(self.made_from, known)}; use "
                             f"the same settings, or remove this folder (or give --overwrite) to start again")  # fmt: skip
        for part in self.parts():  # first: a kill here must not leave parts that look finished
            self.start(part)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (*LOCKS, RECORD):
                path.unlink()
        write_json(record, self.made_from)
        return 0

    def known(self) -> Record:
        """The recorded input of the existing parts; {} without a record."""
        record = self.folder / RECORD
        return read_json(record, "record of unfinished work") if record.exists() else {}

    def path(self, part: int, ending: str) -> Path:
        """The path of a file of a part."""
        return self.folder / f"{part:06d}.{ending}"

    def parts(self) -> list[int]:
        """The numbers of the finished parts."""
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.done"))

    def is_done(self, part: int, digest: str = "") -> bool:
        """Whether a part is finished and its input has this digest."""
        try:
            return self.path(part, "done").read_text(encoding="utf-8") == digest
        except FileNotFoundError:
            return False

    def start(self, part: int) -> None:
        """Mark a part as unfinished before it is made again."""
        self.path(part, "done").unlink(missing_ok=True)

    def finish(self, part: int, digest: str = "") -> None:
        """Mark a part as finished, after its files are written."""
        with atomic_file(self.path(part, "done")) as out:
            out.write(digest)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def open_job(folder: Path, made_from: Mapping[str, object], who: str, *, overwrite: bool = False) -> Iterator[Job]:
    """Open a job for this process alone. InputError if another `who` uses it, or from `Job.begin`."""
    with alone(folder, who):
        job = Job(folder, made_from)
        job.begin(overwrite=overwrite)
        try:
            yield job
        finally:
            if all(path.name in (*LOCKS, RECORD) for path in folder.glob("*")):  # no parts to keep
                (folder / RECORD).unlink(missing_ok=True)


@dataclasses.dataclass
class SharedJob:
    """A job that several processes share, with its lock files."""

    job: Job
    users: IO[bytes]
    blocks: IO[bytes]

    @contextlib.contextmanager
    def lock(self, part: int, wait: bool) -> Iterator[bool]:
        """Lock a part; yields False if another process holds it and `wait` is false."""
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
        """Whether the folder is still the opened one; a process that completes the result moves it away."""
        return is_at(self.users.fileno(), self.job.folder / "users")

    def is_ours_alone(self) -> bool:
        """Whether no other process uses the job. If so, no process can join afterwards."""
        try:
            fcntl.flock(self.users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def remove(self, result: Path | None = None) -> None:
        """Remove the folder in one step, after moving its `final` to `result`. `mend` completes this after a kill."""
        folder = self.job.folder
        trash = _trash(folder)
        if result is not None:
            sync(folder / FINAL)
        os.replace(folder, trash)
        if result is not None:
            replace_folder(trash / FINAL, result)
        shutil.rmtree(trash, ignore_errors=True)


@contextlib.contextmanager
def open_shared(
    result: Path, made_from: Mapping[str, object], only_result: Mapping[str, object], *, overwrite: bool = False
) -> Iterator[SharedJob]:
    """Start or resume the shared job of `result`; `made_from` is the input of its parts.

    While another process works on it, `only_result` (settings that affect no part) must be the same too.
    InputError if existing parts have another input, or if another process makes a different result.
    """
    folder, settings = _work(result), comparable(dict(only_result))
    job = Job(folder, made_from)
    with contextlib.ExitStack() as stack:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                users = stack.enter_context(open(folder / "users", "ab"))
            except FileNotFoundError:  # a process that finished moved it away
                continue
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_at(users.fileno(), folder / "users"):
                    job.begin(overwrite=overwrite)
                    write_json(folder / "result.json", settings)
            except BlockingIOError:
                logger.info("another process also works on %s", result)
            fcntl.flock(users, fcntl.LOCK_SH)
            if is_at(users.fileno(), folder / "users"):
                break
        found = {"parts": job.known(), "result": read_json(folder / "result.json", "record of unfinished work")}
        wanted = {"parts": job.made_from, "result": settings}
        if found != wanted:
            raise InputError(f"another process is writing {result} with {difference(wanted, found)}")
        yield SharedJob(job, users, stack.enter_context(open(folder / "blocks", "ab")))


def mend(result: Path) -> None:
    """Complete the final renames of a killed process and remove its temporary files."""
    work = _work(result)
    trash = _trash(work)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):  # nothing there, or partly removed
            fcntl.flock(stack.enter_context(open(trash / "users", "r+b")), fcntl.LOCK_EX)  # wait for the other process
        if (trash / FINAL).exists() and not work.exists():
            os.replace(trash, work)
        shutil.rmtree(trash, ignore_errors=True)
    put_back(result)


def _work(result: Path) -> Path:
    return result.parent / f".{result.name}.partial"


def _trash(work: Path) -> Path:
    return work.with_name(f"{work.name}.gone")
