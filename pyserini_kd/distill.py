"""The command `distill`."""

import click

from pyserini_kd.cli import command
from pyserini_kd.distillation.system_config import DistillConfig


@command(
    name="distill",
    example="pyserini-kd distill --collection docs.jsonl --output mysearch",
    epilog="The folder gets models, indexes, search.yaml, report.html and commands.sh, which lists the single commands. "
    "The same command resumes after an interruption. Then: pyserini-kd search --system mysearch --query '...'",
    settings=DistillConfig,
)
def main(settings: DistillConfig) -> None:
    """Turn a collection into a small, fast search system: make queries, teach, train, index, choose and report."""
    from pyserini_kd.distillation import distilling

    distilling.run(settings, click.echo)


if __name__ == "__main__":
    main()
