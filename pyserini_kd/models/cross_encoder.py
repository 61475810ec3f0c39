"""Cross-encoder (BERT_CAT): query and document in one sequence, one logit per pair. Nogueira and Cho 2019."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyserini_kd.models.reader import PairSettings, Reader
from pyserini_kd.models.tokens import Tokenizer, pad, tokenize


class CrossEncoder(nn.Module):
    """A sequence classifier with one raw logit. Pairs are cut longest-first to `max_len` tokens."""

    architecture = "cross_encoder"

    def __init__(self, classifier: nn.Module, tokenizer: Tokenizer, max_len: int) -> None:
        super().__init__()
        self.classifier: Any = classifier
        head = getattr(*_head(classifier)) if hasattr(classifier, "classifier") else None
        if isinstance(head, nn.Linear):  # transformers' classifier; ours keeps full precision itself
            head.register_forward_hook(_full_precision)
        self.tokenizer = tokenizer
        self.max_len = max_len

    @property
    def reader(self) -> Reader:
        """Reads pairs: it turns them into the model's tokens."""
        return Reader(self.tokenizer, PairSettings(self.max_len))

    def forward(self, **batch: Tensor) -> Tensor:
        """Raw logits float32 (P,) of tokenised pairs."""
        logits: Tensor = self.classifier(**batch).logits.float()
        return logits[:, 0]

    def pair_batch(
        self, queries: Sequence[str], docs: Sequence[str], pairs: Sequence[tuple[int, int]], max_doc_len: int | None = None
    ) -> dict[str, Tensor]:
        """Token tensors of P pairs (query row, document row); `max_doc_len` limits the whole pair."""
        max_len = min(max_doc_len or self.max_len, self.max_len)
        texts, others = [queries[q] for q, _ in pairs], [docs[d] for _, d in pairs]
        records, _ = tokenize(self.tokenizer, texts, max_len, others)
        return pad(records, self.tokenizer.pad_token_id or 0)

    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Raw logits float32 (P,) with gradients."""
        scores: Tensor = self(**batch)
        return scores


def _head(classifier: Any) -> tuple[Any, str]:
    """(owner, attribute) of the last linear layer of a Hugging Face classifier: `classifier` or `classifier.out_proj`."""
    head = classifier.classifier
    return (head, "out_proj") if hasattr(head, "out_proj") else (classifier, "classifier")


def _full_precision(layer: nn.Linear, given: tuple[Tensor], logits: Tensor) -> Tensor:
    """Recompute logits in the weights' precision if autocast rounded them: bf16 logits have two decimals and would tie."""
    if logits.dtype is layer.weight.dtype:
        return logits
    with torch.autocast(logits.device.type, enabled=False):
        return nn.functional.linear(given[0].to(layer.weight.dtype), layer.weight, layer.bias)


def fold_two_classes(classifier: Any) -> None:
    """Replace a two-class head in place by one logit, z1 - z0. It orders pairs as the probability of class 1 does."""
    owner, name = _head(classifier)
    linear = getattr(owner, name)
    folded = nn.Linear(linear.in_features, 1, bias=linear.bias is not None)
    with torch.no_grad():
        folded.weight.copy_(linear.weight[1:2] - linear.weight[0:1])
        if linear.bias is not None:
            folded.bias.copy_(linear.bias[1:2] - linear.bias[0:1])
    setattr(owner, name, folded)
    classifier.config.num_labels = 1
    classifier.num_labels = 1
