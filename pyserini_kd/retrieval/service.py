"""The HTTP JSON API of `serve`: bounded requests, answered in batches by one thread that owns the models.

Requests that arrive while the thread works wait, and are then searched together. So no request waits for others to come, and a
busy service encodes and searches many queries at once.

GET and POST `/search` take the fields of `Asked`; `/health` describes the system, and `/docs` the interface. Invalid and too
large requests get a 4xx and one line under `detail`. If the queue is full, requests get 429; disconnected clients are skipped.
Queries are not logged or stored. There is no protection from deliberately slow clients: put a public service behind a reverse
proxy.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import functools
import json
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Annotated

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tqdm import tqdm

import pyserini_kd
from pyserini_kd.data import types
from pyserini_kd.data.runs import Run
from pyserini_kd.models import engine, hardware
from pyserini_kd.retrieval import api_page
from pyserini_kd.retrieval.search_settings import QUERY_HITS, SystemSettings
from pyserini_kd.retrieval.system import System
from pyserini_kd.storage.errors import InputError

MAX_QUERIES = 64  # per request
MAX_CHARS = 8192  # per query
MAX_HITS = 1000  # per query
MAX_ANSWERS = 10_000  # hits per request, over all its queries
MAX_DOCS = 1000  # hits per request with texts
MAX_PAIRS = 10_000  # documents reranked per request
MAX_BODY = 1 << 20  # bytes
LONGEST_NAME = 40  # characters of a wrong field's name in an error
MAX_BODIES = 64 << 20  # bytes of all requests that are being received
MAX_WAITING = 128  # requests
BATCH = 64  # queries searched together
BATCH_PAIRS = 1000  # documents reranked together

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_CHARS)]
Texts = Annotated[list[Text], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class Asked(BaseModel):
    """A request: queries, hits per query, and whether to return titles and texts."""

    model_config = ConfigDict(extra="forbid")

    query: Texts = Field(min_length=1, max_length=MAX_QUERIES)
    hits: int = Field(QUERY_HITS, ge=1, le=MAX_HITS)
    docs: bool = False

    @model_validator(mode="after")
    def _bounded(self) -> Asked:
        most, what = (MAX_DOCS, "hits with their texts") if self.docs else (MAX_ANSWERS, "hits")
        if len(self.query) * self.hits > most:
            raise ValueError(f"{len(self.query)} queries with {self.hits} hits each; at most {most} {what} in all")
        return self


def answers(system: System, requests: Sequence[Asked]) -> list[bytes]:
    """The JSON answer of each request: the hits of its queries, in their order, as the command `search` finds them.

    All queries are searched together, with the most hits that a request asks for; the others take the top of the same lists.
    """
    texts = [" ".join(text.split()) for asked in requests for text in asked.query]
    queries = [types.Query(str(row), text) for row, text in enumerate(texts)]
    run, _ = system.search(queries, max(asked.hits for asked in requests), one_query=True)
    found = iter(queries)
    return [_json(system, asked, [(next(found), run) for _ in asked.query]) for asked in requests]


def _json(system: System, asked: Asked, found: Sequence[tuple[types.Query, Run]]) -> bytes:
    results = []
    for query, run in found:
        doc_ids, scores = run[query.query_id].doc_ids[: asked.hits], run[query.query_id].scores[: asked.hits]
        hits: list[dict[str, str | int | float]] = [
            {"rank": rank, "doc_id": doc_id, "score": score}
            for rank, (doc_id, score) in enumerate(zip(doc_ids, scores.tolist(), strict=True), start=1)
        ]
        if asked.docs and system.fetch is not None:
            for hit, doc in zip(hits, system.fetch(doc_ids), strict=True):
                hit |= {"title": doc.title, "text": doc.text}
        results.append({"query": query.text, "hits": hits})
    return json.dumps({"results": results}, ensure_ascii=False).encode()


class Batcher:
    """One thread that answers waiting requests together, in their order; at most MAX_WAITING requests wait."""

    def __init__(self, answer: Callable[[Sequence[Asked]], list[bytes]], threads: int | None, most: int = BATCH) -> None:
        """`answer` maps requests to their answers; a batch has at most `most` queries, or one request."""
        self.answer, self.most = answer, most
        prepare = functools.partial(hardware.use_threads, threads) if threads else None  # FAISS counts per thread
        self.pool = concurrent.futures.ThreadPoolExecutor(1, initializer=prepare)
        self.queue: collections.deque[tuple[Request, Asked, asyncio.Future[bytes | None]]] = collections.deque()
        self.waiting = 0  # only the event loop changes it
        self.running: asyncio.Task[None] | None = None

    async def __call__(self, request: Request, asked: Asked) -> Response:
        """Answer one request; 429 if too many wait."""
        if self.waiting >= MAX_WAITING:
            raise HTTPException(429, f"{MAX_WAITING} requests are waiting; try again later", headers={"Retry-After": "1"})
        self.waiting += 1
        await request.is_disconnected()  # uvicorn reads on from here, and so sees later that the client left
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes | None] = loop.create_future()
        self.queue.append((request, asked, future))
        if self.running is None or self.running.done():
            self.running = loop.create_task(self._work())
        try:
            body = await future
        finally:
            self.waiting -= 1
        return Response(status_code=499) if body is None else Response(body, media_type="application/json")

    async def _work(self) -> None:
        """Answer batches until no request waits."""
        while self.queue:
            batch = []
            for request, asked, future in self._next():
                if await request.is_disconnected():
                    future.set_result(None)  # the client is gone
                else:
                    batch.append((asked, future))
            if batch:
                await self._answer(batch)

    def _next(self) -> list[tuple[Request, Asked, asyncio.Future[bytes | None]]]:
        taken, size = [self.queue.popleft()], 0
        size = len(taken[0][1].query)
        while self.queue and size + len(self.queue[0][1].query) <= self.most:
            taken.append(self.queue.popleft())
            size += len(taken[-1][1].query)
        return taken

    async def _answer(self, batch: Sequence[tuple[Asked, asyncio.Future[bytes | None]]]) -> None:
        try:
            asked = [one for one, _ in batch]
            bodies = await asyncio.get_running_loop().run_in_executor(self.pool, self.answer, asked)
        except Exception as error:  # each waiting request reports it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), body in zip(batch, bodies, strict=True):
            if not future.done():
                future.set_result(body)


class BoundedBody:
    """ASGI middleware: 413 for a body over MAX_BODY bytes, 429 if all bodies together exceed MAX_BODIES bytes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.held = 0  # bytes of all requests in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that counts bytes."""
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            more = len(message.get("body", b""))
            size, self.held = size + more, self.held + more
            if size > MAX_BODY:
                raise HTTPException(413, f"the request has more than {MAX_BODY} bytes")
            if self.held > MAX_BODIES:
                raise HTTPException(429, "too many bytes are being received; try again later", headers={"Retry-After": "1"})
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self.held -= size


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket before anything is loaded, so that a used port fails at once with InputError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # explicit: otherwise asyncio keeps Nagle's delay
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise InputError(f"address {host}, port {port}: {error.strerror}") from error
    return listener


def serve(settings: SystemSettings, listener: socket.socket, ready: Callable[[str], object]) -> None:
    """Load the system and answer searches on a bound socket until Ctrl-C; `ready` is called with the URL."""
    if settings.rerank and settings.depth > MAX_PAIRS:
        raise InputError(f"{settings.depth}: at most {MAX_PAIRS} documents are reranked for a request", "depth")
    api = app(System.open(settings, texts=True))
    logging.getLogger(engine.__name__).setLevel(logging.WARNING)  # no line per request whose query is cut
    tqdm.__init__ = functools.partialmethod(tqdm.__init__, delay=3600)  # no progress bar per request
    listener.listen()
    address, port = listener.getsockname()[:2]
    ready(f"http://{f'[{address}]' if ':' in address else address}:{port}/search?query=")
    uvicorn.Server(config(api)).run(sockets=[listener])


def config(api: FastAPI) -> uvicorn.Config:
    """Configuration of uvicorn, without a log of requests."""
    return uvicorn.Config(api, log_config=None, log_level="warning", access_log=False, backlog=128, http="h11")


def app(system: System) -> FastAPI:
    """The ASGI application for an open system."""
    settings = system.settings
    most = max(1, min(BATCH, BATCH_PAIRS // settings.depth)) if settings.rerank else BATCH
    worker = Batcher(lambda requests: answers(system, requests), settings.threads, most)
    api = FastAPI(title="pyserini-kd", version=pyserini_kd.__version__, docs_url=None, redoc_url=None)
    api.add_middleware(BoundedBody)
    served = {name: getattr(settings, name) for name in ("encoder", "sparse_index", "rerank", "rerank_index")}
    served |= {"index": settings.index[0], "more_indexes": settings.index[1:]}

    @api.get("/health", summary="What is served, and how many requests wait")
    async def health() -> dict[str, object]:
        return {"status": "ok", "version": pyserini_kd.__version__, "waiting": worker.waiting} | served

    @api.get("/search", summary="Search for one query, or for several (repeat `query`)")
    async def get(request: Request, asked: Annotated[Asked, Query()]) -> Response:
        return await search_for(request, asked)

    @api.post("/search", summary="Search for one query, or for a list of queries")
    async def post(request: Request, asked: Asked) -> Response:
        return await search_for(request, asked)

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(api_page.page(api.openapi()))

    async def search_for(request: Request, asked: Asked) -> Response:
        if asked.docs and system.fetch is None:
            raise InputError("docs: this index stores no texts")
        if settings.rerank and len(asked.query) * settings.depth > MAX_PAIRS:
            most = MAX_PAIRS // settings.depth
            raise InputError(
                f"{len(asked.query)} queries with {settings.depth} reranked documents each; send at most {most} queries"
            )
        return await worker(request, asked)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]  # without its `input`, which may be as large as the request
        where = ".".join(str(part)[:LONGEST_NAME] for part in first["loc"][1:] if first["type"] != "json_invalid")
        return JSONResponse({"detail": f"{where}: {first['msg']}" if where else first["msg"]}, 422)

    @api.exception_handler(InputError)
    async def refused(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    return api
