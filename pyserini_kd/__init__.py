"""Distilled BERT rankers for Pyserini: train, index, search, rerank, fuse and evaluate on CPUs.

The names below are imported at first use, so `import pyserini_kd` is fast. The Python API is in `pyserini_kd.models`,
`.retrieval`, `.distillation` and `.evaluation`.
"""

from typing import TYPE_CHECKING

from pyserini_kd.storage.exports import lazily

if TYPE_CHECKING:
    from pyserini_kd.data.runs import Run
    from pyserini_kd.data.types import Doc, Qrels, Query
    from pyserini_kd.storage.errors import InputError

__version__ = "0.2.0"

_HOMES = {
    "Doc": "pyserini_kd.data.types",
    "InputError": "pyserini_kd.storage.errors",
    "Qrels": "pyserini_kd.data.types",
    "Query": "pyserini_kd.data.types",
    "Run": "pyserini_kd.data.runs",
}
__all__ = ["Doc", "InputError", "Qrels", "Query", "Run"]
__getattr__ = lazily(__name__, _HOMES)
