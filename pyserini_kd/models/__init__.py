"""Load a ranker and run it."""

from typing import TYPE_CHECKING

from pyserini_kd.storage.exports import lazily

if TYPE_CHECKING:
    from pyserini_kd.models.rankers import Encoder, QueryEncoder, Scorer, load

_HOMES = {
    "Encoder": "pyserini_kd.models.rankers",
    "QueryEncoder": "pyserini_kd.models.rankers",
    "Scorer": "pyserini_kd.models.rankers",
    "load": "pyserini_kd.models.rankers",
}
__all__ = ["Encoder", "QueryEncoder", "Scorer", "load"]
__getattr__ = lazily(__name__, _HOMES)
