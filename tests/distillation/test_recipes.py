"""Recipes: the procedures of the papers, and changes by --loss."""

import re

import pytest

from pyserini_kd.distillation import losses, recipes
from pyserini_kd.storage.errors import InputError


def stages(name):
    return [(stage.losses, stage.text) for stage in recipes.get(name).stages]


def test_every_loss_has_a_function_or_compares_layers_or_vectors():
    special = {"in_batch", *recipes.LAYER_LOSSES, *recipes.VECTOR_LOSSES, *recipes.FLOPS_LOSSES}
    assert {*losses.LOSSES, *special} == set(recipes.LOSSES)
    for recipe in recipes.RECIPES.values():
        for stage in recipe.stages:
            assert stage.losses and set(stage.losses) <= set(recipes.LOSSES) and stage.schedule in recipes.SCHEDULES


def test_procedures_are_those_of_the_papers():
    layers = {"hidden": 1.0, "attention": 1.0}
    assert stages("ranker-distill") == [(layers, False), ({"soft_ce": 1.0}, False)]
    assert stages("lm-distill+ft") == [(layers, True), ({"bce": 1.0}, False)]  # no teacher in stage 2
    assert stages("lm+ranker-distill") == [(layers, True), *stages("ranker-distill")]  # no hard label
    assert stages("lm-distill") == [(layers, True)]
    assert stages("tinybert") == stages("ranker-distill")
    assert stages("simplified-tinybert") == [({**layers, "soft_ce": 1.0, "bce": 1.0}, False)]
    assert stages("standard-kd") == [({"soft_ce": 0.5, "bce": 0.5}, False)]
    for name, loss in (("ranknet", "ranknet"), ("weighted-ranknet", "weighted_ranknet"), ("pointwise-mse", "pointwise_mse"),
                       ("margin-mse", "margin_mse"), ("contrastive", "listwise_ce")):  # fmt: skip
        assert stages(name) == [({loss: 1.0}, False)]
        assert recipes.get(name).stages[0].match_scale == (loss in ("margin_mse", "pointwise_mse"))  # in the teacher's units
    assert stages("uniform") == [({"ranknet": 1.0, "margin_mse": 1.0}, False)]
    assert not recipes.get("ranker-distill").distilled_start and recipes.get("tinybert").distilled_start
    (merged,) = recipes.get("simplified-tinybert").stages  # papers.md 4.4
    assert (merged.lr, merged.epochs, merged.warmup, merged.weight_decay) == (5e-5, 2.0, 0.1, 0.01)
    first, second = recipes.get("tinybert").stages
    assert (first.schedule, first.warmup, first.epochs) == ("constant", 0.0, 10.0)
    assert (second.schedule, second.warmup, second.lr, second.epochs) == ("linear", 0.1, 3e-5, 3.0)


def test_descriptions_name_paper_start_and_losses():
    text = recipes.get("lm+ranker-distill").describe()
    for part in (
        "2007.11088",
        "--lm-teacher",
        "stage 1",
        "stage 3, ranker's scores: soft_ce; on candidates; lr 3e-05",
        "plain text",
    ):
        assert part in text
    assert "0.5 soft_ce + 0.5 bce" in recipes.get("standard-kd").describe()
    assert "scores x 20 in the loss; unit vectors" in recipes.get("contrastive").describe()
    assert "vectors not normalised" in (text := recipes.get("margin-mse").describe()) and "first scaled to the teacher" in text
    assert all(recipe.source[0].isupper() and "20" in recipe.source for recipe in recipes.RECIPES.values())  # author and year


def test_losses_are_changed_by_name():
    def changed(name, *changes):
        return [stage.losses for stage in recipes.with_losses(recipes.get(name), changes).stages]

    assert changed("uniform", "ranknet=none", "hinge=0.5") == [{"margin_mse": 1.0, "hinge": 0.5}]
    assert changed("uniform", "none", "bce=1", "hidden=0.1") == [{"bce": 1.0, "hidden": 0.1}]
    assert changed("ranknet", "lambda=1") == [{"ranknet": 1.0, "lambda": 1.0}]
    assert changed("tinybert", "attention=0") == [{"hidden": 1.0}, {"soft_ce": 1.0}]
    assert changed("tinybert", "hidden=0", "attention=0") == [{"soft_ce": 1.0}]  # removes the stage
    assert changed("tinybert", "bce=1") == [{"hidden": 1.0, "attention": 1.0}, {"soft_ce": 1.0, "bce": 1.0}]
    assert changed("lm+ranker-distill", "hidden=2")[:2] == [{"hidden": 2.0, "attention": 1.0}] * 2
    assert stages("tinybert")[1] == ({"soft_ce": 1.0}, False)  # the recipe itself is unchanged
    for change in ("ranknet", "ranknet=", "ranknet=-1", "ranknet=nan", "ranknet=x", "magic=1", "=1"):
        with pytest.raises(InputError, match="losses: "):
            changed("uniform", change)
    with pytest.raises(InputError, match="expected one of ranknet, hinge"):
        changed("uniform", "magic=1")
    with pytest.raises(InputError, match="has no loss left; add one"):
        changed("uniform", "none")
    with pytest.raises(InputError, match="plain text"):
        changed("lm-distill", "bce=1")


def test_default_starting_points():
    assert recipes.get("tinybert").init() == recipes.get("lm+ranker-distill").init(start_stage=2) == "minilm"
    with pytest.raises(InputError, match="must not start from a distilled language model"):
        recipes.get("ranker-distill").init()
    for name in ("lm-distill", "lm-distill+ft", "lm+ranker-distill"):
        with pytest.raises(
            InputError, match=f"recipe {re.escape(name)} distils a language model: set the starting point of the student"
        ):
            recipes.get(name).init()
