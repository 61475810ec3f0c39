"""Models as training sees them: what a student and its teachers can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    from torch import Tensor, nn


class Ranker(Protocol):
    """A model that can learn or teach; all architectures of `models` are rankers.

    Attributes:
        architecture: `bert_dot`, `colbert`, `cross_encoder`, `prettr` or `tk`.
        tokenizer: of transformers.
        settings: lengths and pooling; a cross-encoder has `max_len` in its place.
        max_len: tokens that a cross-encoder reads of a pair.
    """

    architecture: str
    tokenizer: Any
    settings: Any
    max_len: int

    def pair_batch(
        self, queries: Sequence[str], docs: Sequence[str], pairs: Sequence[tuple[int, int]], *, max_doc_len: int | None = None
    ) -> dict[str, Tensor]:
        """Tensors of P pairs, each a row of `queries` and a row of `docs`."""

    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Scores (P,) of such tensors, with gradients."""

    def modules(self) -> Iterator[nn.Module]:
        """As `nn.Module`, and so are the methods that follow."""

    def state_dict(self) -> dict[str, Tensor]: ...  # noqa: D102
    def load_state_dict(self, state: Mapping[str, Tensor]) -> object: ...  # noqa: D102
    def to(self, device: str) -> Self: ...  # noqa: D102
    def train(self, mode: bool = True) -> Self: ...  # noqa: D102
    def eval(self) -> Self: ...  # noqa: D102
    def cpu(self) -> Self: ...  # noqa: D102
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...  # noqa: D102


class Teachers(NamedTuple):
    """The live teachers of a run; None where no stage needs one."""

    ranker: Ranker | None = None
    language_model: Ranker | None = None

    def for_stage(self, text: bool) -> Ranker | None:
        """The teacher of a stage: the language model for plain text, else the ranker."""
        return self.language_model if text else self.ranker


def window_of(model: Ranker) -> int:
    """The number of tokens of a document (a pair, for a cross-encoder) that a model can read."""
    return int(model.max_len if model.architecture == "cross_encoder" else model.settings.max_doc_len)


def module_of(model: Ranker) -> nn.Module:
    """The model as a torch module, which every ranker is."""
    module: Any = model
    return module
