"""Queries, documents and relevance judgements. Ids are always strings: `007` stays `007`."""

from typing import NamedTuple

Qrels = dict[str, dict[str, int]]
"""query_id -> {doc_id: relevance}."""


class Query(NamedTuple):
    """A topic: its id and its text."""

    query_id: str
    text: str


class Doc(NamedTuple):
    """A document (or passage): its id, its title (may be empty) and its text."""

    doc_id: str
    title: str
    text: str

    @property
    def contents(self) -> str:
        """Title, space, text: what BM25 indexes and what encoders see."""
        return f"{self.title} {self.text}" if self.title else self.text
