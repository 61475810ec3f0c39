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
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd.files import (
    InputError,
    atomic_file,
    command_line,
    comparable,
    difference,
    environment,
    is_at,
    put_back,
    read_json,
    refuse_existing,
    replace_folder,
    sync,
    write_json,
)

logger = logging.getLogger(__name__)

ENOUGH = 100  # documents that tell how long a million take
FINAL = "final"  # where the result is put together
ASSEMBLY = 1 << 40  # the byte of `blocks` that stands for the assembly


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


def build(
    docs: Iterable[Any],
    folder: Path,
    settings: dict[str, Any],
    make: Callable[[Work, int, list[Any]], None],
    assemble: Callable[[Work, Path], dict[str, Any]],
    *,
    only_result: dict[str, Any],
    overwrite: bool,
    shard: tuple[int, int] = (0, 1),
) -> int | None:
    """Make an index folder of a stream of documents; returns their number, or None where other shards have work left.

    The ids and, with `settings["store_docs"]`, the texts of the documents are kept here.

    Args:
        docs: the collection, or anything with a `doc_id` (`vectors.Embedded`); read by every process, whatever its share.
        folder: what to write, with `docid`, `docs.jsonl`, `docs.offsets`, `manifest.json` and what `assemble` adds.
        settings: what a block depends on, `block` (documents in one) and `store_docs` among it.
        make: writes the files of a block.
        assemble: puts them together in a new folder, which has the ids already; gives what the manifest says besides.
        only_result: what the result depends on, but no block.
        overwrite: replace what is there.
        shard: (I, N): which of N processes this is.

    Raises:
        InputError: the folder exists, the collection is empty or changes meanwhile, another process works with other settings.
    """
    started, told = time.monotonic(), False
    said = settings | {name: value for name, value in only_result.items() if value}
    mend(folder)
    if shard[1] > 1 and _is_complete(folder, said):  # the others were quicker
        logger.info("%s is complete", folder)
        return None
    refuse_existing(folder, overwrite, folder=True)
    with open_work(folder, settings, only_result, overwrite=overwrite) as work:

        def make_block(number: int, block: list[Any]) -> None:
            nonlocal told
            begun = time.monotonic()
            _write_docs(work, number, block, settings["store_docs"])
            make(work, number, block)
            if not told and len(block) >= ENOUGH:
                hours = (time.monotonic() - begun) / len(block) * 1e6 / 3600
                gigabytes = sum(path.stat().st_size for path in work.folder.glob(f"{number:06d}.*")) / len(block) * 1e6 / 1e9
                logger.info("a million documents like the first %d take %.1f hours here, and %.1f GB, twice while they are "
                            "put together", len(block), hours, gigabytes)  # fmt: skip
                told = True

        try:
            work.run(docs, settings["block"], make_block, shard)
            if work.count == 0:
                raise InputError("the collection has no documents")
        except InputError:
            if not any(work.folder.glob("*.sha256")) and work.is_ours_alone():  # nothing to go on with
                work.remove()
            raise
        if shard[1] > 1 and (left := work.left()):
            logger.info("shard %d of %d is done; %d blocks are left to the other shards", *shard, left)
            return None
        with work.lock(ASSEMBLY, wait=True):
            if not work.is_there():
                if not (folder / "manifest.json").is_file():
                    raise InputError(f"the process that was putting {folder} together was killed; start again")
                logger.info("another process has written %s", folder)
                return work.count
            if work.left():
                raise InputError("the collection has changed while it was indexed; start again")
            new = work.folder / FINAL
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            _merge_docs(work, new, settings["store_docs"])
            try:
                record = assemble(work, new)
            except OSError as error:
                error.filename = error.filename or str(new)  # a full disk does not say of itself where
                raise
            record |= said | {"n_docs": work.count}
            seconds = round(time.monotonic() - started, 1)
            write_json(new / "manifest.json", record | {"seconds": seconds, "command": command_line(), **environment()})
            refuse_existing(folder, overwrite, folder=True)  # somebody may have written there meanwhile
            work.remove(folder)
    return work.count


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


def _is_complete(folder: Path, said: dict[str, Any]) -> bool:
    """Whether an index lies there whose manifest says all of this."""
    manifest = read_json(folder / "manifest.json", "manifest") if (folder / "manifest.json").is_file() else {}
    return bool(comparable(manifest).items() >= comparable(said).items())


def _write_docs(work: Work, number: int, block: list[Any], store_docs: bool) -> None:
    with atomic_file(work.path(number, "ids")) as out:
        out.writelines(f"{doc.doc_id}\n" for doc in block)
    if store_docs:
        with atomic_file(work.path(number, "docs"), binary=True) as out:
            out.writelines(json.dumps(doc, ensure_ascii=False).encode() + b"\n" for doc in block)


def _merge_docs(work: Work, new: Path, store_docs: bool) -> None:
    """Merge the ids and the texts of the blocks, a block at a time in memory."""
    with open(new / "docid", "wb") as out:
        for path in work.paths("ids"):
            out.write(path.read_bytes())
    if store_docs:
        position = 0
        with open(new / "docs.jsonl", "wb") as out, open(new / "docs.offsets", "wb") as offsets:
            for path in work.paths("docs"):
                lines = path.read_bytes().splitlines(keepends=True)
                starts = position + np.cumsum([0] + [len(line) for line in lines])
                offsets.write(starts[:-1].astype("<u8").tobytes())
                position = int(starts[-1])
                out.writelines(lines)


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
