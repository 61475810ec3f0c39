"""Loaded rankers. Each knows its checkpoint, device, precision, backend and batch size.

`load` returns an `Encoder` for a bi-encoder, a `SparseEncoder` for a SPLADE, a `PairScorer` for a cross-encoder, and a
`TokenScorer` for ColBERT, PreTTR and TK. All score (query, document) pairs. Equal texts and equal pairs are computed once.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from pyserini_kd.models import checkpoint_folder, engine, hardware, loading, tokens
from pyserini_kd.models.engine import Scorer, SideScorer, dot_rows, unique
from pyserini_kd.models.sparse_encoder import SparseEncoder
from pyserini_kd.models.tokens import TokenRecord
from pyserini_kd.storage.arrays import Floats, Rows
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.settings import BACKENDS

if TYPE_CHECKING:
    from pyserini_kd.models.loading import Model

__all__ = ["Encoder", "PairScorer", "QueryEncoder", "Scorer", "SideScorer", "TokenScorer", "load", "load_encoder", "ranker"]

logger = logging.getLogger(__name__)

LATE_TOKENS = 1 << 14  # tokens per batch when token vectors are compared, not computed
LATE_BYTES = 1 << 30  # memory for document representations while scoring

Represented = Callable[[list[int]], list[Floats]]
"""Document rows -> their representations, float32 (D, H) each."""


class Encoder(SideScorer):
    """A bi-encoder: one vector for each text."""

    def encode_queries(self, texts: Sequence[str], *, cut: list[int] | None = None, label: str = "encode queries") -> Floats:
        """Vectors float32 (N, H) of queries. Texts beyond the model's window are cut and counted (see `count_cut`)."""
        return self._encode(texts, "query", cut, label)

    def encode_docs(self, texts: Sequence[str], *, cut: list[int] | None = None, label: str = "encode documents") -> Floats:
        """Vectors float32 (N, H) of documents. Texts beyond the model's window are cut and counted (see `count_cut`)."""
        return self._encode(texts, "doc", cut, label)

    def _encode(self, texts: Sequence[str], kind: str, cut: list[int] | None, label: str) -> Floats:
        distinct, places = unique(texts)
        vectors = np.zeros((len(distinct), self.width), dtype=np.float32)

        def use(rows: list[int], output: Floats, _: Rows) -> None:
            vectors[rows] = output

        self.run_side(distinct, kind, use, label, cut)
        return vectors[places]

    def _score(self, queries: Sequence[str], docs: Sequence[str], work: Path | None) -> Floats:
        texts, query_rows = unique(queries)
        query_vecs = self.encode_queries(texts)
        distinct, doc_rows = unique(docs)
        return dot_rows(query_vecs, query_rows, self.encode_docs(distinct), doc_rows)


class PairScorer(Scorer):
    """A cross-encoder: query and document in one sequence."""

    def _score(self, queries: Sequence[str], docs: Sequence[str], work: Path | None) -> Floats:
        """Logits of pairs. Queries are tokenised once, documents once per chunk, and joined as the tokenizer joins pairs."""
        query_texts, query_rows = unique(queries)
        doc_texts, doc_rows = unique(docs)
        order = np.array(sorted(range(len(doc_texts)), key=lambda row: (-len(doc_texts[row]), row)))
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        keys, places = np.unique(rank[doc_rows] * len(query_texts) + query_rows, return_inverse=True)  # longest docs first
        pair_docs, pair_queries = order[keys // len(query_texts)], keys % len(query_texts)
        ends = np.append(np.flatnonzero(np.diff(pair_docs)) + 1, len(keys))  # a document's pairs stay in one chunk
        cuts = np.unique(ends[np.searchsorted(ends, np.arange(engine.CHUNK, len(keys), engine.CHUNK))])
        chunks = [rows.tolist() for rows in np.split(np.arange(len(keys)), cuts) if len(rows)]
        tokenizer, max_len = self.reader.tokenizer, self.max_doc_len
        frame, query_ids = tokens.pair_frame(tokenizer), tokens.plain_ids(tokenizer, query_texts, max_len)
        scores = np.zeros(len(keys), dtype=np.float32)

        def use(rows: list[int], output: Floats, _: Rows) -> None:
            scores[rows] = output

        def tokenise(rows: list[int]) -> tuple[list[TokenRecord], int]:
            distinct, inverse = np.unique(pair_docs[rows], return_inverse=True)
            doc_ids = tokens.plain_ids(tokenizer, [doc_texts[row] for row in distinct.tolist()], max_len)
            pairs = [(query_ids[q], doc_ids[d]) for q, d in zip(pair_queries[rows].tolist(), inverse.tolist(), strict=True)]
            return tokens.join_pairs(frame, pairs, max_len)

        todo, finished = chunks, None
        if work is not None and len(chunks) > 1:
            todo, finished = engine.resumed(work / _digest(query_texts, doc_texts, keys), chunks, scores)
        cut = self.run(todo, tokenise, use, "score pairs", finished=finished) if todo else 0
        self.count_cut(cut, sum(map(len, todo)), "pairs")
        return scores[places]


class TokenScorer(SideScorer):
    """ColBERT, PreTTR or TK: document representations do not depend on the query, so an index can store them."""

    def encode_queries(self, texts: Sequence[str], *, cut: list[int] | None = None) -> list[Floats]:
        """Representations float32 (T, H) of queries: of the tokens that count."""
        return self._encode(texts, "query", cut, "encode queries")

    def encode_docs(
        self, texts: Sequence[str], *, cut: list[int] | None = None, label: str = "encode documents"
    ) -> list[Floats]:
        """Representations float32 (D, H) of documents: of the tokens that count.

        These are token vectors. For PreTTR they are the states at the join layer, without the document's [CLS].
        """
        return self._encode(texts, "doc", cut, label)

    def _encode(self, texts: Sequence[str], kind: str, cut: list[int] | None, label: str) -> list[Floats]:
        distinct, places = unique(texts)
        found: dict[int, Floats] = {}

        def use(rows: list[int], output: Floats, mask: Rows) -> None:
            for row, vectors, counts in zip(rows, output, mask.astype(bool), strict=True):
                found[row] = vectors[counts]

        self.run_side(distinct, kind, use, label, cut, by_token=True)
        return [found[place] for place in places.tolist()]

    def _score(self, queries: Sequence[str], docs: Sequence[str], work: Path | None) -> Floats:
        (texts, query_rows), (distinct, doc_rows) = unique(queries), unique(docs)
        return self.score_represented(
            texts, query_rows, doc_rows, lambda rows: self.encode_docs([distinct[row] for row in rows])
        )

    def score_represented(self, queries: Sequence[str], query_rows: Rows, doc_rows: Rows, represented: Represented) -> Floats:
        """Raw scores float32 (P,) of pairs (row of `queries`, row of a document) from document representations.

        Each query runs once. `represented` gives each document once, in the order that queries need them; LATE_BYTES limits
        the documents held at a time.
        """
        query_states = self.encode_queries(queries)
        scores = np.zeros(len(query_rows), dtype=np.float32)

        def use(rows: list[int], output: Floats, _: Rows) -> None:
            scores[rows] = output

        by_query = np.argsort(query_rows, kind="stable")
        order = list(dict.fromkeys(doc_rows[by_query].tolist()))
        limit = max(1, LATE_BYTES // (4 * self.max_doc_len * self.width))
        part = np.empty(int(doc_rows.max(initial=0)) + 1, dtype=np.int64)
        part[order] = np.arange(len(order)) // limit
        by_part = by_query[np.argsort(part[doc_rows[by_query]], kind="stable")]
        counts = np.bincount(part[doc_rows], minlength=-(-len(order) // limit))
        joined = self.reader.drops_first
        with tqdm(total=len(scores), desc="score pairs", unit=" pairs", disable=None) as bar:
            for number, pairs in enumerate(np.split(by_part, np.cumsum(counts)[:-1])):
                held = order[number * limit : (number + 1) * limit]
                docs = dict(zip(held, represented(held), strict=True))
                ends = np.flatnonzero(np.diff(query_rows[pairs])) + 1
                for group in [pairs] if joined else np.split(pairs, ends):  # late interaction: one query at a time
                    ids = [(int(query_rows[pair]), int(doc_rows[pair])) for pair in group]
                    lengths = [len(query_states[q]) + len(docs[d]) for q, d in ids]
                    cuts = engine.batches(lengths, self.size_of if joined else self._late_size)
                    made = (
                        (
                            group[rows].tolist(),
                            [query_states[ids[row][0]] for row in (rows if joined else rows[:1])],
                            [docs[ids[row][1]] for row in rows],
                        )
                        for rows in cuts
                    )
                    self.network.join(made, use)
                bar.update(len(pairs))
        return scores

    def _late_size(self, longest: int) -> int:
        return self.batch_size or max(1, LATE_TOKENS // longest)


def _digest(queries: Sequence[str], docs: Sequence[str], keys: Rows) -> str:
    """A hash that identifies a set of pairs."""
    digest = hashlib.sha256(json.dumps([len(queries), len(docs), engine.CHUNK]).encode())
    for text in (*queries, *docs):
        digest.update(len(text).to_bytes(8, "little") + text.encode())
    digest.update(keys.tobytes())
    return digest.hexdigest()


KINDS: dict[str, type[Scorer]] = {
    "bert_dot": Encoder, "cross_encoder": PairScorer, "colbert": TokenScorer, "prettr": TokenScorer, "splade": SparseEncoder,
    "tk": TokenScorer,
}  # fmt: skip


def ranker(module: Model, folder: Path | None = None, *, precision: str = "auto", batch_size: int | None = None) -> Scorer:
    """Wrap a torch model of any architecture in its ranker, run by torch."""
    from pyserini_kd.models.torch_network import TorchNetwork

    network = TorchNetwork(module, precision)
    return KINDS[module.architecture](module.architecture, module.reader, network, folder, batch_size=batch_size)


def load(
    name: str,
    *,
    device: str = "cpu",
    precision: str = "auto",
    backend: str = "auto",
    batch_size: int | None = None,
    architecture: str | None = None,
    **overrides: Any,
) -> Scorer:
    """Load a checkpoint onto a device. OpenVINO runs it on a CPU, and torch runs what OpenVINO cannot, and GPUs.

    Args:
        name: a name, folder or hub id.
        device: cpu, cuda or cuda:N.
        precision: auto, fp32, bf16, fp16 (GPU) or int8; see `hardware.choose_precision`.
        backend: auto, torch or openvino.
        batch_size: texts or pairs per batch; None: by token budget.
        architecture: load it as this architecture instead of the saved one.
        overrides: settings that replace the checkpoint's (see `loading.load`).

    Raises:
        InputError: the checkpoint is not found, or cannot run with these options.
    """
    from pyserini_kd.models import openvino_files

    if backend not in BACKENDS:
        raise InputError(f"must be one of {', '.join(BACKENDS)}, not {backend!r}", "backend")
    device = hardware.check_device(hardware.own_device(device))
    folder = checkpoint_folder.resolve(name)
    architecture = architecture or checkpoint_folder.architecture_of(folder)
    has_int8 = backend != "torch" and openvino_files.has_int8(folder)
    chosen = hardware.choose_precision(precision, device, has_int8=has_int8)
    if chosen == "int8" and (backend == "torch" or device != "cpu"):
        raise InputError("`precision` int8 needs OpenVINO on a CPU; `backend` and `device` say otherwise")
    if backend == "openvino" and device != "cpu":
        raise InputError("OpenVINO runs on CPUs here; use `device` cpu, or `backend` torch")
    why = ", chosen for this processor" if precision == "auto" else ""
    if device == "cpu" and backend != "torch":
        required = backend == "openvino" or chosen == "int8"
        found = openvino_files.find(folder, architecture, chosen, overrides, required=required, make=_make_openvino)
        if found is not None:
            from pyserini_kd.models.openvino_network import OpenVinoNetwork

            logger.info("%s runs in %s by OpenVINO%s", Path(name).name, chosen, why)
            network = OpenVinoNetwork(found, chosen)
            return KINDS[architecture](architecture, found.reader, network, folder, batch_size=batch_size)
    module = loading.load(name, architecture=architecture, **overrides).to(device)
    logger.info("%s runs in %s by torch on %s%s", Path(name).name, chosen, device, why)
    return ranker(module, folder, precision=chosen, batch_size=batch_size)


def _make_openvino(checkpoint: Path, architecture: str, folder: Path) -> None:
    from pyserini_kd.models import openvino_export

    openvino_export.write(loading.load(str(checkpoint), architecture=architecture), checkpoint, folder)


def load_encoder(name: str, **settings: Any) -> Encoder:
    """Load a bi-encoder (see `load`); InputError for other architectures."""
    saved = checkpoint_folder.architecture_of(checkpoint_folder.resolve(name))
    if saved == "splade" and settings.get("pooling"):  # use the language model as a bi-encoder
        saved = "bert_dot"
    if saved != "bert_dot":
        raise InputError(f"{name} is a {saved}; a dense index needs a bert_dot checkpoint")
    loaded = load(name, architecture=saved, **settings)
    assert isinstance(loaded, Encoder)
    return loaded


class QueryEncoder:
    """A query encoder for Pyserini's FaissSearcher. It encodes queries in batches, so it is faster than Pyserini's.

    >>> encoder = QueryEncoder("minilm")
    >>> encoder.encode("sort an array").shape
    (384,)
    """

    def __init__(
        self, checkpoint: str, *, device: str = "cpu", precision: str = "auto", backend: str = "auto", **overrides: Any
    ) -> None:
        """Load a checkpoint by name, folder or hub id; `overrides` replace fields of its settings."""
        self.encoder = load_encoder(checkpoint, device=device, precision=precision, backend=backend, **overrides)

    def encode(self, query: str, **_: object) -> Floats:
        """Vector float32 (H,) of one query."""
        return self.encode_batch([query])[0]

    def encode_batch(self, queries: Sequence[str], **_: object) -> Floats:
        """Vectors float32 (Q, H)."""
        return self.encoder.encode_queries(list(queries))
