"""Lucene for BM25 and vector search: index folders, prebuilt indexes, hits as JSON."""

import concurrent.futures
import contextlib
import difflib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pyserini_kd.data import pyserini_versions
from pyserini_kd.data.java import JavaObject, java_message, start_jvm
from pyserini_kd.storage.errors import InputError

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


def is_lucene_index(path: Path) -> bool:
    """Whether a folder holds a Lucene index."""
    return path.is_dir() and any(path.glob("segments_*"))


def java_class(name: str) -> JavaObject:
    """A Java class by its full name; Java must be running."""
    from jnius import autoclass

    return autoclass(name)


@contextlib.contextmanager
def java_errors(what: str) -> Iterator[None]:
    """Turn a Java exception into an InputError: `what` failed, and Java's message."""
    from jnius import JavaException

    try:
        yield
    except JavaException as error:
        raise InputError(f"{what}: {pyserini_versions.explained(java_message(error))}") from error


def directory(folder: Path) -> JavaObject:
    """Lucene's directory object for an index folder."""
    return java_class("org.apache.lucene.store.FSDirectory").open(java_class("java.io.File")(str(folder)).toPath())


def open_reader(folder: Path) -> JavaObject:
    """Lucene's reader of an index folder."""
    return java_class("org.apache.lucene.index.DirectoryReader").open(directory(folder))


def searcher_of(reader: JavaObject) -> JavaObject:
    """Lucene's searcher over an open index."""
    from jnius import cast  # without the cast jnius takes the wrong constructor

    return java_class("org.apache.lucene.search.IndexSearcher")(cast("org.apache.lucene.index.IndexReader", reader))


def prebuilt_index(name: str, kind: str = "BM25") -> Path:
    """The folder of a Pyserini prebuilt index (`BM25` or `FAISS`), downloaded if missing; InputError if that fails."""
    if "/" in name:
        raise InputError(f"index not found: {name} does not exist")
    start_jvm()  # before Pyserini starts it with other options
    with pyserini_versions.needing_list(f"index not found: {name} is not a folder", "prebuilt indexes"):
        known, download = pyserini_versions.prebuilt_indexes(kind)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise InputError(f"index not found: {name} is neither a folder nor a prebuilt {kind} index of Pyserini{hint}")
        url = known[name]["urls"][0]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Pyserini prints to stdout
            return Path(download(name))
    except Exception as error:  # no network, wrong checksum, full disk: Pyserini has no common exception
        raise InputError(f"prebuilt index {name} could not be downloaded from {url}: {error}") from error


def in_threads(function: Callable[[Chunk], Result], chunks: Iterable[Chunk], threads: int) -> Iterator[Result]:
    """Results of a Lucene search function for each chunk, in order, with chunks searched in parallel.

    Raises:
        InputError: Lucene refuses a search.
    """
    import jnius

    def detached(chunk: Chunk) -> Result:
        try:
            return function(chunk)
        finally:
            jnius.detach()  # otherwise Java keeps a record of the thread

    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        with java_errors("Lucene's search failed"):
            yield from pool.map(detached, chunks)
    finally:
        pool.shutdown(cancel_futures=True)


@functools.cache
def json_mapper() -> JavaObject:
    """Jackson's JSON writer, configured to write hits as bare arrays.

    A sorted search gives `[[[score,["id in base64",length]],...]]`, a plain search `[[[score,document number],...]]`, and
    Anserini's search `[["id",score],...]`.
    """
    mapper = java_class("com.fasterxml.jackson.databind.ObjectMapper")()
    array = java_class("com.fasterxml.jackson.annotation.JsonFormat$Value").forShape(
        java_class("com.fasterxml.jackson.annotation.JsonFormat$Shape").ARRAY
    )
    ignore = java_class("com.fasterxml.jackson.annotation.JsonIgnoreProperties$Value").forIgnoredProperties
    for name, ignored in {
        "org.apache.lucene.search.TopFieldDocs": ("fields", "totalHits"),
        "org.apache.lucene.search.FieldDoc": ("score", "doc", "shardIndex"),
        "org.apache.lucene.search.TopDocs": ("totalHits",),
        "org.apache.lucene.search.ScoreDoc": ("shardIndex",),
        "org.apache.lucene.util.BytesRef": ("offset", "valid"),
        "io.anserini.search.ScoredDoc": ("lucene_docid", "lucene_document"),
    }.items():
        override = mapper.configOverride(java_class("java.lang.Class").forName(name))
        override.setFormat(array)
        override.setIgnorals(ignore(*ignored))
    return mapper


BRACKETS = str.maketrans("", "", '[]"')


def numbers(text: str) -> npt.NDArray[np.float64]:
    """All numbers of nested JSON arrays of numbers, in order.

    >>> numbers("[[[0.5,7],[0.25,3]]]").tolist()
    [0.5, 7.0, 0.25, 3.0]
    """
    return np.fromstring(text.translate(BRACKETS), sep=",")
