"""The command `serve`: what `search` does, over HTTP, with everything loaded once."""

from __future__ import annotations

from typing import Any

import click

from pyserini_kd import search
from pyserini_kd.cli import command
from pyserini_kd.retrieval import search_settings


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
    from pyserini_kd.retrieval import service

    listener = service.bind(host, port)
    service.serve(search.with_defaults(settings), listener, ready=click.echo)


if __name__ == "__main__":
    main()
