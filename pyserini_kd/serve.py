"""The command `serve`: search over HTTP, with everything loaded once. `service.py` has the API."""

import click

from pyserini_kd.cli import command
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.storage.settings import option


class ServeSettings(SystemSettings):
    """The served system and its address."""

    host: str = option(
        "--host", "127.0.0.1", "Address to listen on. A non-loopback address accepts other machines, unencrypted."
    )
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
    """Serve search over HTTP (JSON), with the same results as `search`. Ctrl-C stops the service."""
    from pyserini_kd.retrieval import service
    from pyserini_kd.retrieval.search_files import embedded_index

    listener = service.bind(settings.host, settings.port)
    if not settings.index:
        settings = settings.but(index=(embedded_index(settings),))
    service.serve(settings, listener, ready=click.echo)


if __name__ == "__main__":
    main()
