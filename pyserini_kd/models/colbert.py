"""ColBERT, late interaction: one vector a token; score = sum over query tokens of the best dot product with the document.

Khattab and Zaharia 2020, as Hofstätter et al. 2020 use it: [MASK] tokens are appended to every query and attended to, token
vectors are not normalised, every token counts ([CLS] and [SEP] included), and a projection is optional. As a reranker it can
also be read off any bi-encoder with mean pooling, whose token states are trained to add up to the text's vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyserini_kd.models.bert_dot import EncoderSettings
from pyserini_kd.models.tokens import late_pairs, part, two_sides


@dataclasses.dataclass(frozen=True)
class ColBertSettings(EncoderSettings):
    """Settings of a ColBERT; `pooling` has no meaning here."""

    masks: int = 0  # [MASK] tokens appended to every query, beyond max_query_len
    width: int | None = None  # of a token's vector, by a learned projection; None: the encoder's, without one

    def __post_init__(self) -> None:
        """Check the width."""
        super().__post_init__()
        if self.width is not None and self.width < 1:
            raise ValueError("width must be 1 at least")


class ColBert(nn.Module):
    """Token vectors from a shared encoder."""

    architecture = "colbert"

    def __init__(self, encoder: Any, tokenizer: Any, settings: ColBertSettings) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.tokenizer = tokenizer
        self.settings = settings
        hidden = int(encoder.config.hidden_size)
        self.head = nn.Linear(hidden, settings.width) if settings.width else None

    @property
    def width(self) -> int:
        """H: length of a token's vector."""
        return self.settings.width or int(self.encoder.config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token vectors float32 (N, T, H); zero where there is padding."""
        states: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.head is not None:
            states = self.head(states)
        states = states.float()
        if self.settings.l2_norm:
            states = F.normalize(states, dim=-1)
        return states * attention_mask.unsqueeze(-1)

    def late_scores(self, query_vecs: Tensor, query_mask: Tensor, doc_vecs: Tensor, doc_mask: Tensor) -> Tensor:
        """Scores float (Q, N) of token vectors (Q, T, H) and (N, D, H) with masks (Q, T) and (N, D).

        Document padding never wins the maximum, even where all similarities are negative; query padding adds nothing.
        """
        similarity = torch.einsum("qth,ndh->qntd", query_vecs, doc_vecs).masked_fill(~doc_mask.bool()[None, :, None, :], -1e4)
        return (similarity.amax(dim=-1) * query_mask[:, None, :]).sum(dim=-1)

    pair_batch = two_sides

    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """MaxSim float32 (P,) with gradients."""
        query_vecs, doc_vecs = self(**part(batch, "query_")), self(**part(batch, "doc_"))
        with torch.autocast(query_vecs.device.type, enabled=False):  # sums around 100 need all of float32
            return late_pairs(self.late_scores, batch, query_vecs, doc_vecs)
