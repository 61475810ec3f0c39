"""Load a checkpoint folder as a model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyserini_kd.models.checkpoint_names import fingerprint, resolve
from pyserini_kd.models.checkpoint_settings import (
    ARCHITECTURES,
    DEFAULT_DOC_LEN,
    HEAD,
    ONNX_ARCHITECTURES,
    OURS,
    architecture_of,
    classes_of,
    is_published,
    published_layout,
    settings_with,
    window_of,
)
from pyserini_kd.models.saving import quiet_transformers
from pyserini_kd.storage.errors import InputError

if TYPE_CHECKING:
    from pyserini_kd.models.bert_dot import BertDot
    from pyserini_kd.models.colbert import ColBert
    from pyserini_kd.models.cross_encoder import CrossEncoder
    from pyserini_kd.models.prettr import PreTtr
    from pyserini_kd.models.tk import Tk

    Model = BertDot | ColBert | CrossEncoder | PreTtr | Tk

logger = logging.getLogger(__name__)


def load(
    name: str,
    *,
    architecture: str | None = None,
    layers: tuple[int, ...] | None = None,
    glove: str | Path | None = None,
    onnx: str | None = None,
    lean: bool = False,
    settings: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Model:
    """Load a checkpoint, ready to score (eval mode, float32, CPU).

    Args:
        name: a name, folder or hub id, as `resolve` takes it.
        architecture: read it as this architecture instead of the one it was saved as.
        layers: keep these Transformer layers (0-based) and drop the others.
        glove: for `tk`: take word vectors from this GloVe text file, instead of the checkpoint's input embeddings.
        onnx: run by ONNX Runtime from the exported file of this precision, `fp32` or `int8`; only for inference.
        lean: run a BERT by our own forward (`models.bert`), not by transformers'; only for inference.
        settings: of the architecture alone (`own_settings`), in place of the checkpoint's.
        overrides: fields of the settings that all share, in place of the checkpoint's (None: keep).
    """
    folder, overrides = resolve(name), {**overrides, **(settings or {})}
    own = architecture_of(folder)
    architecture = architecture or own
    if architecture not in ARCHITECTURES:
        raise InputError(f"unknown architecture {architecture!r}; expected one of {', '.join(ARCHITECTURES)}")
    if architecture != own and (own == "tk" or published_layout(folder)):
        raise InputError(f"{name} is a {own} and cannot be read as a {architecture}")
    if onnx and (architecture not in ONNX_ARCHITECTURES or is_published(folder, architecture)):
        raise InputError(f"{name} is a {architecture}; only {' and '.join(ONNX_ARCHITECTURES)} run as ONNX or in int8")
    try:
        with quiet_transformers():
            if is_published(folder, architecture):
                return _load_published(folder, layers, overrides)
            if architecture == "cross_encoder":
                return _load_cross_encoder(folder, layers, overrides, onnx, lean)
            if architecture == "tk":
                return _load_tk(folder, overrides, glove)
            lean = lean and architecture != "prettr"
            return _load_encoder(folder, architecture, layers, overrides, onnx, lean)
    except InputError:
        raise
    except Exception as error:  # transformers and safetensors raise a dozen kinds for broken or foreign folders
        said = " ".join(line.strip() for line in str(error).splitlines()[:2])  # torch puts what is wrong into the second
        raise InputError(f"checkpoint {folder} cannot be loaded: {said}") from error


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _load_published(folder: Path, layers: tuple[int, ...] | None, overrides: dict[str, Any]) -> Model:
    from pyserini_kd.models.published import load as load_published

    layout = published_layout(folder)
    own = (folder / "tokenizer.json").exists() or (folder / "vocab.txt").exists()
    tokenizer = _tokenizer(folder if own else resolve("distilbert"))
    model: Model = load_published(folder, layout, tokenizer, layers, overrides).eval()
    return model


def _load_encoder(
    folder: Path, architecture: str, layers: tuple[int, ...] | None, overrides: dict[str, Any], onnx: str | None, lean: bool
) -> BertDot | ColBert | PreTtr:
    import torch
    from transformers import AutoConfig, AutoModel

    from pyserini_kd.models.fast_bert import Bert
    from pyserini_kd.models.fast_bert import read as read_bert
    from pyserini_kd.models.layers import keep_layers, layers_of
    from pyserini_kd.models.onnx_runtime import open_module

    model_class, _ = classes_of(architecture)
    config = AutoConfig.from_pretrained(folder)
    extra = {"add_pooling_layer": False} if config.model_type in ("bert", "roberta", "mpnet") else {}
    encoder: Any
    if onnx:
        encoder = open_module(folder, config, onnx, "last_hidden_state", fingerprint(folder))
    else:
        found = read_bert(folder, architecture) if lean else None
        if found is None:
            _refuse_decoder(folder, config)
            found = AutoModel.from_pretrained(folder, dtype=torch.float32, **extra)
        encoder = found
    keep_layers(encoder, layers)
    if architecture == "prettr" and architecture_of(folder) != "prettr" and overrides.get("join_layer") is None:
        overrides = {**overrides, "join_layer": len(layers_of(encoder)) // 2}  # the published one: 3 of 6
    window = window_of(config)
    settings = settings_with(folder, architecture, window, overrides)
    if isinstance(encoder, Bert):
        encoder.first = architecture == "bert_dot" and settings.pooling == "cls"
    if architecture == "prettr" and not (folder / HEAD).exists() and overrides.get("max_doc_len") is None:
        room = window - settings.max_query_len - settings.masks
        settings = dataclasses.replace(settings, max_doc_len=min(settings.max_doc_len, room))
    if max(settings.max_doc_len, settings.max_query_len + getattr(settings, "masks", 0)) > window:
        raise InputError(f"{folder} reads {window} tokens at most; a longer length was asked for")
    model = model_class(encoder, _tokenizer(folder), settings)
    if (folder / HEAD).exists() and architecture_of(folder) == architecture and getattr(model, "head", None) is not None:
        from safetensors.torch import load_file

        model.head.load_state_dict(load_file(folder / HEAD))
    loaded: BertDot | ColBert | PreTtr = model.eval()
    return loaded


def _refuse_decoder(folder: Path, config: Any) -> None:
    """InputError for models that write text, whose first token sees no other: those without a masked language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise InputError(f"{folder} is a {config.model_type}; rankers are made from encoders like BERT")


def _load_tk(folder: Path, overrides: dict[str, Any], glove: str | Path | None) -> Tk:
    """A TK of ours; or a new one, on the words of a GloVe file or the input embeddings of a checkpoint."""
    import torch
    from safetensors.torch import load_file

    from pyserini_kd.models.tk import Tk

    if (folder / OURS).exists() and architecture_of(folder) == "tk":
        weights = load_file(folder / "model.safetensors")
        settings = settings_with(folder, "tk", DEFAULT_DOC_LEN, overrides)
        model = Tk(torch.zeros_like(weights["embeddings.weight"]), _tokenizer(folder), settings)
        model.load_state_dict(weights)
        return model.eval()
    if glove is not None:
        from pyserini_kd.models.glove import read_glove

        vectors, tokenizer = read_glove(Path(glove))
    else:
        from transformers import AutoModel

        tokenizer = _tokenizer(folder)
        vectors = AutoModel.from_pretrained(folder, dtype=torch.float32).get_input_embeddings().weight.detach()
    settings = settings_with(folder, "tk", DEFAULT_DOC_LEN, overrides)
    if overrides.get("heads") is None:  # the paper's 10 for vectors of 300; the nearest number that divides others
        heads = min((n for n in range(1, 17) if vectors.shape[1] % n == 0), key=lambda n: (abs(n - settings.heads), n))
        settings = dataclasses.replace(settings, heads=heads)
    return Tk(vectors, tokenizer, settings).eval()


def _load_cross_encoder(
    folder: Path, layers: tuple[int, ...] | None, overrides: dict[str, Any], onnx: str | None, lean: bool
) -> CrossEncoder:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from pyserini_kd.models.cross_encoder import CrossEncoder, fold_two_classes
    from pyserini_kd.models.fast_bert import BertClassifier
    from pyserini_kd.models.fast_bert import read as read_bert
    from pyserini_kd.models.layers import keep_layers
    from pyserini_kd.models.onnx_runtime import open_module

    # a checkpoint without a ranking head (a plain language model) gets a new one
    has_head = architecture_of(folder) == "cross_encoder"
    extra = {} if has_head else {"num_labels": 1}
    classifier: Any
    if onnx:
        classifier = open_module(folder, AutoConfig.from_pretrained(folder, num_labels=1), onnx, "logits", fingerprint(folder))
    else:
        classifier = read_bert(folder, "cross_encoder") if lean and has_head else None
        if classifier is None:
            _refuse_decoder(folder, AutoConfig.from_pretrained(folder))
            classifier = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, **extra)
    if isinstance(classifier, BertClassifier):
        pass  # one logit already
    elif classifier.config.num_labels == 2:
        fold_two_classes(classifier)
    elif classifier.config.num_labels != 1:
        raise InputError(f"checkpoint {folder} has {classifier.config.num_labels} labels; a ranker has one or two")
    if layers is not None:
        keep_layers(classifier.base_model, layers)
    tokenizer = _tokenizer(folder)
    room = window_of(classifier.config)
    max_len = overrides.get("max_doc_len") or min(tokenizer.model_max_length, room)
    if max_len > room:
        raise InputError(f"{folder} reads {room} tokens at most; a longer length was asked for")
    return CrossEncoder(classifier, tokenizer, max_len).eval()
