"""The peers, each started so that it works.

Pyserini 1.6 builds an OpenAI client at import and demands a module of Java that slim runtimes lack; `start_jvm` works round
both. `python -m benchmarks.peers [--bf16] MODULE ARGUMENTS...` runs one of its commands after that.
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
    """The context that helps a peer to bf16: its own code, under torch's autocast."""
    import torch

    return torch.autocast("cpu", torch.bfloat16)


def pyserini_encode(encoder: Any, texts: list[str], batch_size: int = 64) -> np.ndarray:
    """What `pyserini.encode` does with texts: batches in the order of the collection, padded to their longest."""
    batches = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
    return np.concatenate([encoder.encode(texts=batch, max_length=256) for batch in batches])


def pyserini_search(searcher: Any, queries: list[Any], hits: int) -> dict[str, Any]:
    """What `pyserini.search.faiss` does with topics at its defaults: one query at a time."""
    return {query.query_id: searcher.search(query.text, k=hits) for query in queries}


def run_of(found: dict[str, Any]) -> Any:
    """Pyserini's hits as a Run."""
    from pyserini_kd.data.runs import Run

    return Run.from_hits(
        "peer", ((q, [hit.docid for hit in hits], [float(hit.score) for hit in hits]) for q, hits in found.items())
    )


def train_sentence_transformer(
    folder: Path, columns: dict[str, list[Any]], output: Path, *, length: int, **arguments: Any
) -> None:
    """Margin-MSE by sentence-transformers' own trainer, a bi-encoder from the checkpoint in `folder`."""
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
