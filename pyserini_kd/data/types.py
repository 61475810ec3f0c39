"""Types for queries, documents and qrels. Ids are always strings: `007` stays `007`."""

from typing import NamedTuple

Qrels = dict[str, dict[str, int]]
"""query_id -> {doc_id: relevance}."""


class Query(NamedTuple):
    """A topic: id and text."""

    query_id: str
    text: str


class Doc(NamedTuple):
    """A document or passage: id, title (may be empty) and text."""

    doc_id: str
    title: str
    text: str

    @property
    def contents(self) -> str:
        """Title, blank, text: the input of BM25 and encoders."""
        return f"{self.title} {self.text}" if self.title else self.text
