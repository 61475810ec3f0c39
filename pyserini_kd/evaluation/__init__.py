"""Measure runs against judgements, and test differences for significance."""

from pyserini_kd.evaluation.engines import compare, evaluate, mean
from pyserini_kd.evaluation.measures import DEFAULT_MEASURES, PRESETS, Measure
from pyserini_kd.evaluation.significance import Comparison

__all__ = ["DEFAULT_MEASURES", "PRESETS", "Comparison", "Measure", "compare", "evaluate", "mean"]
