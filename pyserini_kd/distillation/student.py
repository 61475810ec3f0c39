"""Load the student and its live teachers before training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from pyserini_kd.distillation import cpu_training, recipes
from pyserini_kd.distillation.config import RANDOM, TrainConfig, shape_of
from pyserini_kd.distillation.objective import random_student
from pyserini_kd.distillation.processes import device_of
from pyserini_kd.distillation.recipes import Recipe, Stage
from pyserini_kd.models import checkpoint_folder, loading
from pyserini_kd.models.bert_dot import BertDot
from pyserini_kd.models.cross_encoder import CrossEncoder
from pyserini_kd.models.layers import encoder_of, layers_of
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import Record, read_json

if TYPE_CHECKING:
    from pyserini_kd.models.loading import Model

logger = logging.getLogger(__name__)

COLBERT_MASKS = 8  # [MASK] tokens after each query of a new ColBERT (Hofstätter et al. 2020)
PUBLISHED = ("minilm", "tinybert-4l-312", "tinybert-6l-768", "distilbert")  # distilled, in checkpoint_folder.KNOWN
DISTILLED_NAMES = ("minilm", "distilbert", "tinybert")  # name parts of others


class Teachers(NamedTuple):
    """Live teachers of a run; None if no stage needs one."""

    ranker: Model | None = None
    language_model: Model | None = None

    def for_stage(self, stage: Stage) -> Model | None:
        """Return the teacher of a stage: the language model if the stage distils one, otherwise the ranker."""
        return self.language_model if stage.makes_lm else self.ranker


def check_start(recipe: Recipe, stages: Sequence[Stage], config: TrainConfig) -> bool:
    """Check the starting point of the student; return whether the student is or becomes a distilled language model.

    Warns if the recipe needs such a model and the checkpoint does not look like one.

    Raises:
        InputError: the recipe must not start from a distilled language model, and this is one.
    """
    becomes = any(stage.makes_lm for stage in stages)
    known = looks = False
    if not config.starts_random:
        teachers = [fingerprint(name) for name in (config.teacher, config.lm_teacher if becomes else None) if name]
        if fingerprint(config.init) not in teachers:
            known, looks = _is_distilled(config.init)
    if known and not recipe.distilled_start:
        raise InputError(
            f"{recipe.name} must not start from a distilled language model, as {config.init} is; {recipes.ADVICE}", "init"
        )
    warning = f"WARNING: {config.init} looks like a distilled language model"
    if looks and not recipe.distilled_start:
        logger.warning("%s; recipe %s must not start from one: %s", warning, recipe.name, recipes.ADVICE)
    if looks and becomes:
        logger.warning("%s already; %s should start from %s", warning, recipe.name, recipe.start)
    skipped = any(stage.makes_lm for stage in recipe.stages) and not becomes  # start_stage skips the language model
    if (recipe.start == recipes.DISTILLED or skipped) and not looks:
        logger.warning("%s should start from %s; %s does not look like one", recipe.name, recipes.DISTILLED, config.init)
    return becomes or known


def _is_distilled(name: str) -> tuple[bool, bool]:
    """Return whether a checkpoint is known to be (or come from) a distilled language model, and whether it looks like one."""
    folder = checkpoint_folder.resolve(name)
    record = folder / "training.json"
    ours = read_json(record, "record") if record.exists() else {}
    names = {text.lower() for text in (name, Path(name).name, checkpoint_folder.name_of(folder))}
    hubs = {str(checkpoint_folder.KNOWN[published].hub).lower() for published in PUBLISHED}
    published = {*PUBLISHED, *hubs, *(hub.rpartition("/")[2] for hub in hubs)}
    known = fingerprint(name) == checkpoint_folder.KNOWN[recipes.INIT].sha256 or bool(ours.get("distilled_lm"))
    known = known or not ours and bool(names & published)
    return known, known or any(word in text for word in DISTILLED_NAMES for text in names)


def load_teachers(config: TrainConfig, stages: Sequence[Stage]) -> Teachers:
    """Load the live teachers of the stages onto the device; InputError if one does not fit."""
    ranker = language_model = None
    if config.lm_teacher and any(stage.makes_lm for stage in stages):
        language_model = loading.load(config.lm_teacher, architecture="cross_encoder").to(device_of(config))
    ranking = [stage for stage in stages if not stage.text]
    layers, scores = (any(getattr(stage, need) for stage in ranking) for need in ("needs_layers", "needs_scores"))
    vectors = any(stage.needs_vectors for stage in stages)
    if config.teacher and (layers or scores or vectors):
        ranker = loading.load(config.teacher).to(device_of(config))
        if vectors and not isinstance(ranker, BertDot):
            raise InputError(f"{config.teacher} is a {ranker.architecture}; vector losses need a bert_dot", "teacher")
        if layers and not isinstance(ranker, CrossEncoder):
            raise InputError(f"{config.teacher} is a {ranker.architecture}; layer losses need a cross-encoder", "teacher")
        if scores and checkpoint_folder.is_bounded(config.teacher) and not config.scaled:
            raise InputError(f"{config.teacher} gives cosines in [-1, 1]: set `score_scale`, a factor of student scores, or "
                             "give it a weight in a score file (teach)", "teacher")  # fmt: skip
    return Teachers(ranker, language_model)


def fingerprint(name: str) -> str:
    """Return the checksum of a checkpoint, or `random:LAYERS/WIDTH` itself."""
    return name if name.startswith(RANDOM) else checkpoint_folder.fingerprint(checkpoint_folder.resolve(name))


def load_student(config: TrainConfig, teachers: Teachers) -> Model:
    """Load or make the student, with the dropout of the settings, on its device."""
    if any(stage.needs_vectors for _, stage in config.stages()):
        config = _like_teacher(config, teachers)
    model = _random(config, teachers) if config.starts_random else _from_checkpoint(config)
    if config.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):  # attention reads its rate from such a module
                module.p = config.dropout
    if config.freeze_embeddings:
        encoder_of(model).embeddings.requires_grad_(False)
    if config.device == "cpu":
        cpu_training.fit(model)
    return model.to(device_of(config))


def _random(config: TrainConfig, teachers: Teachers) -> CrossEncoder:
    """Make a cross-encoder with random weights, shaped like a teacher."""
    like = teachers.language_model or teachers.ranker
    if like is None and config.lm_teacher:  # not loaded: no stage learns from it
        like = loading.load(config.lm_teacher, architecture="cross_encoder")
    elif like is None and config.teacher:
        like = loading.load(config.teacher)
    fresh = random_student(*shape_of(config.init), like)
    if (config.max_doc_len or 0) > fresh.max_len:
        raise InputError(f"{config.init} reads at most {fresh.max_len} tokens, not {config.max_doc_len}", "max_doc_len")
    fresh.max_len = config.max_doc_len or fresh.max_len
    return fresh


def _like_teacher(config: TrainConfig, teachers: Teachers) -> TrainConfig:
    """Take pooling and l2_norm from the bi-encoder teacher, unless they are given."""
    assert isinstance(teachers.ranker, BertDot)
    settings = teachers.ranker.settings
    l2_norm = settings.l2_norm if config.l2_norm is None else config.l2_norm
    return config.model_copy(update={"pooling": config.pooling or settings.pooling, "l2_norm": l2_norm})


def _from_checkpoint(config: TrainConfig) -> Model:
    overrides: Record = {"max_doc_len": config.max_doc_len}
    if config.architecture != "cross_encoder":
        overrides |= {"pooling": config.pooling, "l2_norm": config.l2_norm, "max_query_len": config.max_query_len}
    new = checkpoint_folder.architecture_of(checkpoint_folder.resolve(config.init)) != config.architecture
    if config.glove and not (config.architecture == "tk" and new):
        raise InputError(f"word vectors are for a new tk student; {config.init} becomes a {config.architecture}", "glove")
    settings = config.own_settings
    if config.architecture == "colbert" and new:
        settings.setdefault("masks", COLBERT_MASKS)
    model = loading.load(
        config.init, architecture=config.architecture, layers=config.layers, glove=config.glove, settings=settings, **overrides
    )
    if config.architecture != "tk":  # a tk has its own layers
        layers_of(encoder_of(model))
    raw = any(not stage.needs_vectors for _, stage in config.stages())
    if raw and isinstance(model, BertDot) and model.settings.l2_norm and (config.score_scale or 1.0) == 1.0:
        logger.warning("WARNING: student vectors have length 1, so scores lie in [-1, 1]; for losses on raw scores, turn off "
                       "l2_norm or set score_scale, e.g. 20")  # fmt: skip
    return model
