"""Distilled BERT rankers for Pyserini."""

__version__ = "0.1.0"
