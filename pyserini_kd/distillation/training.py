"""Train a student: run a recipe stage by stage and export a checkpoint.

The state lies in `NAME.partial/` beside the checkpoint; the same command resumes after a crash. Several processes, started by
`torchrun` or `accelerate launch`, share each batch and learn the same as one process.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from safetensors.torch import load_file

from pyserini_kd.data import sources
from pyserini_kd.distillation import objective
from pyserini_kd.distillation.batches import pair_length
from pyserini_kd.distillation.candidates import Group, as_groups
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.model_card import model_card
from pyserini_kd.distillation.processes import check_precision, one_after_another, processes
from pyserini_kd.distillation.recipes import Stage
from pyserini_kd.distillation.stages import Work, run_stage, states_of
from pyserini_kd.distillation.student import check_start, fingerprint, load_student, load_teachers
from pyserini_kd.distillation.teacher_scores import TeacherScores
from pyserini_kd.distillation.train_settings import TrainSettings
from pyserini_kd.distillation.trainer import checkpoints, clock
from pyserini_kd.distillation.training_data import Material, data_folder, digest, gather, state_folder
from pyserini_kd.distillation.validation import Dev, read_dev
from pyserini_kd.models import checkpoint_folder, saving
from pyserini_kd.models.layers import encoder_of
from pyserini_kd.storage.environment import command_line, environment, sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import alone, atomic_folder, refuse_existing
from pyserini_kd.storage.job import RECORD, Job
from pyserini_kd.storage.records import write_json

if TYPE_CHECKING:
    from pyserini_kd.models.loading import Model

logger = logging.getLogger(__name__)

STATE_PREFIXES = ("stage-", "0000", "clock.json", ".clock.json.", f".{RECORD}.")
"""Name prefixes in a state folder that a crash left without its record."""


@contextlib.contextmanager
def flush_denormals() -> Iterator[None]:
    """Flush denormal numbers to zero. The gradients of a ColBERT have many of them, which take most of a CPU's time.

    Enter this before torch starts threads; they inherit the setting.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@flush_denormals()
def train(
    config: TrainConfig, groups: Sequence[Group], queries: Mapping[str, str], docs: Mapping[str, str], output: str | Path, *,
    scores: TeacherScores | None = None, texts: Sequence[str] = (), dev: Dev | None = None,
    data: Mapping[str, object] | None = None, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Train a student by a recipe and write its checkpoint; return its folder.

    Args:
        config: the recipe and its settings.
        groups: candidates; empty if every stage is on plain text.
        queries: query_id -> text. A stage on vectors also learns the vectors of all queries.
        docs: doc_id -> text.
        output: the checkpoint folder to write.
        scores: teacher scores, if the recipe needs them and has no live teacher. `Triples` serve as groups and as scores.
        texts: plain text, if the recipe has a stage on it.
        dev: dev topics; the checkpoint with the best `config.metric` on them is written.
        data: names and checksums of the data, for training.json.
        overwrite: replace the folder if it exists.

    Raises:
        InputError: the recipe does not fit the student; scores, a teacher or texts are missing; or the loss is not finite
            (the last good checkpoint is then `NAME.last-good`).
    """
    given = {"scored": scores is not None, "dev": dev is not None, "retrieves": dev is not None and dev.run is None}
    run = Training(config, Path(output), overwrite=overwrite, **given)
    return run.finish(Material(as_groups(groups), queries, docs, scores, texts, dev), data or {})


@flush_denormals()
def train_from_files(settings: TrainSettings) -> str:
    """Train on the data of the settings; return a description of the data, e.g. "40 triples".

    Raises:
        InputError: as `train`, or the data are wrong.
    """
    output = settings.output
    given = {"scored": settings.scores is not None, "dev": settings.dev_topics is not None, "retrieves": settings.dev_retrieval}
    is_first = os.environ.get("RANK", "0") == "0"  # only the first process locks the output
    with alone(output.with_name(f".{output.name}.lock"), "train") if is_first else contextlib.nullcontext():
        run = Training(settings, output, overwrite=settings.overwrite, **given)
        dev = read_dev(settings)
        with gather(settings) as found:
            data = settings.for_training() | {"glove": settings.glove}
            data |= {name: getattr(settings, name) for name in ("dev_topics", "dev_qrels", "dev_run")}
            known: dict[str, object] = {name: digest(name, value) for name, value in data.items() if value is not None}
            known |= {"dev_depth": settings.dev_depth, "dev_retrieval": settings.dev_retrieval} if dev else {}
            if sources.is_named(settings.collection):  # another release may change the texts
                known["texts_sha256"] = sha256(*sorted(data_folder(output).glob("*/texts")))
            run.finish(found._replace(dev=dev), known)
    topics = 0 if found.groups else len(found.queries)
    counts = [(len(found.groups), found.groups.unit), (len(found.texts), "plain texts"), (topics, "topics")]
    return " and ".join(f"{count} {what}" for count, what in counts if count)


class Training:
    """A training run. The constructor checks everything that needs no data, as reading data can take minutes."""

    def __init__(self, config: TrainConfig, output: Path, *, scored: bool, dev: bool, retrieves: bool, overwrite: bool) -> None:
        """Load the student and its teachers; InputError if models, recipe, settings and data do not fit together.

        `scored`, `dev` and `retrieves` describe the data, as in `TrainConfig.check_with_data`.
        """
        self.share = processes(config)
        self.precision = check_precision(config, self.share)
        refuse_existing(output, overwrite, folder=True)
        config.check_with_data(scored=scored, dev=dev, retrieves=retrieves)
        self.output, self.overwrite, self.recipe, self.numbered = output, overwrite, config.procedure, config.stages()
        self.stages = [stage for _, stage in self.numbered]
        self.teachers = load_teachers(config, self.stages)
        self.scaled, self.config = config.scaled, config.resolved()
        self.distilled = check_start(self.recipe, self.stages, config)
        names = {"init": config.init, "teacher": config.teacher, "lm_teacher": config.lm_teacher}
        self.made_from = {role: fingerprint(name) for role, name in names.items() if name}
        transformers.set_seed(config.seed)
        self.model = load_student(self.config, self.teachers)
        for stage in self.stages:
            teacher = self.teachers.for_stage(stage)
            if stage.needs_layers and teacher is not None:
                objective.check_layers(self.model, teacher, stage.losses)
                if not stage.text:  # fail before earlier stages train
                    pair_length(self.model, config.train_len, teacher)

    def finish(self, material: Material, data: Mapping[str, object]) -> Path:
        """Run the stages and write the checkpoint; InputError if data are missing or the loss is not finite.

        `data` are names and checksums of the data, for training.json.
        """
        started, config, share, groups = time.monotonic(), self.config, self.share, material.groups
        material = material._replace(scores=self._checked_scores(material))
        settings = {name: value for name, value in config.record().items() if name != "save_steps"}  # no effect on the result
        about = {"config": settings, "data": dict(data), "made_from": self.made_from, "computed in": self.precision}
        job = Job(state_folder(self.output), about, states="stage-*/checkpoint-*", leavings=STATE_PREFIXES)  # part = stage
        with one_after_another(share):
            job.begin(overwrite=self.overwrite)
            earlier = 0.0 if share.rank else clock(job.folder)
        work = Work(config, self.model, self.teachers, material, job, share)
        records = []
        try:
            for number, stage in self.numbered:
                logger.info("stage %d of %d: %s", number, len(self.recipe.stages), stage.name)
                records.append(run_stage(work, number, stage))
        except FloatingPointError as error:
            with one_after_another(share):
                kept = self._keep_last_good(job, stage) if share.rank == 0 else "see the first process"
            raise InputError(f"{error} (lr {stage.lr:g}); try a lower learning rate; {kept}") from None
        n_queries = len(material.queries) if self.stages[-1].needs_vectors else 0
        record = {
            "recipe": {"name": self.recipe.name, "source": self.recipe.source, "start": self.recipe.start},
            "config": config.record(),
            "made_from": self.made_from,
            "distilled_lm": self.distilled,
            "data": {groups.unit: len(groups) or n_queries, "pairs": groups.n_docs, "texts": len(material.texts), **data},
            "stages": records,
            "precision": self.precision,
            "processes": share.world,
            "seconds": round(earlier + time.monotonic() - started, 1),
            "command": command_line(),
            **environment(),
        }  # fmt: skip
        with one_after_another(share):
            if share.rank == 0:
                _export(self.model, self.numbered[-1][1], self.output, record, self.overwrite)
                job.remove()
        return self.output

    def _checked_scores(self, material: Material) -> TeacherScores | None:
        """Return the scores if the stages need them; InputError if texts, groups or scores are missing."""
        groups, scores = material.groups, material.scores
        if any(stage.text for stage in self.stages) and not material.texts:
            purpose = "distil a language model" if any(stage.makes_lm for stage in self.stages) else "learn vectors"
            raise InputError(f"recipe {self.recipe.name} needs plain text to {purpose}; give texts")
        if any(not stage.text for stage in self.stages) and not groups:
            raise InputError("no query has both a positive in the collection and a negative")
        if scores is None or not any(stage.needs_scores for stage in self.stages):
            return None
        if missing := scores.missing():
            pairs = ((g.query_id, d, score) for g in groups for d, score in zip(g.doc_ids, scores.of(g), strict=True))
            query_id, doc_id = next((query_id, doc_id) for query_id, doc_id, score in pairs if math.isnan(score))
            raise InputError(
                f"{missing} candidate pairs have no teacher score, e.g. query {query_id}, "
                f"document {doc_id}; run teach on these candidates"
            )
        if not self.scaled and scores.largest() <= 1:  # cosines or probabilities, not logits
            raise InputError(
                "all teacher scores lie in [-1, 1] (cosine or sigmoid), too small to teach much; give the teacher a weight "
                "in teach, or set `score_scale`, a factor of student scores"
            )
        return scores

    def _keep_last_good(self, job: Job, stage: Stage) -> str:
        """Export the newest state with finite weights as `NAME.last-good`; return a sentence about it for the user."""
        folders = [states_of(job, number) for number, _ in self.numbered]
        states = [path / "model.safetensors" for folder in folders for path in checkpoints(folder)]
        best = sorted(job.folder.glob("stage-*/best-*.safetensors"), key=lambda path: path.stat().st_mtime_ns)  # on dev topics
        finished = [job.path(number, "safetensors") for number in job.parts()]
        for path in [*reversed(states), *reversed(best), *reversed(finished)]:
            weights = {name.removeprefix("student."): tensor for name, tensor in load_file(path).items()}
            if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
                continue
            current = self.model.state_dict()
            self.model.load_state_dict({name: weights.get(name, tensor) for name, tensor in current.items()})
            target = self.output.with_name(self.output.name + ".last-good")
            _export(self.model, stage, target, {"last_good_of": str(self.output)}, overwrite=True)
            return f"the last good checkpoint is {target}"
        return "there was no checkpoint yet"


def _export(model: Model, last: Stage, output: Path, record: dict[str, object], overwrite: bool) -> None:
    """Write the checkpoint: a ranker, or the bare encoder if the last stage distilled a language model."""
    with torch.no_grad():
        model = model.cpu().eval()
        card = model_card(str(output), model, record, is_ranker=not last.makes_lm) if "recipe" in record else None
        if not last.makes_lm:
            saving.save(model, output, record=record, card=card, openvino=True, overwrite=overwrite)
            return
        with atomic_folder(output, overwrite=overwrite) as folder, checkpoint_folder.quiet_transformers():
            encoder_of(model).save_pretrained(folder)
            model.tokenizer.save_pretrained(folder)
            write_json(folder / "training.json", record)
            if card is not None:
                (folder / saving.CARD).write_text(card, encoding="utf-8")
    checkpoint_folder.resolve.cache_clear()
