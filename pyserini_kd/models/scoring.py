"""Score (query, document) pairs with any architecture."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd.models import engine
from pyserini_kd.models.tokens import join_pairs, pair_frame, plain_ids, side_records
from pyserini_kd.storage.arrays import keep

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
LATE_TOKENS = 1 << 14  # the same where token vectors are compared, not computed
LATE_BYTES = 1 << 30  # document representations held at a time while reranking


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
    distinct_queries, query_rows = engine.unique(queries)
    distinct_docs, doc_rows = engine.unique(docs)
    if model.architecture == "bert_dot":
        query_vecs = engine.encode(model, distinct_queries, "query", label="encode queries", **settings)
        if engine.depends_on_its_batch(model):
            return _dot_by_query(model, query_vecs, query_rows, docs, **settings)
        doc_vecs = engine.encode(model, distinct_docs, "doc", label="encode documents", **settings)
        return engine.dot_rows(query_vecs, query_rows, doc_vecs, doc_rows)

    def represented(rows: list[int]) -> list[torch.Tensor]:
        return represent(model, [distinct_docs[row] for row in rows], "doc", label="encode documents", **settings)

    return score_late(model, distinct_queries, query_rows, doc_rows, represented, **settings)


def _dot_by_query(model: BertDot, query_vecs: Floats, query_rows: Rows, docs: Sequence[str], **settings: Any) -> Floats:
    """Dot products float32 (P,), documents encoded for each query anew: what it gets depends on no other query."""
    distinct, doc_rows = engine.unique(docs)
    keys, places = np.unique(query_rows * len(distinct) + doc_rows, return_inverse=True)
    query_rows, texts = keys // len(distinct), [distinct[row] for row in (keys % len(distinct)).tolist()]
    scores = np.zeros(len(keys), dtype=np.float32)

    def use(rows: list[int], output: torch.Tensor, _: torch.Tensor) -> None:
        scores[rows] = np.einsum("ph,ph->p", query_vecs[query_rows[rows]], output.numpy())

    def tokenise(rows: list[int]) -> tuple[list[Any], int]:
        return side_records(model, [texts[row] for row in rows], "doc")

    n_cut = engine.run_batches(model, _by_query(query_rows, texts), tokenise, use, label="encode documents", **settings)
    engine.log_cut(n_cut, len(texts), model.settings.max_doc_len, "doc texts")
    return scores[places]


def _by_query(query_rows: Rows, docs: Sequence[str]) -> list[list[int]]:
    """Rows of pairs, those of a query together, longest documents first: an order in which other queries have no say."""
    order = np.array(sorted(range(len(docs)), key=lambda row: (query_rows[row], -len(docs[row]), docs[row])))
    return [some.tolist() for some in np.split(order, np.flatnonzero(np.diff(query_rows[order])) + 1)]


def _score_pairs(
    model: CrossEncoder, queries: Sequence[str], docs: Sequence[str], work: Path | None, **settings: Any
) -> Floats:
    """Logits of pairs; queries are tokenised once, documents once a chunk, and joined as the tokenizer joins pairs."""
    query_texts, query_rows = engine.unique(queries)
    doc_texts, doc_rows = engine.unique(docs)
    order = np.array(sorted(range(len(doc_texts)), key=lambda row: (-len(doc_texts[row]), row)))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    keys, places = np.unique(rank[doc_rows] * len(query_texts) + query_rows, return_inverse=True)  # longest documents first
    pair_docs, pair_queries = order[keys // len(query_texts)], keys % len(query_texts)
    if engine.depends_on_its_batch(model):
        chunks = _by_query(pair_queries, [doc_texts[row] for row in pair_docs.tolist()])
    else:
        ends = np.append(np.flatnonzero(np.diff(pair_docs)) + 1, len(keys))  # of a document's pairs: all come into one chunk
        cuts = np.unique(ends[np.searchsorted(ends, np.arange(engine.CHUNK, len(keys), engine.CHUNK))])
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
    cut = engine.run_batches(model, todo, tokenise, use, label="score pairs", finished=finished, **settings) if todo else 0
    engine.log_cut(cut, sum(map(len, todo)), model.max_len, "pairs")
    return scores[places]


def _digest(queries: Sequence[str], docs: Sequence[str], keys: Rows) -> str:
    """What tells one set of pairs from another."""
    digest = hashlib.sha256(json.dumps([len(queries), len(docs), engine.CHUNK]).encode())
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
    distinct, places = engine.unique(texts)
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
    n_cut = engine.run_batches(model, engine.text_chunks(distinct), tokenise, use, **settings, **extra)
    engine.count_cut(model, kind, n_cut, len(distinct), cut)
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
    with engine.running(model, precision) as device, bar:
        for number, pairs in enumerate(np.split(by_part, np.cumsum(counts)[:-1])):
            held = order[number * limit : (number + 1) * limit]
            docs = dict(zip(held, represented(held), strict=True))
            ends = np.flatnonzero(np.diff(query_rows[pairs])) + 1
            for group in [pairs] if joined else np.split(pairs, ends):  # late interaction: one query at a time
                ids = [(int(query_rows[pair]), int(doc_rows[pair])) for pair in group]
                lengths = [len(query_states[q]) + len(docs[d]) for q, d in ids]
                for rows in engine.batches(lengths, batch_size, engine.batch_tokens(model, device) if joined else LATE_TOKENS):
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
