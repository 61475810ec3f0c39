"""Texts to padded tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def tokenize(tokenizer: Any, texts: Sequence[str], max_len: int, pairs: Sequence[str] | None = None) -> tuple[list[Any], int]:
    """Token records of texts (or text pairs, cut longest-first), and how many texts were cut at `max_len` tokens."""
    batch = tokenizer(
        list(texts),
        list(pairs) if pairs is not None else None,
        truncation="longest_first",
        max_length=max_len,
        return_attention_mask=False,
    )
    cut = sum(bool(encoding.overflowing) for encoding in batch.encodings)
    names = [name for name in ("input_ids", "token_type_ids") if name in batch and (pairs is not None or name == "input_ids")]
    return [{name: batch[name][i] for name in names} for i in range(len(texts))], cut


class PairFrame(NamedTuple):
    """What a tokenizer puts around the two texts of a pair: ids before, between and after them; token types, if it has any."""

    ids: tuple[list[int], list[int], list[int]]
    types: tuple[list[int], int, list[int], int, list[int]] | None  # in front, of the first text, between, ...


def pair_frame(tokenizer: Any) -> PairFrame:
    """The frame of a tokenizer, seen from what it does to a short pair."""
    batch = tokenizer("a", "a")
    sides, ids, types = batch.sequence_ids(0), batch["input_ids"], batch.get("token_type_ids")
    (begin, end), (begin_other, end_other) = ((sides.index(n), len(sides) - sides[::-1].index(n)) for n in (0, 1))
    around = tuple(ids[slice(*bounds)] for bounds in ((0, begin), (end, begin_other), (end_other, None)))
    if types is None:
        return PairFrame(around, None)
    return PairFrame(around, (types[:begin], types[begin], types[end:begin_other], types[begin_other], types[end_other:]))


class Plain(NamedTuple):
    """A text's token ids without special ones, no more than a pair may need, and how many there were."""

    ids: list[int]
    length: int


def plain_ids(tokenizer: Any, texts: Sequence[str], max_len: int) -> list[Plain]:
    """Token ids of texts that are to be cut as pairs of `max_len` tokens."""
    settings = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    batch = tokenizer(list(texts), truncation=True, max_length=max_len, **settings)
    beyond = (sum(map(len, encoding.overflowing)) if len(encoding) == max_len else 0 for encoding in batch.encodings)
    return [Plain(ids, len(ids) + more) for ids, more in zip(batch["input_ids"], beyond, strict=True)]


def join_pairs(frame: PairFrame, pairs: Sequence[tuple[Plain, Plain]], max_len: int) -> tuple[list[Any], int]:
    """Token records of pairs of texts, given by ids, cut longest-first at `max_len` tokens, and how many were cut.

    Equal to what `tokenize` gives for the pairs' texts, without tokenising a text once for each of its pairs.
    """
    start, middle, end = frame.ids
    room = max_len - len(start) - len(middle) - len(end)
    records, cut = [], 0
    for (first, n_first), (second, n_second) in pairs:
        if n_first + n_second > room:
            cut += 1
            n_first, n_second = longest_first(n_first, n_second, room)
            first, second = first[:n_first], second[:n_second]
        record = {"input_ids": [*start, *first, *middle, *second, *end]}
        if frame.types is not None:
            front, type_first, between, type_second, back = frame.types
            types = [*front, *[type_first] * len(first), *between, *[type_second] * len(second), *back]
            record["token_type_ids"] = types
        records.append(record)
    return records, cut


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Lengths of two texts, too long together for `room` tokens, cut as tokenizers cut: the longer until both are equal.

    >>> longest_first(5, 20, 15), longest_first(9, 20, 15), longest_first(20, 9, 15)
    ((5, 10), (7, 8), (8, 7))
    """
    short, long = sorted((first, second))
    if short + max(short, room - short) > room:
        short, long = room // 2, room - room // 2
    else:
        long = room - short
    return (short, long) if first <= second else (long, short)


def pad(records: Sequence[Any], pad_id: int, device: Any) -> dict[str, Tensor]:
    """Token records as padded tensors (N, T) with their attention mask."""
    import torch

    lengths = np.array([len(record["input_ids"]) for record in records])
    mask = np.arange(lengths.max())[None, :] < lengths[:, None]
    batch = {"attention_mask": mask.astype(np.int64)}
    for name in records[0]:
        batch[name] = np.full(mask.shape, pad_id if name == "input_ids" else 0, dtype=np.int64)
        batch[name][mask] = np.fromiter(chain.from_iterable(record[name] for record in records), np.int64, lengths.sum())
    return {name: torch.from_numpy(values).to(device) for name, values in batch.items()}


def part(batch: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a batch whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in batch.items() if name.startswith(prefix)}


def side_records(model: Any, texts: Sequence[str], kind: str, max_doc_len: int | None = None) -> tuple[list[Any], int]:
    """Token records of queries or documents, with the model's prefix, length and [MASK] tokens; how many were cut."""
    settings = model.settings
    if kind == "query":
        records, cut = tokenize(model.tokenizer, [settings.query_prefix + text for text in texts], settings.max_query_len)
        masks = [model.tokenizer.mask_token_id] * getattr(settings, "masks", 0)
        return [{**record, "input_ids": [*record["input_ids"], *masks]} for record in records], cut
    if kind != "doc":
        raise ValueError(f"kind must be query or doc, not {kind!r}")
    length = min(max_doc_len or settings.max_doc_len, settings.max_doc_len)
    return tokenize(model.tokenizer, [settings.doc_prefix + text for text in texts], length)


def two_sides(
    model: Any, queries: Sequence[str], docs: Sequence[str], pairs: Sequence[tuple[int, int]], max_doc_len: int | None = None
) -> dict[str, Tensor]:
    """Queries and documents tokenised apart, each once: `query_*` (Q, T), `doc_*` (N, D), and `pairs` int (P, 2) of rows."""
    import torch

    pad_id = model.tokenizer.pad_token_id or 0
    batch = {"pairs": torch.tensor(list(pairs), dtype=torch.long).reshape(-1, 2)}
    for kind, texts in (("query", queries), ("doc", docs)):
        records, _ = side_records(model, texts, kind, max_doc_len)
        batch |= {f"{kind}_{name}": tensor for name, tensor in pad(records, pad_id, "cpu").items()}
    return batch


def late_pairs(
    late_scores: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    batch: Mapping[str, Tensor],
    query_vecs: Tensor,
    doc_vecs: Tensor,
) -> Tensor:
    """Scores (P,) of the pairs of a `two_sides` batch: each query is compared with its own documents, not with all."""
    import torch

    pairs, query_mask, doc_mask = batch["pairs"], batch["query_attention_mask"], batch["doc_attention_mask"]
    if len(pairs) == len(query_vecs) * len(doc_vecs):  # all are its own
        return late_scores(query_vecs, query_mask, doc_vecs, doc_mask)[pairs[:, 0], pairs[:, 1]]
    places = [(pairs[:, 0] == row).nonzero()[:, 0] for row in range(len(query_vecs))]
    scores = []
    for row, own in enumerate(places):
        docs = pairs[own, 1]
        scores.append(late_scores(query_vecs[row : row + 1], query_mask[row : row + 1], doc_vecs[docs], doc_mask[docs])[0])
    return torch.cat(scores)[torch.cat(places).argsort()]
