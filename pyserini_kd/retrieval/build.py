"""Build dense indexes: encode a collection in resumable blocks, or read vectors made elsewhere, then write FAISS or Lucene.

An index folder holds `index` and `docid` as Pyserini's FaissSearcher reads them, or a Lucene index as Pyserini's
LuceneHnswDenseSearcher reads it and `docid`. Beside them lie our `manifest.json` (who encoded it, and how) and `docs.jsonl`
with `docs.offsets` (the texts, for snippets and reranking).
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

BLOCK = 8192  # documents in a block: what a crash can cost


def build(
    docs: Iterable[Doc], encoder: Encoder, folder: str | Path, *, kind: str = "Flat", **options: Unpack[Options]
) -> int | None:
    """Encode a stream of documents and write an index folder; returns the number of documents.

    The bytes written do not depend on how often the work was cut short or shared, except `manifest.json`, which holds the
    time, and Lucene's files, which hold random names.

    `kind` is a FAISS factory string, `lucene-hnsw` or `lucene-flat`; see `index_folder.Options` for the other options.
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
    """`build` with any function from texts to vectors float32 (N, H); `made_from` is what the vectors depend on."""
    logger.info("%s", faiss_build.estimate(width, kind))
    empty = 0

    def make(job: Job, number: int, block: list[Doc]) -> None:
        nonlocal empty
        empty += sum(not doc.contents.strip() for doc in block)
        found = encode([doc.contents for doc in block])
        if not np.isfinite(found).all():
            lost = next(doc.doc_id for doc, vector in zip(block, found, strict=True) if not np.isfinite(vector).all())
            raise InputError(f"the vector of document {lost!r} is not finite; these weights are of no use in this precision")
        arrays.keep(job.path(number, "npy"), found)

    count = index_folder.build(
        docs, Path(folder), made_from, make, _assembler(kind, width), index=kind, default_block=BLOCK, **options
    )
    if empty:
        logger.warning("%d of the documents encoded now are empty, and may be found like others", empty)
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
    """Write an index folder of vectors made elsewhere (see `read`); `encoder` is said to have made them.

    No texts are stored. A killed run is resumed, as in `build`. InputError where the encoder makes vectors of another width.
    """

    def make(job: Job, number: int, block: list[Embedded]) -> None:
        found = np.stack([one.vector for one in block])
        if encoder is not None and found.shape[1] != encoder.width:
            raise InputError(f"{path} holds vectors of {found.shape[1]}, the encoder makes vectors of {encoder.width}")
        arrays.keep(job.path(number, "npy"), found)

    made_from = {"encoder": {"name": "unknown"} if encoder is None else encoder.record(), "vectors": str(path)}
    return index_folder.build(
        read(path, ids), Path(folder), made_from, make, _assembler(kind), index=kind, default_block=BLOCK, store_docs=False,
        overwrite=overwrite,
    )  # fmt: skip


def _assembler(kind: str, width: int | None = None) -> Assemble:
    """Writes the vectors of all blocks into an index of a kind; `width` is theirs where None."""

    def assemble(blocks: Blocks, new: Path) -> Record:
        files = blocks.paths("npy")
        own = int(np.load(files[0], mmap_mode="r").shape[1]) if width is None else width
        digest = hashlib.sha256(" ".join([kind, *blocks.sums]).encode()).hexdigest()
        faiss_build.write(files, own, kind, new, blocks.job.folder / f"{digest[:16]}.unfinished")
        return {"kind": "dense", "metric": "inner_product", "width": own}

    return assemble


# Vectors made elsewhere

STEP = 8192  # vectors read from an index at a time


class Embedded(NamedTuple):
    """A document's id, its vector float32 (H,), and where it was read."""

    doc_id: str
    vector: Floats
    where: str


def read(path: Path, ids: Path | None) -> Iterator[Embedded]:
    """Stream vectors, checked: one width, no NaN or infinity, as many ids as vectors, no id twice.

    Args:
        path: an `.npy` array (N, H); Pyserini's `embeddings.jsonl`, or a folder of such files; or an index folder with `docid`.
        ids: with an `.npy` array, a file with the id of each row, one a line.

    Raises:
        InputError: naming file and line (`.npy`: the line of the id).
    """

    def opened() -> Iterator[Embedded]:
        if path.suffix == ".npy":
            if ids is None:
                raise InputError(f"{path} needs a file with the id of each row, one a line", "ids")
            return _npy(path, ids)
        if ids is not None:
            raise InputError(f"goes with an .npy file; {path} holds its own ids", "ids")
        return _index(path) if (path / "docid").is_file() else _jsonl(path)

    def places(doc_id: str) -> Iterator[str]:
        return (one.where for one in opened() if one.doc_id == doc_id)

    return unique_docs(_checked(path, opened()), places)


def _checked(path: Path, found: Iterator[Embedded]) -> Iterator[Embedded]:
    width = None
    for one in found:
        width = width or len(one.vector)
        if one.vector.shape != (width,) or not width:
            raise InputError(f"{one.where}: vector of {one.vector.shape}, those before are of {width}")
        if not np.isfinite(one.vector).all():
            raise InputError(f"{one.where}: the vector of {one.doc_id!r} holds NaN, infinity or more than float32 can")
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
            raise InputError(f"{path} has {len(array)} vectors, but {ids} {count} ids")
        where, doc_id = line[1]
        yield Embedded(one_word(doc_id, where), _float32(array[row]), where)


def _jsonl(path: Path) -> Iterator[Embedded]:
    files = sorted(path.glob("*.json*")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: a folder without .jsonl files, and without `index` and `docid`")
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
    index = DenseIndex.open(folder, mmap=True)
    for start in range(0, len(index.doc_ids), STEP):
        some: list[str] = index.doc_ids[start : start + STEP]
        found = index.store.reconstruct(np.arange(start, start + len(some)))
        for row, (doc_id, vector) in enumerate(zip(some, found, strict=True), start=start + 1):
            yield Embedded(doc_id, vector, f"{folder / 'docid'}:{row}")


def _float32(vector: npt.ArrayLike) -> Floats:
    with np.errstate(over="ignore"):
        return np.asarray(vector, dtype=np.float32)
