"""The one engine that runs a model over many texts.

Equal texts are computed once; texts are sorted by length and cut into batches under a token budget, so that padding is
small; the order is restored at the end. A thread tokenises what comes next. No gradients; bf16 where the processor computes
it natively, int8 where the checkpoint was exported for it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd.columns import keep
from pyserini_kd.files import InputError
from pyserini_kd.models import checkpoints
from pyserini_kd.models.tokens import join_pairs, pad, pair_frame, plain_ids, side_records

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
LATE_TOKENS = 1 << 14  # the same where token vectors are compared, not computed
CHUNK = 2048  # texts tokenised at a time
LATE_BYTES = 1 << 30  # document representations held at a time while reranking
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
BACKENDS = ("auto", "torch", "onnx")


@functools.cache
def cpu_flags() -> set[str]:
    """Feature flags of this processor (Linux; empty elsewhere)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


def imitates_bf16() -> bool:
    """Whether this processor has no instructions for bf16 and takes longer than in fp32 to imitate it."""
    return "avx2" in cpu_flags() and cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


@functools.cache
def _warn_of_imitation() -> None:
    logger.warning("WARNING: this processor has no instructions for bf16 and imitates it; fp32 is quicker here")


def choose_precision(precision: str = "auto", device: str = "cpu", folder: Path | None = None) -> str:
    """`fp32`, `bf16`, `fp16` or `int8`; `auto` decides from the processor and what the folder holds, never from a timing.

    On a GPU it takes bf16, or fp16 where that is too old for bf16. On a CPU it takes bf16 where there are AMX tiles; else int8
    where `export --int8` put it beside the weights and the CPU has VNNI; else fp32. AVX-512 BF16 alone does not count: measured
    on such a processor, bf16 was slower than fp32.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "fp16" and not device.startswith("cuda"):
        raise InputError("fp16 is for GPUs (--device cuda); a CPU computes in bf16, int8 or fp32")
    if precision == "bf16" and device == "cpu" and imitates_bf16():
        _warn_of_imitation()
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        import torch

        with torch.cuda.device(device) if ":" in device else contextlib.nullcontext():
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
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
    device = check_device(own_device(device))
    folder = checkpoints.resolve(name)
    can_onnx = backend != "torch" and (overrides.get("architecture") or checkpoints.architecture_of(folder)) in (
        checkpoints.ONNX_ARCHITECTURES
    )
    chosen = choose_precision(precision, device, folder if can_onnx else None)
    by_onnx = backend == "onnx" or chosen == "int8"
    if by_onnx and (backend == "torch" or device != "cpu" or precision in ("bf16", "fp16")):
        raise InputError("ONNX Runtime is for fp32 and int8 on a CPU, int8 only for it: --backend, --precision, --device clash")
    if by_onnx:
        chosen = "fp32" if chosen == "bf16" else chosen
        onnx.check_cpu(folder, cpu_flags())
    model = checkpoints.load(name, onnx=chosen if by_onnx else None, lean=True, **overrides)
    why = ", chosen for this processor" if precision == "auto" else ""
    logger.info("%s runs in %s by %s on %s%s", Path(name).name, chosen, "ONNX Runtime" if by_onnx else "torch", device, why)
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


def backend_of(model: Any) -> str:
    """What a loaded model computes by: `torch` or `onnx`."""
    from pyserini_kd.models import onnx

    return "onnx" if onnx.module_in(model) else "torch"


def arithmetic(model: Any, precision: str, batch_size: int | None) -> dict[str, Any]:
    """How a loaded model computes: what its outputs depend on, but for rounding, besides weights and settings."""
    known = {"precision": precision_of(model, precision), "backend": backend_of(model)}
    known["device"] = next(model.parameters()).device.type
    return known | ({"batch_size": batch_size} if _depends_on_its_batch(model) else {})


def own_device(device: str) -> str:
    """The device of this process: under torchrun or accelerate `cuda` is one GPU for each."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local else device


def threads() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Let torch and FAISS compute by so many threads."""
    import faiss
    import torch

    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)


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


def check_device(device: str) -> str:
    """The device, or InputError where it is not there."""
    import torch

    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise InputError(f"--device must be cpu, cuda or cuda:N, not {device!r}") from None
    if parsed.type not in ("cpu", "cuda") or (parsed.type == "cpu" and parsed.index is not None):
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


def _text_chunks(texts: Sequence[str]) -> list[list[int]]:
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

    if kind == "query" and _depends_on_its_batch(model):
        batch_size = 1  # a query has one vector, whoever else is asked for
    settings: dict[str, Any] = {"precision": precision, "batch_size": batch_size, "label": label}
    n_cut = run_batches(model, _text_chunks(distinct), tokenise, use, **settings)
    _count_cut(model, kind, n_cut, len(distinct), cut)
    return vectors[places]


def _depends_on_its_batch(model: Any) -> bool:
    """Whether what is computed of a text depends on what is beside it: int8 measures its activations a batch at a time."""
    from pyserini_kd.models import onnx

    module = onnx.module_in(model)
    return module is not None and module.precision == "int8"


def _count_cut(model: Any, kind: str, n_cut: int, total: int, cut: list[int] | None) -> None:
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


# -------------------------------------------------------------------------------------------------------- scoring


def score(
    model: Any,
    queries: Sequence[str],
    docs: Sequence[str],
    *,
    precision: str = "auto",
    batch_size: int | None = None,
    work: Path | None = None,
) -> Floats:
    """Raw scores float32 (P,) of (query, document) pairs, by any architecture; equal pairs and texts are computed once.

    A cross-encoder's scores are kept under `work`, which must be of this model and these settings alone, as they are made: a
    later call for the same pairs goes on there, to the same scores. (The others' documents can be kept in an index.)
    """
    if len(queries) != len(docs):
        raise ValueError(f"{len(queries)} queries but {len(docs)} documents")
    if not queries:
        return np.empty(0, dtype=np.float32)
    settings: dict[str, Any] = {"precision": precision, "batch_size": batch_size}
    if model.architecture == "cross_encoder":
        return _score_pairs(model, queries, docs, work, **settings)
    distinct_queries, query_rows = unique(queries)
    distinct_docs, doc_rows = unique(docs)
    if model.architecture == "bert_dot":
        query_vecs = encode(model, distinct_queries, "query", label="encode queries", **settings)
        if _depends_on_its_batch(model):
            return _dot_by_query(model, query_vecs, query_rows, docs, **settings)
        doc_vecs = encode(model, distinct_docs, "doc", label="encode documents", **settings)
        return dot_rows(query_vecs, query_rows, doc_vecs, doc_rows)

    def represented(rows: list[int]) -> list[torch.Tensor]:
        return represent(model, [distinct_docs[row] for row in rows], "doc", label="encode documents", **settings)

    return score_late(model, distinct_queries, query_rows, doc_rows, represented, **settings)


def _dot_by_query(model: BertDot, query_vecs: Floats, query_rows: Rows, docs: Sequence[str], **settings: Any) -> Floats:
    """Dot products float32 (P,), documents encoded for each query anew: what it gets depends on no other query."""
    distinct, doc_rows = unique(docs)
    keys, places = np.unique(query_rows * len(distinct) + doc_rows, return_inverse=True)
    query_rows, texts = keys // len(distinct), [distinct[row] for row in (keys % len(distinct)).tolist()]
    scores = np.zeros(len(keys), dtype=np.float32)

    def use(rows: list[int], output: torch.Tensor, _: torch.Tensor) -> None:
        scores[rows] = np.einsum("ph,ph->p", query_vecs[query_rows[rows]], output.numpy())

    def tokenise(rows: list[int]) -> tuple[list[Any], int]:
        return side_records(model, [texts[row] for row in rows], "doc")

    n_cut = run_batches(model, _by_query(query_rows, texts), tokenise, use, label="encode documents", **settings)
    log_cut(n_cut, len(texts), model.settings.max_doc_len, "doc texts")
    return scores[places]


def _by_query(query_rows: Rows, docs: Sequence[str]) -> list[list[int]]:
    """Rows of pairs, those of a query together, longest documents first: an order in which other queries have no say."""
    order = np.array(sorted(range(len(docs)), key=lambda row: (query_rows[row], -len(docs[row]), docs[row])))
    return [some.tolist() for some in np.split(order, np.flatnonzero(np.diff(query_rows[order])) + 1)]


def _score_pairs(
    model: CrossEncoder, queries: Sequence[str], docs: Sequence[str], work: Path | None, **settings: Any
) -> Floats:
    """Logits of pairs; queries are tokenised once, documents once a chunk, and joined as the tokenizer joins pairs."""
    query_texts, query_rows = unique(queries)
    doc_texts, doc_rows = unique(docs)
    order = np.array(sorted(range(len(doc_texts)), key=lambda row: (-len(doc_texts[row]), row)))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    keys, places = np.unique(rank[doc_rows] * len(query_texts) + query_rows, return_inverse=True)  # longest documents first
    pair_docs, pair_queries = order[keys // len(query_texts)], keys % len(query_texts)
    if _depends_on_its_batch(model):
        chunks = _by_query(pair_queries, [doc_texts[row] for row in pair_docs.tolist()])
    else:
        ends = np.append(np.flatnonzero(np.diff(pair_docs)) + 1, len(keys))  # of a document's pairs: all come into one chunk
        cuts = np.unique(ends[np.searchsorted(ends, np.arange(CHUNK, len(keys), CHUNK))])
        chunks = [some.tolist() for some in np.split(np.arange(len(keys)), cuts) if len(some)]
    frame = pair_frame(model.tokenizer)
    query_ids = plain_ids(model.tokenizer, query_texts, model.max_len)
    scores = np.zeros(len(keys), dtype=np.float32)

    def use(rows: list[int], output: torch.Tensor, _: torch.Tensor) -> None:
        scores[rows] = output.numpy()

    def tokenise(rows: list[int]) -> tuple[list[Any], int]:
        some, inverse = np.unique(pair_docs[rows], return_inverse=True)
        doc_ids = plain_ids(model.tokenizer, [doc_texts[row] for row in some.tolist()], model.max_len)
        pairs = [(query_ids[q], doc_ids[d]) for q, d in zip(pair_queries[rows].tolist(), inverse.tolist(), strict=True)]
        return join_pairs(frame, pairs, model.max_len)

    todo, finished = chunks, None
    if work is not None and len(chunks) > 1:
        todo, finished = _kept(work / _digest(query_texts, doc_texts, keys), chunks, scores)
    cut = run_batches(model, todo, tokenise, use, label="score pairs", finished=finished, **settings) if todo else 0
    log_cut(cut, sum(map(len, todo)), model.max_len, "pairs")
    return scores[places]


def _digest(queries: Sequence[str], docs: Sequence[str], keys: Rows) -> str:
    """What tells one set of pairs from another."""
    digest = hashlib.sha256(json.dumps([len(queries), len(docs), CHUNK]).encode())
    for text in (*queries, *docs):
        digest.update(len(text).to_bytes(8, "little") + text.encode())
    digest.update(keys.tobytes())
    return digest.hexdigest()


def _kept(folder: Path, chunks: list[list[int]], scores: Floats) -> tuple[list[list[int]], Callable[[int], None]]:
    """Fill in the scores of chunks that are kept in a folder; gives the other chunks, and what keeps one of those."""
    paths = [folder / f"{number:06d}.npy" for number in range(len(chunks))]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    known = sorted(set(range(len(chunks))) - set(missing))
    for number in known:
        scores[chunks[number]] = np.load(paths[number])
    if known:
        logger.info("going on: %d of %d pairs were scored before", sum(len(chunks[n]) for n in known), len(scores))

    def finished(place: int) -> None:
        keep(paths[missing[place]], scores[chunks[missing[place]]])

    return [chunks[number] for number in missing], finished


def represent(
    model: ColBert | PreTtr | Tk,
    texts: Sequence[str],
    kind: str,
    *,
    label: str,
    precision: str = "auto",
    batch_size: int | None = None,
    cut: list[int] | None = None,
) -> list[torch.Tensor]:
    """What late scoring needs of each text, and an index stores of documents: float32 (T, H), padding left out.

    These are token vectors, or the states at a PreTTR's join layer, whose documents drop their own [CLS]. Texts that are cut
    are counted as in `encode`.
    """
    distinct, places = unique(texts)
    found: list[Any] = [None] * len(distinct)
    first = int(model.architecture == "prettr" and kind == "doc")

    def use(rows: list[int], output: torch.Tensor, mask: torch.Tensor) -> None:
        for row, vectors, length in zip(rows, output, mask.sum(dim=1).tolist(), strict=True):
            found[row] = vectors[:length].clone()

    def tokenise(rows: list[int]) -> tuple[list[Any], int]:
        records, n_cut = side_records(model, [distinct[row] for row in rows], kind)
        return [{"input_ids": record["input_ids"][first:]} for record in records], n_cut

    extra: dict[str, Any] = {} if model.architecture == "colbert" else {"kind": kind}
    settings: dict[str, Any] = {"precision": precision, "batch_size": batch_size, "label": label}
    n_cut = run_batches(model, _text_chunks(distinct), tokenise, use, **settings, **extra)
    _count_cut(model, kind, n_cut, len(distinct), cut)
    return [found[place] for place in places.tolist()]


def score_late(
    model: ColBert | PreTtr | Tk,
    queries: Sequence[str],
    query_rows: Rows,
    doc_rows: Rows,
    represented: Callable[[list[int]], list[torch.Tensor]],
    *,
    precision: str = "auto",
    batch_size: int | None = None,
) -> Floats:
    """Raw scores float32 (P,) of pairs (row of `queries`, row of a document) from the documents' representations.

    Each query runs once. `represented` gives the representations float32 (D, H) of some documents; it is asked once for each,
    in the order in which queries need them, so that LATE_BYTES hold those of some queries at a time.
    """
    import torch

    query_states = represent(model, queries, "query", label="encode queries", precision=precision, batch_size=batch_size)
    scores = np.zeros(len(query_rows), dtype=np.float32)
    by_query = np.argsort(query_rows, kind="stable")
    order = list(dict.fromkeys(doc_rows[by_query].tolist()))
    limit = max(1, LATE_BYTES // (4 * model.settings.max_doc_len * model.width))
    part = np.empty(int(doc_rows.max(initial=0)) + 1, dtype=np.int64)
    part[order] = np.arange(len(order)) // limit
    by_part = by_query[np.argsort(part[doc_rows[by_query]], kind="stable")]
    counts = np.bincount(part[doc_rows], minlength=-(-len(order) // limit))
    bar = tqdm(total=len(scores), desc="score pairs", unit=" pairs", disable=None)
    late: Any = model
    joined = model.architecture == "prettr"
    with running(model, precision) as device, bar:
        for number, pairs in enumerate(np.split(by_part, np.cumsum(counts)[:-1])):
            held = order[number * limit : (number + 1) * limit]
            docs = dict(zip(held, represented(held), strict=True))
            ends = np.flatnonzero(np.diff(query_rows[pairs])) + 1
            for group in [pairs] if joined else np.split(pairs, ends):  # late interaction: one query at a time
                ids = [(int(query_rows[pair]), int(doc_rows[pair])) for pair in group]
                lengths = [len(query_states[q]) + len(docs[d]) for q, d in ids]
                for rows in batches(lengths, batch_size, batch_tokens(model, device) if joined else LATE_TOKENS):
                    doc_states, doc_mask = _padded([docs[ids[row][1]] for row in rows], device)
                    some = [query_states[ids[row][0]] for row in (rows if joined else rows[:1])]
                    query = _padded(some, device)
                    if joined:
                        found = late.upper(*query, doc_states, doc_mask)
                    else:
                        with torch.autocast(device.type, enabled=False):  # sums around 100 need all of float32
                            found = late.late_scores(*query, doc_states, doc_mask)[0]
                    scores[group[rows]] = found.float().cpu().numpy()
            bar.update(len(pairs))
    return scores


def _padded(states: list[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """States (T, H) of texts as (N, T, H), zeros where there is none, and their mask (N, T)."""
    import torch

    lengths = torch.tensor([len(vectors) for vectors in states])
    mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
    return torch.nn.utils.rnn.pad_sequence(states, batch_first=True).to(device), mask.to(device)


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
