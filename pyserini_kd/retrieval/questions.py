"""Requests to the service: their limits, their queries, and the JSON of their answers."""

import json
from collections.abc import Sequence
from typing import Annotated, Protocol

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from pyserini_kd.data.runs import Hits
from pyserini_kd.retrieval.search_settings import QUERY_HITS
from pyserini_kd.retrieval.system import System

MAX_QUERIES = 64  # per request
MAX_CHARS = 8192  # per query
MAX_HITS = 1000  # per query
MAX_ANSWERS = 10_000  # hits per request, over all its queries
MAX_DOCS = 1000  # hits per request with texts
LONGEST_NAME = 40  # characters of a wrong field's name in an error

Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_CHARS),
    AfterValidator(lambda text: " ".join(text.split())),
]
Texts = Annotated[list[Text], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class Question(Protocol):
    """A request to the service. Waiting ones are searched together."""

    @property
    def texts(self) -> Sequence[str]:
        """The queries; none if nothing is searched."""

    @property
    def hits(self) -> int:
        """Hits per query."""

    @property
    def bm25(self) -> tuple[float, float] | None:
        """BM25's k1 and b, if they are not those of the service."""

    def answer(self, system: System, found: Sequence[Hits]) -> bytes:
        """Return the answer as JSON. `found` has at least the hits of each query. An InputError concerns this request only."""


class Asked(BaseModel):
    """A request: queries, hits per query, and whether to return titles and texts."""

    model_config = ConfigDict(extra="forbid")

    query: Texts = Field(min_length=1, max_length=MAX_QUERIES)
    hits: int = Field(QUERY_HITS, ge=1, le=MAX_HITS)
    docs: bool = False

    @model_validator(mode="after")
    def _bounded(self) -> "Asked":
        most, what = (MAX_DOCS, "hits with their texts") if self.docs else (MAX_ANSWERS, "hits")
        if len(self.query) * self.hits > most:
            raise ValueError(f"{len(self.query)} queries with {self.hits} hits each; at most {most} {what} in all")
        return self

    @property
    def texts(self) -> Sequence[str]:
        """The queries."""
        return self.query

    @property
    def bm25(self) -> tuple[float, float] | None:
        """None: the parameters of the service."""
        return None

    def answer(self, system: System, found: Sequence[Hits]) -> bytes:
        """The hits of each query, in the order of the queries."""
        results = []
        for text, ranking in zip(self.query, found, strict=True):
            doc_ids, scores = ranking.doc_ids[: self.hits], ranking.scores[: self.hits].tolist()
            hits: list[dict[str, str | int | float]] = [
                {"rank": rank, "doc_id": doc_id, "score": score}
                for rank, (doc_id, score) in enumerate(zip(doc_ids, scores, strict=True), start=1)
            ]
            if self.docs and system.fetch is not None:
                for hit, doc in zip(hits, system.fetch(doc_ids), strict=True):
                    hit |= {"title": doc.title, "text": doc.text}
            results.append({"query": text, "hits": hits})
        return to_json({"results": results})


def to_json(answer: object) -> bytes:
    """JSON in UTF-8."""
    return json.dumps(answer, ensure_ascii=False).encode()


def first_error(error: ValidationError) -> str:
    """Describe the first error in one line. The wrong value is left out, because it may be as large as the request."""
    first = error.errors(include_url=False, include_input=False)[0]
    return one_line(first["loc"], first["msg"])


def one_line(place: Sequence[str | int], message: str) -> str:
    """Put the name of a field before a message; long names are cut."""
    where = ".".join(str(part)[:LONGEST_NAME] for part in place)
    return f"{where}: {message}" if where else message
