"""The command `check`."""

import click

from pyserini_kd.cli import command
from pyserini_kd.evaluation.submission import CheckConfig, check_file


@command(
    "check",
    "pyserini-kd check runs/run.msmarco.student.dl19.txt --topics dl19-passage --collection collection.tsv",
    "Exit code 0 if the run (with --fix: the copy) is fit, 1 if not, 2 for wrong input. --fix sorts by score, renumbers ranks, "
    "cuts at --max-hits, drops unknown topics and repeated lines, repairs the tag; it never invents or chooses a score.",
    settings=CheckConfig,
)
def main(settings: CheckConfig) -> None:
    """Check that a run is fit for submission."""
    verdict = check_file(settings)
    click.echo("\n".join(verdict.lines))
    if verdict.refused:
        click.echo(verdict.refused, err=True)
    click.get_current_context().exit(0 if verdict.fit else 1)


if __name__ == "__main__":
    main()
