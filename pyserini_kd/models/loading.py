"""Load a checkpoint folder as a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pyserini_kd.models import checkpoint_folder
from pyserini_kd.models.checkpoint_folder import (
    architecture_of,
    check_length,
    check_lengths,
    published_layout,
    quiet_transformers,
    resolve,
    settings_with,
)
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import Record

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DistilBertForSequenceClassification, DistilBertModel

    from pyserini_kd.models.cross_encoder import CrossEncoder
    from pyserini_kd.models.tk import Tk
    from pyserini_kd.models.tokens import Tokenizer
    from pyserini_kd.models.two_sides import TwoSides

    Model = TwoSides | CrossEncoder

COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "roberta-prelayernorm", "xlm-roberta-xl")
PUBLISHED_MASKS, PUBLISHED_SPLIT = 8, 3  # [MASK] tokens of published checkpoints; join layer of their PreTTR, of 6
PUBLISHED_QUERY_LEN, PUBLISHED_DOC_LEN = 30, 200


class Wanted(NamedTuple):
    """The resolved arguments of `load`."""

    folder: Path
    layers: tuple[int, ...] | None
    overrides: Record


def load(
    name: str,
    *,
    architecture: str | None = None,
    layers: tuple[int, ...] | None = None,
    glove: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
    **overrides: object,
) -> Model:
    """Load a checkpoint, ready to score (eval mode, float32, CPU).

    Args:
        name: a name, folder or hub id (see `resolve`).
        architecture: load it as this architecture instead of the saved one.
        layers: keep these Transformer layers (0-based) and drop the others.
        glove: for `tk`: read word vectors from this GloVe text file instead of the checkpoint's input embeddings.
        settings: settings of this architecture only (`own_settings`); they replace the checkpoint's.
        overrides: shared settings (fields of EncoderSettings) that replace the checkpoint's; None keeps the checkpoint's.
    """
    from pyserini_kd.models import splade

    folder = resolve(name)
    own, known = architecture_of(folder), checkpoint_folder.ARCHITECTURES
    architecture = architecture or own
    if architecture not in known:
        raise InputError(f"unknown architecture {architecture!r}; expected one of {', '.join(known)}")
    if architecture != own and (own == "tk" or published_layout(folder)):
        raise InputError(f"{name} is a {own} and cannot be read as a {architecture}")
    given = {name: value for name, value in {**overrides, **(settings or {})}.items() if value is not None}
    wanted = Wanted(folder, layers, given)
    try:
        with quiet_transformers():
            if published_layout(folder):
                model: Model = _load_published(wanted)
            elif architecture == "cross_encoder":
                model = _load_cross_encoder(wanted)
            elif architecture == "tk":
                model = _load_tk(wanted, glove)
            elif architecture == "splade":
                model = splade.read(folder, _tokenizer(folder), layers, given)
            else:
                model = _load_encoder(wanted, architecture)
            return model.eval()
    except InputError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds for broken folders
        said = " ".join(line.strip() for line in str(error).splitlines()[:2])  # torch's second line says what is wrong
        raise InputError(f"checkpoint {folder} cannot be loaded: {said}") from error


def _tokenizer(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    return cast("Tokenizer", AutoTokenizer.from_pretrained(folder))


def _network(folder: Path, architecture: str, **extra: bool | int) -> Any:
    """The encoder, or a cross-encoder's classifier, of transformers."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    classifies = architecture == "cross_encoder"
    kind = AutoConfig.from_pretrained(folder).model_type
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # a generative model: its first token attends to no other
        raise InputError(f"{folder} is a {kind}; a ranker needs an encoder like BERT")
    if not classifies and kind in ("bert", "roberta", "mpnet"):
        extra["add_pooling_layer"] = False
    auto = AutoModelForSequenceClassification if classifies else AutoModel
    return auto.from_pretrained(folder, dtype=torch.float32, **extra)


def window_of(network: Any) -> int:
    """Maximum tokens of a network. RoBERTa-like models start positions after the padding position."""
    config = network.config
    first = config.pad_token_id + 1 if config.model_type in COUNT_FROM_PADDING else 0
    return int(config.max_position_embeddings) - first


def _load_encoder(wanted: Wanted, architecture: str) -> TwoSides:
    from safetensors.torch import load_file

    from pyserini_kd.models.bert_dot import BertDot
    from pyserini_kd.models.colbert import ColBert
    from pyserini_kd.models.layers import keep_layers, layers_of
    from pyserini_kd.models.prettr import PreTtr

    folder, overrides, same = wanted.folder, wanted.overrides, architecture_of(wanted.folder) == architecture
    encoder = _network(folder, architecture)
    keep_layers(encoder, wanted.layers)
    if architecture == "prettr" and not same:
        overrides = {"join_layer": len(layers_of(encoder)) // 2} | overrides  # as published: 3 of 6
    window = window_of(encoder)
    settings = settings_with(folder, checkpoint_folder.SETTINGS[architecture], window, overrides)
    query_len = settings.max_query_len + getattr(settings, "masks", 0)
    if architecture == "prettr" and not (folder / checkpoint_folder.HEAD).exists() and "max_doc_len" not in overrides:
        settings = dataclasses.replace(settings, max_doc_len=min(settings.max_doc_len, window - query_len))
    check_lengths(folder, settings, window)
    classes: dict[str, type[TwoSides]] = {"bert_dot": BertDot, "colbert": ColBert, "prettr": PreTtr}
    model = classes[architecture](encoder, _tokenizer(folder), settings)
    if same and model.head is not None and (folder / checkpoint_folder.HEAD).exists():
        model.head.load_state_dict(load_file(folder / checkpoint_folder.HEAD))
    return model


def _load_tk(wanted: Wanted, glove: str | Path | None) -> Tk:
    """Load a TK of ours, or make a new one from a GloVe file or a checkpoint's input embeddings."""
    import torch
    from safetensors.torch import load_file

    from pyserini_kd.models.tk import Tk, TkSettings, read_glove

    folder = wanted.folder
    settings = settings_with(folder, TkSettings, checkpoint_folder.DEFAULT_DOC_LEN, wanted.overrides)
    if architecture_of(folder) == "tk":
        weights = load_file(folder / "model.safetensors")
        model = Tk(torch.zeros_like(weights["embeddings.weight"]), _tokenizer(folder), settings)
        model.load_state_dict(weights)
        return model
    if glove is not None:
        vectors, tokenizer = read_glove(Path(glove))
    else:
        from transformers import AutoModel

        tokenizer = _tokenizer(folder)
        vectors = AutoModel.from_pretrained(folder, dtype=torch.float32).get_input_embeddings().weight.detach()
    if "heads" not in wanted.overrides:  # 10 for the paper's width of 300; for others the nearest divisor
        heads = min((n for n in range(1, 17) if vectors.shape[1] % n == 0), key=lambda n: (abs(n - settings.heads), n))
        settings = dataclasses.replace(settings, heads=heads)
    return Tk(vectors, tokenizer, settings)


def _load_cross_encoder(wanted: Wanted) -> CrossEncoder:
    from pyserini_kd.models.cross_encoder import CrossEncoder, fold_two_classes
    from pyserini_kd.models.layers import keep_layers

    folder = wanted.folder
    if architecture_of(folder) == "cross_encoder":
        classifier = _network(folder, "cross_encoder")
    else:  # a plain encoder gets a new ranking head
        classifier = _network(folder, "cross_encoder", num_labels=1)
    labels = classifier.config.num_labels
    if labels == 2:
        fold_two_classes(classifier)
    elif labels != 1:
        raise InputError(f"checkpoint {folder} has {labels} labels; a ranker has one or two")
    if wanted.layers is not None:
        keep_layers(classifier.base_model, wanted.layers)
    tokenizer, room = _tokenizer(folder), window_of(classifier)
    max_len = wanted.overrides.get("max_doc_len") or min(tokenizer.model_max_length, room)
    check_length(folder, max_len, room)
    return CrossEncoder(classifier, tokenizer, max_len)


def _load_published(wanted: Wanted) -> Model:
    """Load a published checkpoint of Hofstätter et al. 2020: ColBERT, BERT_CAT or PreTTR on DistilBERT.

    Its folder has a `config.json` with a model type or class that transformers does not know, DistilBERT weights (prefix
    `bert_model.` or none), and a `compressor` or `_classification_layer`. It has no tokenizer; `distilbert-base-uncased`
    provides it.
    """
    from pyserini_kd.models.colbert import ColBert, ColBertSettings
    from pyserini_kd.models.cross_encoder import CrossEncoder
    from pyserini_kd.models.layers import keep_layers
    from pyserini_kd.models.prettr import PreTtr, PreTtrSettings

    folder, given, layout = wanted.folder, wanted.overrides, published_layout(wanted.folder)
    has_tokenizer = (folder / "tokenizer.json").exists() or (folder / "vocab.txt").exists()
    tokenizer = _tokenizer(folder if has_tokenizer else resolve("distilbert"))
    weights = _published_weights(folder)
    encoder = _published_encoder(weights, folder)
    keep_layers(encoder, wanted.layers)
    window = encoder.config.max_position_embeddings
    query_len, doc_len = given.get("max_query_len", PUBLISHED_QUERY_LEN), given.get("max_doc_len")
    if layout == "BERT_Cat":
        weight, bias = (weights[f"_classification_layer.{name}"].float() for name in ("weight", "bias"))
        classifier = _linear_classifier(encoder, weight, bias)
        return CrossEncoder(classifier, tokenizer, min(doc_len or PUBLISHED_QUERY_LEN + PUBLISHED_DOC_LEN, window))
    masks = given.get("masks", PUBLISHED_MASKS)
    model: PreTtr | ColBert
    if layout == "PreTTR":
        half = PUBLISHED_SPLIT if wanted.layers is None else encoder.config.n_layers // 2
        doc_len = min(doc_len or PUBLISHED_DOC_LEN, window - query_len - masks)
        split = given.get("join_layer", half)
        settings = PreTtrSettings(max_query_len=query_len, max_doc_len=doc_len, join_layer=split, masks=masks)
        model = PreTtr(encoder, tokenizer, settings)
        model.head.load_state_dict({"weight": weights["_classification_layer.weight"].float()})
        return model
    width = weights["compressor.weight"].shape[0]
    if given.get("width", width) != width:
        raise InputError(f"checkpoint {folder} has token vectors of width {width}, not {given['width']}")
    doc_len = min(doc_len or PUBLISHED_DOC_LEN, window)
    check_length(folder, query_len + masks, window)
    model = ColBert(encoder, tokenizer, ColBertSettings(max_query_len=query_len, max_doc_len=doc_len, masks=masks, width=width))
    assert model.head is not None
    model.head.load_state_dict({name: weights[f"compressor.{name}"].float() for name in ("weight", "bias")})
    return model


def _published_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder, from safetensors or else from torch files (read weights-only)."""
    import torch
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    if not weights:
        for path in sorted(folder.glob("pytorch_model*.bin")):
            weights |= torch.load(path, map_location="cpu", weights_only=True)
    if not weights:
        raise InputError(f"checkpoint {folder} has no weights (*.safetensors or pytorch_model*.bin)")
    return weights


def _published_encoder(weights: Mapping[str, Tensor], folder: Path) -> DistilBertModel:
    """The DistilBERT in published weights; its shape comes from the tensors."""
    from transformers import DistilBertConfig, DistilBertModel

    names = ("bert_model.", "distilbert.", "")
    prefix = next((name for name in names if f"{name}embeddings.word_embeddings.weight" in weights), None)
    if prefix is None:
        raise InputError(f"checkpoint {folder} contains no DistilBERT: no embeddings.word_embeddings.weight")
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    parts = ("embeddings.", "transformer.")  # some versions of transformers also saved position_ids, which are constant
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
