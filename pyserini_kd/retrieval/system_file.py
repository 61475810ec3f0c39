"""The file `search.yaml` of a folder that holds a whole system: its settings, with paths relative to the folder."""

from collections.abc import Mapping, Set
from pathlib import Path

import yaml

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, require_file
from pyserini_kd.storage.records import Record

NAME = "search.yaml"
PATHS = ("encoder", "index", "sparse_index", "rerank", "rerank_index")
"""Settings that may be paths below the folder."""
HEAD = "# Settings of a whole system. Open it with: pyserini-kd search --system FOLDER, or serve --system FOLDER\n"


def write(folder: Path, settings: Mapping[str, object]) -> None:
    """Write the settings of a system; paths are relative to its folder."""
    with atomic_file(folder / NAME) as out:
        out.write(HEAD + yaml.safe_dump(dict(settings), sort_keys=False))


def read(folder: str | Path, known: Set[str]) -> Record:
    """Return the settings of a system, with names from `known`; names of files below the folder become paths.

    InputError as in `raw`.
    """
    return {name: _below(Path(folder), value) if name in PATHS else value for name, value in raw(folder, known).items()}


def raw(folder: str | Path, known: Set[str]) -> Record:
    """Return the settings of a system as they are in the file.

    InputError if there is no such file or it is not a mapping of known settings.
    """
    path = require_file(Path(folder) / NAME, "system")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())[:120]}", "system") from None
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path} must hold settings, one `name: value` a line", "system")
    if unknown := sorted(str(name) for name in found if name not in known):
        raise InputError(f"{path}: unknown setting {unknown[0]}", "system")
    return found


def _below(folder: Path, value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple(_below(folder, part) for part in value)
    return str(folder / value) if isinstance(value, str) and (folder / value).exists() else value
