"""SPLADE: one sparse vector over the vocabulary per text; score = dot product. Formal et al. 2021 (arXiv 2109.10086).

A masked language model computes a logit for each token of the text and each term of the vocabulary. The weight of a term is the
maximum of log(1 + relu(logit)) over the tokens (SPLADE-max), or the sum over the tokens (SPLADE, arXiv 2107.05720). The logits
of a batch (texts, tokens, vocabulary) can take gigabytes, so they are computed for a slice of the vocabulary at a time.
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

from pyserini_kd.models import backbone, sentence_folder
from pyserini_kd.models.checkpoint_folder import SpladeSettings, settings_with
from pyserini_kd.models.layers import keep_layers
from pyserini_kd.models.tokens import Tokenizer
from pyserini_kd.models.two_sides import TwoSides, part
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import Record

logger = logging.getLogger(__name__)

__all__ = ["Splade", "SpladeSettings", "read"]

AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 27}  # logits computed at a time; 16 MB fit into the caches of a CPU


class Splade(TwoSides):
    """A SPLADE with one masked language model for queries and documents; V is the size of its vocabulary."""

    architecture = "splade"
    settings: SpladeSettings

    def __init__(self, network: Any, tokenizer: Tokenizer, settings: SpladeSettings) -> None:
        """`network` is a masked language model of transformers for BERT or DistilBERT."""
        super().__init__(network.base_model, tokenizer, settings)
        self.network = (network,)  # a tuple hides it from torch, because the parts below share its weights
        self.transform, decoder = head_of(network)
        self.bias = decoder.bias
        embeddings = network.get_input_embeddings().weight
        self.words = None if decoder.weight is embeddings else decoder.weight  # None: the input embeddings

    @property
    def width(self) -> int:
        """V: length of a text vector."""
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
            terms = slice(start, start + step)
            total.append(checkpoint(self._sum, states, words[terms], self.bias[terms], mask, use_reentrant=False))
        return torch.cat(total, dim=1)

    def _sum(self, states: Tensor, words: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        """Sum of weights (N, V) over the tokens, for a slice of the vocabulary."""
        weights = self._weights(F.linear(states, words, bias).float())
        return (weights * mask.unsqueeze(-1)).sum(dim=1)

    def _weights(self, logits: Tensor) -> Tensor:
        """log(1 + relu(logit)). The activation `log1p_relu` applies log(1 + x) twice (OpenSearch, arXiv 2504.14839)."""
        weights = torch.log1p(torch.relu(logits))
        return torch.log1p(weights) if self.settings.activation == "log1p_relu" else weights

    def vectors(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Vectors (Q, V) of the queries and (N, V) of the documents of a batch, with gradients."""
        return self(**part(batch, "query_")), self(**part(batch, "doc_"))

    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Dot products float32 (P,) with gradients."""
        return compare(*self.vectors(batch), batch["pairs"])


def compare(query_vecs: Tensor, doc_vecs: Tensor, pairs: Tensor) -> Tensor:
    """Dot products float32 (P,) of pairs (row of a query, row of a document)."""
    with torch.autocast(query_vecs.device.type, enabled=False):
        return (query_vecs @ doc_vecs.T)[pairs[:, 0], pairs[:, 1]]


def _at_once(states: Tensor) -> int:
    """Number of terms whose logits are computed together for states (N, T, H)."""
    return max(1, AT_ONCE.get(states.device.type, AT_ONCE["cpu"]) // (len(states) * states.shape[1]))


class MaxLogits(torch.autograd.Function):
    """Maximum logit of each term over the tokens of a text. Neither pass stores the logits of all tokens.

    The gradient of a term goes to the token with the maximum logit. After a relu, the gradient of most terms is zero. The
    backward pass computes only the nonzero gradients.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, words: Tensor, bias: Tensor, mask: Tensor, learns: bool) -> Tensor:
        """Maximum logits float32 (N, V) of states (N, T, H), words (V, H), bias (V,) and a mask bool (N, T).

        `learns` says that a backward pass follows.
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
    """The head of a masked language model: a transformation of the last states, and a projection to the vocabulary."""
    with contextlib.suppress(AttributeError):
        return network.cls.predictions.transform, network.cls.predictions.decoder
    with contextlib.suppress(AttributeError):
        parts = network.vocab_transform, network.activation, network.vocab_layer_norm
        return nn.Sequential(*parts), network.vocab_projector
    raise InputError(f"{type(network).__name__} has no language model head like BERT or DistilBERT; use another checkpoint")


def read(folder: Path, tokenizer: Tokenizer, layers: tuple[int, ...] | None, overrides: Record) -> Splade:
    """Read a SPLADE from a folder with the given layers (None: all); `overrides` replace settings of the folder.

    A checkpoint without a language model head gets a new head. The new head starts as the identity.

    Raises:
        InputError: the model is not a BERT or DistilBERT, or a requested length exceeds its window.
    """
    from transformers import AutoModelForMaskedLM

    files = sentence_folder.root(folder)
    network, info = AutoModelForMaskedLM.from_pretrained(files, dtype=torch.float32, output_loading_info=True)
    transform, decoder = head_of(network)
    first = next(module for module in transform.modules() if isinstance(module, nn.Linear))
    new_head = any("transform" in name for name in info["missing_keys"])
    backbone.check_complete(folder, network, info["missing_keys"], new_head=new_head)
    if new_head:
        logger.warning("%s has no language model head; the new head needs training", folder)
        with torch.no_grad():
            nn.init.eye_(first.weight)
            nn.init.zeros_(first.bias)
            nn.init.zeros_(decoder.bias)
    keep_layers(network.base_model, layers)
    window = int(network.config.max_position_embeddings)
    settings = settings_with(folder, SpladeSettings, min(window, tokenizer.model_max_length), overrides)
    if max(settings.max_doc_len, settings.max_query_len) > window:
        raise InputError(f"{folder} reads at most {window} tokens; choose a shorter maximum length")
    return Splade(network, tokenizer, settings)
