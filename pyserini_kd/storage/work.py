"""Work on a stream of documents in fixed blocks, kept against a kill and shared by any number of processes.

`.NAME.partial/` beside the result holds for each block its files and last of all `NUMBER.sha256`, the checksum of the block's
records: a block is done when that fits. The kernel keeps who does what, and forgets it when a process dies: every process
holds a shared lock on `users`; who makes block b holds byte b of `blocks`, who assembles the result the byte behind them all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, put_back, replace_folder, sync
from pyserini_kd.storage.locks import is_at
from pyserini_kd.storage.records import comparable, difference, read_json, write_json

logger = logging.getLogger(__name__)
FINAL = "final"  # where the result is put together


@dataclasses.dataclass
class Work:
    """The folder of an unfinished result; `done` has the checksum of every block of the collection, in order."""

    folder: Path
    users: IO[bytes]
    blocks: IO[bytes]
    sums: list[str] = dataclasses.field(default_factory=list)
    count: int = 0

    def path(self, number: int, kind: str) -> Path:
        """A file of a block."""
        return self.folder / f"{number:06d}.{kind}"

    def paths(self, kind: str) -> list[Path]:
        """One file of each block, in order."""
        return [self.path(number, kind) for number in range(len(self.sums))]

    def is_done(self, number: int) -> bool:
        """Whether a block was finished, with the records that it has now."""
        try:
            return self.path(number, "sha256").read_text() == self.sums[number]
        except FileNotFoundError:
            return False

    def left(self) -> int:
        """How many blocks are not done."""
        return sum(not self.is_done(number) for number in range(len(self.sums)))

    @contextlib.contextmanager
    def lock(self, byte: int, wait: bool) -> Iterator[bool]:
        """Hold a byte of `blocks`; gives False where another process has it and we do not wait."""
        try:
            fcntl.lockf(self.blocks, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self.blocks, fcntl.LOCK_UN, 1, byte)

    def is_there(self) -> bool:
        """Whether the folder is still the one that we opened; another process moves it away when the result is complete."""
        return is_at(self.users.fileno(), self.folder / "users")

    def is_ours_alone(self) -> bool:
        """Whether no other process is at work here; none comes in afterwards."""
        try:
            fcntl.flock(self.users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def run(
        self, records: Iterable[Any], size: int, make: Callable[[int, list[Any]], None], shard: tuple[int, int] = (0, 1)
    ) -> None:
        """Make every block that is not done and that no other process has in hand; wait for those that one has.

        Of `shard` = (I, N), only blocks I, I + N, I + 2N ... are ours. Held: the block at work, and those in others' hands.
        """
        stream = iter(records)
        waiting: dict[int, list[Any]] = {}
        with tqdm(desc="index", unit=" docs", disable=None) as bar:
            for number, block in enumerate(iter(lambda: list(islice(stream, size)), [])):
                self.sums.append(hashlib.sha256(json.dumps(block, ensure_ascii=False, default=_digest).encode()).hexdigest())
                self.count += len(block)
                if number % shard[1] == shard[0] and not self._make(number, block, make, wait=False):
                    waiting[number] = block
                waiting = {other: held for other, held in waiting.items() if not self.is_done(other)}
                bar.update(len(block))
        if waiting:
            logger.info("waiting for %d blocks that another process has in hand", len(waiting))
        for number, block in waiting.items():
            self._make(number, block, make, wait=True)

    def _make(self, number: int, block: list[Any], make: Callable[[int, list[Any]], None], wait: bool) -> bool:
        """Make a block unless it is done; False where another process has it in hand and we do not wait."""
        if self.is_done(number):
            return True
        with self.lock(number, wait) as ours:
            if ours and self.is_there() and not self.is_done(number):
                self.path(number, "sha256").unlink(missing_ok=True)
                make(number, block)
                with atomic_file(self.path(number, "sha256")) as out:
                    out.write(self.sums[number])
        return ours

    def remove(self, result: Path | None = None) -> None:
        """Take the folder away, in one step for whoever else looks at it; what it holds as `final` becomes the result.

        `mend` does the rest where a kill comes between.
        """
        gone = _gone(self.folder)
        if result is not None:
            sync(self.folder / FINAL)
        os.replace(self.folder, gone)
        if result is not None:
            replace_folder(gone / FINAL, result)
        shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def open_work(
    result: Path, settings: dict[str, Any], only_result: dict[str, Any], *, overwrite: bool = False
) -> Iterator[Work]:
    """Open or go on with the unfinished `result`, whose blocks were made with the same `settings`.

    While another process is at work on the folder, `only_result` (what blocks do not depend on) must be the same too.

    Raises:
        InputError: finished blocks lie there that were made with other settings, which nothing but `overwrite` clears away;
            or another process is at work there with other settings.
    """
    folder = _partial(result)
    wanted = comparable({"blocks": settings, "result": only_result})
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
                    _keep_or_clear(folder, wanted, overwrite)
            except BlockingIOError:
                logger.info("another process is at work on %s", result)
            fcntl.flock(users, fcntl.LOCK_SH)
            if is_at(users.fileno(), folder / "users"):
                break
        found = read_json(folder / "settings.json", "settings")
        if found != wanted:
            raise InputError(f"another process is writing {result} with {difference(wanted, found)}")
        yield Work(folder, users, stack.enter_context(open(folder / "blocks", "ab")))


def _partial(result: Path) -> Path:
    return result.parent / f".{result.name}.partial"


def _gone(work: Path) -> Path:
    return work.with_name(f"{work.name}.gone")


def mend(result: Path) -> None:
    """Finish what a process that was killed in its last moments had begun: nothing of ours stays under another name."""
    work = _partial(result)
    gone = _gone(work)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):  # there is nothing, or half of it has been removed
            fcntl.flock(stack.enter_context(open(gone / "users", "r+b")), fcntl.LOCK_EX)  # once he who is at it has ended
        if (gone / FINAL).exists() and not work.exists():
            os.replace(gone, work)
        shutil.rmtree(gone, ignore_errors=True)
    put_back(result)


def _keep_or_clear(folder: Path, wanted: dict[str, Any], overwrite: bool) -> None:
    record = folder / "settings.json"
    known = read_json(record, "settings") if record.exists() else {}
    done = len(list(folder.glob("[0-9]*.sha256"))) if known else 0
    if known.get("blocks") == wanted["blocks"]:
        if done:
            logger.info("going on from %d finished blocks", done)
    elif done and not overwrite:
        other = difference({"blocks": wanted["blocks"]}, known)
        raise InputError(f"{folder} holds {done} finished blocks made with {other}; go on with the same, or remove that "
                         f"folder (or give --overwrite) to start anew")  # fmt: skip
    else:
        record.unlink(missing_ok=True)  # first: what is left by a kill belongs to no settings
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in ("users", "blocks"):
                path.unlink()
    write_json(record, wanted)


def _digest(vector: npt.NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(vector).data).hexdigest()
