"""The program `pyserini-kd`. It imports the module of a command only when the command is used."""

import importlib

import click

from pyserini_kd import __version__

COMMANDS = {
    "distill": "Turn a collection into a search system with small students.",
    "demo": "Train, index, search and measure on the embedded collection (about 20 minutes).",
    "search": "Search (sparse, dense or hybrid), rerank, write a TREC run.",
    "serve": "Serve searches over HTTP or MCP.",
    "index": "Index a collection: BM25 or dense.",
    "queries": "Make training queries from documents.",
    "mine": "Mine negatives for training.",
    "teach": "Score candidates with teachers.",
    "train": "Train a student with a published recipe.",
    "export": "Export a checkpoint to OpenVINO, also in int8.",
    "rerank": "Rerank a run.",
    "fuse": "Fuse runs.",
    "tune": "Tune a fusion on dev topics with cross-validation.",
    "evaluate": "Evaluate runs.",
    "report": "Compare runs in an HTML page and in figures.",
    "check": "Check a run before submission.",
    "reproduce": "Repeat known experiments and compare the measures.",
    "pydocs": "Write the embedded collection to files.",
    "doctor": "Check the installation on this machine.",
}


class Lazy(click.Group):
    """A group that imports the module of a command when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the order of typical use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The click command `main` of the module `pyserini_kd.NAME`."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"pyserini_kd.{cmd_name}").main
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; Ctrl-C during its import gives exit code 130, as Ctrl-C later does."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]}, epilog="Example: pyserini-kd search --help")
@click.version_option(__version__)
def main() -> None:
    """Distilled BERT rankers for Pyserini."""


if __name__ == "__main__":
    main(prog_name="pyserini-kd")
