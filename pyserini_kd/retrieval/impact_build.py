"""Build impact indexes: Lucene stores the quantised weights of a SPLADE as term frequencies. A score is a sum of products.

A SPLADE encodes documents in resumable blocks. Anserini then indexes the blocks as a JsonVectorCollection (`impact`,
`pretokenized`), and Pyserini's LuceneImpactSearcher opens the folder. The folder also holds `docid`, `manifest.json` and texts.
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

KIND = "impact"  # kind of index in the manifest
BLOCK = 8192  # documents in a block; a crash loses one block at most
WEIGHT, LEVELS = 5, 256  # weight 5 becomes impact 256, as in Pyserini's SPLADE encoders; larger weights are not clipped


def quantised(weights: Floats) -> npt.NDArray[np.int64]:
    """Impacts of weights: weight / 5 x 256, rounded half to even like `round` of Python.

    >>> quantised(np.float32([0.005, 0.5, 1.0])).tolist()
    [0, 26, 51]
    """
    return np.rint(weights.astype(np.float64) / WEIGHT * LEVELS).astype(np.int64)


def impacts(encoder: SparseEncoder, texts: list[str], side: str, cut: list[int] | None = None) -> Iterator[dict[str, int]]:
    """{token: impact} for each text of a side (`query` or `doc`). Queries keep impacts of 0, as in Pyserini."""
    least = 0 if side == "query" else 1
    encode = encoder.encode_queries if side == "query" else encoder.encode_docs
    vectors, tokens = encode(texts, cut=cut), encoder.tokens()
    columns, numbers = vectors.indices, quantised(vectors.data)
    for start, end in zip(vectors.indptr[:-1].tolist(), vectors.indptr[1:].tolist(), strict=True):
        pairs = zip(columns[start:end].tolist(), numbers[start:end].tolist(), strict=True)
        yield {tokens[column]: number for column, number in pairs if number >= least and tokens[column]}


def index_impacts(
    docs: Iterable[Doc], encoder: SparseEncoder, folder: str | Path, *, threads: int = 1, **options: Unpack[Options]
) -> int | None:
    """Encode a stream of documents and write an impact index; result as in `index_folder.build`.

    `threads` is the number of Lucene's threads; `index_folder.Options` has the other options.

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
    """Index the impacts of all blocks into the folder `new` with Anserini."""
    source = blocks.job.folder / "collection"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    for path in blocks.paths("impacts"):
        try:
            os.link(path, source / f"{path.stem}.jsonl")
        except OSError:  # a file system without hard links
            shutil.copyfile(path, source / f"{path.stem}.jsonl")
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
        quiet_java()  # Anserini changes the log level
    shutil.rmtree(source)
    (new / "write.lock").unlink(missing_ok=True)
    if not indexed:
        raise InputError("the collection has no document with an impact above 0; check that the encoder is a trained SPLADE")
    if lost := blocks.count - indexed:
        logger.warning("%d of %d documents cannot be found: no impact above 0, or a very long id", lost, blocks.count)
