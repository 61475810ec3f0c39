"""Faster training on a CPU: dropout with cheap random numbers, attention as plain matrix products.

PyTorch on a CPU draws dropout masks with one thread (a third of a step). It computes attention with dropout slowly in float32.
Its fused attention in bf16 takes ten times as long backward as forward. This code computes the same with other random
numbers. In bf16 it also rounds attention scores and weights; PyTorch rounds only the result.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from pyserini_kd.models.layers import encoder_of

if TYPE_CHECKING:
    from pyserini_kd.models.loading import Model

NAME = "pyserini_kd"  # name of this attention in transformers
MODEL_TYPES = ("bert", "distilbert")  # attention masked by padding only
STEPS = 1 << 16  # dropout rates are multiples of 1 / STEPS


class Dropout(nn.Dropout):
    """Dropout with 16 random bits per mask entry. The seed comes from torch's generator, so a resumed run draws the same."""

    def forward(self, states: Tensor) -> Tensor:
        """Zero some entries of a tensor of any shape and scale up the rest, in training only."""
        return states * kept(states.shape, self.p, states.dtype) if self.training and self.p else states


def kept(shape: tuple[int, ...], rate: float, dtype: torch.dtype) -> Tensor:
    """Draw a dropout mask with mean 1: a share `rate` of entries is 0, the others are equal."""
    threshold = min(round(rate * STEPS), STEPS - 1)
    count, seed = math.prod(shape), int(torch.randint(1 << 62, ()))
    drawn = np.random.Generator(np.random.SFC64(seed)).integers(1 << 64, size=-(-count // 4), dtype=np.uint64)
    bits = torch.from_numpy(drawn.view(np.int16)[:count]).view(shape)
    ones = torch.ge(bits, threshold - STEPS // 2, out=torch.empty(shape, dtype=dtype))
    return ones.mul_(STEPS / (STEPS - threshold))


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, **more: object,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention with the signature of transformers: three (P, heads, T, d) -> (P, T, heads, d); mask bool (P, 1, T, T)."""
    if not torch.is_grad_enabled() or (dropout == 0.0 and query.dtype is torch.float32):
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling)
        return mixed.transpose(1, 2).contiguous(), None
    texts, heads, length, _ = query.shape
    query, key, value = (states.flatten(0, 1) for states in (query, key, value))
    hidden = query.new_zeros(1, 1, 1)
    if attention_mask is not None:  # the same for every query token and head
        hidden = query.new_zeros(texts, 1, length).masked_fill_(~attention_mask[:, 0, :1], torch.finfo(query.dtype).min)
        hidden = hidden.repeat_interleave(heads, dim=0)
    weights = torch.softmax(torch.baddbmm(hidden, query, key.transpose(1, 2), alpha=scaling or query.shape[-1] ** -0.5), dim=-1)
    if dropout:
        weights = weights * kept(weights.shape, dropout, weights.dtype)
    return torch.bmm(weights, value).view(texts, heads, length, -1).transpose(1, 2).contiguous(), None


def fit(model: Model) -> None:
    """Make a student use this dropout, and this attention if it is a BERT or DistilBERT encoder, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p).train(child.training))
    encoder = encoder_of(model)
    config = getattr(encoder, "config", None)
    plain = getattr(config, "model_type", None) in MODEL_TYPES and not getattr(config, "is_decoder", False)
    if plain and getattr(config, "_attn_implementation", None) == "sdpa":
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        encoder.set_attn_implementation(NAME)
