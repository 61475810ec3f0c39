"""Base classes of architectures that run queries and documents separately: all except the cross-encoder."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyserini_kd.models.checkpoint_folder import EncoderSettings
from pyserini_kd.models.reader import Reader
from pyserini_kd.models.tokens import Tokenizer, pad


class TwoSides(nn.Module, ABC):
    """Base of an architecture: a tokenizer, settings and, except for a TK, an encoder of transformers.

    Attributes:
        architecture: its name.
        joins: whether upper layers join a document's states with those of a query.
    """

    architecture: ClassVar[str]
    joins: ClassVar[bool] = False
    settings: EncoderSettings
    head: nn.Linear | None

    def __init__(self, encoder: nn.Module | None, tokenizer: Tokenizer, settings: EncoderSettings) -> None:
        super().__init__()
        if encoder is not None:  # a TK has none
            self.encoder: Any = encoder
        self.tokenizer = tokenizer
        self.settings = settings
        self.head = None

    @property
    def width(self) -> int:
        """H: length of a text vector or a token vector."""
        return int(self.encoder.config.hidden_size)

    @property
    def reader(self) -> Reader:
        """Reads texts: it turns them into the model's tokens."""
        return Reader(self.tokenizer, self.settings, self.joins)

    def pair_batch(
        self, queries: Sequence[str], docs: Sequence[str], pairs: Sequence[tuple[int, int]], max_doc_len: int | None = None
    ) -> dict[str, Tensor]:
        """Tokenise each query and document once: `query_*` (Q, T), `doc_*` (N, D), and `pairs` int64 (P, 2) of rows."""
        batch = {"pairs": torch.tensor(list(pairs), dtype=torch.long).reshape(-1, 2)}
        for kind, texts in (("query", queries), ("doc", docs)):
            records, _ = self.reader.sides(texts, kind, max_doc_len)
            padded = pad(records, self.tokenizer.pad_token_id or 0)
            batch |= {f"{kind}_{name}": tensor for name, tensor in padded.items()}
        return batch

    @abstractmethod
    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Scores float32 (P,) of a `pair_batch`, with gradients."""


class LateInteraction(TwoSides):
    """A model with one vector per token. It compares the token vectors of query and document at the end."""

    @abstractmethod
    def late_scores(self, query_vecs: Tensor, query_mask: Tensor, doc_vecs: Tensor, doc_mask: Tensor) -> Tensor:
        """Scores float32 (Q, N) of token vectors (Q, T, H) and (N, D, H) with masks (Q, T) and (N, D)."""

    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Scores float32 (P,) with gradients. Each query is compared only with its own documents."""
        query_vecs = self(**part(batch, "query_"), kind="query")
        doc_vecs = self(**part(batch, "doc_"), kind="doc")
        pairs = batch["pairs"]
        query_mask, doc_mask = (batch.get(f"{kind}_counts", batch[f"{kind}_attention_mask"]) for kind in ("query", "doc"))
        with torch.autocast(query_vecs.device.type, enabled=False):  # sums around 100 need full float32
            if len(pairs) == len(query_vecs) * len(doc_vecs):  # every pair is in the batch
                return self.late_scores(query_vecs, query_mask, doc_vecs, doc_mask)[pairs[:, 0], pairs[:, 1]]
            places = [(pairs[:, 0] == row).nonzero()[:, 0] for row in range(len(query_vecs))]
            scores = []
            for row, own in enumerate(places):
                query, docs = slice(row, row + 1), pairs[own, 1]
                scores.append(self.late_scores(query_vecs[query], query_mask[query], doc_vecs[docs], doc_mask[docs])[0])
            return torch.cat(scores)[torch.cat(places).argsort()]


def part(batch: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a batch whose names start with `prefix`, named without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in batch.items() if name.startswith(prefix)}
