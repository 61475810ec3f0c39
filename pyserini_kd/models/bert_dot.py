"""BERT_DOT: one shared encoder for queries and documents, one vector per text, score = dot product.

Hofstätter et al. 2020 (arXiv 2010.02666): no projection, no normalisation, no markers. The checkpoint decides pooling and
normalisation, so sentence-transformers models keep theirs.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pyserini_kd.models import pooling
from pyserini_kd.models.checkpoint_folder import EncoderSettings
from pyserini_kd.models.tokens import Tokenizer
from pyserini_kd.models.two_sides import TwoSides, part

__all__ = ["BertDot", "EncoderSettings"]


class BertDot(TwoSides):
    """A bi-encoder. `forward` keeps gradients; `Encoder.encode_docs` does not."""

    architecture = "bert_dot"

    def __init__(
        self, encoder: nn.Module, tokenizer: Tokenizer, settings: EncoderSettings, dense: Sequence[pooling.Dense] = ()
    ) -> None:
        """`dense` are layers between pooling and normalisation; they learn like the encoder."""
        super().__init__(encoder, tokenizer, settings)
        self.weights = nn.ParameterList(layer.weight for layer in dense)
        self.biases = nn.ParameterDict({str(n): layer.bias for n, layer in enumerate(dense) if layer.bias is not None})
        self.activations = [layer.activation for layer in dense]

    @property
    def dense(self) -> list[pooling.Dense]:
        """The layers between pooling and normalisation."""
        numbered = enumerate(zip(self.weights, self.activations, strict=True))
        return [pooling.Dense(weight, dict(self.biases).get(str(n)), activation) for n, (weight, activation) in numbered]

    @property
    def width(self) -> int:
        """H: length of a text vector."""
        return pooling.width(super().width, self.settings.pooling, self.dense)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors float32 (N, H) of token ids (N, T)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        with torch.autocast(states.device.type, enabled=False):
            vectors: Tensor = pooling.text_vectors(
                torch, states, attention_mask.float(), self.settings.pooling, self.dense, self.settings.l2_norm
            )
        return vectors

    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Dot products float32 (P,) of a `pair_batch`, with gradients."""
        query_vecs, doc_vecs = self(**part(batch, "query_")), self(**part(batch, "doc_"))
        with torch.autocast(query_vecs.device.type, enabled=False):  # sums around 100 need full float32 for exact margins
            scores: Tensor = (query_vecs @ doc_vecs.T)[batch["pairs"][:, 0], batch["pairs"][:, 1]]
            return scores
