"""A loaded model and the loop that runs it over many texts, without gradients.

Texts are sorted by length and batched under a token budget, so batches need little padding. A thread tokenises the next
chunk while the model runs on the current one.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from pyserini_kd.models import checkpoint_folder
from pyserini_kd.models.reader import Reader
from pyserini_kd.models.tokens import TokenRecord, Tokens, pad_arrays
from pyserini_kd.storage.arrays import Floats, Rows, count_numbers, keep
from pyserini_kd.storage.job import Job
from pyserini_kd.storage.records import Record

logger = logging.getLogger(__name__)

CHUNK = 2048  # texts tokenised at a time

Tokenise = Callable[[list[int]], tuple[list[TokenRecord], int]]
"""Rows of texts -> their token records, and how many texts were cut."""
Batch = Tokens
Use = Callable[[list[int], Floats, Rows], None]
"""Receives the rows of a batch, its output float32 (the next batch reuses the buffer) and which tokens count, int64 (N, T)."""
Join = tuple[list[int], Sequence[Floats], Sequence[Floats]]
"""Rows of pairs, and representations (T, H): of their queries (of the one query, for late interaction), of their documents."""


class Network(ABC):
    """A model that maps batches of tokens to outputs, on one device in one precision.

    Attributes:
        backend: torch or openvino.
        device: cpu, cuda or cuda:N.
        precision: fp32, bf16, fp16 or int8.
    """

    backend: ClassVar[str]
    device: str = "cpu"
    precision: str

    @property
    @abstractmethod
    def width(self) -> int:
        """H: length of a text vector or a token vector."""

    @abstractmethod
    def batch_size(self, longest: int) -> int:
        """Number of texts or pairs in a batch, if the longest has so many tokens."""

    @abstractmethod
    def run(self, batches: Iterable[tuple[list[int], Batch]], use: Use, kind: str | None) -> None:
        """Run batches, given with their rows, and hand each output to `use`, in any order. Returns when all are used."""

    @abstractmethod
    def join(self, batches: Iterable[Join], use: Use) -> None:
        """Score documents with queries, both as representations. Hands scores (N,) to `use`, like `run`."""


def counted(batch: Batch) -> Rows:
    """A mask of the tokens that count (N, T): all except padding, unless the batch has its own mask."""
    return batch.get("counts", batch["attention_mask"])


def batches(lengths: Sequence[int], size_of: Callable[[int], int]) -> Iterator[list[int]]:
    """Rows in batches of similar length, longest first. A batch has `size_of(longest length)` rows."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(order):
        size = size_of(max(1, lengths[order[start]]))
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
        architecture: bert_dot, colbert, cross_encoder, prettr, splade or tk.
        reader: turns texts into tokens.
        network: runs the tokens.
        folder: the checkpoint folder; None for a model that was never saved.
        batch_size: texts (or pairs) per batch; None: by token budget.
    """

    def __init__(
        self, architecture: str, reader: Reader, network: Network, folder: Path | None = None, *, batch_size: int | None = None
    ) -> None:
        self.architecture, self.reader, self.network = architecture, reader, network
        self.folder, self.batch_size = folder, batch_size

    @property
    def precision(self) -> str:
        """fp32, bf16, fp16 or int8."""
        return self.network.precision

    @property
    def backend(self) -> str:
        """Torch or openvino."""
        return self.network.backend

    def size_of(self, longest: int) -> int:
        """Number of texts or pairs in a batch, if the longest has so many tokens."""
        return self.batch_size or self.network.batch_size(longest)

    @property
    def parameters(self) -> int:
        """Number of weights in the checkpoint's files."""
        if self.folder is None:
            raise ValueError("an unsaved model has no files; save it first")
        return count_numbers(self.folder)

    @property
    def max_doc_len(self) -> int:
        """Maximum tokens of a document (of a pair, for a cross-encoder)."""
        return self.reader.lengths[1]

    def record(self) -> Record:
        """Name, weights and settings of the model, for manifests and score stores."""
        if self.folder is None:
            raise ValueError("an unsaved model has no record; save it first")
        weights = checkpoint_folder.fingerprint(self.folder)
        return {"name": checkpoint_folder.name_of(self.folder), "sha256": weights, **self.reader.described()}

    def arithmetic(self) -> Record:
        """How the model computes. With weights and settings, this determines its outputs up to rounding."""
        network = self.network
        return {"precision": network.precision, "backend": network.backend, "device": network.device.partition(":")[0]}

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
        finished: Callable[[int], None] | None = None,
        kind: str | None = None,
    ) -> int:
        """Run the model over chunks of rows; returns how many texts were cut.

        `finished(n)` is called when chunk n is complete. `kind` is passed to models whose `forward` takes it.
        """
        cut, pad_id = 0, self.reader.pad_id
        with tqdm(total=sum(map(len, chunks)), desc=label, unit=" texts", disable=None) as bar:
            for number, (rows, (records, n_cut)) in enumerate(_one_ahead(chunks, tokenise)):
                cut += n_cut
                lengths = [len(record["input_ids"]) for record in records]
                cuts = batches(lengths, self.size_of)
                made = (([rows[i] for i in places], pad_arrays([records[i] for i in places], pad_id)) for places in cuts)
                self.network.run(made, _shown(use, bar), kind)
                if finished is not None:
                    finished(number)
        return cut

    def count_cut(self, count: int, total: int | None, what: str, cut: list[int] | None = None) -> None:
        """Log how many texts exceeded the model's window. With `cut`, append the count there instead, for the caller to sum."""
        if cut is not None:
            cut.append(count)
        elif count:
            length = self.reader.lengths[0 if what == "query texts" else 1]
            of = f" of {total}" if total is not None else ""
            logger.info("%d%s %s are longer than %d tokens and were cut", count, of, what, length)


def _shown(use: Use, bar: Any) -> Use:
    """Return a function that calls `use` and then moves the progress bar."""

    def used(rows: list[int], output: Floats, mask: Rows) -> None:
        use(rows, output, mask)
        bar.update(len(rows))

    return used


class SideScorer(Scorer):
    """A ranker that runs queries and documents separately."""

    @property
    def width(self) -> int:
        """H: length of a text vector or a token vector."""
        return self.network.width

    def run_side(
        self, texts: Sequence[str], side: str, use: Use, label: str, cut: list[int] | None, by_token: bool = False
    ) -> None:
        """Run the model over queries or documents, and count those that were cut (see `count_cut`)."""
        first = int(self.reader.drops_first and side == "doc")

        def tokenise(rows: list[int]) -> tuple[list[TokenRecord], int]:
            records, n_cut = self.reader.sides([texts[row] for row in rows], side)
            return [{name: values[first:] for name, values in record.items()} for record in records], n_cut

        n_cut = self.run(text_chunks(texts), tokenise, use, label, kind=side if by_token else None)
        self.count_cut(n_cut, len(texts), f"{side} texts", cut)
