"""Build an index folder from a stream of documents."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pyserini_kd.storage.environment import command_line, environment
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, refuse_existing
from pyserini_kd.storage.records import comparable, read_json, write_json
from pyserini_kd.storage.work import FINAL, Work, mend, open_work

logger = logging.getLogger(__name__)


ENOUGH = 100  # documents that tell how long a million take
ASSEMBLY = 1 << 40  # the byte of `blocks` that stands for the assembly


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
