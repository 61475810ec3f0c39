"""The HTTP JSON API of `serve`: bounded requests, answered one after the other by one thread that owns the models.

GET and POST `/search` take the same fields (`Asked`); `/health` says what is served. A request that is wrong or too large
gets a 4xx and one line under `detail`, one more than may wait gets 429, and who has left by the time of his turn is passed
over. Nothing of a query is logged or kept.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import json
import resource
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

import pyserini_kd
from pyserini_kd.data import types
from pyserini_kd.models import hardware
from pyserini_kd.retrieval.search_settings import QUERY_HITS
from pyserini_kd.retrieval.system import System
from pyserini_kd.storage.errors import InputError

MAX_QUERIES = 64  # a request
MAX_CHARS = 8192  # a query
MAX_HITS = 1000  # a query
MAX_ANSWERS = 10_000  # hits of all queries of a request
MAX_DOCS = 1000  # of them, where their texts are sent too
MAX_PAIRS = 10_000  # documents reranked for a request
MAX_BODY = 1 << 20  # bytes
LONGEST_NAME = 40  # characters of a wrong field's name that an answer repeats
MAX_BODIES = 64 << 20  # bytes of all requests that are being received
MAX_WAITING = 64  # requests
MAX_CONNECTIONS = 4096
OTHER_FILES = 200  # that the process has open: libraries, indexes
PATIENCE = 10  # seconds that a connection may take for a request, and without reading of its answer

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_CHARS)]
Texts = Annotated[list[Text], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class Asked(BaseModel):
    """A request: one query or several, how many hits of each, and whether with titles and texts."""

    model_config = ConfigDict(extra="forbid")

    query: Texts = Field(min_length=1, max_length=MAX_QUERIES)
    hits: int = Field(QUERY_HITS, ge=1, le=MAX_HITS)
    docs: bool = False

    @model_validator(mode="after")
    def _bounded(self) -> Asked:
        most, what = (MAX_DOCS, "hits with their texts") if self.docs else (MAX_ANSWERS, "hits")
        if len(self.query) * self.hits > most:
            raise ValueError(f"{len(self.query)} queries of {self.hits} hits; at most {most} {what} in all")
        return self


def answer(system: System, asked: Asked) -> bytes:
    """The JSON of an answer: for each query, in the order asked, its hits as the command `search` finds them."""
    if asked.docs and system.fetch is None:
        raise InputError("docs: this index stores no texts")
    queries = [types.Query(str(row), " ".join(text.split())) for row, text in enumerate(asked.query)]
    run, _ = system.search(queries, asked.hits, one_query=True)
    results = []
    for query in queries:
        doc_ids, scores = run[query.query_id]
        hits: list[dict[str, Any]] = [
            {"rank": rank, "doc_id": doc_id, "score": score}
            for rank, (doc_id, score) in enumerate(zip(doc_ids, scores.tolist(), strict=True), start=1)
        ]
        if asked.docs and system.fetch is not None:
            for hit, doc in zip(hits, system.fetch(doc_ids), strict=True):
                hit |= {"title": doc.title, "text": doc.text}
        results.append({"query": query.text, "hits": hits})
    return json.dumps({"results": results}, ensure_ascii=False).encode()


class Worker:
    """One thread that calls `function`, first come first served; at most MAX_WAITING requests wait for it."""

    def __init__(self, function: Callable[[Asked], bytes], threads: int | None) -> None:
        self.function = function
        prepare = functools.partial(hardware.use_threads, threads) if threads else None  # FAISS's are each thread's own
        self.pool = concurrent.futures.ThreadPoolExecutor(1, initializer=prepare)
        self.turn = asyncio.Lock()
        self.waiting = 0  # changed by the event loop's thread only

    async def __call__(self, request: Request, asked: Asked) -> Response:
        """The answer to one request; 429 where too many wait."""
        if self.waiting >= MAX_WAITING:
            raise HTTPException(429, f"{MAX_WAITING} requests are waiting; come again", headers={"Retry-After": "1"})
        self.waiting += 1
        try:
            async with self.turn:
                if await request.is_disconnected():
                    return Response(status_code=499)  # to nobody
                body = await asyncio.get_running_loop().run_in_executor(self.pool, self.function, asked)
        finally:
            self.waiting -= 1
        return Response(body, media_type="application/json")


class BoundedBody:
    """ASGI middleware: 413 as soon as a body has more than MAX_BODY bytes, 429 where all bodies have more than MAX_BODIES."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.held = 0  # bytes, of all requests at work

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        """Pass the request on with a `receive` that counts."""
        size = 0

        async def counted() -> Any:
            nonlocal size
            message = await receive()
            more = len(message.get("body", b""))
            size, self.held = size + more, self.held + more
            if size > MAX_BODY:
                raise HTTPException(413, f"the request has more than {MAX_BODY} bytes")
            if self.held > MAX_BODIES:
                raise HTTPException(429, "too much is being sent at once; come again", headers={"Retry-After": "1"})
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self.held -= size


class Impatient(H11Protocol):
    """HTTP over a connection that is closed when a request is not whole in time: silent ones would take all the places.

    One more than `most` is closed at once; uvicorn's own `limit_concurrency` would answer 503 to others meanwhile.
    """

    def __init__(self, *args: Any, most: int, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.most = most

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to look at the connection every now and then."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        self._next_look = self.loop.call_later(PATIENCE, self._look, None)

    def connection_lost(self, exc: Exception | None) -> None:
        """End that."""
        self._next_look.cancel()
        super().connection_lost(exc)

    def _look(self, before: Any) -> None:
        """Close the connection if it is still at the same request and has not sent all of it, or of the next one."""
        if self.cycle is before and (before is None or before.more_body or before.response_complete):
            self.transport.close()  # as soon as what was answered is read
            self._next_look = self.loop.call_later(PATIENCE, self._give_up, self.transport.get_write_buffer_size())
        else:
            self._next_look = self.loop.call_later(PATIENCE, self._look, self.cycle)

    def _give_up(self, unread: int) -> None:
        """End a connection whose client has read nothing since: its answer would stay in memory."""
        left = self.transport.get_write_buffer_size()
        if left >= unread:
            self.transport.abort()
        else:
            self._next_look = self.loop.call_later(PATIENCE, self._give_up, left)


def config(api: FastAPI) -> Config:
    """How uvicorn is to run the application; the process may open more files than before, for its connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OTHER_FILES
    soft = max(soft, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    quiet: Any = {"log_config": None, "log_level": "warning", "access_log": False, "backlog": 128}
    http: Any = functools.partial(Impatient, most=max(16, min(MAX_CONNECTIONS, soft - OTHER_FILES)))
    return Config(api, http=http, **quiet)


def app(system: System) -> FastAPI:
    """The ASGI application over an opened system."""
    settings = system.settings
    worker = Worker(lambda asked: answer(system, asked), settings.threads)
    api = FastAPI(title="pyserini-kd", version=pyserini_kd.__version__, docs_url=None, redoc_url=None)
    api.add_middleware(BoundedBody)
    served = {name: getattr(settings, name) for name in ("encoder", "sparse_index", "rerank", "rerank_index")}
    served |= {"index": settings.index[0], "more_indexes": settings.index[1:]}

    @api.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "version": pyserini_kd.__version__, "waiting": worker.waiting} | served

    @api.get("/search")
    async def get(request: Request, asked: Annotated[Asked, Query()]) -> Response:
        return await search_for(request, asked)

    @api.post("/search")
    async def post(request: Request, asked: Asked) -> Response:
        return await search_for(request, asked)

    async def search_for(request: Request, asked: Asked) -> Response:
        if settings.rerank and len(asked.query) * settings.depth > MAX_PAIRS:
            most = MAX_PAIRS // settings.depth
            raise InputError(f"{len(asked.query)} queries; {settings.depth} documents are reranked for each: ask for {most}")
        return await worker(request, asked)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Any, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]  # its `input` stays here: it may be as large as the request
        where = ".".join(str(part)[:LONGEST_NAME] for part in first["loc"][1:] if first["type"] != "json_invalid")
        return JSONResponse({"detail": f"{where}: {first['msg']}" if where else first["msg"]}, 422)

    @api.exception_handler(InputError)
    async def refused(_: Any, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    return api
