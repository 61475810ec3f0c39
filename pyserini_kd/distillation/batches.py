"""Cut groups or plain texts into training batches and turn batches into tensors.

All processes see every batch. Each one tokenises its share of the pairs. The result does not depend on the process count.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypedDict, TypeVar, cast, overload

import numpy as np
import torch
from torch import Tensor

from pyserini_kd.data.lines import one_line
from pyserini_kd.distillation.candidates import Group, as_groups
from pyserini_kd.distillation.teacher_scores import TeacherScores
from pyserini_kd.distillation.text_store import PlainTexts
from pyserini_kd.models.tokens import pad, tokenize
from pyserini_kd.storage.arrays import Ints, Rows, column, let_go, spans
from pyserini_kd.storage.errors import InputError

if TYPE_CHECKING:
    from pyserini_kd.models.bert_dot import BertDot
    from pyserini_kd.models.cross_encoder import CrossEncoder
    from pyserini_kd.models.loading import Model

logger = logging.getLogger(__name__)
T = TypeVar("T")

WINDOW = 64  # batches sorted by length together


class Batch(TypedDict, total=False):
    """A batch of B groups of up to G documents, with P distinct (query, document) pairs. Plain texts have no groups."""

    pairs: Tensor  # P, or the number of plain texts
    taught: Tensor  # number of pairs from the groups; they come first
    student: dict[str, Tensor]  # student inputs: this process's share of the pairs
    live: dict[str, Tensor]  # live-teacher inputs: this process's share
    labels: Tensor  # (B, G)
    rows: Tensor  # (B, G): indices into the P scores
    mask: Tensor  # (B, G): False for padding
    teacher: Tensor  # (B, G): teacher scores from a file
    vectors: Tensor  # (N, H): teacher vectors of this process's share of N plain texts
    batch_labels: Tensor  # (B, N): labels of all N documents of the batch for each query
    batch_rows: Tensor  # (B, N): indices into the P scores


class Share(NamedTuple):
    """The share of each batch that process `rank` of `world` processes works on."""

    rank: int = 0
    world: int = 1

    def of(self, count: int) -> tuple[int, int]:
        """Return the start and end row of this share of `count` rows. Share sizes differ by at most one.

        >>> [Share(rank, 3).of(8) for rank in range(3)]
        [(0, 2), (2, 5), (5, 8)]
        """
        return count * self.rank // self.world, count * (self.rank + 1) // self.world

    def slice_of(self, count: int) -> slice:
        """Return the share as a slice. An empty share takes one row of another process; its score is dropped."""
        start, end = self.of(count)
        return slice(start, max(end, start + 1))


WHOLE = Share()


class Batches(Sequence[list[T]], Generic[T]):
    """Items cut into batches. Batch i holds the items of `rows[ends[i - 1]:ends[i]]`, fetched on access."""

    def __init__(self, items: Sequence[T], rows: Ints, ends: Rows) -> None:
        self.items, self.rows, self.ends = items, rows, ends

    @overload
    def __getitem__(self, batch: int) -> list[T]: ...
    @overload
    def __getitem__(self, batch: slice) -> list[list[T]]: ...
    def __getitem__(self, batch: int | slice) -> list[T] | list[list[T]]:
        """Return the items of a batch, or the batches of a slice."""
        if isinstance(batch, slice):
            return [self[i] for i in range(len(self))[batch]]
        start = self.ends[batch - 1] if batch else 0
        rows = self.rows[start : self.ends[batch]].tolist()
        let_go(self.rows)
        return [self.items[row] for row in rows]

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.ends)

    def sample(self, count: int, seed: int) -> Batches[T]:
        """Draw `count` batches at random, without replacement. Their order is kept."""
        drawn = np.sort(np.random.default_rng(seed).choice(len(self), count, replace=False))
        starts = np.where(drawn > 0, self.ends[drawn - 1], 0)
        rows = np.concatenate([self.rows[a:b] for a, b in zip(starts, self.ends[drawn], strict=True)])
        return Batches(self.items, rows, np.cumsum(self.ends[drawn] - starts))


def cut_batches(
    groups: Sequence[Group], batch_size: int, seed: int, lengths: Sequence[int] | Ints | None = None
) -> Batches[Group]:
    """Cut groups into batches. A block stays whole unless it is larger than a batch.

    Groups without a block (triples) are shuffled. Small blocks are shuffled too. With `lengths`, a batch holds groups of
    similar length.
    """
    groups = as_groups(groups)
    blocks, first = groups.blocks(), None
    if blocks is not None and (blocks >= 0).any():
        blocks = np.where(blocks < 0, -1 - np.arange(len(blocks)), blocks)
        _, first, block, sizes = np.unique(blocks, return_index=True, return_inverse=True, return_counts=True)
    if first is None or len(first) == len(groups):
        rows = column(groups.folder, len(groups), np.int32)
        rows[:] = _shuffled(len(groups), batch_size, seed, lengths)
        return _cut(groups, rows, batch_size)
    if lengths is not None:
        logger.warning("groups are not sorted by length: blocks, whose queries share documents, stay whole")
    place = first.copy()  # order of blocks: by first group
    if 2 * np.median(sizes) <= batch_size:
        np.random.default_rng(seed).shuffle(place)
    rows = np.argsort(place[block], kind="stable").astype(np.int32)
    cut = _packed(sizes[np.argsort(place)].tolist(), batch_size)
    if len(groups) < 0.75 * batch_size * len(cut):
        logger.warning("batches have %.0f queries on average, not %d: blocks of queries that share documents stay whole",
                       len(groups) / len(cut), batch_size)  # fmt: skip
    return Batches(groups, rows, np.cumsum(cut))


def _packed(sizes: Sequence[int], batch_size: int) -> list[int]:
    """Return batch sizes for blocks of these sizes, packed in order.

    >>> _packed([2, 2, 3, 9, 1], 4)
    [4, 3, 4, 4, 1, 1]
    """
    made: list[int] = []
    room = 0
    for size in sizes:
        if size <= room:
            made[-1] += size
            room -= size
        else:
            made += [min(batch_size, size - done) for done in range(0, size, batch_size)]
            room = batch_size - size  # negative after a cut block: no room is left
    return made


def cut_texts(texts: Sequence[str], batch_size: int, seed: int) -> Batches[str]:
    """Cut shuffled texts into batches of similar length."""
    return cut_rows(texts, lengths_of(texts), batch_size, seed)


def lengths_of(texts: Sequence[str]) -> Ints:
    """Return the length of every text (in characters; in bytes for texts on disk)."""
    return texts.lengths() if isinstance(texts, PlainTexts) else np.fromiter(map(len, texts), np.int32, len(texts))


def cut_rows(items: Sequence[T], lengths: Sequence[int] | Ints, batch_size: int, seed: int) -> Batches[T]:
    """Cut shuffled items into batches of similar length."""
    return _cut(items, _shuffled(len(items), batch_size, seed, lengths), batch_size)


def cut_by_tokens(items: Sequence[T], tokens: Ints, budget: int, seed: int) -> Batches[T]:
    """Cut shuffled items into batches of similar length. `tokens` are the numbers of tokens of the items.

    A batch has at most `budget` tokens, padding included. An item with more tokens is the only item of its batch.
    """
    order = _shuffled(len(items), max(1, int(budget // max(1.0, float(tokens.mean())))), seed, tokens)
    ends, size, longest = array("q"), 0, 0
    for part in spans(len(order)):
        for place, length in enumerate(tokens[order[part]].tolist(), start=part.start):
            longest = max(longest, length)
            if size and (size + 1) * longest > budget:
                ends.append(place)
                size, longest = 0, length
            size += 1
    ends.append(len(order))
    return Batches(items, order, np.array(ends))


def _cut(items: Sequence[T], rows: Ints, batch_size: int) -> Batches[T]:
    return Batches(items, rows, np.minimum(np.arange(batch_size, len(rows) + batch_size, batch_size), len(rows)))


def _shuffled(count: int, batch_size: int, seed: int, lengths: Sequence[int] | Ints | None) -> Ints:
    """Shuffle rows. With lengths, sort them within windows of WINDOW batches."""
    order = np.arange(count, dtype=np.int32)
    np.random.default_rng(seed).shuffle(order)
    if lengths is None:
        return order
    lengths, window = np.asarray(lengths), WINDOW * batch_size
    for start in range(0, count, window):
        part = order[start : start + window]
        part[:] = part[np.argsort(lengths[part], kind="stable")]
    return order


class Collator:
    """Turn a batch of groups into tensors. Each distinct (query, document) pair of a batch is scored once."""

    def __init__(
        self, model: Model, queries: Mapping[str, str], docs: Mapping[str, str], scores: TeacherScores | None = None,
        train_len: int | None = None, *, teacher: Model | None = None, same_inputs: bool = False, in_batch: bool = False,
        share: Share = WHOLE,
    ) -> None:  # fmt: skip
        """Collate for the student `model`. `train_len` lowers its maximum tokens of a document (or pair).

        `scores` are teacher scores from a file. A live `teacher` gets its own tensors, or with `same_inputs` (for layer losses)
        the student's tokens. `in_batch` also pairs every query with every document of the batch. `share` is the share of the
        pairs that this process tokenises.

        Raises:
            InputError: with `same_inputs`, the teacher reads fewer tokens than the student.
        """
        self.model, self.queries, self.docs, self.scores = model, queries, docs, scores
        self.length = pair_length(model, train_len, teacher if same_inputs else None)
        self.teacher, self.same_inputs, self.in_batch, self.share = teacher, same_inputs, in_batch, share

    def __call__(self, items: Sequence[Sequence[Group]]) -> Batch:
        """Return the tensors of one batch of groups."""
        (groups,) = items
        shape = (len(groups), max(len(group.doc_ids) for group in groups))
        labels, rows = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        mask, teacher = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
        places: dict[tuple[str, str], int] = {}
        for i, group in enumerate(groups):
            size = len(group.doc_ids)
            labels[i, :size] = torch.tensor(_labels(group, self.docs))
            mask[i, :size] = True
            rows[i, :size] = torch.tensor([places.setdefault((group.query_id, d), len(places)) for d in group.doc_ids])
            if self.scores is not None:
                teacher[i, :size] = torch.tensor(self.scores.of(group))
        batch: Batch = {"labels": labels, "rows": rows, "mask": mask, "taught": torch.tensor(len(places))}
        if self.scores is not None:
            batch["teacher"] = teacher
        taught = len(places)
        if self.in_batch:
            batch["batch_labels"], batch["batch_rows"] = _all_pairs(groups, places, self.docs)
        batch["pairs"] = torch.tensor(len(places))
        self._add_tokens(batch, list(places), taught)
        return batch

    def _add_tokens(self, batch: Batch, pairs: list[tuple[str, str]], taught: int) -> None:
        """Add the tokens of this process's share of the pairs. A live teacher scores only the first `taught` pairs."""
        share = self.share.slice_of(len(pairs))
        if self.same_inputs and self.teacher is not None:  # tokenised whole: padding must not depend on the share
            student, live = (self._pair_batch(model, pairs, self.length) for model in (self.model, self.teacher))
            if not torch.equal(student["input_ids"], live["input_ids"]):
                raise InputError("teacher and student do not see the same tokens, which layer losses compare; use the same "
                                 "tokenizer and length")  # fmt: skip
            batch["student"], batch["live"] = ({name: tensor[share] for name, tensor in x.items()} for x in (student, live))
            return
        batch["student"] = self._pair_batch(self.model, pairs[share], self.length)
        if self.teacher is not None:
            batch["live"] = self._pair_batch(self.teacher, pairs[:taught][self.share.slice_of(taught)])

    def _pair_batch(self, model: Model, pairs: list[tuple[str, str]], max_len: int | None = None) -> dict[str, Tensor]:
        queries = {query_id: row for row, query_id in enumerate(dict.fromkeys(q for q, _ in pairs))}
        docs = {doc_id: row for row, doc_id in enumerate(dict.fromkeys(d for _, d in pairs))}
        texts = [self.queries[q] for q in queries], [self.docs[d] for d in docs]
        return model.pair_batch(*texts, [(queries[q], docs[d]) for q, d in pairs], max_doc_len=max_len)


def window_of(model: Model) -> int:
    """Return the maximum tokens of a document (of a pair, for a cross-encoder) that a model reads."""
    if model.architecture == "cross_encoder":
        return cast("CrossEncoder", model).max_len
    return cast("BertDot", model).settings.max_doc_len


def pair_length(model: Model, train_len: int | None, same_for: Model | None = None) -> int:
    """Return the maximum tokens of a document (or pair) in training; InputError if teacher `same_for` reads fewer."""
    length = min(train_len or window_of(model), window_of(model))
    if same_for is not None and (most := window_of(same_for)) < length:
        raise InputError(
            f"the teacher reads {most} tokens, the student {length}; layer losses need the same: set {most}", "train_len"
        )
    return length


def _labels(group: Group, texts: Mapping[str, str]) -> list[int]:
    """Return the labels of a group. A text equal to a positive's is no negative, unless the group has no other."""
    contents = [one_line(texts[d]) for d in group.doc_ids]
    positive = {text for text, label in zip(contents, group.labels, strict=True) if label > 0}
    labels = [max(label, int(text in positive)) for text, label in zip(contents, group.labels, strict=True)]
    return labels if min(labels) <= 0 else group.labels


def _all_pairs(groups: Sequence[Group], places: dict[tuple[str, str], int], texts: Mapping[str, str]) -> tuple[Tensor, Tensor]:
    """Return labels and rows (B, N) of every query with every document of the batch. Add new pairs to `places`.

    A text that equals a positive of the query is relevant too, under any id.
    """
    docs = list(dict.fromkeys(d for group in groups for d in group.doc_ids))
    contents = {d: one_line(texts[d]) for d in docs}
    relevant = {(g.query_id, contents[d]) for g in groups for d, label in zip(g.doc_ids, g.labels, strict=True) if label > 0}
    labels = [[int((group.query_id, contents[d]) in relevant) for d in docs] for group in groups]
    rows = [[places.setdefault((group.query_id, d), len(places)) for d in docs] for group in groups]
    return torch.tensor(labels), torch.tensor(rows)


class TextCollator:
    """Turn a batch of plain texts into tensors that student and teacher both read."""

    def __init__(self, model: Model, train_len: int | None, teacher: Model, *, share: Share = WHOLE) -> None:
        self.tokenizer, self.share = model.tokenizer, share
        self.length = min(train_len or window_of(model), window_of(model), window_of(teacher))

    def __call__(self, items: Sequence[Sequence[str]]) -> Batch:
        """Return the tensors of one batch of texts, the same for both models."""
        (texts,) = items
        records, _ = tokenize(self.tokenizer, texts, self.length)
        share = self.share.slice_of(len(texts))
        padded = pad(records, self.tokenizer.pad_token_id or 0)
        tokens = {name: tensor[share] for name, tensor in padded.items()}
        return {"pairs": torch.tensor(len(texts)), "student": tokens, "live": tokens}
