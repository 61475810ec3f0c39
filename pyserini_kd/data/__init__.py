"""Types, readers and writers for topics, documents, qrels and runs."""

from pyserini_kd.data.formats import read_collection, read_qrels, read_topics, write_collection, write_qrels, write_topics
from pyserini_kd.data.runs import Hits, Run
from pyserini_kd.data.types import Doc, Qrels, Query

__all__ = [
    "Doc",
    "Hits",
    "Qrels",
    "Query",
    "Run",
    "read_collection",
    "read_qrels",
    "read_topics",
    "write_collection",
    "write_qrels",
    "write_topics",
]
