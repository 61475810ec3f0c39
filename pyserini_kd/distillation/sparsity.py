"""FLOPS regularisation: it sets most weights in the vectors of a SPLADE student to zero."""

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

GROWTH = 1 / 3  # share of steps until the regularisation has its full weight (Formal et al.: 50,000 of 150,000 steps)


def flops(vectors: Tensor) -> Tensor:
    """Sum over terms of the squared mean weight in vectors (N, V). It is a smooth estimate of the products in a search.

    Paria et al. 2020, arXiv 2004.05665, as in Formal et al. 2021, arXiv 2109.10086.

    >>> float(flops(Tensor([[2.0, 0.0, 1.0], [4.0, 0.0, 0.0]])))  # 3^2 + 0.5^2
    9.25
    """
    return vectors.abs().mean(dim=0).square().sum()


def strength(done: float) -> float:
    """Factor of the regularisation's weights after a share of the steps. It grows quadratically to 1.

    >>> [round(strength(done), 2) for done in (0, 1 / 6, 1 / 3, 0.9)]
    [0.0, 0.25, 1.0, 1.0]
    """
    return min(1.0, (done / GROWTH) ** 2)


class SparseLearner(Learner):
    """A learner with FLOPS regularisation. Each distinct query and document of a batch counts once."""

    vectors: Mapping[str, Tensor] = {}

    def weight_of(self, name: str) -> float:
        """Current weight of a loss in the sum. The weights of the regularisation grow in the first third of the steps."""
        return super().weight_of(name) * (strength(self.done) if name in FLOPS_LOSSES else 1.0)

    def _terms(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        terms = super()._terms(batch)
        for name, vectors in self.vectors.items():
            nonzero = float((vectors.detach() > 0).sum(dim=1).float().mean())
            self.terms.setdefault(name.replace("flops_", "words_"), []).append(nonzero)
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
