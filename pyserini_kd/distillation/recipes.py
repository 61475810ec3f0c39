"""Training procedures of the papers as data: stages with their losses, weights and defaults."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from pyserini_kd.storage.errors import InputError

HARD_LOSSES = ("ranknet", "hinge", "bce", "listwise_ce", "listnet", "lambda", "in_batch")
"""Losses on labels. `in_batch` is `listwise_ce` over all documents of the batch, for bert_dot."""
SOFT_LOSSES = ("margin_mse", "weighted_ranknet", "soft_ranknet", "pointwise_mse", "soft_ce", "soft_kl", "listwise_kl")
"""Losses on teacher scores, from a score file or a live teacher."""
TEMPERED = ("soft_ranknet", "soft_ce", "soft_kl", "listwise_kl")
"""Soft losses with a temperature."""
LAYER_LOSSES = ("hidden", "attention", "relations")
"""Losses on the layers of a live teacher, for cross-encoders."""
VECTOR_LOSSES = ("vector_mse", "vector_cosine")
"""Losses on the vectors of a bi-encoder teacher, for bi-encoders."""
FLOPS_LOSSES = ("flops_query", "flops_doc")
"""Regularisation of the vectors of a splade (Paria et al. 2020, arXiv 2004.05665). `sparsity` raises their weights slowly."""
FLOPS = {True: (0.1, 0.08), False: (0.0003, 0.0001)}
"""Whether a stage uses teacher scores -> default weights of FLOPS_LOSSES.

Source: the configurations `splade++_ensembledistil` (Margin-MSE) and `splade++_max` (labels) of the repository naver/splade.
"""
LOSSES = (*HARD_LOSSES, *SOFT_LOSSES, *LAYER_LOSSES, *VECTOR_LOSSES, *FLOPS_LOSSES)
SCHEDULES = {"linear": "linear", "constant": "constant_with_warmup", "cosine": "cosine", "plateau": "constant_with_warmup"}
"""Schedule name -> name in transformers. `validation` lowers the learning rate of `plateau`."""

SCALED = ("bert_dot", "colbert")  # architectures that rank before training, on their own scale
INIT = "minilm"
"""Default starting point of a student."""
ADVICE = "start from random:LAYERS/WIDTH or layers of the teacher, or use recipe lm+ranker-distill from stage 2"


class Stage(NamedTuple):
    """One stage of a procedure. The configuration can replace each default, for all stages at once."""

    name: str
    losses: dict[str, float]
    text: bool = False  # train on plain text, not on candidates; the teacher is a language model or a bi-encoder
    lr: float = 1e-4
    epochs: float = 1.0
    warmup: float = 0.1  # warm-up share of the steps
    schedule: str = "linear"  # a key of SCHEDULES, after warm-up
    weight_decay: float = 0.0
    match_scale: bool = False  # first scale margins of a bert_dot or colbert to the teacher
    batch_tokens: int | None = None  # tokens in a batch of plain texts; None: all batches have equally many texts

    @property
    def needs_scores(self) -> bool:
        """Whether the stage needs teacher scores."""
        return any(loss in SOFT_LOSSES for loss in self.losses)

    @property
    def needs_layers(self) -> bool:
        """Whether the stage needs a live teacher's layers."""
        return any(loss in LAYER_LOSSES for loss in self.losses)

    @property
    def needs_vectors(self) -> bool:
        """Whether the stage needs the vectors of a bi-encoder teacher."""
        return any(loss in VECTOR_LOSSES for loss in self.losses)

    @property
    def makes_lm(self) -> bool:
        """Whether the stage distils a language model on plain text."""
        return self.text and not self.needs_vectors


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One procedure: its source, the starting point of its student, and its stages in order."""

    name: str
    source: str
    what: str
    stages: tuple[Stage, ...]
    start: str = "any checkpoint"
    student: str = "bert_dot"  # default architecture
    score_scale: float = 1.0  # factor of student scores in the loss
    l2_norm: bool | None = None  # None: as the starting checkpoint
    distilled_start: bool = True  # student may start from a distilled language model

    def init(self, start_stage: int = 1) -> str:
        """Return the default checkpoint to start from; InputError if the recipe has none."""
        if not self.distilled_start:
            raise InputError(
                f"recipe {self.name} must not start from a distilled language model, as {INIT} is; {ADVICE}", "init"
            )
        if any(stage.makes_lm for stage in self.stages[start_stage - 1 : start_stage]):
            raise InputError(f"recipe {self.name} distils a language model: set the starting point of the student, "
                             f"random:LAYERS/WIDTH or the language model with `layers`", "init")  # fmt: skip
        return INIT

    def describe(self) -> str:
        """Return the text for `train --list`."""
        lines = [f"{self.name:22} {self.what}", f"{'':22} {self.source}"]
        more = f"; scores x {self.score_scale:g} in the loss" if self.score_scale != 1 else ""
        more += {None: "", False: "; vectors not normalised", True: "; unit vectors"}[self.l2_norm]
        lines.append(f"{'':22} student: {self.student} by default; starts from {self.start}{more}")
        for number, stage in enumerate(self.stages, start=1):
            losses = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in stage.losses.items())
            where = "plain text" if stage.text else "candidates"
            lines.append(
                f"{'':22} stage {number}, {stage.name}: {losses}; on {where}; lr {stage.lr:g}, {stage.epochs:g} epochs, "
                f"warm-up {stage.warmup:g}, {stage.schedule}, weight decay {stage.weight_decay:g}"
                + ("; a bert_dot or colbert is first scaled to the teacher" if stage.match_scale else "")
            )
        return "\n".join(lines)


UNDERSTANDING = "Gao, Dai and Callan 2020, arXiv 2007.11088"
CROSS_ARCHITECTURE = "Hofstätter et al. 2020, arXiv 2010.02666"
SIMPLIFIED = "Chen et al. 2021, arXiv 2009.07531"
UNIFORM = "Qin et al. 2023, arXiv 2302.04112"
VECTORS = "Reimers and Gurevych 2020, arXiv 2004.09813, equation 1, with a cosine for the squared distance"
LAYERS = {"hidden": 1.0, "attention": 1.0}
DISTILLED = "a distilled language model (from lm-distill, or a general TinyBERT)"

# Schedules of TinyBERT's code; those of Gao et al. on MS MARCO are unknown
LM_STAGE = Stage("language model", LAYERS, text=True, lr=5e-5, epochs=3.0, weight_decay=0.01)
LAYER_STAGE = Stage("ranker's layers", LAYERS, lr=5e-5, epochs=10.0, warmup=0.0, schedule="constant", weight_decay=0.01)
SCORE_STAGE = Stage("ranker's scores", {"soft_ce": 1.0}, lr=3e-5, epochs=3.0, weight_decay=0.01)

# fmt: off
_ALL = (
    Recipe("margin-mse",
           f"{CROSS_ARCHITECTURE}, section 3; there at lr 7e-6 (TK: 1e-5) on 40 million triples, --schedule plateau, "
           "without gradient clipping (--max-grad-norm 10000), without scale matching (--no-match-scale)",
           "Margin-MSE on teacher scores; triples or n-way groups",
           (Stage("scores", {"margin_mse": 1.0}, match_scale=True),), l2_norm=False),
    Recipe("ranknet", f"{CROSS_ARCHITECTURE}, the undistilled baseline", "RankNet on labels, no teacher",
           (Stage("labels", {"ranknet": 1.0}),), l2_norm=False),
    Recipe("weighted-ranknet", f"{CROSS_ARCHITECTURE}, loss ablation", "RankNet weighted by the teacher's margin",
           (Stage("scores", {"weighted_ranknet": 1.0}),), l2_norm=False),
    Recipe("pointwise-mse", f"{CROSS_ARCHITECTURE}, loss ablation", "MSE on raw teacher scores",
           (Stage("scores", {"pointwise_mse": 1.0}, match_scale=True),), l2_norm=False),
    Recipe("contrastive",
           "Karpukhin et al. 2020, arXiv 2004.04906, section 3.2 (in-batch negatives); makes bi-encoder teachers",
           "softmax over a group's documents on labels, cosine at temperature 1/20",
           (Stage("labels", {"listwise_ce": 1.0}, lr=5e-5),), score_scale=20.0, l2_norm=True),
    Recipe("ranker-distill", f"{UNDERSTANDING}: Ranker Distill",
           "TinyBERT distillation from a ranker, without distilling the language model",
           (LAYER_STAGE, SCORE_STAGE), student="cross_encoder", distilled_start=False,
           start="random (--init random:4/312) or layers of the teacher; never a distilled language model"),
    Recipe("lm-distill", f"{UNDERSTANDING}: the first half of LM Distill; general distillation of TinyBERT",
           "a small language model from a large one on plain text; writes an encoder, not a ranker",
           (LM_STAGE,), student="cross_encoder", start="random (--init random:4/312) or layers of the --lm-teacher"),
    Recipe("vectors", VECTORS,
           "vectors of a bi-encoder teacher for plain text: documents and, if given, topics; no labels, no candidates",
           (Stage("vectors", {"vector_cosine": 1.0}, text=True, lr=2e-4, epochs=2.0, batch_tokens=6144),),
           start="layers of the --teacher, or any checkpoint; pooling and l2_norm as in the teacher"),
    Recipe("lm-distill+ft", f"{UNDERSTANDING}: LM Distill + Fine-Tuning",
           "distil the language model, then fine-tune on labels; no ranker teacher",
           (LM_STAGE, Stage("fine-tuning", {"bce": 1.0}, lr=3e-5, epochs=3.0, weight_decay=0.01)), student="cross_encoder",
           start="random or layers of the --lm-teacher; with --start-stage 2, " + DISTILLED),
    Recipe("lm+ranker-distill", f"{UNDERSTANDING}: LM Distill + Ranker Distill", "distil the language model, then the ranker",
           (LM_STAGE, LAYER_STAGE, SCORE_STAGE), student="cross_encoder",
           start="random or layers of the --lm-teacher; with --start-stage 2, " + DISTILLED),
    Recipe("tinybert", f"Jiao et al. 2020, arXiv 1909.10351, sections 3.1 and 3.2; the baseline TinyBERT of {SIMPLIFIED}",
           "TinyBERT: first the layers of the ranker, then its scores; no labels",
           (LAYER_STAGE, SCORE_STAGE), student="cross_encoder", start=DISTILLED),
    Recipe("simplified-tinybert", f"{SIMPLIFIED}: Simplified TinyBERT",
           "TinyBERT's two stages merged, with hard labels; all weights 1",
           (Stage("all", {**LAYERS, "soft_ce": 1.0, "bce": 1.0}, lr=5e-5, epochs=2.0, weight_decay=0.01),),
           student="cross_encoder", start=DISTILLED),
    Recipe("standard-kd", f"{SIMPLIFIED}: the baseline Standard KD",
           "half soft cross-entropy with the teacher, half cross-entropy with labels",
           (Stage("scores", {"soft_ce": 0.5, "bce": 0.5}, lr=5e-5, epochs=2.0, weight_decay=0.01),),
           student="cross_encoder", start=DISTILLED),
    Recipe("uniform", f"{UNIFORM}: its losses; change them with --loss NAME=WEIGHT",
           "hard and soft pairwise losses, no layers; a start for the grid of the study",
           (Stage("all", {"ranknet": 1.0, "margin_mse": 1.0}, lr=5e-5),), student="cross_encoder", l2_norm=False,
           start="a small pretrained cross-encoder or language model"),
)
# fmt: on
RECIPES = {recipe.name: recipe for recipe in _ALL}


def get(name: str) -> Recipe:
    """Return the recipe of a name; InputError lists all names."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}", "recipe")
    return RECIPES[name]


def with_losses(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """Apply `NAME=WEIGHT` changes to a recipe. Weight 0 or `none` drops a loss; `none` alone drops all losses so far.

    A change applies to every stage with the loss. A new loss joins the last stage. Stages without losses are removed.

    >>> with_losses(get("standard-kd"), ["bce=none", "ranknet=2"]).stages[0].losses
    {'soft_ce': 0.5, 'ranknet': 2.0}
    """
    losses = [dict(stage.losses) for stage in recipe.stages]
    for change in changes:
        if change == "none":
            losses = [{} for _ in losses]
            continue
        name, weight = _parse(change)
        for stage_losses in [found for found in losses if name in found] or losses[-1:]:
            stage_losses[name] = weight
    kept = [{name: weight for name, weight in found.items() if weight} for found in losses]
    stages = tuple(stage._replace(losses=found) for stage, found in zip(recipe.stages, kept, strict=True) if found)
    if not stages:
        raise InputError(f"recipe {recipe.name} has no loss left; add one as NAME=WEIGHT", "losses")
    for stage in stages:
        _check_text_losses(stage)
    return dataclasses.replace(recipe, stages=stages)


def with_flops(recipe: Recipe) -> Recipe:
    """The recipe with the default weights of FLOPS_LOSSES in each stage on candidates. Splade students use it."""

    def regularised(stage: Stage) -> Stage:
        weights = dict(zip(FLOPS_LOSSES, FLOPS[stage.needs_scores], strict=True))
        return stage if stage.text else stage._replace(losses={**stage.losses, **weights})

    return dataclasses.replace(recipe, stages=tuple(map(regularised, recipe.stages)))


def _check_text_losses(stage: Stage) -> None:
    """Raise InputError if a loss does not fit the data of the stage: plain text or candidates."""
    known = VECTOR_LOSSES if stage.needs_vectors else LAYER_LOSSES
    foreign = [name for name in stage.losses if stage.text and name not in known]
    if foreign:
        raise InputError(f"{foreign[0]}: a stage on plain text takes only {' and '.join(known)}", "losses")
    if stage.needs_vectors and not stage.text:
        raise InputError(f"{' and '.join(VECTOR_LOSSES)} need plain text; use them with the recipe vectors only", "losses")


def _parse(change: str) -> tuple[str, float]:
    name, equals, text = change.partition("=")
    if name not in LOSSES:
        raise InputError(f"unknown loss {name!r}; expected one of {', '.join(LOSSES)}", "losses")
    try:
        weight = 0.0 if text == "none" else float(text)
    except ValueError:
        weight = math.nan
    if not equals or not math.isfinite(weight) or weight < 0:
        raise InputError(f"{change}: expected {name}=WEIGHT with a weight of 0 or more, or {name}=none", "losses")
    return name, weight
