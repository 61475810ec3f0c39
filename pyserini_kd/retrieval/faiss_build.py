"""Write the vectors of a collection into an index."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd.retrieval import faiss_files, faiss_training, lucene_vectors
from pyserini_kd.retrieval.faiss_kinds import forecast, inner_index, needed, new, train_size, transforms, vector_bytes
from pyserini_kd.retrieval.vector_store import read_faiss
from pyserini_kd.storage.errors import InputError

logger = logging.getLogger(__name__)
TRIAL = 2000  # vectors that the time is estimated with
KEEP = 300  # seconds of filling an index in memory after which it is kept against a kill

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def estimate(width: int, kind: str) -> str:
    """What a million vectors take in an index of this kind, in words; InputError where it is none for this width.

    The time, said where it is more than a minute, comes from a trial with random vectors.
    """
    seconds = 0.0
    if kind in lucene_vectors.INDEXERS:
        lucene_vectors.check(width, kind)
        size, held = lucene_vectors.vector_bytes(width, kind), f"on disk; built with {lucene_vectors.BUFFER} MiB in memory"
    else:
        index = new(width, kind)
        size = vector_bytes(index)
        held = "in memory while it is built"
        if faiss_files.streams(index):
            held = "on disk" + _memory(_meanwhile(index, 1_000_000))
        seconds = forecast(index, np.random.default_rng(0).standard_normal((TRIAL, width), np.float32), 1_000_000)
    spent = f"; putting it together takes about {seconds / 60:.0f} minutes, encoding aside" if seconds > 60 else ""
    return f"an index of kind {kind} takes {size * 1e6 / 1e9:.2f} GB a million documents {held}{spent}"


def write(blocks: Sequence[Path], width: int, kind: str, folder: Path, kept: Path | None = None) -> None:
    """Write the vectors of the blocks (`.npy`, in order) into an index folder, whose `docid` names the rows.

    Memory holds a block where the kind streams, the whole index where it does not, and before that what the kind is trained
    on. What it takes is said before. `kept` names a file for an index of these very vectors as far as it has come: trained,
    and of what is filled in memory every few minutes the whole; beside it is what a training has learnt so far. (For Lucene it
    is a folder.) A run that was killed goes on from there, to the same bytes; with Lucene to the same graph.

    Raises:
        InputError: there are fewer vectors than the kind needs, Lucene refuses an id, or the disk is full.
    """
    sizes = [len(np.load(block, mmap_mode="r")) for block in blocks]
    if kind not in lucene_vectors.INDEXERS:
        _write_faiss(blocks, sizes, new(width, kind), kind, folder / "index", kept)
        return
    _announce(kind, sum(sizes), lucene_vectors.vector_bytes(width, kind), shutil.disk_usage(folder).free, "on disk")
    with open(folder / "docid", encoding="utf-8", newline="\n") as lines:
        named = (([line[:-1] for line in islice(lines, len(block))], block) for block in _loaded(blocks))
        lucene_vectors.write(named, kind, folder, kept)


def _loaded(blocks: Sequence[Path], first: int = 0) -> Iterator[Floats]:
    bar = tqdm(blocks[first:], desc="index", unit=" blocks", initial=first, total=len(blocks), disable=None)
    return (np.load(block) for block in bar)


def _announce(
    kind: str, count: int, size: int, free: int, where: str, *, seconds: float = 0, twice: bool = False, held: int = 0
) -> None:
    """Say what an index will take before it is written (`held`: bytes of memory, where it goes to disk); warn of too little."""
    size_too = ", twice that while its lists are put in order" if twice else ""
    spent = f" and about {seconds / 60:.0f} minutes" if seconds > 60 else ""
    what = f"{kind} of {count} vectors takes about {count * size / 1e9:.2f} GB {where}"
    logger.info("%s%s%s%s", what, size_too, _memory(held), spent)
    if count * size * (1 + twice) > free:
        logger.warning("only %.2f GB are free %s", free / 1e9, where)
    if held > free_memory():
        logger.warning("only %.2f GB of memory are free", free_memory() / 1e9)


def _meanwhile(index: Any, count: int) -> int:
    """Bytes of memory that an index of `count` vectors needs, its own aside: to be trained, or 12 a vector of its lists.

    FAISS holds a second sample where vectors are transformed, or quantised as what is left of a list's centroid.
    """
    lists = 12 * count if hasattr(inner_index(index), "nlist") else 0
    sample = 0 if index.is_trained else 4 * index.d * min(count, train_size(index))
    return max(sample * (2 if lists or transforms(index) else 1), lists)


def _memory(size: int) -> str:
    return f", {size / 1e9:.2f} GB in memory while it is built" if size else ""


def _write_faiss(blocks: Sequence[Path], sizes: Sequence[int], index: Any, kind: str, path: Path, kept: Path | None) -> None:
    """Train the empty index where it needs that, and write it with the vectors of the blocks.

    Graphs, and product quantisation without lists, are built in memory; the others go to the file block by block. Training
    takes a uniform sample of all vectors, drawn with seed 0. HNSW is built by one thread: more build another graph each time.
    """
    least, why = needed(index)
    if sum(sizes) < least:
        raise InputError(
            f"--faiss {kind} needs at least {least} documents ({why}), the collection has {sum(sizes)}; the same command with "
            "another kind goes on from the vectors encoded now"
        )
    streams = faiss_files.streams(index)
    free, where = (shutil.disk_usage(path.parent).free, "on disk") if streams else (free_memory(), "in memory")
    seconds = forecast(index, _sample(blocks, sizes, TRIAL), sum(sizes))
    has_lists = hasattr(inner_index(index), "nlist")
    held = _meanwhile(index, sum(sizes))
    _announce(kind, sum(sizes), vector_bytes(index), free, where, seconds=seconds, twice=streams and has_lists, held=held)
    if kept is not None and kept.exists():
        index = read_faiss(kept, mmap=False)
    elif not index.is_trained:
        learnt = kept.with_suffix(".training") if kept is not None else None
        _train(index, kind, blocks, sizes, learnt)
        if kept is not None and learnt is not None:
            _keep(index, kept)
            learnt.unlink(missing_ok=True)
    try:
        if streams:
            return faiss_files.write(index, _loaded(blocks), sum(sizes), path)
        with faiss_training.one_thread("HNSW" in kind):
            _fill(index, blocks, sizes, kept)
        with open(path, "wb") as out:
            _write_index(index, out)
    except RuntimeError as error:  # FAISS's word for what it cannot do
        raise InputError(f"{path} could not be written: {_last_line(error)}") from error


def _train(index: Any, kind: str, blocks: Sequence[Path], sizes: Sequence[int], learnt: Path | None) -> None:
    """Train the index on a sample of the blocks; `learnt` names a file for what it has learnt so far."""
    import faiss

    least, why = needed(index)
    advised, used = least * faiss.ClusteringParameters().min_points_per_centroid, min(sum(sizes), train_size(index))
    if used < advised and least > 1:
        logger.warning("%d documents are few to train %s on (%s): %d or more are advised", used, kind, why, advised)
    inner: Any = inner_index(index)
    parts: list[Any] = [inner, getattr(inner, "pq", None)]
    for part in parts:
        if hasattr(part, "cp"):
            part.cp.min_points_per_centroid = 1  # else it says for each part of each round what has been said above
    sample = _sample(blocks, sizes, train_size(index))
    try:
        faiss_training.train(transforms(index), inner, sample, learnt)
        index.train(sample)
    except RuntimeError as error:
        raise InputError(f"--faiss {kind} cannot be trained on {sum(sizes)} documents: {_last_line(error)}") from error


def _fill(index: Any, blocks: Sequence[Path], sizes: Sequence[int], kept: Path | None) -> None:
    """Add the blocks that the index does not hold, in memory; keep it every few minutes, where the disk has room."""
    first = int(np.searchsorted(np.cumsum(sizes), index.ntotal, side="right"))
    if first:
        logger.info("going on from an index of %d vectors", index.ntotal)
        _wind_forward(index)
    saved, spent = time.monotonic(), 0.0
    for number, block in enumerate(_loaded(blocks, first), start=first):
        index.add(block)
        if kept is not None and number + 1 < len(blocks) and time.monotonic() - saved > max(KEEP, 10 * spent):
            begun = time.monotonic()
            try:
                _keep(index, kept)
            except (OSError, RuntimeError) as error:
                logger.warning("the index so far could not be kept, a kill would cost it: %s", error)
            saved = time.monotonic()
            spent = saved - begun


def _wind_forward(index: Any) -> None:
    """Let the generator that deals the floors of an HNSW graph, which no file holds, go on where it was."""
    import faiss

    inner: Any = inner_index(index)
    if isinstance(inner, faiss.IndexHNSW):
        graph: Any = inner.hnsw
        for _ in range(inner.ntotal):
            graph.random_level()


def _keep(index: Any, path: Path) -> None:
    faiss_training.keep(path, lambda out: _write_index(index, out))


def _write_index(index: Any, out: IO[bytes]) -> None:
    """`faiss.write_index` that fails where the disk is full: its own overlooks that the end of a file was lost."""
    import faiss

    failed: list[OSError] = []

    def write(some: bytes) -> None:
        try:
            out.write(some)
        except OSError as error:  # which FAISS would turn into one of its own
            failed.append(error)
            raise

    writer: Any = getattr(faiss, "PyCallbackIOWriter")  # noqa: B009 - its stubs do not know it
    try:
        faiss.write_index(index, writer(write))
        out.flush()
    except RuntimeError:
        if failed:
            raise failed[0] from None
        raise


def _last_line(error: RuntimeError) -> str:
    """What FAISS says happened, without where in its code."""
    return str(error).strip().splitlines()[-1]


def free_memory() -> int:
    """Bytes of memory that processes can still have (Linux; elsewhere all that the machine has)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _sample(blocks: Sequence[Path], sizes: Sequence[int], most: int) -> Floats:
    """At most so many vectors, every one as likely, in the order of the collection."""
    total = sum(sizes)
    rows = np.array(sorted(random.Random(0).sample(range(total), min(most, total))))
    starts = np.cumsum([0, *sizes])
    cuts = np.searchsorted(rows, starts)
    parts = zip(blocks, starts, cuts[:-1], cuts[1:], strict=False)
    sample: Floats | None = None
    for block, start, a, b in parts:
        vectors = np.load(block, mmap_mode="r")
        sample = np.empty((len(rows), vectors.shape[1]), np.float32) if sample is None else sample
        sample[a:b] = vectors[rows[a:b] - start]
    assert sample is not None
    return sample
