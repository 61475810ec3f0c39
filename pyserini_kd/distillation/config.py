"""Everything that decides a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pyserini_kd.distillation.candidates import Group
from pyserini_kd.distillation.recipes import Recipe, Stage
from pyserini_kd.distillation.teacher_scores import TeacherScores
from pyserini_kd.distillation.validation import Dev
from pyserini_kd.storage.errors import InputError


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run besides its data. None: the recipe's or the checkpoint's default."""

    recipe: str
    init: str
    architecture: str = "bert_dot"
    layers: tuple[int, ...] | None = None
    losses: tuple[str, ...] = ()  # NAME=WEIGHT, as `recipes.with_losses` takes them
    start_stage: int = 1  # of the recipe; `init` has been through those before
    teacher: str | None = None  # live ranker, for layer losses; for soft losses where there is no score file
    lm_teacher: str | None = None  # language model, for stages on plain text
    teacher_dropout: bool = False  # as in the published TinyBERT scripts, which never put the teacher in eval mode
    temperature: float = 1.0
    pooling: str | None = None
    l2_norm: bool | None = None
    settings: tuple[str, ...] = ()  # NAME=NUMBER, of the student's architecture: join_layer=3, masks=8, width=128
    glove: str | None = None  # word vectors of a tk student
    max_query_len: int | None = None
    max_doc_len: int | None = None  # of the checkpoint
    train_len: int | None = None  # tokens of a document (or pair) while training; None: max_doc_len
    score_scale: float | None = None
    lr: float | None = None
    schedule: str | None = None
    epochs: float | None = None
    max_steps: int | None = None  # of each stage
    batch_size: int = 32
    length_buckets: bool = False  # triples of like length in a batch
    accumulate: int = 1
    warmup: float | None = None
    weight_decay: float | None = None
    match_scale: bool | None = None  # whether a bert_dot or colbert is first brought to the teacher's scale
    dropout: float | None = None  # of every layer, attention included; 0 takes 10 to 25% less time on a CPU
    max_grad_norm: float = 1.0
    save_steps: int = 200
    metric: str = "nDCG@10"  # on dev topics, where there are any
    eval_steps: int = 100
    patience: int | None = None  # evaluations without a better one before training stops; None: never
    seed: int = 42
    precision: str = "auto"
    device: str = "cpu"

    def resolved(self, recipe: Recipe) -> TrainConfig:
        """The same with the recipe's defaults for the student filled in."""
        filled = {name: getattr(recipe, name) for name in ("score_scale", "l2_norm") if getattr(self, name) is None}
        return dataclasses.replace(self, **filled)

    def stages(self, recipe: Recipe) -> list[tuple[int, Stage]]:
        """The recipe's stages from `start_stage` on, with their numbers and with this configuration's settings."""
        if self.start_stage > len(recipe.stages):
            raise InputError(f"--start-stage {self.start_stage}: recipe {recipe.name} has {len(recipe.stages)} stage(s)")
        names = ("lr", "schedule", "epochs", "warmup", "weight_decay", "match_scale")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        numbered = list(enumerate(recipe.stages, start=1))[self.start_stage - 1 :]
        return [(number, stage._replace(**given)) for number, stage in numbered]


class Material(NamedTuple):
    """What a run trains on: candidates with texts and teacher scores, plain texts, dev topics."""

    groups: Sequence[Group]
    queries: Mapping[str, str]
    docs: Mapping[str, str]
    scores: TeacherScores | None
    texts: Sequence[str]
    dev: Dev | None
