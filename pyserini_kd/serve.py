"""The warm search service: what `search` does, over HTTP, with everything loaded once. The API itself is in `service.py`."""

from __future__ import annotations

import functools
import socket
from typing import Any

import click

from pyserini_kd import search
from pyserini_kd.cli import command
from pyserini_kd.retrieval import search_settings, system
from pyserini_kd.storage.errors import InputError


@command(
    name="serve",
    example="pyserini-kd serve --encoder student --port 8080",
    epilog="""\b
Ask:  curl 'http://127.0.0.1:8080/search?query=merge+two+sorted+arrays&hits=5&docs=true'
      curl http://127.0.0.1:8080/search --json '{"query": ["sort an array", "draw a line"], "hits": 3}'
      curl http://127.0.0.1:8080/health""",
)
@search.stage_options
@click.option("--host", default="127.0.0.1", help="Address to listen on; any but loopback lets others in, unencrypted.")
@click.option("--port", default=8080, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
@search.model_options
def main(bm25_flag: bool, fusion: str | None, host: str, port: int, **options: Any) -> None:
    """Answer searches over HTTP (JSON) from memory, as the command `search` would; Ctrl-C ends it."""
    if bm25_flag:
        options["encoder"] = "bm25"
    settings = search_settings.Settings(fusion=fusion or "rrf", query="", **options)
    search_settings.refuse_contradictions(settings, fusion)
    listener = _bind(host, port)
    settings = search.with_defaults(settings)
    from pyserini_kd.retrieval import service

    if settings.rerank and settings.depth > service.MAX_PAIRS:
        raise InputError(f"--depth {settings.depth}: at most {service.MAX_PAIRS} documents are reranked for a request")
    opened = system.open_all(settings, texts=True)
    import uvicorn
    from tqdm import tqdm

    tqdm.__init__ = functools.partialmethod(tqdm.__init__, delay=3600)  # no bar a request
    listener.listen()
    address, port = listener.getsockname()[:2]
    click.echo(f"http://{f'[{address}]' if ':' in address else address}:{port}/search?query=")
    uvicorn.Server(service.config(service.app(settings, opened))).run(sockets=[listener])


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
