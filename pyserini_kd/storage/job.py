"""Resumable jobs in numbered parts. A job keeps its parts in a folder beside the result until the result is complete.

The file `000007.done` marks part 7 as done. It is written last and holds a digest of the input of the part. `made_from.json`
records the input of all parts. A command that is started again after a kill makes only the missing parts.

Several processes may share a job. They coordinate by lock files; the lock of a killed process is free at once. Each process
holds its own lock file, whose name begins with `.users.`. A process holds `lock.n` while it makes part n, `lock.assembly` while
it assembles the result, and `lock` while it enters or removes the folder.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import alone, atomic_file, held_sibling, is_at, locked, put_back, replace_folder, siblings, sync
from pyserini_kd.storage.records import Record, comparable, difference, read_json, write_json

logger = logging.getLogger(__name__)

RECORD = "made_from.json"
USERS = "users"
LOCKS = ("lock", f".{USERS}.")  # prefixes of the lock files' names
FINAL = "final"  # folder in which the result is assembled
ASSEMBLY = "assembly"  # name of the lock for assembling the result


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
                             f"the same settings, or set `overwrite` (or remove this folder) to start again")  # fmt: skip
        for part in self.parts():  # first: a kill here must not leave parts that look finished
            self.start(part)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith((*LOCKS, RECORD)):
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
            if all(path.name.startswith((*LOCKS, RECORD)) for path in folder.glob("*")):  # no parts to keep
                (folder / RECORD).unlink(missing_ok=True)


@dataclasses.dataclass
class SharedJob:
    """A job that several processes share. `user` is the lock file of this process; `handle` is its open file."""

    job: Job
    handle: int
    user: Path

    @contextlib.contextmanager
    def lock(self, what: int | str, wait: bool) -> Iterator[bool]:
        """Lock a part or `ASSEMBLY`; yields False if another process holds it and `wait` is false."""
        with contextlib.ExitStack() as stack:
            ours = True
            try:
                stack.enter_context(locked(self.job.folder / f"lock.{what}", wait=wait, make_folder=False))
            except BlockingIOError:
                ours = False
            except FileNotFoundError:  # another process moved the folder away; see `is_there`
                pass
            yield ours

    def is_there(self) -> bool:
        """Whether the folder is still the opened one; a process that completes the result moves it away."""
        return is_at(self.handle, self.user)

    def remove_if_alone(self) -> None:
        """Remove the folder unless another process uses the job."""
        lock = locked(self.job.folder / "lock", make_folder=False)
        with contextlib.suppress(FileNotFoundError), lock:  # now no process can join
            self.user.unlink(missing_ok=True)  # so that the last of several failing processes sees no other
            if not siblings(self.job.folder / USERS):
                os.replace(self.job.folder, _trash(self.job.folder))
                shutil.rmtree(_trash(self.job.folder), ignore_errors=True)

    def turn_into(self, result: Path) -> None:
        """Move `final` to the result and remove the rest of the folder. `mend` completes this after a kill."""
        trash = _trash(self.job.folder)
        sync(self.job.folder / FINAL)
        with locked(self.job.folder / "lock"):
            os.replace(self.job.folder, trash)
            replace_folder(trash / FINAL, result)
            shutil.rmtree(trash, ignore_errors=True)


@contextlib.contextmanager
def open_shared(
    result: Path, made_from: Mapping[str, object], only_result: Mapping[str, object], *, overwrite: bool = False
) -> Iterator[SharedJob]:
    """Start or resume the shared job of `result`; `made_from` is the input of its parts.

    While another process works on it, `only_result` (settings that affect no part) must be the same too.

    Raises:
        InputError: existing parts have another input, or another process makes a different result.
    """
    job = Job(_work(result), made_from)
    settings = job.folder / "result.json"
    wanted = {"parts": job.made_from, "result": comparable(dict(only_result))}
    with contextlib.ExitStack() as at_work:
        with locked(job.folder / "lock"):
            shared = at_work.enter_context(_enter(job))
            if siblings(job.folder / USERS) == [shared.user]:
                job.begin(overwrite=overwrite)
                write_json(settings, wanted["result"])
            else:
                logger.info("another process also works on %s", result)
                found = {"parts": job.known(), "result": read_json(settings, "record of unfinished work")}
                if found != wanted:
                    raise InputError(f"another process is writing {result} with {difference(wanted, found)}")
        yield shared


@contextlib.contextmanager
def _enter(job: Job) -> Iterator[SharedJob]:
    """Hold the lock file that shows other processes that this one is at work."""
    handle, user = held_sibling(job.folder / USERS)
    try:
        yield SharedJob(job, handle, user)
    finally:
        user.unlink(missing_ok=True)
        os.close(handle)


def mend(result: Path) -> None:
    """Complete the final renames of a killed process and remove its temporary files."""
    work = _work(result)
    trash = _trash(work)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):  # there is no such folder
            stack.enter_context(locked(trash / "lock", make_folder=False))  # wait for the process that removes it
        if (trash / FINAL).exists() and not work.exists():
            os.replace(trash, work)
        shutil.rmtree(trash, ignore_errors=True)
    put_back(result)


def _work(result: Path) -> Path:
    return result.parent / f".{result.name}.partial"


def _trash(work: Path) -> Path:
    return work.with_name(f"{work.name}.gone")
