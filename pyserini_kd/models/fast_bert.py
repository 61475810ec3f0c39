"""BERT's forward pass for inference, read directly from safetensors. It gives transformers' outputs faster.

Importing transformers' models takes seconds, longer than a small search. If only the first token's last state is read (a
cross-encoder, [CLS] pooling), the last layer runs for that token alone.

In bf16 on a CPU, states stay bf16 from the embeddings to the last layer; autocast would convert them back and forth. oneDNN
computes the linear layers with prepacked weights, fused with the next step (GELU or the residual sum).
"""

from __future__ import annotations

import contextlib
import functools
import types
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = "model.safetensors"
PACK_ROWS = 2048  # tokens of a typical batch; oneDNN chooses its weight layout for this number


class Dense(nn.Module):
    """A linear layer with optional GELU or residual sum."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.packed: tuple[Tensor, Tensor] | None = None  # (weight, bias) in oneDNN's bf16 layout

    def forward(self, states: Tensor, gelu: bool = False, plus: Tensor | None = None) -> Tensor:
        """Map states (..., in) to (..., out). oneDNN computes bf16 states unless autocast is on, which would cast them."""
        if states.dtype is torch.bfloat16 and not torch.is_autocast_enabled(states.device.type) and _packs(states.device):
            return self._by_onednn(states, gelu, plus)
        found = F.linear(states, self.weight, self.bias)
        found = F.gelu(found) if gelu else found
        return found if plus is None else plus + found

    def _apply(self, *args: Any, **options: Any) -> Dense:
        self.packed = None
        return super()._apply(*args, **options)

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self.packed = None
        super()._load_from_state_dict(*args, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Drop oneDNN's layout: it cannot be pickled or copied, and is rebuilt on use."""
        return self.__dict__ | {"packed": None}

    def _by_onednn(self, states: Tensor, gelu: bool, plus: Tensor | None) -> Tensor:
        if self.packed is None:
            weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().bfloat16(), PACK_ROWS)
            self.packed = weight, self.bias.detach().bfloat16()
        found: Tensor
        if plus is not None:
            found = torch.ops.mkldnn._linear_pointwise.binary(states, plus, *self.packed, "add")
        else:
            found = torch.ops.mkldnn._linear_pointwise(states, *self.packed, "gelu" if gelu else "none", [], "none")
        return found


class Layer(nn.Module):
    """One Transformer layer, with one matrix product for queries, keys and values."""

    def __init__(self, weights: dict[str, Tensor], name: str, config: Any) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        three = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        joined = {kind: torch.cat([weights[f"{part}.{kind}"] for part in three]) for kind in ("weight", "bias")}
        self.qkv = Dense(joined["weight"], joined["bias"])
        self.out, self.up, self.down = (
            Dense(weights[f"{name}.{part}.dense.weight"], weights[f"{name}.{part}.dense.bias"])
            for part in ("attention.output", "intermediate", "output")
        )
        parts = ("attention.output", "output")
        self.norms = nn.ModuleList(_norm(weights, f"{name}.{part}.LayerNorm", config) for part in parts)

    def forward(self, states: Tensor, shape: tuple[int, int], mask: Tensor | None, first: bool) -> Tensor:
        """Compute states (rows, H); the first N x T rows count. With `first`, only N rows count: the first token's."""
        n, length = shape
        three = self.qkv(states)[: n * length].view(n, length, 3, self.heads, -1)
        query, key, value = three.permute(2, 0, 3, 1, 4)
        if first:
            query, states = query[:, :, :1], _padded_rows(states[: n * length : length].contiguous())
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).reshape(-1, states.shape[1])
        if missing := len(states) - len(mixed):  # padded to the residual's rows; their dtypes may differ under autocast
            mixed = F.pad(mixed, (0, 0, 0, missing))
        states = self.norms[0](self.out(mixed, plus=states))
        normed: Tensor = self.norms[1](self.down(self.up(states, gelu=True), plus=states))
        return normed


class Bert(nn.Module):
    """An encoder. With `first`, it returns only the first token's last state."""

    def __init__(self, weights: dict[str, Tensor], config: Any, first: bool = False) -> None:
        super().__init__()
        self.config, self.first = config, first
        names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
        self.words, self.positions, self.types = (nn.Parameter(weights[f"embeddings.{name}.weight"]) for name in names)
        self.norm = _norm(weights, "embeddings.LayerNorm", config)
        self.layers = nn.ModuleList(Layer(weights, f"encoder.layer.{n}", config) for n in range(config.num_hidden_layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        """Return `last_hidden_state` (N, T, H) of token ids (N, T), or (N, 1, H) with `first`."""
        kinds = self.types[0] if token_type_ids is None else F.embedding(token_type_ids, self.types)
        states = self.norm(F.embedding(input_ids, self.words) + kinds + self.positions[: input_ids.shape[1]])
        whole = _whole_bf16(states.device)
        n, length = input_ids.shape
        states = _padded_rows((states.bfloat16() if whole else states).flatten(0, 1))
        mask = None if bool(attention_mask.all()) else attention_mask.bool()[:, None, None, :]
        if mask is not None and mask.device.type == "cpu":  # converted once; PyTorch would do it in every layer
            mask = states.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        with torch.autocast("cpu", enabled=False) if whole else contextlib.nullcontext():
            for number, layer in enumerate(self.layers, start=1):
                states = layer(states, (n, length), mask, self.first and number == len(self.layers))
        kept = 1 if self.first else length
        return types.SimpleNamespace(last_hidden_state=states[: n * kept].view(n, kept, -1))


class BertClassifier(nn.Module):
    """A sequence classifier with one logit; two labels become their difference, as in `fold_two_classes`."""

    def __init__(self, weights: dict[str, Tensor], config: Any) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert({name.removeprefix("bert."): tensor for name, tensor in weights.items()}, config, first=True)
        self.pooler = Dense(weights["bert.pooler.dense.weight"], weights["bert.pooler.dense.bias"])
        weight, bias = weights["classifier.weight"], weights["classifier.bias"]
        self.head = Dense(weight[-1:] - weight[:-1].sum(0), bias[-1:] - bias[:-1].sum(0))

    def forward(self, **batch: Tensor) -> Any:
        """Return `logits` (P, 1) of tokenised pairs."""
        states = self.bert(**batch).last_hidden_state[:, 0].to(self.pooler.weight.dtype)
        with torch.autocast(states.device.type, enabled=False):  # bf16 logits have two decimals and would tie
            return types.SimpleNamespace(logits=self.head(torch.tanh(self.pooler(states))))


def _padded_rows(states: Tensor) -> Tensor:
    """Pad bf16 states (N, H) with rows of zeros, so that few sizes occur: eight per octave.

    oneDNN compiles a kernel for each number of rows, which takes longer than the product itself.
    """
    step = max(32, 1 << max(0, (len(states) - 1).bit_length() - 4))
    missing = -len(states) % step if states.dtype is torch.bfloat16 else 0
    return F.pad(states, (0, 0, 0, missing)) if missing else states


def _whole_bf16(device: torch.device) -> bool:
    """Whether states stay bf16 throughout: autocast to bf16 is on, and `Dense` packs its weights."""
    asked = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) is torch.bfloat16
    return asked and _packs(device)


def _packs(device: torch.device) -> bool:
    """Whether oneDNN computes bf16 products with packed weights: on a CPU that supports bf16, without gradients."""
    return device.type == "cpu" and not torch.is_grad_enabled() and onednn_has_bf16()


@functools.cache
def onednn_has_bf16() -> bool:
    """Whether this PyTorch's oneDNN has the operations used here and computes bf16 on this processor."""
    ours = all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    return ours and torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _norm(weights: dict[str, Tensor], name: str, config: Any) -> nn.LayerNorm:
    norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, device="meta")
    norm.weight, norm.bias = nn.Parameter(weights[f"{name}.weight"]), nn.Parameter(weights[f"{name}.bias"])
    return norm


def read(folder: Path, architecture: str) -> Bert | BertClassifier | None:
    """Read a checkpoint folder as a float32 module; None unless it is a plain BERT in one safetensors file."""
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
    except KeyError:  # other weight names: transformers knows more of them
        return None
