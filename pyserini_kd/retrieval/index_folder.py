"""Build an index folder from a stream of documents, block by block.

`.NAME.partial/` beside the folder holds the files of finished blocks. After a crash, a kill or Ctrl-C the same command makes
the blocks that are missing, or whose documents have changed. A second process shares the work.
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

ENOUGH = 100  # documents that tell how long a million take

Shard = tuple[int, int]
"""(I, N): this is process I of N that share the work."""


class Options(TypedDict, total=False):
    """How an index folder is written, whatever is stored of the documents."""

    store_docs: bool  # keep the texts in the folder; the default
    overwrite: bool  # replace the folder if it exists
    block: int | None  # documents in a block
    shard: Shard  # only every N-th block is made here; the process that ends last writes the index, the others return None
    collection: str  # its name, for the manifest
    segment: str | None  # how the documents were cut into passages, for the manifest


class HasId(Protocol):
    """A document, or a vector with the id of its document; a NamedTuple."""

    @property
    def doc_id(self) -> str:
        """The id."""


Item = TypeVar("Item", bound=HasId)
Make = Callable[[Job, int, list[Item]], None]
"""Writes the files of a block, part of a job, with this number and these documents."""
Assemble = Callable[["Blocks", Path], Record]
"""Puts the blocks together in a new folder, which has the ids already; gives what the manifest says besides."""


@dataclasses.dataclass
class Blocks:
    """The blocks of a collection as parts of a job; `sums` has the checksum of every block's records, in order."""

    shared: SharedJob
    sums: list[str] = dataclasses.field(default_factory=list)
    count: int = 0

    @property
    def job(self) -> Job:
        """The unfinished work."""
        return self.shared.job

    def paths(self, ending: str) -> list[Path]:
        """One file of each block, in order."""
        return [self.job.path(number, ending) for number in range(len(self.sums))]

    def is_done(self, number: int) -> bool:
        """Whether a block was finished, with the records that it has now."""
        return self.job.is_done(number, self.sums[number])

    def left(self) -> int:
        """How many blocks are not done."""
        return sum(not self.is_done(number) for number in range(len(self.sums)))

    def run(self, docs: Iterable[Item], size: int, make: Make[Item], shard: Shard = (0, 1)) -> None:
        """Make every block that is not done and that no other process has in hand; then wait for those that one has.

        Of `shard` = (I, N), only blocks I, I + N, I + 2N ... are ours. Memory holds one block and those in others' hands.
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
            logger.info("waiting for %d blocks that another process has in hand", len(waiting))
        for number, block in waiting.items():
            self._make(number, block, make, wait=True)

    def _make(self, number: int, block: list[Item], make: Make[Item], wait: bool) -> bool:
        """Make a block unless it is done; False where another process has it in hand and we do not wait."""
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
    """Make an index folder of a stream of documents; returns their number, or None where other shards have work left.

    The folder gets `docid`, `docs.jsonl`, `docs.offsets` (unless texts are refused), `manifest.json`, and what `assemble` adds.
    Every process reads all documents, whatever its share.

    Args:
        docs: the collection.
        folder: what to write.
        made_from: what a block depends on, besides its documents, its size and whether texts are stored.
        make: makes the files of a block.
        assemble: makes the result of them.
        index: the kind of the vector index, on which no block depends.
        default_block: documents in a block, unless the options say it.
        options: how the folder is written.

    Raises:
        InputError: the folder exists, the collection is empty or changes meanwhile, another process works with other settings.
    """
    started = time.monotonic()
    shard, overwrite = options.get("shard", (0, 1)), options.get("overwrite", False)
    store_docs, size = options.get("store_docs", True), options.get("block") or default_block
    collection = options.get("collection", "")
    made_from = made_from | {"block": size, "store_docs": store_docs}
    only_result = {"index": index, "collection": collection, "segment": options.get("segment")}
    only_result["collection_stamp"] = sources.stamp(collection)
    said = made_from | {name: value for name, value in only_result.items() if value}
    mend(folder)
    if shard[1] > 1 and (there := Manifest.find(folder)) and there.says(said):  # the other processes were quicker
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
            if not blocks.job.parts():  # nothing to go on with
                shared.remove_if_alone()
            raise
        if shard[1] > 1 and (left := blocks.left()):
            logger.info("shard %d of %d is done; %d blocks are left to the other shards", *shard, left)
            return None
        with shared.lock(ASSEMBLY, wait=True):
            if not shared.is_there():
                if not (folder / manifest.NAME).is_file():
                    raise InputError(f"the process that was putting {folder} together was killed; start again")
                logger.info("another process has written %s", folder)
                return blocks.count
            if blocks.left():
                raise InputError("the collection has changed while it was indexed; start again")
            new = blocks.job.folder / FINAL
            record = _assemble(blocks, new, assemble, store_docs)
            record |= said | {"n_docs": blocks.count, "seconds": round(time.monotonic() - started, 1)}
            write_json(new / manifest.NAME, record | {"command": command_line(), **environment()})
            refuse_existing(folder, overwrite, folder=True)  # somebody may have written there meanwhile
            shared.turn_into(folder)
    return blocks.count


def _with_docs(make: Make[Item], store_docs: bool) -> Make[Item]:
    """Writes the ids and texts of a block, then the rest by `make`; the first large block tells what a million cost."""
    told = False

    def make_block(job: Job, number: int, block: list[Item]) -> None:
        nonlocal told
        begun = time.monotonic()
        with atomic_file(job.path(number, "ids")) as out:
            out.writelines(f"{doc.doc_id}\n" for doc in block)
        if store_docs:
            with atomic_file(job.path(number, "docs"), binary=True) as out:
                out.writelines(json.dumps(doc, ensure_ascii=False).encode() + b"\n" for doc in block)
        make(job, number, block)
        if not told and len(block) >= ENOUGH:
            told = True
            hours = (time.monotonic() - begun) / len(block) * 1e6 / 3600
            gigabytes = sum(path.stat().st_size for path in job.folder.glob(f"{number:06d}.*")) / len(block) * 1e6 / 1e9
            logger.info("a million documents like the first %d take %.1f hours here, and %.1f GB, twice while they are "
                        "put together", len(block), hours, gigabytes)  # fmt: skip

    return make_block


def _assemble(blocks: Blocks, new: Path, assemble: Assemble, store_docs: bool) -> Record:
    """Put the blocks together in a folder that is still among the unfinished work."""
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    _merge_docs(blocks, new, store_docs)
    try:
        return assemble(blocks, new)
    except OSError as error:
        error.filename = error.filename or str(new)  # a full disk does not say where
        raise


def _merge_docs(blocks: Blocks, new: Path, store_docs: bool) -> None:
    """Merge the ids and the texts of the blocks, a block at a time in memory."""
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
