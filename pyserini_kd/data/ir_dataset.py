"""Documents, queries and judgements of ir_datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pyserini_kd.data.ids import unique_queries
from pyserini_kd.data.lines import one_line
from pyserini_kd.data.types import Doc, Qrels, Query
from pyserini_kd.storage.errors import InputError


def read_ir_dataset(dataset_id: str, what: str) -> Any:
    """Documents (stream), queries (list) or qrels of an ir_datasets id; `what` is `docs`, `queries` or `qrels`."""
    import ir_datasets

    try:
        dataset = ir_datasets.load(dataset_id)
    except KeyError:
        raise InputError(f"ir_datasets has no dataset {dataset_id!r}; `ir_datasets list` shows what exists") from None
    if not getattr(dataset, f"has_{what}")():
        raise InputError(f"ir_datasets:{dataset_id} has no {what}")
    if what == "docs":
        return (_ir_doc(doc) for doc in _ir_records(dataset.docs_iter, dataset_id))
    if what == "queries":
        records = _ir_records(dataset.queries_iter, dataset_id)
        return unique_queries(((dataset_id, Query(q.query_id, one_line(q.default_text()))) for q in records), dataset_id)
    qrels: Qrels = {}
    for qrel in _ir_records(dataset.qrels_iter, dataset_id):
        qrels.setdefault(qrel.query_id, {})[qrel.doc_id] = qrel.relevance
    return qrels


def _ir_records(read: Callable[[], Iterator[Any]], dataset_id: str) -> Iterator[Any]:
    """Records of ir_datasets, which downloads on first use and lets every kind of exception through."""
    try:
        yield from read()
    except Exception as error:
        raise InputError(f"ir_datasets:{dataset_id} could not be had: {error}") from error


def _ir_doc(doc: Any) -> Doc:
    title = getattr(doc, "title", "") or ""
    for name in ("text", "abstract", "body"):
        if hasattr(doc, name):
            return Doc(doc.doc_id, one_line(title), (getattr(doc, name) or "").strip())
    return Doc(doc.doc_id, "", doc.default_text().strip())
