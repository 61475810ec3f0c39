"""The command `train`."""

import os

import click

from pyserini_kd.cli import command
from pyserini_kd.distillation import recipes
from pyserini_kd.distillation.train_settings import TrainSettings


def _list_recipes(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the recipes and exit."""
    if wanted:
        click.echo("\n\n".join(known.describe() for known in recipes.RECIPES.values()))
        context.exit()


@command(
    name="train",
    example="pyserini-kd train --recipe margin-mse --collection docs.jsonl --topics train.tsv --candidates candidates.jsonl "
    "--scores scores.parquet --init minilm --output models/student",
    epilog="With layers of a live teacher: `--recipe simplified-tinybert --teacher models/ranker`. On plain text: `--recipe "
    "lm-distill --collection docs.jsonl --lm-teacher bert-base --init random:4/312`. On two processes: `torchrun "
    "--nproc-per-node 2 -m pyserini_kd.train ...`.",
    settings=TrainSettings,
)
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_recipes, help="Print the recipes and exit."
)
def main(settings: TrainSettings) -> None:
    """Train a student by a recipe from a paper."""
    from pyserini_kd.distillation import training

    what = training.train_from_files(settings)
    if os.environ.get("RANK", "0") == "0":
        click.echo(f"{settings.output}: trained on {what}")


if __name__ == "__main__":
    main()
