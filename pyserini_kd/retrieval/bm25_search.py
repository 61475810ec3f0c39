"""Search BM25 indexes and read the documents that they store."""

from __future__ import annotations

import binascii
import functools
import html
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pyserini_kd.data import pyserini_versions
from pyserini_kd.data.formats import split_contents
from pyserini_kd.data.java import JavaObject, start_jvm
from pyserini_kd.data.runs import Run, Scores
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.retrieval.lucene import (
    BRACKETS,
    in_threads,
    is_lucene_index,
    java_class,
    java_errors,
    json_mapper,
    prebuilt_index,
)
from pyserini_kd.storage.errors import InputError, NotFound
from pyserini_kd.storage.manifest import Manifest

Found = tuple[list[str], Scores]
"""One query's document ids and scores, best first."""
Find = Callable[[JavaObject, int, Iterable[Query]], dict[str, Found]]
"""(Anserini's searcher, hits, queries) -> hits by query id."""

DEFAULT_K1, DEFAULT_B = 0.9, 0.4
_TUNED = {  # (k1, b) -> prebuilt indexes, as in Pyserini's set_bm25_parameters
    (0.82, 0.68): ("msmarco-v1-passage", "msmarco-v1-passage-slim", "msmarco-v1-passage-full", "msmarco-passage"),
    (2.18, 0.86): ("msmarco-v1-passage.d2q-t5", "msmarco-v1-passage.d2q-t5-docvectors", "msmarco-v1-passage-d2q-t5"),
    (4.46, 0.82): ("msmarco-v1-doc", "msmarco-v1-doc-slim", "msmarco-v1-doc-full"),
    (2.16, 0.61): ("msmarco-v1-doc-segmented", "msmarco-v1-doc-segmented-slim", "msmarco-v1-doc-segmented-full"),
    (4.68, 0.87): ("msmarco-v1-doc.d2q-t5", "msmarco-v1-doc.d2q-t5-docvectors"),
    (2.56, 0.59): ("msmarco-v1-doc-segmented.d2q-t5", "msmarco-v1-doc-segmented.d2q-t5-docvectors"),
}
TUNED_BM25 = {name: values for values, names in _TUNED.items() for name in names}
RAW_TEXTS = {  # prebuilt index without document vectors -> class of its stored texts, which RM3 parses
    "msmarco-v1-passage": "JsonCollection",
    "msmarco-v1-doc": "JsonCollection",
    "msmarco-v1-doc-segmented": "JsonCollection",
    "msmarco-v2-passage": "MsMarcoV2PassageCollection",
    "msmarco-v2-passage-augmented": "MsMarcoV2PassageCollection",
    "msmarco-v2-doc": "MsMarcoV2DocCollection",
    "msmarco-v2-doc-segmented": "MsMarcoV2DocCollection",
}


class BM25Index:
    """An open BM25 index (a folder or a Pyserini prebuilt index) for any number of searches."""

    def __init__(self, name: str, searcher: JavaObject) -> None:
        """Wrap Anserini's SimpleSearcher (Java); use `open` instead."""
        self.name = name
        self._searcher = searcher
        self._lock = threading.Lock()  # the searcher stores the current search's settings

    @classmethod
    def open(cls, name: str | Path) -> BM25Index:
        """Open an index folder, or a Pyserini prebuilt index by name (downloaded if missing).

        Raises:
            InputError: the index does not exist, is not a text index, or Lucene cannot read it.
        """
        path = Path(name)
        if not path.exists():
            path = prebuilt_index(str(name))
        if not is_lucene_index(path):
            raise InputError(f"{path} is not a Lucene index (no segments file); is it an incomplete copy or a FAISS folder?")
        manifest = Manifest.find(path)
        if manifest is not None and manifest.kind == "dense":
            raise InputError(f"{path} holds vectors, not text; search it with the encoder that made it")
        if manifest is not None and manifest.kind == "impact":
            raise InputError(f"{path} holds the impacts of a splade, not text; search it with the encoder that made it")
        start_jvm()
        with java_errors(f"{path} cannot be opened"):  # another Lucene version, or damaged
            # the Java object inside Pyserini's LuceneSearcher; importing that class takes seven seconds
            searcher = java_class("io.anserini.search.SimpleSearcher")(str(path.resolve()))
        return cls(str(name), searcher)

    def search(
        self,
        queries: Sequence[Query],
        *,
        hits: int = 1000,
        k1: float | None = None,
        b: float | None = None,
        rm3: bool = False,
        threads: int = 1,
        tag: str = "bm25",
    ) -> Run:
        """Search with BM25 (and RM3) as Pyserini's LuceneSearcher does; at most `hits` documents per query, none if blank.

        `k1` and `b` default to 0.9 and 0.4, or to Pyserini's values for a prebuilt index. `threads` search in parallel.

        Raises:
            InputError: `hits` or `threads` is below 1, the index lacks what RM3 needs, or a document id is not one word.
        """
        if hits < 1 or threads < 1:
            raise InputError(f"hits and threads must be at least 1, found {hits} and {threads}")
        tuned = TUNED_BM25.get(self.name, (DEFAULT_K1, DEFAULT_B))
        with self._lock:
            self._searcher.set_bm25(tuned[0] if k1 is None else k1, tuned[1] if b is None else b)
            if rm3:
                self._set_rm3()
            else:
                self._searcher.unset_rm3()
            find = _find_with_anserini if rm3 or pyserini_versions.is_lucene8(self._searcher) else _find
            found = self._search_all(find, [query for query in queries if query.text.strip()], hits, threads)
        nothing: Found = ([], np.empty(0, np.float32))
        return Run.from_hits(tag, ((q.query_id, *found.get(q.query_id, nothing)) for q in queries))

    def _set_rm3(self) -> None:
        """Enable Pyserini's RM3; terms come from document vectors, or from texts in known MS MARCO indexes."""
        # Pyserini checks document 0 only, which has no vectors if it has no words
        infos = java_class("org.apache.lucene.index.FieldInfos").getMergedFieldInfos(self._searcher.reader)
        contents = infos.fieldInfo("contents")
        vectors = contents is not None and pyserini_versions.has_term_vectors(contents)
        if not vectors and self.name not in RAW_TEXTS:
            raise InputError(f"RM3 needs an index with document vectors; {self.name} has none")
        self._searcher.set_rm3(None if vectors else RAW_TEXTS[self.name], 10, 10, 0.5, False, True)

    def _search_all(self, find: Find, queries: Sequence[Query], hits: int, threads: int) -> dict[str, Found]:
        """Search in threads, in chunks of queries that bound the hits in memory."""
        size = max(1, min(100_000 // hits, len(queries) // threads + 1))
        chunks = [queries[start : start + size] for start in range(0, len(queries), size)]
        found: dict[str, Found] = {}
        json_mapper(), _generator()  # load Java classes here: jnius cannot load one in several threads at once
        if len(chunks) > 1:  # one search in one thread loads the classes of its results
            list(in_threads(functools.partial(find, self._searcher, 1), [queries[:1]], 1))
        with tqdm(total=len(queries), desc="BM25", unit=" queries", disable=None) as bar:
            for part in in_threads(functools.partial(find, self._searcher, hits), chunks, threads):
                found.update(part)
                bar.update(len(part))
        for doc_ids, _ in found.values():
            if len(" ".join(doc_ids).split()) != len(doc_ids):  # a run cannot hold such ids
                wrong = next(doc_id for doc_id in doc_ids if len(doc_id.split()) != 1)
                raise InputError(f"{self.name}: document id {wrong!r} is not one word")
        return found

    def fetch_docs(self, doc_ids: Iterable[str]) -> Iterator[Doc]:
        """Stored documents in the order of the ids; NotFound for an unknown id, InputError for a document without text."""
        for doc_id in doc_ids:
            document = self._searcher.doc(doc_id)
            if document is None:
                raise NotFound(f"document {doc_id!r} is not in the index {self.name}")
            if (raw := document.get("raw")) is not None:
                yield _stored_doc(doc_id, raw)
            elif (contents := document.get("contents")) is not None:
                yield Doc(doc_id, *split_contents(contents))
            else:
                raise InputError(f"index {self.name} stores no text; name the collection instead")


def search(index: str | Path, queries: Sequence[Query], **settings: Any) -> Run:
    """Open an index and search it once, with the settings of `BM25Index.search`."""
    return BM25Index.open(index).search(queries, **settings)


def _find(searcher: JavaObject, hits: int, queries: Iterable[Query]) -> dict[str, Found]:
    """Hits as from LuceneSearcher, but faster.

    LuceneSearcher reads each hit's stored text only to get its id, but the sort by (score, id) already has the id. Each Java
    object costs jnius ten microseconds, so Java returns one string per query.
    """
    mapper, generator = json_mapper(), _generator()
    analyzer, lucene, order = searcher.get_analyzer(), searcher.searcher, searcher.BREAK_SCORE_TIES_BY_DOCID
    found = {}
    for query in queries:
        top = lucene.search(generator.buildQuery("contents", analyzer, query.text), hits, order, True)
        found[query.query_id] = _parse_hits(mapper.writeValueAsString(top))
    return found


def _find_with_anserini(searcher: JavaObject, hits: int, queries: Iterable[Query]) -> dict[str, Found]:
    """Hits from LuceneSearcher itself, for RM3 and for Lucene 8 indexes."""
    found = {}
    for query in queries:
        rows = json.loads(json_mapper().writeValueAsString(searcher.search(query.text, hits)))
        found[query.query_id] = ([doc_id for doc_id, _ in rows], np.array([score for _, score in rows], np.float32))
    return found


@functools.cache
def _generator() -> JavaObject:
    return java_class("io.anserini.search.query.BagOfWordsQueryGenerator")()


def _parse_hits(text: str) -> Found:
    flat = text.translate(BRACKETS).split(",")
    if flat == [""]:
        return [], np.empty(0, np.float32)
    ids = zip(flat[1::3], flat[2::3], strict=True)
    doc_ids = [binascii.a2b_base64(coded)[: int(length)].decode() for coded, length in ids]
    return doc_ids, _separate_ties(np.array(flat[0::3], dtype=np.float64).astype(np.float32))


def _separate_ties(scores: Scores) -> Scores:
    """Separate tied scores as Anserini's ScoreTiesAdjusterReranker: four decimals, then 1e-6 less at each tie."""
    rounded = (np.floor(scores.astype(np.float64) * 10_000 + 0.5) / 10_000).astype(np.float32)
    gap = float(np.float32(1e-4))
    step = np.float32(1e-6)
    near = np.flatnonzero(rounded[:-1] - rounded[1:] <= gap + 2e-6 * len(rounded)) + 1  # only these may be ties
    last, ties = -1, 0
    for row in near.tolist():
        ties = ties if row == last + 1 else 0
        last = row
        if rounded[row - 1] - rounded[row] > gap:
            ties = 0
        else:
            ties += 1
            rounded[row] -= step * np.float32(ties)
    return rounded


def _stored_doc(doc_id: str, raw: str) -> Doc:
    try:
        record = json.loads(raw)
    except json.JSONDecodeError:
        record = None
    if not isinstance(record, dict):  # HTML or TREC: remove tags, keep the title
        head = re.search(r"<title>(.*?)</title>", raw, re.IGNORECASE | re.DOTALL)
        body = raw if head is None else raw[: head.start()] + " " + raw[head.end() :]
        return Doc(doc_id, _bare(head.group(1)) if head else "", _bare(body))
    title = record.get("title") or ""
    text = next((record[n] for n in ("contents", "text", "body", "passage", "segment") if record.get(n)), "")
    if title and text.startswith(title) and not text[len(title) : len(title) + 1].strip():  # not `Cats` after `Cat`
        text = text[len(title) :]
    if title or "title" in record:  # our indexes always store a title, maybe empty
        return Doc(doc_id, title, text.strip())
    return Doc(doc_id, *split_contents(text))


def _bare(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())
