"""The command `tune`."""

import click

from pyserini_kd.cli import command
from pyserini_kd.evaluation.tuning import TuneConfig, tune_files


@command(
    "tune",
    "tune --runs run.bm25.dev.txt run.student.dev.txt --qrels qrels.dev.txt --method interpolation --measure RR@10",
    "The gain on unseen folds is what to expect elsewhere: each topic is measured under the setting chosen without its fold.",
    settings=TuneConfig,
)
def main(settings: TuneConfig) -> None:
    """Tune a fusion on dev topics, cross-validated."""
    click.echo(tune_files(settings))


if __name__ == "__main__":
    main()
