"""Write a collection's vectors as a FAISS or Lucene index, and log the expected size and time first."""

import logging
import random
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO

import faiss
import numpy as np
import psutil
from tqdm import tqdm

from pyserini_kd.retrieval import faiss_kinds, lucene_vectors
from pyserini_kd.retrieval.faiss_kinds import FaissIndex
from pyserini_kd.retrieval.vector_store import read_faiss
from pyserini_kd.storage.arrays import Floats, let_go
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file

logger = logging.getLogger(__name__)
TRIAL = 2000  # vectors for the estimate of time
COUNT_OFFSET = 8  # bytes before the vector count in an index file: kind (4) and width (4)
EMPTY_LISTS = 12  # last bytes of an IVF file without vectors: `sprs` and the number 0
SAVE_INTERVAL = 300  # seconds between disk copies of an index that is filled in memory


def estimate(width: int, kind: str) -> str:
    """Describe the size (and time over a minute) of an index of a million vectors; InputError if kind and width do not fit."""
    if kind in lucene_vectors.INDEXERS:
        if width > lucene_vectors.MAX_WIDTH:
            raise InputError(f"Lucene takes vectors of at most {lucene_vectors.MAX_WIDTH} numbers, the encoder makes {width}")
        seconds, size = 0.0, lucene_vectors.vector_bytes(width, kind)
        where = f"on disk; built with {lucene_vectors.BUFFER} MiB in memory"
    else:
        index = faiss_kinds.new(width, kind)
        seconds = faiss_kinds.forecast(index, np.random.default_rng(0).standard_normal((TRIAL, width), np.float32), 1_000_000)
        size, where = faiss_kinds.vector_bytes(index), "in memory while it is built"
        if streams(index):
            where = f"on disk{_in_memory(_extra_memory(index, 1_000_000))}"
    spent = f"; building it takes about {seconds / 60:.0f} minutes after encoding" if seconds > 60 else ""
    return f"an index of kind {kind} takes {size * 1e6 / 1e9:.2f} GB per million documents {where}{spent}"


def write(blocks: Sequence[Path], width: int, kind: str, folder: Path, kept: Path | None = None) -> None:
    """Write vectors float32 (N, `width`) from `.npy` blocks, in order, into an index folder; its `docid` names the rows.

    Memory holds one block for kinds streamed to disk, the whole index for other kinds, and a sample during training. `kind` is
    a FAISS factory string or one of `lucene_vectors.INDEXERS`. `kept` is a file for the trained and the partly filled index
    (for Lucene, a folder). After a kill, the next run resumes from it and writes the same bytes (Lucene: the same graph).

    Raises:
        InputError: the vectors are too few for the kind, Lucene refuses an id, or the disk is full.
    """
    if kind in lucene_vectors.INDEXERS:
        count = sum(_sizes(blocks))
        _announce_size(kind, count, count * lucene_vectors.vector_bytes(width, kind), folder)
        with open(folder / "docid", encoding="utf-8", newline="\n") as lines:
            named = (([line[:-1] for line in islice(lines, len(block))], block) for block in _loaded(blocks))
            lucene_vectors.write(named, kind, folder, kept)
        return
    index = faiss_kinds.new(width, kind)
    _announce(index, kind, blocks, folder)
    if kept is not None and kept.exists():
        index = read_faiss(kept)
    elif not index.is_trained:
        _train(index, kind, blocks)
        if kept is not None:
            _keep(index, kept)
    path = folder / "index"
    try:
        if streams(index):
            write_streamed(index, _loaded(blocks), sum(_sizes(blocks)), path)
            return
        with faiss_kinds.one_thread("HNSW" in kind):
            _fill(index, blocks, kept)
        with open(path, "wb") as out:
            _write_index(index, out)
    except RuntimeError as error:  # FAISS's class for all its errors
        raise InputError(f"{path} could not be written: {_last_line(error)}") from error


def _sizes(blocks: Sequence[Path]) -> list[int]:
    return [len(np.load(block, mmap_mode="r")) for block in blocks]


def _loaded(blocks: Sequence[Path], first: int = 0) -> Iterator[Floats]:
    bar = tqdm(blocks[first:], desc="index", unit=" blocks", initial=first, total=len(blocks), disable=None)
    return (np.load(block) for block in bar)


def _announce(index: FaissIndex, kind: str, blocks: Sequence[Path], folder: Path) -> None:
    """Log the size of a FAISS index; InputError if the vectors are too few to train it."""
    count, (least, why) = sum(_sizes(blocks)), faiss_kinds.needed(index)
    if count < least:
        raise InputError(
            f"FAISS kind {kind} needs at least {least} documents ({why}), the collection has {count}; the same command with "
            "another kind reuses the encoded vectors"
        )
    streamed, seconds = streams(index), faiss_kinds.forecast(index, _sample(blocks, TRIAL), count)
    twice = streamed and hasattr(faiss_kinds.inner_index(index), "nlist")
    extra, size = _extra_memory(index, count), count * faiss_kinds.vector_bytes(index)
    more = ", twice that while its lists are sorted" if twice else ""
    more += _in_memory(extra) + (f" and about {seconds / 60:.0f} minutes" if seconds > 60 else "")
    _announce_size(kind, count, size, folder if streamed else None, more, twice=twice)
    if extra > free_memory():
        logger.warning("only %.2f GB of memory are free", free_memory() / 1e9)


def _announce_size(kind: str, count: int, size: int, disk: Path | None, more: str = "", *, twice: bool = False) -> None:
    """Log an index's size on `disk` (in memory if None); warn if it, or `twice` that, is not free."""
    free, where = (free_memory(), "in memory") if disk is None else (shutil.disk_usage(disk).free, "on disk")
    logger.info("%s of %d vectors takes about %.2f GB %s%s", kind, count, size / 1e9, where, more)
    if size * (1 + twice) > free:
        logger.warning("only %.2f GB are free %s", free / 1e9, where)


def _extra_memory(index: FaissIndex, count: int) -> int:
    """Bytes of memory to build an index, beside it: the sample, or 12 per vector to sort inverted lists if larger.

    FAISS holds a second sample if vectors are transformed, or quantised as residuals of a list's centroid.
    """
    lists = 12 * count if hasattr(faiss_kinds.inner_index(index), "nlist") else 0
    sample = 0 if index.is_trained else 4 * index.d * min(count, faiss_kinds.train_size(index))
    return max(sample * (2 if lists or faiss_kinds.transforms(index) else 1), lists)


def _in_memory(size: int) -> str:
    return f", {size / 1e9:.2f} GB in memory while it is built" if size else ""


def free_memory() -> int:
    """Bytes of available memory."""
    return int(psutil.virtual_memory().available)


def _train(index: FaissIndex, kind: str, blocks: Sequence[Path]) -> None:
    """Train an index on a sample of the blocks; InputError if FAISS cannot."""
    least, why = faiss_kinds.needed(index)
    advised = least * faiss.ClusteringParameters().min_points_per_centroid
    sample = _sample(blocks, faiss_kinds.train_size(index))
    if len(sample) < advised and least > 1:
        logger.warning("%d documents are few for training %s (%s); use %d or more", len(sample), kind, why, advised)
    try:
        faiss_kinds.train(index, sample)
    except RuntimeError as error:
        raise InputError(f"FAISS kind {kind} cannot be trained on {len(sample)} documents: {_last_line(error)}") from error


def _sample(blocks: Sequence[Path], most: int) -> Floats:
    """Uniform random sample of at most `most` vectors, in collection order, with seed 0."""
    starts = np.cumsum([0, *_sizes(blocks)])
    total = int(starts[-1])
    rows = np.array(sorted(random.Random(0).sample(range(total), min(most, total))))
    cuts = np.searchsorted(rows, starts)
    mapped = [np.load(block, mmap_mode="r") for block in blocks]
    sample = np.empty((len(rows), mapped[0].shape[1]), np.float32)
    for vectors, start, a, b in zip(mapped, starts, cuts[:-1], cuts[1:], strict=False):
        sample[a:b] = vectors[rows[a:b] - start]
    return sample


def _fill(index: FaissIndex, blocks: Sequence[Path], kept: Path | None) -> None:
    """Add missing blocks in memory; save a copy to disk every few minutes, if there is room."""
    first = int(np.searchsorted(np.cumsum(_sizes(blocks)), index.ntotal, side="right"))
    if first:
        logger.info("resuming from an index of %d vectors", index.ntotal)
        inner = faiss_kinds.inner_index(index)
        for _ in range(inner.ntotal if faiss_kinds.has_graph(inner) else 0):
            inner.hnsw.random_level()  # FAISS does not save this generator: repeat its past draws
    saved, spent = time.monotonic(), 0.0
    for number, block in enumerate(_loaded(blocks, first), start=first):
        index.add(block)
        if kept is not None and number + 1 < len(blocks) and time.monotonic() - saved > max(SAVE_INTERVAL, 10 * spent):
            begun = time.monotonic()
            try:
                _keep(index, kept)
            except (OSError, RuntimeError) as error:
                logger.warning("the partial index could not be saved; a kill would lose it: %s", error)
            saved = time.monotonic()
            spent = saved - begun


def _keep(index: FaissIndex, path: Path) -> None:
    """Save an unfinished index; no other process writes in its folder."""
    for stray in path.parent.glob(f".{path.name}.*"):  # from a kill during a save
        stray.unlink()
    with atomic_file(path, binary=True) as out:
        _write_index(index, out)


def _write_index(index: FaissIndex, out: IO[bytes]) -> None:
    """`faiss.write_index` with an error on a full disk; FAISS itself does not notice a lost end of file."""
    failed: list[OSError] = []

    def write(data: bytes) -> None:
        try:
            out.write(data)
        except OSError as error:  # FAISS would hide it behind its own error
            failed.append(error)
            raise

    writer = getattr(faiss, "PyCallbackIOWriter")  # noqa: B009 - missing in the stubs
    try:
        faiss.write_index(index, writer(write))
        out.flush()
    except RuntimeError:
        if failed:
            raise failed[0] from None
        raise


def _last_line(error: RuntimeError) -> str:
    """A FAISS error message without its source location."""
    return str(error).strip().splitlines()[-1]


# Flat, scalar-quantised and IVF indexes are written without holding them in memory. The bytes equal those of
# `faiss.write_index` for an index filled in memory.


def streams(index: FaissIndex) -> bool:
    """Whether the index can be written block by block."""
    with_lists = (faiss.IndexIVFFlat, faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer)
    return (
        _is_plain(index) or type(_without_transform(index)) in with_lists
    )  # exact types: subclasses (Panorama, Dedup) differ on disk


def _is_plain(index: FaissIndex) -> bool:
    return type(index) in (faiss.IndexFlat, faiss.IndexFlatIP, faiss.IndexScalarQuantizer)


def _without_transform(index: FaissIndex) -> FaissIndex:
    """The index inside a transform such as OPQ, or the index itself."""
    return faiss.downcast_index(index.index if isinstance(index, faiss.IndexPreTransform) else index)


def write_streamed(index: FaissIndex, blocks: Iterable[Floats], total: int, path: Path) -> None:
    """Write an empty, trained index with the `total` vectors of the blocks.

    Memory holds one block, and 12 bytes per vector while inverted lists are sorted; the disk then holds their codes twice.
    """
    if not _is_plain(index):
        _write_lists(index, _without_transform(index), blocks, total, path)
        return
    head = bytearray(faiss.serialize_index(index).tobytes())
    unit = 4 if isinstance(index, faiss.IndexFlat) else 1  # Flat counts floats, other kinds count bytes
    head[COUNT_OFFSET : COUNT_OFFSET + 8] = total.to_bytes(8, "little")
    head[-8:] = int(total * index.code_size // unit).to_bytes(8, "little")
    with open(path, "wb") as out:
        out.write(head)
        for block in blocks:
            out.write(index.sa_encode(block).tobytes())


def _write_lists(index: FaissIndex, inner: FaissIndex, blocks: Iterable[Floats], total: int, path: Path) -> None:
    """Write an IVF file: header, list sizes, then the codes and rows of each list."""
    unsorted = path.with_name(f"{path.name}.codes")
    prefix = inner.coarse_code_size()  # bytes before each code: its list number
    lists = np.empty(total, np.int32)
    done = 0
    with open(unsorted, "wb") as out:
        for block in blocks:
            codes = index.sa_encode(block)
            wide = np.zeros((len(codes), 4), np.uint8)
            wide[:, :prefix] = codes[:, :prefix]
            lists[done : done + len(codes)] = wide.view("<i4")[:, 0]
            out.write(codes.tobytes())
            done += len(codes)
    sizes = np.bincount(lists, minlength=inner.nlist)
    rows = np.argsort(lists, kind="stable")
    del lists
    used = np.flatnonzero(sizes)
    few = len(used) <= inner.nlist // 2
    listed = np.stack([used, sizes[used]], axis=1).ravel() if few else sizes
    head = bytearray(faiss.serialize_index(index).tobytes())
    inner_start = len(head) - len(faiss.serialize_index(inner))  # after a transform such as OPQ
    for start in {0, inner_start}:
        head[start + COUNT_OFFSET : start + COUNT_OFFSET + 8] = total.to_bytes(8, "little")
    head[-EMPTY_LISTS:] = (b"sprs" if few else b"full") + len(listed).to_bytes(8, "little") + listed.astype("<u8").tobytes()
    codes = np.memmap(unsorted, np.uint8, "r", shape=(total, prefix + inner.code_size))
    with open(path, "wb") as out:
        out.write(head)
        for list_rows in np.split(rows, np.cumsum(sizes)[:-1]):
            out.write(codes[list_rows, prefix:].tobytes())
            out.write(list_rows.astype("<i8").tobytes())
            let_go(codes)
    unsorted.unlink()
