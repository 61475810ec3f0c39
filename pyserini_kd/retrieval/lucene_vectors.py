"""Document vectors in Lucene: HNSW graphs and flat scans, written by Anserini's index writers, searched by inner product.

Anserini's own indexer declares vectors as DOT_PRODUCT, which Lucene defines for vectors of length 1: all products below -1 get
the score 0. Vectors of a student need not have length 1, so we declare them as MAXIMUM_INNER_PRODUCT, whose score gives any
product back. Fields and codecs are Anserini's: Pyserini's `LuceneHnswDenseSearcher` and `LuceneFlatDenseSearcher` open these
folders too. Row n of an index is Lucene's document n.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from pyserini_kd.data import java
from pyserini_kd.retrieval import lucene
from pyserini_kd.retrieval.lucene import JavaObject, java_class, java_errors
from pyserini_kd.storage.arrays import Floats, Nearest, Rows
from pyserini_kd.storage.errors import InputError

INDEXERS = {"lucene-hnsw": "IndexHnswDenseVectors", "lucene-flat": "IndexFlatDenseVectors"}  # kind -> Anserini's class
MAX_WIDTH = 4096  # what Anserini's codecs take
LINKS = 16  # HNSW's M: neighbours of a document on the upper levels; twice as many on the lowest
BEAM = 100  # HNSW's efConstruction
EF_SEARCH = 100  # Anserini's default
BUFFER = 512  # MiB of vectors and links held while indexing; Java takes a quarter of the memory at most
BESIDE = 400  # bytes of that for each document, about, beside its vector and links
STEP = 16  # queries that a thread takes at a time
FIELD = "vector"

logger = logging.getLogger(__name__)


def vector_bytes(width: int, kind: str) -> int:
    """Bytes that each vector takes on disk, about: float32 numbers, and in a graph the links, packed into 2 bytes each."""
    return 4 * width + (4 * LINKS if kind == "lucene-hnsw" else 0)


def write(blocks: Iterable[tuple[list[str], Floats]], kind: str, folder: Path, kept: Path | None = None) -> None:
    """Write blocks of (ids, vectors (N, H)) into a folder as one Lucene segment, by one thread: the same graph every time.

    Segments with a fixed number of documents, `BUFFER` MiB each, are made one by one and merged at the end.

    `kind` is one of `INDEXERS`. The folder `kept` holds the segments meanwhile; after a kill the next run goes on from them.

    Raises:
        InputError: Lucene refuses an id (longer than 32,766 bytes) or a number that is not finite; the disk is full.
    """
    java.start_jvm()
    place = kept or folder
    if kept is not None and not any(kept.glob("segments_*")):  # begun, or half moved away
        shutil.rmtree(kept, ignore_errors=True)
    try:
        with java_errors(f"Lucene could not write the vectors into {folder}"):
            _write(blocks, kind, place)
    finally:
        java.quiet_java()  # Anserini has changed the log level
    if kept is not None:
        for path in sorted(kept.iterdir(), key=lambda path: not path.name.startswith("segments_")):  # segments_* first
            os.replace(path, folder / path.name)
        kept.rmdir()


def _write(blocks: Iterable[tuple[list[str], Floats]], kind: str, place: Path) -> None:
    writer = _writer(kind, place)
    try:
        _add(writer, blocks, kind)
        writer.getConfig().setMergePolicy(_merge_policy())
        writer.forceMerge(1)
        writer.close()
        (place / "write.lock").unlink(missing_ok=True)
    except BaseException:
        writer.rollback()
        raise


def _writer(kind: str, folder: Path) -> JavaObject:
    """An IndexWriter with Anserini's codecs, which take more than Lucene's 1,024 numbers, or have no graph.

    It goes on with what the folder holds; Anserini's own writer does not.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        args = java_class(f"io.anserini.index.{INDEXERS[kind]}$Args")()
        args.collectionClass, args.input = "JsonDenseVectorCollection", elsewhere  # required, but not used
        args.index, args.quiet = elsewhere, True
        if kind == "lucene-hnsw":
            args.M, args.efC = LINKS, BEAM
        theirs = java_class(f"io.anserini.index.{INDEXERS[kind]}")(args).writer
        codec = theirs.getConfig().getCodec()
        theirs.rollback()
    config = java_class("org.apache.lucene.index.IndexWriterConfig")()
    config.setCodec(codec)
    config.setRAMBufferSizeMB(2 * BUFFER)  # reached only with very long ids
    config.setMergePolicy(java_class("org.apache.lucene.index.NoMergePolicy").INSTANCE)  # merge at the end only
    config.setUseCompoundFile(False)
    return java_class("org.apache.lucene.index.IndexWriter")(lucene.directory(folder), config)


def _merge_policy() -> JavaObject:
    """Merge all segments at once, in their order; Lucene's default policy sorts them by size."""
    policy = java_class("org.apache.lucene.index.LogDocMergePolicy")()
    policy.setMergeFactor(1 << 30)
    policy.setNoCFSRatio(0.0)
    return policy


def _add(writer: JavaObject, blocks: Iterable[tuple[list[str], Floats]], kind: str) -> None:
    """Add the vectors that the index does not hold yet, and commit segment by segment.

    One Java document is reused, because each new Java object costs microseconds.
    """
    similarity = java_class("org.apache.lucene.index.VectorSimilarityFunction").MAXIMUM_INNER_PRODUCT
    new_bytes = java_class("org.apache.lucene.util.BytesRef")
    new_vector = java_class("org.apache.lucene.document.KnnFloatVectorField")
    yes = java_class("org.apache.lucene.document.Field$Store").YES
    stored = java_class("org.apache.lucene.document.StringField")("id", "", yes)
    sortable = java_class("org.apache.lucene.document.BinaryDocValuesField")("id", new_bytes())
    document = java_class("org.apache.lucene.document.Document")()
    document.add(stored)
    document.add(sortable)
    vector: JavaObject = None
    done, row = int(writer.getDocStats().maxDoc), 0
    if done:
        logger.info("going on from an index of %d vectors", done)
    for ids, vectors in blocks:
        there = min(max(done - row, 0), len(ids))
        row += there
        segment = (BUFFER << 20) // (vector_bytes(vectors.shape[1], kind) + BESIDE) + 1
        for doc_id, numbers in zip(ids[there:], vectors[there:].tolist(), strict=True):
            if vector is None:
                vector = new_vector(FIELD, numbers, similarity)
                document.add(vector)
            stored.setStringValue(doc_id)
            sortable.setBytesValue(new_bytes(doc_id.encode()))
            vector.setVectorValue(numbers)
            writer.addDocument(document)
            row += 1
            if row % segment == 0:
                writer.commit()


class LuceneStore:
    """An open index of Lucene vectors, a `VectorStore`; the vectors stay on disk, mapped into memory."""

    is_exact = True

    def __init__(self, folder: Path) -> None:
        """Open a folder that `write` made; InputError for another Lucene index."""
        java.start_jvm()
        with java_errors(f"{folder} cannot be opened"):
            reader = lucene.open_reader(folder)
        leaves = reader.leaves()
        self._leaf: JavaObject = leaves.get(0).reader() if leaves.size() == 1 else None
        found: JavaObject = self._leaf.getFieldInfos().fieldInfo(FIELD) if self._leaf else None
        similarity = found.getVectorSimilarityFunction().toString() if found else "nothing"
        if similarity != "MAXIMUM_INNER_PRODUCT":
            raise InputError(f"{folder} is no Lucene index of vectors that `pyserini-kd index` wrote: it compares {similarity}")
        self.width, self.count = int(found.getVectorDimension()), int(reader.numDocs())
        self._folder, self._has_graph = folder, "Hnsw" in (found.getAttribute("PerFieldKnnVectorsFormat.format") or "")
        self._searcher = lucene.searcher_of(reader)

    def search(self, query_vecs: Floats, k: int, *, ef_search: int | None = None, nprobe: int | None = None) -> Nearest:
        """See `VectorStore.search`; as many threads as FAISS uses search side by side."""
        if nprobe is not None:
            raise InputError(f"is for IVF indexes; {self._folder} is none", "nprobe")
        if ef_search is not None and not self._has_graph:
            raise InputError(f"is for HNSW indexes; {self._folder} is none", "ef_search")
        queue = max(k, ef_search or EF_SEARCH)
        scores = np.full((len(query_vecs), k), -np.inf, dtype=np.float32)
        rows = np.full((len(query_vecs), k), -1, dtype=np.int64)
        new_query, mapper = java_class("org.apache.lucene.search.KnnFloatVectorQuery"), lucene.json_mapper()

        def search_some(places: Iterable[int]) -> None:
            for place in places:
                top = self._searcher.search(new_query(FIELD, query_vecs[place].tolist(), queue), k)
                found = lucene.numbers(mapper.writeValueAsString(top)).reshape(-1, 2)
                scores[place, : len(found)] = _products(found[:, 0])
                rows[place, : len(found)] = found[:, 1]

        places = range(len(query_vecs))
        chunks = (places[start : start + STEP] for start in places[::STEP])
        list(lucene.in_threads(search_some, chunks, faiss.omp_get_max_threads()))
        return scores, rows

    def reconstruct(self, rows: Rows) -> Floats:
        """See `VectorStore.reconstruct`."""
        values = self._leaf.getFloatVectorValues(FIELD)  # read forwards only
        distinct, places = np.unique(rows, return_inverse=True)
        vectors = np.empty((len(distinct), self.width), np.float32)
        for place, row in enumerate(distinct.tolist()):
            values.advance(row)
            vectors[place] = values.vectorValue()
        return vectors[places]


def _products(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Inner products x from Lucene's scores, which are never negative: 1 + x for x >= 0, else 1 / (1 - x)."""
    return np.where(scores >= 1, scores - 1, 1 - 1 / np.maximum(scores, np.finfo(np.float32).tiny))
