"""Settings of a training run, the options that the command makes of them, and all rules that need no model and no data."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from pyserini_kd.distillation import recipes
from pyserini_kd.distillation.recipes import Recipe, Stage
from pyserini_kd.evaluation.measures import Measure
from pyserini_kd.models import checkpoint_folder
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.settings import Device, Pooling, Settings, option

RANDOM = "random:"  # an init of random weights: random:LAYERS/WIDTH
ALL_STUDENTS = ", ".join(checkpoint_folder.ARCHITECTURES)
FROM_RECIPE = None  # the default of fields that are never None: `TrainConfig.defaults` fills them in


def _layers(value: object) -> object:
    """`0,3,5` -> (0, 3, 5)."""
    if not isinstance(value, str):
        return value
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise InputError(f"must be numbers such as 0,3,5, not {value!r}", "layers") from None


class TrainConfig(Settings):
    """Everything that decides a training run besides its data. None: the recipe's or the checkpoint's default."""

    recipe: str = option("--recipe", help="Training procedure; --list shows them.")
    init: str = option(
        "--init", FROM_RECIPE, "What the student starts from: name, folder, hub id, random:LAYERS/WIDTH [default: minilm]."
    )
    architecture: str = option("--student", FROM_RECIPE, f"One of {ALL_STUDENTS} [default: the recipe's].")
    layers: Annotated[tuple[int, ...] | None, BeforeValidator(_layers)] = option(
        "--layers", None, "Layers kept of it, e.g. 0,3,5 [default: all].", plain=True
    )
    losses: tuple[str, ...] = option(
        "--loss",
        (),
        f"Change the recipe; NAME=none drops a loss, none drops all. Of {', '.join(recipes.LOSSES)}.",
        metavar="NAME=WEIGHT",
        words=True,
    )
    start_stage: int = option("--start-stage", 1, "First stage; --init has been through those before.", ge=1)
    teacher: str | None = option(
        "--teacher", None, "Live ranker: for layer and vector losses, and for soft losses where there is no --scores."
    )
    lm_teacher: str | None = option("--lm-teacher", None, "Language model to distil on the collection's plain text.")
    teacher_dropout: bool = option(
        "--teacher-dropout", False, "Leave the live teacher's dropout on, as TinyBERT's script does."
    )
    temperature: float = option("--temperature", 1.0, "Of soft_ranknet, soft_ce and _kl, listwise_kl.", gt=0)
    pooling: Pooling = None
    l2_norm: bool | None = option("--l2-norm/--no-l2-norm", None, "[default: from the recipe]")
    settings: tuple[str, ...] = option(
        "--setting",
        (),
        "Of the student's architecture: masks=8, width=128 (colbert), join_layer=3 (prettr), layers=2 (tk).",
        metavar="NAME=NUMBER",
        words=True,
    )
    glove: str | None = option("--glove", None, "GloVe text file for a tk student [default: the input embeddings of --init].")
    max_query_len: int | None = option("--max-query-length", None, "Tokens [default: from the checkpoint].", ge=3)
    max_doc_len: int | None = option("--max-length", None, "Tokens a document or pair [default: checkpoint].", ge=3)
    train_len: int | None = option("--train-length", None, "Tokens in training [default: --max-length].", ge=3)
    score_scale: float | None = option("--score-scale", None, "[default: from the recipe]", gt=0)
    lr: float | None = option("--lr", None, "Of every stage [default: from the recipe].", gt=0)
    schedule: Literal["linear", "constant", "cosine", "plateau"] | None = option(
        "--schedule", None, "Of the learning rate [default: the recipe's]."
    )
    epochs: float | None = option("--epochs", None, "Of every stage [default: from the recipe].", gt=0)
    max_steps: int | None = option("--max-steps", None, "Optimiser steps of every stage, instead of --epochs.", ge=1)
    batch_size: int = option("--batch-size --batch", 32, "Queries (groups) a batch.", ge=1)
    batch_tokens: int | None = option(
        "--batch-tokens", None, "Tokens a batch of plain texts, instead of --batch-size [default: the recipe's].", ge=1
    )
    length_buckets: bool = option("--length-buckets", False, "Triples of like length in a batch (quicker; another order).")
    accumulate: int = option("--accumulate", 1, "Batches an optimiser step.", ge=1)
    warmup: float | None = option("--warmup", None, "Share of steps [default: from the recipe].", ge=0, le=1)
    weight_decay: float | None = option("--weight-decay", None, "[default: from the recipe]", ge=0)
    match_scale: bool | None = option(
        "--match-scale/--no-match-scale",
        None,
        "Bring a bert_dot or colbert to the teacher's scale first, which no paper does [default: the recipe's].",
    )
    dropout: float | None = option("--dropout", None, "0 takes 10 to 25% less time [default: as saved].", ge=0, lt=1)
    max_grad_norm: float = option("--max-grad-norm", 1.0, "Gradients are clipped to it.", gt=0)
    save_steps: int = option("--save-steps", 200, "Steps between states that a crash goes back to.", ge=1)
    metric: str = option("--metric", "nDCG@10", "Measure on dev topics.")
    eval_steps: int = option("--eval-steps", 100, "Steps between measures on dev topics.", ge=1)
    patience: int | None = option("--patience", None, "Stop after so many measures without a better one.", ge=1)
    seed: int = option("--seed", 42, "Seed of dropout and batch order.", ge=0)
    precision: Literal["auto", "fp32", "bf16"] = option("--precision", "auto", "Arithmetic.")
    device: Device = "cpu"

    # ------------------------------------------------------------------------------------------------ what follows

    @property
    def procedure(self) -> Recipe:
        """The recipe with the losses of this configuration."""
        recipe = recipes.get(self.recipe)
        return recipes.with_losses(recipes.with_flops(recipe) if self.architecture == "splade" else recipe, self.losses)

    def stages(self) -> list[tuple[int, Stage]]:
        """The recipe's stages from `start_stage` on: their numbers, and the stages with the settings given here."""
        names = ("lr", "schedule", "epochs", "warmup", "weight_decay", "match_scale")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.batch_tokens or self.given("batch_size"):
            given["batch_tokens"] = self.batch_tokens
        numbered = list(enumerate(self.procedure.stages, start=1))[self.start_stage - 1 :]
        return [(number, stage._replace(**given)) for number, stage in numbered]

    @property
    def starts_random(self) -> bool:
        """Whether the student begins with random weights."""
        return self.init.startswith(RANDOM)

    @property
    def own_settings(self) -> dict[str, int]:
        """`settings` as numbers: ("join_layer=3",) -> {"join_layer": 3}."""
        return {name: int(number) for name, _, number in (text.partition("=") for text in self.settings)}

    @property
    def scaled(self) -> bool:
        """Whether the user has said how to treat small teacher scores: by a scale, or a temperature that all losses use."""
        soft = {loss for _, stage in self.stages() for loss in stage.losses if loss in recipes.SOFT_LOSSES}
        return self.score_scale is not None or (self.temperature != 1.0 and soft <= set(recipes.TEMPERED))

    def resolved(self) -> Self:
        """The same with the recipe's defaults for the student filled in."""
        filled = {name: getattr(self.procedure, name) for name in ("score_scale", "l2_norm") if getattr(self, name) is None}
        return self.model_copy(update=filled)

    def but(self, **values: Any) -> Self:
        """The same settings with some values replaced; the rules are checked again."""
        return type(self)(**{name: getattr(self, name) for name in self.model_fields_set} | values)

    def record(self) -> dict[str, object]:
        """The settings as `training.json` keeps them."""
        return self.model_dump(include=set(TrainConfig.model_fields))

    # ---------------------------------------------------------------------------------------------------- the rules

    @model_validator(mode="before")
    @classmethod
    def defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Where the recipe decides: its student's architecture, and what that starts from."""
        if "recipe" not in values:
            return values
        recipe = recipes.with_losses(recipes.get(values["recipe"]), values.get("losses", ()))
        start = values["init"] if values.get("init") else recipe.init(values.get("start_stage", 1))
        return {**values, "init": start, "architecture": values.get("architecture") or recipe.student}

    @model_validator(mode="after")
    def rules(self) -> Self:
        """InputError for settings that contradict each other, and for those without effect."""
        if self.architecture not in checkpoint_folder.ARCHITECTURES:
            raise InputError(f"unknown student {self.architecture!r}; one of {ALL_STUDENTS}", "architecture")
        if self.start_stage > (count := len(self.procedure.stages)):
            raise InputError(f"recipe {self.recipe} has {count} stage(s)", "start_stage")
        if self.device.startswith("cuda:") and self.device != "cuda:0":  # Trainer always takes the first one it sees
            number = self.device.removeprefix("cuda:")
            raise InputError(f"choose the GPU by CUDA_VISIBLE_DEVICES={number}, and the device cuda", "device")
        Measure.parse(self.metric)
        stages = [stage for _, stage in self.stages()]
        self._student_rules()
        self._setting_rules()
        self._teacher_rules(stages)
        return self

    def _student_rules(self) -> None:
        """Whether the recipe can train a student of this architecture, from this start."""
        recipe = self.procedure
        if recipe.l2_norm and self.architecture != "bert_dot":
            raise InputError(
                f"recipe {recipe.name} multiplies cosines, which only a bert_dot has, not a {self.architecture}; the recipe "
                "ranknet with the losses none and listwise_ce=1 takes the softmax over its scores"
            )
        needs = {loss: "cross_encoder" for loss in recipes.LAYER_LOSSES}
        needs |= dict.fromkeys(("in_batch", *recipes.VECTOR_LOSSES), "bert_dot") | dict.fromkeys(recipes.FLOPS_LOSSES, "splade")
        for loss in (loss for stage in recipe.stages for loss in stage.losses):
            if needs.get(loss, self.architecture) != self.architecture:
                every = recipes.RECIPES.values()
                fit = [r.name for r in every if not (r.l2_norm or needs.keys() & {x for s in r.stages for x in s.losses})]
                raise InputError(
                    f"recipe {recipe.name} with the loss {loss} is for a {needs[loss]} student, not a {self.architecture}; "
                    f"for every student: {', '.join(fit)}"
                )
        if self.starts_random and self.architecture != "cross_encoder":
            raise InputError(f"{self.init} makes a cross_encoder, not a {self.architecture}", "init")
        if self.starts_random:
            shape_of(self.init)

    def _setting_rules(self) -> None:
        """Whether the student's settings are for its architecture."""
        student, reads = self.architecture, "reads pairs, which have one maximum length and no pooling"
        self.only("pooling max_query_len", student != "cross_encoder", f"a cross_encoder {reads}")
        self.only("pooling", student == "bert_dot", f"is for a bert_dot; a {student} keeps its words apart")
        if student not in ("bert_dot", "colbert") and self.l2_norm:
            raise InputError(f"is for a bert_dot or a colbert, not for a {student}", "l2_norm")
        if self.match_scale and (student not in recipes.SCALED or self.l2_norm):
            raise InputError(f"is for a {' or a '.join(recipes.SCALED)} whose vectors are not normalised", "match_scale")
        if self.layers is not None and student == "tk":
            raise InputError("chooses layers of a checkpoint; a tk has its own (setting layers=2)", "layers")
        if self.layers is not None and self.starts_random:
            raise InputError(f"chooses layers of a checkpoint; {self.init} says how many there are", "layers")
        for text in self.settings:
            name, _, number = text.partition("=")
            if not name.isidentifier() or not number.isdecimal():
                raise InputError(f"must be NAME=NUMBER such as join_layer=3, not {text!r}", "settings")
            if name not in (known := checkpoint_folder.own_settings(student)):
                raise InputError(f"{name}: a {student} has {', '.join(known) or 'no settings of its own'}", "settings")

    def _teacher_rules(self, stages: list[Stage]) -> None:
        """Whether every stage has what it learns from, and nothing is given that no stage uses."""
        name = self.recipe
        for stage in stages:
            if stage.needs_vectors and not self.teacher:
                raise InputError(f"recipe {name} learns the vectors of a bi-encoder: name one", "teacher")
            if stage.makes_lm and not self.lm_teacher:
                other = ", or start with stage 2 if the student has been distilled already" if len(stages) > 1 else ""
                raise InputError(f"recipe {name} distils a language model: name one{other}", "lm_teacher")
            if not stage.text and stage.needs_layers and not self.teacher:
                raise InputError(f"recipe {name} distils layers: name a cross-encoder", "teacher")
        losses = {loss for stage in stages for loss in stage.losses}
        tempered = ", ".join(recipes.TEMPERED)
        self.only("temperature", losses & set(recipes.TEMPERED), f"is of {tempered}; recipe {name} has none of them")
        scores = any(stage.needs_scores for stage in stages)
        layers = any(stage.needs_layers for stage in stages if not stage.text) or any(stage.needs_vectors for stage in stages)
        if self.teacher and not (scores or layers or self.starts_random):  # a random student is made like its teacher
            raise InputError(f"recipe {name}, as asked for, learns nothing from a ranker", "teacher")
        plain = any(stage.text for stage in stages)
        self.only("batch_tokens", plain and not self.given("batch_size"), "sizes batches of plain texts; so may batch_size")
        if self.match_scale and not scores:
            raise InputError(f"is for losses on teacher scores; recipe {name}, as asked for, has none", "match_scale")

    def check_with_data(self, *, scored: bool, dev: bool, retrieves: bool) -> None:
        """InputError where the settings do not fit the data that will be there.

        Args:
            scored: there are teacher scores.
            dev: there are dev topics.
            retrieves: on which the student searches, instead of reranking a run.
        """
        stages, name = [stage for _, stage in self.stages()], self.recipe
        if retrieves and self.architecture != "bert_dot":
            raise InputError(f"is for a bert_dot student; a {self.architecture} reranks a run", "dev_retrieval")
        if not dev and any(stage.schedule == "plateau" for stage in stages):
            raise InputError("plateau follows measures on dev topics; there are none", "schedule")
        self.only("patience", dev or self.patience is None, "counts measures on dev topics; there are none")
        if dev and not any(loss not in recipes.LAYER_LOSSES for stage in stages for loss in stage.losses):
            raise InputError(f"dev topics show what losses on scores do; recipe {name}, as asked for, has none")
        if any(stage.needs_scores for stage in stages) and not scored and not self.teacher:
            raise InputError(
                f"recipe {name} needs them (from teach, or a published 5-column file), or a live teacher", "scores"
            )


def shape_of(init: str) -> tuple[int, int]:
    """`random:4/312` -> (4, 312), layers and width."""
    layers, _, width = init.removeprefix(RANDOM).partition("/")
    if not (layers.isdecimal() and width.isdecimal() and int(layers) and int(width)):
        raise InputError(f"{init}: expected random:LAYERS/WIDTH, such as random:4/312", "init")
    return int(layers), int(width)
