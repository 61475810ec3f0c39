"""The warm search service: what `search` does, over HTTP, with everything loaded once. The API itself is in `service.py`."""

import click

from pyserini_kd.cli import command
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.storage.settings import option


class ServeSettings(SystemSettings):
    """What is served, and where."""

    host: str = option("--host", "127.0.0.1", "Address to listen on; any but loopback lets others in, unencrypted.")
    port: int = option("--port", 8080, "Port to listen on; 0 takes a free one.", ge=0, le=65535)


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
    from pyserini_kd.retrieval import service
    from pyserini_kd.retrieval.search_files import embedded_index

    listener = service.bind(settings.host, settings.port)
    if not settings.index:
        settings = settings.but(index=(embedded_index(settings),))
    service.serve(settings, listener, ready=click.echo)


if __name__ == "__main__":
    main()
