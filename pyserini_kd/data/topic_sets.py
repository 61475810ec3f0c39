"""Pyserini's own topic sets, by name."""

from __future__ import annotations

from pyserini_kd.data.java import java_message, start_jvm
from pyserini_kd.data.lines import one_line, unique_queries
from pyserini_kd.data.types import Query
from pyserini_kd.storage.errors import InputError


def read_topic_set(name: str) -> list[Query] | None:
    """One of Pyserini's own topic sets by name (`dl19-passage`, ...); None where it has no such set."""
    start_jvm()
    from pyserini.search import _base

    if name not in _base.topics_mapping:
        return None
    try:
        topics = _base.JTopicReader.getTopicsWithStringIds(_base.topics_mapping[name])  # keeps 007 a string
    except Exception as error:
        raise InputError(f"topic set {name} could not be read: {java_message(error)}") from error
    queries = []
    for query_id in topics.keySet().toArray():
        text = topics.get(query_id).get("title")
        if text is None:
            raise InputError(f"topic set {name} holds no plain text, but perhaps vectors or pictures")
        queries.append(Query(str(query_id), one_line(text)))
    return unique_queries(((name, query) for query in sorted(queries, key=_id_order)), name)


def _id_order(query: Query) -> tuple[int, int, str]:
    """Whole numbers by value first, then the rest as text: Pyserini's order."""
    return (0, int(query.query_id), query.query_id) if query.query_id.isdecimal() else (1, 0, query.query_id)
