"""Cross-encoder (BERT_CAT): query and document in one sequence, one logit a pair. Nogueira and Cho 2019."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class CrossEncoder(nn.Module):
    """A sequence classifier with one raw logit; `max_len` tokens a pair, cut longest-first."""

    architecture = "cross_encoder"

    def __init__(self, classifier: Any, tokenizer: Any, max_len: int) -> None:
        super().__init__()
        self.classifier: Any = classifier
        self.tokenizer = tokenizer
        self.max_len = max_len

    def forward(self, **batch: Tensor) -> Tensor:
        """Raw logits float32 (P,) of tokenised pairs."""
        logits: Tensor = self.classifier(**batch).logits.float()
        return logits[:, 0]


def fold_two_classes(classifier: Any) -> None:
    """Turn a two-class head into one logit in place: z1 - z0, which orders as the probability of class 1 does.

    The last linear layer of a Hugging Face sequence classifier is `classifier`, or `classifier.out_proj`.
    """
    head = classifier.classifier
    owner, name = (head, "out_proj") if hasattr(head, "out_proj") else (classifier, "classifier")
    linear = getattr(owner, name)
    folded = nn.Linear(linear.in_features, 1, bias=linear.bias is not None)
    with torch.no_grad():
        folded.weight.copy_(linear.weight[1:2] - linear.weight[0:1])
        if linear.bias is not None:
            folded.bias.copy_(linear.bias[1:2] - linear.bias[0:1])
    setattr(owner, name, folded)
    classifier.config.num_labels = 1
    classifier.num_labels = 1
