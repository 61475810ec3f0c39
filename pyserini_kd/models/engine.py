"""The one engine that runs a model over many texts.

Equal texts are computed once; texts are sorted by length and cut into batches under a token budget, so that padding is
small; the order is restored at the end. A thread tokenises what comes next. No gradients; bf16 where the processor computes
it natively, int8 where the checkpoint was exported for it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd.models import checkpoint_names, checkpoint_settings, hardware, loading
from pyserini_kd.models.tokens import pad, side_records
from pyserini_kd.storage.errors import InputError

if TYPE_CHECKING:
    import torch

    from pyserini_kd.models.bert_dot import BertDot

logger = logging.getLogger(__name__)
Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


BATCH_TOKENS = 2048  # tokens of a batch, padding included, where the user does not fix the batch size: fits into caches
ONNX_BATCH_TOKENS = 1024
GPU_BATCH_TOKENS = 1 << 15
CHUNK = 2048  # texts tokenised at a time


def load(name: str, *, device: str = "cpu", precision: str = "auto", backend: str = "auto", **overrides: Any) -> loading.Model:
    """A checkpoint ready to run: on its device, by torch, or by ONNX Runtime where that is asked for or int8 is chosen.

    Raises:
        InputError: it cannot be had or run so; `overrides` as for `checkpoints.load`.
    """
    from pyserini_kd.models import onnx_runtime

    if backend not in hardware.BACKENDS:
        raise InputError(f"backend must be one of {', '.join(hardware.BACKENDS)}, not {backend!r}")
    device = hardware.check_device(hardware.own_device(device))
    folder = checkpoint_names.resolve(name)
    can_onnx = backend != "torch" and (overrides.get("architecture") or checkpoint_settings.architecture_of(folder)) in (
        checkpoint_settings.ONNX_ARCHITECTURES
    )
    chosen = hardware.choose_precision(precision, device, folder if can_onnx else None)
    by_onnx = backend == "onnx" or chosen == "int8"
    if by_onnx and (backend == "torch" or device != "cpu" or precision in ("bf16", "fp16")):
        raise InputError("ONNX Runtime is for fp32 and int8 on a CPU, int8 only for it: --backend, --precision, --device clash")
    if by_onnx:
        chosen = "fp32" if chosen == "bf16" else chosen
        onnx_runtime.check_cpu(folder, hardware.cpu_flags())
    model = loading.load(name, onnx=chosen if by_onnx else None, lean=True, **overrides)
    why = ", chosen for this processor" if precision == "auto" else ""
    logger.info("%s runs in %s by %s on %s%s", Path(name).name, chosen, "ONNX Runtime" if by_onnx else "torch", device, why)
    return model.to(device)


def precision_of(model: Any, precision: str = "auto") -> str:
    """What a loaded model computes in; InputError where it was not loaded for the precision that is asked for."""
    from pyserini_kd.models import onnx_runtime

    module = onnx_runtime.module_in(model)
    if module is None:
        chosen = hardware.choose_precision(precision, str(next(model.parameters()).device))
        if chosen == "int8":
            raise InputError(f"this {model.architecture} was not loaded for int8 (a bert_dot or cross_encoder can be)")
        return chosen
    if precision not in ("auto", module.precision):
        raise InputError(f"the model was loaded to run in {module.precision} by ONNX Runtime, not in {precision}")
    return module.precision


def backend_of(model: Any) -> str:
    """What a loaded model computes by: `torch` or `onnx`."""
    from pyserini_kd.models import onnx_runtime

    return "onnx" if onnx_runtime.module_in(model) else "torch"


def arithmetic(model: Any, precision: str, batch_size: int | None) -> dict[str, Any]:
    """How a loaded model computes: what its outputs depend on, but for rounding, besides weights and settings."""
    known = {"precision": precision_of(model, precision), "backend": backend_of(model)}
    known["device"] = next(model.parameters()).device.type
    return known | ({"batch_size": batch_size} if depends_on_its_batch(model) else {})


@contextlib.contextmanager
def running(model: torch.nn.Module, precision: str) -> Iterator[torch.device]:
    """Inference mode, eval mode and autocast around a model; gives the model's device."""
    import torch

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision_of(model, precision))
    try:
        with torch.inference_mode(), torch.autocast(device.type, half, enabled=half is not None):
            yield device
    finally:
        model.train(was_training)


def batches(lengths: Sequence[int], batch_size: int | None = None, budget: int | None = None) -> Iterator[list[int]]:
    """Rows in batches of like length, longest first; a batch holds `budget` (BATCH_TOKENS) tokens, or `batch_size` rows."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(order):
        size = batch_size or max(1, (budget or BATCH_TOKENS) // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def batch_tokens(model: Any, device: torch.device) -> int:
    """Tokens of a batch that suit what runs the model."""
    from pyserini_kd.models import onnx_runtime

    return GPU_BATCH_TOKENS if device.type == "cuda" else ONNX_BATCH_TOKENS if onnx_runtime.module_in(model) else BATCH_TOKENS


def unique(texts: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """(distinct texts, row of each text among them)."""
    rows: dict[str, int] = {}
    places = np.fromiter((rows.setdefault(text, len(rows)) for text in texts), dtype=np.int64, count=len(texts))
    return list(rows), places


def run_batches(
    model: Any,
    chunks: Sequence[list[int]],
    tokenise: Callable[[list[int]], tuple[list[Any], int]],
    use: Callable[[list[int], torch.Tensor, torch.Tensor], None],
    *,
    precision: str,
    batch_size: int | None,
    label: str,
    finished: Callable[[int], None] | None = None,
    **extra: Any,
) -> int:
    """Run the model over texts (or pairs) in length-bucketed batches; returns how many were cut.

    `chunks` are rows to tokenise together; `tokenise` gives their records and how many it cut; `use(rows, output, attention
    mask)` takes the results; `finished(chunk)` hears when all of a chunk are in.
    """
    cut = 0
    bar = tqdm(total=sum(map(len, chunks)), desc=label, unit=" texts", disable=None)
    with running(model, precision) as device, bar:
        pad_id, budget = model.tokenizer.pad_token_id or 0, batch_tokens(model, device)
        for number, (rows, (records, n_cut)) in enumerate(_one_ahead(chunks, tokenise)):
            cut += n_cut
            for some in batches([len(record["input_ids"]) for record in records], batch_size, budget):
                batch = pad([records[i] for i in some], pad_id, device)
                use([rows[i] for i in some], model(**batch, **extra).float().cpu(), batch["attention_mask"].cpu())
                bar.update(len(some))
            if finished is not None:
                finished(number)
    return cut


def _one_ahead(
    chunks: Sequence[list[int]], tokenise: Callable[[list[int]], tuple[list[Any], int]]
) -> Iterator[tuple[list[int], tuple[list[Any], int]]]:
    """Each chunk of rows with what `tokenise` makes of it; a thread is one chunk ahead."""
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


def text_chunks(texts: Sequence[str]) -> list[list[int]]:
    """Rows of texts, longest first, CHUNK at a time."""
    order = sorted(range(len(texts)), key=lambda row: (-len(texts[row]), row))
    return [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]


def encode(
    model: BertDot,
    texts: Sequence[str],
    kind: str,
    *,
    precision: str = "auto",
    batch_size: int | None = None,
    label: str = "encode",
    cut: list[int] | None = None,
) -> Floats:
    """Vectors float32 (N, H) of texts; `kind` is `query` or `doc` and decides length and prefix.

    Texts longer than the model's window are cut; how many is logged, or appended to `cut` where the caller adds them up.
    """
    distinct, places = unique(texts)
    vectors = np.zeros((len(distinct), model.width), dtype=np.float32)

    def use(rows: list[int], output: torch.Tensor, _: torch.Tensor) -> None:
        vectors[rows] = output.numpy()

    def tokenise(rows: list[int]) -> tuple[list[Any], int]:
        return side_records(model, [distinct[row] for row in rows], kind)

    if kind == "query" and depends_on_its_batch(model):
        batch_size = 1  # a query has one vector, whoever else is asked for
    settings: dict[str, Any] = {"precision": precision, "batch_size": batch_size, "label": label}
    n_cut = run_batches(model, text_chunks(distinct), tokenise, use, **settings)
    count_cut(model, kind, n_cut, len(distinct), cut)
    return vectors[places]


def depends_on_its_batch(model: Any) -> bool:
    """Whether what is computed of a text depends on what is beside it: int8 measures its activations a batch at a time."""
    from pyserini_kd.models import onnx_runtime

    module = onnx_runtime.module_in(model)
    return module is not None and module.precision == "int8"


def count_cut(model: Any, kind: str, n_cut: int, total: int, cut: list[int] | None) -> None:
    """Log how many texts were cut, or add the number to `cut`."""
    if cut is None:
        max_len = model.settings.max_query_len if kind == "query" else model.settings.max_doc_len
        log_cut(n_cut, total, max_len, f"{kind} texts")
    else:
        cut.append(n_cut)


def log_cut(count: int, total: int | None, max_len: int, what: str) -> None:
    """Say how many texts (of all, where their number is known) were longer than the model's window."""
    if count:
        of = f" of {total}" if total is not None else ""
        logger.info("%d%s %s are longer than %d tokens and were cut", count, of, what, max_len)


def dot_rows(query_vecs: Floats, query_rows: Rows, doc_vecs: Floats, doc_rows: Rows) -> Floats:
    """Dot products float32 (P,) of row pairs, some at a time: (P, H) is never built whole."""
    step = 1 << 16
    pieces = [
        np.einsum("ph,ph->p", query_vecs[query_rows[i : i + step]], doc_vecs[doc_rows[i : i + step]])
        for i in range(0, len(query_rows), step)
    ]
    return np.concatenate(pieces).astype(np.float32) if pieces else np.empty(0, np.float32)
