"""Training batches: groups or plain texts cut into batches, and batches turned into tensors.

Each of several processes sees every batch and tokenises its share of the pairs, so that the number of processes does not
change what is learnt.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyserini_kd.distillation.candidates import Group
from pyserini_kd.distillation.rankers import Ranker, window_of
from pyserini_kd.distillation.teacher_scores import TeacherScores
from pyserini_kd.distillation.text_store import PlainTexts, Triples
from pyserini_kd.models.tokens import pad, tokenize
from pyserini_kd.storage.arrays import Ints, column, let_go
from pyserini_kd.storage.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
"""Name -> tensor, or a dictionary of tensors for each model."""

WINDOW = 64  # batches that are sorted by length together


class Share(NamedTuple):
    """The part of each batch that process `rank` of `world` works on."""

    rank: int = 0
    world: int = 1

    def of(self, count: int) -> tuple[int, int]:
        """First row and end of this part of `count` rows; the sizes of parts differ by one at most.

        >>> [Share(rank, 3).of(8) for rank in range(3)]
        [(0, 2), (2, 5), (5, 8)]
        """
        return count * self.rank // self.world, count * (self.rank + 1) // self.world


WHOLE = Share()


class Batches(Sequence[list[Any]]):
    """Items cut into batches: batch i holds the items of `rows[ends[i - 1]:ends[i]]`, fetched when it is used."""

    def __init__(self, items: Sequence[Any], rows: Ints, ends: npt.NDArray[np.int64]) -> None:
        self.items, self.rows, self.ends = items, rows, ends

    def __getitem__(self, batch: Any) -> Any:
        """The items of a batch, or the batches of a slice."""
        if isinstance(batch, slice):
            return [self[i] for i in range(len(self))[batch]]
        start = self.ends[batch - 1] if batch else 0
        rows = self.rows[start : self.ends[batch]].tolist()
        let_go(self.rows)
        return [self.items[row] for row in rows]

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.ends)


def cut_batches(groups: Sequence[Group], batch_size: int, seed: int, lengths: Sequence[int] | Ints | None = None) -> Batches:
    """Cut groups into batches. Blocks, whose queries share documents, stay whole unless they are larger than a batch.

    Groups without a block (triples) are shuffled; with `lengths`, groups of like length come into one batch. Small blocks
    are shuffled too.
    """
    if isinstance(groups, Triples):
        rows = column(groups.folder, len(groups), np.int32)
        rows[:] = _shuffled(len(groups), batch_size, seed, lengths)
        return _cut(groups, rows, batch_size)
    blocks = np.fromiter((group.block for group in groups), np.int64, len(groups))
    alone = np.flatnonzero(blocks < 0)
    blocks[alone] = -1 - alone
    first = alone
    if len(first) < len(groups):
        _, first, block, sizes = np.unique(blocks, return_index=True, return_inverse=True, return_counts=True)
    if len(first) == len(groups):
        return _cut(groups, _shuffled(len(groups), batch_size, seed, lengths), batch_size)
    if lengths is not None:
        logger.warning("groups are not sorted by length: the candidates' blocks, whose queries share documents, stay whole")
    place = first.copy()  # blocks in the order of their first groups
    if 2 * np.median(sizes) <= batch_size:
        np.random.default_rng(seed).shuffle(place)
    rows = np.argsort(place[block], kind="stable").astype(np.int32)
    cut = _packed(sizes[np.argsort(place)].tolist(), batch_size)
    if len(groups) < 0.75 * batch_size * len(cut):
        logger.warning("batches have %.0f queries on average, not %d: blocks of queries that share documents stay whole",
                       len(groups) / len(cut), batch_size)  # fmt: skip
    return Batches(groups, rows, np.cumsum(cut))


def _packed(sizes: Sequence[int], batch_size: int) -> list[int]:
    """Sizes of the batches that blocks of these sizes fill, one after the other.

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
            room = batch_size - size  # a block that was cut leaves none
    return made


def cut_texts(texts: Sequence[str], batch_size: int, seed: int) -> Batches:
    """Cut shuffled texts into batches of like length (in characters; in bytes where they lie on disk)."""
    lengths = texts.lengths() if isinstance(texts, PlainTexts) else [len(text) for text in texts]
    return _cut(texts, _shuffled(len(texts), batch_size, seed, lengths), batch_size)


def _cut(items: Sequence[Any], rows: Ints, batch_size: int) -> Batches:
    return Batches(items, rows, np.minimum(np.arange(batch_size, len(rows) + batch_size, batch_size), len(rows)))


def _shuffled(count: int, batch_size: int, seed: int, lengths: Sequence[int] | Ints | None) -> Ints:
    """Rows in a random order; with lengths, sorted by them within windows of some batches."""
    order = np.arange(count, dtype=np.int32)
    np.random.default_rng(seed).shuffle(order)
    if lengths is None:
        return order
    lengths, window = np.asarray(lengths), WINDOW * batch_size
    for start in range(0, count, window):
        some = order[start : start + window]
        some[:] = some[np.argsort(lengths[some], kind="stable")]
    return order


class Collator:
    """Turns a batch of groups into tensors; each distinct (query, document) pair of the batch is scored once."""

    def __init__(
        self,
        model: Ranker,
        queries: Mapping[str, str],
        docs: Mapping[str, str],
        scores: TeacherScores | None = None,
        train_len: int | None = None,
        *,
        teacher: Ranker | None = None,
        same_inputs: bool = False,
        in_batch: bool = False,
        share: Share = WHOLE,
    ) -> None:
        """A collator.

        Args:
            model: the student.
            queries: query_id -> text.
            docs: doc_id -> text.
            scores: teacher scores from a file.
            train_len: tokens of a document (or pair) in training, if less than the student can read.
            teacher: a live teacher, which gets tensors of its own.
            same_inputs: the teacher must see the same tokens as the student (layer losses).
            in_batch: also pair every query with every document of the batch.
            share: the part of the pairs that this process tokenises.

        Raises:
            InputError: the teacher must see the same tokens and cannot read as many.
        """
        self.model, self.queries, self.docs, self.scores = model, queries, docs, scores
        self.length = pair_length(model, train_len, teacher if same_inputs else None)
        self.teacher, self.same_inputs, self.in_batch, self.share = teacher, same_inputs, in_batch, share

    def __call__(self, items: Sequence[Sequence[Group]]) -> Batch:
        """One batch of B groups with P distinct pairs.

        The first `taught` pairs are those of the groups. `labels`, `rows` (places among the P scores), `mask` and, from a
        file, `teacher` are (B, G); `student` and `live` hold the tensors that the student and the live teacher score;
        `batch_labels`, `batch_rows` are (B, N).
        """
        import torch

        (groups,) = items
        shape = (len(groups), max(len(group.doc_ids) for group in groups))
        labels, rows = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        mask, teacher = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
        places: dict[tuple[str, str], int] = {}
        for i, group in enumerate(groups):
            size = len(group.doc_ids)
            labels[i, :size] = torch.tensor(group.labels)
            mask[i, :size] = True
            rows[i, :size] = torch.tensor([places.setdefault((group.query_id, d), len(places)) for d in group.doc_ids])
            if self.scores is not None:
                teacher[i, :size] = torch.tensor(self.scores.of(group))
        batch: Batch = {"labels": labels, "rows": rows, "mask": mask}
        if self.scores is not None:
            batch["teacher"] = teacher
        own = len(places)
        if self.in_batch:
            batch["batch_labels"], batch["batch_rows"] = _all_pairs(groups, places)
        return batch | {"pairs": torch.tensor(len(places)), "taught": torch.tensor(own)} | self._tokens(list(places), own)

    def _tokens(self, pairs: list[tuple[str, str]], taught: int) -> Batch:
        """The tensors of this process's part of the pairs; a live teacher scores only the first `taught` of all pairs."""
        own = self._own(len(pairs))
        if not self.same_inputs:
            batch: Batch = {"student": self._pair_batch(self.model, pairs[own], self.length)}
            some = pairs[:taught][self._own(taught)]
            return batch if self.teacher is None else batch | {"live": self._pair_batch(self.teacher, some)}
        assert self.teacher is not None
        whole = {"student": self._pair_batch(self.model, pairs, self.length)}  # padded as one process would pad them
        whole["live"] = self._pair_batch(self.teacher, pairs, self.length)
        check_same_tokens(whole["student"], whole["live"])
        return {who: {name: tensor[own] for name, tensor in tokens.items()} for who, tokens in whole.items()}

    def _own(self, count: int) -> slice:
        """This process's part. An empty part takes one pair of another process; its score is dropped."""
        start, end = self.share.of(count)
        return slice(start, max(end, start + 1))

    def _pair_batch(self, model: Ranker, pairs: list[tuple[str, str]], max_len: int | None = None) -> dict[str, Tensor]:
        queries = {query_id: row for row, query_id in enumerate(dict.fromkeys(q for q, _ in pairs))}
        docs = {doc_id: row for row, doc_id in enumerate(dict.fromkeys(d for _, d in pairs))}
        texts = [self.queries[q] for q in queries], [self.docs[d] for d in docs]
        return model.pair_batch(*texts, [(queries[q], docs[d]) for q, d in pairs], max_doc_len=max_len)


def pair_length(model: Ranker, train_len: int | None, same_for: Ranker | None = None) -> int:
    """Tokens of a document (or pair) in training; InputError where a teacher must read the same and cannot read as many."""
    length = min(train_len or window_of(model), window_of(model))
    if same_for is not None and (most := window_of(same_for)) < length:
        raise InputError(
            f"the teacher reads {most} tokens a pair, the student {length}: layer losses need the same; set {most}", "train_len"
        )
    return length


def _all_pairs(groups: Sequence[Group], places: dict[tuple[str, str], int]) -> tuple[Tensor, Tensor]:
    """(labels, rows) (B, N) of every query with every document of the batch; new pairs join `places`."""
    import torch

    docs = list(dict.fromkeys(d for group in groups for d in group.doc_ids))
    relevant = {(g.query_id, d) for g in groups for d, label in zip(g.doc_ids, g.labels, strict=True) if label > 0}
    labels = [[int((group.query_id, d) in relevant) for d in docs] for group in groups]
    rows = [[places.setdefault((group.query_id, d), len(places)) for d in docs] for group in groups]
    return torch.tensor(labels), torch.tensor(rows)


def check_same_tokens(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
    """InputError unless both models were given the same token ids."""
    import torch

    if not torch.equal(student["input_ids"], teacher["input_ids"]):
        raise InputError("teacher and student do not see the same tokens (their lengths or tokenizers differ); "
                         "layer losses compare token by token")  # fmt: skip


class TextCollator:
    """Turns a batch of plain texts into tensors that student and teacher both read."""

    def __init__(self, model: Ranker, train_len: int | None, teacher: Ranker, *, share: Share = WHOLE) -> None:
        self.model, self.share = model, share
        self.length = min(train_len or window_of(model), window_of(model), window_of(teacher))

    def __call__(self, items: Sequence[Sequence[str]]) -> Batch:
        """One batch of P texts: `student` and `live` hold the same tensors."""
        import torch

        (texts,) = items
        tokenizer = self.model.tokenizer
        records, _ = tokenize(tokenizer, texts, self.length)
        tokens = pad(records, tokenizer.pad_token_id or 0, "cpu")
        start, end = self.share.of(len(texts))
        tokens = {name: tensor[start : max(end, start + 1)] for name, tensor in tokens.items()}
        return {"pairs": torch.tensor(len(texts)), "student": tokens, "live": tokens}
