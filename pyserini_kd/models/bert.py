"""BERT's forward pass for inference, read straight from safetensors: the outputs of transformers, sooner.

Importing transformers' models takes seconds, more than a small search. And where only the first token's last state is read (a
cross-encoder, [CLS] pooling) the last layer is computed for that token alone.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = "model.safetensors"


class Layer(nn.Module):
    """One Transformer layer; the products for queries, keys and values are one."""

    def __init__(self, weights: dict[str, Tensor], name: str, config: Any) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        three = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        joined = {kind: torch.cat([weights[f"{part}.{kind}"] for part in three]) for kind in ("weight", "bias")}
        self.qkv = _linear(joined["weight"], joined["bias"])
        self.out, self.up, self.down = (
            _linear(weights[f"{name}.{part}.dense.weight"], weights[f"{name}.{part}.dense.bias"])
            for part in ("attention.output", "intermediate", "output")
        )
        parts = ("attention.output", "output")
        self.norms = nn.ModuleList(_norm(weights, f"{name}.{part}.LayerNorm", config) for part in parts)

    def forward(self, states: Tensor, mask: Tensor | None, first: bool) -> Tensor:
        """States (N, T, H) of the next layer; with `first` (N, 1, H), those of the first token."""
        n, length, width = states.shape
        query, key, value = self.qkv(states).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if first:
            query, states = query[:, :, :1], states[:, :1]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).reshape(n, -1, width)
        states = self.norms[0](states + self.out(mixed))
        normed: Tensor = self.norms[1](states + self.down(F.gelu(self.up(states))))
        return normed


class Bert(nn.Module):
    """An encoder; `first` says that only the first token's last state will be read."""

    def __init__(self, weights: dict[str, Tensor], config: Any, first: bool = False) -> None:
        super().__init__()
        self.config, self.first = config, first
        names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
        self.words, self.positions, self.types = (nn.Parameter(weights[f"embeddings.{name}.weight"]) for name in names)
        self.norm = _norm(weights, "embeddings.LayerNorm", config)
        self.layers = nn.ModuleList(Layer(weights, f"encoder.layer.{n}", config) for n in range(config.num_hidden_layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        """`last_hidden_state` (N, T, H) of token ids (N, T); (N, 1, H) with `first`."""
        kinds = self.types[0] if token_type_ids is None else F.embedding(token_type_ids, self.types)
        states = self.norm(F.embedding(input_ids, self.words) + kinds + self.positions[: input_ids.shape[1]])
        mask = None if bool(attention_mask.all()) else attention_mask.bool()[:, None, None, :]
        for number, layer in enumerate(self.layers, start=1):
            states = layer(states, mask, self.first and number == len(self.layers))
        return types.SimpleNamespace(last_hidden_state=states)


class BertClassifier(nn.Module):
    """A sequence classifier with one logit; that of two labels is their difference, as in `fold_two_classes`."""

    def __init__(self, weights: dict[str, Tensor], config: Any) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert({name.removeprefix("bert."): tensor for name, tensor in weights.items()}, config, first=True)
        self.pooler = _linear(weights["bert.pooler.dense.weight"], weights["bert.pooler.dense.bias"])
        weight, bias = weights["classifier.weight"], weights["classifier.bias"]
        self.head = _linear(weight[-1:] - weight[:-1].sum(0), bias[-1:] - bias[:-1].sum(0))

    def forward(self, **batch: Tensor) -> Any:
        """`logits` (P, 1) of tokenised pairs."""
        states = self.bert(**batch).last_hidden_state
        return types.SimpleNamespace(logits=self.head(torch.tanh(self.pooler(states[:, 0]))))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
    return linear


def _norm(weights: dict[str, Tensor], name: str, config: Any) -> nn.LayerNorm:
    norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, device="meta")
    norm.weight, norm.bias = nn.Parameter(weights[f"{name}.weight"]), nn.Parameter(weights[f"{name}.bias"])
    return norm


def read(folder: Path, architecture: str) -> Bert | BertClassifier | None:
    """The module of a checkpoint folder in float32; None where it is not a plain BERT in one safetensors file."""
    from safetensors.torch import load_file
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    plain = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    if any(getattr(config, name, value) != value for name, value in plain.items()) or not (folder / WEIGHTS).is_file():
        return None
    weights = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
    try:
        if architecture == "cross_encoder":
            return BertClassifier(weights, config) if len(weights["classifier.weight"]) in (1, 2) else None
        return Bert({name.removeprefix("bert."): tensor for name, tensor in weights.items()}, config)
    except KeyError:  # weights under other names: transformers knows more of them
        return None
