"""Train a student to predict the vectors that a bi-encoder teacher gives to plain text.

Source: Reimers and Gurevych 2020 (arXiv 2004.09813). The teacher encodes every text once and writes the vectors into a file. It
encodes queries as queries and documents as documents. If the widths differ, a linear projection maps the student's vectors to
the teacher's width. The projection is not exported. Its initial matrix is orthogonal, so a map to a larger width keeps dot
products.
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

from pyserini_kd.distillation.batches import WHOLE, Batch, Batches, Share, cut_by_tokens, cut_rows, lengths_of, pair_length
from pyserini_kd.distillation.objective import Learner
from pyserini_kd.distillation.text_store import PlainTexts, Texts
from pyserini_kd.models.bert_dot import BertDot
from pyserini_kd.models.rankers import Encoder
from pyserini_kd.models.tokens import Tokenizer, pad, tokenize
from pyserini_kd.storage.arrays import Floats, Ints, let_go
from pyserini_kd.storage.job import Job

logger = logging.getLogger(__name__)

PART = 1 << 14  # texts encoded and saved at a time
SAMPLE = 1000  # maximum number of texts tokenised to estimate the length of a token


class Text(NamedTuple):
    """A text and its row. `side` is `query` or `doc`."""

    row: int
    side: str
    text: str


class SidedTexts(Sequence[Text]):
    """The texts of a stage: first all queries, then all documents."""

    def __init__(self, queries: Mapping[str, str], docs: Sequence[str]) -> None:
        self._queries: Sequence[str]
        if isinstance(queries, Texts):  # on disk, where they stay
            self._queries = PlainTexts(queries, np.arange(len(queries), dtype=np.int32))
        else:
            self._queries = list(queries.values())
        self._docs = docs

    def __getitem__(self, row: int) -> Text:  # type: ignore[override]
        if not 0 <= row < len(self):
            raise IndexError(row)
        first = len(self._queries)
        return Text(row, "query", self._queries[row]) if row < first else Text(row, "doc", self._docs[row - first])

    def __len__(self) -> int:
        return len(self._queries) + len(self._docs)

    def lengths(self) -> Ints:
        """Return the length of every text (in characters; in bytes for texts on disk)."""
        return np.concatenate([lengths_of(self._queries), lengths_of(self._docs)])


def estimated_tokens(tokenizer: Tokenizer, text_of: Callable[[int], str], lengths: Ints, most: int) -> Ints:
    """Estimate the number of tokens of every text from its length, with a maximum of `most`.

    The estimate assumes the mean length of a token in a sample of the texts. `text_of` returns the text of a row.
    """
    rows = range(0, len(lengths), len(lengths) // SAMPLE + 1)
    records, _ = tokenize(tokenizer, [text_of(row) for row in rows], most)
    tokens = np.array([len(record["input_ids"]) for record in records])
    whole = tokens < most
    share = tokens[whole].sum() / max(1, lengths[list(rows)][whole].sum()) if whole.any() else 0.25
    return np.clip(np.ceil(lengths * share), 3, most).astype(np.int32)


class TeacherVectors:
    """Vectors float32 (N, H) in a file. `rows` are the N rows of their texts, in ascending order."""

    def __init__(self, path: Path, rows: Ints, width: int) -> None:
        self._rows = rows
        self._vectors = np.memmap(path, np.float32, "r", shape=(len(rows), width))

    def of(self, rows: Sequence[int]) -> Floats:
        """Return the vectors (n, H) of n rows."""
        found = np.array(self._vectors[np.searchsorted(self._rows, rows)])
        let_go(self._vectors)
        return found


def encode_once(folder: Path, encoder: Encoder, texts: SidedTexts, rows: Ints, share: Share = WHOLE) -> TeacherVectors:
    """Encode the texts of these rows by the teacher into a file in `folder`; return the vectors.

    After an interruption, the next call resumes after the last complete part. Only the first process encodes, so call this in
    `one_after_another`. The caller must use a new folder for other texts or another teacher.
    """
    job, width, cut = Job(folder, {"texts": len(rows), "width": encoder.width}), encoder.width, [0]
    path = job.path(0, "vectors")
    if share.rank == 0:
        job.begin()
        with open(path, "r+b" if path.exists() else "w+b") as out:
            for number, start in enumerate(range(0, len(rows), PART)):
                if job.is_done(number):
                    continue
                part = [texts[row] for row in rows[start : start + PART].tolist()]
                out.seek(start * width * 4)
                out.write(_encoded(encoder, part, cut).tobytes())
                out.flush()
                os.fsync(out.fileno())
                job.finish(number)
                logger.info("the teacher has encoded %d of %d texts", start + len(part), len(rows))
        encoder.count_cut(sum(cut), None, "texts")
    return TeacherVectors(path, rows, width)


def _encoded(encoder: Encoder, texts: Sequence[Text], cut: list[int]) -> Floats:
    vectors = np.empty((len(texts), encoder.width), np.float32)
    for side, encode in (("query", encoder.encode_queries), ("doc", encoder.encode_docs)):
        places = [place for place, text in enumerate(texts) if text.side == side]
        if places:
            vectors[places] = encode([texts[place].text for place in places], cut=cut, label="encode texts")
    return vectors


def cut_sided(
    texts: SidedTexts, tokenizer: Tokenizer, most: int, seed: int, *, tokens: int | None, size: int, limit: int | None
) -> Batches[Text]:
    """Cut shuffled texts into batches of similar length; return at most `limit` of them, drawn at random.

    A batch has about `tokens` tokens, or (None) `size` texts. `most` is the maximum number of tokens of a text.
    """
    lengths = texts.lengths()
    if tokens is None:
        batches = cut_rows(texts, lengths, size, seed)
    else:
        estimated = estimated_tokens(tokenizer, lambda row: texts[row].text, lengths, most)
        batches = cut_by_tokens(texts, estimated, tokens, seed)
    return batches.sample(limit, seed) if limit is not None and limit < len(batches) else batches


class VectorCollator:
    """Turns a batch of texts into tensors: tokens for the student and vectors of the teacher."""

    def __init__(self, model: BertDot, vectors: TeacherVectors, train_len: int | None, *, share: Share = WHOLE) -> None:
        self.model, self.vectors, self.share = model, vectors, share
        self.length = pair_length(model, train_len)

    def __call__(self, items: Sequence[Sequence[Text]]) -> Batch:
        """Return the tensors of this process's share of one batch."""
        (texts,) = items
        part = sorted(texts[self.share.slice_of(len(texts))], key=lambda text: text.side)
        records = []
        for side in ("doc", "query"):
            if of_side := [text.text for text in part if text.side == side]:
                records += self.model.reader.sides(of_side, side, self.length)[0]
        return {
            "pairs": torch.tensor(len(texts)),
            "student": pad(records, self.model.tokenizer.pad_token_id or 0),
            "vectors": torch.from_numpy(self.vectors.of([text.row for text in part])),
        }


def vector_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of vectors (N, H), over all N x H numbers. Source: Reimers and Gurevych 2020, equation 1.

    >>> float(vector_mse(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])))  # (9 + 4) / 2
    6.5
    """
    return F.mse_loss(student, teacher)


def vector_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over texts of 1 - cosine of vectors (N, H). It ignores the lengths of the vectors.

    >>> student, teacher = torch.tensor([[3.0, 4.0], [2.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    >>> round(float(vector_cosine(student, teacher)), 4)  # (0.2 + 0) / 2
    0.1
    """
    return (1.0 - F.cosine_similarity(student, teacher, dim=-1)).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"vector_mse": vector_mse, "vector_cosine": vector_cosine}


class VectorLearner(Learner):
    """The module that Trainer trains for vector losses."""

    def __init__(self, model: BertDot, losses: Mapping[str, float], width: int, *, share: Share = WHOLE) -> None:
        """Train the student `model` by `losses` (name -> weight) on teacher vectors of this `width`."""
        super().__init__(model, {}, share=share)
        self.weights = dict(losses)
        if model.width != width:
            self.projection = nn.Linear(model.width, width)
            nn.init.orthogonal_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)

    def _terms(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Return for each loss: its value over the whole batch, and the part with this process's gradients."""
        vectors: Tensor = cast(BertDot, self.student)(**batch["student"])
        count = int(batch["pairs"])
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = self.projection(vectors) if hasattr(self, "projection") else vectors
            return {name: self.shared_mean(LOSSES[name](vectors, batch["vectors"]), count) for name in self.weights}
