"""The one engine that runs a model over many texts.

Equal texts are computed once; texts are sorted by length and cut into batches under a token budget, so that padding is
small; the order is restored at the end. A thread tokenises what comes next. No gradients; bf16 where the processor computes
it natively, int8 where the checkpoint was exported for it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd.files import InputError
from pyserini_kd.models import checkpoints
from pyserini_kd.models.tokens import pad, side_records, tokenize

if TYPE_CHECKING:
    import torch

    from pyserini_kd.models.bert_dot import BertDot
    from pyserini_kd.models.colbert import ColBert
    from pyserini_kd.models.cross_encoder import CrossEncoder
    from pyserini_kd.models.prettr import PreTtr
    from pyserini_kd.models.tk import Tk

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

BATCH_TOKENS = 2048  # tokens of a batch, padding included, where the user does not fix the batch size: fits into caches
ONNX_BATCH_TOKENS = 1024
GPU_BATCH_TOKENS = 1 << 15
CHUNK = 2048  # texts tokenised at a time
LATE_BYTES = 1 << 30  # token vectors held at a time while reranking
PRECISIONS = ("auto", "fp32", "bf16", "int8")
BACKENDS = ("auto", "torch", "onnx")


@functools.cache
def cpu_flags() -> set[str]:
    """Feature flags of this processor (Linux; empty elsewhere)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


def choose_precision(precision: str = "auto", device: str = "cpu", folder: Path | None = None) -> str:
    """`fp32`, `bf16` or `int8`; `auto` decides from the processor and what the checkpoint folder holds, never from a timing.

    It takes bf16 on a GPU that has it and on CPUs with AMX tiles; else int8 where `export --int8` put it beside the weights and
    the CPU has VNNI; else fp32. AVX-512 BF16 alone does not count: measured on such a processor, bf16 was slower than fp32.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        import torch

        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if "amx_bf16" in cpu_flags():
        return "bf16"
    if folder is not None:
        from pyserini_kd.models import onnx

        if onnx.has(folder, "int8") and onnx.has_vnni(cpu_flags()):
            return "int8"
    return "fp32"


def load(
    name: str, *, device: str = "cpu", precision: str = "auto", backend: str = "auto", **overrides: Any
) -> checkpoints.Model:
    """A checkpoint ready to run: on its device, by torch, or by ONNX Runtime where that is asked for or int8 is chosen.

    Raises:
        InputError: it cannot be had or run so; `overrides` as for `checkpoints.load`.
    """
    from pyserini_kd.models import onnx

    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    check_device(device)
    folder = checkpoints.resolve(name)
    chosen = choose_precision(precision, device, folder if backend != "torch" else None)
    by_onnx = backend == "onnx" or chosen == "int8"
    if by_onnx and (backend == "torch" or device != "cpu" or precision == "bf16"):
        raise InputError("ONNX Runtime is for fp32 and int8 on a CPU, int8 only for it: --backend, --precision, --device clash")
    if by_onnx:
        chosen = "fp32" if chosen == "bf16" else chosen
        onnx.check_cpu(folder, cpu_flags())
    model = checkpoints.load(name, onnx=chosen if by_onnx else None, lean=True, **overrides)
    logger.info("%s runs in %s by %s on %s", Path(name).name, chosen, "ONNX Runtime" if by_onnx else "torch", device)
    return model.to(device)


def precision_of(model: Any, precision: str = "auto") -> str:
    """What a loaded model computes in; InputError where it was not loaded for the precision that is asked for."""
    from pyserini_kd.models import onnx

    module = onnx.module_in(model)
    if module is None:
        chosen = choose_precision(precision, str(next(model.parameters()).device))
        if chosen == "int8":
            raise InputError(f"this {model.architecture} was not loaded for int8 (a bert_dot or cross_encoder can be)")
        return chosen
    if precision not in ("auto", module.precision):
        raise InputError(f"the model was loaded to run in {module.precision} by ONNX Runtime, not in {precision}")
    return module.precision


def threads() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def running(model: torch.nn.Module, precision: str) -> Iterator[torch.device]:
    """Inference mode, eval mode and autocast around a model; gives the model's device."""
    import torch

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    bf16 = precision_of(model, precision) == "bf16"
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            yield device
    finally:
        model.train(was_training)


def check_device(device: str) -> str:
    """The device, or InputError where it is not there."""
    import torch

    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise InputError(f"--device must be cpu, cuda or cuda:N, not {device!r}") from None
    if parsed.type not in ("cpu", "cuda"):
        raise InputError(f"--device must be cpu, cuda or cuda:N, not {device!r}")
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {device}: no such GPU that torch can use")
    return device


# -------------------------------------------------------------------------------------------------------- batches


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
    from pyserini_kd.models import onnx

    return GPU_BATCH_TOKENS if device.type == "cuda" else ONNX_BATCH_TOKENS if onnx.module_in(model) else BATCH_TOKENS


def _unique(texts: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """(distinct texts, row of each text among them)."""
    rows: dict[str, int] = {}
    places = np.fromiter((rows.setdefault(text, len(rows)) for text in texts), dtype=np.int64, count=len(texts))
    return list(rows), places


def run_batches(
    model: Any,
    texts: Sequence[Any],
    tokenise: Callable[[list[Any]], tuple[list[Any], int]],
    use: Callable[[list[int], torch.Tensor, torch.Tensor], None],
    *,
    precision: str,
    batch_size: int | None,
    label: str,
    **extra: Any,
) -> int:
    """Run the model over texts (or pairs) in length-bucketed batches; returns how many were cut.

    `tokenise` gives records of some texts and how many it cut; `use(rows, output, attention mask)` takes the results.
    """
    cut = 0
    with running(model, precision) as device, tqdm(total=len(texts), desc=label, unit=" texts", disable=None) as bar:
        pad_id, budget = model.tokenizer.pad_token_id or 0, batch_tokens(model, device)
        for places, (records, n_cut) in _tokenised(texts, tokenise):
            cut += n_cut
            for some in batches([len(record["input_ids"]) for record in records], batch_size, budget):
                batch = pad([records[i] for i in some], pad_id, device)
                use([places[i] for i in some], model(**batch, **extra).float().cpu(), batch["attention_mask"].cpu())
                bar.update(len(some))
    return cut


def _tokenised(
    texts: Sequence[Any], tokenise: Callable[[list[Any]], tuple[list[Any], int]]
) -> Iterator[tuple[list[int], tuple[list[Any], int]]]:
    """Rows, their token records and how many were cut, CHUNK texts at a time, longest first; a thread is one chunk ahead."""
    size = [len(text) if isinstance(text, str) else sum(map(len, text)) for text in texts]
    order = sorted(range(len(texts)), key=lambda row: (-size[row], row))
    chunks = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
    if len(chunks) == 1:  # nothing to be ahead with, and a thread costs milliseconds
        yield order, tokenise([texts[row] for row in order])
        return
    with ThreadPoolExecutor(1) as ahead:
        found = [ahead.submit(tokenise, [texts[row] for row in chunks[0]])] if chunks else []
        for number, rows in enumerate(chunks):
            done = found.pop().result()
            if number + 1 < len(chunks):
                found.append(ahead.submit(tokenise, [texts[row] for row in chunks[number + 1]]))
            yield rows, done


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
    distinct, places = _unique(texts)
    vectors = np.zeros((len(distinct), model.width), dtype=np.float32)

    def use(rows: list[int], output: torch.Tensor, _: torch.Tensor) -> None:
        vectors[rows] = output.numpy()

    def tokenise(some: list[str]) -> tuple[list[Any], int]:
        return side_records(model, some, kind)

    settings: dict[str, Any] = {"precision": precision, "batch_size": batch_size, "label": label}
    n_cut = run_batches(model, distinct, tokenise, use, **settings)
    if cut is None:
        max_len = model.settings.max_query_len if kind == "query" else model.settings.max_doc_len
        log_cut(n_cut, len(distinct), max_len, f"{kind} texts")
    else:
        cut.append(n_cut)
    return vectors[places]


def log_cut(count: int, total: int, max_len: int, what: str) -> None:
    """Say how many texts were longer than the model's window."""
    if count:
        logger.info("%d of %d %s are longer than %d tokens and were cut", count, total, what, max_len)


def dot_rows(query_vecs: Floats, query_rows: Rows, doc_vecs: Floats, doc_rows: Rows) -> Floats:
    """Dot products float32 (P,) of row pairs, some at a time: (P, H) is never built whole."""
    step = 1 << 16
    pieces = [
        np.einsum("ph,ph->p", query_vecs[query_rows[i : i + step]], doc_vecs[doc_rows[i : i + step]])
        for i in range(0, len(query_rows), step)
    ]
    return np.concatenate(pieces).astype(np.float32) if pieces else np.empty(0, np.float32)


# -------------------------------------------------------------------------------------------------------- scoring


def score(
    model: Any,
    queries: Sequence[str],
    docs: Sequence[str],
    *,
    precision: str = "auto",
    batch_size: int | None = None,
) -> Floats:
    """Raw scores float32 (P,) of (query, document) pairs, by any architecture; equal pairs and texts are computed once."""
    if len(queries) != len(docs):
        raise ValueError(f"{len(queries)} queries but {len(docs)} documents")
    if not queries:
        return np.empty(0, dtype=np.float32)
    settings: dict[str, Any] = {"precision": precision, "batch_size": batch_size}
    if model.architecture == "cross_encoder":
        return _score_pairs(model, queries, docs, **settings)
    distinct_queries, query_rows = _unique(queries)
    distinct_docs, doc_rows = _unique(docs)
    if model.architecture == "bert_dot":
        query_vecs = encode(model, distinct_queries, "query", label="encode queries", **settings)
        doc_vecs = encode(model, distinct_docs, "doc", label="encode documents", **settings)
        return dot_rows(query_vecs, query_rows, doc_vecs, doc_rows)
    late = _score_joined if model.architecture == "prettr" else _score_late
    return late(model, distinct_queries, query_rows, distinct_docs, doc_rows, **settings)


def _score_pairs(model: CrossEncoder, queries: Sequence[str], docs: Sequence[str], **settings: Any) -> Floats:
    pairs = list(zip(queries, docs, strict=True))
    rows: dict[tuple[str, str], int] = {}
    places = np.array([rows.setdefault(pair, len(rows)) for pair in pairs])
    distinct = list(rows)
    scores = np.zeros(len(distinct), dtype=np.float32)

    def use(rows: list[int], output: torch.Tensor, _: torch.Tensor) -> None:
        scores[rows] = output.numpy()

    def tokenise(some: list[tuple[str, str]]) -> tuple[list[Any], int]:
        return tokenize(model.tokenizer, [q for q, _ in some], model.max_len, [d for _, d in some])

    cut = run_batches(model, distinct, tokenise, use, label="score pairs", **settings)
    log_cut(cut, len(distinct), model.max_len, "pairs")
    return scores[places]


def _score_late(
    model: ColBert | Tk, queries: list[str], query_rows: Rows, docs: list[str], doc_rows: Rows, **settings: Any
) -> Floats:
    """Scores of pairs from token vectors, which are held for some queries' documents at a time, within LATE_BYTES."""
    import torch

    query_vecs = token_vectors(model, queries, "query", label="encode queries", **settings)
    scores = np.zeros(len(query_rows), dtype=np.float32)
    by_query = np.argsort(query_rows, kind="stable")
    device = next(model.parameters()).device
    limit = max(1, LATE_BYTES // (4 * model.settings.max_doc_len * model.width))
    for chunk in _chunks(by_query, doc_rows, limit):
        needed = sorted(set(doc_rows[chunk].tolist()))
        place = {doc: i for i, doc in enumerate(needed)}
        doc_vecs = token_vectors(model, [docs[i] for i in needed], "doc", label="encode documents", **settings)
        starts = np.flatnonzero(np.r_[True, np.diff(query_rows[chunk]) != 0])
        with torch.inference_mode():
            for pairs in np.split(chunk, starts[1:]):
                some = [doc_vecs[place[doc]] for doc in doc_rows[pairs].tolist()]
                padded = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
                lengths = torch.tensor([len(vectors) for vectors in some])
                mask = torch.arange(padded.shape[1])[None, :] < lengths[:, None]
                query = query_vecs[query_rows[pairs[0]]][None]
                late = (query, torch.ones(query.shape[:2]), padded, mask)
                scores[pairs] = model.late_scores(*(tensor.to(device) for tensor in late))[0].cpu().numpy()
    return scores


def _score_joined(
    model: PreTtr,
    queries: list[str],
    query_rows: Rows,
    docs: list[str],
    doc_rows: Rows,
    *,
    precision: str,
    batch_size: int | None,
) -> Floats:
    """Scores of pairs by a PreTTR, in batches of like document length; its lower layers run once a text of a batch."""
    scores = np.zeros(len(query_rows), dtype=np.float32)
    lengths = np.array([min(len(docs[row]) // 4, model.settings.max_doc_len) + model.offset for row in doc_rows.tolist()])
    with running(model, precision) as device, tqdm(total=len(scores), desc="score pairs", unit=" pairs", disable=None) as bar:
        for pairs in batches(lengths.tolist(), batch_size):
            some_queries, q = np.unique(query_rows[pairs], return_inverse=True)
            some_docs, d = np.unique(doc_rows[pairs], return_inverse=True)
            batch = model.pair_batch(
                [queries[row] for row in some_queries.tolist()],
                [docs[row] for row in some_docs.tolist()],
                list(zip(q.tolist(), d.tolist(), strict=True)),
            )
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            scores[pairs] = model.pair_scores(batch).cpu().numpy()
            bar.update(len(pairs))
    return scores


def _chunks(
    by_query: npt.NDArray[np.int64], doc_rows: npt.NDArray[np.int64], limit: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Cut pairs (sorted by query) into pieces of at most `limit` distinct documents."""
    start, seen = 0, set[int]()
    for position, pair in enumerate(by_query.tolist()):
        doc = int(doc_rows[pair])
        if doc not in seen and len(seen) == limit:
            yield by_query[start:position]
            start, seen = position, set()
        seen.add(doc)
    yield by_query[start:]


def token_vectors(model: ColBert | Tk, texts: Sequence[str], kind: str, *, label: str, **settings: Any) -> list[torch.Tensor]:
    """Token vectors of each text: float32 (T, H), padding left out."""
    found: list[Any] = [None] * len(texts)

    def use(rows: list[int], output: torch.Tensor, mask: torch.Tensor) -> None:
        for row, vectors, kept in zip(rows, output, mask, strict=True):
            found[row] = vectors[: int(kept.sum())].clone()

    def tokenise(some: list[str]) -> tuple[list[Any], int]:
        return side_records(model, some, kind)

    extra: dict[str, Any] = {"kind": kind} if model.architecture == "tk" else {}
    run_batches(model, texts, tokenise, use, label=label, **settings, **extra)
    return found


class QueryEncoder:
    """A query encoder that Pyserini's FaissSearcher accepts, faster than its own: `encode_batch` takes all queries at once.

    >>> encoder = QueryEncoder("minilm")
    >>> encoder.encode("sort an array").shape
    (384,)
    """

    def __init__(
        self, checkpoint: str, *, device: str = "cpu", precision: str = "auto", backend: str = "auto", **overrides: Any
    ) -> None:
        """Load a checkpoint by name, folder or hub id; `overrides` replace its EncoderSettings."""
        model = load(checkpoint, device=device, precision=precision, backend=backend, **overrides)
        if model.architecture != "bert_dot":
            raise InputError(f"{checkpoint} is a {model.architecture}; dense retrieval needs a bert_dot checkpoint")
        self.model = model
        self.precision = precision

    def encode(self, query: str, **_: Any) -> Floats:
        """Vector float32 (H,) of one query."""
        return self.encode_batch([query])[0]

    def encode_batch(self, queries: Sequence[str], **_: Any) -> Floats:
        """Vectors float32 (Q, H)."""
        return encode(self.model, list(queries), "query", precision=self.precision, label="encode queries")  # type: ignore[arg-type]
