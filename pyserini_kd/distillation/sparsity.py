"""FLOPS regularisation: a SPLADE student learns to keep most weights at zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from pyserini_kd.distillation.batches import Batch
from pyserini_kd.distillation.objective import Learner
from pyserini_kd.distillation.recipes import FLOPS_LOSSES
from pyserini_kd.models.splade import Splade, compare

if TYPE_CHECKING:
    from pyserini_kd.models.loading import Model

GROWTH = 1 / 3  # share of the steps until the weights of the regularisation are reached (Formal et al.: 50,000 of 150,000)


def flops(vectors: Tensor) -> Tensor:
    """Sum over words of the squared mean weight in vectors (N, V): how many products a search needs, smoothed.

    Paria et al. 2020, arXiv 2004.05665, as Formal et al. 2021, arXiv 2109.10086, use it.

    >>> float(flops(Tensor([[2.0, 0.0, 1.0], [4.0, 0.0, 0.0]])))  # 3^2 + 0.5^2
    9.25
    """
    return vectors.abs().mean(dim=0).square().sum()


def strength(done: float) -> float:
    """The factor of the regularisation's weights after this share of the steps: it grows with the square, to 1.

    >>> [round(strength(done), 2) for done in (0, 1 / 6, 1 / 3, 0.9)]
    [0.0, 0.25, 1.0, 1.0]
    """
    return min(1.0, (done / GROWTH) ** 2)


class SparseLearner(Learner):
    """A SPLADE student whose vectors are regularised; the distinct queries and documents of a batch count once each."""

    vectors: Mapping[str, Tensor] = {}

    def weight_of(self, name: str) -> float:
        """What a loss counts; regularisation counts little at first."""
        return super().weight_of(name) * (strength(self.done) if name in FLOPS_LOSSES else 1.0)

    def _terms(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        terms = super()._terms(batch)
        for name, vectors in self.vectors.items():
            words = float((vectors.detach() > 0).sum(dim=1).float().mean())
            self.terms.setdefault(name.replace("flops_", "words_"), []).append(words)
            if name in self.weights:
                value = flops(vectors)
                terms[name] = (value, value)
        self.vectors = {}
        return terms

    def _run(self, model: Model, tokens: Mapping[str, Tensor]) -> Tensor:
        if model is not self.student or not isinstance(model, Splade):
            return super()._run(model, tokens)
        query_vecs, doc_vecs = model.vectors(tokens)
        self.vectors = {"flops_query": query_vecs, "flops_doc": doc_vecs}
        return compare(query_vecs, doc_vecs, tokens["pairs"])
