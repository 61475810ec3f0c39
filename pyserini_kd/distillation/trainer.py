"""One stage of a recipe, run with transformers' Trainer.

Trainer's checkpoints lie in `NAME.partial/stage-N/` while the stage runs; its weights and record remain afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, load_model, save_file, save_model
from transformers.utils import logging as transformers_logging

from pyserini_kd.distillation import recipes
from pyserini_kd.distillation.batches import Batches, Collator, Share, TextCollator, cut_batches, cut_texts
from pyserini_kd.distillation.candidates import Group
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.objective import Learner, match_scale
from pyserini_kd.distillation.processes import one_after_another, precision_of
from pyserini_kd.distillation.rankers import Ranker, Teachers
from pyserini_kd.distillation.recipes import Stage
from pyserini_kd.distillation.training_data import Material
from pyserini_kd.distillation.triples import Triples
from pyserini_kd.distillation.validation import Watch
from pyserini_kd.models.tokens import tokenize
from pyserini_kd.storage.job import Job
from pyserini_kd.storage.records import read_json, write_json

logger = logging.getLogger(__name__)

SAMPLE = 500  # texts that are looked at to estimate how many are cut
FEEBLE = 30.0  # warn when scores must grow more than 30-fold; those of pretrained layers, pooled well, start below 1
MANY = 512  # pairs a batch; with more a cross-encoder's step is slow and takes gigabytes
FLAT = 1e-4  # warn when the scores of a query differ by less than this, relative to their size
TERMS = "terms.json"  # in a saved state: the loss terms since the last line of the log


class Work(NamedTuple):
    """What all stages of a training run share."""

    config: TrainConfig
    model: Ranker
    teachers: Teachers
    material: Material
    job: Job
    share: Share


def states_of(job: Job, number: int) -> Path:
    """The folder of Trainer's checkpoints of a stage."""
    return job.folder / f"stage-{number}"


def run_stage(work: Work, number: int, stage: Stage) -> dict[str, Any]:
    """Train the student by one stage, or load the result of a stage that was done before a crash; returns its record."""
    job, share, student = work.job, work.share, _module(work.model)
    weights, result = job.path(number, "safetensors"), job.path(number, "json")
    if job.is_done(number):
        load_model(student, str(weights))
        return read_json(result, "record of a stage")
    started = time.monotonic()
    folder = states_of(job, number)
    folder.mkdir(exist_ok=True)
    earlier = 0.0 if share.rank else clock(folder)
    learnt = _learn(work, number, stage, folder)
    with one_after_another(share):
        measured = learnt.watch.take_best() if learnt.watch else []
        record = {
            **stage._asdict(),
            "start_scale": learnt.start_scale,
            "steps": learnt.steps,
            "seconds": round(earlier + time.monotonic() - started, 1),
            "log": learnt.log,
            "dev": measured,
        }
        if share.rank == 0:
            save_model(student, str(weights))
            if hasattr(learnt.module, "projection"):
                save_file(learnt.module.projection.state_dict(), job.path(number, "projection"))
            write_json(result, record)
            job.finish(number)
            shutil.rmtree(folder)
    return record


def _module(model: Ranker) -> torch.nn.Module:
    """A ranker as the torch module that it is."""
    assert isinstance(model, torch.nn.Module)
    return model


class _Learnt(NamedTuple):
    module: Learner
    watch: Watch | None
    start_scale: float
    steps: int
    log: list[dict[str, float]]


def _learn(work: Work, number: int, stage: Stage, folder: Path) -> _Learnt:
    """Train until the stage ends, from the last saved state on if there is one."""
    config, material, share = work.config, work.material, work.share
    transformers.set_seed(config.seed)
    live = stage.needs_layers or (stage.needs_scores and material.scores is None)
    teacher = work.teachers.for_stage(stage.text) if live else None
    batches, collator, start_scale = _batches(work, stage, teacher)
    module = Learner(
        work.model, stage.losses, config.score_scale or 1.0, teacher=teacher, teacher_dropout=config.teacher_dropout,
        temperature=config.temperature, text=stage.text, length=None if stage.text else collator.length, share=share,
    )  # fmt: skip
    _take_projection(module, work.job, number)
    with one_after_another(share):
        resume = last_state(folder, share)
    progress = Progress(module, folder, share)
    trainer = _trainer(config, stage, progress, batches, collator)
    if resume and not share.rank:
        module.terms = read_json(Path(resume) / TERMS, "loss terms")
    steps = int(read_json(Path(resume) / "trainer_state.json", "state of training")["global_step"]) if resume else 0
    watch = None
    if material.dev and any(loss not in recipes.LAYER_LOSSES for loss in stage.losses):
        watch = Watch(work.model, material.dev, folder, metric=config.metric, eval_steps=config.eval_steps,
                      patience=config.patience, plateau=stage.schedule == "plateau", precision=precision_of(config),
                      writes=share.rank == 0)  # fmt: skip
        watch.go_on(steps)
        trainer.add_callback(watch)
    if resume and (steps >= trainer.args.max_steps or (watch and watch.is_enough())):
        load_model(module, str(Path(resume) / "model.safetensors"))  # Trainer would do one more step
        progress.go_on(steps)
    else:
        with quiet():
            steps = trainer.train(resume_from_checkpoint=resume).global_step
    return _Learnt(module, watch, start_scale, steps, progress.log)


def _take_projection(module: Learner, job: Job, number: int) -> None:
    """Begin with the projection of the stage before, if it had one of the same shape (TinyBERT's is part of its model)."""
    path = job.path(number - 1, "projection")
    if hasattr(module, "projection") and path.exists():
        found, own = load_file(path), module.projection.state_dict()
        if all(found[name].shape == tensor.shape for name, tensor in own.items()):
            module.projection.load_state_dict(found)


# ---------------------------------------------------------------------------------------------------------- batches


def _batches(work: Work, stage: Stage, teacher: Ranker | None) -> tuple[Batches, Any, float]:
    """The batches of a stage, their collator, and the factor by which the student's scores were multiplied at the start."""
    config, model, material = work.config, work.model, work.material
    if stage.text:
        assert teacher is not None
        text_collator = TextCollator(model, config.train_len, teacher, share=work.share)
        _log_cut(model, _sample(material.texts), text_collator.length, "; to have them whole, cut passages (segment)")
        return cut_texts(material.texts, config.batch_size, config.seed), text_collator, 1.0
    groups, docs = material.groups, material.docs
    lengths = _lengths(groups, docs) if config.length_buckets else None
    batches = cut_batches(groups, config.batch_size, config.seed, lengths)
    collator = Collator(
        model, material.queries, docs, material.scores if stage.needs_scores else None, config.train_len,
        teacher=teacher, same_inputs=stage.needs_layers, in_batch="in_batch" in stage.losses,
    )  # fmt: skip
    _log_cut(model, [docs[group.doc_ids[0]] for group in _sample(groups)], collator.length, "")
    pairs = sum(len(group.doc_ids) for group in batches[0])
    if model.architecture == "cross_encoder" and pairs > MANY:
        logger.warning("a batch has %d pairs, each of which a cross_encoder reads: take a smaller batch size, or candidates of "
                       "fewer documents (3 negatives)", pairs)  # fmt: skip
    factor = 1.0
    if stage.match_scale and stage.needs_scores and model.architecture in recipes.SCALED and not model.settings.l2_norm:
        factor = match_scale(model, collator, batches, config.score_scale or 1.0, teacher)
        logger.info("to begin on the teacher's scale, the student's scores are multiplied by %.3g", factor)
        if factor > FEEBLE:
            logger.warning("WARNING: the student's scores are nearly constant, and scaling amplifies their noise: with mean "
                           "pooling, another init or without match_scale it may learn more")  # fmt: skip
    collator.share = work.share
    return batches, collator, factor


def _sample(items: Sequence[Any]) -> list[Any]:
    """Items at equal distances, at most SAMPLE + 1."""
    return [items[row] for row in range(0, len(items), len(items) // SAMPLE + 1)]


def _log_cut(model: Ranker, texts: Sequence[str], length: int, advice: str) -> None:
    """Log how many of some texts are longer than training reads."""
    _, cut = tokenize(model.tokenizer, texts, length)
    if cut:
        share = 100 * cut / len(texts)
        logger.info("%.0f%% of the texts (of a sample) are longer than %d tokens, and are cut%s", share, length, advice)


def _lengths(groups: Sequence[Group], docs: Mapping[str, str]) -> Any:
    """Length of the longest document of every group."""
    if isinstance(groups, Triples):
        return groups.lengths()
    return np.fromiter((max(len(docs[doc_id]) for doc_id in group.doc_ids) for group in groups), np.int32, len(groups))


# ----------------------------------------------------------------------------------------------------- saved states


def checkpoints(folder: Path) -> list[Path]:
    """Trainer's checkpoints in a stage's folder, oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def last_state(folder: Path, share: Share) -> str | None:
    """The last Trainer checkpoint that every process of its run has saved; incomplete ones after it are removed."""
    states = checkpoints(folder)
    while states and not (world := _saved_by(states[-1])):
        shutil.rmtree(states.pop(), ignore_errors=True)  # killed while saving
    if not states:
        return None
    logger.info("going on from %s", states[-1])
    if world != share.world:
        logger.warning("it was saved by %d processes, here are %d: dropout will draw other numbers", world, share.world)
    return str(states[-1])


def _saved_by(state: Path) -> int:
    """The number of processes of the run that saved a Trainer checkpoint; 0 where a process has not finished saving."""
    found = Counter(int(path.name.rpartition("-")[2]) for path in state.glob("saved-*-of-*"))
    return next((world for world, count in found.items() if count == world), 0)


def clock(folder: Path) -> float:
    """Begin a session; returns the seconds of earlier sessions. A killed session lasted until it wrote its last file here."""
    record, now = folder / "clock.json", time.time()
    before = 0.0
    if record.exists():
        known = read_json(record, "clock")
        last = max(path.stat().st_mtime for path in folder.rglob("*"))
        before = float(known["seconds"]) + max(0.0, last - float(known["began"]))
    write_json(record, {"seconds": before, "began": now})
    return before


# ---------------------------------------------------------------------------------------------------------- Trainer


class Progress(transformers.TrainerCallback):
    """Logs the mean of every loss term between two log lines, seals saved states, stops where a gradient is not finite."""

    def __init__(self, module: Learner, folder: Path, share: Share) -> None:
        self.module, self.folder, self.share = module, folder, share
        self.log: list[dict[str, float]] = []

    def go_on(self, step: int) -> None:
        """Take up the log of before a crash, until a step."""
        path = self.folder / "log.json"
        before = read_json(path, "log of a stage")["log"] if step and path.exists() else []
        self.log.extend(entry for entry in before if entry["step"] <= step)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the log."""
        self.go_on(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """FloatingPointError where a gradient is not finite."""
        sums = torch.stack([p.grad.sum().float() for p in self.module.parameters() if p.grad is not None])
        if not torch.isfinite(sums.sum()):
            raise FloatingPointError(f"step {state.global_step + 1}: a gradient is not finite")

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        """Log the loss terms, and warn when scores collapse."""
        if not self.module.terms or "loss" not in (logs := logs or {}):
            return
        terms = {name: float(np.mean(values)) for name, values in self.module.terms.items()}
        self.module.terms.clear()
        more = {"grad_norm": float(logs["grad_norm"])} if "grad_norm" in logs else {}
        self.log.append({"step": state.global_step, "lr": logs["learning_rate"], **more, **terms})
        if self.share.rank:
            return
        write_json(self.folder / "log.json", {"log": self.log})
        if args.disable_tqdm:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, shown)
        if terms.get("score_std", 1.0) < FLAT * max(1.0, abs(terms.get("score_mean", 0.0))):
            logger.warning("step %d: a query's documents all score nearly the same; the model has collapsed", state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the loss terms that are not logged yet; then mark the state as complete for this process."""
        saved = self.folder / f"checkpoint-{state.global_step}"
        if not self.share.rank:
            write_json(saved / TERMS, self.module.terms)
        (saved / f"saved-{self.share.rank}-of-{self.share.world}").touch()


class _Trainer(transformers.Trainer):
    share: Share

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """AdamW, with TK's second learning rate."""
        return quicken(super().create_optimizer(*args, **kwargs), self.model.student)

    def get_train_dataloader(self) -> Any:
        """Every process gets every batch: the collator takes this process's share of its pairs."""
        loader = super().get_train_dataloader()
        if self.share.world > 1:
            sampler: Any = loader.batch_sampler
            sampler.num_processes, sampler.process_index = 1, 0
        return loader


def _trainer(config: TrainConfig, stage: Stage, progress: Progress, batches: Batches, collator: Any) -> _Trainer:
    steps = config.max_steps or max(1, math.ceil(math.ceil(len(batches) / config.accumulate) * stage.epochs))
    arguments = transformers.TrainingArguments(
        output_dir=str(progress.folder),
        per_device_train_batch_size=1,  # one item is one batch of groups
        gradient_accumulation_steps=config.accumulate,
        max_steps=steps,
        learning_rate=stage.lr,
        lr_scheduler_type=recipes.SCHEDULES[stage.schedule],
        warmup_steps=round(stage.warmup * steps),
        weight_decay=stage.weight_decay,
        max_grad_norm=config.max_grad_norm,
        logging_steps=max(1, min(50, steps // 10)),
        save_steps=config.save_steps,
        save_total_limit=2,
        seed=config.seed,
        data_seed=config.seed,
        bf16=precision_of(config) == "bf16",
        use_cpu=config.device == "cpu",
        ddp_find_unused_parameters=True,  # a stage on layers alone leaves the head without gradients
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        label_names=[],
    )
    arguments.mixed_precision = "bf16" if arguments.bf16 else "no"  # whatever `accelerate launch` is configured for
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # or Trainer would split batches over all GPUs by itself; torchrun does that right
    trainer = _Trainer(model=progress.module, args=arguments, train_dataset=batches, data_collator=collator)
    trainer.share = progress.share
    trainer.add_callback(progress)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def quicken(optimizer: Any, student: Any) -> Any:
    """Give the parameters that learn quickly (TK's kernels) a group, and a learning rate, of their own."""
    quick = {id(parameter) for parameter in recipes.quick_parameters(student)}
    for group in list(optimizer.param_groups):
        some = [parameter for parameter in group["params"] if id(parameter) in quick]
        if some:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in quick]
            optimizer.add_param_group({**group, "params": some, "lr": recipes.QUICK * group["lr"]})
    return optimizer


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Trainer's own messages; its progress bar stays."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
