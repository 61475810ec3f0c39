"""How a checkpoint reads texts: its tokenizer, maximum lengths and prefixes. No part of this needs torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pyserini_kd.models.checkpoint_folder import EncoderSettings
from pyserini_kd.models.tokens import Tokenizer, TokenRecord, tokenize
from pyserini_kd.storage.records import Record


@dataclasses.dataclass(frozen=True)
class PairSettings:
    """Settings of a cross-encoder: the maximum number of tokens of a pair."""

    max_len: int


@dataclasses.dataclass(frozen=True)
class Reader:
    """Turns the texts of queries and documents, or pairs of them, into token ids.

    Attributes:
        drops_first: documents lose their first token, because a query's tokens come before them (PreTTR).
    """

    tokenizer: Tokenizer
    settings: EncoderSettings | PairSettings
    drops_first: bool = False

    @property
    def lengths(self) -> tuple[int, int]:
        """Maximum tokens of a query and of a document; of a pair, twice, for a cross-encoder."""
        if isinstance(self.settings, PairSettings):
            return self.settings.max_len, self.settings.max_len
        return self.settings.max_query_len, self.settings.max_doc_len

    @property
    def pad_id(self) -> int:
        """Token id of padding."""
        return self.tokenizer.pad_token_id or 0

    def described(self) -> Record:
        """How the model reads and scores texts, for manifests and score stores."""
        return dataclasses.asdict(self.settings)

    def sides(self, texts: Sequence[str], kind: str, max_doc_len: int | None = None) -> tuple[list[TokenRecord], int]:
        """Token records of queries or documents with their prefix, length and [MASK] tokens, and how many were cut."""
        settings = self.settings
        assert isinstance(settings, EncoderSettings)
        if kind == "query":
            records, cut = tokenize(self.tokenizer, [settings.query_prefix + text for text in texts], settings.max_query_len)
            masks = [self.tokenizer.mask_token_id] * getattr(settings, "masks", 0)
            return [{"input_ids": [*record["input_ids"], *masks]} for record in records], cut
        if kind != "doc":
            raise ValueError(f"kind must be query or doc, not {kind!r}")
        length = min(max_doc_len or settings.max_doc_len, settings.max_doc_len)
        return tokenize(self.tokenizer, [settings.doc_prefix + text for text in texts], length)
