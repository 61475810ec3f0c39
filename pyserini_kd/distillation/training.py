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

from pyserini_kd.distillation import recipes
from pyserini_kd.distillation.batches import Share, pair_length
from pyserini_kd.distillation.candidates import Group, n_docs
from pyserini_kd.distillation.config import Material, TrainConfig
from pyserini_kd.distillation.processes import check_precision, one_after_another, precision_of, processes
from pyserini_kd.distillation.recipes import Recipe, Stage
from pyserini_kd.distillation.student import (
    RANDOM,
    check_start,
    fingerprint,
    is_scaled,
    load_student,
    load_teachers,
    refuse_ignored,
)
from pyserini_kd.distillation.teacher_scores import TeacherScores
from pyserini_kd.distillation.trainer import clock, quiet, run_stage, states_of
from pyserini_kd.distillation.training_data import state_folder
from pyserini_kd.distillation.triples import Triples
from pyserini_kd.distillation.validation import Dev
from pyserini_kd.models import checkpoint_names, saving
from pyserini_kd.storage.environment import command_line, environment
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_folder, refuse_existing
from pyserini_kd.storage.locks import alone
from pyserini_kd.storage.records import difference, read_json, write_json

logger = logging.getLogger(__name__)

OURS = ("stage-", "projection-", "clock.json", ".clock.json.", ".config.json.")
"""How names begin in resume state without its record, after a kill."""


@contextlib.contextmanager
def tiny_is_zero() -> Iterator[None]:
    """Denormal numbers count as 0: a ColBERT's gradients have many, and a processor takes most of its time over them.

    To be entered before torch has threads of its own, which inherit it.
    """
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@tiny_is_zero()
def train(
    config: TrainConfig,
    groups: Sequence[Group],
    queries: Mapping[str, str],
    docs: Mapping[str, str],
    output: str | Path,
    *,
    scores: TeacherScores | None = None,
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
    begun = begin_training(config, Path(output), scored=scored, dev=dev is not None, retrieves=retrieves, overwrite=overwrite)
    return finish_training(begun, Material(groups, queries, docs, scores, texts, dev), data or {}, started)


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


def begin_training(config: TrainConfig, output: Path, *, scored: bool, dev: bool, retrieves: bool, overwrite: bool) -> _Begun:
    """The student and its teachers; InputError where they, the recipe and the settings do not fit together.

    Before data are read: millions of passages take minutes. `scored`: teacher scores are given; `dev`: dev topics are;
    `retrieves`: among their whole collection.
    """
    import transformers

    from pyserini_kd.distillation import objective

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
            objective.check_layers(model, teachers[stage.text], stage.losses)
            if not stage.text:  # before the stages that come first are trained
                pair_length(model, config.train_len, teachers[False])
    return _Begun(config, recipe, numbered, scaled, model, teachers, made_from, distilled, precision, share, output, overwrite)


def finish_training(begun: _Begun, material: Material, data: Mapping[str, Any], started: float) -> Path:
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
        "data": {unit_of(groups): len(groups), "pairs": n_docs(groups), "texts": len(material.texts), **data},
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


def _checked_scores(begun: _Begun, material: Material) -> TeacherScores | None:
    """The scores, if the stages need them; InputError for what is missing of the material."""
    groups, scores, stages = material.groups, material.scores, [stage for _, stage in begun.stages]
    for stage in stages:
        if stage.text and not material.texts:
            raise InputError(f"recipe {begun.recipe.name} distils a language model on plain text, and there is none")
        if not stage.text and not groups:
            raise InputError("no query has both a positive in the collection and a negative")
    if scores is None or not any(stage.needs_scores for stage in stages):
        return None
    if missing := scores.missing():
        every = ((g.query_id, d, score) for g in groups for d, score in zip(g.doc_ids, scores.of(g), strict=True))
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


def _export(model: Any, last: Stage, output: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Write the checkpoint: a ranker, or the bare encoder where the last stage distilled a language model."""
    import torch

    from pyserini_kd.models.layers import encoder_of

    with torch.no_grad():
        model = model.cpu().eval()
        if not last.text:
            saving.save(model, output, record=record, overwrite=overwrite)
            return
        with atomic_folder(output, overwrite=overwrite) as folder, quiet():
            encoder_of(model).save_pretrained(folder)
            model.tokenizer.save_pretrained(folder)
            write_json(folder / "training.json", record)
    checkpoint_names.resolve.cache_clear()


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


def only_one(output: Path) -> contextlib.AbstractContextManager[None]:
    """InputError where another command trains the same output; its own other processes go along."""
    first = os.environ.get("RANK", "0") == "0"
    return alone(output.with_name(f".{output.name}.lock"), "train") if first else contextlib.nullcontext()


def unit_of(groups: Sequence[Group]) -> str:
    """What a group is called: each of a score file's triples is one of its own."""
    return "triples" if isinstance(groups, Triples) else "queries"
