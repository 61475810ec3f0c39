"""A loaded model and the loop that runs it over many texts, without gradients.

Texts are sorted by length and batched under a token budget, so batches need little padding. A thread tokenises the next
chunk while the model runs on the current one.
"""

from __future__ import annotations

import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from pyserini_kd.models import checkpoint_folder, hardware
from pyserini_kd.models.tokens import TokenRecord, pad
from pyserini_kd.storage.arrays import Floats, Rows, keep
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.job import Job
from pyserini_kd.storage.records import Record

if TYPE_CHECKING:
    import torch

    from pyserini_kd.models.loading import Model
    from pyserini_kd.models.two_sides import TwoSides

logger = logging.getLogger(__name__)

BATCH_TOKENS = 2048  # tokens per batch, padding included: fits into CPU caches
ONNX_BATCH_TOKENS = 1024
GPU_BATCH_TOKENS = 1 << 15
CHUNK = 2048  # texts tokenised at a time

Tokenise = Callable[[list[int]], tuple[list[TokenRecord], int]]
"""Rows of texts -> their token records, and how many texts were cut."""
Use = Callable[[list[int], "torch.Tensor", "torch.Tensor"], None]
"""Receives the rows of a batch, the model's output and the attention mask."""


@contextlib.contextmanager
def running(model: torch.nn.Module, precision: str) -> Iterator[torch.device]:
    """Inference mode, eval mode and autocast to `precision` around a model; yields the model's device."""
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

    A batch holds `batch_size` rows. If that is None, it holds as many as fit into `budget` tokens (default: BATCH_TOKENS).
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(order):
        size = batch_size or max(1, (budget or BATCH_TOKENS) // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def unique(texts: Sequence[str]) -> tuple[list[str], Rows]:
    """Distinct texts, and the row of each text among them."""
    rows: dict[str, int] = {}
    places = np.fromiter((rows.setdefault(text, len(rows)) for text in texts), dtype=np.int64, count=len(texts))
    return list(rows), places


def text_chunks(texts: Sequence[str]) -> list[list[int]]:
    """Rows of texts, longest first, CHUNK at a time."""
    order = sorted(range(len(texts)), key=lambda row: (-len(texts[row]), row))
    return [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]


def _one_ahead(chunks: Sequence[list[int]], tokenise: Tokenise) -> Iterator[tuple[list[int], tuple[list[TokenRecord], int]]]:
    """Yield each chunk with its token records; a thread tokenises one chunk ahead."""
    if len(chunks) == 1:  # a thread costs milliseconds and saves nothing here
        yield chunks[0], tokenise(chunks[0])
        return
    with ThreadPoolExecutor(1) as ahead:
        found = [ahead.submit(tokenise, chunk) for chunk in chunks[:1]]
        for number, rows in enumerate(chunks):
            done = found.pop().result()
            found += [ahead.submit(tokenise, chunk) for chunk in chunks[number + 1 : number + 2]]
            yield rows, done


def dot_rows(query_vecs: Floats, query_rows: Rows, doc_vecs: Floats, doc_rows: Rows) -> Floats:
    """Dot products float32 (P,) of row pairs, computed in pieces: no array (P, H) is built."""
    step = 1 << 16
    pieces = [
        np.einsum("ph,ph->p", query_vecs[query_rows[i : i + step]], doc_vecs[doc_rows[i : i + step]])
        for i in range(0, len(query_rows), step)
    ]
    return np.concatenate(pieces).astype(np.float32) if pieces else np.empty(0, np.float32)


def padded(states: list[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad the states (T, H) of texts with zeros to (N, T, H); also returns the mask (N, T)."""
    import torch

    lengths = torch.tensor([len(vectors) for vectors in states])
    mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
    return torch.nn.utils.rnn.pad_sequence(states, batch_first=True).to(device), mask.to(device)


def chunks_by_query(query_rows: Rows, docs: Sequence[str]) -> list[list[int]]:
    """Rows of pairs grouped by query, longest documents first. Other queries do not change a query's order."""
    order = np.array(sorted(range(len(docs)), key=lambda row: (query_rows[row], -len(docs[row]), docs[row])))
    return [rows.tolist() for rows in np.split(order, np.flatnonzero(np.diff(query_rows[order])) + 1)]


def resumed(folder: Path, chunks: list[list[int]], scores: Floats) -> tuple[list[list[int]], Callable[[int], None]]:
    """Load the scores of finished chunks; returns the other chunks and a callback that saves a newly finished one."""
    job = Job(folder, {"pairs": folder.name})
    job.begin()
    known = job.parts()
    for number in known:
        scores[chunks[number]] = np.load(job.path(number, "npy"))
    if known:
        logger.info("resuming: %d of %d pairs are already scored", sum(len(chunks[n]) for n in known), len(scores))
    missing = sorted(set(range(len(chunks))) - set(known))

    def finished(place: int) -> None:
        keep(job.path(missing[place], "npy"), scores[chunks[missing[place]]])
        job.finish(missing[place])

    return [chunks[number] for number in missing], finished


class Scorer(ABC):
    """A loaded ranker; `score` works the same for all architectures.

    Attributes:
        module: the model, on its device. It stays usable for training.
        folder: the checkpoint folder; None for a model that was never saved.
        precision: fp32, bf16, fp16 or int8.
        batch_size: texts (or pairs) per batch; None: by token budget.
    """

    def __init__(
        self, module: Model, folder: Path | None = None, *, precision: str = "auto", batch_size: int | None = None
    ) -> None:
        """Wrap a model; InputError if it was not loaded for this precision."""
        from pyserini_kd.models import onnx_runtime

        self.module: Model = module
        self.folder, self.batch_size = folder, batch_size
        self.architecture = module.architecture
        self.device: torch.device = next(module.parameters()).device
        onnx = onnx_runtime.module_in(module)
        self.backend = "torch" if onnx is None else "onnx"
        self.precision = hardware.choose_precision(precision, str(self.device)) if onnx is None else onnx.precision
        if onnx is None and self.precision == "int8":
            raise InputError(f"this {self.architecture} was not loaded for int8; load a bert_dot or cross_encoder for it")
        if precision not in ("auto", self.precision):
            raise InputError(f"the model was loaded for {self.precision} in ONNX Runtime, not for {precision}")

    @property
    def max_doc_len(self) -> int:
        """Maximum tokens of a document (of a pair, for a cross-encoder)."""
        return self.module.lengths[1]

    @property
    def depends_on_batch(self) -> bool:
        """Whether a result depends on the rest of its batch: int8 scales activations per batch."""
        return self.precision == "int8"

    @property
    def batch_tokens(self) -> int:
        """Token budget of a batch, used if there is no batch size."""
        by_backend = ONNX_BATCH_TOKENS if self.backend == "onnx" else BATCH_TOKENS
        return GPU_BATCH_TOKENS if self.device.type == "cuda" else by_backend

    def record(self) -> Record:
        """Name, weights and settings of the model, for manifests and score stores."""
        if self.folder is None:
            raise ValueError("an unsaved model has no record; save it first")
        weights = checkpoint_folder.fingerprint(self.folder)
        return {"name": checkpoint_folder.name_of(self.folder), "sha256": weights, **self.module.described()}

    def arithmetic(self) -> Record:
        """How the model computes. With weights and settings, this determines its outputs up to rounding."""
        known = {"precision": self.precision, "backend": self.backend, "device": self.device.type}
        return known | ({"batch_size": self.batch_size} if self.depends_on_batch else {})

    def score(self, queries: Sequence[str], docs: Sequence[str], *, work: Path | None = None) -> Floats:
        """Raw scores float32 (P,) of (query, document) pairs.

        A cross-encoder saves finished scores in `work`, a folder for this model and these settings only. A later call for
        the same pairs resumes there and gives the same scores. Other architectures ignore `work`.

        Raises:
            ValueError: the numbers of queries and documents differ.
        """
        if len(queries) != len(docs):
            raise ValueError(f"{len(queries)} queries but {len(docs)} documents")
        return self._score(queries, docs, work) if queries else np.empty(0, dtype=np.float32)

    @abstractmethod
    def _score(self, queries: Sequence[str], docs: Sequence[str], work: Path | None) -> Floats:
        """Scores float32 (P,) of at least one pair."""

    def run(
        self,
        chunks: Sequence[list[int]],
        tokenise: Tokenise,
        use: Use,
        label: str,
        *,
        one_by_one: bool = False,
        finished: Callable[[int], None] | None = None,
        kind: str | None = None,
    ) -> int:
        """Run the model over chunks of rows; returns how many texts were cut.

        `finished(n)` is called when chunk n is complete. `kind` is passed to models whose `forward` takes it.
        """
        cut, more = 0, {"kind": kind} if kind else {}
        batch_size = 1 if one_by_one else self.batch_size
        bar = tqdm(total=sum(map(len, chunks)), desc=label, unit=" texts", disable=None)
        with running(self.module, self.precision) as device, bar:
            pad_id = self.module.tokenizer.pad_token_id or 0
            for number, (rows, (records, n_cut)) in enumerate(_one_ahead(chunks, tokenise)):
                cut += n_cut
                for places in batches([len(record["input_ids"]) for record in records], batch_size, self.batch_tokens):
                    batch = pad([records[i] for i in places], pad_id, device)
                    output = self.module(**batch, **more).float().cpu()
                    use([rows[i] for i in places], output, batch["attention_mask"].cpu())
                    bar.update(len(places))
                if finished is not None:
                    finished(number)
        return cut

    def count_cut(self, count: int, total: int | None, what: str, cut: list[int] | None = None) -> None:
        """Log how many texts exceeded the model's window. With `cut`, append the count there instead, for the caller to sum."""
        if cut is not None:
            cut.append(count)
        elif count:
            length = self.module.lengths[0 if what == "query texts" else 1]
            of = f" of {total}" if total is not None else ""
            logger.info("%d%s %s are longer than %d tokens and were cut", count, of, what, length)


class SideScorer(Scorer):
    """A ranker that runs queries and documents separately."""

    module: TwoSides

    @property
    def width(self) -> int:
        """H: length of a text vector or a token vector."""
        return self.module.width

    def run_side(
        self, texts: Sequence[str], side: str, use: Use, label: str, cut: list[int] | None, by_token: bool = False
    ) -> None:
        """Run the model over queries or documents, and count those that were cut (see `count_cut`)."""
        first = int(self.module.joins and side == "doc")  # documents joined to a query drop their [CLS]

        def tokenise(rows: list[int]) -> tuple[list[TokenRecord], int]:
            records, n_cut = self.module.side_records([texts[row] for row in rows], side)
            return [{"input_ids": record["input_ids"][first:]} for record in records], n_cut

        one_by_one = side == "query" and self.depends_on_batch  # a query's vector must not depend on its batch
        chunks, kind = text_chunks(texts), side if by_token else None
        n_cut = self.run(chunks, tokenise, use, label, one_by_one=one_by_one, kind=kind)
        self.count_cut(n_cut, len(texts), f"{side} texts", cut)
