"""Learn the vectors that a bi-encoder gives to plain texts, as Reimers and Gurevych 2020 (arXiv 2004.09813) do.

The teacher encodes every text once, queries as queries and documents as documents, into a file. The student regresses these
vectors. Where the widths differ, a linear projection maps the student's vectors to the teacher's width; it is dropped at
export. At the start its matrix is orthogonal: a map to a larger width then keeps dot products.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyserini_kd.distillation.batches import WHOLE, Batch, Batches, Share, cut_by_tokens, cut_rows, pair_length
from pyserini_kd.distillation.objective import Learner
from pyserini_kd.distillation.text_store import PlainTexts, Texts
from pyserini_kd.models.bert_dot import BertDot
from pyserini_kd.models.rankers import Encoder
from pyserini_kd.models.tokens import Tokenizer, pad, tokenize
from pyserini_kd.storage.arrays import Floats, Ints, let_go
from pyserini_kd.storage.job import Job

logger = logging.getLogger(__name__)

PART = 1 << 14  # texts that are encoded between two seals
SAMPLE = 1000  # texts that are tokenised to learn how long tokens are


class Text(NamedTuple):
    """A text to learn the vector of: its row, whether it is a `query` or a `doc`, and itself."""

    row: int
    side: str
    text: str


class SidedTexts(Sequence[Text]):
    """Queries, then documents."""

    def __init__(self, queries: Mapping[str, str], docs: Sequence[str]) -> None:
        self._queries: Sequence[str] = (
            list(queries.values())
            if not isinstance(queries, Texts)
            else PlainTexts(queries, np.arange(len(queries), dtype=np.int32))
        )
        self._docs = docs

    def __getitem__(self, row: int) -> Text:  # type: ignore[override]
        if not 0 <= row < len(self):
            raise IndexError(row)
        first = len(self._queries)
        return Text(row, "query", self._queries[row]) if row < first else Text(row, "doc", self._docs[row - first])

    def __len__(self) -> int:
        return len(self._queries) + len(self._docs)

    def lengths(self) -> Ints:
        """Length of every text, in characters (in bytes where it lies on disk)."""
        return np.concatenate([lengths_of(self._queries), lengths_of(self._docs)])


def lengths_of(texts: Sequence[str]) -> Ints:
    """Length of every text, in characters (in bytes where it lies on disk)."""
    return texts.lengths() if isinstance(texts, PlainTexts) else np.fromiter(map(len, texts), np.int32, len(texts))


def estimated_tokens(tokenizer: Tokenizer, text_of: Callable[[int], str], lengths: Ints, most: int) -> Ints:
    """About how many tokens texts of these lengths have, `most` at most: the mean length of a token is that of a sample."""
    rows = range(0, len(lengths), len(lengths) // SAMPLE + 1)
    records, _ = tokenize(tokenizer, [text_of(row) for row in rows], most)
    tokens = np.array([len(record["input_ids"]) for record in records])
    whole = tokens < most
    share = tokens[whole].sum() / max(1, lengths[list(rows)][whole].sum()) if whole.any() else 0.25
    return np.clip(np.ceil(lengths * share), 3, most).astype(np.int32)


class TeacherVectors:
    """Vectors float32 (N, H) in a file, for these rows of texts (ascending)."""

    def __init__(self, path: Path, rows: Ints, width: int) -> None:
        self._rows = rows
        self._vectors = np.memmap(path, np.float32, "r", shape=(len(rows), width))

    def of(self, rows: Sequence[int]) -> Floats:
        """Vectors (n, H) of some of the rows."""
        found = np.array(self._vectors[np.searchsorted(self._rows, rows)])
        let_go(self._vectors)
        return found


def encode_once(folder: Path, encoder: Encoder, texts: SidedTexts, rows: Ints, share: Share = WHOLE) -> TeacherVectors:
    """The teacher's vectors of some rows of texts, written into `folder`; a killed run goes on after the last whole part.

    The first process works; call it in `one_after_another`. What the vectors are made from is told by the folder's owner.
    """
    job, width, cut = Job(folder, {"texts": len(rows), "width": encoder.width}), encoder.width, [0]
    path = job.path(0, "vectors")
    if share.rank == 0:
        job.begin()
        with open(path, "r+b" if path.exists() else "w+b") as out:
            for number, start in enumerate(range(0, len(rows), PART)):
                if job.is_done(number):
                    continue
                some = [texts[row] for row in rows[start : start + PART].tolist()]
                out.seek(start * width * 4)
                out.write(_encoded(encoder, some, cut).tobytes())
                out.flush()
                os.fsync(out.fileno())
                job.finish(number)
                logger.info("the teacher has encoded %d of %d texts", start + len(some), len(rows))
        encoder.count_cut(sum(cut), None, "texts")
    return TeacherVectors(path, rows, width)


def _encoded(encoder: Encoder, texts: Sequence[Text], cut: list[int]) -> Floats:
    vectors = np.empty((len(texts), encoder.width), np.float32)
    for side, encode in (("query", encoder.encode_queries), ("doc", encoder.encode_docs)):
        places = [place for place, text in enumerate(texts) if text.side == side]
        if places:
            vectors[places] = encode([texts[place].text for place in places], cut=cut, label="teacher's vectors")
    return vectors


def cut_sided(
    texts: SidedTexts, tokenizer: Tokenizer, most: int, seed: int, *, tokens: int | None, size: int, limit: int | None
) -> Batches[Text]:
    """Batches of texts of like length, of about so many `tokens`, or (None) of `size` texts; at most `limit` batches."""
    lengths = texts.lengths()
    if tokens is None:
        batches = cut_rows(texts, lengths, size, seed)
    else:
        estimated = estimated_tokens(tokenizer, lambda row: texts[row].text, lengths, most)
        batches = cut_by_tokens(texts, estimated, tokens, seed)
    return batches.sample(limit, seed) if limit is not None and limit < len(batches) else batches


class VectorCollator:
    """Turns a batch of texts into tensors: the student's tokens, and the teacher's vectors."""

    def __init__(self, model: BertDot, vectors: TeacherVectors, train_len: int | None, *, share: Share = WHOLE) -> None:
        self.model, self.vectors, self.share = model, vectors, share
        self.length = pair_length(model, train_len)

    def __call__(self, items: Sequence[Sequence[Text]]) -> Batch:
        """The tensors of this process's part of one batch."""
        (texts,) = items
        own = sorted(texts[self.share.slice_of(len(texts))], key=lambda text: text.side)
        records = []
        for side in ("doc", "query"):
            if some := [text.text for text in own if text.side == side]:
                records += self.model.side_records(some, side, self.length)[0]
        return {
            "pairs": torch.tensor(len(texts)),
            "student": pad(records, self.model.tokenizer.pad_token_id or 0, "cpu"),
            "vectors": torch.from_numpy(self.vectors.of([text.row for text in own])),
        }


def vector_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of vectors (N, H), over texts and numbers. Reimers and Gurevych 2020, equation 1.

    >>> float(vector_mse(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])))  # (9 + 4) / 2
    6.5
    """
    return F.mse_loss(student, teacher)


def vector_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine of vectors (N, H). It does not see the length of a vector.

    >>> student, teacher = torch.tensor([[3.0, 4.0], [2.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    >>> round(float(vector_cosine(student, teacher)), 4)  # (0.2 + 0) / 2
    0.1
    """
    return (1.0 - F.cosine_similarity(student, teacher, dim=-1)).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"vector_mse": vector_mse, "vector_cosine": vector_cosine}


class VectorLearner(Learner):
    """A student that regresses its teacher's vectors."""

    def __init__(self, model: BertDot, losses: Mapping[str, float], width: int, *, share: Share = WHOLE) -> None:
        """A learner: the student `model`, whose vectors follow those of a teacher of this `width`."""
        super().__init__(model, {}, share=share)
        self.weights = dict(losses)
        if model.width != width:
            self.projection = nn.Linear(model.width, width)
            nn.init.orthogonal_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)

    def _terms(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """For each loss: the term over the whole batch, and what this process contributes to its gradient."""
        own: Tensor = cast(BertDot, self.student)(**batch["student"])
        with torch.autocast(own.device.type, enabled=False):
            own = self.projection(own) if hasattr(self, "projection") else own
            return {name: self.shared_mean(LOSSES[name](own, batch["vectors"]), int(batch["pairs"])) for name in self.weights}
