"""The differences between Pyserini 1.6 (Lucene 9) and 2.x (Lucene 10). No other module depends on them.

Pyserini 2.4 downloads its lists of prebuilt indexes and topic sets, the former at import. So Pyserini is imported only to
look up such a name. Java must be running for the functions that take or return Java objects.
"""

import contextlib
import importlib.metadata
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pyserini_kd.data.java import JavaObject
from pyserini_kd.storage.errors import InputError


def version() -> str:
    """The version of the installed Pyserini."""
    return importlib.metadata.version("pyserini")


def asks_for_names() -> bool:
    """Whether the installed Pyserini is 2.4 or newer. These versions download their lists of names."""
    return tuple(int(part) for part in re.findall(r"\d+", version())[:2]) >= (2, 4)


def cache_home() -> Path:
    """Pyserini's folder of downloads. Since 2.4, it is in the folder `.cache` of the working folder if that exists."""
    if named := os.environ.get("PYSERINI_CACHE"):
        return Path(named)
    here = Path.cwd() / ".cache"
    return (here if asks_for_names() and here.is_dir() else Path.home() / ".cache") / "pyserini"


@contextlib.contextmanager
def needing_list(problem: str, names: str) -> Iterator[None]:
    """Raise an InputError that begins with `problem` if Pyserini cannot download its list of `names` in the block."""
    try:
        yield
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"{problem}, and Pyserini {version()} needs the network for its list of {names}: {reason}") from error


def prebuilt_indexes(kind: str) -> tuple[Mapping[str, dict[str, Any]], Callable[[str], str]]:
    """Prebuilt indexes of a kind (`BM25` or `FAISS`) by name, and the function that downloads one into a folder.

    The import and each look-up may raise OSError, see `needing_list`.
    """
    from pyserini import prebuilt_index_info as lists
    from pyserini.util import download_prebuilt_index

    return lists.TF_INDEX_INFO if kind == "BM25" else lists.FAISS_INDEX_INFO, download_prebuilt_index


def topic_set(name: str) -> JavaObject | None:
    """Anserini's entry of a topic set, or None for an unknown name; OSError as in `needing_list`."""
    import jnius

    java_sets = jnius.autoclass("io.anserini.search.topicreader.Topics")
    if not hasattr(java_sets, "get"):  # before 2.4, Python has more names than Java
        from pyserini.search import _base

        return _base.topics_mapping.get(name)
    try:
        return java_sets.get(name)
    except jnius.JavaException as error:
        raise OSError(str(error).split("\n")[0].rpartition("Exception: ")[2]) from error


def has_term_vectors(field: JavaObject) -> bool:
    """Whether a field of a Lucene index stores the words of each document."""
    return bool(field.hasTermVectors() if hasattr(field, "hasTermVectors") else field.hasVectors())


def vector_of(values: JavaObject, row: int) -> list[float]:
    """The vector of a row from Lucene's FloatVectorValues, which Lucene 9 reads forwards only."""
    if not hasattr(values, "advance"):
        return values.vectorValue(row)
    values.advance(row)
    return values.vectorValue()


def is_lucene8(searcher: JavaObject) -> bool:
    """Whether Anserini's searcher found an index of Lucene 8; Pyserini 2.4 cannot open one."""
    return bool(getattr(searcher, "backwardsCompatibilityLucene8", False))


def explained(message: str) -> str:
    """Explain a message of Lucene if another version of Lucene wrote the index; else return the message."""
    if re.search(r"is in the future: 10\b", message):
        return "written by Pyserini 2 (Lucene 10); build it again or use Pyserini 2"
    if (part := re.search(r": (\d+) \(needs to be between \d+ and (\d+)\)", message)) and int(part[1]) > int(part[2]):
        return f"written by a newer Lucene than that of Pyserini {version()}; build it again or use a newer Pyserini"
    if old := re.search(r"initially created with Lucene (\d+)", message):
        return f"written by Lucene {old[1]}; build it again or use an older Pyserini"
    return message
