"""Resumable work in numbered parts, kept in a folder beside the result until the result is complete.

A part is done when its seal lies there: the file `000007.done`, written last. It holds a digest of what the part was made
from. `made_from.json` says what all parts were made from. A killed command that is started again makes only what is missing.

Several processes may share a job. Locked files tell who does what, and the lock of a killed process is free at once. Every
process holds a file of its own, beside `users` in name. Who makes part n holds `lock.n`. Who puts the result together holds
`lock.assembly`. Who enters or removes the folder holds `lock`.
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
LOCKS = ("lock", f".{USERS}.")  # how the names of the lock files begin
FINAL = "final"  # where the result is put together
ASSEMBLY = "assembly"  # the lock of the process that puts the result together


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
            elif not path.name.startswith((*LOCKS, RECORD)):
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
            if all(path.name.startswith((*LOCKS, RECORD)) for path in folder.glob("*")):  # nothing that is worth keeping
                (folder / RECORD).unlink(missing_ok=True)


@dataclasses.dataclass
class SharedJob:
    """A job that several processes share. `user` is the locked file that shows that this process is at work."""

    job: Job
    handle: int
    user: Path

    @contextlib.contextmanager
    def lock(self, what: int | str, wait: bool) -> Iterator[bool]:
        """Hold a part, or `ASSEMBLY`; gives False where another process holds it and we do not wait."""
        with contextlib.ExitStack() as stack:
            ours = True
            try:
                stack.enter_context(locked(self.job.folder / f"lock.{what}", wait=wait, make_folder=False))
            except BlockingIOError:
                ours = False
            except FileNotFoundError:  # another process has moved the folder away: see `is_there`
                pass
            yield ours

    def is_there(self) -> bool:
        """Whether the folder is still the one that we opened. Another process moves it away with the complete result."""
        return is_at(self.handle, self.user)

    def remove_if_alone(self) -> None:
        """Remove the folder, unless another process is at work there."""
        lock = locked(self.job.folder / "lock", make_folder=False)
        with contextlib.suppress(FileNotFoundError), lock:  # no process comes in now
            self.user.unlink(missing_ok=True)  # so that the last of several processes that give up sees no other
            if not siblings(self.job.folder / USERS):
                os.replace(self.job.folder, _gone(self.job.folder))
                shutil.rmtree(_gone(self.job.folder), ignore_errors=True)

    def turn_into(self, result: Path) -> None:
        """Give `final` the name of the result and remove the rest of the folder. After a kill, `mend` does what is left."""
        gone = _gone(self.job.folder)
        sync(self.job.folder / FINAL)
        with locked(self.job.folder / "lock"):
            os.replace(self.job.folder, gone)
            replace_folder(gone / FINAL, result)
            shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def open_shared(
    result: Path, made_from: Mapping[str, object], only_result: Mapping[str, object], *, overwrite: bool = False
) -> Iterator[SharedJob]:
    """Begin or go on with the unfinished `result`, whose parts are made from `made_from`.

    While another process is at work there, `only_result` (what no part depends on) must be the same too.

    Raises:
        InputError: there are parts that were made from something else, or another process makes a different result.
    """
    job = Job(_work(result), made_from)
    said = job.folder / "result.json"
    wanted = {"parts": job.made_from, "result": comparable(dict(only_result))}
    with contextlib.ExitStack() as at_work:
        with locked(job.folder / "lock"):
            shared = at_work.enter_context(_enter(job))
            if siblings(job.folder / USERS) == [shared.user]:
                job.begin(overwrite=overwrite)
                write_json(said, wanted["result"])
            else:
                logger.info("another process is at work on %s", result)
                found = {"parts": job.known(), "result": read_json(said, "record of unfinished work")}
                if found != wanted:
                    raise InputError(f"another process is writing {result} with {difference(wanted, found)}")
        yield shared


@contextlib.contextmanager
def _enter(job: Job) -> Iterator[SharedJob]:
    """Show other processes that this one is at work, until the end."""
    handle, user = held_sibling(job.folder / USERS)
    try:
        yield SharedJob(job, handle, user)
    finally:
        user.unlink(missing_ok=True)
        os.close(handle)


def mend(result: Path) -> None:
    """Finish the last renames of a process that was killed: no temporary file of ours stays."""
    work = _work(result)
    gone = _gone(work)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):  # there is no such folder
            stack.enter_context(locked(gone / "lock", make_folder=False))  # wait for the process that removes it
        if (gone / FINAL).exists() and not work.exists():
            os.replace(gone, work)
        shutil.rmtree(gone, ignore_errors=True)
    put_back(result)


def _work(result: Path) -> Path:
    return result.parent / f".{result.name}.partial"


def _gone(work: Path) -> Path:
    return work.with_name(f"{work.name}.gone")
