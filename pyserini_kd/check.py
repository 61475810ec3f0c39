"""The command `check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click
from pydantic import Field

from pyserini_kd.cli import command
from pyserini_kd.evaluation.submission import LISTED, Format, check_file
from pyserini_kd.storage import settings as shared
from pyserini_kd.storage.settings import option


class Settings(shared.Settings):
    """The options of `check`."""

    run: Annotated[Path, option("RUN")]
    topics: Annotated[str, option("--topics", help="Those to answer: a file, ir_datasets:<id>, pydocs:SPLIT, a Pyserini set.")]
    max_hits: Annotated[int, Field(ge=1), option("--max-hits", help="Hits a topic may have.")] = 1000
    qrels: Annotated[
        str | None, option("--qrels", help="Also say how much of the run is judged: a file, ir_datasets:<id> or pydocs:SPLIT.")
    ] = None
    collection: Annotated[
        str | None, option("--collection", help="Also check that its documents exist: a path, ir_datasets:<id> or pydocs.")
    ] = None
    output_format: Annotated[Format, option("--format", help="Where it is to go.")] = "trec"
    listed: Annotated[int, Field(ge=1), option("--show", help="Faults of a kind to list; the rest is counted.")] = LISTED
    fixed: Annotated[Path | None, option("--fix", metavar="OUT", help="Write a mended copy.")] = None
    overwrite: Annotated[bool, option("--overwrite", help="Replace OUT if it exists.")] = False


@command(
    "check",
    "pyserini-kd check runs/run.msmarco.student.dl19.txt --topics dl19-passage --collection collection.tsv",
    "Exit code 0 if the run (with --fix: the copy) is fit, 1 if not, 2 for wrong input. --fix sorts by score, numbers ranks "
    "again, cuts at --max-hits, drops unknown topics and repeated lines, mends the tag; it never invents or chooses a score.",
    settings=Settings,
)
def main(settings: Settings) -> None:
    """Check that a run is fit for submission."""
    verdict = check_file(settings.run, **settings.model_dump(exclude={"run"}))
    for line in verdict.lines:
        click.echo(line)
    if verdict.refused:
        click.echo(verdict.refused, err=True)
    click.get_current_context().exit(0 if verdict.fit else 1)


if __name__ == "__main__":
    main()
