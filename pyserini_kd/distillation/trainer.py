"""One stage of a recipe, run with transformers' Trainer: settings, processes, resuming, logging.

Every stage keeps its state in a folder `NAME.partial/stage-N/` and leaves weights and a record beside it when it is done.
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
from typing import Any

import numpy as np

from pyserini_kd.distillation import recipes
from pyserini_kd.distillation.batches import Collator, Share, TextCollator, cut_batches, cut_texts, window_of
from pyserini_kd.distillation.candidates import Group
from pyserini_kd.distillation.config import Material, TrainConfig
from pyserini_kd.distillation.processes import one_after_another, precision_of
from pyserini_kd.distillation.recipes import Stage
from pyserini_kd.distillation.triples import Triples
from pyserini_kd.distillation.validation import Watch
from pyserini_kd.models.tokens import tokenize
from pyserini_kd.storage.records import read_json, write_json

logger = logging.getLogger(__name__)

SAMPLE = 500  # texts by which it is told how many are cut
FEEBLE = 30.0  # times which a student's scores are as large as its teacher's; those of pretrained layers, pooled well: below 1
MANY = 512  # pairs of a batch, above which a cross-encoder is slow to take a step, and takes gigabytes
TERMS = "terms.json"  # of a saved state: the loss terms since the last line of the log
FLAT = 1e-4  # spread of a query's scores, against their size, under which nothing is ranked


def run_stage(
    config: TrainConfig,
    number: int,
    stage: Stage,
    model: Any,
    teachers: Mapping[bool, Any],
    material: Material,
    partial: Path,
    share: Share,
) -> dict[str, Any]:
    """Train `model` by one stage, or take the result of a stage that was done before a crash; returns its record."""
    import transformers
    from safetensors.torch import load_model, save_model

    from pyserini_kd.distillation.objective import Learner

    folder, weights, done = (partial / f"stage-{number}{ending}" for ending in ("", ".safetensors", ".json"))
    if done.exists():
        load_model(model, str(weights))
        return read_json(done, "record of a stage")
    started = time.monotonic()
    folder.mkdir(exist_ok=True)
    earlier = 0.0 if share.rank else clock(folder)
    transformers.set_seed(config.seed)
    teacher = teachers[stage.text] if stage.needs_layers or (stage.needs_scores and material.scores is None) else None
    batches, collator, factor = _batches(config, stage, model, teacher, material, share)
    module = Learner(
        model, stage.losses, config.score_scale or 1.0, teacher=teacher, teacher_dropout=config.teacher_dropout,
        temperature=config.temperature, text=stage.text, length=None if stage.text else collator.length, share=share,
    )  # fmt: skip
    _take_projection(module, partial, number)
    with one_after_another(share):
        resume = _last_state(folder, share)
    trainer, log = _trainer(config, stage, module, batches, collator, folder, share)
    trainer.add_callback(_seal(module, folder, share))
    if resume and not share.rank:
        module.terms = read_json(Path(resume) / TERMS, "loss terms")  # as `_seal` wrote them
    watch = None
    if material.dev and any(loss not in recipes.LAYER_LOSSES for loss in stage.losses):
        settings = {name: getattr(config, name) for name in ("metric", "eval_steps", "patience")}
        settings |= {"plateau": stage.schedule == "plateau", "precision": precision_of(config)}
        watch = Watch(model, material.dev, folder, **settings, writes=share.rank == 0)
        watch.go_on(_steps_of(resume))
        trainer.add_callback(watch.callback())
    steps = _steps_of(resume)
    if resume and (steps >= trainer.args.max_steps or (watch and watch.is_enough())):
        load_model(module, str(Path(resume) / "model.safetensors"))  # Trainer would go on for a step
        log = _log_before(folder, steps)
    else:
        with quiet():
            steps = trainer.train(resume_from_checkpoint=resume).global_step
    with one_after_another(share):
        measured = watch.take_best() if watch else []
        record = {
            **stage._asdict(),
            "start_scale": factor,
            "steps": steps,
            "seconds": round(earlier + time.monotonic() - started, 1),
            "log": log,
            "dev": measured,
        }
        if share.rank == 0:
            save_model(model, str(weights))
            _keep_projection(module, partial, number)
            write_json(done, record)  # last: a stage without it is not done
            shutil.rmtree(folder)
    return record


def _keep_projection(module: Any, partial: Path, number: int) -> None:
    """Keep what a stage has learnt of mapping the student's states to the teacher's, for the next."""
    from safetensors.torch import save_model

    if hasattr(module, "projection"):
        save_model(module.projection, str(partial / f"projection-{number}.safetensors"))


def _take_projection(module: Any, partial: Path, number: int) -> None:
    """Begin with the projection of the stage before, where that had one of this shape (TinyBERT's is part of its model)."""
    from safetensors.torch import load_file

    path = partial / f"projection-{number - 1}.safetensors"
    if hasattr(module, "projection") and path.exists():
        found, own = load_file(path), module.projection.state_dict()
        if all(found[name].shape == tensor.shape for name, tensor in own.items()):
            module.projection.load_state_dict(found)


def _batches(
    config: TrainConfig, stage: Stage, model: Any, teacher: Any, material: Material, share: Share
) -> tuple[Sequence[Any], Any, float]:
    """The batches of a stage, what makes tensors of them, and what the student's scores were multiplied by for a start."""
    from pyserini_kd.distillation.objective import match_scale

    groups, queries, docs, scores, texts, _ = material
    if stage.text:
        text_collator = TextCollator(model, config.train_len, share=share)
        text_collator.length = min(text_collator.length, window_of(teacher))
        _say_what_is_cut(model, _some(texts), text_collator.length, "; to have them whole, --segment")
        return cut_texts(texts, config.batch_size, config.seed), text_collator, 1.0
    lengths = _lengths(groups, docs) if config.length_buckets else None
    batches = cut_batches(groups, config.batch_size, config.seed, lengths)
    collator = Collator(
        model, queries, docs, scores if stage.needs_scores else None, config.train_len,
        teacher=teacher, same_inputs=stage.needs_layers, in_batch="in_batch" in stage.losses,
    )  # fmt: skip
    _say_what_is_cut(model, [docs[group.doc_ids[0]] for group in _some(groups)], collator.length, "")
    pairs = sum(len(group.doc_ids) for group in batches[0])
    if config.architecture == "cross_encoder" and pairs > MANY:
        logger.warning("a batch has %d pairs, each of which a cross_encoder reads: take a smaller --batch-size, or candidates "
                       "of fewer documents (mine --negatives 3)", pairs)  # fmt: skip
    factor = 1.0
    if stage.match_scale and stage.needs_scores and config.architecture in recipes.SCALED and not model.settings.l2_norm:
        factor = match_scale(model, collator, batches, config.score_scale or 1.0, teacher)
        logger.info("to begin on the teacher's scale, the student's scores are multiplied by %.3g", factor)
        if factor > FEEBLE:
            logger.warning("WARNING: the student tells documents hardly apart yet, and that makes its noise as large: with "
                           "--pooling mean, another --init or --no-match-scale it may learn more")  # fmt: skip
    collator.share = share
    return batches, collator, factor


def _some(items: Sequence[Any]) -> list[Any]:
    """A sample, as even as it is."""
    return [items[row] for row in range(0, len(items), len(items) // SAMPLE + 1)]


def _say_what_is_cut(model: Any, texts: Sequence[str], length: int, advice: str) -> None:
    """Tell how many of some texts are longer than what is read of them in training."""
    _, cut = tokenize(model.tokenizer, texts, length)
    if cut:
        share = 100 * cut / len(texts)
        logger.info("%.0f%% of the texts (of a sample) are longer than %d tokens, and are cut%s", share, length, advice)


def _lengths(groups: Sequence[Group], docs: Mapping[str, str]) -> Any:
    """Length of the longest document of every group."""
    if isinstance(groups, Triples):
        return groups.lengths()
    return np.fromiter((max(len(docs[doc_id]) for doc_id in group.doc_ids) for group in groups), np.int32, len(groups))


def _last_state(folder: Path, share: Share) -> str | None:
    """The last Trainer checkpoint of a stage that every process, however many there were, has saved; or None."""
    states = states_of(folder)
    while states and not (world := _saved_by(states[-1])):
        shutil.rmtree(states.pop(), ignore_errors=True)  # killed while saving
    if not states:
        return None
    logger.info("going on from %s", states[-1])
    if world != share.world:
        logger.warning("it was saved by %d processes, here are %d: dropout will draw other numbers", world, share.world)
    return str(states[-1])


def _saved_by(state: Path) -> int:
    """The number of processes that have saved a Trainer checkpoint, each all of its part; 0 where some have not."""
    found = Counter(int(path.name.rpartition("-")[2]) for path in state.glob("saved-*-of-*"))
    return next((world for world, count in found.items() if count == world), 0)


def _steps_of(state: str | None) -> int:
    """Optimiser steps before a Trainer checkpoint."""
    return int(read_json(Path(state) / "trainer_state.json", "state of training")["global_step"]) if state else 0


def _log_before(folder: Path, steps: int) -> list[dict[str, float]]:
    """The log of a stage up to a step, from before a crash."""
    path = folder / "log.json"
    before = read_json(path, "log of a stage")["log"] if steps and path.exists() else []
    return [entry for entry in before if entry["step"] <= steps]


def clock(folder: Path) -> float:
    """Seconds that earlier sessions worked here, up to the last file they left, which are lost to no kill; begins a new one."""
    record, now = folder / "clock.json", time.time()
    before = 0.0
    if record.exists():
        known = read_json(record, "clock")
        last = max(path.stat().st_mtime for path in folder.rglob("*"))
        before = float(known["seconds"]) + max(0.0, last - float(known["began"]))
    write_json(record, {"seconds": before, "began": now})
    return before


def _seal(module: Any, folder: Path, share: Share) -> Any:
    """A Trainer callback that saves the loss terms that are not logged yet, and says of a saved state when it is complete."""
    import transformers

    class Seal(transformers.TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            saved = folder / f"checkpoint-{state.global_step}"
            if not share.rank:
                write_json(saved / TERMS, module.terms)
            (saved / f"saved-{share.rank}-of-{share.world}").touch()

    return Seal()


def states_of(folder: Path) -> list[Path]:
    """Trainer's checkpoints in a stage's folder, oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def _terms(module: Any, log: list[dict[str, float]], folder: Path, share: Share) -> Any:
    """A Trainer callback that logs every loss term, warns when scores collapse and stops where a gradient is not finite."""
    import torch
    import transformers

    class Terms(transformers.TrainerCallback):
        """Keeps the mean of every loss term between two log lines, and warns when scores collapse."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            log.extend(_log_before(folder, state.global_step))

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            sums = torch.stack([p.grad.sum().float() for p in module.parameters() if p.grad is not None])
            if not torch.isfinite(sums.sum()):
                raise FloatingPointError(f"step {state.global_step + 1}: a gradient is not finite")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not module.terms or "loss" not in (logs or {}):
                return
            terms = {name: float(np.mean(values)) for name, values in module.terms.items()}
            module.terms.clear()
            more = {"grad_norm": float(logs["grad_norm"])} if "grad_norm" in logs else {}
            log.append({"step": state.global_step, "lr": logs["learning_rate"], **more, **terms})
            if share.rank:
                return
            write_json(folder / "log.json", {"log": log})
            if args.disable_tqdm:
                shown = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
                logger.info("step %d of %d: %s", state.global_step, state.max_steps, shown)
            if terms.get("score_std", 1.0) < FLAT * max(1.0, abs(terms.get("score_mean", 0.0))):
                logger.warning("step %d: a query's documents all score nearly the same; the model has collapsed",
                               state.global_step)  # fmt: skip

    return Terms()


def _trainer(
    config: TrainConfig, stage: Stage, module: Any, batches: Sequence[Any], collator: Any, folder: Path, share: Share
) -> tuple[Any, list[dict[str, float]]]:
    import transformers

    log: list[dict[str, float]] = []

    class Trainer(transformers.Trainer):
        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            """AdamW, with TK's second learning rate."""
            return quicken(super().create_optimizer(*args, **kwargs), module.student)

        def get_train_dataloader(self) -> Any:
            """Every process gets every batch: the collator takes this process's share of its pairs."""
            loader = super().get_train_dataloader()
            if share.world > 1:
                sampler: Any = loader.batch_sampler
                sampler.num_processes, sampler.process_index = 1, 0
            return loader

    steps = config.max_steps or max(1, math.ceil(math.ceil(len(batches) / config.accumulate) * stage.epochs))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
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
        ddp_find_unused_parameters=True,  # for DDP: a stage on layers alone leaves the head without gradients
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        label_names=[],
    )
    arguments.mixed_precision = "bf16" if arguments.bf16 else "no"  # whatever `accelerate launch` is configured for
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # or Trainer would split batches over all GPUs by itself; torchrun does that right
    trainer = Trainer(model=module, args=arguments, train_dataset=batches, data_collator=collator)
    trainer.add_callback(_terms(module, log, folder, share))
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer, log


def quicken(optimizer: Any, student: Any) -> Any:
    """Give the parameters that are to learn quickly (TK's kernels) a group, and a learning rate, of their own."""
    quick = {id(parameter) for parameter in recipes.quick_parameters(student)}
    for group in list(optimizer.param_groups):
        some = [parameter for parameter in group["params"] if id(parameter) in quick]
        if some:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in quick]
            optimizer.add_param_group({**group, "params": some, "lr": recipes.QUICK * group["lr"]})
    return optimizer


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Trainer's own chatter off; its progress bar stays."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
