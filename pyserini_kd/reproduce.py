"""The command `reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import click
from pydantic import model_validator

from pyserini_kd.cli import command
from pyserini_kd.evaluation import experiments
from pyserini_kd.storage import settings as shared
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.settings import option


class Settings(shared.Settings):
    """The options of `reproduce`."""

    list_them: Annotated[bool, option("--list", help="Print the conditions and stop.")] = False
    names: Annotated[
        tuple[str, ...], option("--condition", metavar="NAME", help="Run this one; may be given several times.")
    ] = ()
    run_all: Annotated[bool, option("--all", help="Run all whose needs are met.")] = False
    dry_run: Annotated[bool, option("--dry-run", help="Print the commands, run nothing.")] = False
    data: Annotated[Path | None, option("--data", metavar="DIRECTORY", help="Folder of real collections.")] = None
    directory: Annotated[Path | None, option("--directory", help="Where indexes and runs go [default: runs/reproduce].")] = None
    matrix: Annotated[Path | None, option("--matrix", help="Another matrix than the package's.")] = None
    style: Annotated[Literal["table", "markdown"], option("--format", help="What to print.")] = "table"

    @model_validator(mode="after")
    def rules(self) -> Self:
        """One thing is asked for; the data are there."""
        if self.list_them + bool(self.names) + self.run_all != 1:
            raise InputError("give one of --list, --condition NAME and --all")
        if self.data and not self.data.is_dir():
            raise InputError(f"folder {self.data} does not exist", "data")
        return self


@command(
    "reproduce",
    "pyserini-kd reproduce --condition bm25-scifact --data ~/collections",
    "Under --data are expected: cacm/, beir/scifact/, msmarco-dl19/, msmarco-passage/ (the matrix, reproduce.yaml in the "
    "package, says which files). Exit code 1 if anything failed; what is off or skipped is no failure.",
    settings=Settings,
)
def main(settings: Settings) -> None:
    """Run known experiments again and compare the measures with what is expected."""
    conditions = experiments.read_matrix(settings.matrix or experiments.MATRIX)
    if settings.names:
        conditions = experiments.choose(conditions, settings.names)
    places = experiments.places_of(settings.data, settings.directory)
    if settings.list_them:
        click.echo(experiments.listing(conditions, settings.style))
    elif settings.dry_run:
        click.echo("\n".join(experiments.script(conditions, places)))
    else:
        outcomes = experiments.reproduce(conditions, places)
        click.echo(experiments.results(conditions, outcomes, settings.style))
        click.get_current_context().exit(any(outcome.verdict == "FAIL" for outcome in outcomes))


if __name__ == "__main__":
    main()
