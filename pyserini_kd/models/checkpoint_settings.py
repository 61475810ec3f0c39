"""What a checkpoint folder says about itself: architecture, pooling, normalisation, lengths, prefixes."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyserini_kd.models.checkpoint_names import fingerprint, name_of, resolve
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import read_json

if TYPE_CHECKING:
    from pyserini_kd.models.bert_dot import EncoderSettings


logger = logging.getLogger(__name__)


ARCHITECTURES = ("bert_dot", "colbert", "cross_encoder", "prettr", "tk")
ONNX_ARCHITECTURES = ("bert_dot", "cross_encoder")
PUBLISHED = {"ColBERT": "colbert", "BERT_Cat": "cross_encoder", "PreTTR": "prettr"}  # layouts of Hofstätter et al. 2020
HEAD = "head.safetensors"
OURS = "pyserini_kd.json"
DEFAULT_DOC_LEN = 256
COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "roberta-prelayernorm", "xlm-roberta-xl")


def record_of(model: Any, folder: Path) -> dict[str, Any]:
    """What manifests and score stores say of a model: its name and weights, and how it reads texts and scores."""
    own = {"max_len": model.max_len} if model.architecture == "cross_encoder" else dataclasses.asdict(model.settings)
    return {"name": name_of(folder), "sha256": fingerprint(folder), **own}


def is_bounded(name: str) -> bool:
    """Whether a checkpoint's scores lie in [-1, 1]: margins that small teach an unbounded student nothing."""
    folder = resolve(name)
    return architecture_of(folder) == "bert_dot" and settings_of(folder).l2_norm


def architecture_of(folder: Path) -> str:
    """The architecture a checkpoint was saved as: ours say it, a sequence classifier is a cross-encoder, else bert_dot."""
    if (folder / OURS).exists():
        name = str(read_json(folder / OURS, "checkpoint settings").get("architecture"))
        if name not in ARCHITECTURES:
            raise InputError(f"{folder / OURS}: architecture {name!r} is none of {', '.join(ARCHITECTURES)}")
        return name
    layout = published_layout(folder)
    if layout:
        return PUBLISHED[layout]
    classes = read_json(folder / "config.json", "checkpoint config").get("architectures") or [""]
    return "cross_encoder" if "SequenceClassification" in classes[0] else "bert_dot"


def published_layout(folder: Path) -> str | None:
    """The layout of its own, one of PUBLISHED, that a checkpoint is in; None where it is ours or that of transformers.

    The config names it as model type or as class: a published PreTTR, which extends DistilBERT's class, has its model type.
    """
    if (folder / OURS).exists():
        return None
    config = read_json(folder / "config.json", "checkpoint config")
    names = [config.get("model_type"), *(config.get("architectures") or [])]
    return next((name for name in names if name in PUBLISHED), None)


def is_published(folder: Path, architecture: str) -> bool:
    """Whether a checkpoint of this architecture is in a published layout of its own."""
    layout = published_layout(folder)
    return layout is not None and PUBLISHED[layout] == architecture


def classes_of(name: str) -> tuple[Any, Any]:
    """The class of an architecture, and that of its settings."""
    from pyserini_kd.models.bert_dot import BertDot, EncoderSettings
    from pyserini_kd.models.colbert import ColBert, ColBertSettings
    from pyserini_kd.models.prettr import PreTtr, PreTtrSettings
    from pyserini_kd.models.tk import Tk, TkSettings

    classes = {"bert_dot": (BertDot, EncoderSettings), "colbert": (ColBert, ColBertSettings)}
    return (classes | {"prettr": (PreTtr, PreTtrSettings), "tk": (Tk, TkSettings)})[name]


def own_settings(architecture: str) -> list[str]:
    """Names of the settings that an architecture has beyond those that all share."""
    from pyserini_kd.models.bert_dot import EncoderSettings

    if architecture == "cross_encoder":
        return []
    shared = {field.name for field in dataclasses.fields(EncoderSettings)}
    return [field.name for field in dataclasses.fields(classes_of(architecture)[1]) if field.name not in shared]


def settings_with(folder: Path, architecture: str, window: int, overrides: dict[str, Any]) -> Any:
    """Settings of a checkpoint, read as an architecture, with overrides that are not None."""
    base = settings_of(folder, window)
    says = (folder / OURS).exists() or (folder / "modules.json").exists() or overrides.get("pooling") is not None
    if architecture == "bert_dot" and not says:
        logger.warning("%s does not say how it pools: taking the [CLS] vector, not normalised", folder)
    _, settings_class = classes_of(architecture)
    names = {field.name for field in dataclasses.fields(settings_class)}
    known = dataclasses.asdict(base)
    if (folder / OURS).exists():
        saved = read_json(folder / OURS, "checkpoint settings")
        same = architecture_of(folder) == architecture  # another's masks or layers are nothing of this one's
        known |= {name: value for name, value in saved.items() if same or name in known}
    known |= {name: value for name, value in overrides.items() if value is not None}
    return settings_class(**{name: value for name, value in known.items() if name in names})


def window_of(config: Any) -> int:
    """Tokens that an encoder of transformers reads at most; RoBERTa and its kin begin to count after padding's position."""
    first = config.pad_token_id + 1 if config.model_type in COUNT_FROM_PADDING else 0
    return int(config.max_position_embeddings) - first


def settings_of(folder: Path, window: int = 512) -> EncoderSettings:
    """Pooling, normalisation, lengths and prefixes of an encoder checkpoint.

    From our own file, else from sentence-transformers' `modules.json`, else CLS without normalisation.
    """
    from pyserini_kd.models.bert_dot import EncoderSettings

    if (folder / OURS).exists():
        record = read_json(folder / OURS, "checkpoint settings")
        names = {field.name for field in dataclasses.fields(EncoderSettings)}
        return EncoderSettings(**{k: v for k, v in record.items() if k in names})  # the part that all share
    if not (folder / "modules.json").exists():
        return EncoderSettings(max_doc_len=min(DEFAULT_DOC_LEN, window))
    pooling, l2_norm, max_len = "mean", False, DEFAULT_DOC_LEN
    for module in json.loads((folder / "modules.json").read_text(encoding="utf-8")):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            record = read_json(folder / module["path"] / "config.json", "pooling config")
            pooling = record.get("pooling_mode") or ("cls" if record.get("pooling_mode_cls_token") else "mean")
            if record.get("pooling_mode_max_tokens") or record.get("pooling_mode_mean_sqrt_len_tokens"):
                raise InputError(f"{folder}: its pooling is neither cls nor mean")
        elif kind == "Normalize":
            l2_norm = True
        elif kind != "Transformer":
            raise InputError(f"{folder}: sentence-transformers module {kind} is not supported")
    if (folder / "sentence_bert_config.json").exists():
        max_len = read_json(folder / "sentence_bert_config.json", "config").get("max_seq_length") or max_len
    return EncoderSettings(pooling, l2_norm, max_query_len=min(64, max_len), max_doc_len=min(max_len, window))
