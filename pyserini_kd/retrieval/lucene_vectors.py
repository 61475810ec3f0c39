"""Document vectors in Lucene: HNSW graphs and flat scans with Anserini's codecs, searched by inner product.

Anserini's indexer declares DOT_PRODUCT, which Lucene defines for unit vectors: all products below -1 get the score 0. Student
vectors need not have length 1, so we declare MAXIMUM_INNER_PRODUCT, whose scores convert back to products. Pyserini's
`LuceneHnswDenseSearcher` and `LuceneFlatDenseSearcher` open these folders too. Row n is Lucene's document n.
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

from pyserini_kd.data import java, pyserini_versions
from pyserini_kd.data.java import JavaObject
from pyserini_kd.retrieval import lucene
from pyserini_kd.retrieval.lucene import java_class, java_errors
from pyserini_kd.storage.arrays import Floats, Nearest, Rows
from pyserini_kd.storage.errors import InputError

INDEXERS = {"lucene-hnsw": "IndexHnswDenseVectors", "lucene-flat": "IndexFlatDenseVectors"}  # kind -> Anserini's class
MAX_WIDTH = 4096  # limit of Anserini's codecs
LINKS = 16  # HNSW's M: links of a document on upper levels; the lowest level has twice as many
BEAM = 100  # HNSW's efConstruction
EF_SEARCH = 100  # Anserini's default
BUFFER = 512  # MiB of vectors and links in memory during indexing; Java uses at most a quarter of the memory
OVERHEAD = 400  # further bytes per document in this buffer, about
STEP = 16  # queries per task of a thread
FIELD = "vector"

logger = logging.getLogger(__name__)


def vector_bytes(width: int, kind: str) -> int:
    """Approximate bytes per vector on disk: float32 numbers, and in a graph links of 2 bytes each."""
    return 4 * width + (4 * LINKS if kind == "lucene-hnsw" else 0)


def write(blocks: Iterable[tuple[list[str], Floats]], kind: str, folder: Path, kept: Path | None = None) -> None:
    """Write blocks of (ids, vectors (N, H)) as one Lucene segment, with one thread for a reproducible graph.

    Segments with a fixed number of documents (`BUFFER` MiB) are written one by one and merged at the end. `kind` is one of
    `INDEXERS`. The folder `kept` holds the segments until then; after a kill, the next run resumes from them.

    Raises:
        InputError: Lucene refuses an id (over 32,766 bytes) or a number that is not finite, or the disk is full.
    """
    java.start_jvm()
    place = kept or folder
    if kept is not None and not any(kept.glob("segments_*")):  # without a commit, or partly moved
        shutil.rmtree(kept, ignore_errors=True)
    try:
        with java_errors(f"Lucene could not write the vectors into {folder}"):
            _write(blocks, kind, place)
    finally:
        java.quiet_java()  # Anserini changes the log level
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
    """An IndexWriter that, unlike Anserini's, resumes; Anserini's codecs allow over 1,024 numbers, or no graph."""
    with tempfile.TemporaryDirectory() as elsewhere:
        args = java_class(f"io.anserini.index.{INDEXERS[kind]}$Args")()
        args.collectionClass, args.input = "JsonDenseVectorCollection", elsewhere  # required, but not used
        args.index, args.quiet = elsewhere, True
        if kind == "lucene-hnsw":
            args.M, args.efC = LINKS, BEAM
        anserini_writer = java_class(f"io.anserini.index.{INDEXERS[kind]}")(args).writer
        codec = anserini_writer.getConfig().getCodec()
        anserini_writer.rollback()
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
    """Add missing vectors, one commit per segment; one Java document is reused, as each new Java object costs microseconds."""
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
        logger.info("resuming from an index of %d vectors", done)
    for ids, vectors in blocks:
        stored_here = min(max(done - row, 0), len(ids))
        row += stored_here
        segment = (BUFFER << 20) // (vector_bytes(vectors.shape[1], kind) + OVERHEAD) + 1
        for doc_id, numbers in zip(ids[stored_here:], vectors[stored_here:].tolist(), strict=True):
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
    """A `VectorStore` in Lucene; the vectors stay on disk, memory-mapped."""

    is_exact = True

    def __init__(self, folder: Path) -> None:
        """Open a folder from `write`; InputError for another Lucene index."""
        java.start_jvm()
        with java_errors(f"{folder} cannot be opened"):
            reader = lucene.open_reader(folder)
        leaves = reader.leaves()
        self._leaf: JavaObject = leaves.get(0).reader() if leaves.size() == 1 else None
        found: JavaObject = self._leaf.getFieldInfos().fieldInfo(FIELD) if self._leaf else None
        similarity = found.getVectorSimilarityFunction().toString() if found else "missing"
        if similarity != "MAXIMUM_INNER_PRODUCT":
            raise InputError(f"{folder} is not a Lucene vector index from `pyserini-kd index`: its similarity is {similarity}")
        self.width, self.count = int(found.getVectorDimension()), int(reader.numDocs())
        self._folder, self._has_graph = folder, "Hnsw" in (found.getAttribute("PerFieldKnnVectorsFormat.format") or "")
        self._searcher = lucene.searcher_of(reader)

    def search(self, query_vecs: Floats, k: int, *, ef_search: int | None = None, nprobe: int | None = None) -> Nearest:
        """See `VectorStore.search`; uses as many threads as FAISS."""
        if nprobe is not None:
            raise InputError(f"is for IVF indexes; {self._folder} is not one", "nprobe")
        if ef_search is not None and not self._has_graph:
            raise InputError(f"is for HNSW indexes; {self._folder} is not one", "ef_search")
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
        values = self._leaf.getFloatVectorValues(FIELD)
        distinct, places = np.unique(rows, return_inverse=True)
        vectors = np.empty((len(distinct), self.width), np.float32)
        for place, row in enumerate(distinct.tolist()):
            vectors[place] = pyserini_versions.vector_of(values, row)
        return vectors[places]


def _products(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Inner products x from Lucene's non-negative scores: 1 + x for x >= 0, else 1 / (1 - x)."""
    return np.where(scores >= 1, scores - 1, 1 - 1 / np.maximum(scores, np.finfo(np.float32).tiny))
