"""Training on a CPU: dropout with cheap random numbers, attention as plain products.

On a CPU, PyTorch draws dropout masks with one thread (a third of a step), computes attention with dropout slowly in float32,
and takes ten times as long backwards as forwards through fused attention in bf16. The code here computes the same with other
random numbers; in bf16 it also rounds the scores and weights of attention, where PyTorch rounds only the result.
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

NAME = "pyserini_kd"  # of this attention in transformers
MODEL_TYPES = ("bert", "distilbert")  # their attention is masked by padding only
STEPS = 1 << 16  # the rate of dropout is a multiple of 1 / STEPS


class Dropout(nn.Dropout):
    """Dropout whose mask has 16 random bits a number. torch's generator gives the seed, so a resumed run draws the same."""

    def forward(self, states: Tensor) -> Tensor:
        """States of any shape; in training some are set to zero and the others are made larger."""
        return states * kept(states.shape, self.p, states.dtype) if self.training and self.p else states


def kept(shape: tuple[int, ...], rate: float, dtype: torch.dtype) -> Tensor:
    """A mask: a share `rate` is 0, the rest is so large that the mean is 1."""
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
    """Attention as transformers asks for it: (P, heads, T, d) three times -> (P, T, heads, d); mask bool (P, 1, T, T)."""
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
    """Make a student compute so, in place; its attention only if it is that of BERT."""
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
