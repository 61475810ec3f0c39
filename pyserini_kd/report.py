"""The command `report`."""

import click

from pyserini_kd.cli import command
from pyserini_kd.evaluation.page import ReportConfig, build


@command(
    "report",
    "pyserini-kd report --qrels qrels.txt --topics topics.tsv --collection docs.jsonl --baseline run.bm25.txt run.student.txt",
    "Time per query comes from the records (.json) beside the runs and beside the runs they were made from.",
    settings=ReportConfig,
)
def main(settings: ReportConfig) -> None:
    """Show runs in one HTML page that works offline: tables, plots, and rankings side by side."""
    click.echo("\n".join(build(settings)))


if __name__ == "__main__":
    main()
