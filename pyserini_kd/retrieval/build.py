"""Build dense indexes: encode a collection in resumable blocks, then write a FAISS or Lucene index.

An index folder holds `index` and `docid` as Pyserini's FaissSearcher reads them, or a Lucene index as Pyserini's
LuceneHnswDenseSearcher reads it and `docid`. Beside them lie our `manifest.json` (who encoded it, and how) and `docs.jsonl`
with `docs.offsets` (the texts, for snippets and reranking).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pyserini_kd.data import sources
from pyserini_kd.data.types import Doc
from pyserini_kd.models.rankers import Encoder
from pyserini_kd.retrieval import faiss_build, foreign_vectors, index_folder
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.index_folder import Blocks, Shard
from pyserini_kd.storage import arrays
from pyserini_kd.storage.arrays import Floats
from pyserini_kd.storage.errors import InputError

logger = logging.getLogger(__name__)

BLOCK = 8192  # documents in a block: what a crash can cost


def build(
    docs: Iterable[Doc],
    encoder: Encoder,
    folder: str | Path,
    *,
    kind: str = "Flat",
    store_docs: bool = True,
    overwrite: bool = False,
    block: int | None = None,
    shard: Shard = (0, 1),
    collection: str = "",
    segment: str | None = None,
) -> int | None:
    """Encode a stream of documents and write an index folder; returns the number of documents.

    The bytes written do not depend on how often the work was cut short or shared, except `manifest.json`, which holds the
    time, and Lucene's files, which hold random names.

    Args:
        docs: the collection.
        encoder: makes the vectors.
        folder: what to write.
        kind: a FAISS factory string, `lucene-hnsw` or `lucene-flat`.
        store_docs: keep the texts in the folder.
        overwrite: replace the folder if it exists.
        block: documents in a block; BLOCK where None.
        shard: (I, N): only every N-th block is encoded here. The process that ends last writes the index, the others return
            None.
        collection: its name, for the manifest.
        segment: how the documents were cut into passages, for the manifest.
    """
    settings: dict[str, Any] = {"encoder": encoder.record(), **encoder.arithmetic()}
    settings |= {"block": block or BLOCK, "store_docs": store_docs}
    about = {"collection": collection, "segment": segment}
    cut: list[int] = []
    count = build_from(
        docs, lambda texts: encoder.encode_docs(texts, cut=cut, label="encode"), encoder.width, folder, settings,
        kind=kind, overwrite=overwrite, shard=shard, about=about,
    )  # fmt: skip
    encoder.count_cut(sum(cut), count, "documents")
    return count


def build_from(
    docs: Iterable[Doc],
    encode: Callable[[list[str]], Floats],
    width: int,
    folder: str | Path,
    settings: dict[str, Any],
    *,
    kind: str = "Flat",
    overwrite: bool = False,
    shard: Shard = (0, 1),
    about: dict[str, str | None] | None = None,
) -> int | None:
    """`build` with any function from texts to vectors float32 (N, H).

    `settings` is what the vectors depend on, `about` what the manifest says of the collection.
    """
    logger.info("%s", faiss_build.estimate(width, kind))
    empty = 0

    def make(blocks: Blocks, number: int, block: list[Doc]) -> None:
        nonlocal empty
        empty += sum(not doc.contents.strip() for doc in block)
        found = encode([doc.contents for doc in block])
        if not np.isfinite(found).all():
            lost = next(doc.doc_id for doc, vector in zip(block, found, strict=True) if not np.isfinite(vector).all())
            raise InputError(f"the vector of document {lost!r} is not finite; these weights are of no use in this precision")
        arrays.keep(blocks.path(number, "npy"), found)

    about = about or {}
    only_result = {"index": kind, **about, "collection_stamp": sources.stamp(about.get("collection") or "")}
    count = index_folder.build(
        docs, Path(folder), settings, make, _assembler(kind, width), only_result=only_result, overwrite=overwrite, shard=shard
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
    """Write an index folder of vectors made elsewhere (see `foreign_vectors.read`); `encoder` is said to have made them.

    No texts are stored. A killed run is resumed, as in `build`. InputError where the encoder makes vectors of another width.
    """

    def make(blocks: Blocks, number: int, block: list[foreign_vectors.Embedded]) -> None:
        found = np.stack([one.vector for one in block])
        if encoder is not None and found.shape[1] != encoder.width:
            raise InputError(f"{path} holds vectors of {found.shape[1]}, the encoder makes vectors of {encoder.width}")
        arrays.keep(blocks.path(number, "npy"), found)

    found = foreign_vectors.read(path, ids, lambda source: DenseIndex.load(source, mmap=True))
    settings: dict[str, Any] = {"encoder": {"name": "unknown"} if encoder is None else encoder.record(), "vectors": str(path)}
    settings |= {"block": BLOCK, "store_docs": False}
    only_result = {"index": kind}
    return index_folder.build(
        found, Path(folder), settings, make, _assembler(kind), only_result=only_result, overwrite=overwrite
    )


def _assembler(kind: str, width: int | None = None) -> Callable[[Blocks, Path], dict[str, Any]]:
    """Writes the vectors of all blocks into an index of a kind; `width` is theirs where None."""

    def assemble(blocks: Blocks, new: Path) -> dict[str, Any]:
        files = blocks.paths("npy")
        own = int(np.load(files[0], mmap_mode="r").shape[1]) if width is None else width
        digest = hashlib.sha256(" ".join([kind, *blocks.sums]).encode()).hexdigest()
        faiss_build.write(files, own, kind, new, blocks.folder / f"{digest[:16]}.unfinished")
        return {"kind": "dense", "metric": "inner_product", "width": own}

    return assemble
