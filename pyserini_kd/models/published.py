"""Load checkpoints in the layouts that papers were published in: Hofstätter et al. 2020, and Stanford's ColBERT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyserini_kd.models import backbone, weights
from pyserini_kd.models.checkpoint_folder import check_length, check_lengths, published_layout, resolve
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import Record, read_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DistilBertForSequenceClassification, DistilBertModel

    from pyserini_kd.models.colbert import ColBert
    from pyserini_kd.models.cross_encoder import CrossEncoder
    from pyserini_kd.models.prettr import PreTtr

MASKS, SPLIT = 8, 3  # [MASK] tokens of queries; join layer of the PreTTR, of 6
QUERY_LEN, DOC_LEN = 30, 200
STANFORD = {
    "query_maxlen": 32, "doc_maxlen": 220, "query_token_id": "[unused0]", "doc_token_id": "[unused1]", "similarity": "cosine",
    "mask_punctuation": True, "attend_to_mask_tokens": False, "interaction": "colbert",
}  # fmt: skip
"""Defaults of the settings in `artifact.metadata`."""


def read(folder: Path, layers: tuple[int, ...] | None, given: Record) -> CrossEncoder | PreTtr | ColBert:
    """Load a published checkpoint with the given layers (None: all); `given` replaces settings.

    Those of Hofstätter et al. 2020 are ColBERT, BERT_CAT or PreTTR on DistilBERT. Their folder has a `config.json` with a model
    type or class that transformers does not know, DistilBERT weights (prefix `bert_model.` or none), and a `compressor` or
    `_classification_layer`. It has no tokenizer; `distilbert-base-uncased` provides it.
    """
    from pyserini_kd.models.colbert import ColBert, ColBertSettings
    from pyserini_kd.models.cross_encoder import CrossEncoder
    from pyserini_kd.models.layers import keep_layers
    from pyserini_kd.models.prettr import PreTtr, PreTtrSettings

    layout = published_layout(folder)
    if layout == "HF_ColBERT":
        return _stanford(folder, layers, given)
    has_tokenizer = (folder / "tokenizer.json").exists() or (folder / "vocab.txt").exists()
    tokenizer = backbone.tokenizer(folder if has_tokenizer else resolve("distilbert"))
    tensors = weights.load(folder)
    encoder = _distilbert(tensors, folder)
    keep_layers(encoder, layers)
    window = encoder.config.max_position_embeddings
    query_len, doc_len = given.get("max_query_len", QUERY_LEN), given.get("max_doc_len")
    if layout == "BERT_Cat":
        weight, bias = (tensors[f"_classification_layer.{name}"] for name in ("weight", "bias"))
        classifier = _linear_classifier(encoder, weight, bias)
        return CrossEncoder(classifier, tokenizer, min(doc_len or QUERY_LEN + DOC_LEN, window))
    masks = given.get("masks", MASKS)
    model: PreTtr | ColBert
    if layout == "PreTTR":
        half = SPLIT if layers is None else encoder.config.n_layers // 2
        doc_len = min(doc_len or DOC_LEN, window - query_len - masks)
        split = given.get("join_layer", half)
        settings = PreTtrSettings(max_query_len=query_len, max_doc_len=doc_len, join_layer=split, masks=masks)
        model = PreTtr(encoder, tokenizer, settings)
        model.head.load_state_dict({"weight": tensors["_classification_layer.weight"]})
        return model
    width = tensors["compressor.weight"].shape[0]
    if given.get("width", width) != width:
        raise InputError(f"checkpoint {folder} has token vectors of width {width}, not {given['width']}")
    doc_len = min(doc_len or DOC_LEN, window)
    check_length(folder, query_len + masks, window)
    model = ColBert(encoder, tokenizer, ColBertSettings(max_query_len=query_len, max_doc_len=doc_len, masks=masks, width=width))
    assert model.head is not None
    model.head.load_state_dict({name: tensors[f"compressor.{name}"] for name in ("weight", "bias")})
    return model


def _stanford(folder: Path, layers: tuple[int, ...] | None, given: Record) -> ColBert:
    """Load a ColBERT of Khattab and Zaharia's code: a Transformer, `linear` without bias, and `artifact.metadata`."""
    import torch

    from pyserini_kd.models.colbert import ColBert, ColBertSettings
    from pyserini_kd.models.layers import keep_layers

    path = folder / "artifact.metadata"
    about = STANFORD | {k: v for k, v in (read_json(path, "settings") if path.is_file() else {}).items() if v is not None}
    for name in ("similarity", "interaction"):
        if about[name] != STANFORD[name]:
            raise InputError(f"{path}: {name} {about[name]!r} is not supported; only {STANFORD[name]!r} is")
    tensors = weights.load(folder)
    if "linear.weight" not in tensors:
        raise InputError(f"{folder} lacks weights that a ColBERT needs: linear.weight; get the whole checkpoint")
    linear = tensors["linear.weight"]
    settings: Record = {
        "l2_norm": True, "max_query_len": about["query_maxlen"], "max_doc_len": about["doc_maxlen"], "width": linear.shape[0],
        "query_marker": about["query_token_id"], "doc_marker": about["doc_token_id"],
        "fill": "attended" if about["attend_to_mask_tokens"] else "yes",
        "skip": "punctuation" if about["mask_punctuation"] else "",
    }  # fmt: skip
    if given.get("width", settings["width"]) != settings["width"]:
        raise InputError(f"checkpoint {folder} has token vectors of width {settings['width']}, not {given['width']}")
    encoder: Any = backbone.network(folder, "colbert")
    keep_layers(encoder, layers)
    tokenizer, settings = backbone.tokenizer(folder), settings | given
    for marker in (settings["query_marker"], settings["doc_marker"]):
        if marker not in tokenizer.get_vocab():
            raise InputError(f"{folder}: its tokenizer lacks the marker {marker}; restore the tokenizer's files")
    check_lengths(folder, made := ColBertSettings(**settings), backbone.window_of(encoder))
    model = ColBert(encoder, tokenizer, made)
    assert model.head is not None
    model.head.load_state_dict({"weight": linear, "bias": torch.zeros(len(linear))})
    return model


def _distilbert(tensors: Mapping[str, Tensor], folder: Path) -> DistilBertModel:
    """The DistilBERT in published tensors; its shape comes from the tensors."""
    from transformers import DistilBertConfig, DistilBertModel

    names = ("bert_model.", "distilbert.", "")
    prefix = next((name for name in names if f"{name}embeddings.word_embeddings.weight" in tensors), None)
    if prefix is None:
        raise InputError(f"checkpoint {folder} contains no DistilBERT: no embeddings.word_embeddings.weight")
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    parts = ("embeddings.", "transformer.")  # some versions of transformers also saved position_ids, which are constant
    own = {name: t for name, t in own.items() if name.startswith(parts) and not name.endswith("position_ids")}
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
        raise InputError(f"checkpoint {folder} does not fit DistilBERT; missing or extra: {[*missing, *unexpected][:3]}")
    return encoder


def _linear_classifier(encoder: DistilBertModel, weight: Tensor, bias: Tensor) -> DistilBertForSequenceClassification:
    """A DistilBERT sequence classifier that computes exactly one linear unit (1, H), (1,) on [CLS].

    DistilBERT's head is Linear, ReLU, Linear. z = relu(z) - relu(-z) passes the unit's value through it.
    """
    import torch
    from transformers import DistilBertForSequenceClassification

    config = encoder.config
    config.num_labels, config.seq_classif_dropout = 1, 0.0
    classifier = DistilBertForSequenceClassification(config)
    classifier.distilbert = encoder
    first, last = torch.nn.Linear(config.dim, config.dim), torch.nn.Linear(config.dim, 1)
    with torch.no_grad():
        for linear in (first, last):
            linear.weight.zero_()
            linear.bias.zero_()
        first.weight[0], first.weight[1] = weight[0], -weight[0]
        first.bias[0], first.bias[1] = bias[0], -bias[0]
        last.weight[0, 0], last.weight[0, 1] = 1.0, -1.0
    classifier.pre_classifier, classifier.classifier = first, last
    return classifier
