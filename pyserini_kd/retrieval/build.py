"""Dense indexes, built: encode a collection in resumable blocks, then write a FAISS or Lucene index; and the command `index`.

An index folder holds `index` and `docid` exactly as Pyserini's FaissSearcher reads them, or a Lucene index as Pyserini's
LuceneHnswDenseSearcher reads it and `docid`; and beside them our `manifest.json` (who encoded it, how) and `docs.jsonl` with
`docs.offsets` (the texts, for snippets and reranking). `dense_index` opens them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyserini_kd.data import sources
from pyserini_kd.data.types import Doc
from pyserini_kd.models import checkpoint_settings, engine
from pyserini_kd.retrieval import faiss_build, foreign_vectors, index_folder
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.storage import arrays
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.work import Work

if TYPE_CHECKING:
    from pyserini_kd.models.bert_dot import BertDot


logger = logging.getLogger(__name__)

BLOCK = 8192  # documents a block: what a crash can cost

Floats = npt.NDArray[np.float32]


def build(
    docs: Iterable[Doc],
    encoder: BertDot,
    checkpoint: Path,
    folder: str | Path,
    *,
    kind: str = "Flat",
    precision: str = "auto",
    batch_size: int | None = None,
    store_docs: bool = True,
    overwrite: bool = False,
    block: int | None = None,
    shard: tuple[int, int] = (0, 1),
    collection: str = "",
    segment: str | None = None,
) -> int | None:
    """Encode a stream of documents and write an index folder of a kind (see `kinds`); returns the number of documents.

    Works in blocks (of BLOCK documents, unless told) under `.NAME.partial/` beside the folder: after a crash, a kill or Ctrl-C
    the same command goes on with the blocks that are missing or whose documents have changed; a second process shares the
    work. With `shard` = (I, N) only every N-th block is encoded here: the process that ends last writes the index, the others
    return None. The bytes written do not depend on any of this (`manifest.json` excepted, which holds the time, and Lucene's
    files, which hold random names). The manifest names the `collection` and says how it was cut into passages (`segment`).
    """
    settings: dict[str, Any] = {
        "encoder": checkpoint_settings.record_of(encoder, checkpoint),
        **engine.arithmetic(encoder, precision, batch_size),
        "block": block or BLOCK,
        "store_docs": store_docs,
    }
    cut: list[int] = []

    def encode(texts: list[str]) -> Floats:
        return engine.encode(encoder, texts, "doc", precision=precision, batch_size=batch_size, cut=cut)

    count = build_from(
        docs,
        encode,
        encoder.width,
        folder,
        settings,
        kind=kind,
        overwrite=overwrite,
        shard=shard,
        collection=collection,
        segment=segment,
    )
    engine.log_cut(sum(cut), count, encoder.settings.max_doc_len, "documents")
    return count


def build_from(
    docs: Iterable[Doc],
    encode: Callable[[list[str]], Floats],
    width: int,
    folder: str | Path,
    settings: dict[str, Any],
    *,
    kind: str,
    overwrite: bool,
    shard: tuple[int, int],
    collection: str,
    segment: str | None = None,
) -> int | None:
    """`build` with any function from texts to vectors (N, H); `settings` is what the vectors depend on.

    The manifest says by `segment` how the documents were cut into passages, and of which `collection` they are.
    """
    logger.info("%s", faiss_build.estimate(width, kind))
    empty = 0

    def make(work: Work, number: int, block: list[Doc]) -> None:
        nonlocal empty
        empty += sum(not doc.contents.strip() for doc in block)
        found = encode([doc.contents for doc in block])
        if not np.isfinite(found).all():
            lost = next(doc.doc_id for doc, vector in zip(block, found, strict=True) if not np.isfinite(vector).all())
            raise InputError(f"the vector of document {lost!r} is not finite; these weights, so computed, are of no use")
        arrays.keep(work.path(number, "npy"), found)

    def assemble(work: Work, new: Path) -> dict[str, Any]:
        faiss_build.write(work.paths("npy"), width, kind, new, _unfinished(work, kind))
        return {"kind": "dense", "metric": "inner_product", "width": width}

    only_result = {"index": kind, "collection": collection, "segment": segment, "collection_stamp": sources.stamp(collection)}
    count = index_folder.build(
        docs, Path(folder), settings, make, assemble, only_result=only_result, overwrite=overwrite, shard=shard
    )
    if empty:
        logger.warning("%d of the documents encoded now are empty, and may be found like others", empty)
    return count


def _unfinished(work: Work, kind: str) -> Path:
    """Where an index of this kind, of these blocks, is kept as far as it has come."""
    return work.folder / f"{hashlib.sha256(' '.join([kind, *work.sums]).encode()).hexdigest()[:16]}.unfinished"


def build_from_vectors(
    path: Path,
    ids: Path | None,
    folder: str | Path,
    *,
    kind: str = "Flat",
    encoder: dict[str, Any] | None = None,
    width: int | None = None,
    overwrite: bool = False,
) -> int | None:
    """Write an index folder of vectors made elsewhere (see `vectors.read`); `encoder` is what the manifest says of their maker.

    No texts are stored. A run that was killed is gone on with, as in `build`. InputError where `width`, the encoder's, is not
    that of the vectors.
    """

    def make(work: Work, number: int, block: list[foreign_vectors.Embedded]) -> None:
        found = np.stack([one.vector for one in block])
        if width and found.shape[1] != width:
            raise InputError(f"{path} holds vectors of {found.shape[1]}, the encoder makes vectors of {width}")
        arrays.keep(work.path(number, "npy"), found)

    def assemble(work: Work, new: Path) -> dict[str, Any]:
        files = work.paths("npy")
        own = np.load(files[0], mmap_mode="r").shape[1]
        faiss_build.write(files, own, kind, new, _unfinished(work, kind))
        return {"kind": "dense", "metric": "inner_product", "width": own}

    found = foreign_vectors.read(path, ids, lambda source: DenseIndex.load(source, mmap=True))
    settings = {"encoder": encoder or {"name": "unknown"}, "vectors": str(path), "block": BLOCK, "store_docs": False}
    return index_folder.build(found, Path(folder), settings, make, assemble, only_result={"index": kind}, overwrite=overwrite)
