"""Compute the vector of a text from its tokens' states as sentence-transformers does: pooling, Dense layers, unit length.

Each function takes numpy or torch as its first argument, and arrays of that library. So OpenVINO's path, which has no torch,
and torch's path, which keeps gradients, share one definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Library = Any
"""The module numpy or torch."""
Array = Any
"""An array of numpy, or a tensor of torch."""

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""Names as in Pooling of sentence-transformers. Names joined by + give the concatenation of their vectors."""
ACTIVATIONS: dict[str, Callable[[Library, Array], Array]] = {
    "Identity": lambda xp, values: values,
    "Tanh": lambda xp, values: xp.tanh(values),
    "ReLU": lambda xp, values: xp.clip(values, 0, None),
    "Sigmoid": lambda xp, values: 1 / (1 + xp.exp(-values)),
}
"""Activations of a Dense layer, named as the classes of torch."""


class Dense(NamedTuple):
    """A layer behind pooling: weight (OUT, IN), bias (OUT,) or None, and the name of its activation."""

    weight: Array
    bias: Array | None
    activation: str


def text_vectors(xp: Library, states: Array, mask: Array, pooling: str, dense: Sequence[Dense], l2_norm: bool) -> Array:
    """Vectors (N, H) of texts from states (N, T, H) and a mask (N, T), both floats."""
    vectors = pool(xp, states, mask, pooling)
    for layer in dense:
        vectors = vectors @ layer.weight.T
        vectors = vectors if layer.bias is None else vectors + layer.bias
        vectors = ACTIVATIONS[layer.activation](xp, vectors)
    return unit(xp, vectors) if l2_norm else vectors


def unit(xp: Library, vectors: Array) -> Array:
    """Vectors (..., H) of length 1; zeros stay zeros."""
    return vectors / xp.clip(xp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12, None)


def pool(xp: Library, states: Array, mask: Array, pooling: str) -> Array:
    """Pool states (N, T, H) under a mask (N, T). Padding is on the right, and each text has a token."""
    parts = [_pooled(xp, states, mask, mode) for mode in pooling.split("+")]
    return parts[0] if len(parts) == 1 else xp.concatenate(parts, -1)


def _pooled(xp: Library, states: Array, mask: Array, mode: str) -> Array:
    if mode == "cls":
        return states[:, 0] + 0.0  # a copy: OpenVINO reuses the memory of its output
    lengths = mask.sum(1)
    if mode == "lasttoken":
        return states[list(range(len(states))), [int(length) - 1 for length in lengths]]
    if mode == "max":
        return xp.amax(states + ((mask - 1) * 1e30)[..., None], 1)
    weights = xp.cumsum(mask, 1) * mask if mode == "weightedmean" else mask
    total = xp.einsum("nth,nt->nh", states, weights)
    if mode == "mean_sqrt_len_tokens":
        return total / xp.sqrt(lengths)[..., None]
    return total / weights.sum(1)[..., None]


def width(hidden: int, pooling: str, dense: Sequence[Dense]) -> int:
    """Length of a text's vector, for states of a length."""
    return int(dense[-1].weight.shape[0]) if dense else hidden * (pooling.count("+") + 1)
