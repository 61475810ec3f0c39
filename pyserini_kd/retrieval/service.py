"""The HTTP JSON API of `serve`: bounded requests, answered in batches by one thread that owns the models.

Requests that arrive while the thread works wait, and are then searched together. So no request waits for others to come, and a
busy service encodes and searches many queries at once.

GET and POST `/search` take the fields of `Asked`; `/v1/...` are Pyserini's routes. `/health` describes the system, and `/docs`
the interface. Invalid and too large requests get a 4xx and one line under `detail`. If the queue is full, requests get 429;
disconnected clients are skipped. Queries are not logged or stored. There is no protection from deliberately slow clients: put a
public service behind a reverse proxy.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
import functools
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tqdm import tqdm

import pyserini_kd
from pyserini_kd.data import types
from pyserini_kd.data.runs import Hits
from pyserini_kd.models import engine, hardware
from pyserini_kd.retrieval import api_page, pyserini_routes
from pyserini_kd.retrieval.questions import Asked, Question, one_line
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.retrieval.system import System
from pyserini_kd.storage.errors import InputError, NotFound

MAX_PAIRS = 10_000  # documents reranked per request
MAX_BODY = 1 << 20  # bytes
MAX_BODIES = 64 << 20  # bytes of all requests that are being received
MAX_WAITING = 128  # requests
BATCH = 64  # queries searched together
BATCH_PAIRS = 1000  # documents reranked together


def answers(system: System, requests: Sequence[Question]) -> list[bytes | InputError]:
    """The JSON answer of each request, or its error: the hits of its queries, in their order, as `search` finds them.

    All queries are searched together (once for each choice of BM25's parameters), with the most hits that a request asks for;
    the others take the top of the same lists.
    """
    found: dict[int, list[Hits]] = {}
    for bm25 in {asked.bm25: None for asked in requests}:
        settings = system.settings.but(k1=bm25[0], b=bm25[1]) if bm25 else system.settings
        together = [asked for asked in requests if asked.bm25 == bm25]
        found |= _search(dataclasses.replace(system, settings=settings), together)
    return [_answer(system, asked, found[id(asked)]) for asked in requests]


def _search(system: System, requests: Sequence[Question]) -> dict[int, list[Hits]]:
    """Map the identity of each request to the hits of its queries."""
    queries = [types.Query(str(row), text) for row, text in enumerate(text for asked in requests for text in asked.texts)]
    run = system.search(queries, max(asked.hits for asked in requests), one_query=True)[0] if queries else {}
    found = (run[query.query_id] for query in queries)
    return {id(asked): [next(found) for _ in asked.texts] for asked in requests}


def _answer(system: System, asked: Question, found: Sequence[Hits]) -> bytes | InputError:
    try:
        return asked.answer(system, found)
    except InputError as error:
        return error


Waiting = tuple[Callable[[], Awaitable[bool]], Question, asyncio.Future[bytes | None]]
"""A function that says whether the client has left; the request; and the future answer, None if the client has left."""


class Batcher:
    """One thread that answers waiting requests together, in their order; at most MAX_WAITING requests wait."""

    def __init__(self, system: System) -> None:
        self.system, settings = system, system.settings
        self.most = max(1, min(BATCH, BATCH_PAIRS // settings.depth)) if settings.rerank else BATCH  # queries in a batch
        prepare = functools.partial(hardware.use_threads, settings.threads) if settings.threads else None
        self.pool = concurrent.futures.ThreadPoolExecutor(1, initializer=prepare)  # FAISS has a number of threads per thread
        self.queue: collections.deque[Waiting] = collections.deque()
        self.waiting = 0  # only the event loop changes it
        self.running: asyncio.Task[None] | None = None

    async def __call__(self, request: Request, asked: Question) -> Response:
        """Answer one HTTP request."""
        body = await self.ask(asked, request.is_disconnected)
        return Response(status_code=499) if body is None else Response(body, media_type="application/json")

    async def ask(self, asked: Question, gone: Callable[[], Awaitable[bool]]) -> bytes | None:
        """Return the answer as JSON, or None if the client has left.

        Raises:
            HTTPException: with status 429, if too many requests wait.
        """
        if self.waiting >= MAX_WAITING:
            raise HTTPException(429, f"{MAX_WAITING} requests are waiting; try again later", headers={"Retry-After": "1"})
        self.waiting += 1
        await gone()  # uvicorn reads on from here, and so sees later that the client left
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes | None] = loop.create_future()
        self.queue.append((gone, asked, future))
        if self.running is None or self.running.done():
            self.running = loop.create_task(self._work())
        try:
            return await future
        finally:
            self.waiting -= 1

    async def _work(self) -> None:
        """Answer batches until no request waits."""
        while self.queue:
            batch = []
            for gone, asked, future in self._next():
                if await gone():
                    future.set_result(None)
                else:
                    batch.append((asked, future))
            if batch:
                await self._answer(batch)

    def _next(self) -> list[Waiting]:
        """Requests with at most `most` queries in all, or one request."""
        taken = [self.queue.popleft()]
        size = len(taken[0][1].texts)
        while self.queue and size + len(self.queue[0][1].texts) <= self.most:
            taken.append(self.queue.popleft())
            size += len(taken[-1][1].texts)
        return taken

    async def _answer(self, batch: Sequence[tuple[Question, asyncio.Future[bytes | None]]]) -> None:
        try:
            asked = [one for one, _ in batch]
            bodies = await asyncio.get_running_loop().run_in_executor(self.pool, lambda: answers(self.system, asked))
        except Exception as error:  # each waiting request reports it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), body in zip(batch, bodies, strict=True):
            if not future.done():
                future.set_exception(body) if isinstance(body, InputError) else future.set_result(body)


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
    api = app(open_system(settings))
    listener.listen()
    address, port = listener.getsockname()[:2]
    ready(f"http://{f'[{address}]' if ':' in address else address}:{port}/search?query=")
    uvicorn.Server(config(api)).run(sockets=[listener])


def open_system(settings: SystemSettings) -> System:
    """Load the system for any number of requests. InputError if a request would rerank too many documents."""
    if settings.rerank and settings.depth > MAX_PAIRS:
        raise InputError(f"{settings.depth}: at most {MAX_PAIRS} documents are reranked for a request", "depth")
    system = System.open(settings, texts=True)
    logging.getLogger(engine.__name__).setLevel(logging.WARNING)  # no line per request whose query is cut
    tqdm.__init__ = functools.partialmethod(tqdm.__init__, delay=3600)  # no progress bar per request
    return system


def config(api: FastAPI) -> uvicorn.Config:
    """Configuration of uvicorn, without a log of requests."""
    return uvicorn.Config(api, log_config=None, log_level="warning", access_log=False, backlog=128, http="h11")


def app(system: System) -> FastAPI:
    """The ASGI application for an open system."""
    settings, worker = system.settings, Batcher(system)
    api = FastAPI(title="pyserini-kd", version=pyserini_kd.__version__, docs_url=None, redoc_url=None)
    api.add_middleware(BoundedBody)
    pyserini_routes.add_routes(api, system, worker)
    _add_refusals(api)

    @api.get("/health", summary="What is served, and how many requests wait")
    async def health() -> dict[str, object]:
        return {"status": "ok", "version": pyserini_kd.__version__, "waiting": worker.waiting} | served(settings)

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

    return api


def served(settings: SystemSettings) -> dict[str, object]:
    """Describe the served system: its name, its indexes and its models."""
    parts = {name: getattr(settings, name) for name in ("encoder", "sparse_index", "rerank", "rerank_index")}
    return {"name": pyserini_routes.name_of(settings), **parts, "index": settings.index[0], "more_indexes": settings.index[1:]}


def _add_refusals(api: FastAPI) -> None:
    """Answer errors with one line under `detail`."""

    def refusal(request: Request, status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """As in Pyserini, its routes have the line under `error` too, and status 400 for wrong parameters."""
        said = {"detail": message}
        if request.url.path.startswith(f"/{pyserini_routes.API}/"):
            said, status = said | {"error": message}, 400 if status == 422 else status
        return JSONResponse(said, status, headers)

    @api.exception_handler(StarletteHTTPException)
    async def failed(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return refusal(request, error.status_code, error.detail, error.headers)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]  # without its `input`, which may be as large as the request
        return refusal(request, 422, one_line(first["loc"][1:] if first["type"] != "json_invalid" else (), first["msg"]))

    @api.exception_handler(InputError)
    async def refused(request: Request, error: InputError) -> JSONResponse:
        return refusal(request, 404 if isinstance(error, NotFound) else 422, str(error))
