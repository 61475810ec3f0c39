"""Pyserini's REST routes (those of its version 2.4) on our service, for the clients of Pyserini and Anserini.

`/v1/{index}/search` and `/v1/{index}/doc/{docid}` have its parameters and answers. `{index}` is the name of the opened system:
it is compared, and never used as a path.
"""

import dataclasses
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Self

from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pyserini_kd.data.runs import Hits, default_tag
from pyserini_kd.data.types import Doc
from pyserini_kd.retrieval.bm25_search import BM25Index
from pyserini_kd.retrieval.questions import LONGEST_NAME, MAX_DOCS, Question, Text, to_json
from pyserini_kd.retrieval.search_settings import QUERY_HITS, SystemSettings
from pyserini_kd.retrieval.system import System
from pyserini_kd.storage.errors import InputError, NotFound

API = "v1"
DECIMALS = 6  # of a score, as in Pyserini
Ask = Callable[[Request, Question], Awaitable[Response]]


def name_of(settings: SystemSettings) -> str:
    """The name of an opened system: the last part of its (first) index's name."""
    return default_tag(settings.index[0])


class Shown(BaseModel):
    """How documents are shown."""

    model_config = ConfigDict(extra="forbid")

    parse: bool = Field(True, description="Documents as objects; false: each as the JSON that an index stores.")
    max_doc_length: int | None = Field(None, ge=1, description="Characters of a document's contents.")

    @model_validator(mode="after")
    def _parsed(self) -> Self:
        if self.max_doc_length is not None and not self.parse:
            raise ValueError("max_doc_length needs parse=true")
        return self

    def show(self, doc: Doc) -> str | dict[str, str]:
        """A document, with the fields that `index` gives it in Lucene."""
        fields = {"contents": doc.contents, "title": doc.title}
        if not self.parse:
            return json.dumps({"id": doc.doc_id, **fields}, ensure_ascii=False)
        return fields | {"contents": doc.contents[: self.max_doc_length]}


class PyseriniSearch(Shown):
    """A search for one query."""

    query: Text
    hits: int = Field(QUERY_HITS, ge=1, le=MAX_DOCS)
    k1: float | None = Field(None, ge=0, allow_inf_nan=False, description="BM25's k1; together with b.")
    b: float | None = Field(None, ge=0, le=1, description="BM25's b; together with k1.")

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.k1 is None) != (self.b is None):
            raise ValueError("k1 and b must be given together")
        return self

    @property
    def texts(self) -> Sequence[str]:
        """The query."""
        return [self.query]

    @property
    def bm25(self) -> tuple[float, float] | None:
        """BM25's parameters."""
        return None if self.k1 is None or self.b is None else (self.k1, self.b)

    def answer(self, system: System, found: Sequence[Hits]) -> bytes:
        """The hits with their documents; these are null if the system has no texts."""
        doc_ids, scores = found[0].doc_ids[: self.hits], found[0].scores[: self.hits].tolist()
        docs = [None] * len(doc_ids) if system.fetch is None else list(map(self.show, system.fetch(doc_ids)))
        candidates = [
            {"docid": doc_id, "score": round(score, DECIMALS), "rank": rank, "doc": doc}
            for rank, (doc_id, score, doc) in enumerate(zip(doc_ids, scores, docs, strict=True), start=1)
        ]
        named = {"api": API, "index": name_of(system.settings)}
        return to_json(named | {"query": {"text": self.query}, "candidates": candidates})


@dataclasses.dataclass(frozen=True)
class PyseriniDoc:
    """The request for a document."""

    docid: str
    shown: Shown
    texts: Sequence[str] = ()
    hits: int = 0
    bm25: tuple[float, float] | None = None

    def answer(self, system: System, found: Sequence[Hits]) -> bytes:
        """The document. NotFound if there is none; InputError if the system has no texts."""
        name = name_of(system.settings)
        if system.fetch is None:
            raise InputError(f"{name} stores no texts")
        try:
            (doc,) = system.fetch([self.docid])
        except NotFound:
            raise NotFound(f"document {self.docid[:LONGEST_NAME]!r} is not in {name}") from None
        return to_json({"api": API, "index": name, "docid": self.docid, "doc": self.shown.show(doc)})


def check(system: System, index: str, asked: PyseriniSearch | None = None) -> None:
    """Raise NotFound for a name other than the system's, and InputError for k1 and b unless the system is BM25 alone."""
    name = name_of(system.settings)
    if index != name:
        raise NotFound(f"index {index[:LONGEST_NAME]!r} is not served here; served: {name}")
    if asked is not None and asked.bm25 and not isinstance(system.sparse if system.settings.is_sparse else None, BM25Index):
        raise InputError(f"k1 and b are for BM25 alone, and {name} is searched otherwise")


def add_routes(api: FastAPI, system: System, ask: Ask) -> None:
    """Add the routes to an application; `ask` answers one request."""

    @api.get(f"/{API}/{{index}}/search", summary="As Pyserini: search for one query, with documents")
    async def search(request: Request, index: str, asked: Annotated[PyseriniSearch, Query()]) -> Response:
        check(system, index, asked)
        return await ask(request, asked)

    @api.get(f"/{API}/{{index}}/doc/{{docid:path}}", summary="As Pyserini: a document")
    async def document(request: Request, index: str, docid: str, shown: Annotated[Shown, Query()]) -> Response:
        check(system, index)
        return await ask(request, PyseriniDoc(docid, shown))
