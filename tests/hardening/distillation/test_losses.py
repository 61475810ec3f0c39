"""Losses against shapes that are wrong and teachers that are missing."""

import pytest
import torch

from pyserini_kd.distillation import losses, recipes
from tests.distillation.test_losses import group


def test_bad_shapes_and_missing_teachers_are_errors():
    s, t, y, m = group([[3.0, 1.0]], [[9.0, 4.0]], [[1, 0]])
    with pytest.raises(ValueError, match="shape"):
        losses.margin_mse(s, t[:, :1], y, m)
    with pytest.raises(ValueError, match="pair"):
        losses.ranknet(s, None, torch.zeros_like(y), m)
    for name, loss in losses.LOSSES.items():
        if name in recipes.SOFT_LOSSES:
            with pytest.raises(ValueError, match="teacher"):
                loss(s, None, y, m)
        else:
            loss(s, None, y, m)
