"""Build impact indexes: a SPLADE's weights, quantised, as term frequencies in Lucene, where a score is a sum of products.

Documents are encoded in resumable blocks. Anserini then reads the blocks as a JsonVectorCollection (`impact`, `pretokenized`),
so that Pyserini's LuceneImpactSearcher opens the folder. Beside Lucene's files lie `docid`, our `manifest.json`, and the texts.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Unpack

import numpy as np
import numpy.typing as npt

from pyserini_kd.data.java import quiet_java, start_jvm
from pyserini_kd.data.types import Doc
from pyserini_kd.models.sparse_encoder import SparseEncoder
from pyserini_kd.retrieval import index_folder, lucene
from pyserini_kd.retrieval.index_folder import Blocks, Options
from pyserini_kd.retrieval.lucene import java_class, java_errors
from pyserini_kd.storage.arrays import Floats
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file
from pyserini_kd.storage.job import Job
from pyserini_kd.storage.records import Record

logger = logging.getLogger(__name__)

KIND = "impact"  # of such an index, in its manifest
BLOCK = 8192  # documents in a block: what a crash can cost
WEIGHT, LEVELS = 5, 256  # a weight of 5 becomes the impact 256, as in Pyserini's SPLADE encoders, which cap nothing


def quantised(weights: Floats) -> npt.NDArray[np.int64]:
    """Impacts of weights, rounded half to even as Python rounds.

    >>> quantised(np.float32([0.005, 0.5, 1.0])).tolist()
    [0, 26, 51]
    """
    return np.rint(weights.astype(np.float64) / WEIGHT * LEVELS).astype(np.int64)


def impacts(encoder: SparseEncoder, texts: list[str], side: str, cut: list[int] | None = None) -> Iterator[dict[str, int]]:
    """Token -> impact, for each query or document. Weights that are rounded to 0 stay in a query, as Pyserini has it."""
    least = 0 if side == "query" else 1
    encode = encoder.encode_queries if side == "query" else encoder.encode_docs
    vectors, tokens = encode(texts, cut=cut), encoder.tokens()
    columns, numbers = vectors.indices, quantised(vectors.data)
    for start, end in zip(vectors.indptr[:-1].tolist(), vectors.indptr[1:].tolist(), strict=True):
        pairs = zip(columns[start:end].tolist(), numbers[start:end].tolist(), strict=True)
        yield {tokens[column]: number for column, number in pairs if number >= least and tokens[column]}


def build(
    docs: Iterable[Doc], encoder: SparseEncoder, folder: str | Path, *, threads: int = 1, **options: Unpack[Options]
) -> int | None:
    """Encode a stream of documents and write an impact index; returns the number of documents.

    `threads` of Lucene write it; see `index_folder.Options` for the other options.

    Raises:
        InputError: the folder exists, the collection is empty, or Lucene cannot write the index.
    """
    cut: list[int] = []

    def make(job: Job, number: int, block: list[Doc]) -> None:
        found = impacts(encoder, [doc.contents for doc in block], "doc", cut)
        with atomic_file(job.path(number, "impacts")) as out:
            for doc, vector in zip(block, found, strict=True):
                out.write(json.dumps({"id": doc.doc_id, "contents": "", "vector": vector}) + "\n")

    def assemble(blocks: Blocks, new: Path) -> Record:
        _write(blocks, new, threads)
        return {"kind": KIND, "checkpoint": str(encoder.folder and encoder.folder.resolve())}

    made_from = {"encoder": encoder.record(), **encoder.arithmetic(), "impact of weight 1": LEVELS / WEIGHT}
    count = index_folder.build(docs, Path(folder), made_from, make, assemble, index=KIND, default_block=BLOCK, **options)
    encoder.count_cut(sum(cut), count, "documents")
    return count


def _write(blocks: Blocks, new: Path, threads: int) -> None:
    """Let Anserini index the impacts of all blocks into a folder."""
    source = blocks.job.folder / "collection"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    for path in blocks.paths("impacts"):
        os.link(path, source / f"{path.stem}.jsonl")
    start_jvm()
    args = java_class("io.anserini.index.IndexCollection$Args")()
    args.collectionClass, args.input, args.index = "JsonVectorCollection", str(source.resolve()), str(new.resolve())
    args.impact = args.pretokenized = args.quiet = True
    args.threads = threads
    try:
        with java_errors(f"Lucene could not write the impacts into {new}"):
            indexer = java_class("io.anserini.index.IndexCollection")(args)
            indexer.run()
            reader = lucene.open_reader(new)
            indexed = int(reader.numDocs())
            reader.close()
    finally:
        quiet_java()  # Anserini has changed the log level
    shutil.rmtree(source)
    (new / "write.lock").unlink(missing_ok=True)
    if not indexed:
        raise InputError("no document of the collection has a weight that is not rounded to 0")
    if lost := blocks.count - indexed:
        logger.warning("%d of %d documents have no weight above 0 (or a very long id): no query finds them", lost, blocks.count)
