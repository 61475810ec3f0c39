"""The command `tune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, Self

import click
from pydantic import Field, model_validator

from pyserini_kd.cli import command
from pyserini_kd.evaluation.measures import Measure
from pyserini_kd.evaluation.tuning import Method, tune_files
from pyserini_kd.storage import settings as shared
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import refuse_existing
from pyserini_kd.storage.settings import option


class Settings(shared.Settings):
    """The options of `tune`."""

    runs: Annotated[tuple[str, ...], option("--runs", words=True, metavar="RUN...", help="Two or more runs of dev topics.")]
    qrels: Annotated[str, option("--qrels", help="Their judgements: a file, ir_datasets:<id>, or pydocs:dev.")]
    method: Annotated[Method, option("--method", help="What is tuned: alpha, rrf.k, or weights.")] = "interpolation"
    measure: Annotated[str, option("--measure", help="What to maximise.")] = "nDCG@10"
    grid: Annotated[
        tuple[float, ...], option("--grid", words=True, metavar="X...", help="Values tried [default: a grid for each method].")
    ] = ()
    norm: Annotated[Literal["none", "minmax", "sum", "zscore", "rank"], option("--norm", help="Of the scores, for wsum.")] = (
        "minmax"
    )
    folds: Annotated[int, Field(ge=2), option("--folds", help="Parts of the topics for cross-validation.")] = 5
    seed: Annotated[int, Field(ge=0), option("--seed", help="Of folds and resampling.")] = 42
    output: Annotated[Path | None, option("--output", help="Write the result as JSON.")] = None
    overwrite: Annotated[bool, option("--overwrite", help="Replace --output if it exists.")] = False

    @model_validator(mode="after")
    def rules(self) -> Self:
        """The output can be written; runs, measure and grid fit the method."""
        if self.output:
            refuse_existing(self.output, self.overwrite)
        if len(self.runs) < 2 or len({Path(path).resolve() for path in self.runs}) != len(self.runs):
            raise InputError(f"takes two or more different runs, found {' '.join(self.runs)}", "runs")
        self.only("norm", self.method == "wsum", f"is for the method wsum, not for {self.method}")
        Measure.parse(self.measure)
        what = {"interpolation": "between 0 and 1", "rrf": "whole numbers from 0", "wsum": "0 or more"}[self.method]
        top = 1 if self.method == "interpolation" else sys.float_info.max
        if not all(0 <= value <= top and (self.method != "rrf" or value.is_integer()) for value in self.grid):
            raise InputError(f"values for {self.method} must be {what}, found {' '.join(map(str, self.grid))}", "grid")
        return self


@command(
    "tune",
    "tune --runs run.bm25.dev.txt run.student.dev.txt --qrels qrels.dev.txt --method interpolation --measure RR@10",
    "The gain on unseen folds is what to expect elsewhere: each topic is measured under the setting chosen without its fold.",
    settings=Settings,
)
def main(settings: Settings) -> None:
    """Tune a fusion on dev topics, cross-validated."""
    more = settings.model_dump(exclude={"runs", "qrels", "grid", "overwrite"})
    click.echo(tune_files(settings.runs, settings.qrels, grid=settings.grid or None, **more))


if __name__ == "__main__":
    main()
