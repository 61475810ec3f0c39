"""Build an index folder from a stream of documents, block by block.

`.NAME.partial/` beside the folder holds finished blocks. After a crash, a kill or Ctrl-C, the same command makes the missing or
changed blocks. Several processes can share the work.
"""

import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypedDict, TypeVar, Unpack

import numpy as np
from tqdm import tqdm

from pyserini_kd.data import sources
from pyserini_kd.storage import manifest
from pyserini_kd.storage.arrays import Floats, chunks
from pyserini_kd.storage.environment import command_line, environment
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, refuse_existing
from pyserini_kd.storage.job import ASSEMBLY, FINAL, Job, SharedJob, mend, open_shared
from pyserini_kd.storage.manifest import Manifest
from pyserini_kd.storage.records import Record, write_json

logger = logging.getLogger(__name__)

MIN_ESTIMATE = 100  # smallest block for an estimate of time and size

Shard = tuple[int, int]
"""(I, N): this is process I (from 0) of the N that share the work."""


class Options(TypedDict, total=False):
    """Options of every index folder."""

    store_docs: bool  # store the texts; the default
    overwrite: bool  # replace the folder if it exists
    block: int | None  # documents in a block
    shard: Shard  # make every N-th block; the last process writes the index, the others return None
    collection: str  # name, for the manifest
    segment: str | None  # passage size, for the manifest
    fields: str | None  # names of columns, for the manifest


class HasId(Protocol):
    """A document, or a vector with the id of its document; a NamedTuple."""

    @property
    def doc_id(self) -> str:
        """The id."""


Item = TypeVar("Item", bound=HasId)
Make = Callable[[Job, int, list[Item]], None]
"""Writes the files of a block: (job, block number, documents)."""
Assemble = Callable[["Blocks", Path], Record]
"""Writes the result from all blocks into a new folder with ids and texts; returns further manifest fields."""


@dataclasses.dataclass
class Blocks:
    """The blocks of a collection as parts of a job; `sums` are the checksums of their records, in order."""

    shared: SharedJob
    sums: list[str] = dataclasses.field(default_factory=list)
    count: int = 0

    @property
    def job(self) -> Job:
        """The unfinished work."""
        return self.shared.job

    def paths(self, ending: str) -> list[Path]:
        """The file with this ending of each block, in order."""
        return [self.job.path(number, ending) for number in range(len(self.sums))]

    def is_done(self, number: int) -> bool:
        """Whether a block is finished for its current records."""
        return self.job.is_done(number, self.sums[number])

    def left(self) -> int:
        """The number of unfinished blocks."""
        return sum(not self.is_done(number) for number in range(len(self.sums)))

    def run(self, docs: Iterable[Item], size: int, make: Make[Item], shard: Shard = (0, 1)) -> None:
        """Make every unfinished block that no other process is making, then wait for those processes.

        With `shard` = (I, N), only blocks I, I + N, I + 2N ... are made. Memory holds one block and those of other processes.
        """
        waiting: dict[int, list[Item]] = {}
        with tqdm(desc="index", unit=" docs", disable=None) as bar:
            for number, block in enumerate(chunks(docs, size)):
                self.sums.append(hashlib.sha256(json.dumps(block, ensure_ascii=False, default=_digest).encode()).hexdigest())
                self.count += len(block)
                if number % shard[1] == shard[0] and not self._make(number, block, make, wait=False):
                    waiting[number] = block
                waiting = {other: held for other, held in waiting.items() if not self.is_done(other)}
                bar.update(len(block))
        if waiting:
            logger.info("waiting for %d blocks of another process", len(waiting))
        for number, block in waiting.items():
            self._make(number, block, make, wait=True)

    def _make(self, number: int, block: list[Item], make: Make[Item], wait: bool) -> bool:
        """Make a block unless it is done; False if another process makes it and `wait` is False."""
        if self.is_done(number):
            return True
        with self.shared.lock(number, wait) as ours:
            if ours and self.shared.is_there() and not self.is_done(number):
                self.job.start(number)
                make(self.job, number, block)
                self.job.finish(number, self.sums[number])
        return ours


def build(
    docs: Iterable[Item],
    folder: Path,
    made_from: Record,
    make: Make[Item],
    assemble: Assemble,
    *,
    index: str | None = None,
    default_block: int,
    **options: Unpack[Options],
) -> int | None:
    """Build an index folder from a stream of documents; returns their number, or None while other shards have work left.

    The folder gets `docid`, `docs.jsonl` and `docs.offsets` (if texts are stored), `manifest.json`, and the files of
    `assemble`. Every process reads all documents.

    Args:
        docs: the collection.
        folder: the output.
        made_from: settings that a block depends on, besides its documents, block size and stored texts.
        make: writes the files of a block.
        assemble: writes the result from all blocks.
        index: the kind of vector index; blocks do not depend on it.
        default_block: documents in a block, unless `options` has it.
        options: see `Options`.

    Raises:
        InputError: the folder exists, the collection is empty or changes meanwhile, or another process uses other settings.
    """
    started = time.monotonic()
    shard, overwrite = options.get("shard", (0, 1)), options.get("overwrite", False)
    store_docs, size = options.get("store_docs", True), options.get("block") or default_block
    collection = options.get("collection", "")
    made_from = made_from | {"block": size, "store_docs": store_docs}
    only_result = {"index": index, "collection": collection, "segment": options.get("segment")}
    only_result["fields"] = options.get("fields")
    only_result["collection_stamp"] = sources.stamp(collection)
    described = made_from | {name: value for name, value in only_result.items() if value}
    mend(folder)
    if shard[1] > 1 and (existing := Manifest.find(folder)) and existing.says(described):  # other processes finished it
        logger.info("%s is complete", folder)
        return None
    refuse_existing(folder, overwrite, folder=True)
    with open_shared(folder, made_from, only_result, overwrite=overwrite) as shared:
        blocks = Blocks(shared)
        try:
            blocks.run(docs, size, _with_docs(make, store_docs), shard)
            if blocks.count == 0:
                raise InputError("the collection has no documents")
        except InputError:
            if not blocks.job.parts():  # nothing to resume
                shared.remove_if_alone()
            raise
        if shard[1] > 1 and (left := blocks.left()):
            logger.info("shard %d of %d is done; %d blocks are left to the other shards", *shard, left)
            return None
        with shared.lock(ASSEMBLY, wait=True):
            if not shared.is_there():
                if not (folder / manifest.NAME).is_file():
                    raise InputError(f"the process that assembled {folder} was killed; start again")
                logger.info("another process has written %s", folder)
                return blocks.count
            if blocks.left():
                raise InputError("the collection has changed during indexing; start again")
            new = blocks.job.folder / FINAL
            record = _assemble(blocks, new, assemble, store_docs)
            record |= described | {"n_docs": blocks.count, "seconds": round(time.monotonic() - started, 1)}
            write_json(new / manifest.NAME, record | {"command": command_line(), **environment()})
            refuse_existing(folder, overwrite, folder=True)  # another process may have written it meanwhile
            shared.turn_into(folder)
    return blocks.count


def _with_docs(make: Make[Item], store_docs: bool) -> Make[Item]:
    """Also write a block's ids and texts; the first large block gives an estimate for a million documents."""
    logged = False

    def make_block(job: Job, number: int, block: list[Item]) -> None:
        nonlocal logged
        begun = time.monotonic()
        with atomic_file(job.path(number, "ids")) as out:
            out.writelines(f"{doc.doc_id}\n" for doc in block)
        if store_docs:
            with atomic_file(job.path(number, "docs"), binary=True) as out:
                out.writelines(json.dumps(doc, ensure_ascii=False).encode() + b"\n" for doc in block)
        make(job, number, block)
        if not logged and len(block) >= MIN_ESTIMATE:
            logged = True
            hours = (time.monotonic() - begun) / len(block) * 1e6 / 3600
            gigabytes = sum(path.stat().st_size for path in job.folder.glob(f"{number:06d}.*")) / len(block) * 1e6 / 1e9
            logger.info("a million documents like the first %d take %.1f hours here and %.1f GB (twice that during assembly)",
                        len(block), hours, gigabytes)  # fmt: skip

    return make_block


def _assemble(blocks: Blocks, new: Path, assemble: Assemble, store_docs: bool) -> Record:
    """Assemble the blocks in a folder inside the unfinished work."""
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    _merge_docs(blocks, new, store_docs)
    try:
        return assemble(blocks, new)
    except OSError as error:
        error.filename = error.filename or str(new)  # missing when the disk is full
        raise


def _merge_docs(blocks: Blocks, new: Path, store_docs: bool) -> None:
    """Concatenate ids and texts, with one block in memory."""
    with open(new / "docid", "wb") as out:
        for path in blocks.paths("ids"):
            out.write(path.read_bytes())
    if store_docs:
        position = 0
        with open(new / "docs.jsonl", "wb") as out, open(new / "docs.offsets", "wb") as offsets:
            for path in blocks.paths("docs"):
                lines = path.read_bytes().splitlines(keepends=True)
                starts = position + np.cumsum([0] + [len(line) for line in lines])
                offsets.write(starts[:-1].astype("<u8").tobytes())
                position = int(starts[-1])
                out.writelines(lines)


def _digest(vector: Floats) -> str:
    return hashlib.sha256(np.ascontiguousarray(vector).data).hexdigest()
