"""Write the vectors of a collection into an index folder, as a FAISS or a Lucene index; say before what it will take."""

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
TRIAL = 2000  # vectors that the time is estimated with
COUNT = 8  # byte of an index file at which its number of vectors stands, behind its kind (4 bytes) and width (4)
NO_LISTS = 12  # bytes at the end of a file without vectors: `sprs` and the number 0
KEEP = 300  # seconds between two copies on disk of an index that is filled in memory


def estimate(width: int, kind: str) -> str:
    """What a million vectors take in an index of this kind, in words; the time is given if it is more than a minute.

    Raises:
        InputError: there is no such kind for vectors of this width.
    """
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
    spent = f"; putting it together takes about {seconds / 60:.0f} minutes, encoding aside" if seconds > 60 else ""
    return f"an index of kind {kind} takes {size * 1e6 / 1e9:.2f} GB a million documents {where}{spent}"


def write(blocks: Sequence[Path], width: int, kind: str, folder: Path, kept: Path | None = None) -> None:
    """Write vectors float32 (N, `width`), the blocks (`.npy`) in order, into an index folder, whose `docid` names the rows.

    Memory holds one block for kinds that are streamed to disk, the whole index for others, and the sample while a kind is
    trained. After a kill the next run goes on from `kept` and writes the same bytes (with Lucene: the same graph).

    The kind is a FAISS factory string, or one of `lucene_vectors.INDEXERS`. `kept` is a file for the trained index and, every
    few minutes, for an index filled in memory; for Lucene it is a folder.

    Raises:
        InputError: there are fewer vectors than the kind needs, Lucene refuses an id, or the disk is full.
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
    except RuntimeError as error:  # FAISS's class for whatever it cannot do
        raise InputError(f"{path} could not be written: {_last_line(error)}") from error


def _sizes(blocks: Sequence[Path]) -> list[int]:
    return [len(np.load(block, mmap_mode="r")) for block in blocks]


def _loaded(blocks: Sequence[Path], first: int = 0) -> Iterator[Floats]:
    bar = tqdm(blocks[first:], desc="index", unit=" blocks", initial=first, total=len(blocks), disable=None)
    return (np.load(block) for block in bar)


def _announce(index: FaissIndex, kind: str, blocks: Sequence[Path], folder: Path) -> None:
    """Log what a FAISS index will take; InputError if the vectors are too few to train it."""
    count, (least, why) = sum(_sizes(blocks)), faiss_kinds.needed(index)
    if count < least:
        raise InputError(
            f"FAISS kind {kind} needs at least {least} documents ({why}), the collection has {count}; the same command with "
            "another kind reuses the vectors encoded now"
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
    """Log the bytes of an index on disk (in memory if None), warn if they are not free; `twice` that many are needed."""
    free, where = (free_memory(), "in memory") if disk is None else (shutil.disk_usage(disk).free, "on disk")
    logger.info("%s of %d vectors takes about %.2f GB %s%s", kind, count, size / 1e9, where, more)
    if size * (1 + twice) > free:
        logger.warning("only %.2f GB are free %s", free / 1e9, where)


def _extra_memory(index: FaissIndex, count: int) -> int:
    """Bytes of memory for building an index of `count` vectors, beside the index: its sample, and 12 a vector of its lists.

    FAISS holds a second sample if vectors are transformed, or quantised as the difference from a list's centroid.
    """
    lists = 12 * count if hasattr(faiss_kinds.inner_index(index), "nlist") else 0
    sample = 0 if index.is_trained else 4 * index.d * min(count, faiss_kinds.train_size(index))
    return max(sample * (2 if lists or faiss_kinds.transforms(index) else 1), lists)


def _in_memory(size: int) -> str:
    return f", {size / 1e9:.2f} GB in memory while it is built" if size else ""


def free_memory() -> int:
    """Bytes of memory that processes can still have."""
    return int(psutil.virtual_memory().available)


def _train(index: FaissIndex, kind: str, blocks: Sequence[Path]) -> None:
    """Train an index on a sample of the blocks; InputError if FAISS cannot."""
    least, why = faiss_kinds.needed(index)
    advised = least * faiss.ClusteringParameters().min_points_per_centroid
    sample = _sample(blocks, faiss_kinds.train_size(index))
    if len(sample) < advised and least > 1:
        logger.warning("%d documents are few to train %s on (%s): %d or more are advised", len(sample), kind, why, advised)
    try:
        faiss_kinds.train(index, sample)
    except RuntimeError as error:
        raise InputError(f"FAISS kind {kind} cannot be trained on {len(sample)} documents: {_last_line(error)}") from error


def _sample(blocks: Sequence[Path], most: int) -> Floats:
    """At most so many vectors, each with the same probability, in the order of the collection; drawn with seed 0."""
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
    """Add the blocks that the index does not hold yet, in memory; keep a copy on disk every few minutes, if there is room."""
    first = int(np.searchsorted(np.cumsum(_sizes(blocks)), index.ntotal, side="right"))
    if first:
        logger.info("going on from an index of %d vectors", index.ntotal)
        inner = faiss_kinds.inner_index(index)
        for _ in range(inner.ntotal if faiss_kinds.has_graph(inner) else 0):
            inner.hnsw.random_level()  # restore the generator of levels, which FAISS does not save: draw as often as before
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


def _keep(index: FaissIndex, path: Path) -> None:
    """Write a copy of an unfinished index; no other process writes in its folder."""
    for stray in path.parent.glob(f".{path.name}.*"):  # left by a kill in this function
        stray.unlink()
    with atomic_file(path, binary=True) as out:
        _write_index(index, out)


def _write_index(index: FaissIndex, out: IO[bytes]) -> None:
    """`faiss.write_index`, which fails if the disk is full: FAISS's own function overlooks that the end of a file was lost."""
    failed: list[OSError] = []

    def write(some: bytes) -> None:
        try:
            out.write(some)
        except OSError as error:  # FAISS would replace it by an error of its own
            failed.append(error)
            raise

    writer = getattr(faiss, "PyCallbackIOWriter")  # noqa: B009 - the stubs do not know it
    try:
        faiss.write_index(index, writer(write))
        out.flush()
    except RuntimeError:
        if failed:
            raise failed[0] from None
        raise


def _last_line(error: RuntimeError) -> str:
    """The message of an error of FAISS, without its source lines."""
    return str(error).strip().splitlines()[-1]


# Index files whose index memory does not hold: Flat, scalar-quantised, and those with inverted lists. The bytes are those that
# `faiss.write_index` writes of an index that was filled in memory.


def streams(index: FaissIndex) -> bool:
    """Whether the index can be written block by block."""
    with_lists = (faiss.IndexIVFFlat, faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer)
    return _is_plain(index) or type(_behind(index)) in with_lists  # exact types: others (Panorama, Dedup) differ on disk


def _is_plain(index: FaissIndex) -> bool:
    return type(index) in (faiss.IndexFlat, faiss.IndexFlatIP, faiss.IndexScalarQuantizer)


def _behind(index: FaissIndex) -> FaissIndex:
    """The index behind a transform such as OPQ, or the index itself."""
    return faiss.downcast_index(index.index if isinstance(index, faiss.IndexPreTransform) else index)


def write_streamed(index: FaissIndex, blocks: Iterable[Floats], total: int, path: Path) -> None:
    """Write an empty, trained index with the `total` vectors of the blocks.

    Memory holds a block, and 12 bytes a vector while inverted lists are sorted; disk holds their codes twice meanwhile.
    """
    if not _is_plain(index):
        _write_lists(index, _behind(index), blocks, total, path)
        return
    head = bytearray(faiss.serialize_index(index).tobytes())
    unit = 4 if isinstance(index, faiss.IndexFlat) else 1  # a Flat index counts floats, the others bytes
    head[COUNT : COUNT + 8] = total.to_bytes(8, "little")
    head[-8:] = int(total * index.code_size // unit).to_bytes(8, "little")
    with open(path, "wb") as out:
        out.write(head)
        for block in blocks:
            out.write(index.sa_encode(block).tobytes())


def _write_lists(index: FaissIndex, inner: FaissIndex, blocks: Iterable[Floats], total: int, path: Path) -> None:
    """Header with the count, sizes of the lists, and for each list its codes and then its rows."""
    unsorted = path.with_name(f"{path.name}.codes")
    number = inner.coarse_code_size()  # bytes before a code that tell its list
    lists = np.empty(total, np.int32)
    done = 0
    with open(unsorted, "wb") as out:
        for block in blocks:
            codes = index.sa_encode(block)
            wide = np.zeros((len(codes), 4), np.uint8)
            wide[:, :number] = codes[:, :number]
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
    own = len(head) - len(faiss.serialize_index(inner))  # where the index behind OPQ or the like begins
    for start in {0, own}:
        head[start + COUNT : start + COUNT + 8] = total.to_bytes(8, "little")
    head[-NO_LISTS:] = (b"sprs" if few else b"full") + len(listed).to_bytes(8, "little") + listed.astype("<u8").tobytes()
    codes = np.memmap(unsorted, np.uint8, "r", shape=(total, number + inner.code_size))
    with open(path, "wb") as out:
        out.write(head)
        for some in np.split(rows, np.cumsum(sizes)[:-1]):
            out.write(codes[some, number:].tobytes())
            out.write(some.astype("<i8").tobytes())
            let_go(codes)
    unsorted.unlink()
