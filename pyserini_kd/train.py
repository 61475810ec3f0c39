"""Training: runs a recipe, stage after stage, and exports a checkpoint.

Resume state lies in `NAME.partial/` beside the checkpoint while training runs; the same command goes on after a crash.
Started by `torchrun` or `accelerate launch`, several processes share each batch and learn what one would.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from pyserini_kd import passages, recipes, sources
from pyserini_kd.batches import Share, pair_length
from pyserini_kd.cli import Runs, command
from pyserini_kd.files import (
    InputError,
    alone,
    atomic_folder,
    command_line,
    difference,
    environment,
    read_json,
    refuse_existing,
    sha256,
    write_json,
)
from pyserini_kd.material import Given, data_folder, digest, gather, state_folder
from pyserini_kd.measures import Measure
from pyserini_kd.mine import Group, n_docs
from pyserini_kd.models import checkpoints
from pyserini_kd.recipes import Recipe, Stage
from pyserini_kd.stages import (
    Material,
    TrainConfig,
    check_precision,
    clock,
    one_after_another,
    precision_of,
    processes,
    quiet,
    run_stage,
    states_of,
)
from pyserini_kd.student import (
    RANDOM,
    check_start,
    fingerprint,
    is_scaled,
    load_student,
    load_teachers,
    parse_layers,
    refuse_ignored,
)
from pyserini_kd.triples import Scores, Triples
from pyserini_kd.validation import Dev, read_dev

logger = logging.getLogger(__name__)

OURS = ("stage-", "projection-", "clock.json", ".clock.json.", ".config.json.")
"""How names begin in resume state without its record, after a kill."""


@contextlib.contextmanager
def _tiny_is_zero() -> Iterator[None]:
    """Denormal numbers count as 0: a ColBERT's gradients have many, and a processor takes most of its time over them.

    To be entered before torch has threads of its own, which inherit it.
    """
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@_tiny_is_zero()
def train(
    config: TrainConfig,
    groups: Sequence[Group],
    queries: Mapping[str, str],
    docs: Mapping[str, str],
    output: str | Path,
    *,
    scores: Scores | Triples | None = None,
    texts: Sequence[str] = (),
    dev: Dev | None = None,
    data: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Train a student by a recipe and write its checkpoint; returns the folder.

    Args:
        config: the recipe and its settings.
        groups: candidates; queries with their documents and labels. Empty where every stage is on plain text.
        queries: query_id -> text.
        docs: doc_id -> text.
        output: checkpoint folder to write.
        scores: teacher scores, where the recipe needs them and no live teacher gives them; the groups themselves where they
            are the triples of a score file.
        texts: plain text, where the recipe has a stage on it.
        dev: dev topics; the checkpoint with the best `config.metric` on them is the one written.
        data: what is known of the data (names, checksums), for training.json.
        overwrite: replace the folder if it exists.

    Raises:
        InputError: the recipe does not fit the student, needs scores, a teacher or texts that are not there, or the loss is
            not finite (the last good checkpoint is then kept as `NAME.last-good`).
    """
    started = time.monotonic()
    scored, retrieves = scores is not None, dev is not None and dev.run is None
    begun = _begin(config, Path(output), scored=scored, dev=dev is not None, retrieves=retrieves, overwrite=overwrite)
    return _finish(begun, Material(groups, queries, docs, scores, texts, dev), data or {}, started)


class _Begun(NamedTuple):
    """Training that is about to start: all that can be wrong without a look at the data has been found right."""

    config: TrainConfig
    recipe: Recipe
    stages: Sequence[tuple[int, Stage]]
    scaled: bool
    model: Any
    teachers: Mapping[bool, Any]
    made_from: Mapping[str, str]
    distilled: Any
    precision: str
    share: Share
    output: Path
    overwrite: bool


def _begin(config: TrainConfig, output: Path, *, scored: bool, dev: bool, retrieves: bool, overwrite: bool) -> _Begun:
    """The student and its teachers; InputError where they, the recipe and the settings do not fit together.

    Before data are read: millions of passages take minutes. `scored`: teacher scores are given; `dev`: dev topics are;
    `retrieves`: among their whole collection.
    """
    import transformers

    from pyserini_kd import learner

    share = processes(config)
    precision = check_precision(config, share)
    refuse_existing(output, overwrite, folder=True)
    recipe = recipes.with_losses(recipes.get(config.recipe), config.losses)
    recipes.check_student(recipe, config.architecture)
    numbered = config.stages(recipe)
    stages = [stage for _, stage in numbered]
    if retrieves and config.architecture != "bert_dot":
        raise InputError(f"--dev-retrieval is for a bert_dot student; a {config.architecture} reranks --dev-run")
    _refuse_without_effect(config, stages, dev)
    _refuse_without_teacher(config, stages, scored)
    teachers = load_teachers(config, stages)
    refuse_ignored(config)
    scaled = is_scaled(config, stages)
    config = config.resolved(recipe)
    distilled = check_start(recipe, stages, config)
    made_from = {role: fingerprint(name) for role, name in
                 (("init", config.init), ("teacher", config.teacher), ("lm_teacher", config.lm_teacher)) if name}  # fmt: skip
    transformers.set_seed(config.seed)
    model = load_student(config, teachers)
    for stage in stages:
        if stage.needs_layers:
            learner.check_layers(model, teachers[stage.text], stage.losses)
            if not stage.text:  # before the stages that come first are trained
                pair_length(model, config.train_len, teachers[False])
    return _Begun(config, recipe, numbered, scaled, model, teachers, made_from, distilled, precision, share, output, overwrite)


def _finish(begun: _Begun, material: Material, data: Mapping[str, Any], started: float) -> Path:
    """Run the stages on the material and write the checkpoint; `started` as `time.monotonic()` counts."""
    config, share, output = begun.config, begun.share, begun.output
    material = material._replace(scores=_checked_scores(begun, material))
    partial = state_folder(output)
    about = {"data": dict(data), "made_from": begun.made_from, "computed in": begun.precision}
    with one_after_another(share):
        _prepare(partial, config, begun.overwrite, about)
        earlier = 0.0 if share.rank else clock(partial)
    records = []
    try:
        for number, stage in begun.stages:
            logger.info("stage %d of %d: %s", number, len(begun.recipe.stages), stage.name)
            records.append(run_stage(config, number, stage, begun.model, begun.teachers, material, partial, share))
    except FloatingPointError as error:
        with one_after_another(share):
            kept = _keep_last_good(begun.model, stage, partial, output) if share.rank == 0 else "see the first process"
        raise InputError(f"{error} (lr {stage.lr:g}); try a lower --lr; {kept}") from None
    groups = material.groups
    record = {
        "recipe": {"name": begun.recipe.name, "source": begun.recipe.source, "start": begun.recipe.start},
        "config": dataclasses.asdict(config),
        "made_from": begun.made_from,
        "distilled_lm": begun.distilled,
        "data": {_unit(groups): len(groups), "pairs": n_docs(groups), "texts": len(material.texts), **data},
        "stages": records,
        "precision": precision_of(config),
        "processes": share.world,
        "seconds": round(earlier + time.monotonic() - started, 1),
        "command": command_line(),
        **environment(),
    }
    with one_after_another(share):
        if share.rank == 0:
            _export(begun.model, begun.stages[-1][1], output, record, begun.overwrite)
            shutil.rmtree(partial)
    return output


# -------------------------------------------------------------------------------------------------- before it starts


def _refuse_without_teacher(config: TrainConfig, stages: Sequence[Stage], scored: bool) -> None:
    """InputError where a stage has nothing to learn from."""
    name = config.recipe
    for stage in stages:
        if stage.text and not config.lm_teacher:
            other = ", or --start-stage 2 if --init has been distilled already" if len(stages) > 1 else ""
            raise InputError(f"recipe {name} distils a language model: give --lm-teacher{other}")
        if not stage.text and stage.needs_layers and not config.teacher:
            raise InputError(f"recipe {name} distils layers: give --teacher, a cross-encoder")
        if stage.needs_scores and not scored and not config.teacher:
            raise InputError(f"recipe {name} needs --scores (from teach, or a published 5-column file) or a live --teacher")


def _checked_scores(begun: _Begun, material: Material) -> Scores | Triples | None:
    """The scores, if the stages need them; InputError for what is missing of the material."""
    groups, scores, stages = material.groups, material.scores, [stage for _, stage in begun.stages]
    for stage in stages:
        if stage.text and not material.texts:
            raise InputError(f"recipe {begun.recipe.name} distils a language model on plain text, and there is none")
        if not stage.text and not groups:
            raise InputError("no query has both a positive in the collection and a negative")
    if scores is None or not any(stage.needs_scores for stage in stages):
        return None
    if isinstance(scores, Scores) and (missing := scores.missing()):  # triples bring their own
        every = ((g.query_id, d, score) for g, own in scores.each(groups) for d, score in zip(g.doc_ids, own, strict=True))
        query_id, doc_id = next((query_id, doc_id) for query_id, doc_id, score in every if math.isnan(score))
        raise InputError(f"{missing} candidate pairs have no teacher score, e.g. query {query_id}, {doc_id}")
    if not begun.scaled and scores.largest() <= 1:  # as cosines and probabilities, and no logits, are
        raise InputError(
            "all teacher scores lie in [-1, 1] (a cosine or a sigmoid); margins that small teach little: give the teacher a "
            "weight in teach, or say with --score-scale what the student's scores are to be multiplied by"
        )
    return scores


def _refuse_without_effect(config: TrainConfig, stages: Sequence[Stage], dev: bool) -> None:
    """InputError for settings that wait for what is not there."""
    if not dev and any(stage.schedule == "plateau" for stage in stages):
        raise InputError("--schedule plateau follows measures on dev topics: give --dev-topics and --dev-qrels")
    if not dev and config.patience:
        raise InputError("--patience counts measures on dev topics: give --dev-topics and --dev-qrels")
    if dev and not any(loss not in recipes.LAYER_LOSSES for stage in stages for loss in stage.losses):
        raise InputError(f"dev topics show what losses on scores do; recipe {config.recipe}, as asked for, has none")
    if config.temperature != 1.0 and not any(loss in recipes.TEMPERED for stage in stages for loss in stage.losses):
        raise InputError(f"--temperature is of {', '.join(recipes.TEMPERED)}; recipe {config.recipe} has none of them")
    if not any(stage.needs_scores for stage in stages):
        shape = config.init.startswith(RANDOM)  # which is made like the teacher
        if config.teacher and not shape and not any(stage.needs_layers for stage in stages if not stage.text):
            raise InputError(f"--teacher: recipe {config.recipe}, as asked for, learns nothing from a ranker")
        if config.match_scale:
            raise InputError(f"--match-scale is for losses on teacher scores; recipe {config.recipe}, as asked for, has none")


def _prepare(partial: Path, config: TrainConfig, overwrite: bool, about: Mapping[str, Any]) -> None:
    """The folder of the resume state, which belongs to a run with the same settings and data.

    InputError where it belongs to another that has saved something; with `overwrite` it is made anew.
    """
    wanted = json.loads(json.dumps({"config": dataclasses.asdict(config), **about}))
    record = partial / "config.json"
    if partial.exists() and not record.exists() and not all(path.name.startswith(OURS) for path in partial.iterdir()):
        raise InputError(f"{partial} is in the way: training keeps its state there; move it")
    wanted["config"].pop("save_steps")  # decides nothing about the result
    known = read_json(record, "training settings") if record.exists() else {}
    if known == wanted:
        return
    if record.exists() and not overwrite and (states := [*partial.glob("stage-*/checkpoint-*"), *partial.glob("stage-*.json")]):
        raise InputError(f"{partial} holds {len(states)} saved states of a run with {difference(wanted, known)}; go on with "
                         f"the same, or remove that folder (or give --overwrite) to start anew")  # fmt: skip
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    write_json(record, wanted)


# -------------------------------------------------------------------------------------------------------- afterwards


def _export(model: Any, last: Stage, output: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Write the checkpoint: a ranker, or the bare encoder where the last stage distilled a language model."""
    import torch

    from pyserini_kd.models.stack import encoder_of

    with torch.no_grad():
        model = model.cpu().eval()
        if not last.text:
            checkpoints.save(model, output, record=record, overwrite=overwrite)
            return
        with atomic_folder(output, overwrite=overwrite) as folder, quiet():
            encoder_of(model).save_pretrained(folder)
            model.tokenizer.save_pretrained(folder)
            write_json(folder / "training.json", record)
    checkpoints.resolve.cache_clear()


def _keep_last_good(model: Any, stage: Stage, partial: Path, output: Path) -> str:
    """Export the newest state whose weights are finite as `NAME.last-good`; returns what to tell the user."""
    import torch
    from safetensors.torch import load_file

    states = [path / "model.safetensors" for folder in sorted(partial.glob("stage-*/")) for path in states_of(folder)]
    best = sorted(partial.glob("stage-*/best-*.safetensors"), key=lambda path: path.stat().st_mtime_ns)  # on dev topics
    before = sorted(partial.glob("stage-*.safetensors"))
    for path in [*reversed(states), *reversed(best), *reversed(before)]:
        weights = {name.removeprefix("student."): tensor for name, tensor in load_file(path).items()}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
            continue
        model.load_state_dict({name: weights.get(name, tensor) for name, tensor in model.state_dict().items()})
        kept = output.with_name(output.name + ".last-good")
        _export(model, stage, kept, {"last_good_of": str(output)}, overwrite=True)
        return f"the last good checkpoint is {kept}"
    return "there was no checkpoint yet"


# ------------------------------------------------------------------------------------------------------- command


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
@click.option("--student", "architecture", help=f"One of {', '.join(checkpoints.ARCHITECTURES)} [default: the recipe's].")
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
    if config.architecture not in checkpoints.ARCHITECTURES:
        raise InputError(f"unknown student {config.architecture!r}; one of {', '.join(checkpoints.ARCHITECTURES)}")
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
    with _tiny_is_zero(), _only_one(output):
        begun = _begin(config, output, scored=scores is not None, dev=has_dev, retrieves=dev_retrieval, overwrite=overwrite)
        dev = read_dev(dev_topics, dev_qrels, dev_run, dev_depth, collection, segment, dev_retrieval)
        with gather(given, stages, config, output) as found:
            known: dict[str, Any] = {name: digest(name, value) for name, value in data.items() if value is not None}
            known |= {"dev_depth": dev_depth, "dev_retrieval": dev_retrieval} if dev else {}
            if sources.is_named(collection):  # of other texts another time
                known["texts_sha256"] = sha256(*sorted(data_folder(output).glob("*/texts")))
            _finish(begun, found._replace(dev=dev), known, time.monotonic())
    what = [f"{len(found.groups)} {_unit(found.groups)}"] if found.groups else []
    what += [f"{len(found.texts)} plain texts"] if found.texts else []
    if os.environ.get("RANK", "0") == "0":
        click.echo(f"{output}: trained on {' and '.join(what)}")


def _only_one(output: Path) -> contextlib.AbstractContextManager[None]:
    """InputError where another command trains the same output; its own other processes go along."""
    first = os.environ.get("RANK", "0") == "0"
    return alone(output.with_name(f".{output.name}.lock"), "train") if first else contextlib.nullcontext()


def _unit(groups: Sequence[Group]) -> str:
    """What a group is called: each of a score file's triples is one of its own."""
    return "triples" if isinstance(groups, Triples) else "queries"


if __name__ == "__main__":
    main()
