"""Turn texts into padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

TokenRecord = dict[str, list[int]]
"""The `input_ids` of a text or pair, and its `token_type_ids` if the model takes them."""


class Tokenizer(Protocol):
    """The part of transformers' tokenizers that this package uses."""

    pad_token_id: int | None
    mask_token_id: int
    model_max_length: int

    def __call__(self, text: str | list[str], text_pair: str | list[str] | None = None, **settings: object) -> Any:
        """Tokenise texts or pairs; returns a BatchEncoding."""

    def get_vocab(self) -> dict[str, int]:
        """Map tokens to ids."""

    def save_pretrained(self, folder: Path) -> object:
        """Write the tokenizer's files into a folder."""


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[str], max_len: int, pairs: Sequence[str] | None = None
) -> tuple[list[TokenRecord], int]:
    """Token records of texts (or text pairs, cut longest-first), and the number of texts cut to `max_len` tokens."""
    others = list(pairs) if pairs is not None else None
    batch = tokenizer(list(texts), others, truncation="longest_first", max_length=max_len, return_attention_mask=False)
    cut = sum(bool(encoding.overflowing) for encoding in batch.encodings)
    names = [name for name in ("input_ids", "token_type_ids") if name in batch and (pairs is not None or name == "input_ids")]
    return [{name: batch[name][i] for name in names} for i in range(len(texts))], cut


class PairFrame(NamedTuple):
    """What a tokenizer adds to a pair: special token ids before, between and after the texts; token types, or None."""

    ids: tuple[list[int], list[int], list[int]]
    types: tuple[list[int], int, list[int], int, list[int]] | None  # before, first text, between, second text, after


def pair_frame(tokenizer: Tokenizer) -> PairFrame:
    """Find the frame of a tokenizer from its output for a short pair."""
    batch = tokenizer("a", "a")
    sides, ids, types = batch.sequence_ids(0), batch["input_ids"], batch.get("token_type_ids")
    (begin, end), (begin_other, end_other) = ((sides.index(n), len(sides) - sides[::-1].index(n)) for n in (0, 1))
    around = tuple(ids[slice(*bounds)] for bounds in ((0, begin), (end, begin_other), (end_other, None)))
    if types is None:
        return PairFrame(around, None)
    return PairFrame(around, (types[:begin], types[begin], types[end:begin_other], types[begin_other], types[end_other:]))


class Plain(NamedTuple):
    """Token ids of a text without special tokens, at most as many as a pair can hold, and their number before the cut."""

    ids: list[int]
    length: int


def plain_ids(tokenizer: Tokenizer, texts: Sequence[str], max_len: int) -> list[Plain]:
    """Token ids of texts, to be joined to pairs of at most `max_len` tokens."""
    plain: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    batch = tokenizer(list(texts), truncation=True, max_length=max_len, **plain)
    beyond = (sum(map(len, encoding.overflowing)) if len(encoding) == max_len else 0 for encoding in batch.encodings)
    return [Plain(ids, len(ids) + more) for ids, more in zip(batch["input_ids"], beyond, strict=True)]


def join_pairs(frame: PairFrame, pairs: Sequence[tuple[Plain, Plain]], max_len: int) -> tuple[list[TokenRecord], int]:
    """Join token ids to records of pairs, cut longest-first to `max_len` tokens; also returns how many were cut.

    The records equal those of `tokenize` for the pairs' texts, but each text is tokenised only once.
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
    """Cut the lengths of two texts to `room` tokens together, as tokenizers do: the longer shrinks until both are equal.

    >>> longest_first(5, 20, 15), longest_first(9, 20, 15), longest_first(20, 9, 15)
    ((5, 10), (7, 8), (8, 7))
    """
    short, long = sorted((first, second))
    if short + max(short, room - short) > room:
        short, long = room // 2, room - room // 2
    else:
        long = room - short
    return (short, long) if first <= second else (long, short)


def pad(records: Sequence[TokenRecord], pad_id: int, device: str | torch.device) -> dict[str, torch.Tensor]:
    """Pad token records to int64 tensors (N, T), with an attention mask."""
    import torch

    lengths = np.array([len(record["input_ids"]) for record in records])
    mask = np.arange(lengths.max())[None, :] < lengths[:, None]
    batch = {"attention_mask": mask.astype(np.int64)}
    for name in records[0]:
        batch[name] = np.full(mask.shape, pad_id if name == "input_ids" else 0, dtype=np.int64)
        batch[name][mask] = np.fromiter(chain.from_iterable(record[name] for record in records), np.int64, lengths.sum())
    return {name: torch.from_numpy(values).to(device) for name, values in batch.items()}
