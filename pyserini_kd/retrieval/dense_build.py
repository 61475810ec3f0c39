"""Build dense indexes in FAISS or Lucene: encode a collection in resumable blocks, or read existing vectors.

An index folder holds `docid`, and `index` (for Pyserini's FaissSearcher) or a Lucene index (for LuceneHnswDenseSearcher). It
also holds `manifest.json` (encoder and settings) and `docs.jsonl` with `docs.offsets` (texts for snippets and reranking).
"""

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
import numpy.typing as npt

from pyserini_kd.data.ids import unique_docs
from pyserini_kd.data.lines import json_id, json_line, numbered_lines, one_word
from pyserini_kd.data.types import Doc
from pyserini_kd.models.rankers import Encoder
from pyserini_kd.retrieval import faiss_build, index_folder
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.index_folder import Assemble, Blocks, Options
from pyserini_kd.storage import arrays
from pyserini_kd.storage.arrays import Floats
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file
from pyserini_kd.storage.job import Job
from pyserini_kd.storage.records import Record

logger = logging.getLogger(__name__)

BLOCK = 8192  # documents in a block; a crash loses one block at most


def index_dense(
    docs: Iterable[Doc], encoder: Encoder, folder: str | Path, *, kind: str = "Flat", **options: Unpack[Options]
) -> int | None:
    """Encode a stream of documents and write an index folder; result and errors as in `index_folder.build`.

    Interrupted and sharded builds write the same bytes, except `manifest.json` (time) and Lucene's files (random names).
    `kind` is a FAISS factory string, `lucene-hnsw` or `lucene-flat`; `index_folder.Options` has the other options.
    """
    cut: list[int] = []

    def encode(texts: list[str]) -> Floats:
        return encoder.encode_docs(texts, cut=cut, label="encode")

    made_from = {"encoder": encoder.record(), **encoder.arithmetic()}
    count = build_from(docs, encode, encoder.width, folder, made_from, kind=kind, **options)
    encoder.count_cut(sum(cut), count, "documents")
    return count


def build_from(
    docs: Iterable[Doc],
    encode: Callable[[list[str]], Floats],
    width: int,
    folder: str | Path,
    made_from: Record,
    *,
    kind: str = "Flat",
    **options: Unpack[Options],
) -> int | None:
    """Like `index_dense`, with any function from texts to vectors float32 (N, H); `made_from` records its inputs."""
    logger.info("%s", faiss_build.estimate(width, kind))
    empty = 0

    def make(job: Job, number: int, block: list[Doc]) -> None:
        nonlocal empty
        empty += sum(not doc.contents.strip() for doc in block)
        found = encode([doc.contents for doc in block])
        if not np.isfinite(found).all():
            lost = next(doc.doc_id for doc, vector in zip(block, found, strict=True) if not np.isfinite(vector).all())
            raise InputError(f"the vector of document {lost!r} is not finite; choose another precision or checkpoint")
        arrays.keep(job.path(number, "npy"), found)

    count = index_folder.build(
        docs, Path(folder), made_from, make, _assembler(kind, width), index=kind, default_block=BLOCK, **options
    )
    if empty:
        logger.warning("%d of the documents just encoded are empty; searches may return them", empty)
    return count


def build_from_vectors(
    path: Path,
    ids: Path | None,
    folder: str | Path,
    *,
    kind: str = "Flat",
    encoder: Encoder | None = None,
    overwrite: bool = False,
) -> int | None:
    """Write an index folder from existing vectors (see `read`); the manifest names `encoder` as their source.

    No texts are stored. A killed run resumes, as in `index_dense`. InputError if the encoder has another width.
    """

    def make(job: Job, number: int, block: list[Embedded]) -> None:
        found = np.stack([one.vector for one in block])
        if encoder is not None and found.shape[1] != encoder.width:
            raise InputError(f"{path} holds vectors of width {found.shape[1]}, the encoder has width {encoder.width}")
        arrays.keep(job.path(number, "npy"), found)

    made_from = {"encoder": {"name": "unknown"} if encoder is None else encoder.record(), "vectors": str(path)}
    return index_folder.build(
        read(path, ids), Path(folder), made_from, make, _assembler(kind), index=kind, default_block=BLOCK, store_docs=False,
        overwrite=overwrite,
    )  # fmt: skip


def _assembler(kind: str, width: int | None = None) -> Assemble:
    """Writer of all blocks into an index of a kind; a `width` of None is read from the first block."""

    def assemble(blocks: Blocks, new: Path) -> Record:
        files = blocks.paths("npy")
        actual = int(np.load(files[0], mmap_mode="r").shape[1]) if width is None else width
        digest = hashlib.sha256(" ".join([kind, *blocks.sums]).encode()).hexdigest()
        faiss_build.write(files, actual, kind, new, blocks.job.folder / f"{digest[:16]}.unfinished")
        return {"kind": "dense", "metric": "inner_product", "width": actual}

    return assemble


# Existing vectors

STEP = 8192  # vectors read from an index at a time


class Embedded(NamedTuple):
    """A document's id, its vector float32 (H,) and its place in the input."""

    doc_id: str
    vector: Floats
    where: str


def read(path: Path, ids: Path | None) -> Iterator[Embedded]:
    """Stream checked vectors: one width, finite, one id each, no duplicate id.

    Args:
        path: an `.npy` array (N, H); Pyserini's `embeddings.jsonl`, or a folder of such files; or an index folder with `docid`.
        ids: for an `.npy` array, a file with one id per line.

    Raises:
        InputError: with file and line (for `.npy`, the line of the id).
    """

    def opened() -> Iterator[Embedded]:
        if path.suffix == ".npy":
            if ids is None:
                raise InputError(f"{path} needs a file with the id of each row, one per line", "ids")
            return _npy(path, ids)
        if ids is not None:
            raise InputError(f"is for an .npy file only; {path} has its own ids", "ids")
        return _index(path) if (path / "docid").is_file() else _jsonl(path)

    def places(doc_id: str) -> Iterator[str]:
        return (one.where for one in opened() if one.doc_id == doc_id)

    return unique_docs(_checked(path, opened()), places)


def _checked(path: Path, found: Iterator[Embedded]) -> Iterator[Embedded]:
    width = None
    for one in found:
        width = width or len(one.vector)
        if one.vector.shape != (width,) or not width:
            raise InputError(f"{one.where}: vector of shape {one.vector.shape}, earlier vectors have width {width}")
        if not np.isfinite(one.vector).all():
            raise InputError(f"{one.where}: the vector of {one.doc_id!r} has NaN, infinity or a number too large for float32")
        yield one
    if width is None:
        raise InputError(f"{path} holds no vectors")


def _npy(path: Path, ids: Path) -> Iterator[Embedded]:
    require_file(path, "vectors")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path} is not a complete .npy array of numbers: {error}") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        raise InputError(f"{path}: expected an array (N, H) of floats, found shape {array.shape} of {array.dtype}")
    for row, line in enumerate(itertools.zip_longest(range(len(array)), numbered_lines(ids, "ids"))):
        if None in line:
            count = sum(1 for _ in numbered_lines(ids, "ids"))
            raise InputError(f"{path} has {len(array)} vectors, but {ids} has {count} ids")
        where, doc_id = line[1]
        yield Embedded(one_word(doc_id, where), _float32(array[row]), where)


def _jsonl(path: Path) -> Iterator[Embedded]:
    files = sorted(path.glob("*.json*")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: the folder has no .jsonl files, and no index with docid")
    for file in files:
        for where, line in numbered_lines(file, "vectors"):
            record = json_line(line, where)
            try:
                vector = np.array(record.get("vector"))
            except ValueError:  # lists of unequal length
                vector = np.array(None)
            if vector.ndim != 1 or vector.dtype.kind not in "fiu":
                raise InputError(f'{where}: expected {{"id": ..., "vector": [numbers]}}, as Pyserini writes')
            yield Embedded(json_id(record, ("id",), where), _float32(vector), where)


def _index(folder: Path) -> Iterator[Embedded]:
    index = DenseIndex.open(folder, mmap=True, any_metric=True)
    for start in range(0, len(index.doc_ids), STEP):
        chunk: list[str] = index.doc_ids[start : start + STEP]
        found = index.store.reconstruct(np.arange(start, start + len(chunk)))
        for row, (doc_id, vector) in enumerate(zip(chunk, found, strict=True), start=start + 1):
            yield Embedded(doc_id, vector, f"{folder / 'docid'}:{row}")


def _float32(vector: npt.ArrayLike) -> Floats:
    with np.errstate(over="ignore"):
        return np.asarray(vector, dtype=np.float32)
