"""The checkpoints that Hofstätter et al. 2020 published in layouts of their own: ColBERT, BERT_CAT and PreTTR on DistilBERT.

Their folders hold a `config.json` with a model type or class that transformers does not know, weights of the DistilBERT
(`bert_model.*`, or without a prefix) beside a `compressor` or a `_classification_layer`, and no tokenizer: that of
`distilbert-base-uncased` belongs to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyserini_kd.storage.errors import InputError

MASKS = 8
SPLIT = 3  # of the published PreTTR's 6 layers
QUERY_LEN, DOC_LEN = 30, 200


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder: safetensors where there are any, torch files read weights-only otherwise."""
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    if not weights:
        for path in sorted(folder.glob("pytorch_model*.bin")):
            weights |= torch.load(path, map_location="cpu", weights_only=True)
    if not weights:
        raise InputError(f"checkpoint {folder} has no weights (*.safetensors)")
    return weights


def encoder_of(weights: Mapping[str, Tensor], folder: Path) -> Any:
    """The DistilBERT in published weights, its shape read off the tensors."""
    from transformers import DistilBertConfig, DistilBertModel

    names = ("bert_model.", "distilbert.", "")
    prefix = next((name for name in names if f"{name}embeddings.word_embeddings.weight" in weights), None)
    if prefix is None:
        raise InputError(f"checkpoint {folder} holds no DistilBERT: no embeddings.word_embeddings.weight")
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    parts = ("embeddings.", "transformer.")  # position_ids: counted up, in files of some versions of transformers
    own = {name: t.float() for name, t in own.items() if name.startswith(parts) and not name.endswith("position_ids")}
    vocab, width = own["embeddings.word_embeddings.weight"].shape
    config = DistilBertConfig(
        vocab_size=vocab,
        dim=width,
        n_layers=1 + max(int(name.split(".")[2]) for name in own if name.startswith("transformer.layer.")),
        n_heads=max(1, width // 64),
        hidden_dim=own["transformer.layer.0.ffn.lin1.weight"].shape[0],
        max_position_embeddings=own["embeddings.position_embeddings.weight"].shape[0],
    )
    encoder = DistilBertModel(config)
    missing, unexpected = encoder.load_state_dict(own, strict=False)
    if missing or unexpected:
        raise InputError(f"checkpoint {folder} does not fit a DistilBERT: {[*missing, *unexpected][:3]}")
    return encoder


def load(folder: Path, layout: str | None, tokenizer: Any, layers: tuple[int, ...] | None, overrides: Mapping[str, Any]) -> Any:
    """A published checkpoint as a model of ours, with some of its layers (None: all); `overrides` may replace settings."""
    from pyserini_kd.models.colbert import ColBert, ColBertSettings
    from pyserini_kd.models.cross_encoder import CrossEncoder
    from pyserini_kd.models.layers import keep_layers
    from pyserini_kd.models.prettr import PreTtr, PreTtrSettings

    weights = read_weights(folder)
    encoder = encoder_of(weights, folder)
    keep_layers(encoder, layers)
    window = encoder.config.max_position_embeddings
    given = {name: value for name, value in overrides.items() if value is not None}
    query_len, doc_len = given.get("max_query_len", QUERY_LEN), given.get("max_doc_len")
    lengths: dict[str, Any] = {"max_query_len": query_len, "max_doc_len": min(doc_len or DOC_LEN, window)}
    if layout == "BERT_Cat":
        weight, bias = (weights[f"_classification_layer.{name}"].float() for name in ("weight", "bias"))
        classifier = linear_classifier(encoder, weight, bias)
        return CrossEncoder(classifier, tokenizer, min(doc_len or QUERY_LEN + DOC_LEN, window))
    if layout == "PreTTR":
        half = SPLIT if layers is None else encoder.config.n_layers // 2
        masks, split = given.get("masks", MASKS), given.get("join_layer", half)
        lengths["max_doc_len"] = min(doc_len or DOC_LEN, window - query_len - masks)
        prettr = PreTtr(encoder, tokenizer, PreTtrSettings(join_layer=split, masks=masks, **lengths))
        prettr.head.load_state_dict({"weight": weights["_classification_layer.weight"].float()})
        return prettr
    width = weights["compressor.weight"].shape[0]
    if given.get("width", width) != width:
        raise InputError(f"checkpoint {folder} compresses to {width} numbers a token, not to {given['width']}")
    settings = ColBertSettings(masks=given.get("masks", MASKS), width=width, **lengths)
    if settings.max_query_len + settings.masks > window:
        raise InputError(f"{folder} reads {window} tokens at most; a longer length was asked for")
    colbert = ColBert(encoder, tokenizer, settings)
    head: Any = colbert.head
    head.load_state_dict({name: weights[f"compressor.{name}"].float() for name in ("weight", "bias")})
    return colbert


def linear_classifier(encoder: Any, weight: Tensor, bias: Tensor) -> Any:
    """DistilBERT's sequence classifier that computes one linear unit (1, H), (1,) on [CLS] exactly.

    Its own head is Linear, ReLU, Linear; z = relu(z) - relu(-z) passes the unit through.
    """
    from transformers import DistilBertForSequenceClassification

    config = encoder.config
    config.num_labels, config.seq_classif_dropout = 1, 0.0
    classifier = DistilBertForSequenceClassification(config)
    classifier.distilbert = encoder
    first, last = nn.Linear(config.dim, config.dim), nn.Linear(config.dim, 1)
    with torch.no_grad():
        for linear in (first, last):
            linear.weight.zero_()
            linear.bias.zero_()
        first.weight[0], first.weight[1] = weight[0], -weight[0]
        first.bias[0], first.bias[1] = bias[0], -bias[0]
        last.weight[0, 0], last.weight[0, 1] = 1.0, -1.0
    classifier.pre_classifier, classifier.classifier = first, last
    return classifier
