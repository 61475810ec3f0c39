"""`pyserini-kd`: collects the commands, each imported only when it is asked for."""

import importlib

import click

from pyserini_kd import __version__

COMMANDS = {
    "demo": "Run the main job on the embedded default.",
    "search": "Search sparse, dense or hybrid, rerank, write a TREC run.",
    "serve": "Answer searches over HTTP from memory.",
    "index": "Index a collection: BM25 or dense.",
    "mine": "Mine negatives for training.",
    "teach": "Score candidates with teachers.",
    "train": "Train a student by one of the papers' procedures.",
    "export": "Write a checkpoint with ONNX files, also in int8.",
    "rerank": "Rerank a run.",
    "fuse": "Fuse runs.",
    "tune": "Tune a fusion on dev topics, cross-validated.",
    "evaluate": "Measure runs.",
    "report": "Show runs in one HTML page, and as figures.",
    "check": "Check that a run is fit for submission.",
    "reproduce": "Run known experiments again, compare the measures.",
    "pydocs": "Write the embedded collection out.",
    "doctor": "Say what works on this machine.",
}


class Lazy(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of a user's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The click command at the bottom of the module of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"pyserini_kd.{cmd_name}").main
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; Ctrl-C while its module is imported ends it as Ctrl-C later does."""
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
