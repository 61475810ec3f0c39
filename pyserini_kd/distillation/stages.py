"""Run one stage of a recipe.

Trainer's checkpoints lie in `NAME.partial/stage-N/` while the stage runs. Its weights and record stay there afterwards.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import transformers
from safetensors.torch import load_file, load_model, save_file, save_model

from pyserini_kd.distillation import recipes
from pyserini_kd.distillation.batches import (
    Collator,
    Share,
    TextCollator,
    cut_batches,
    cut_by_tokens,
    cut_texts,
    lengths_of,
    pair_length,
)
from pyserini_kd.distillation.candidates import as_groups
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.objective import Learner, match_scale
from pyserini_kd.distillation.processes import device_of, one_after_another, precision_of
from pyserini_kd.distillation.recipes import FLOPS_LOSSES, Stage
from pyserini_kd.distillation.sparsity import SparseLearner
from pyserini_kd.distillation.student import Teachers
from pyserini_kd.distillation.trainer import TERMS, Collate, Cut, Progress, clock, last_state, make_trainer
from pyserini_kd.distillation.training_data import Material
from pyserini_kd.distillation.validation import Watch
from pyserini_kd.distillation.vectors import (
    SidedTexts,
    VectorCollator,
    VectorLearner,
    cut_sided,
    encode_once,
    estimated_tokens,
)
from pyserini_kd.models.bert_dot import BertDot
from pyserini_kd.models.checkpoint_folder import quiet_transformers
from pyserini_kd.models.colbert import ColBert
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.models.tokens import tokenize
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.job import Job
from pyserini_kd.storage.records import read_json, write_json

if TYPE_CHECKING:
    from pyserini_kd.models.loading import Model

logger = logging.getLogger(__name__)
T = TypeVar("T")

SAMPLE = 500  # texts sampled to estimate the share that is cut
MAX_FACTOR = 30.0  # warn above this scale factor; pretrained layers with good pooling start below 1
MAX_PAIRS = 512  # pairs in a batch; above it a cross-encoder step is slow and takes gigabytes


class Work(NamedTuple):
    """Everything that the stages of a training run share."""

    config: TrainConfig
    model: Model
    teachers: Teachers
    material: Material
    job: Job
    share: Share


def states_of(job: Job, number: int) -> Path:
    """Return the folder of Trainer's checkpoints of a stage."""
    return job.folder / f"stage-{number}"


def run_stage(work: Work, number: int, stage: Stage) -> dict[str, object]:
    """Train the student by one stage, or load the result of a finished stage; return the record of the stage."""
    job, share, student = work.job, work.share, work.model
    weights, result = job.path(number, "safetensors"), job.path(number, "json")
    if job.is_done(number):
        load_model(student, str(weights))
        return read_json(result, "record of a stage")
    started = time.monotonic()
    folder = states_of(job, number)
    folder.mkdir(exist_ok=True)
    earlier = 0.0 if share.rank else clock(folder)
    learner, watch, start_scale, steps, log = _learn(work, number, stage, folder)
    with one_after_another(share):
        measured = watch.take_best() if watch else []
        seconds = round(earlier + time.monotonic() - started, 1)
        learnt = {"start_scale": start_scale, "steps": steps, "seconds": seconds, "log": log, "dev": measured}
        record = {**stage._asdict(), **learnt}
        if share.rank == 0:
            save_model(student, str(weights))
            if hasattr(learner, "projection"):
                save_file(learner.projection.state_dict(), job.path(number, "projection"))
            write_json(result, record)
            job.finish(number)
            shutil.rmtree(folder)
    return record


Learnt = tuple[Learner, Watch | None, float, int, list[dict[str, float]]]
"""Learner, dev evaluation, factor of the starting scores, number of steps, log."""


def _learn(work: Work, number: int, stage: Stage, folder: Path) -> Learnt:
    """Train until the stage ends, from the last saved state if there is one."""
    config, material, share = work.config, work.material, work.share
    transformers.set_seed(config.seed)
    module, batches, collator, start_scale = (_vectors if stage.needs_vectors else _candidates)(work, stage, folder)
    _take_projection(module, work.job, number)
    with one_after_another(share):
        resume = last_state(folder, share)
    progress = Progress(module, folder, share)
    trainer = make_trainer(config, stage, progress, batches, collator)
    if resume and not share.rank:
        module.terms = read_json(Path(resume) / TERMS, "loss terms")
    steps = int(read_json(Path(resume) / "trainer_state.json", "state of training")["global_step"]) if resume else 0
    watch = None
    if material.dev and any(loss not in recipes.LAYER_LOSSES for loss in stage.losses):
        watch = Watch(work.model, material.dev, folder, metric=config.metric, eval_steps=config.eval_steps,
                      patience=config.patience, plateau=stage.schedule == "plateau", precision=precision_of(config),
                      writes=share.rank == 0)  # fmt: skip
        watch.resume_from(steps)
        trainer.add_callback(watch)
    if resume and (steps >= trainer.args.max_steps or (watch and watch.is_enough())):
        load_model(module, str(Path(resume) / "model.safetensors"))  # Trainer would run one more step
        progress.resume_from(steps)
    else:
        with quiet_transformers():
            steps = trainer.train(resume_from_checkpoint=resume).global_step
    return module, watch, start_scale, steps, progress.log


Prepared = tuple[Learner, Cut, Collate, float]
"""Learner, batches, collator, factor of the starting scores."""


def _candidates(work: Work, stage: Stage, folder: Path) -> Prepared:
    """Prepare a stage on candidates, or a stage that distils a language model on plain text."""
    config = work.config
    live = stage.needs_layers or (stage.needs_scores and work.material.scores is None)
    teacher = work.teachers.for_stage(stage) if live else None
    batches, collator, start_scale = _batches(work, stage, teacher)
    regularised = any(name in FLOPS_LOSSES for name in stage.losses)
    if regularised and work.share.world > 1:
        raise InputError(f"{' and '.join(FLOPS_LOSSES)} need the whole batch in one process; start one process")
    module = (SparseLearner if regularised else Learner)(
        work.model, stage.losses, config.score_scale or 1.0, teacher=teacher, teacher_dropout=config.teacher_dropout,
        temperature=config.temperature, text=stage.text, length=None if stage.text else collator.length, share=work.share,
    )  # fmt: skip
    return module, batches, collator, start_scale


def _vectors(work: Work, stage: Stage, folder: Path) -> Prepared:
    """Prepare a stage on vectors of a bi-encoder. The teacher encodes each text of the batches once."""
    config, model, teacher, share = work.config, work.model, work.teachers.for_stage(stage), work.share
    assert isinstance(model, BertDot) and isinstance(teacher, BertDot)
    if "vector_mse" not in stage.losses and not teacher.settings.l2_norm:
        logger.warning("WARNING: teacher vectors differ in length, and vector_cosine ignores lengths; add the loss vector_mse")
    texts, length = SidedTexts(work.material.queries, work.material.texts), pair_length(model, config.train_len)
    limit = config.max_steps * config.accumulate if config.max_steps else None
    batches = cut_sided(texts, model.tokenizer, length, config.seed,
                        tokens=stage.batch_tokens, size=config.batch_size, limit=limit)  # fmt: skip
    rows = np.sort(batches.rows)
    logger.info("%d of %d texts (%d queries, %d documents) in %d batches", len(rows), len(texts), len(work.material.queries),
                len(work.material.texts), len(batches))  # fmt: skip
    _log_cut(model, [text.text for text in _sample(texts)], length, "; to keep whole texts, cut passages (segment)")
    encoder = load_encoder(str(config.teacher), device=device_of(config), precision=config.precision)
    with one_after_another(share):
        vectors = encode_once(folder / "vectors", encoder, texts, rows, share)
    module = VectorLearner(model, stage.losses, teacher.width, share=share)
    return module, batches, VectorCollator(model, vectors, config.train_len, share=share), 1.0


def _take_projection(module: Learner, job: Job, number: int) -> None:
    """Start from the projection of the previous stage if the shape fits. In TinyBERT it is part of the model."""
    path = job.path(number - 1, "projection")
    if hasattr(module, "projection") and path.exists():
        saved, current = load_file(path), module.projection.state_dict()
        if all(saved[name].shape == tensor.shape for name, tensor in current.items()):
            module.projection.load_state_dict(saved)


def _batches(work: Work, stage: Stage, teacher: Model | None) -> tuple[Cut, Collate, float]:
    """Return the batches of a stage, their collator, and the factor of the starting scores."""
    config, model, material = work.config, work.model, work.material
    if stage.text:
        assert teacher is not None
        text_collator = TextCollator(model, config.train_len, teacher, share=work.share)
        _log_cut(model, _sample(material.texts), text_collator.length, "; to keep whole texts, cut passages (segment)")
        if stage.batch_tokens is None:
            return cut_texts(material.texts, config.batch_size, config.seed), text_collator, 1.0
        tokens = estimated_tokens(model.tokenizer, material.texts.__getitem__, lengths_of(material.texts), text_collator.length)
        return cut_by_tokens(material.texts, tokens, stage.batch_tokens, config.seed), text_collator, 1.0
    groups, docs = material.groups, material.docs
    lengths = as_groups(groups).lengths(docs) if config.length_buckets else None
    batches = cut_batches(groups, config.batch_size, config.seed, lengths)
    collator = Collator(
        model, material.queries, docs, material.scores if stage.needs_scores else None, config.train_len,
        teacher=teacher, same_inputs=stage.needs_layers, in_batch="in_batch" in stage.losses,
    )  # fmt: skip
    _log_cut(model, [docs[group.doc_ids[0]] for group in _sample(groups)], collator.length, "")
    pairs = sum(len(group.doc_ids) for group in batches[0])
    if model.architecture == "cross_encoder" and pairs > MAX_PAIRS:
        logger.warning("a batch has %d pairs, slow for a cross_encoder; use a smaller batch size or fewer documents per query "
                       "(3 negatives)", pairs)  # fmt: skip
    factor = 1.0
    if stage.match_scale and stage.needs_scores and isinstance(model, BertDot | ColBert) and not model.settings.l2_norm:
        factor = match_scale(model, collator, batches, config.score_scale or 1.0, teacher)
        logger.info("student scores are scaled by %.3g to match the teacher", factor)
        if factor > MAX_FACTOR:
            logger.warning("WARNING: student scores are nearly constant, and scaling amplifies their noise; try mean pooling, "
                           "another init, or no match_scale")  # fmt: skip
    collator.share = work.share
    return batches, collator, factor


def _sample(items: Sequence[T]) -> list[T]:
    """Return evenly spaced items, at most SAMPLE + 1."""
    return [items[row] for row in range(0, len(items), len(items) // SAMPLE + 1)]


def _log_cut(model: Model, texts: Sequence[str], length: int, advice: str) -> None:
    """Log the share of texts longer than training reads."""
    _, cut = tokenize(model.tokenizer, texts, length)
    if cut:
        share = 100 * cut / len(texts)
        logger.info("%.0f%% of sampled texts have more than %d tokens and are cut%s", share, length, advice)
