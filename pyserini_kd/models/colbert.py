"""ColBERT, late interaction: one vector a token; score = sum over query tokens of the best dot product with the document.

Khattab and Zaharia 2020. As a reranker it can be read off any bi-encoder checkpoint with mean pooling, whose token states
are trained to add up to the text's vector; token vectors are then L2-normalised.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyserini_kd.models.bert_dot import EncoderSettings


class ColBert(nn.Module):
    """Token vectors from a shared encoder; every token counts, [CLS] and [SEP] included."""

    architecture = "colbert"

    def __init__(self, encoder: Any, tokenizer: Any, settings: EncoderSettings) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.tokenizer = tokenizer
        self.settings = settings

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token vectors float32 (N, T, H); zero where there is padding."""
        states: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        if self.settings.l2_norm:
            states = F.normalize(states, dim=-1)
        return states * attention_mask.unsqueeze(-1)


def max_sim(query_vecs: Tensor, doc_vecs: Tensor, doc_mask: Tensor) -> Tensor:
    """Late-interaction scores of one query with N documents.

    query_vecs float (T, H), doc_vecs float (N, D, H), doc_mask bool (N, D) -> float (N,). Document padding never wins the
    maximum, even where all similarities are negative.

    >>> q = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> d = torch.tensor([[[2.0, 0.0], [0.0, -3.0], [0.0, 0.0]]])
    >>> max_sim(q, d, torch.tensor([[True, True, False]]))  # max(2, 0) + max(0, -3)
    tensor([2.])
    """
    similarity = torch.einsum("th,ndh->ntd", query_vecs, doc_vecs)
    return similarity.masked_fill(~doc_mask[:, None, :], float("-inf")).amax(dim=-1).sum(dim=-1)
