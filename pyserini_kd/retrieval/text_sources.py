"""Where reranking takes the texts of documents from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from pyserini_kd.data import sources
from pyserini_kd.data.types import Doc
from pyserini_kd.retrieval import lucene
from pyserini_kd.retrieval.bm25_search import BM25Index
from pyserini_kd.retrieval.stored_docs import has_docs, stored_docs
from pyserini_kd.storage.errors import InputError

Fetch = Callable[[Sequence[str]], Iterator[Doc]]


def fetch_from(source: str | Iterable[Doc], *more: str) -> Fetch:
    """How to get documents by id: from an index folder (Lucene or ours), a prebuilt index, or a collection (read once).

    More sources are further index folders of ours.
    """
    if isinstance(source, str):
        folders = [Path(source), *map(Path, more)]
        if all(path.is_dir() for path in folders) and has_docs(*folders):
            return stored_docs(*folders)
        for path in folders:
            if (path / "docid").exists() and not has_docs(path):
                raise InputError(f"index {path} stores no text; name the --collection instead")
        if more:
            raise InputError(f"several --index are folders that `pyserini-kd index` wrote, not {source} and {', '.join(more)}")
        path = folders[0]
        if lucene.is_lucene_index(path) or not _is_collection(source):
            return BM25Index.open(source).fetch_docs

    def scan(doc_ids: Sequence[str]) -> Iterator[Doc]:
        wanted, docs = set(doc_ids), sources.collection(source) if isinstance(source, str) else source
        found = {doc.doc_id: doc for doc in docs if doc.doc_id in wanted}
        missing = [doc_id for doc_id in doc_ids if doc_id not in found]
        if missing:
            raise InputError(f"{len(missing)} documents are not in the collection {source}, e.g. {missing[0]}")
        return (found[doc_id] for doc_id in doc_ids)

    return scan


def is_index(source: str) -> bool:
    """Whether documents are to be had from an index, ours, Lucene's or a prebuilt one, rather than from a collection."""
    path = Path(source)
    ours = (path / "docid").exists() or (path / "manifest.json").exists()
    return ours or lucene.is_lucene_index(path) or not _is_collection(source)


def _is_collection(source: str) -> bool:
    return Path(source).exists() or source == "pydocs" or source.startswith(sources.IR_DATASETS)
