"""OpenVINO's files of a checkpoint: where they are, which checkpoint they were made from, and how to make them.

A trained checkpoint carries them in `openvino/`, where sentence-transformers looks for them. For other checkpoints they are
made once and kept in a cache. A record beside them holds the SHA-256 of what they were made from and of themselves, so files of
other weights and damaged files are made again. The tokenizer is saved with them, as transformers built it, so that a search
imports neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from pyserini_kd.models import checkpoint_folder, hardware, sentence_folder
from pyserini_kd.models.reader import PairSettings, Reader
from pyserini_kd.models.tokens import SavedTokenizer
from pyserini_kd.storage import files
from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_folder, locked
from pyserini_kd.storage.records import Record, read_json

logger = logging.getLogger(__name__)

FOLDER = "openvino"
MODEL, UPPER, INT8 = "openvino_model.xml", "openvino_upper.xml", "openvino_model_qint8_quantized.xml"
"""The model (of a PreTTR: its lower layers), a PreTTR's upper layers, the int8 model. A .bin file is beside each .xml file."""
TOKENIZER, RECORD, DENSE = "tokenizer.json", "pyserini_kd.json", "dense.safetensors"
FORMAT = 2  # number of this layout; files of another number are made again
GRAPHS = {"bert_dot": "encoder", "colbert": "encoder", "cross_encoder": "classifier", "prettr": "prettr"}
"""Architecture -> what its file computes: last states, last states and logits, or states at the join layer."""
INSIDE = ("layers", "join_layer", "width", "glove", "strategy", "activation")  # overrides that change the network itself
READ = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json", "artifact.metadata")
Make = Callable[[Path, str, Path], None]
"""Writes the files of (checkpoint, architecture) into a folder; CannotRun if OpenVINO cannot run the model."""


class CannotRun(InputError):
    """OpenVINO cannot run a model, and torch can."""


class Files(NamedTuple):
    """Valid files of a checkpoint, and how the checkpoint reads texts."""

    folder: Path
    checkpoint: Path
    architecture: str
    record: Record
    reader: Reader


def library() -> ModuleType:
    """Import OpenVINO without its usage statistics. Otherwise its import sends a message to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # as if this package were not installed
    import openvino

    return openvino


def cache() -> Path:
    """The folder for files of checkpoints that have none of their own, in PYSERINI_KD_CACHE or `~/.cache/pyserini_kd`."""
    return files.cache() / FOLDER


def made_from(checkpoint: Path, architecture: str) -> Record:
    """Everything that determines the files of a checkpoint: weights, configuration, tokenizer, and the kind of network."""
    files = sentence_folder.root(checkpoint)
    parts = {name: sha256(files / name) for name in READ if (files / name).is_file()}
    if checkpoint_folder.lower_cases(checkpoint):
        parts["lower_case"] = "yes"
    return {"weights": checkpoint_folder.fingerprint(checkpoint), **parts, "graph": GRAPHS[architecture], "format": FORMAT}


def has_int8(checkpoint: Path) -> bool:
    """Whether a checkpoint carries an int8 file."""
    return all((checkpoint / FOLDER / name).is_file() for name in (INT8, RECORD))


def find(
    checkpoint: Path, architecture: str, precision: str, overrides: Mapping[str, object], *, required: bool, make: Make
) -> Files | None:
    """Find the files of a checkpoint, or make them with `make`; None if torch must run the checkpoint.

    Raises:
        InputError: `required`, and OpenVINO cannot run the checkpoint; or the checkpoint has no int8 file for int8.
    """
    if (why := obstacle(checkpoint, architecture, overrides)) is not None:
        if required:
            raise InputError(why)
        return None
    wanted = made_from(checkpoint, architecture)
    if precision == "int8":
        return opened(_int8(checkpoint, wanted), checkpoint, architecture, overrides)
    for folder in (checkpoint / FOLDER, kept := cache() / _name(wanted)):
        if is_valid(folder, wanted):
            return opened(folder, checkpoint, architecture, overrides)
    try:
        with locked(kept.with_suffix(".lock")):
            if not is_valid(kept, wanted):
                logger.info("%s: OpenVINO's files are made once, in %s", checkpoint_folder.name_of(checkpoint), kept)
                shutil.rmtree(kept, ignore_errors=True)
                with atomic_folder(kept) as partial:
                    make(checkpoint, architecture, partial)
    except (CannotRun, OSError) as error:
        if required:
            raise InputError(f"OpenVINO cannot run {checkpoint}: {error}") from error
        logger.warning("WARNING: OpenVINO cannot run %s, so torch does: %s", checkpoint.name, error)
        return None
    return opened(kept, checkpoint, architecture, overrides)


def obstacle(checkpoint: Path, architecture: str, overrides: Mapping[str, object]) -> str | None:
    """Why OpenVINO cannot run a checkpoint with these overrides; None if it can."""
    if architecture not in GRAPHS:
        return f"a {architecture} does not run in OpenVINO or int8; use `backend` torch"
    own = checkpoint_folder.architecture_of(checkpoint)
    if own != architecture and architecture not in ("bert_dot", "colbert"):
        return f"{checkpoint} is a {own}; as a {architecture} it needs training first"
    if changed := [name for name in INSIDE if overrides.get(name) is not None]:
        return f"`{changed[0]}` changes the network, so only torch can run it; leave it out or use `backend` torch"
    if importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed: pip install openvino"
    return None


def _name(wanted: Record) -> str:
    import hashlib
    import json

    named = {**wanted, "checked": "weights"}  # files of older versions may hold random weights in place of missing ones
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:32]


def is_valid(folder: Path, wanted: Record) -> bool:
    """Whether a folder has undamaged files that were made from `wanted` (see `made_from`)."""
    if not (folder / RECORD).is_file():
        return False
    with contextlib.suppress(InputError, OSError, AttributeError, KeyError):
        record = read_json(folder / RECORD, "record of OpenVINO files")
        files = record["sha256"].items()
        return bool(record["made_from"] == wanted and all(sha256(folder / name) == found for name, found in files))
    return False


def _int8(checkpoint: Path, wanted: Record) -> Path:
    folder = checkpoint / FOLDER
    if not has_int8(checkpoint):
        raise InputError(
            f"{checkpoint} has no int8 file {FOLDER}/{INT8}; make it: "
            f"pyserini-kd export --encoder {checkpoint} --output {checkpoint.name}-int8 --int8 --collection docs.jsonl"
        )
    if hardware.cpu_flags() and not hardware.has_vnni() and read_json(folder / RECORD, "record").get("vnni"):
        raise InputError(f"{checkpoint}: the int8 file needs VNNI, which this CPU lacks; export again on this machine")
    if not is_valid(folder, wanted):
        raise InputError(f"{folder} is damaged or was made from other weights than this checkpoint's; export it again")
    return folder


def opened(folder: Path, checkpoint: Path, architecture: str, overrides: Mapping[str, object]) -> Files:
    """The files in a folder, with a reader that has the checkpoint's settings and the overrides."""
    record = read_json(folder / RECORD, "record of OpenVINO files")
    tokenizer = SavedTokenizer(folder / TOKENIZER, **record["tokenizer"])
    given = {name: value for name, value in overrides.items() if value is not None}
    window = record["window"]
    settings: checkpoint_folder.EncoderSettings | PairSettings
    if architecture == "cross_encoder":
        sentence_folder.check_pairs(checkpoint)
        listed = sentence_folder.modules(checkpoint)
        most = sentence_folder.lengths(checkpoint, window)[1] if listed else min(record["max_len"], window)
        longest = int(str(given.get("max_doc_len") or most))
        checkpoint_folder.check_length(checkpoint, longest, window)
        settings = PairSettings(longest)
    elif record["settings"] is not None:
        made = checkpoint_folder.SETTINGS[architecture](**record["settings"])
        settings = dataclasses.replace(made, **given)  # type: ignore[arg-type]
        checkpoint_folder.check_lengths(checkpoint, settings, window)
    else:
        settings = checkpoint_folder.settings_with(checkpoint, checkpoint_folder.SETTINGS[architecture], window, given)
        checkpoint_folder.check_lengths(checkpoint, settings, window)
    return Files(folder, checkpoint, architecture, record, Reader(tokenizer, settings, architecture == "prettr"))
