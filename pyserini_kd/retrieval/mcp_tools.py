"""Pyserini's MCP tools (those of its version 2.4) on our service: `serve --mcp`, over stdin and stdout.

The tools have its names, parameters and answers. Searches wait in the same queue as those over HTTP, with the same limits.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from fastapi import HTTPException
from pydantic import ValidationError

import pyserini_kd
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Qrels
from pyserini_kd.retrieval import fusion, pyserini_routes, service
from pyserini_kd.retrieval.impact_index import ImpactIndex
from pyserini_kd.retrieval.pyserini_routes import PyseriniDoc, PyseriniSearch, Shown
from pyserini_kd.retrieval.questions import MAX_ANSWERS, Question, first_error
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.retrieval.system import System
from pyserini_kd.storage.errors import InputError

if TYPE_CHECKING:
    from fastmcp import FastMCP

P = ParamSpec("P")
T = TypeVar("T")
METRICS = {"ndcg": "nDCG", "recall": "R", "map": "AP", "recip_rank": "RR"}
INDEX_TYPES = ("tf", "lucene_flat", "lucene_hnsw", "impact", "faiss")
EF_SEARCH = 100  # Pyserini's default, which its clients send


Evaluate = Callable[[Run, Qrels, Sequence[str], str], Mapping[str, Mapping[str, float]]]
"""`evaluation.engines.evaluate`: (run, judgements, measures, engine) -> measure -> {query id: value}."""


class Judgements(NamedTuple):
    """Judgements of a collection, and the function that evaluates a run against them."""

    qrels: Qrels
    evaluate: Evaluate


@dataclasses.dataclass
class Result:
    """A hit of a ranking to be fused."""

    docid: str
    score: float


class Tools:
    """The tools. MCP clients show their docstrings to the model that chooses a tool."""

    def __init__(self, system: System, judgements: Judgements | None) -> None:
        self.system, self.judgements, self.worker = system, judgements, service.Batcher(system)
        self.name = pyserini_routes.name_of(system.settings)

    async def search(
        self, query: str | dict[str, Any], index: str = "", hits: int = 10, parse: bool = True, ef_search: int = EF_SEARCH,
        encoder: str = "", query_generator: str = "", k1: float | None = None, b: float | None = None,
    ) -> list[Any]:  # fmt: skip
        """Search an index and return the best documents with their ids and scores.

        Args:
            query: the text of the query, or an object whose query_txt is the text.
            index: name of the index (see list_indexes). By default the only one.
            hits: number of results.
            parse: documents as objects; false: as JSON text.
            ef_search: fixed when the service starts; other values than the default are refused.
            encoder: as ef_search.
            query_generator: as ef_search.
            k1: BM25's k1, together with b. For indexes of type tf.
            b: BM25's b, together with k1.
        """
        text = query.get("query_txt") if isinstance(query, dict) else query
        if isinstance(query, dict) and query.get("query_img_path"):
            raise InputError("images are not searched here; give a text under query_txt", "query")
        fixed = {"ef_search": ef_search != EF_SEARCH, "encoder": encoder, "query_generator": query_generator}
        for name in (name for name, given in fixed.items() if given):
            raise InputError("is fixed when the service starts; leave it out", name)
        asked = PyseriniSearch.model_validate({"query": text, "hits": hits, "parse": parse, "k1": k1, "b": b})
        pyserini_routes.check(self.system, index or self.name, asked)
        found = await self._ask(asked)
        shown: list[Any] = [f"Query Results for: {found['query']['text']}"]
        for hit in found["candidates"]:
            shown.append(f"DocID: {hit['docid']} | Score: {hit['score']}")
            shown += [] if hit["doc"] is None else [hit["doc"]]
        return shown

    async def get_document(self, docid: str, index: str = "", parse: bool = True) -> list[Any]:
        """Return the text of a document.

        Args:
            docid: id of the document.
            index: name of the index (see list_indexes). By default the only one.
            parse: the document as an object; false: as JSON text.
        """
        pyserini_routes.check(self.system, index or self.name)
        return [(await self._ask(PyseriniDoc(docid, Shown(parse=parse, max_doc_length=None))))["doc"]]

    async def _ask(self, asked: Question) -> Any:
        return json.loads(await self.worker.ask(asked, _stays) or b"null")

    async def list_indexes(self, index_type: str = "") -> list[str]:
        """List the names of the indexes that are served.

        Args:
            index_type: only those of this type: tf, lucene_flat, lucene_hnsw, impact or faiss.
        """
        if index_type and index_type not in INDEX_TYPES:
            raise InputError(f"must be one of {', '.join(INDEX_TYPES)}", "index_type")
        return [self.name] if index_type in ("", self._type()) else []

    def _type(self) -> str:
        index = self.system.index
        if index is None:
            return "impact" if isinstance(self.system.sparse, ImpactIndex) else "tf"
        kind = (index.manifest.index if index.manifest else None) or ""
        return kind.replace("-", "_") if kind.startswith("lucene") else "faiss"

    async def get_index(self, index_name: str) -> dict[str, Any]:
        """Describe an index: its type, its encoder, and what else takes part in a search.

        Args:
            index_name: name of the index (see list_indexes).
        """
        pyserini_routes.check(self.system, index_name)
        return {"downloaded": True, "index_type": self._type(), **service.served(self.system.settings)}

    async def fuse_search_results(self, results1: list[Result], results2: list[Result], hits: int = 10) -> list[Result]:
        """Fuse two rankings: the sum of their normalised scores.

        Args:
            results1: the first ranking, a list of objects with docid and score.
            results2: the second ranking.
            hits: number of results.
        """
        if hits < 1 or len(results1) + len(results2) > MAX_ANSWERS:
            raise InputError(f"hits must be at least 1, and both lists together have at most {MAX_ANSWERS} results")
        runs = [Run.from_scores("results", {"1": {hit.docid: hit.score for hit in some}}) for some in (results1, results2)]
        doc_ids, scores = fusion.combine(runs, "combsum", norm="minmax", k=hits)["1"]
        return [Result(doc_id, score - 1) for doc_id, score in zip(doc_ids, scores.tolist(), strict=True)]  # from -1, as there

    async def get_qrels(self, index_name: str, query_id: str) -> dict[str, str]:
        """Return the judgements of a query: the grade of each judged document.

        Args:
            index_name: name of the index (see list_indexes).
            query_id: id of the query.
        """
        return {doc_id: str(grade) for doc_id, grade in self._judged(index_name).qrels.get(query_id, {}).items()}

    async def eval_hits(self, index_name: str, metric: str, query_id: str, hits: dict[str, float], cutoff: int = 10) -> float:
        """Evaluate the results of a query against its judgements.

        Args:
            index_name: name of the index (see list_indexes).
            metric: ndcg, recall, map or recip_rank.
            query_id: id of the query.
            hits: score of each document.
            cutoff: number of top results to evaluate.
        """
        if metric not in METRICS:
            raise InputError(f"must be one of {', '.join(METRICS)}", "metric")
        if cutoff < 1 or not 0 < len(hits) <= MAX_ANSWERS:
            raise InputError(f"cutoff must be at least 1, and hits have 1 to {MAX_ANSWERS} documents")
        qrels, evaluate = self._judged(index_name)
        judged = qrels.get(query_id)
        if judged is None:
            raise InputError("this query has no judgements", "query_id")
        measure, run = f"{METRICS[metric]}@{cutoff}", Run.from_scores("hits", {query_id: hits})
        return evaluate(run, {query_id: judged}, [measure], "fast")[measure][query_id]

    def _judged(self, index: str) -> Judgements:
        pyserini_routes.check(self.system, index)
        if self.judgements is None:
            raise InputError("the service has no judgements; start it with --qrels")
        return self.judgements


def server(system: System, judgements: Judgements | None = None) -> "FastMCP":
    """The MCP server for an open system, by the package that Pyserini's own server uses."""
    from fastmcp import FastMCP
    from fastmcp.exceptions import ToolError
    from fastmcp.exceptions import ValidationError as WrongArguments
    from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext

    class OneLine(Middleware):
        """Reports arguments of a wrong type in one line, as the tools report other wrong input."""

        async def on_call_tool(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
            try:
                return await call_next(context)
            except (WrongArguments, ValidationError) as error:
                found = error if isinstance(error, ValidationError) else error.__cause__
                raise ToolError(first_error(found) if isinstance(found, ValidationError) else "wrong arguments") from None

    made = FastMCP("pyserini-kd", version=pyserini_kd.__version__, middleware=[OneLine()])
    tools = Tools(system, judgements)
    for tool in (tools.search, tools.get_document):
        made.tool(_reporting(tool), output_schema=None)  # lists of texts and objects
    for other in (tools.list_indexes, tools.get_index, tools.fuse_search_results, tools.get_qrels, tools.eval_hits):
        made.tool(_reporting(other))
    return made


def _reporting(tool: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Wrap a tool so that it reports wrong input in one line, without the text of the request."""
    from fastmcp.exceptions import ToolError

    @functools.wraps(tool)
    async def reporting(*args: P.args, **named: P.kwargs) -> T:
        try:
            return await tool(*args, **named)
        except ValidationError as error:
            raise ToolError(first_error(error)) from None
        except HTTPException as error:
            raise ToolError(error.detail) from None
        except InputError as error:
            raise ToolError(str(error)) from None

    return reporting


async def _stays() -> bool:
    """Always false: the client at stdin stays until the process ends."""
    return False


def serve(settings: SystemSettings, judgements: Judgements | None, ready: Callable[[str], object]) -> None:
    """Load the system and answer on stdin and stdout, until stdin ends or Ctrl-C. `ready` is called with the system's name.

    Raises:
        InputError: the package fastmcp is missing.
    """
    if importlib.util.find_spec("fastmcp") is None:
        raise InputError("needs the package fastmcp: pip install 'pyserini-kd[mcp]'", "mcp")
    system = service.open_system(settings)
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # otherwise a thread that reads stdin keeps the process
    ready(pyserini_routes.name_of(settings))
    server(system, judgements).run("stdio", show_banner=False, log_level="ERROR")
