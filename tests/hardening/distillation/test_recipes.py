"""Recipes against students that do not fit them."""

import pytest

from pyserini_kd.distillation import recipes
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.storage.errors import InputError


def test_students_that_do_not_fit_are_refused():
    TrainConfig(recipe="tinybert", init="x", architecture="cross_encoder", teacher="t")
    TrainConfig(recipe="standard-kd", init="x", architecture="colbert")
    with pytest.raises(
        InputError, match="tinybert with the loss hidden is for a cross_encoder student, not a bert_dot; .*margin-mse"
    ):
        TrainConfig(recipe="tinybert", init="x", architecture="bert_dot", teacher="t")
    both = {"recipe": "margin-mse", "init": "x", "losses": ("in_batch=0.1",)}
    TrainConfig(architecture="bert_dot", **both)
    with pytest.raises(InputError, match="is for a bert_dot student, not a tk"):
        TrainConfig(architecture="tk", **both)
    with pytest.raises(InputError, match="unknown recipe 'magic'; expected one of margin-mse"):
        recipes.get("magic")
