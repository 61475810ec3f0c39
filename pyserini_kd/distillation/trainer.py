"""transformers' Trainer as a stage uses it: its settings, its saved states, and what is logged."""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import transformers
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import DataCollator, TrainerControl, TrainerState, TrainingArguments

from pyserini_kd.distillation import recipes
from pyserini_kd.distillation.batches import Batch, Batches, Collator, Share, TextCollator
from pyserini_kd.distillation.candidates import Group
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.objective import Learner
from pyserini_kd.distillation.processes import precision_of
from pyserini_kd.distillation.recipes import Stage
from pyserini_kd.distillation.vectors import Text, VectorCollator
from pyserini_kd.models.tk import Tk
from pyserini_kd.storage.records import read_json, write_json

if TYPE_CHECKING:
    from pyserini_kd.models.loading import Model

logger = logging.getLogger(__name__)

Collate = Collator | TextCollator | VectorCollator
Cut = Batches[Group] | Batches[str] | Batches[Text]

FLAT = 1e-4  # warn when the scores of a query differ by less than this, relative to their size
QUICK = 10.0  # TK's kernels learn ten times as fast as the rest (Hofstätter et al. 2020: 1e-4 and 1e-5)
TERMS = "terms.json"  # in a saved state: the loss terms since the last line of the log


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

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Take up the log."""
        self.go_on(state.global_step)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Tell the module how far training has come."""
        self.module.done = state.global_step / state.max_steps

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """FloatingPointError where a gradient is not finite."""
        sums = torch.stack([p.grad.sum().float() for p in self.module.parameters() if p.grad is not None])
        if not torch.isfinite(sums.sum()):
            raise FloatingPointError(f"step {state.global_step + 1}: a gradient is not finite")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               logs: Mapping[str, float] | None = None, **_: object) -> None:  # fmt: skip
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

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Save the loss terms that are not logged yet; then mark the state as complete for this process."""
        saved = self.folder / f"checkpoint-{state.global_step}"
        if not self.share.rank:
            write_json(saved / TERMS, self.module.terms)
        (saved / f"saved-{self.share.rank}-of-{self.share.world}").touch()


class _Trainer(transformers.Trainer):
    share: Share
    learner: Learner

    def create_optimizer(self, model: torch.nn.Module | None = None) -> Optimizer:
        """AdamW, with TK's second learning rate."""
        return quicken(super().create_optimizer(model), self.learner.student)

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Every process gets every batch: the collator takes this process's share of its pairs."""
        loader = super().get_train_dataloader()
        if self.share.world > 1:
            vars(loader.batch_sampler).update(num_processes=1, process_index=0)
        return loader


def make_trainer(
    config: TrainConfig, stage: Stage, progress: Progress, batches: Cut, collator: Collate
) -> transformers.Trainer:
    """A Trainer for a stage: one process of several, or the only one."""
    steps = config.max_steps or max(1, math.ceil(math.ceil(len(batches) / config.accumulate) * stage.epochs))
    arguments = transformers.TrainingArguments(
        output_dir=str(progress.folder), seed=config.seed, data_seed=config.seed,
        bf16=precision_of(config) == "bf16", use_cpu=config.device == "cpu",
        per_device_train_batch_size=1,  # one item is one batch of groups
        gradient_accumulation_steps=config.accumulate, max_steps=steps, max_grad_norm=config.max_grad_norm,
        learning_rate=stage.lr, lr_scheduler_type=recipes.SCHEDULES[stage.schedule], weight_decay=stage.weight_decay,
        warmup_steps=round(stage.warmup * steps),
        logging_steps=max(1, min(50, steps // 10)), save_steps=config.save_steps, save_total_limit=2,
        ddp_find_unused_parameters=True,  # a stage on layers alone leaves the head without gradients
        report_to=[], disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False, dataloader_pin_memory=False, label_names=[],
    )  # fmt: skip
    arguments.mixed_precision = "bf16" if arguments.bf16 else "no"  # whatever `accelerate launch` is configured for
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # or Trainer would split batches over all GPUs by itself; torchrun does that right
    collate = cast(DataCollator, collator)  # its batches are dictionaries of a certain type
    trainer = _Trainer(model=progress.module, args=arguments, train_dataset=batches, data_collator=collate)
    trainer.share, trainer.learner = progress.share, progress.module
    trainer.add_callback(progress)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def quicken(optimizer: Optimizer, student: Model) -> Optimizer:
    """Give the weights and the mix of TK's kernels a group, and a learning rate, of their own."""
    quick = {id(each) for each in (student.mix, student.gamma, student.head.weight)} if isinstance(student, Tk) else set()
    for group in list(optimizer.param_groups):
        some = [parameter for parameter in group["params"] if id(parameter) in quick]
        if some:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in quick]
            optimizer.add_param_group({**group, "params": some, "lr": QUICK * group["lr"]})
    return optimizer
