"""The command `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import click
from pydantic import Field, model_validator

from pyserini_kd.cli import command
from pyserini_kd.evaluation import significance
from pyserini_kd.evaluation.measures import PRESETS
from pyserini_kd.evaluation.run_files import DisagreementError, RunFiles, evaluate_files
from pyserini_kd.evaluation.summary import check_per_query
from pyserini_kd.storage.records import refuse_existing_run
from pyserini_kd.storage.settings import option


class Settings(RunFiles):
    """The options of `evaluate`."""

    samples: Annotated[int, Field(ge=1), option("--samples", help="Of the bootstrap and randomisation.")] = significance.SAMPLES
    seed: Annotated[int, Field(ge=0), option("--seed", help="Of the bootstrap and randomisation.")] = significance.SEED
    per_query: Annotated[
        Path | None, option("--per-query", metavar="FILE", help="Write each query's values: .csv, .parquet.")
    ] = None
    overwrite: Annotated[bool, option("--overwrite", help="Replace the --per-query file if it exists.")] = False
    latency: Annotated[bool, option("--latency", help="Add ms/query, from the records (.json) beside the runs.")] = False
    engine: Annotated[
        Literal["auto", "trectools", "fast"], option("--engine", help="auto is trectools where the run is small.")
    ] = "auto"
    cross_check: Annotated[
        bool, option("--cross-check", help="Fail where a value is further than 1e-6 from pytrec_eval's.")
    ] = False
    output_format: Annotated[
        Literal["table", "markdown", "latex", "csv", "json"], option("--format", help="What to print.")
    ] = "table"

    @model_validator(mode="after")
    def output_is_free(self) -> Self:
        """The file for the values of each query can be written."""
        if self.per_query is not None:
            check_per_query(self.per_query)
            refuse_existing_run(self.per_query, self.overwrite)
        return self


@command(
    "evaluate",
    "evaluate --qrels qrels.dl19.txt --preset dl19 --baseline run.bm25.txt run.student.txt",
    "\b\nMeasures: nDCG@k RR[@k] AP[@k] P@k R@k Rprec Bpref RBP(p=0.8)[@k] Judged@k Success@k; binary ones count\n"
    "relevance from 1, or from 2 as in AP(rel=2), RR(rel=2)@10. Presets: "
    + "".join(f"\n  {name}: {' '.join(preset.measures)}" for name, preset in PRESETS.items()),
    settings=Settings,
)
def main(settings: Settings) -> None:
    """Measure runs against relevance judgements, as trec_eval -c does; say where the numbers may mislead."""
    try:
        report = evaluate_files(
            settings,
            samples=settings.samples,
            seed=settings.seed,
            engine=settings.engine,
            cross_check=settings.cross_check,
            with_latency=settings.latency,
            per_query=settings.per_query,
            overwrite=settings.overwrite,
        )
    except DisagreementError as error:
        raise click.ClickException(str(error)) from error
    click.echo(report.shown(settings.output_format))


if __name__ == "__main__":
    main()
