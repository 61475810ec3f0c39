"""PreTTR: the lower layers read query and document separately, the upper layers together.

MacAvaney et al. 2020, as in Hofstätter et al. 2020. A document's states at the join layer do not depend on the query, so an
index can store them. Its positions must not depend on the query either: they start at `offset`, and queries are padded to it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pyserini_kd.models.checkpoint_folder import PreTtrSettings
from pyserini_kd.models.layers import layers_of
from pyserini_kd.models.tokens import Tokenizer
from pyserini_kd.models.two_sides import TwoSides, part
from pyserini_kd.storage.errors import InputError

__all__ = ["PreTtr", "PreTtrSettings"]

MODEL_TYPES = ("bert", "distilbert")  # their positions start at 0, and their layers take states and a mask


class PreTtr(TwoSides):
    """A BERT- or DistilBERT-like encoder split at `join_layer`; one linear unit without bias reads the query's [CLS]."""

    architecture = "prettr"
    joins = True
    settings: PreTtrSettings
    head: nn.Linear

    def __init__(self, encoder: nn.Module, tokenizer: Tokenizer, settings: PreTtrSettings) -> None:
        super().__init__(encoder, tokenizer, settings)
        config = self.encoder.config
        if config.model_type not in MODEL_TYPES:
            raise InputError(f"prettr needs a {' or '.join(MODEL_TYPES)} encoder, not {config.model_type}")
        count = len(layers_of(encoder))
        if not 0 <= settings.join_layer < count:  # one layer at least must join query and document
            raise InputError(f"join_layer must lie between 0 and {count - 1}, not {settings.join_layer}")
        window = int(config.max_position_embeddings)
        if self.offset + settings.max_doc_len > window:
            raise ValueError(f"a query of {self.offset} and a document of {settings.max_doc_len} tokens do not fit into the "
                             f"encoder's {window} positions")  # fmt: skip
        self.head = nn.Linear(self.width, 1, bias=False)

    @property
    def offset(self) -> int:
        """Number of positions reserved for the query; a document starts after them."""
        return self.settings.max_query_len + self.settings.masks

    def forward(self, input_ids: Tensor, attention_mask: Tensor, kind: str) -> Tensor:
        """States float (N, T, H) of queries or documents at the join layer. Documents come without their [CLS]."""
        first = 0 if kind == "query" else self.offset
        positions = torch.arange(first, first + input_ids.shape[1], device=input_ids.device)[None]
        extra = {}
        if hasattr(self.encoder.embeddings, "token_type_embeddings"):
            extra["token_type_ids"] = torch.full_like(input_ids, int(kind == "doc"))
        states = self.encoder.embeddings(input_ids=input_ids, position_ids=positions, **extra)
        return self.run_layers(states, attention_mask, slice(0, self.settings.join_layer))

    def upper(self, query_states: Tensor, query_mask: Tensor, doc_states: Tensor, doc_mask: Tensor) -> Tensor:
        """Scores float32 (P,) from states at the join layer: queries (P, T, H), documents (P, D, H), each with its mask."""
        states = torch.cat([query_states, doc_states], dim=1)
        mask = torch.cat([query_mask, doc_mask], dim=1)
        states = self.run_layers(states, mask, slice(self.settings.join_layer, None))
        with torch.autocast(states.device.type, enabled=False):  # bf16 scores have two decimals and would tie
            scores: Tensor = self.head(states[:, 0].to(self.head.weight.dtype)).float()[:, 0]
        return scores

    def run_layers(self, states: Tensor, attention_mask: Tensor, which: slice) -> Tensor:
        """Run the layers `which` on states (N, T, H) with a mask (N, T)."""
        from transformers.masking_utils import create_bidirectional_mask

        mask = create_bidirectional_mask(config=self.encoder.config, inputs_embeds=states, attention_mask=attention_mask)
        for layer in layers_of(self.encoder)[which]:
            states = layer(states, mask)
        return states

    def pair_batch(
        self, queries: Sequence[str], docs: Sequence[str], pairs: Sequence[tuple[int, int]], max_doc_len: int | None = None
    ) -> dict[str, Tensor]:
        """Token tensors of queries, padded to `offset`, and documents, without [CLS]; `pairs` (P, 2) of rows."""
        batch = super().pair_batch(queries, docs, pairs, max_doc_len)
        for name in ("query_input_ids", "query_attention_mask"):
            pad_id = (self.tokenizer.pad_token_id or 0) if name == "query_input_ids" else 0
            missing = self.offset - batch[name].shape[1]
            batch[name] = torch.nn.functional.pad(batch[name], (0, missing), value=pad_id)
        for name in ("doc_input_ids", "doc_attention_mask"):
            batch[name] = batch[name][:, 1:]
        return batch

    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Raw scores float32 (P,) with gradients. The lower layers run once per query and once per document."""
        query_states = self(**part(batch, "query_"), kind="query")
        doc_states = self(**part(batch, "doc_"), kind="doc")
        q, d = batch["pairs"][:, 0], batch["pairs"][:, 1]
        return self.upper(query_states[q], batch["query_attention_mask"][q], doc_states[d], batch["doc_attention_mask"][d])
