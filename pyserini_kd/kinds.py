"""Where vectors can live: FAISS by factory string, Lucene; what each kind needs, how it is filled, written, opened, tuned.

Whatever opens, `read` gives an object with FAISS's names: `d`, `ntotal`, `search(query_vecs, k)`.
"""

from __future__ import annotations

import contextlib
import logging
import math
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

from pyserini_kd import lucene, lucene_vectors, quantisers, streamed
from pyserini_kd.files import InputError

logger = logging.getLogger(__name__)

TRAIN_SAMPLE = 100_000  # vectors that a quantiser is trained on, at most; more where it has many lists
TRIAL = 2000  # vectors that the time is estimated with
PER_LIST = 64  # training vectors for each inverted list, or each centroid of a code
ROTATION_CENTROIDS = 256  # of the product quantisers by which FAISS finds OPQ's rotation, whatever the index has
KEEP = 300  # seconds of filling an index in memory after which it is kept against a kill

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


# --------------------------------------------------------------------------------------------------- before the work


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
        if streamed.streams(index):
            held = "on disk" + _memory(_meanwhile(index, 1_000_000))
        seconds = forecast(index, np.random.default_rng(0).standard_normal((TRIAL, width), np.float32), 1_000_000)
    spent = f"; putting it together takes about {seconds / 60:.0f} minutes, encoding aside" if seconds > 60 else ""
    return f"an index of kind {kind} takes {size * 1e6 / 1e9:.2f} GB a million documents {held}{spent}"


def new(width: int, kind: str) -> Any:
    """An empty inner-product index of a factory string; InputError where it is none for vectors of this width."""
    import faiss

    try:
        index = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise InputError(f"--faiss {kind!r} is not a FAISS factory string for width {width} (Flat, HNSW32, SQ8 ...)") from None
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:  # as of HNSW over PQ
        raise InputError(f"--faiss {kind!r}: FAISS has no such index for inner products")
    _refuse_unfit(index, kind)
    for transform in _transforms(index):
        if not isinstance(transform, (faiss.OPQMatrix, faiss.RandomRotationMatrix, faiss.RemapDimensionsTransform)):
            name = type(transform).__name__.removesuffix("Matrix").removesuffix("Transform")
            raise InputError(f"--faiss {kind!r}: {name} changes inner products (it centres or scales); OPQ and RR rotate only")
    return index


def _refuse_unfit(index: Any, kind: str) -> None:
    """InputError for kinds that FAISS makes but that cannot be filled block by block, or not with such vectors."""
    import faiss

    inner: Any = _inner(index)
    if isinstance(index, faiss.IndexIDMap) or isinstance(inner, faiss.IndexIDMap):
        raise InputError(f"--faiss {kind!r}: ids are kept beside the index, in `docid`; leave IDMap out")
    if isinstance(inner, faiss.IndexNSG):
        raise InputError(f"--faiss {kind!r}: FAISS fills an NSG at once or not at all; take HNSW32")
    if isinstance(inner, faiss.IndexHNSW):
        graph: Any = inner.hnsw
        if graph.cum_nneighbor_per_level.size() < 3 or graph.nb_neighbors(1) < 2:  # of each floor the sum so far, from 0 on
            raise InputError(f"--faiss {kind!r}: a graph needs 2 links a document at least; take HNSW32")
    if getattr(inner, "nlist", 1) < 1:
        raise InputError(f"--faiss {kind!r}: there must be one inverted list at least")
    storage: Any = faiss.downcast_index(inner.storage) if isinstance(inner, faiss.IndexHNSW) else inner
    if getattr(getattr(storage, "sq", None), "qtype", None) == faiss.ScalarQuantizer.QT_8bit_direct:
        raise InputError(f"--faiss {kind!r} takes whole numbers from 0 to 255; take SQ8")


def _transforms(index: Any) -> list[Any]:
    """What is done to vectors before they come into the index: OPQ's rotation, for one."""
    import faiss

    if isinstance(index, faiss.IndexRefine):
        return _transforms(faiss.downcast_index(index.base_index))
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    chain: Any = index.chain
    return [faiss.downcast_VectorTransform(chain.at(number)) for number in range(chain.size())]


def _inner(index: Any) -> Any:
    """The index behind OPQ and the like, and before the refinement of `,RFlat`."""
    import faiss

    while isinstance(index, (faiss.IndexPreTransform, faiss.IndexRefine)):
        index = faiss.downcast_index(index.index if isinstance(index, faiss.IndexPreTransform) else index.base_index)
    return index


def vector_bytes(index: Any) -> int:
    """Bytes that each vector takes in the index, about: its code, its id in an inverted list, its links in an HNSW graph."""
    import faiss

    if isinstance(index, faiss.IndexRefine):
        return vector_bytes(faiss.downcast_index(index.base_index)) + 4 * index.d
    inner = _inner(index)
    if isinstance(inner, faiss.IndexHNSW):
        storage: Any = faiss.downcast_index(inner.storage)
        graph: Any = inner.hnsw
        return int(storage.code_size + 4 * (graph.nb_neighbors(0) + graph.nb_neighbors(1)))
    return int(getattr(inner, "code_size", 4 * index.d) + (8 if hasattr(inner, "nlist") else 0))


def needed(index: Any) -> tuple[int, str]:
    """How many vectors the index must be trained on at least, and what for."""
    import faiss

    inner = _inner(index)
    pq = getattr(inner, "pq", None)
    lists, codes = int(getattr(inner, "nlist", 1)), int(pq.ksub) if pq is not None else 1
    parts = [(lists, f"{lists} inverted lists"), (codes, f"product quantisation with {codes} centroids")]
    if any(isinstance(transform, faiss.OPQMatrix) for transform in _transforms(index)):
        parts.append((ROTATION_CENTROIDS, f"OPQ, whose rotation is found with {ROTATION_CENTROIDS} centroids"))
    return max(parts, key=lambda part: part[0])


# ----------------------------------------------------------------------------------------------------------- writing


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
    lists = 12 * count if hasattr(_inner(index), "nlist") else 0
    sample = 0 if index.is_trained else 4 * index.d * min(count, _train_size(index))
    return max(sample * (2 if lists or _transforms(index) else 1), lists)


def _memory(size: int) -> str:
    return f", {size / 1e9:.2f} GB in memory while it is built" if size else ""


def _write_faiss(
    blocks: Sequence[Path], sizes: Sequence[int], index: Any, kind: str, path: Path, kept: Path | None
) -> None:
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
    streams = streamed.streams(index)
    free, where = (shutil.disk_usage(path.parent).free, "on disk") if streams else (free_memory(), "in memory")
    seconds = forecast(index, _sample(blocks, sizes, TRIAL), sum(sizes))
    has_lists = hasattr(_inner(index), "nlist")
    held = _meanwhile(index, sum(sizes))
    _announce(kind, sum(sizes), vector_bytes(index), free, where, seconds=seconds, twice=streams and has_lists, held=held)
    if kept is not None and kept.exists():
        index = _read_faiss(kept, mmap=False)
    elif not index.is_trained:
        learnt = kept.with_suffix(".training") if kept is not None else None
        _train(index, kind, blocks, sizes, learnt)
        if kept is not None and learnt is not None:
            _keep(index, kept)
            learnt.unlink(missing_ok=True)
    try:
        if streams:
            return streamed.write(index, _loaded(blocks), sum(sizes), path)
        with quantisers.one_thread("HNSW" in kind):
            _fill(index, blocks, sizes, kept)
        with open(path, "wb") as out:
            _write_index(index, out)
    except RuntimeError as error:  # FAISS's word for what it cannot do
        raise InputError(f"{path} could not be written: {_last_line(error)}") from error


def _train(index: Any, kind: str, blocks: Sequence[Path], sizes: Sequence[int], learnt: Path | None) -> None:
    """Train the index on a sample of the blocks; `learnt` names a file for what it has learnt so far."""
    import faiss

    least, why = needed(index)
    advised, used = least * faiss.ClusteringParameters().min_points_per_centroid, min(sum(sizes), _train_size(index))
    if used < advised and least > 1:
        logger.warning("%d documents are few to train %s on (%s): %d or more are advised", used, kind, why, advised)
    inner: Any = _inner(index)
    parts: list[Any] = [inner, getattr(inner, "pq", None)]
    for part in parts:
        if hasattr(part, "cp"):
            part.cp.min_points_per_centroid = 1  # else it says for each part of each round what has been said above
    sample = _sample(blocks, sizes, _train_size(index))
    try:
        quantisers.train(_transforms(index), inner, sample, learnt)
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

    inner: Any = _inner(index)
    if isinstance(inner, faiss.IndexHNSW):
        graph: Any = inner.hnsw
        for _ in range(inner.ntotal):
            graph.random_level()


def _keep(index: Any, path: Path) -> None:
    quantisers.keep(path, lambda out: _write_index(index, out))


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


def _train_size(index: Any) -> int:
    return max(TRAIN_SAMPLE, PER_LIST * needed(index)[0])


def forecast(index: Any, sample: Floats, count: int) -> float:
    """Seconds that training and filling the index with `count` vectors take here, about, from a trial with a few of them.

    A graph takes n log n. Lists and product quantisers take comparisons with centroids, of whole vectors or of parts: in each
    round of training for each vector of the training sample, then once for each vector.
    """
    import faiss

    inner: Any = _inner(index)
    seconds, trained = 0.0, min(count, _train_size(index))
    for rotation in _transforms(index):
        if isinstance(rotation, faiss.OPQMatrix):
            rounds = rotation.niter_pq_0 + (rotation.niter - 1) * rotation.niter_pq
            part = sample[:, : rotation.d_out // rotation.M]
            seconds += rotation.M * _comparison(part) * ROTATION_CENTROIDS * rounds * min(trained, rotation.max_train_points)
    if isinstance(inner, faiss.IndexHNSW):
        graph: Any = inner.hnsw
        trial: Any = faiss.IndexHNSWFlat(index.d, graph.nb_neighbors(1), faiss.METRIC_INNER_PRODUCT)
        begun = time.perf_counter()
        with quantisers.one_thread(True):
            trial.add(sample)
        spent = time.perf_counter() - begun
        return seconds + spent * count * math.log(count + 1) / (len(sample) * math.log(len(sample) + 1))
    if lists := int(getattr(inner, "nlist", 0)):
        seconds += _comparison(sample) * lists * (inner.cp.niter * trained + count)
    if (pq := getattr(inner, "pq", None)) is not None:
        compared = pq.cp.niter * min(trained, pq.cp.max_points_per_centroid * pq.ksub) + count
        seconds += pq.M * _comparison(sample[:, : pq.dsub]) * pq.ksub * compared
    return seconds


def _comparison(sample: Floats) -> float:
    """Seconds that it takes to compare two of the vectors, where many are compared with a few hundred centroids."""
    import faiss

    many, few = np.tile(sample, (8, 1)), np.ascontiguousarray(sample[:ROTATION_CENTROIDS])  # so that starting threads is little
    trials = []
    for _ in range(3):
        begun = time.perf_counter()
        faiss.knn(many, few, 1)
        trials.append(time.perf_counter() - begun)
    return min(trials) / (len(many) * len(few))


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


# ------------------------------------------------------------------------------------------------------- searching


def read(folder: Path, mmap: bool, *, foreign: bool = True) -> Any:
    """Open the vectors of an index folder; InputError where there are none, or they are not compared by inner product.

    With `mmap` FAISS leaves them on disk, as Lucene always does. A `foreign` index may have ids of its own.
    """
    import faiss

    if not (folder / "index").is_file():
        if lucene.is_lucene_index(folder):
            return lucene_vectors.VectorIndex(folder)
        raise InputError(f"index folder {folder} is incomplete: no file `index` (expected `index` and `docid`)")
    index = _read_faiss(folder / "index", mmap)
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise InputError(f"{folder / 'index'} measures L2 distance; only inner-product indexes are searched")
    if foreign and (isinstance(index, faiss.IndexIDMap) or _numbered_otherwise(index)):
        raise InputError(f"{folder / 'index'} has ids of its own; only rows that `docid` names in their order are searched")
    return index


def _numbered_otherwise(index: Any) -> bool:
    """Whether the inverted lists of an index, if it has any, name a row that it does not have."""
    import faiss

    ivf: Any = faiss.try_extract_index_ivf(index)
    lists: Any = faiss.downcast_InvertedLists(ivf.invlists) if ivf is not None else None
    sizes = [(number, lists.list_size(number)) for number in range(ivf.nlist)] if lists is not None else []
    return any(faiss.rev_swig_ptr(lists.get_ids(n), size).max() >= index.ntotal for n, size in sizes if size)


def _read_faiss(path: Path, mmap: bool) -> Any:
    import faiss

    flags = [0]
    if mmap:  # the first maps everything, but refuses inverted lists; the second maps those alone
        flags = [faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_MMAP, faiss.IO_FLAG_MMAP]
    for flag in flags:
        try:
            return faiss.read_index(str(path), flag)
        except RuntimeError as caught:
            error = caught
    raise InputError(f"{path} is not a FAISS index: {str(error).splitlines()[0]}") from error


def is_flat(index: Any) -> bool:
    """Whether an index keeps its vectors as they are."""
    import faiss

    return type(index) in (faiss.IndexFlat, faiss.IndexFlatIP)


def tune(index: Any, folder: Path, ef_search: int | None = None, nprobe: int | None = None) -> None:
    """Set how thoroughly an approximate index is searched; InputError where it is not of the kind that has the setting."""
    import faiss

    if isinstance(index, Joined):
        for part in index.parts:
            tune(part, folder, ef_search, nprobe)
        return
    for option, name, value, kind in (("--ef-search", "efSearch", ef_search, "HNSW"), ("--nprobe", "nprobe", nprobe, "IVF")):
        if value is None:
            continue
        if isinstance(index, lucene_vectors.VectorIndex) and kind == "HNSW" and index.has_graph:
            index.ef_search = value
            continue
        try:
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        except (RuntimeError, TypeError, AttributeError):
            raise InputError(f"{option} is for {kind} indexes; {folder} is none") from None


class Joined:
    """Several indexes as one: rows are counted through."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts, self.d = parts, parts[0].d
        self.starts = np.cumsum([0, *(part.ntotal for part in parts)])
        self.ntotal = int(self.starts[-1])

    def search(self, query_vecs: Floats, k: int) -> tuple[Floats, Rows]:
        """Scores float32 (Q, k) and rows int64 (Q, k), best first; row -1 where there are fewer than k."""
        import faiss

        found = [part.search(query_vecs, k) for part in self.parts]
        rows = [np.where(rows < 0, rows, rows + start) for (_, rows), start in zip(found, self.starts, strict=False)]
        merged: tuple[Floats, Rows] = faiss.merge_knn_results(np.stack([s for s, _ in found]), np.stack(rows), keep_max=True)
        return merged


def vectors_of(index: Any, rows: Rows) -> Floats:
    """Stored vectors float32 (N, H) of rows; approximate where the index quantises."""
    import faiss

    if isinstance(index, Joined):
        vectors = np.empty((len(rows), index.d), np.float32)
        for part, start in zip(index.parts, index.starts, strict=False):
            here = (rows >= start) & (rows < start + part.ntotal)
            if here.any():
                vectors[here] = vectors_of(part, rows[here] - start)
        return vectors
    if not isinstance(index, lucene_vectors.VectorIndex):
        if "FastScan" in type(_inner(index)).__name__:  # FAISS crashes
            raise InputError("vectors cannot be read back from a FAISS index of the kind `fs`")
        ivf: Any = faiss.try_extract_index_ivf(index)
        if ivf is not None:
            ivf.make_direct_map()
    found: Floats = index.reconstruct_batch(rows)
    return found
