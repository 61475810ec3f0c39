"""Set up transformers' Trainer for a stage: arguments, saved states and logging."""

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

COLLAPSED = 1e-4  # warn if scores of a query differ by less, relative to their mean
KERNEL_LR = 10.0  # learning-rate factor of TK's kernels (Hofstätter et al. 2020: 1e-4 and 1e-5)
TERMS = "terms.json"  # in a saved state: loss terms since the last log line


def checkpoints(folder: Path) -> list[Path]:
    """Return Trainer's checkpoints in the folder of a stage, oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def last_state(folder: Path, share: Share) -> str | None:
    """Return the last checkpoint that every process has saved. Removes later, incomplete ones."""
    states = checkpoints(folder)
    while states and not (world := _saved_by(states[-1])):
        shutil.rmtree(states.pop(), ignore_errors=True)  # killed while saving
    if not states:
        return None
    logger.info("resuming from %s", states[-1])
    if world != share.world:
        logger.warning("%d processes saved this state and %d resume it: dropout draws other random numbers", world, share.world)
    return str(states[-1])


def _saved_by(state: Path) -> int:
    """Return the number of processes that saved a checkpoint; 0 if one has not finished."""
    found = Counter(int(path.name.rpartition("-")[2]) for path in state.glob("saved-*-of-*"))
    return next((world for world, count in found.items() if count == world), 0)


def clock(folder: Path) -> float:
    """Start a session; return the seconds of earlier sessions. A crashed session lasts until its last file here."""
    record, now = folder / "clock.json", time.time()
    before = 0.0
    if record.exists():
        known = read_json(record, "clock")
        last = max(path.stat().st_mtime for path in folder.rglob("*"))
        before = float(known["seconds"]) + max(0.0, last - float(known["began"]))
    write_json(record, {"seconds": before, "began": now})
    return before


class Progress(transformers.TrainerCallback):
    """Logs mean loss terms, marks saved states as complete, and stops at a gradient that is not finite."""

    def __init__(self, module: Learner, folder: Path, share: Share) -> None:
        self.module, self.folder, self.share = module, folder, share
        self.log: list[dict[str, float]] = []

    def resume_from(self, step: int) -> None:
        """Load the log of an earlier session up to a step."""
        path = self.folder / "log.json"
        before = read_json(path, "log of a stage")["log"] if step and path.exists() else []
        self.log.extend(entry for entry in before if entry["step"] <= step)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Load the log of an earlier session."""
        self.resume_from(state.global_step)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Set the share of finished steps in the module."""
        self.module.done = state.global_step / state.max_steps

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Raise FloatingPointError if a gradient is not finite."""
        sums = torch.stack([p.grad.sum().float() for p in self.module.parameters() if p.grad is not None])
        if not torch.isfinite(sums.sum()):
            raise FloatingPointError(f"step {state.global_step + 1}: a gradient is not finite")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               logs: Mapping[str, float] | None = None, **_: object) -> None:  # fmt: skip
        """Log the loss terms; warn if scores collapse."""
        if not self.module.terms or "loss" not in (logs := logs or {}):
            return
        terms = {name: float(np.mean(values)) for name, values in self.module.terms.items()}
        self.module.terms.clear()
        norm = {"grad_norm": float(logs["grad_norm"])} if "grad_norm" in logs else {}
        self.log.append({"step": state.global_step, "lr": logs["learning_rate"], **norm, **terms})
        if self.share.rank:
            return
        write_json(self.folder / "log.json", {"log": self.log})
        if args.disable_tqdm:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, shown)
        if terms.get("score_std", 1.0) < COLLAPSED * max(1.0, abs(terms.get("score_mean", 0.0))):
            logger.warning("step %d: all documents of a query score nearly alike: the model has collapsed", state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Save pending loss terms, then mark the state as complete for this process."""
        saved = self.folder / f"checkpoint-{state.global_step}"
        if not self.share.rank:
            write_json(saved / TERMS, self.module.terms)
        (saved / f"saved-{self.share.rank}-of-{self.share.world}").touch()


class _Trainer(transformers.Trainer):
    share: Share
    learner: Learner

    def create_optimizer(self, model: torch.nn.Module | None = None) -> Optimizer:
        """Create AdamW with a second learning rate for TK's kernels."""
        return quicken(super().create_optimizer(model), self.learner.student)

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Give every process every batch; the collator takes the share of this process."""
        loader = super().get_train_dataloader()
        if self.share.world > 1:
            vars(loader.batch_sampler).update(num_processes=1, process_index=0)
        return loader


class _Arguments(transformers.TrainingArguments):
    @property
    def n_gpu(self) -> int:
        """At most one: Trainer would split batches over all GPUs by itself; torchrun does that right."""
        return min(super().n_gpu, 1)


def make_trainer(
    config: TrainConfig, stage: Stage, progress: Progress, batches: Cut, collator: Collate
) -> transformers.Trainer:
    """Return a Trainer for a stage, for one process of several or the only one."""
    steps = config.max_steps or max(1, math.ceil(math.ceil(len(batches) / config.accumulate) * stage.epochs))
    arguments = _Arguments(
        output_dir=str(progress.folder), seed=config.seed, data_seed=config.seed,
        bf16=precision_of(config) == "bf16", use_cpu=config.device == "cpu",
        per_device_train_batch_size=1,  # one item is one batch of groups
        gradient_accumulation_steps=config.accumulate, max_steps=steps, max_grad_norm=config.max_grad_norm,
        learning_rate=stage.lr, lr_scheduler_type=recipes.SCHEDULES[stage.schedule], weight_decay=stage.weight_decay,
        warmup_steps=round(stage.warmup * steps),
        logging_steps=max(1, min(50, steps // 10)), save_steps=config.save_steps, save_total_limit=2,
        ddp_find_unused_parameters=True,  # with layer losses alone, the head has no gradients
        report_to=[], disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False, dataloader_pin_memory=False, label_names=[],
    )  # fmt: skip
    arguments.mixed_precision = "bf16" if arguments.bf16 else "no"  # overrides `accelerate launch`
    collate = cast(DataCollator, collator)  # batches are typed dictionaries
    trainer = _Trainer(model=progress.module, args=arguments, train_dataset=batches, data_collator=collate)
    trainer.share, trainer.learner = progress.share, progress.module
    trainer.add_callback(progress)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def quicken(optimizer: Optimizer, student: Model) -> Optimizer:
    """Move the weights and the mix of TK's kernels to a parameter group with a higher learning rate."""
    quick = {id(each) for each in (student.mix, student.gamma, student.head.weight)} if isinstance(student, Tk) else set()
    for group in list(optimizer.param_groups):
        kernels = [parameter for parameter in group["params"] if id(parameter) in quick]
        if kernels:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in quick]
            optimizer.add_param_group({**group, "params": kernels, "lr": KERNEL_LR * group["lr"]})
    return optimizer
