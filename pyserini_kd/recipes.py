"""The papers' training procedures as data: which losses with which weights, which labels, which defaults."""

from __future__ import annotations

from typing import NamedTuple

from pyserini_kd.files import InputError

SOFT_LOSSES = frozenset({"margin_mse", "weighted_ranknet", "pointwise_mse", "listwise_kl"})
"""The losses that need teacher scores."""


class Recipe(NamedTuple):
    """One procedure; every default can be overridden on the command line."""

    name: str
    source: str
    what: str
    losses: dict[str, float]
    lr: float = 1e-4
    epochs: float = 1.0
    warmup: float = 0.1
    score_scale: float = 1.0  # student scores are multiplied by this before the loss
    l2_norm: bool | None = None  # None: as the starting checkpoint (bert_dot students of the papers: False)
    match_scale: bool = False  # scale the student's vectors at the start so that its mean margin is the teacher's

    @property
    def needs_scores(self) -> bool:
        """Whether a teacher-score file is part of the procedure."""
        return any(loss in SOFT_LOSSES for loss in self.losses)


CROSS_ARCHITECTURE = "Hofstätter et al. 2020, arXiv 2010.02666"

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "margin-mse",
            f"{CROSS_ARCHITECTURE}, section 3",
            "Margin-MSE on teacher scores; triples or n-way groups",
            {"margin_mse": 1.0},
            l2_norm=False,
            match_scale=True,
        ),
        Recipe(
            "ranknet",
            f"{CROSS_ARCHITECTURE}, the undistilled baseline",
            "RankNet on labels, no teacher",
            {"ranknet": 1.0},
            l2_norm=False,
        ),
        Recipe(
            "weighted-ranknet",
            f"{CROSS_ARCHITECTURE}, loss ablation",
            "RankNet weighted by the teacher's margin",
            {"weighted_ranknet": 1.0},
            l2_norm=False,
        ),
        Recipe(
            "pointwise-mse",
            f"{CROSS_ARCHITECTURE}, loss ablation",
            "MSE on raw teacher scores",
            {"pointwise_mse": 1.0},
            l2_norm=False,
            match_scale=True,
        ),
        Recipe(
            "contrastive",
            "Karpukhin et al. 2020 (in-batch negatives); makes bi-encoder teachers",
            "softmax over a group's documents on labels, cosine at temperature 1/20",
            {"listwise_ce": 1.0},
            lr=5e-5,
            score_scale=20.0,
            l2_norm=True,
        ),
    )
}


def get(name: str) -> Recipe:
    """The recipe of that name; InputError lists what exists."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[name]
