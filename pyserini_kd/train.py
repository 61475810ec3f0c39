"""Training: runs a recipe with transformers' Trainer on groups of candidates, and exports a checkpoint.

Resume state lies in `NAME.partial/` beside the checkpoint while training runs; the same command goes on after a crash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np

from pyserini_kd import inference, recipes, sources
from pyserini_kd.cli import command
from pyserini_kd.data import Doc, Qrels, Query
from pyserini_kd.evaluate import Measure
from pyserini_kd.files import (
    InputError,
    command_line,
    environment,
    read_json,
    refuse_existing,
    sha256,
    write_json,
)
from pyserini_kd.mine import Group, mine, read_candidates
from pyserini_kd.models import checkpoints
from pyserini_kd.rerank import rerank
from pyserini_kd.runs import Run
from pyserini_kd.teach import TeacherScores, groups_of_triples, load_texts, read_scores

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)

SCALE_BATCHES = 4  # batches whose margins set the student's starting scale


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run besides its data. None: the recipe's or the checkpoint's default."""

    recipe: str
    init: str
    architecture: str = "bert_dot"
    layers: tuple[int, ...] | None = None
    pooling: str | None = None
    l2_norm: bool | None = None
    max_query_len: int | None = None
    max_doc_len: int | None = None  # of the checkpoint
    train_len: int | None = None  # tokens of a document (or pair) while training; None: max_doc_len
    score_scale: float | None = None
    lr: float | None = None
    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    warmup: float | None = None
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    save_steps: int = 200
    metric: str = "nDCG@10"  # on dev topics, where there are any
    eval_steps: int = 100
    patience: int | None = None  # evaluations without a better one before training stops; None: never
    seed: int = 42
    precision: str = "auto"
    device: str = "cpu"

    def resolved(self) -> TrainConfig:
        """The same with the recipe's defaults filled in."""
        recipe = recipes.get(self.recipe)
        names = ("lr", "epochs", "warmup", "score_scale", "l2_norm")
        filled = {name: getattr(recipe, name) for name in names if getattr(self, name) is None}
        return dataclasses.replace(self, **filled)


class Dev(NamedTuple):
    """Dev topics: the top of a first-stage run, reranked by the student every `eval_steps`, decides the best checkpoint."""

    queries: list[Query]
    qrels: Qrels
    run: Run
    docs: dict[str, Doc]


# ------------------------------------------------------------------------------------------------------- batches


def cut_batches(groups: Sequence[Group], batch_size: int, seed: int) -> list[list[Group]]:
    """Cut groups into batches; a batch never crosses blocks, whose queries share documents. Triples are shuffled."""
    blocks: dict[int, list[Group]] = {}
    for row, group in enumerate(groups):
        blocks.setdefault(group.block if group.block >= 0 else -row - 1, []).append(group)
    pieces = list(blocks.values())
    if max(len(piece) for piece in pieces) == 1:
        order = np.random.default_rng(seed).permutation(len(groups))
        pieces = [[groups[i] for i in order]]
    return [piece[i : i + batch_size] for piece in pieces for i in range(0, len(piece), batch_size)]


class Collator:
    """Turns a batch of groups into tensors; each distinct document of the batch is tokenised and encoded once."""

    def __init__(
        self,
        model: Any,
        queries: Mapping[str, str],
        docs: Mapping[str, str],
        scores: TeacherScores | None,
        train_len: int | None = None,
    ) -> None:
        self.model, self.queries, self.docs, self.scores = model, queries, docs, scores
        own = model.max_len if model.architecture == "cross_encoder" else model.settings.max_doc_len
        self.doc_len = min(train_len or own, own)

    def __call__(self, items: Sequence[Sequence[Group]]) -> dict[str, Any]:
        """One batch: token tensors, and labels / mask / teacher / rows, all (B, G)."""
        import torch

        (groups,) = items
        width = max(len(group.doc_ids) for group in groups)
        shape = (len(groups), width)
        labels, rows = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        mask, teacher = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
        keys: dict[Any, int] = {}
        for i, group in enumerate(groups):
            size = len(group.doc_ids)
            labels[i, :size] = torch.tensor(group.labels)
            mask[i, :size] = True
            pair = self.model.architecture == "cross_encoder"
            found = [keys.setdefault((group.query_id, d) if pair else d, len(keys)) for d in group.doc_ids]
            rows[i, :size] = torch.tensor(found)
            if self.scores is not None:
                own = self.scores[group.query_id]
                teacher[i, :size] = torch.tensor([own[d] for d in group.doc_ids])
        batch = {"labels": labels, "rows": rows, "mask": mask}
        if self.scores is not None:
            batch["teacher"] = teacher
        return batch | self._tokens([group.query_id for group in groups], list(keys))

    def _tokens(self, query_ids: list[str], keys: list[Any]) -> dict[str, Tensor]:
        model = self.model
        pad_id = model.tokenizer.pad_token_id or 0
        if model.architecture == "cross_encoder":
            texts, pairs = [self.queries[q] for q, _ in keys], [self.docs[d] for _, d in keys]
            records, _ = inference.tokenize(model.tokenizer, texts, self.doc_len, pairs)
            return {f"pair_{name}": t for name, t in inference.pad(records, pad_id, "cpu").items()}
        settings = model.settings
        queries = [settings.query_prefix + self.queries[q] for q in query_ids]
        docs = [settings.doc_prefix + self.docs[d] for d in keys]
        query_records, _ = inference.tokenize(model.tokenizer, queries, settings.max_query_len)
        doc_records, _ = inference.tokenize(model.tokenizer, docs, self.doc_len)
        batch = {f"query_{name}": t for name, t in inference.pad(query_records, pad_id, "cpu").items()}
        return batch | {f"doc_{name}": t for name, t in inference.pad(doc_records, pad_id, "cpu").items()}


def _part(batch: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}


def group_scores(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Student scores (B, G) of a batch, with gradients."""
    import torch

    rows = batch["rows"]
    if model.architecture == "cross_encoder":
        scores: Tensor = model(**_part(batch, "pair_"))[rows]
        return scores
    query_vecs, doc_vecs = model(**_part(batch, "query_")), model(**_part(batch, "doc_"))
    with torch.autocast(query_vecs.device.type, enabled=False):  # margins of sums around 100 need all of float32
        return _late_scores(model, query_vecs, doc_vecs, batch)


def _late_scores(model: Any, query_vecs: Tensor, doc_vecs: Tensor, batch: Mapping[str, Any]) -> Tensor:
    import torch

    rows = batch["rows"]
    if model.architecture == "bert_dot":
        return torch.gather(query_vecs @ doc_vecs.T, 1, rows)
    real = batch["doc_attention_mask"].bool()
    similarity = torch.einsum("qth,ndh->qntd", query_vecs, doc_vecs).masked_fill(~real[None, :, None, :], -1e4)
    best = similarity.amax(dim=-1) * batch["query_attention_mask"][:, None, :]
    return torch.gather(best.sum(dim=-1), 1, rows)


def make_learner(model: Any, losses: Mapping[str, float], score_scale: float) -> torch.nn.Module:
    """The module that Trainer sees: student plus losses; `forward(**batch)` gives the loss and remembers its terms."""
    import torch

    from pyserini_kd.losses import LOSSES

    class Learner(torch.nn.Module):
        accepts_loss_kwargs = False  # or Trainer would sum, not average, over accumulated batches

        def __init__(self) -> None:
            super().__init__()
            self.student = model
            self.terms: dict[str, list[float]] = {}

        def forward(self, **batch: Any) -> dict[str, Tensor]:
            scores = group_scores(self.student, batch) * score_scale
            total = torch.zeros((), device=scores.device)
            with torch.autocast(scores.device.type, enabled=False):
                for name, weight in losses.items():
                    term = LOSSES[name](scores, batch.get("teacher"), batch["labels"], batch["mask"])
                    self.terms.setdefault(name, []).append(float(term.detach()))
                    total = total + weight * term
            self.terms.setdefault("score_std", []).append(float(scores.detach()[batch["mask"]].std()))
            if not torch.isfinite(total):
                raise FloatingPointError("the loss is not finite")
            return {"loss": total}

    return Learner()


def match_scale(model: Any, collator: Collator, batches: Sequence[Sequence[Group]], score_scale: float = 1.0) -> float:
    """Scale a bert_dot student's vectors so that its mean margin is the teacher's; returns the factor.

    Margin-MSE compares margins in the teacher's units; a student that starts a factor off spends its training on that.
    """
    import torch

    from pyserini_kd.losses import margins
    from pyserini_kd.models.bert_dot import scale_outputs

    student, teacher = [], []
    with inference.running(model, "fp32") as device:
        for groups in batches[:SCALE_BATCHES]:
            batch = {name: tensor.to(device) for name, tensor in collator([groups]).items()}
            scores = group_scores(model, batch) * score_scale
            mine, theirs = margins(scores, batch["teacher"], batch["labels"], batch["mask"])
            student.append(mine.clone())
            teacher.append(theirs)
    ratio = float(torch.cat(teacher).mean() / torch.cat(student).mean())
    if not math.isfinite(ratio) or ratio <= 0:
        return 1.0
    factor = math.sqrt(ratio)
    scale_outputs(model, factor)
    return factor


# ------------------------------------------------------------------------------------------------------ training


def train(
    config: TrainConfig,
    groups: Sequence[Group],
    queries: Mapping[str, str],
    docs: Mapping[str, str],
    output: str | Path,
    *,
    scores: TeacherScores | None = None,
    dev: Dev | None = None,
    data: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Train a student by a recipe and write its checkpoint; returns the folder.

    Args:
        config: the recipe and its settings.
        groups: candidates; queries with their documents and labels.
        queries: query_id -> text.
        docs: doc_id -> text.
        output: checkpoint folder to write.
        scores: teacher scores, where the recipe needs them.
        dev: dev topics; the checkpoint with the best `config.metric` on them is the one written.
        data: what is known of the data (names, checksums), for training.json.
        overwrite: replace the folder if it exists.

    Raises:
        InputError: the recipe needs scores and there are none, or some pairs have none; the loss is not finite.
    """
    import torch
    import transformers

    output = Path(output)
    refuse_existing(output, overwrite)
    recipe = recipes.get(config.recipe)
    config = config.resolved()
    scores = _checked_scores(recipe, groups, scores)
    inference.check_device(config.device)
    started = time.monotonic()
    transformers.set_seed(config.seed)
    model = _student(config)
    batches = cut_batches(groups, config.batch_size, config.seed)
    collator = Collator(model, queries, docs, scores, config.train_len)
    factor = 1.0
    if recipe.match_scale and config.architecture == "bert_dot" and not model.settings.l2_norm:
        factor = match_scale(model, collator, batches, float(config.score_scale or 1.0))
    learner = make_learner(model, recipe.losses, float(config.score_scale or 1.0))
    partial = output.with_name(output.name + ".partial")
    resume = _start_or_resume(partial, config, data)
    trainer, log = _trainer(config, learner, batches, collator, partial)
    watch = _watch(config, model, dev, partial) if dev else None
    if watch:
        trainer.add_callback(watch)
    try:
        with _quiet():
            result = trainer.train(resume_from_checkpoint=resume)
    except FloatingPointError as error:
        raise InputError(f"{error} (lr {config.lr}); try a lower --lr; what was logged before lies in {partial}") from None
    measured = watch.take_best() if watch else []
    record = {
        "recipe": recipe._asdict(),
        "config": dataclasses.asdict(config),
        "data": {"queries": len(groups), "pairs": sum(len(g.doc_ids) for g in groups), **(data or {})},
        "start_scale": factor,
        "steps": result.global_step,
        "seconds": round(time.monotonic() - started, 1),
        "log": log,
        "dev": measured,
        "command": command_line(),
        **environment(),
    }
    with torch.no_grad():
        checkpoints.save(model.cpu().eval(), output, record=record, overwrite=overwrite)
    shutil.rmtree(partial)
    return output


def _student(config: TrainConfig) -> Any:
    overrides: dict[str, Any] = {"max_doc_len": config.max_doc_len}
    if config.architecture != "cross_encoder":
        overrides |= {"pooling": config.pooling, "l2_norm": config.l2_norm, "max_query_len": config.max_query_len}
    model = checkpoints.load(config.init, architecture=config.architecture, layers=config.layers, **overrides)
    return model.to(config.device)


def _checked_scores(
    recipe: recipes.Recipe, groups: Sequence[Group], scores: TeacherScores | None
) -> TeacherScores | None:
    if not recipe.needs_scores:
        return None
    if scores is None:
        raise InputError(f"recipe {recipe.name} needs --scores (from teach, or a published 5-column file)")
    missing = [(g.query_id, d) for g in groups for d in g.doc_ids if d not in scores.get(g.query_id, {})]
    if missing:
        raise InputError(f"{len(missing)} candidate pairs have no teacher score, e.g. query {missing[0][0]}, {missing[0][1]}")
    return scores


def _start_or_resume(partial: Path, config: TrainConfig, data: Mapping[str, Any] | None) -> str | None:
    """The last complete Trainer checkpoint of an unfinished run with the same settings and data, or None."""
    wanted = json.loads(json.dumps({"config": dataclasses.asdict(config), "data": dict(data or {})}))
    record = partial / "config.json"
    if partial.exists() and any(partial.iterdir()) and not record.exists():
        raise InputError(f"{partial} is in the way: training keeps its state there; move it")
    if not record.exists() or read_json(record, "training settings") != wanted:
        if record.exists():
            logger.warning("%s holds a run with other settings or data; starting anew", partial)
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        write_json(record, wanted)
        return None
    states = sorted(partial.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    while states and not (states[-1] / "trainer_state.json").exists():
        shutil.rmtree(states.pop())  # killed while saving: Trainer writes this file last
    if not states:
        return None
    logger.info("going on from %s", states[-1])
    return str(states[-1])


def _trainer(
    config: TrainConfig, learner: Any, batches: Sequence[Any], collator: Collator, partial: Path
) -> tuple[Any, list[dict[str, float]]]:
    import transformers

    log: list[dict[str, float]] = []

    class Terms(transformers.TrainerCallback):
        """Keeps the mean of every loss term between two log lines, and warns when scores collapse."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not learner.terms or "loss" not in (logs or {}):
                return
            terms = {name: float(np.mean(values)) for name, values in learner.terms.items()}
            learner.terms.clear()
            log.append({"step": state.global_step, "lr": logs["learning_rate"], **terms})
            if args.disable_tqdm:
                shown = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
                logger.info("step %d of %d: %s", state.global_step, state.max_steps, shown)
            if terms["score_std"] < 1e-4:
                logger.warning("step %d: all scores are nearly equal; the model has collapsed", state.global_step)

    steps = math.ceil(len(batches) / config.accumulate * float(config.epochs or 1))
    steps = config.max_steps or max(1, steps)
    arguments = transformers.TrainingArguments(
        output_dir=str(partial),
        per_device_train_batch_size=1,  # one item is one batch of groups
        gradient_accumulation_steps=config.accumulate,
        max_steps=steps,
        learning_rate=float(config.lr or 0.0),
        lr_scheduler_type="linear",
        warmup_steps=round(float(config.warmup or 0.0) * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        logging_steps=max(1, min(50, steps // 10)),
        save_steps=config.save_steps,
        save_total_limit=2,
        seed=config.seed,
        data_seed=config.seed,
        bf16=inference.choose_precision(config.precision, config.device) == "bf16",
        use_cpu=config.device == "cpu",
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        label_names=[],
    )
    trainer = transformers.Trainer(
        model=learner, args=arguments, train_dataset=list(batches), data_collator=collator, callbacks=[Terms()]
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer, log


def _watch(config: TrainConfig, model: Any, dev: Dev, partial: Path) -> Any:
    """A Trainer callback that measures the student on dev topics, keeps the best weights, and may stop training."""
    import transformers
    from safetensors.torch import load_model, save_model

    from pyserini_kd.evaluate import evaluate, mean

    class Watch(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.kept = partial / "best.safetensors"
            self.measured: list[dict[str, float]] = []

        def measure(self, step: int) -> bool:
            """Measure; True where it is the best so far."""
            run = rerank(dev.run, model, dev.queries, lambda ids: (dev.docs[i] for i in ids), depth=dev.run.depth)
            value = mean(evaluate(run, dev.qrels, [config.metric])[config.metric])
            best = value > max((entry[config.metric] for entry in self.measured), default=-1.0)
            self.measured.append({"step": step, config.metric: value})
            logger.info("step %d: %s %.4f on dev topics%s", step, config.metric, value, " (best)" if best else "")
            if best:
                save_model(model, str(self.kept))
            write_json(partial / "dev.json", {"measured": self.measured})
            return best

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step and (partial / "dev.json").exists():  # going on after a crash
                before = read_json(partial / "dev.json", "dev measures")["measured"]
                self.measured = [entry for entry in before if entry["step"] <= state.global_step]

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            last = state.global_step == state.max_steps
            if state.global_step % config.eval_steps and not last:
                return
            self.measure(state.global_step)
            values = [entry[config.metric] for entry in self.measured]
            if config.patience is not None and len(values) - 1 - values.index(max(values)) >= config.patience:
                logger.info("no better for %d evaluations: training stops", config.patience)
                control.should_training_stop = True

        def take_best(self) -> list[dict[str, float]]:
            """Put the best weights into the model; returns what was measured."""
            if self.kept.exists():
                load_model(model, str(self.kept))
            return self.measured

    return Watch()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Trainer's own chatter off; its progress bar stays."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


# ------------------------------------------------------------------------------------------------------- command


@command(
    name="train",
    example="pyserini-kd train --recipe margin-mse --collection docs.jsonl --topics train.tsv --candidates candidates.jsonl "
    "--scores scores.parquet --init minilm --output models/student",
)
@click.option("--list", "list_recipes", is_flag=True, help="Print the recipes and stop.")
@click.option("--recipe", help="Training procedure; --list shows them.")
@click.option("--collection", help="Collection: a path, ir_datasets:<id> or pydocs.")
@click.option("--topics", help="Training topics: a file, ir_datasets:<id> or pydocs:train.")
@click.option("--candidates", type=click.Path(path_type=Path), help="Groups or triples, from mine.")
@click.option("--scores", type=click.Path(path_type=Path), help="Teacher scores: a store from teach, or a 5-column file.")
@click.option("--student", "architecture", default="bert_dot", help=f"One of {', '.join(checkpoints.ARCHITECTURES)}.")
@click.option("--init", default="minilm", help="Checkpoint the student starts from: name, folder or hub id.")
@click.option("--layers", help="Layers kept of it, e.g. 0,3,5 [default: all].")
@click.option("--pooling", type=click.Choice(["cls", "mean"]), help="[default: from the checkpoint]")
@click.option("--l2-norm/--no-l2-norm", default=None, help="[default: from the recipe]")
@click.option("--max-query-length", "max_query_len", type=click.IntRange(3), help="Tokens [default: from the checkpoint].")
@click.option("--max-length", "max_doc_len", type=click.IntRange(3), help="Tokens a document or pair [default: checkpoint].")
@click.option("--train-length", "train_len", type=click.IntRange(3), help="Tokens in training [default: --max-length].")
@click.option("--qrels", help="Without --candidates: their positives, with the other queries of a batch as negatives.")
@click.option("--dev-topics", help="Dev topics: the best checkpoint on them is kept.")
@click.option("--dev-qrels", help="Their judgements.")
@click.option("--dev-run", type=click.Path(path_type=Path), help="First-stage run of them; its top is reranked.")
@click.option("--dev-depth", default=20, type=click.IntRange(1), help="Documents reranked a dev query.")
@click.option("--metric", default="nDCG@10", help="Measure on dev topics.")
@click.option("--eval-steps", default=100, type=click.IntRange(1), help="Steps between measures on dev topics.")
@click.option("--patience", type=click.IntRange(1), help="Stop after so many measures without a better one.")
@click.option("--score-scale", type=click.FloatRange(0, min_open=True), help="[default: from the recipe]")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="[default: from the recipe]")
@click.option("--epochs", type=click.FloatRange(0, min_open=True), help="[default: from the recipe]")
@click.option("--max-steps", type=click.IntRange(1), help="Stop after so many optimiser steps.")
@click.option("--batch-size", "--batch", default=32, type=click.IntRange(1), help="Queries (groups) a batch.")
@click.option("--accumulate", default=1, type=click.IntRange(1), help="Batches an optimiser step.")
@click.option("--warmup", type=float, help="Share of steps [default: from the recipe].")
@click.option("--seed", default=42, type=click.IntRange(0), help="Seed of dropout and batch order.")
@click.option("--precision", default="auto", type=click.Choice(list(inference.PRECISIONS)), help="Arithmetic.")
@click.option("--device", default="cpu", help="cpu, cuda or cuda:N.")
@click.option("--output", type=click.Path(path_type=Path), help="Checkpoint folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
def main(
    list_recipes: bool,
    recipe: str | None,
    collection: str | None,
    topics: str | None,
    candidates: Path | None,
    scores: Path | None,
    qrels: str | None,
    dev_topics: str | None,
    dev_qrels: str | None,
    dev_run: Path | None,
    dev_depth: int,
    layers: str | None,
    output: Path | None,
    overwrite: bool,
    **settings: Any,
) -> None:
    """Train a student by one of the papers' procedures."""
    if list_recipes:
        for known in recipes.RECIPES.values():
            click.echo(f"{known.name:18} {known.what}\n{'':18} {known.source}")
        return
    required = {"--recipe": recipe, "--collection": collection, "--topics": topics, "--output": output}
    absent = [flag for flag, value in required.items() if value is None]
    if absent:
        raise click.UsageError(f"Missing option {', '.join(absent)}.")
    if recipe is None or collection is None or topics is None or output is None:
        return
    recipes.get(recipe)
    refuse_existing(output, overwrite)
    if settings["architecture"] not in checkpoints.ARCHITECTURES:
        raise InputError(f"unknown student {settings['architecture']!r}; one of {', '.join(checkpoints.ARCHITECTURES)}")
    if candidates:
        groups = read_candidates(candidates)
    elif scores and scores.suffix != ".parquet":
        groups = groups_of_triples(scores)
    elif qrels:
        judged = sources.qrels(qrels)
        size, seed = settings["batch_size"], settings["seed"]
        found = mine(sources.topics(topics), judged, [], sources.collection(collection), negatives=0, shared=size, seed=seed)
        groups = found.groups
    else:
        raise InputError("--candidates is needed (or --qrels, or a 5-column score file, which brings its own triples)")
    if not groups:
        raise InputError("no query has both a positive in the collection and a negative")
    dev = _read_dev(dev_topics, dev_qrels, dev_run, dev_depth, collection)
    Measure.parse(settings["metric"])
    queries, docs = load_texts(groups, sources.topics(topics), sources.collection(collection))
    files = {"candidates": candidates, "scores": scores}
    data = {name: {"path": str(path), "sha256": sha256(path)} for name, path in files.items() if path}
    config = TrainConfig(recipe=recipe, layers=parse_layers(layers), **settings)
    train(
        config,
        groups,
        queries,
        docs,
        output,
        scores=read_scores(scores) if scores else None,
        dev=dev,
        data={"collection": collection, "topics": topics, **data},
        overwrite=overwrite,
    )
    click.echo(f"{output}: trained on {len(groups)} queries")


def _read_dev(topics: str | None, qrels: str | None, run: Path | None, depth: int, collection: str) -> Dev | None:
    given = [name for name in (topics, qrels, run) if name is not None]
    if not given:
        return None
    if topics is None or qrels is None or run is None:
        raise InputError("--dev-topics, --dev-qrels and --dev-run go together")
    first = Run.read(run).top(depth)
    wanted = {doc_id for hits in first.values() for doc_id in hits.doc_ids}
    docs = {doc.doc_id: doc for doc in sources.collection(collection) if doc.doc_id in wanted}
    missing = wanted - docs.keys()
    if missing:
        raise InputError(f"{len(missing)} documents of {run} are not in the collection, e.g. {min(missing)}")
    return Dev(sources.topics(topics), sources.qrels(qrels), first, docs)


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """`0,3,5` -> (0, 3, 5)."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--layers must be numbers such as 0,3,5, not {text!r}") from None


if __name__ == "__main__":
    main()
