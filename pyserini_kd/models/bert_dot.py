"""BERT_DOT: one shared encoder for queries and documents, one vector per text, score = dot product.

Hofstätter et al. 2020 (arXiv 2010.02666): no projection, no normalisation, no markers. The checkpoint decides pooling and
normalisation, so sentence-transformers models keep theirs.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pyserini_kd.models.checkpoint_folder import EncoderSettings
from pyserini_kd.models.two_sides import TwoSides, part

__all__ = ["BertDot", "EncoderSettings", "pool"]


class BertDot(TwoSides):
    """A bi-encoder. `forward` keeps gradients; `Encoder.encode_docs` does not."""

    architecture = "bert_dot"

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors float32 (N, H) of token ids (N, T)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        vectors = pool(states, attention_mask, self.settings.pooling)
        return F.normalize(vectors, dim=-1) if self.settings.l2_norm else vectors

    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Dot products float32 (P,) of a `pair_batch`, with gradients."""
        query_vecs, doc_vecs = self(**part(batch, "query_")), self(**part(batch, "doc_"))
        with torch.autocast(query_vecs.device.type, enabled=False):  # sums around 100 need full float32 for exact margins
            scores: Tensor = (query_vecs @ doc_vecs.T)[batch["pairs"][:, 0], batch["pairs"][:, 1]]
            return scores


def pool(states: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """Pool token states (N, T, H) to vectors (N, H): the first token's state (cls), or the mean over non-padding tokens."""
    if pooling == "cls":
        return states[:, 0]
    mask = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
