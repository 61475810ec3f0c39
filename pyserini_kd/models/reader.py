"""How a checkpoint reads texts: its tokenizer, maximum lengths and prefixes. No part of this needs torch."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence

from pyserini_kd.models.checkpoint_folder import ColBertSettings, EncoderSettings
from pyserini_kd.models.tokens import Tokenizer, TokenRecord, plain_ids, tokenize
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
        if isinstance(settings, ColBertSettings) and settings.query_marker:
            return self._stanford(settings, texts, kind, max_doc_len)
        if kind == "query":
            records, cut = tokenize(self.tokenizer, [settings.query_prefix + text for text in texts], settings.max_query_len)
            masks = [self.tokenizer.mask_token_id] * getattr(settings, "masks", 0)
            return [{"input_ids": [*record["input_ids"], *masks]} for record in records], cut
        if kind != "doc":
            raise ValueError(f"kind must be query or doc, not {kind!r}")
        length = min(max_doc_len or settings.max_doc_len, settings.max_doc_len)
        return tokenize(self.tokenizer, [settings.doc_prefix + text for text in texts], length)

    def _stanford(
        self, settings: ColBertSettings, texts: Sequence[str], kind: str, max_doc_len: int | None
    ) -> tuple[list[TokenRecord], int]:
        """Token records as in Stanford's ColBERT. `counts` marks the tokens whose vectors are compared.

        The marker takes the place of a full stop before the text, so words behind it are tokenised as in a sentence.
        """
        is_query, words = kind == "query", self.tokenizer.get_vocab()
        prefix = settings.query_prefix if is_query else settings.doc_prefix
        longest = settings.max_query_len if is_query else min(max_doc_len or settings.max_doc_len, settings.max_doc_len)
        records, cut = tokenize(self.tokenizer, [f". {prefix}{text}" for text in texts], longest)
        marker = words[settings.query_marker if is_query else settings.doc_marker]
        plain = plain_ids(self.tokenizer, string.punctuation, longest) if settings.skip and not is_query else []
        skipped = {words.get(sign) for sign in string.punctuation if plain} | {one.ids[0] for one in plain if one.ids}
        made: list[TokenRecord] = []
        for record in records:
            ids = [record["input_ids"][0], marker, *record["input_ids"][2:]]
            masks = longest - len(ids) if is_query and settings.fill != "no" else 0
            attended = [1] * len(ids) + [int(settings.fill == "attended")] * masks
            counts = [int(token not in skipped) for token in ids] + [1] * masks
            ids += [self.tokenizer.mask_token_id] * masks
            made.append({"input_ids": ids, "attention_mask": attended, "counts": counts})
        return made, cut
