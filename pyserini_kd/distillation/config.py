"""Settings of a training run: option declarations and all checks that need no model and no data."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from pyserini_kd.distillation import recipes
from pyserini_kd.distillation.recipes import Recipe, Stage
from pyserini_kd.evaluation.measures import Measure
from pyserini_kd.models import checkpoint_folder
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.settings import Device, Pooling, Settings, option

RANDOM = "random:"  # prefix of random:LAYERS/WIDTH
ALL_STUDENTS = ", ".join(checkpoint_folder.ARCHITECTURES)
FROM_RECIPE = None  # placeholder default; `TrainConfig.defaults` fills these fields in


def _layers(value: object) -> object:
    """`0,3,5` -> (0, 3, 5)."""
    if not isinstance(value, str):
        return value
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise InputError(f"must be numbers such as 0,3,5, not {value!r}", "layers") from None


class TrainConfig(Settings):
    """All settings of a training run except its data. None means the default of the recipe or the checkpoint."""

    recipe: str = option("--recipe", help="Training procedure; --list shows all.")
    init: str = option(
        "--init", FROM_RECIPE, "Starting point of the student: name, folder, hub id or random:LAYERS/WIDTH [default: minilm]."
    )
    architecture: str = option("--student", FROM_RECIPE, f"Architecture: {ALL_STUDENTS} [default: from the recipe].")
    layers: Annotated[tuple[int, ...] | None, BeforeValidator(_layers)] = option(
        "--layers", None, "Layers of --init to keep, e.g. 0,3,5 [default: all].", plain=True
    )
    losses: tuple[str, ...] = option(
        "--loss",
        (),
        f"Set a loss weight; NAME=none drops the loss, none drops all. Losses: {', '.join(recipes.LOSSES)}.",
        metavar="NAME=WEIGHT",
        words=True,
    )
    start_stage: int = option("--start-stage", 1, "First stage to run; --init must have completed the earlier stages.", ge=1)
    teacher: str | None = option(
        "--teacher", None, "Live ranker, for layer and vector losses, and for soft losses without --scores."
    )
    lm_teacher: str | None = option("--lm-teacher", None, "Language model teacher, for plain text of the collection.")
    teacher_dropout: bool = option(
        "--teacher-dropout", False, "Keep the dropout of the live teacher on, as TinyBERT's script does."
    )
    temperature: float = option("--temperature", 1.0, "Temperature of soft_ranknet, soft_ce, soft_kl and listwise_kl.", gt=0)
    pooling: Pooling = None
    l2_norm: bool | None = option("--l2-norm/--no-l2-norm", None, "Unit vectors [default: from the recipe].")
    settings: tuple[str, ...] = option(
        "--setting",
        (),
        "Setting of the architecture: masks=8, width=128 (colbert), join_layer=3 (prettr), layers=2 (tk).",
        metavar="NAME=NUMBER",
        words=True,
    )
    glove: str | None = option("--glove", None, "GloVe text file for a tk student [default: input embeddings of --init].")
    max_query_len: int | None = option("--max-query-length", None, "Maximum query tokens [default: from the checkpoint].", ge=3)
    max_doc_len: int | None = option("--max-length", None, "Maximum document or pair tokens [default: checkpoint].", ge=3)
    train_len: int | None = option("--train-length", None, "Maximum tokens in training [default: --max-length].", ge=3)
    score_scale: float | None = option("--score-scale", None, "Factor of scores in the loss [default: from the recipe].", gt=0)
    lr: float | None = option("--lr", None, "Learning rate of every stage [default: from the recipe].", gt=0)
    schedule: Literal["linear", "constant", "cosine", "plateau"] | None = option(
        "--schedule", None, "Schedule of the learning rate [default: from the recipe]."
    )
    epochs: float | None = option("--epochs", None, "Epochs of every stage [default: from the recipe].", gt=0)
    max_steps: int | None = option("--max-steps", None, "Optimiser steps of every stage, instead of --epochs.", ge=1)
    batch_size: int = option("--batch-size --batch", 32, "Queries (groups) in a batch.", ge=1)
    batch_tokens: int | None = option(
        "--batch-tokens", None, "Tokens in a batch of plain texts, instead of --batch-size [default: from the recipe].", ge=1
    )
    length_buckets: bool = option("--length-buckets", False, "Batch triples of similar length (faster; new order).")
    accumulate: int = option("--accumulate", 1, "Batches in an optimiser step.", ge=1)
    warmup: float | None = option("--warmup", None, "Share of the steps for warm-up [default: from the recipe].", ge=0, le=1)
    weight_decay: float | None = option("--weight-decay", None, "Weight decay [default: from the recipe].", ge=0)
    match_scale: bool | None = option(
        "--match-scale/--no-match-scale",
        None,
        "Scale a bert_dot or colbert to the teacher's margins first (not in the papers) [default: from the recipe].",
    )
    dropout: float | None = option("--dropout", None, "Dropout rate; 0 saves 10 to 25% time [default: as saved].", ge=0, lt=1)
    freeze_embeddings: bool = option(
        "--freeze-embeddings", False, "Keep the embeddings of --init: of words, positions and segments."
    )
    max_grad_norm: float = option("--max-grad-norm", 1.0, "Gradients are clipped to this norm.", gt=0)
    save_steps: int = option("--save-steps", 200, "Steps between saved states (to resume after a crash).", ge=1)
    metric: str = option("--metric", "nDCG@10", "Measure on dev topics.")
    eval_steps: int = option("--eval-steps", 100, "Steps between evaluations on dev topics.", ge=1)
    patience: int | None = option("--patience", None, "Stop after this many evaluations without improvement.", ge=1)
    seed: int = option("--seed", 42, "Seed of dropout and batch order.", ge=0)
    precision: Literal["auto", "fp32", "bf16"] = option("--precision", "auto", "Arithmetic.")
    device: Device = "cpu"

    # ------------------------------------------------------------------------------------------- derived values

    @property
    def procedure(self) -> Recipe:
        """The recipe with the loss changes of this configuration. A splade student gets FLOPS regularisation."""
        recipe = recipes.get(self.recipe)
        return recipes.with_losses(recipes.with_flops(recipe) if self.architecture == "splade" else recipe, self.losses)

    def stages(self) -> list[tuple[int, Stage]]:
        """Return (number, stage) of each stage from `start_stage` on. Settings given here replace the defaults of the stage."""
        names = ("lr", "schedule", "epochs", "warmup", "weight_decay", "match_scale")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.batch_tokens or self.given("batch_size"):
            given["batch_tokens"] = self.batch_tokens
        numbered = list(enumerate(self.procedure.stages, start=1))[self.start_stage - 1 :]
        return [(number, stage._replace(**given)) for number, stage in numbered]

    @property
    def starts_random(self) -> bool:
        """Whether the student starts with random weights."""
        return self.init.startswith(RANDOM)

    @property
    def own_settings(self) -> dict[str, int]:
        """`settings` as numbers: ("join_layer=3",) -> {"join_layer": 3}."""
        return {name: int(number) for name, _, number in (text.partition("=") for text in self.settings)}

    @property
    def scaled(self) -> bool:
        """Whether the user set a score scale, or a temperature that all soft losses use, for small teacher scores."""
        soft = {loss for _, stage in self.stages() for loss in stage.losses if loss in recipes.SOFT_LOSSES}
        return self.score_scale is not None or (self.temperature != 1.0 and soft <= set(recipes.TEMPERED))

    def resolved(self) -> Self:
        """Return a copy with the recipe's defaults of `score_scale` and `l2_norm` filled in."""
        filled = {name: getattr(self.procedure, name) for name in ("score_scale", "l2_norm") if getattr(self, name) is None}
        return self.model_copy(update=filled)

    def but(self, **values: Any) -> Self:
        """Return a copy with some values replaced. All checks run again."""
        return type(self)(**{name: getattr(self, name) for name in self.model_fields_set} | values)

    def record(self) -> dict[str, object]:
        """Return the settings for `training.json`."""
        return self.model_dump(include=set(TrainConfig.model_fields))

    # ----------------------------------------------------------------------------------------------- checks

    @model_validator(mode="before")
    @classmethod
    def defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Fill in the architecture and the start of the student from the recipe."""
        if "recipe" not in values:
            return values
        recipe = recipes.with_losses(recipes.get(values["recipe"]), values.get("losses", ()))
        start = values["init"] if values.get("init") else recipe.init(values.get("start_stage", 1))
        return {**values, "init": start, "architecture": values.get("architecture") or recipe.student}

    @model_validator(mode="after")
    def rules(self) -> Self:
        """Raise InputError for contradictory settings and for settings without effect."""
        if self.architecture not in checkpoint_folder.ARCHITECTURES:
            raise InputError(f"unknown student {self.architecture!r}; expected one of {ALL_STUDENTS}", "architecture")
        if self.start_stage > (count := len(self.procedure.stages)):
            raise InputError(f"{self.start_stage} is too large: recipe {self.recipe} has {count} stage(s)", "start_stage")
        if self.device.startswith("cuda:") and self.device != "cuda:0":  # Trainer uses the first visible GPU
            number = self.device.removeprefix("cuda:")
            raise InputError(f"training uses the first visible GPU: set CUDA_VISIBLE_DEVICES={number}, device cuda", "device")
        Measure.parse(self.metric)
        stages = [stage for _, stage in self.stages()]
        self._student_rules()
        self._setting_rules()
        self._teacher_rules(stages)
        return self

    def _student_rules(self) -> None:
        """Check that the recipe can train this architecture from this start."""
        recipe = self.procedure
        if recipe.l2_norm and self.architecture != "bert_dot":
            raise InputError(
                f"recipe {recipe.name} needs unit vectors, but a {self.architecture} is no bert_dot; use recipe ranknet "
                "with the losses none and listwise_ce=1 (softmax over its scores)"
            )
        needs = {loss: "cross_encoder" for loss in recipes.LAYER_LOSSES}
        needs |= dict.fromkeys(("in_batch", *recipes.VECTOR_LOSSES), "bert_dot") | dict.fromkeys(recipes.FLOPS_LOSSES, "splade")
        for loss in (loss for stage in recipe.stages for loss in stage.losses):
            if needs.get(loss, self.architecture) != self.architecture:
                known = recipes.RECIPES.values()
                fit = [r.name for r in known if not (r.l2_norm or needs.keys() & {x for s in r.stages for x in s.losses})]
                raise InputError(
                    f"recipe {recipe.name} with the loss {loss} is for a {needs[loss]} student, not a {self.architecture}; "
                    f"recipes for every student: {', '.join(fit)}"
                )
        if self.starts_random and self.architecture != "cross_encoder":
            raise InputError(f"{self.init} makes a cross_encoder, not a {self.architecture}; name a checkpoint", "init")
        if self.starts_random:
            shape_of(self.init)

    def _setting_rules(self) -> None:
        """Check that the student's settings fit its architecture."""
        student, reads = self.architecture, "reads pairs: it has one maximum length (`max_doc_len`) and no pooling"
        self.only("pooling max_query_len", student != "cross_encoder", f"a cross_encoder {reads}")
        self.only("pooling", student == "bert_dot", f"is for a bert_dot, not for a {student}")
        if student not in ("bert_dot", "colbert") and self.l2_norm:
            raise InputError(f"is for a bert_dot or a colbert, not for a {student}", "l2_norm")
        if self.match_scale and (student not in recipes.SCALED or self.l2_norm):
            raise InputError(f"is for a {' or a '.join(recipes.SCALED)} whose vectors are not normalised", "match_scale")
        if self.layers is not None and student == "tk":
            raise InputError("keeps layers of a checkpoint; a tk has its own layers: use the setting layers=2", "layers")
        if self.layers is not None and self.starts_random:
            raise InputError(f"keeps layers of a checkpoint; {self.init} sets the number of layers itself", "layers")
        for text in self.settings:
            name, _, number = text.partition("=")
            if not name.isidentifier() or not number.isdecimal():
                raise InputError(f"must be NAME=NUMBER such as join_layer=3, not {text!r}", "settings")
            if name not in (known := checkpoint_folder.own_settings(student)):
                raise InputError(f"unknown setting {name}; a {student} has {', '.join(known) or 'none'}", "settings")

    def _teacher_rules(self, stages: list[Stage]) -> None:
        """Check that every stage has its teacher and that every teacher setting is used."""
        name = self.recipe
        for stage in stages:
            if stage.needs_vectors and not self.teacher:
                raise InputError(f"recipe {name} learns the vectors of a bi-encoder: name the teacher", "teacher")
            if stage.makes_lm and not self.lm_teacher:
                other = ", or set `start_stage` 2 for a distilled student" if len(stages) > 1 else ""
                raise InputError(f"recipe {name} distils a language model: name the teacher{other}", "lm_teacher")
            if not stage.text and stage.needs_layers and not self.teacher:
                raise InputError(f"recipe {name} distils layers: name a cross-encoder checkpoint", "teacher")
        losses = {loss for stage in stages for loss in stage.losses}
        tempered = ", ".join(recipes.TEMPERED)
        self.only("temperature", losses & set(recipes.TEMPERED), f"is for {tempered}; recipe {name} has none of them")
        scores = any(stage.needs_scores for stage in stages)
        layers = any(stage.needs_layers for stage in stages if not stage.text) or any(stage.needs_vectors for stage in stages)
        if self.teacher and not (scores or layers or self.starts_random):  # a random student copies its shape
            raise InputError(f"recipe {name} with these settings does not use a ranker teacher", "teacher")
        plain = any(stage.text for stage in stages)
        self.only("batch_tokens", plain, f"is for plain text; recipe {name} with these settings has none")
        self.only("batch_tokens", not self.given("batch_size"), "conflicts with `batch_size`; give one of them")
        if self.match_scale and not scores:
            raise InputError(f"is for losses on teacher scores; recipe {name} with these settings has none", "match_scale")

    def check_with_data(self, *, scored: bool, dev: bool, retrieves: bool) -> None:
        """Raise InputError if the settings do not fit the data.

        Args:
            scored: there are teacher scores.
            dev: there are dev topics.
            retrieves: the student searches for dev topics; otherwise it reranks a run.
        """
        stages, name = [stage for _, stage in self.stages()], self.recipe
        if retrieves and self.architecture != "bert_dot":
            raise InputError(f"is for a bert_dot student; a {self.architecture} reranks a run", "dev_retrieval")
        if not dev and any(stage.schedule == "plateau" for stage in stages):
            raise InputError("plateau needs dev topics", "schedule")
        self.only("patience", dev or self.patience is None, "needs dev topics")
        if dev and not any(loss not in recipes.LAYER_LOSSES for stage in stages for loss in stage.losses):
            raise InputError(f"dev topics need a loss on scores; recipe {name} with these settings has none")
        if any(stage.needs_scores for stage in stages) and not scored and not self.teacher:
            raise InputError(
                f"recipe {name} needs teacher scores (from teach, or a 5-column file) or a live `teacher`", "scores"
            )


def shape_of(init: str) -> tuple[int, int]:
    """Parse `random:LAYERS/WIDTH`: `random:4/312` -> (4, 312)."""
    layers, _, width = init.removeprefix(RANDOM).partition("/")
    if not (layers.isdecimal() and width.isdecimal() and int(layers) and int(width)):
        raise InputError(f"{init}: expected random:LAYERS/WIDTH, such as random:4/312", "init")
    return int(layers), int(width)
