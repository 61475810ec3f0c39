"""Run the peers: Pyserini and sentence-transformers.

Pyserini 1.6 needs the workarounds in `start_jvm`. `python -m benchmarks.peers [--bf16] MODULE ARGUMENTS...` applies them and
then runs a Pyserini command.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np


def bf16() -> Any:
    """A context that runs a peer in bf16, by torch autocast."""
    import torch

    return torch.autocast("cpu", torch.bfloat16)


def pyserini_encode(encoder: Any, texts: list[str], batch_size: int = 64) -> np.ndarray:
    """Encode as `pyserini.encode` does: batches in collection order, padded to the longest text."""
    batches = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
    return np.concatenate([encoder.encode(texts=batch, max_length=256) for batch in batches])


def pyserini_search(searcher: Any, queries: list[Any], hits: int) -> dict[str, Any]:
    """Search as `pyserini.search.faiss` does by default: one query at a time."""
    return {query.query_id: searcher.search(query.text, k=hits) for query in queries}


def run_of(found: dict[str, Any]) -> Any:
    """Convert Pyserini hits to a Run."""
    from pyserini_kd.data.runs import Run

    return Run.from_hits(
        "peer", ((q, [hit.docid for hit in hits], [float(hit.score) for hit in hits]) for q, hits in found.items())
    )


def train_sentence_transformer(
    folder: Path, columns: dict[str, list[Any]], output: Path, *, length: int, **arguments: Any
) -> None:
    """Train a bi-encoder with Margin-MSE by sentence-transformers, from the checkpoint in `folder`."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer import losses

    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = length
    settings = SentenceTransformerTrainingArguments(
        str(output), report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, **arguments
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=settings, train_dataset=Dataset.from_dict(columns), loss=losses.MarginMSELoss(model)
    )
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()


if __name__ == "__main__":
    from pyserini_kd.data.java import start_jvm

    start_jvm()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with bf16() if sys.argv[1] == "--bf16" else contextlib.nullcontext():
        sys.argv = [argument for argument in sys.argv[1:] if argument != "--bf16"]
        runpy.run_module(sys.argv[0], run_name="__main__")
