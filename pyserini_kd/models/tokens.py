"""Turn texts into padded arrays or tensors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import tokenizers
    import torch

TokenRecord = dict[str, list[int]]
"""The `input_ids` of a text or pair, and its `token_type_ids` if the model takes them."""
Tokens = dict[str, npt.NDArray[np.int64]]
"""The arrays (N, T) of a batch: `input_ids`, `attention_mask` and maybe `token_type_ids`."""


class Tokenizer(Protocol):
    """The part of transformers' fast tokenizers that this package uses. `SavedTokenizer` has it without transformers."""

    backend_tokenizer: tokenizers.Tokenizer
    model_input_names: Sequence[str]
    pad_token_id: int | None
    mask_token_id: int
    model_max_length: int

    def get_vocab(self) -> dict[str, int]:
        """Map tokens to ids."""

    def save_pretrained(self, folder: Path) -> object:
        """Write the tokenizer's files into a folder."""


class SavedTokenizer:
    """A tokenizer read from the JSON file of the library tokenizers. Its vocabulary and rules are those of the file."""

    def __init__(
        self,
        path: Path,
        *,
        pad_token_id: int | None,
        mask_token_id: int,
        model_max_length: int,
        model_input_names: Sequence[str],
    ) -> None:
        import tokenizers

        self.backend_tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self.pad_token_id, self.mask_token_id = pad_token_id, mask_token_id
        self.model_max_length, self.model_input_names = model_max_length, model_input_names

    def get_vocab(self) -> dict[str, int]:
        """Map tokens to ids."""
        return self.backend_tokenizer.get_vocab()

    def save_pretrained(self, folder: Path) -> None:
        """Write `tokenizer.json` into a folder."""
        self.backend_tokenizer.save(str(folder / "tokenizer.json"))


def lower_case(core: tokenizers.Tokenizer) -> None:
    """Make a tokenizer lower-case texts first."""
    from tokenizers.normalizers import Lowercase, Sequence

    core.normalizer = Sequence([Lowercase(), *([core.normalizer] if core.normalizer else [])])


def lower_cases(core: tokenizers.Tokenizer) -> bool:
    """Whether `lower_case` changed a tokenizer."""
    from tokenizers.normalizers import Lowercase, Sequence

    return isinstance(core.normalizer, Sequence) and isinstance(core.normalizer[0], Lowercase)


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[str], max_len: int, pairs: Sequence[str] | None = None
) -> tuple[list[TokenRecord], int]:
    """Token records of texts (or text pairs, cut longest-first), and the number of texts cut to `max_len` tokens."""
    first = plain_ids(tokenizer, texts, max_len)
    if pairs is not None:
        return join_pairs(pair_frame(tokenizer), list(zip(first, plain_ids(tokenizer, pairs, max_len), strict=True)), max_len)
    start, end = text_frame(tokenizer)
    room = max_len - len(start) - len(end)
    records = [{"input_ids": [*start, *ids[:room], *end]} for ids, _ in first]
    return records, sum(length > room for _, length in first)


def text_frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids of the special tokens that a tokenizer adds before and after a text, found from its output for a short text."""
    (found,) = _encodings(tokenizer, ["a"], special=True)
    sides = found.sequence_ids
    return found.ids[: sides.index(0)], found.ids[len(sides) - sides[::-1].index(0) :]


class PairFrame(NamedTuple):
    """What a tokenizer adds to a pair: special token ids before, between and after the texts; token types, or None."""

    ids: tuple[list[int], list[int], list[int]]
    types: tuple[list[int], int, list[int], int, list[int]] | None  # before, first text, between, second text, after


def pair_frame(tokenizer: Tokenizer) -> PairFrame:
    """Find the frame of a tokenizer from its output for a short pair."""
    (found,) = _encodings(tokenizer, [("a", "a")], special=True)
    sides, ids, types = found.sequence_ids, found.ids, found.type_ids
    (begin, end), (begin_other, end_other) = ((sides.index(n), len(sides) - sides[::-1].index(n)) for n in (0, 1))
    around = ids[:begin], ids[end:begin_other], ids[end_other:]
    if "token_type_ids" not in tokenizer.model_input_names:
        return PairFrame(around, None)
    return PairFrame(around, (types[:begin], types[begin], types[end:begin_other], types[begin_other], types[end_other:]))


class Plain(NamedTuple):
    """Token ids of a text without special tokens, at most as many as a pair can hold, and their number before the cut."""

    ids: list[int]
    length: int


def plain_ids(tokenizer: Tokenizer, texts: Sequence[str], max_len: int) -> list[Plain]:
    """Token ids of texts, to be framed or joined to pairs of at most `max_len` tokens."""
    return [Plain(found.ids[:max_len], len(found.ids)) for found in _encodings(tokenizer, list(texts), special=False)]


def _encodings(tokenizer: Tokenizer, texts: list[Any], *, special: bool) -> list[tokenizers.Encoding]:
    """Encode texts or pairs without truncation and padding.

    A maximum length would be a setting of the tokenizer, and several threads share the tokenizer.
    """
    core = tokenizer.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    encode = core.encode_batch if special else core.encode_batch_fast  # the faster one has no `sequence_ids`
    return encode(texts, add_special_tokens=special)


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


def pad_arrays(records: Sequence[TokenRecord], pad_id: int) -> Tokens:
    """Pad token records to int64 arrays (N, T), with an attention mask."""
    lengths = np.array([len(record["input_ids"]) for record in records])
    mask = np.arange(lengths.max())[None, :] < lengths[:, None]
    batch = {"attention_mask": mask.astype(np.int64)}
    for name in records[0]:
        batch[name] = np.full(mask.shape, pad_id if name == "input_ids" else 0, dtype=np.int64)
        batch[name][mask] = np.fromiter(chain.from_iterable(record[name] for record in records), np.int64, lengths.sum())
    return batch


def pad(records: Sequence[TokenRecord], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad token records to int64 tensors (N, T), with an attention mask."""
    import torch

    return {name: torch.from_numpy(values) for name, values in pad_arrays(records, pad_id).items()}
