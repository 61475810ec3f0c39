"""BERT_DOT: one shared encoder for queries and documents, one vector a text, score = dot product.

Hofstätter et al. 2020 (arXiv 2010.02666): no projection, no normalisation, no markers. Pooling and normalisation are those
of the checkpoint, so that sentence-transformers models are read as what they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyserini_kd.models.tokens import part, two_sides

POOLINGS = ("cls", "mean")


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """How a text becomes a vector, beyond the weights. Lengths are tokens, special tokens included."""

    pooling: str = "cls"
    l2_norm: bool = False
    max_query_len: int = 32
    max_doc_len: int = 256
    query_prefix: str = ""
    doc_prefix: str = ""

    def __post_init__(self) -> None:
        """Check the pooling's name and the lengths."""
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {self.pooling!r}")
        if min(self.max_query_len, self.max_doc_len) < 3:
            raise ValueError("max_query_len and max_doc_len must be 3 tokens at least")


class BertDot(nn.Module):
    """A bi-encoder; `forward` keeps gradients, `inference.encode` does not."""

    architecture = "bert_dot"

    def __init__(self, encoder: Any, tokenizer: Any, settings: EncoderSettings) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.tokenizer = tokenizer
        self.settings = settings

    @property
    def width(self) -> int:
        """H: length of a vector."""
        return int(self.encoder.config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors float32 (N, H) of token ids (N, T)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        vectors = pool(states, attention_mask, self.settings.pooling)
        return F.normalize(vectors, dim=-1) if self.settings.l2_norm else vectors

    pair_batch = two_sides

    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Dot products float32 (P,) with gradients."""
        query_vecs, doc_vecs = self(**part(batch, "query_")), self(**part(batch, "doc_"))
        with torch.autocast(query_vecs.device.type, enabled=False):  # margins of sums around 100 need all of float32
            scores: Tensor = (query_vecs @ doc_vecs.T)[batch["pairs"][:, 0], batch["pairs"][:, 1]]
            return scores


def pool(states: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """Token states (N, T, H) -> vectors (N, H): the first token's state, or the mean over tokens that are not padding."""
    if pooling == "cls":
        return states[:, 0]
    mask = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
