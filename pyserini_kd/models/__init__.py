"""Load a ranker and run it."""

from pyserini_kd.models.rankers import Encoder, QueryEncoder, Scorer, load

__all__ = ["Encoder", "QueryEncoder", "Scorer", "load"]
