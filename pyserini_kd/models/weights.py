"""The files with weights in a checkpoint folder. Only `load` needs torch."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from pyserini_kd.storage.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, else its torch files; InputError if it has none."""
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not found:
        raise InputError(f"checkpoint {folder} has no weights (*.safetensors or pytorch_model*.bin)")
    return found


def load(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder in float32. Torch files are read with `weights_only`."""
    import torch
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for path in files(folder):
        found |= load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.float() for name, tensor in found.items()}


def has(folder: Path, *names: str) -> bool:
    """Whether a folder has a tensor with one of these names. A torch file is searched for the pickled name."""
    return any(_has(path, names) for path in (*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")))


def _has(path: Path, names: tuple[str, ...]) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as tensors:
                return not set(names).isdisjoint(tensors.keys())
        with zipfile.ZipFile(path) as archive:
            listed = b"".join(archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
            return any(b"X" + len(name).to_bytes(4, "little") + name.encode() in listed for name in names)
    except (SafetensorError, zipfile.BadZipFile):  # damaged, or a torch file before 1.6; loading says what is wrong
        return False
