"""The command `report`."""

import click

from pyserini_kd.cli import command
from pyserini_kd.evaluation.page import ReportConfig, build


@command(
    "report",
    "pyserini-kd report --qrels qrels.txt --topics topics.tsv --collection docs.jsonl --baseline run.bm25.txt run.student.txt",
    "Time per query comes from the records (.json) beside the runs, and from those of runs that they were made from.",
    settings=ReportConfig,
)
def main(settings: ReportConfig) -> None:
    """Show runs in one HTML page that needs no network: tables, plots, and rankings side by side."""
    click.echo("\n".join(build(settings)))


if __name__ == "__main__":
    main()
