"""TK: word vectors, a small Transformer, and kernels over the cosine matrix of query and document.

Hofstätter et al., ECAI 2020, in the form of Hofstätter et al. 2020 (arXiv 2010.02666): natural logarithm, one branch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyserini_kd.models.bert_dot import EncoderSettings
from pyserini_kd.models.tokens import late_pairs, part, two_sides

MU = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, -0.1, -0.3, -0.5, -0.7, -0.9)
SIGMA = 0.1
DOC_POSITION = 500  # where a document's positions begin; a query's begin at 0


@dataclasses.dataclass(frozen=True)
class TkSettings(EncoderSettings):
    """Settings of a TK; `pooling`, `l2_norm` have no meaning here."""

    layers: int = 2
    heads: int = 10
    feed_forward: int = 300

    def __post_init__(self) -> None:
        """Check that there are some of each."""
        super().__post_init__()
        if min(self.layers, self.heads, self.feed_forward) < 1:
            raise ValueError("layers, heads and feed_forward must be 1 at least")


class Tk(nn.Module):
    """Contextualised word vectors, compared by 11 kernels."""

    architecture = "tk"

    def __init__(self, embeddings: Tensor, tokenizer: Any, settings: TkSettings) -> None:
        """Start from word vectors float (V, H), which are trained too."""
        super().__init__()
        width = embeddings.shape[1]
        if width % settings.heads:
            raise ValueError(f"{settings.heads} attention heads do not divide word vectors of {width}")
        self.tokenizer = tokenizer
        self.settings = settings
        self.embeddings = nn.Embedding.from_pretrained(embeddings.clone(), freeze=False)
        layer = nn.TransformerEncoderLayer(width, settings.heads, settings.feed_forward, dropout=0.0, batch_first=True)
        self.context = nn.TransformerEncoder(layer, settings.layers, enable_nested_tensor=False)
        self.mix = nn.Parameter(torch.tensor(0.5))
        self.gamma = nn.Parameter(torch.ones(len(MU)))
        self.head = nn.Linear(len(MU), 1, bias=False)
        nn.init.uniform_(self.head.weight, -0.014, 0.014)

    @property
    def width(self) -> int:
        """H: length of a word's vector."""
        return int(self.embeddings.embedding_dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, kind: str = "query") -> Tensor:
        """Contextualised vectors float32 (N, T, H): mix x word + (1 - mix) x context."""
        words = self.embeddings(input_ids)
        first = DOC_POSITION if kind == "doc" else 0
        states = words + positions(words.shape[1], self.width, first).to(words)
        absent = (attention_mask == 0) & attention_mask.any(dim=1, keepdim=True)  # or a text without words is NaN
        states = self.context(states, src_key_padding_mask=absent)
        mixed: Tensor = (self.mix * words + (1 - self.mix) * states).float()
        return mixed * attention_mask.unsqueeze(-1)

    def late_scores(self, query_vecs: Tensor, query_mask: Tensor, doc_vecs: Tensor, doc_mask: Tensor) -> Tensor:
        """Scores float32 (Q, N) of word vectors (Q, T, H) and (N, D, H) with masks (Q, T) and (N, D)."""
        queries, docs = F.normalize(query_vecs, dim=-1), F.normalize(doc_vecs, dim=-1)
        rows = [self._kernel_scores(query, mask, docs, doc_mask) for query, mask in zip(queries, query_mask, strict=True)]
        return torch.stack(rows)

    def _kernel_scores(self, query: Tensor, query_mask: Tensor, docs: Tensor, doc_mask: Tensor) -> Tensor:
        """Scores (N,) of one query (T, H) with documents (N, D, H); all of unit length."""
        cosines = torch.einsum("th,ndh->ntd", query, docs)
        kernels = torch.exp(-((cosines.unsqueeze(-1) - cosines.new_tensor(MU)) ** 2) / (2 * SIGMA**2))  # (N, T, D, 11)
        summed = (kernels * doc_mask[:, None, :, None]).sum(dim=2) * self.gamma
        logs = torch.log(summed.clamp(min=1e-10)) * query_mask[None, :, None]
        scores: Tensor = self.head(logs.sum(dim=1))[:, 0]
        return scores

    pair_batch = two_sides

    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Scores float32 (P,) with gradients."""
        query_vecs = self(**part(batch, "query_"), kind="query")
        doc_vecs = self(**part(batch, "doc_"), kind="doc")
        with torch.autocast(query_vecs.device.type, enabled=False):
            return late_pairs(self.late_scores, batch, query_vecs, doc_vecs)


def positions(length: int, width: int, first: int = 0) -> Tensor:
    """Sinusoidal position vectors float32 (T, H): sines in the first half, cosines in the second, timescales 1 to 10,000.

    >>> positions(2, 4)[0].tolist(), round(float(positions(2, 4)[1, 0]), 4)  # sin(0), cos(0); sin(1)
    ([0.0, 0.0, 1.0, 1.0], 0.8415)
    """
    half = width // 2
    timescales = torch.exp(-math.log(10_000.0) * torch.arange(half) / max(half - 1, 1))
    angles = torch.arange(first, first + length)[:, None] * timescales[None]
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))
