"""Resumable work in numbered parts, kept in a folder beside the result until the result is complete.

A part is done when its seal lies there: the file `000007.done`, written last. It holds a digest of what the part was made
from. `made_from.json` says what all parts were made from. A killed command that is started again makes only what is missing.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file
from pyserini_kd.storage.locks import alone
from pyserini_kd.storage.records import comparable, difference, read_json, write_json

logger = logging.getLogger(__name__)

RECORD = "made_from.json"
LOCKS = ("lock", "users", "blocks")  # files that processes hold while they work


class Job:
    """Work in numbered parts in `folder`; `begin` comes first. Files of a part have its number and an ending of their own.

    `states` is the pattern of saved states inside the folder: what has been done of a part. `begin` counts them as parts.
    `leavings` are beginnings of names that a kill may leave in a folder without a record.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, Any], states: str = "", leavings: tuple[str, ...] = ()) -> None:
        self.folder, self.made_from = folder, comparable(dict(made_from))
        self.states, self.leavings = states, (*leavings, *LOCKS)

    def begin(self, *, overwrite: bool = False) -> int:
        """Go on with the parts that were made from the same; returns how many are done.

        Raises:
            InputError: there are parts that were made from something else (with `overwrite` they are removed instead), or the
                folder holds something and is no job of ours.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / RECORD).exists() and not all(
            path.name.startswith(self.leavings) for path in self.folder.iterdir()
        ):
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
        for part in self.parts():  # first: what a kill leaves here must not look finished
            self.start(part)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (*LOCKS, RECORD):
                path.unlink()
        write_json(self.folder / RECORD, self.made_from)
        return 0

    def known(self) -> dict[str, Any]:
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

    def is_empty(self) -> bool:
        """Whether nothing lies there that is worth keeping."""
        return not any(path.name not in (*LOCKS, RECORD) for path in self.folder.glob("*"))

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
def open_job(folder: Path, made_from: Mapping[str, Any], who: str, *, overwrite: bool = False) -> Iterator[Job]:
    """A job that no other process works on meanwhile.

    Raises:
        InputError: another process (`who` it is) is at work in the folder, or `Job.begin` refuses what lies there.
    """
    with alone(folder, who):
        job = Job(folder, made_from)
        job.begin(overwrite=overwrite)
        try:
            yield job
        finally:
            if job.is_empty():
                (folder / RECORD).unlink(missing_ok=True)
