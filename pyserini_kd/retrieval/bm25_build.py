"""Build BM25 indexes with Lucene."""

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from pyserini_kd.data.java import JavaObject, quiet_java, start_jvm
from pyserini_kd.data.types import Doc
from pyserini_kd.retrieval import lucene
from pyserini_kd.retrieval.lucene import java_class, java_errors
from pyserini_kd.storage import manifest
from pyserini_kd.storage.arrays import chunks
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_folder
from pyserini_kd.storage.records import write_json

logger = logging.getLogger(__name__)

BATCH = 10_000
INDEX_OPTIONS = ["-input", "", "-collection", "JsonCollection", "-storePositions", "-storeDocvectors", "-storeRaw"]


def index_bm25(
    docs: Iterable[Doc],
    index_dir: str | Path,
    *,
    threads: int = 1,
    overwrite: bool = False,
    collection_stamp: str = "",
    segment: str | None = None,
) -> int:
    """Index a stream of documents for BM25 (positions, vectors and raw text stored); returns the number indexed.

    Empty documents are skipped, and a warning counts them. The folder appears only when it is complete. Its manifest stores
    the collection's stamp, which changes with the collection, and the `segment` size. InputError if there are no documents.
    """
    start_jvm()
    count = empty = 0

    def records() -> Iterator[str]:
        nonlocal count, empty
        for doc in tqdm(docs, desc="BM25 index", unit=" docs", disable=None):
            count += 1
            if doc.contents.strip():
                yield json.dumps({"id": doc.doc_id, "contents": doc.contents, "title": doc.title}, ensure_ascii=False)
            else:
                empty += 1

    with atomic_folder(index_dir, overwrite=overwrite) as partial:
        words = ["-index", str(partial), *INDEX_OPTIONS, "-quiet", "-threads", str(threads)]
        indexer = java_class("io.anserini.index.SimpleIndexer")(words)  # the Java object inside Pyserini's LuceneIndexer
        for batch in chunks(records(), BATCH):
            indexer.addRawDocuments(batch)
        indexer.close()
        quiet_java()  # Anserini changes the log level
        if count == 0:
            raise InputError("the collection has no documents")
        if empty:
            logger.warning("%d of %d documents are empty and were not indexed", empty, count)
        with _reader(partial) as reader:
            indexed = int(reader.numDocs())
        if lost := count - empty - indexed:
            logger.warning("Lucene refused %d documents (ids longer than 32,766 bytes, texts without a letter)", lost)
        record = {"kind": "bm25", "n_docs": indexed, "collection_stamp": collection_stamp, "segment": segment or ""}
        write_json(partial / manifest.NAME, record)
    return indexed


def build_index_with_reader(
    collection: Path, collection_class: str, index_dir: str | Path, *, threads: int = 1, overwrite: bool = False
) -> int:
    """Index a folder with one of Anserini's own collection readers (`HtmlCollection`, `TrecCollection`, ...)."""
    if not collection.is_dir():
        raise InputError(f"{collection_class} needs a folder; {collection} is not a folder")
    start_jvm()
    with atomic_folder(index_dir, overwrite=overwrite) as partial:
        args = java_class("io.anserini.index.IndexCollection$Args")()
        args.collectionClass, args.input, args.index = collection_class, str(collection.resolve()), str(partial.resolve())
        args.storePositions = args.storeDocvectors = args.storeRaw = args.quiet = args.uniqueDocid = True
        args.threads = threads
        try:
            with java_errors(f"{collection_class} could not index {collection}"):
                indexer = java_class("io.anserini.index.IndexCollection")(args)
                indexer.run()
        finally:
            quiet_java()  # Anserini changes the log level
        counters = indexer.getCounters()
        count = int(counters.indexed.get())
        if counters.errors.get():
            raise InputError(f"{collection_class} failed on {counters.errors.get()} documents of {collection}")
        if count == 0:
            raise InputError(f"{collection_class} found no documents in {collection}")
        _check_ids(partial, count, collection_class, collection)
        write_json(partial / manifest.NAME, {"kind": "bm25", "n_docs": count})
    return count


@contextlib.contextmanager
def _reader(folder: Path) -> Iterator[JavaObject]:
    reader = lucene.open_reader(folder)
    try:
        yield reader
    finally:
        reader.close()


def _check_ids(folder: Path, count: int, collection_class: str, collection: Path) -> None:
    """Refuse duplicate ids, and ids with white space, from an Anserini reader."""
    blank = java_class("org.apache.lucene.search.RegexpQuery")(java_class("org.apache.lucene.index.Term")("id", r".*\s.*"))
    with _reader(folder) as reader:
        if lost := count - int(reader.numDocs()):
            raise InputError(
                f"{collection_class}: {lost} of {count} documents of {collection} have duplicate ids (HtmlCollection "
                "uses the file name without its folder); rename them"
            )
        found = lucene.searcher_of(reader).search(blank, 1).scoreDocs
        if found:
            doc_id = reader.storedFields().document(found[0].doc).get("id")
            raise InputError(f"{collection_class}: {collection} has the document id {doc_id!r}; an id is one word")
