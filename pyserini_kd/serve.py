"""The command `serve`: search over HTTP or MCP, with everything loaded once. `service.py` and `mcp_tools.py` have the APIs."""

from typing import Self

import click
from pydantic import model_validator

from pyserini_kd.cli import command
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.storage.settings import option


class ServeSettings(SystemSettings):
    """The served system and its address."""

    host: str = option(
        "--host", "127.0.0.1", "Address to listen on. A non-loopback address accepts other machines, unencrypted."
    )
    port: int = option("--port", 8080, "Port to listen on; 0 takes a free one.", ge=0, le=65535)
    mcp: bool = option("--mcp", False, "Serve MCP tools on stdin and stdout instead, with the names that Pyserini's have.")
    qrels: str | None = option(
        "--qrels", None, "With --mcp: judgements for get_qrels and eval_hits: a file, ir_datasets:<id> or pydocs:SPLIT."
    )

    @model_validator(mode="after")
    def serve_rules(self) -> Self:
        """InputError if settings conflict."""
        self.only("host port", not self.mcp, "is for HTTP; with `mcp` the tools are on stdin and stdout")
        self.only("qrels", self.mcp, "is for `mcp`")
        return self


@command(
    name="serve",
    example="pyserini-kd serve --encoder student --port 8080",
    epilog="""\b
Ask:  curl 'http://127.0.0.1:8080/search?query=merge+two+sorted+arrays&hits=5&docs=true'
      curl http://127.0.0.1:8080/search --json '{"query": ["sort an array", "draw a line"], "hits": 3}'
      curl 'http://127.0.0.1:8080/v1/pydocs.student/search?query=sort+an+array'  (as Pyserini's own service)
      curl http://127.0.0.1:8080/health
More: pyserini-kd serve --encoder student --mcp --qrels pydocs:test""",
    settings=ServeSettings,
)
def main(settings: ServeSettings) -> None:
    """Serve search over HTTP (JSON) or MCP, with the same results as `search`. Ctrl-C stops the service."""
    from pyserini_kd.retrieval import service
    from pyserini_kd.retrieval.search_files import embedded_index

    listener = None if settings.mcp else service.bind(settings.host, settings.port)
    if not settings.index:
        settings = settings.but(index=(embedded_index(settings),))
    if listener is not None:
        service.serve(settings, listener, ready=click.echo)
    else:
        from pyserini_kd.data import sources
        from pyserini_kd.evaluation import engines
        from pyserini_kd.retrieval import mcp_tools

        judgements = mcp_tools.Judgements(sources.qrels(settings.qrels), engines.evaluate) if settings.qrels else None
        mcp_tools.serve(settings, judgements, ready=lambda name: click.echo(f"{name}: MCP tools on stdin and stdout", err=True))


if __name__ == "__main__":
    main()
