"""ColBERT, late interaction: one vector per token; score = sum over query tokens of the best dot product with the document.

Khattab and Zaharia 2020, as in Hofstätter et al. 2020: [MASK] tokens are appended to every query and attended to, token
vectors are not normalised, every token counts ([CLS] and [SEP] included), and a projection is optional. Checkpoints of the
authors' own code differ: unit vectors, a marker behind [CLS], queries filled with [MASK] tokens that count but are not attended
to, and punctuation of documents that does not count. Any bi-encoder with
mean pooling also works as a ColBERT reranker, because its token states are trained to add up to the text's vector.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyserini_kd.models.checkpoint_folder import ColBertSettings
from pyserini_kd.models.tokens import Tokenizer
from pyserini_kd.models.two_sides import LateInteraction

__all__ = ["ColBert", "ColBertSettings"]


class ColBert(LateInteraction):
    """A late-interaction model with one encoder for queries and documents."""

    architecture = "colbert"
    settings: ColBertSettings

    def __init__(self, encoder: nn.Module, tokenizer: Tokenizer, settings: ColBertSettings) -> None:
        super().__init__(encoder, tokenizer, settings)
        self.head = nn.Linear(super().width, settings.width) if settings.width else None

    @property
    def width(self) -> int:
        """H: length of a token vector."""
        return self.settings.width or super().width

    def forward(self, input_ids: Tensor, attention_mask: Tensor, counts: Tensor | None = None, kind: str = "query") -> Tensor:
        """Token vectors float32 (N, T, H), zeros where a token does not count (`counts`; None: at padding).

        `kind` is ignored: queries and documents share the encoder.
        """
        states: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.head is not None:
            states = self.head(states)
        states = states.float()
        if self.settings.l2_norm:
            states = F.normalize(states, dim=-1)
        return states * (attention_mask if counts is None else counts).unsqueeze(-1)

    def late_scores(self, query_vecs: Tensor, query_mask: Tensor, doc_vecs: Tensor, doc_mask: Tensor) -> Tensor:
        """Scores float (Q, N) of token vectors (Q, T, H) and (N, D, H) with masks (Q, T) and (N, D).

        Document padding never wins the maximum, even if all similarities are negative. Query padding adds 0.
        """
        similarity = torch.einsum("qth,ndh->qntd", query_vecs, doc_vecs).masked_fill(~doc_mask.bool()[None, :, None, :], -1e4)
        return (similarity.amax(dim=-1) * query_mask[:, None, :]).sum(dim=-1)
