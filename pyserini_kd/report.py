"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import click
from pydantic import model_validator

from pyserini_kd.cli import command
from pyserini_kd.evaluation import page
from pyserini_kd.evaluation.run_files import RunFiles
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import refuse_existing
from pyserini_kd.storage.settings import option


class Settings(RunFiles):
    """The options of `report`."""

    topics: Annotated[
        str | None, option("--topics", help="Query texts: a file, ir_datasets:<id>, pydocs:test, or a Pyserini set.")
    ] = None
    collection: Annotated[str | None, option("--collection", help="Document texts: a path, ir_datasets:<id> or pydocs.")] = None
    index: Annotated[
        str | None,
        option("--index", help="Document texts from an index instead (Lucene, prebuilt name, or a dense index of ours)."),
    ] = None
    training: Annotated[
        tuple[str, ...], option("--training", metavar="FILE", help="A training.json, for its loss curves; may be repeated.")
    ] = ()
    output: Annotated[Path, option("--output", help="Page to write.")] = Path("report.html")
    figures_folder: Annotated[Path | None, option("--figures", help="Also write figures for a paper here.")] = None
    figure_format: Annotated[Literal["pdf", "svg", "png"], option("--figure-format", help="Format of the figures.")] = "pdf"
    overwrite: Annotated[bool, option("--overwrite", help="Replace the page and the figures if they exist.")] = False

    @model_validator(mode="after")
    def outputs_are_free(self) -> Self:
        """The page can be written; texts have one source."""
        refuse_existing(self.output, self.overwrite)
        if self.collection and self.index:
            raise InputError("texts come from a collection or from an index, not from both", "index")
        return self


@command(
    "report",
    "pyserini-kd report --qrels qrels.txt --topics topics.tsv --collection docs.jsonl --baseline run.bm25.txt run.student.txt",
    "Time per query comes from the records (.json) beside the runs, and from those of runs that they were made from.",
    settings=Settings,
)
def main(settings: Settings) -> None:
    """Show runs in one HTML page that needs no network: tables, plots, and rankings side by side."""
    more = settings.model_dump(include=set(Settings.model_fields) - set(RunFiles.model_fields))
    for line in page.build(settings, more.pop("output"), **more):
        click.echo(line)


if __name__ == "__main__":
    main()
