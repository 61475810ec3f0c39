"""SPLADE: a text is a sparse vector over the vocabulary; score = dot product. Formal et al. 2021 (arXiv 2109.10086).

A masked language model gives a logit for each token of the text and each word of the vocabulary. The weight of a word is
log(1 + relu(logit)), and its largest value over the tokens counts (SPLADE-max; the first SPLADE, arXiv 2107.05720, adds them).
The logits of a batch, (texts, tokens, vocabulary), would be gigabytes: they are computed for some words at a time.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyserini_kd.models.checkpoint_folder import SpladeSettings, settings_with
from pyserini_kd.models.layers import keep_layers
from pyserini_kd.models.tokens import Tokenizer
from pyserini_kd.models.two_sides import TwoSides, part
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import Record

logger = logging.getLogger(__name__)

__all__ = ["Splade", "SpladeSettings", "read"]

AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 27}  # logits held at a time; 16 MB fit into the caches of a CPU


class Splade(TwoSides):
    """Sparse vectors from a masked language model; V is the size of its vocabulary."""

    architecture = "splade"
    settings: SpladeSettings

    def __init__(self, network: Any, tokenizer: Tokenizer, settings: SpladeSettings) -> None:
        """Take a masked language model of transformers, BERT's or DistilBERT's."""
        super().__init__(network.base_model, tokenizer, settings)
        self.network = (network,)  # in a tuple, which hides from torch what it shares with the parts below
        self.transform, decoder = head_of(network)
        self.bias = decoder.bias
        embeddings = network.get_input_embeddings().weight
        self.words = None if decoder.weight is embeddings else decoder.weight  # None: those of the input, as mostly

    @property
    def width(self) -> int:
        """V: length of a text's vector."""
        return len(self.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors float32 (N, V) of token ids (N, T)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        words = self.encoder.get_input_embeddings().weight if self.words is None else self.words
        states, mask = self.transform(states), attention_mask.bool()
        if self.settings.strategy == "max":
            logits: Tensor = MaxLogits.apply(states, words, self.bias, mask, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
            return self._weights(logits)
        step, total = _at_once(states), []
        for start in range(0, self.width, step):
            some = slice(start, start + step)
            total.append(checkpoint(self._summed, states, words[some], self.bias[some], mask, use_reentrant=False))
        return torch.cat(total, dim=1)

    def _summed(self, states: Tensor, words: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        weights = self._weights(F.linear(states, words, bias).float())
        return (weights * mask.unsqueeze(-1)).sum(dim=1)

    def _weights(self, logits: Tensor) -> Tensor:
        """log(1 + relu(logit)); with `log1p_relu` the logarithm is taken twice (OpenSearch's models, arXiv 2504.14839)."""
        weights = torch.log1p(torch.relu(logits))
        return torch.log1p(weights) if self.settings.activation == "log1p_relu" else weights

    def vectors(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Vectors (Q, V) of the queries of a batch, and (N, V) of its documents, with gradients."""
        return self(**part(batch, "query_")), self(**part(batch, "doc_"))

    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Dot products float32 (P,) with gradients."""
        return compare(*self.vectors(batch), batch["pairs"])


def compare(query_vecs: Tensor, doc_vecs: Tensor, pairs: Tensor) -> Tensor:
    """Dot products float32 (P,) of pairs (row of a query, row of a document)."""
    with torch.autocast(query_vecs.device.type, enabled=False):
        return (query_vecs @ doc_vecs.T)[pairs[:, 0], pairs[:, 1]]


def _at_once(states: Tensor) -> int:
    """Words of the vocabulary whose logits are computed together for states (N, T, H)."""
    return max(1, AT_ONCE.get(states.device.type, AT_ONCE["cpu"]) // (len(states) * states.shape[1]))


class MaxLogits(torch.autograd.Function):
    """The largest logit of each word over the tokens of a text; neither pass holds the logits of all tokens.

    The gradient of a word goes to the token where its logit was largest. Most words have none, behind a relu: the backward
    pass works on the others alone.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, words: Tensor, bias: Tensor, mask: Tensor, learns: bool) -> Tensor:
        """Largest logits float32 (N, V) of states (N, T, H), words (V, H), bias (V,) and a mask bool (N, T).

        `learns`: a backward pass will follow.
        """
        best, places, padded = [], [], not bool(mask.all())
        step = _at_once(states)
        for start in range(0, len(words), step):
            logits = F.linear(states, words[start : start + step], bias[start : start + step])
            logits = logits.masked_fill_(~mask.unsqueeze(-1), -torch.inf) if padded else logits
            if learns:
                found, where = logits.max(dim=1)
                places.append(where.int())
            else:
                found = logits.amax(dim=1)  # twice as fast
            best.append(found.to(torch.promote_types(bias.dtype, torch.float32)))
        if places:
            ctx.save_for_backward(states, words, torch.cat(places, dim=1))
        return torch.cat(best, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of states, words and bias."""
        (gradient,) = gradients
        states, words, places = ctx.saved_tensors
        texts, length, width = states.shape
        rows, terms = gradient.nonzero(as_tuple=True)
        tokens = rows * length + places[rows, terms]
        shape = (texts * length, len(words))
        sparse = torch.sparse_coo_tensor(torch.stack([tokens, terms]), gradient[rows, terms], shape, check_invariants=False)
        flat = states.reshape(-1, width).to(gradient.dtype)
        to_states = torch.sparse.mm(sparse, words.to(gradient.dtype)).view(states.shape)
        to_words = torch.sparse.mm(sparse.t(), flat)
        return to_states.to(states.dtype), to_words.to(words.dtype), gradient.sum(dim=0), None, None


def head_of(network: Any) -> tuple[nn.Module, nn.Linear]:
    """What a masked language model puts on its last states: a transformation, and a product with the vocabulary."""
    with contextlib.suppress(AttributeError):
        return network.cls.predictions.transform, network.cls.predictions.decoder
    with contextlib.suppress(AttributeError):
        parts = network.vocab_transform, network.activation, network.vocab_layer_norm
        return nn.Sequential(*parts), network.vocab_projector
    raise InputError(f"a {type(network).__name__} is no masked language model like BERT's or DistilBERT's")


def read(folder: Path, tokenizer: Tokenizer, layers: tuple[int, ...] | None, overrides: Record) -> Splade:
    """The SPLADE of a folder, with some of its layers or (None) all, and with settings that replace the folder's.

    A checkpoint that is no masked language model gets a new head, which passes states through at first.

    Raises:
        InputError: it is not like BERT or DistilBERT, or a length is beyond its window.
    """
    from transformers import AutoModelForMaskedLM

    network, info = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    transform, decoder = head_of(network)
    first = next(module for module in transform.modules() if isinstance(module, nn.Linear))
    if any("transform" in name for name in info["missing_keys"]):
        logger.warning("%s is no masked language model: its head is new, and has to be trained", folder)
        with torch.no_grad():
            nn.init.eye_(first.weight)
            nn.init.zeros_(first.bias)
            nn.init.zeros_(decoder.bias)
    keep_layers(network.base_model, layers)
    window = int(network.config.max_position_embeddings)
    settings = settings_with(folder, SpladeSettings, min(window, tokenizer.model_max_length), overrides)
    if max(settings.max_doc_len, settings.max_query_len) > window:
        raise InputError(f"{folder} reads {window} tokens at most; a longer length was asked for")
    return Splade(network, tokenizer, settings)
