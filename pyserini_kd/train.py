"""The command `train`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from pyserini_kd.cli import Runs, command
from pyserini_kd.data import passages, sources
from pyserini_kd.distillation import recipes
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.student import (
    parse_layers,
)
from pyserini_kd.distillation.training import begin_training, finish_training, only_one, tiny_is_zero, unit_of
from pyserini_kd.distillation.training_data import Given, data_folder, digest, gather
from pyserini_kd.distillation.validation import read_dev
from pyserini_kd.evaluation.measures import Measure
from pyserini_kd.models import checkpoint_settings
from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import refuse_existing


@command(
    name="train",
    example="pyserini-kd train --recipe margin-mse --collection docs.jsonl --topics train.tsv --candidates candidates.jsonl "
    "--scores scores.parquet --init minilm --output models/student",
    epilog="Layers of a live teacher: `--recipe simplified-tinybert --teacher models/ranker`. Plain text alone: `--recipe "
    "lm-distill --collection docs.jsonl --lm-teacher bert-base --init random:4/312`. On two processes: `torchrun "
    "--nproc-per-node 2 -m pyserini_kd.train ...`.",
)
@click.option("--list", "list_recipes", is_flag=True, help="Print the recipes and stop.")
@click.option("--recipe", help="Training procedure; --list shows them.")
@click.option("--collection", help="Collection: a path, ir_datasets:<id> or pydocs.")
@click.option("--topics", help="Training topics: a file, ir_datasets:<id> or pydocs:train.")
@click.option("--candidates", type=click.Path(path_type=Path), help="Groups or triples, from mine.")
@click.option("--segment", metavar="WORDS:STRIDE", help="Candidates, and plain texts, are passages cut like this, as in mine.")
@click.option("--scores", type=click.Path(path_type=Path), help="Teacher scores: a store from teach, or a 5-column file.")
@click.option("--teacher", help="Live ranker: for layer losses, and for soft losses where there is no --scores.")
@click.option("--lm-teacher", help="Language model to distil on the collection's plain text.")
@click.option("--teacher-dropout", is_flag=True, help="Leave the live teacher's dropout on, as TinyBERT's script does.")
@click.option(
    "--loss",
    "losses",
    cls=Runs,
    multiple=True,
    metavar="NAME=WEIGHT",
    help=f"Change the recipe; NAME=none drops a loss, none drops all. Of {', '.join(recipes.LOSSES)}.",
)
@click.option("--start-stage", default=1, type=click.IntRange(1), help="First stage; --init has been through those before.")
@click.option(
    "--temperature", default=1.0, type=click.FloatRange(0, min_open=True), help="Of soft_ranknet, soft_ce and _kl, listwise_kl."
)
@click.option(
    "--student", "architecture", help=f"One of {', '.join(checkpoint_settings.ARCHITECTURES)} [default: the recipe's]."
)
@click.option("--init", help="What the student starts from: name, folder, hub id, random:LAYERS/WIDTH [default: minilm].")
@click.option("--layers", help="Layers kept of it, e.g. 0,3,5 [default: all].")
@click.option(
    "--setting",
    "settings",
    cls=Runs,
    multiple=True,
    metavar="NAME=NUMBER",
    help="Of the student's architecture: masks=8, width=128 (colbert), join_layer=3 (prettr), layers=2 (tk).",
)
@click.option("--glove", type=click.Path(), help="GloVe text file for a tk student [default: the input embeddings of --init].")
@click.option("--pooling", type=click.Choice(["cls", "mean"]), help="[default: from the checkpoint]")
@click.option("--l2-norm/--no-l2-norm", default=None, help="[default: from the recipe]")
@click.option("--max-query-length", "max_query_len", type=click.IntRange(3), help="Tokens [default: from the checkpoint].")
@click.option("--max-length", "max_doc_len", type=click.IntRange(3), help="Tokens a document or pair [default: checkpoint].")
@click.option("--train-length", "train_len", type=click.IntRange(3), help="Tokens in training [default: --max-length].")
@click.option("--qrels", help="Without --candidates: their positives, with the other queries of a batch as negatives.")
@click.option("--dev-topics", help="Dev topics: the best checkpoint on them is kept.")
@click.option("--dev-qrels", help="Their judgements.")
@click.option("--dev-run", type=click.Path(path_type=Path), help="First-stage run of them; its top is reranked.")
@click.option("--dev-depth", default=20, type=click.IntRange(1), help="Documents a dev query taken of --dev-run.")
@click.option(
    "--dev-retrieval",
    is_flag=True,
    help="A bert_dot searches those of all dev queries and the judged ones, instead; without --dev-run, the collection.",
)
@click.option("--metric", default="nDCG@10", help="Measure on dev topics.")
@click.option("--eval-steps", default=100, type=click.IntRange(1), help="Steps between measures on dev topics.")
@click.option("--patience", type=click.IntRange(1), help="Stop after so many measures without a better one.")
@click.option("--score-scale", type=click.FloatRange(0, min_open=True), help="[default: from the recipe]")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Of every stage [default: from the recipe].")
@click.option("--schedule", type=click.Choice(list(recipes.SCHEDULES)), help="Of the learning rate [default: the recipe's].")
@click.option("--epochs", type=click.FloatRange(0, min_open=True), help="Of every stage [default: from the recipe].")
@click.option("--max-steps", type=click.IntRange(1), help="Optimiser steps of every stage, instead of --epochs.")
@click.option("--batch-size", "--batch", default=32, type=click.IntRange(1), help="Queries (groups) a batch.")
@click.option("--length-buckets", is_flag=True, help="Triples of like length in a batch (quicker; another order).")
@click.option("--accumulate", default=1, type=click.IntRange(1), help="Batches an optimiser step.")
@click.option("--warmup", type=click.FloatRange(0, 1), help="Share of steps [default: from the recipe].")
@click.option("--weight-decay", type=click.FloatRange(0), help="[default: from the recipe]")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), help="0 takes 10 to 25% less time [default: as saved].")
@click.option(
    "--match-scale/--no-match-scale",
    default=None,
    help="Bring a bert_dot or colbert to the teacher's scale first, which no paper does [default: the recipe's].",
)
@click.option("--max-grad-norm", default=1.0, type=click.FloatRange(0, min_open=True), help="Gradients are clipped to it.")
@click.option("--save-steps", default=200, type=click.IntRange(1), help="Steps between states that a crash goes back to.")
@click.option("--seed", default=42, type=click.IntRange(0), help="Seed of dropout and batch order.")
@click.option("--precision", default="auto", type=click.Choice(["auto", "fp32", "bf16"]), help="Arithmetic.")
@click.option("--device", default="cpu", help="cpu, cuda or cuda:N.")
@click.option("--output", type=click.Path(path_type=Path), help="Checkpoint folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
def main(
    list_recipes: bool,
    recipe: str | None,
    collection: str | None,
    topics: str | None,
    candidates: Path | None,
    segment: str | None,
    scores: Path | None,
    qrels: str | None,
    dev_topics: str | None,
    dev_qrels: str | None,
    dev_run: Path | None,
    dev_depth: int,
    dev_retrieval: bool,
    layers: str | None,
    output: Path | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Train a student by one of the papers' procedures."""
    if list_recipes:
        click.echo("\n\n".join(known.describe() for known in recipes.RECIPES.values()))
        return
    required = {"--recipe": recipe, "--collection": collection, "--output": output}
    absent = [flag for flag, value in required.items() if value is None]
    if recipe is None or collection is None or output is None:
        raise click.UsageError(f"Missing option {', '.join(absent)}.")
    chosen = recipes.with_losses(recipes.get(recipe), options["losses"])
    options["architecture"] = options["architecture"] or chosen.student
    options["init"] = options["init"] or chosen.init(options["start_stage"])
    config = TrainConfig(recipe=recipe, layers=parse_layers(layers), **options)
    stages = [stage for _, stage in config.stages(chosen)]
    on_candidates = any(not stage.text for stage in stages)
    if on_candidates and topics is None:
        raise click.UsageError("Missing option --topics.")
    refuse_existing(output, overwrite, folder=True)
    if config.architecture not in checkpoint_settings.ARCHITECTURES:
        raise InputError(f"unknown student {config.architecture!r}; one of {', '.join(checkpoint_settings.ARCHITECTURES)}")
    Measure.parse(config.metric)
    if candidates and qrels:
        raise InputError("--qrels makes candidates where none are given; --candidates have their labels")
    if candidates and scores and not any(stage.needs_scores for stage in stages):
        raise InputError(f"--scores: recipe {recipe}, as asked for, learns nothing from a ranker")
    if segment:
        passages.parse(segment)
        if on_candidates and not candidates:
            raise InputError("--segment says how the passages of --candidates were cut; mine them first (mine --segment)")
    given = Given(collection, topics, candidates, scores, qrels, segment)
    has_dev = any(value is not None for value in (dev_topics, dev_qrels, dev_run)) or dev_retrieval
    data = given._asdict() | {"glove": config.glove, "dev_topics": dev_topics, "dev_qrels": dev_qrels, "dev_run": dev_run}
    with tiny_is_zero(), only_one(output):
        begun = begin_training(
            config, output, scored=scores is not None, dev=has_dev, retrieves=dev_retrieval, overwrite=overwrite
        )
        dev = read_dev(dev_topics, dev_qrels, dev_run, dev_depth, collection, segment, dev_retrieval)
        with gather(given, stages, config, output) as found:
            known: dict[str, Any] = {name: digest(name, value) for name, value in data.items() if value is not None}
            known |= {"dev_depth": dev_depth, "dev_retrieval": dev_retrieval} if dev else {}
            if sources.is_named(collection):  # of other texts another time
                known["texts_sha256"] = sha256(*sorted(data_folder(output).glob("*/texts")))
            finish_training(begun, found._replace(dev=dev), known, time.monotonic())
    what = [f"{len(found.groups)} {unit_of(found.groups)}"] if found.groups else []
    what += [f"{len(found.texts)} plain texts"] if found.texts else []
    if os.environ.get("RANK", "0") == "0":
        click.echo(f"{output}: trained on {' and '.join(what)}")


if __name__ == "__main__":
    main()
