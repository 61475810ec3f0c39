"""The warm search service: what `search` does, over HTTP, with everything loaded once. The API itself is in `service.py`."""

from __future__ import annotations

import functools
import socket
from typing import Annotated

import click
from pydantic import Field

from pyserini_kd.cli import command
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.search import embedded_index
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.settings import option


class ServeSettings(SystemSettings):
    """What is served, and where."""

    host: Annotated[str, option("--host", help="Address to listen on; any but loopback lets others in, unencrypted.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Field(ge=0, le=65535), option("--port", help="Port to listen on; 0 takes a free one.")] = 8080


@command(
    name="serve",
    example="pyserini-kd serve --encoder student --port 8080",
    epilog="""\b
Ask:  curl 'http://127.0.0.1:8080/search?query=merge+two+sorted+arrays&hits=5&docs=true'
      curl http://127.0.0.1:8080/search --json '{"query": ["sort an array", "draw a line"], "hits": 3}'
      curl http://127.0.0.1:8080/health""",
    settings=ServeSettings,
)
def main(settings: ServeSettings) -> None:
    """Answer searches over HTTP (JSON) from memory, as the command `search` would; Ctrl-C ends it."""
    listener = _bind(settings.host, settings.port)
    if not settings.index:
        encoder = "bm25" if settings.is_sparse else settings.encoder
        settings = settings.but(index=(embedded_index(encoder, prepare=False),))
    from pyserini_kd.retrieval import service
    from pyserini_kd.retrieval.system import System

    if settings.rerank and settings.depth > service.MAX_PAIRS:
        raise InputError(f"{settings.depth}: at most {service.MAX_PAIRS} documents are reranked for a request", "depth")
    system = System.open(settings, texts=True)
    import uvicorn
    from tqdm import tqdm

    tqdm.__init__ = functools.partialmethod(tqdm.__init__, delay=3600)  # no bar a request
    listener.listen()
    address, port = listener.getsockname()[:2]
    click.echo(f"http://{f'[{address}]' if ':' in address else address}:{port}/search?query=")
    uvicorn.Server(service.config(service.app(system))).run(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    """A socket bound before anything is loaded, so that a port in use is known at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named: else asyncio leaves Nagle's delay on
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: {error.strerror}") from error
    return listener


if __name__ == "__main__":
    main()
