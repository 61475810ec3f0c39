"""Distilled BERT rankers for Pyserini: train them, index with them, search, rerank, fuse and evaluate, on CPUs.

The names below are imported when they are first used; `import pyserini_kd` itself costs nothing. Functions for programs
are in `pyserini_kd.retrieval`, `.distillation`, `.evaluation` and `.models`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "DenseIndex": "retrieval.dense_index",
    "Doc": "data.types",
    "InputError": "storage.errors",
    "Qrels": "data.types",
    "Query": "data.types",
    "QueryEncoder": "models",
    "Run": "data.runs",
}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
