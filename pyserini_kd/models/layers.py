"""Find the transformers encoder inside a model, and its layers; keep some of the layers."""

from typing import Any

from torch import nn

from pyserini_kd.storage.errors import InputError


def encoder_of(model: Any) -> Any:
    """The encoder inside a model; None for a TK, which has its own embeddings and a small stack."""
    return model.classifier.base_model if model.architecture == "cross_encoder" else getattr(model, "encoder", None)


def _holder(encoder: object) -> Any:
    """The module whose `layer` is the layer stack of a BERT- or DistilBERT-like encoder."""
    found = getattr(encoder, "transformer", None) or getattr(encoder, "encoder", None)
    if not hasattr(found, "layer"):
        raise InputError(f"{type(encoder).__name__} has no layer stack like BERT's or DistilBERT's")
    return found


def layers_of(encoder: object) -> nn.ModuleList:
    """The layers of a BERT- or DistilBERT-like encoder, lowest first; InputError for other encoders."""
    return _holder(encoder).layer


def keep_layers(encoder: Any, layers: tuple[int, ...] | None) -> None:
    """Keep only the given layers (0-based, ascending) of an encoder, in place; None keeps all."""
    if layers is None:
        return
    stack = layers_of(encoder)
    if not layers or list(layers) != sorted(set(layers)) or layers[-1] >= len(stack) or layers[0] < 0:
        raise InputError(f"layers must be ascending numbers from 0 to {len(stack) - 1}, not {','.join(map(str, layers))}")
    _holder(encoder).layer = nn.ModuleList(stack[i] for i in layers)
    name = "n_layers" if hasattr(encoder.config, "n_layers") else "num_hidden_layers"
    setattr(encoder.config, name, len(layers))
