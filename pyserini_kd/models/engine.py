"""The loop that runs a model over many texts.

Texts are sorted by length and cut into batches under a token budget, so that little padding is needed. A thread tokenises the
next chunk while the model works on the present one. There are no gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from pyserini_kd.models.tokens import pad
from pyserini_kd.storage.arrays import Floats, Rows

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 2048  # tokens in a batch, padding included: fits into the caches of a CPU
ONNX_BATCH_TOKENS = 1024
GPU_BATCH_TOKENS = 1 << 15
CHUNK = 2048  # texts tokenised at a time

Tokenise = Callable[[list[int]], tuple[list[Any], int]]
"""Rows of texts -> their token records, and how many texts were cut."""
Use = Callable[[list[int], "torch.Tensor", "torch.Tensor"], None]
"""Takes the rows of a batch, the model's output and the attention mask."""


@contextlib.contextmanager
def running(model: torch.nn.Module, precision: str) -> Iterator[torch.device]:
    """Inference mode, eval mode and autocast to `precision` around a model; gives the model's device."""
    import torch

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    try:
        with torch.inference_mode(), torch.autocast(device.type, half, enabled=half is not None):
            yield device
    finally:
        model.train(was_training)


def batches(lengths: Sequence[int], batch_size: int | None = None, budget: int | None = None) -> Iterator[list[int]]:
    """Rows in batches of similar length, longest first.

    A batch holds `batch_size` rows; where that is None, as many as fit into `budget` tokens (BATCH_TOKENS).
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(order):
        size = batch_size or max(1, (budget or BATCH_TOKENS) // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def unique(texts: Sequence[str]) -> tuple[list[str], Rows]:
    """(distinct texts, row of each text among them)."""
    rows: dict[str, int] = {}
    places = np.fromiter((rows.setdefault(text, len(rows)) for text in texts), dtype=np.int64, count=len(texts))
    return list(rows), places


def text_chunks(texts: Sequence[str]) -> list[list[int]]:
    """Rows of texts, longest first, CHUNK at a time."""
    order = sorted(range(len(texts)), key=lambda row: (-len(texts[row]), row))
    return [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]


def run_batches(
    model: Any,
    chunks: Sequence[list[int]],
    tokenise: Tokenise,
    use: Use,
    *,
    precision: str,
    batch_size: int | None,
    budget: int,
    label: str,
    finished: Callable[[int], None] | None = None,
    **extra: Any,
) -> int:
    """Run the model over chunks of rows; returns how many texts were cut.

    `finished(n)` is called when chunk n is complete. `extra` goes to the model's forward.
    """
    cut = 0
    bar = tqdm(total=sum(map(len, chunks)), desc=label, unit=" texts", disable=None)
    with running(model, precision) as device, bar:
        pad_id = model.tokenizer.pad_token_id or 0
        for number, (rows, (records, n_cut)) in enumerate(_one_ahead(chunks, tokenise)):
            cut += n_cut
            for some in batches([len(record["input_ids"]) for record in records], batch_size, budget):
                batch = pad([records[i] for i in some], pad_id, device)
                use([rows[i] for i in some], model(**batch, **extra).float().cpu(), batch["attention_mask"].cpu())
                bar.update(len(some))
            if finished is not None:
                finished(number)
    return cut


def _one_ahead(chunks: Sequence[list[int]], tokenise: Tokenise) -> Iterator[tuple[list[int], tuple[list[Any], int]]]:
    """Each chunk with its token records; a thread works one chunk ahead."""
    if len(chunks) == 1:  # nothing to be ahead with, and a thread costs milliseconds
        yield chunks[0], tokenise(chunks[0])
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as ahead:
        found = [ahead.submit(tokenise, chunk) for chunk in chunks[:1]]
        for number, rows in enumerate(chunks):
            done = found.pop().result()
            found += [ahead.submit(tokenise, chunk) for chunk in chunks[number + 1 : number + 2]]
            yield rows, done


def dot_rows(query_vecs: Floats, query_rows: Rows, doc_vecs: Floats, doc_rows: Rows) -> Floats:
    """Dot products float32 (P,) of row pairs, some at a time: the array (P, H) is never built whole."""
    step = 1 << 16
    pieces = [
        np.einsum("ph,ph->p", query_vecs[query_rows[i : i + step]], doc_vecs[doc_rows[i : i + step]])
        for i in range(0, len(query_rows), step)
    ]
    return np.concatenate(pieces).astype(np.float32) if pieces else np.empty(0, np.float32)
