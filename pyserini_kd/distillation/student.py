"""What training starts from: the student, its live teachers, and what is refused of them before it begins."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyserini_kd.distillation import recipes
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.processes import device_of
from pyserini_kd.distillation.recipes import Recipe, Stage
from pyserini_kd.models import checkpoint_names, checkpoint_settings, loading
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import read_json

logger = logging.getLogger(__name__)

COLBERT_MASKS = 8  # [MASK] tokens after each query of a new ColBERT (Hofstätter et al. 2020)
RANDOM = "random:"  # --init random:LAYERS/WIDTH
PUBLISHED = ("minilm", "tinybert-4l-312", "tinybert-6l-768", "distilbert")  # distilled language models of checkpoints.KNOWN
DISTILLED_NAMES = ("minilm", "distilbert", "tinybert")  # how others are called


def check_start(recipe: Recipe, stages: Sequence[Stage], config: TrainConfig) -> bool:
    """Whether the student is a distilled language model, or becomes one by these stages of the recipe.

    Where the recipe is meant to start from one and does not, as far as can be seen, that is said; InputError where it starts
    from one and must not.
    """
    becomes = any(stage.text for stage in stages)
    known = looks = False
    if not config.init.startswith(RANDOM):
        of_teachers = [fingerprint(name) for name in (config.teacher, config.lm_teacher if becomes else None) if name]
        if fingerprint(config.init) not in of_teachers:
            known, looks = _is_distilled(config.init)
    if known and not recipe.distilled_start:
        raise InputError(f"{recipe.name} must not start from a distilled language model, as {config.init} is; {recipes.ADVICE}")
    if looks and not recipe.distilled_start:
        logger.warning("WARNING: %s looks like a distilled language model; with it this is not %s: %s", config.init,
                       recipe.name, recipes.ADVICE)  # fmt: skip
    if looks and becomes:
        logger.warning("WARNING: %s looks like a distilled language model already; %s is meant to start from %s", config.init,
                       recipe.name, recipe.start)  # fmt: skip
    skipped = any(stage.text for stage in recipe.stages) and not becomes  # by --start-stage
    if (recipe.start == recipes.DISTILLED or skipped) and not looks:
        logger.warning("%s is meant to start from %s; nothing says that %s is one", recipe.name, recipes.DISTILLED, config.init)
    return becomes or known


def _is_distilled(name: str) -> tuple[bool, bool]:
    """Whether a checkpoint is known to be a distilled language model, or to come from one; whether it looks like one."""
    folder = checkpoint_names.resolve(name)
    record = folder / "training.json"
    ours = read_json(record, "record") if record.exists() else {}
    called = {each.lower() for each in (name, Path(name).name, checkpoint_names.name_of(folder))}
    known = fingerprint(name) == checkpoint_names.KNOWN[recipes.INIT].sha256 or bool(ours.get("distilled_lm"))
    known = known or not ours and bool(called & _published())
    return known, known or any(word in each for word in DISTILLED_NAMES for each in called)


def _published() -> set[str]:
    """What the published distilled language models are called: our names, hub ids, folders of that name."""
    hubs = {str(checkpoint_names.KNOWN[name].hub).lower() for name in PUBLISHED}
    return {*PUBLISHED, *hubs, *(hub.rpartition("/")[2] for hub in hubs)}


def load_teachers(config: TrainConfig, stages: Sequence[Stage]) -> dict[bool, Any]:
    """The live teachers that the stages need: True -> the language model, False -> the ranker (None where not given)."""
    teachers: dict[bool, Any] = {True: None, False: None}
    if config.lm_teacher and any(stage.text for stage in stages):
        teachers[True] = loading.load(config.lm_teacher, architecture="cross_encoder").to(device_of(config))
    rankers = [stage for stage in stages if not stage.text]
    if config.teacher and any(stage.needs_layers or stage.needs_scores for stage in rankers):
        inside = any(stage.needs_layers for stage in rankers) or config.teacher_dropout or config.init.startswith(RANDOM)
        teachers[False] = teacher = loading.load(config.teacher, lean=not inside).to(device_of(config))
        if any(stage.needs_layers for stage in rankers) and teacher.architecture != "cross_encoder":
            raise InputError(f"--teacher {config.teacher} is a {teacher.architecture}; layers are those of a cross-encoder")
        bounded = any(stage.needs_scores for stage in rankers) and checkpoint_settings.is_bounded(config.teacher)
        if bounded and not is_scaled(config, rankers):
            raise InputError(f"--teacher {config.teacher} gives cosines in [-1, 1]: say with --score-scale what the student's "
                             f"scores are to be multiplied by, or scale the teacher's in a score file (teach)")  # fmt: skip
    return teachers


def fingerprint(name: str) -> str:
    """What tells a checkpoint from others: its checksum, or `random:LAYERS/WIDTH` itself."""
    return name if name.startswith(RANDOM) else checkpoint_names.fingerprint(checkpoint_names.resolve(name))


def load_student(config: TrainConfig, teachers: Mapping[bool, Any]) -> Any:
    """The student as training begins, on its device, with the dropout asked for."""
    from torch import nn

    from pyserini_kd.distillation import cpu_training

    model = _start(config, teachers)
    if config.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):  # attention reads its rate from such a module too
                module.p = config.dropout
    if config.device == "cpu":
        cpu_training.fit(model)
    return model.to(device_of(config))


def _start(config: TrainConfig, teachers: Mapping[bool, Any]) -> Any:
    from pyserini_kd.distillation import objective

    if config.init.startswith(RANDOM):
        if config.architecture != "cross_encoder":
            raise InputError(f"--init {config.init} makes a cross_encoder, not a {config.architecture}")
        like = teachers[True] or teachers[False]
        if like is None and (config.lm_teacher or config.teacher):  # which teaches nothing in these stages
            architecture = "cross_encoder" if config.lm_teacher else None
            like = loading.load(str(config.lm_teacher or config.teacher), architecture=architecture)
        fresh = objective.random_student(config.init.removeprefix(RANDOM), like)
        if (config.max_doc_len or 0) > fresh.max_len:
            raise InputError(f"{config.init} reads {fresh.max_len} tokens at most; a longer length was asked for")
        fresh.max_len = config.max_doc_len or fresh.max_len
        return fresh
    overrides: dict[str, Any] = {"max_doc_len": config.max_doc_len}
    if config.architecture != "cross_encoder":
        overrides |= {"pooling": config.pooling, "l2_norm": config.l2_norm, "max_query_len": config.max_query_len}
    new = checkpoint_settings.architecture_of(checkpoint_names.resolve(config.init)) != config.architecture
    if config.glove and not (config.architecture == "tk" and new):
        raise InputError(f"--glove: word vectors are for a new tk student, not for {config.init} as a {config.architecture}")
    own: dict[str, Any] = dict(parse_setting(text) for text in config.settings)
    known = checkpoint_settings.own_settings(config.architecture)
    if unknown := [name for name in own if name not in known]:
        raise InputError(f"--setting {unknown[0]}: a {config.architecture} has {', '.join(known) or 'none of its own'}")
    if config.architecture == "colbert" and new:
        own.setdefault("masks", COLBERT_MASKS)
    model: Any = loading.load(
        config.init, architecture=config.architecture, layers=config.layers, glove=config.glove, settings=own, **overrides
    )
    objective.check_encoder(model)
    if config.architecture == "bert_dot" and model.settings.l2_norm and (config.score_scale or 1.0) == 1.0:
        logger.warning("WARNING: the student's vectors have length 1, its scores lie in [-1, 1]; losses on raw scores need "
                       "--no-l2-norm or, say, --score-scale 20")  # fmt: skip
    return model


def refuse_ignored(config: TrainConfig) -> None:
    """InputError for settings that would change nothing."""
    if config.architecture == "cross_encoder" and config.settings:
        raise InputError(f"--setting {config.settings[0]}: a cross_encoder has no settings of its own")
    if config.architecture == "cross_encoder" and (config.pooling or config.max_query_len):
        raise InputError("--pooling and --max-query-length are not for a cross_encoder; it reads pairs of --max-length tokens")
    if config.architecture not in ("bert_dot", "colbert") and config.l2_norm:
        raise InputError(f"--l2-norm is for a bert_dot or a colbert, not for a {config.architecture}")
    if config.architecture != "bert_dot" and config.pooling:
        raise InputError(f"--pooling is for a bert_dot; a {config.architecture} keeps its words apart")
    if config.match_scale and (config.architecture not in recipes.SCALED or config.l2_norm):
        raise InputError(f"--match-scale is for a {' or a '.join(recipes.SCALED)} whose vectors are not normalised")
    if config.layers is not None and config.architecture == "tk":
        raise InputError("--layers chooses layers of a checkpoint; a tk has its own (--setting layers=2)")
    if config.layers is not None and config.init.startswith(RANDOM):
        raise InputError(f"--layers chooses layers of a checkpoint; {config.init} says how many there are")


def is_scaled(config: TrainConfig, stages: Sequence[Stage]) -> bool:
    """Whether the user has said what to do about teacher scores that are small: a scale, or a temperature that is used."""
    soft = {loss for stage in stages for loss in stage.losses if loss in recipes.SOFT_LOSSES}
    return config.score_scale is not None or (config.temperature != 1.0 and soft <= set(recipes.TEMPERED))


def parse_setting(text: str) -> tuple[str, int]:
    """`join_layer=3` -> ("join_layer", 3)."""
    name, _, number = text.partition("=")
    if not name.isidentifier() or not number.isdecimal():
        raise InputError(f"--setting must be NAME=NUMBER such as join_layer=3, not {text!r}")
    return name, int(number)


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """`0,3,5` -> (0, 3, 5)."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--layers must be numbers such as 0,3,5, not {text!r}") from None
