"""The command `tune`."""

import click

from pyserini_kd.cli import command
from pyserini_kd.evaluation.tuning import TuneConfig, tune_files


@command(
    "tune",
    "tune --runs run.bm25.dev.txt run.student.dev.txt --qrels qrels.dev.txt --method interpolation --measure RR@10",
    "Expect the gain on unseen folds for other topics: each topic is measured with the setting chosen without its fold.",
    settings=TuneConfig,
)
def main(settings: TuneConfig) -> None:
    """Tune a fusion on dev topics, cross-validated."""
    click.echo(tune_files(settings))


if __name__ == "__main__":
    main()
