"""The command `teach`."""

import click

from pyserini_kd.cli import command
from pyserini_kd.distillation.teaching_files import TeachConfig, teach_files


@command(
    name="teach",
    example="pyserini-kd teach --candidates candidates.jsonl --collection docs.jsonl --topics train.tsv "
    "--teacher models/teacher --output scores.parquet",
    epilog="A weight follows @: `--teacher models/bi-encoder@40 --teacher-run runs/bm25.txt@0.4`. The ensemble's score is the "
    "mean of weight x raw score. A teacher with scores in [-1, 1] (cosine) needs a weight or `--scale`. `--scale spread` "
    "divides the scores of each teacher by the mean standard deviation of the scores of a query. The same command resumes "
    "after an interruption.",
    settings=TeachConfig,
)
def main(settings: TeachConfig) -> None:
    """Score candidates with one teacher or an ensemble."""
    teach_files(settings, click.echo)


if __name__ == "__main__":
    main()
