"""Run a model by torch: on a GPU, during training, and where OpenVINO cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from pyserini_kd.models import hardware
from pyserini_kd.models.engine import Batch, Join, Network, Use, counted
from pyserini_kd.models.prettr import PreTtr
from pyserini_kd.storage.arrays import Floats
from pyserini_kd.storage.errors import InputError

if TYPE_CHECKING:
    from pyserini_kd.models.loading import Model

BATCH_TOKENS = {"cpu": 1 << 11, "cuda": 1 << 15}


@contextlib.contextmanager
def running(module: torch.nn.Module, precision: str) -> Iterator[torch.device]:
    """Run a block with a module in inference mode, eval mode and autocast to `precision`; yields the module's device."""
    device, was_training = next(module.parameters()).device, module.training
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    module.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, half, enabled=half is not None):
            yield device
    finally:
        module.train(was_training)


class TorchNetwork(Network):
    """A torch module on its device. It stays usable for training."""

    backend = "torch"

    def __init__(self, module: Model, precision: str = "auto") -> None:
        self.module = module
        self.device = str(next(module.parameters()).device)
        self.precision = hardware.choose_precision(precision, self.device)
        if self.precision == "int8":
            raise InputError("torch does not compute in int8; load a checkpoint that `export --int8` wrote, for a CPU")
        hardware.apply_threads()

    @property
    def width(self) -> int:
        """H: length of a text vector or a token vector."""
        return int(cast(Any, self.module).width)

    def batch_size(self, longest: int) -> int:
        """As many texts as BATCH_TOKENS tokens hold, padding included."""
        return max(1, BATCH_TOKENS[self.device.partition(":")[0]] // longest)

    def run(self, batches: Iterable[tuple[list[int], Batch]], use: Use, kind: str | None) -> None:
        """Run batches one after another."""
        more = {"kind": kind} if kind else {}
        with running(self.module, self.precision) as device:
            for rows, batch in batches:
                tensors = {name: torch.from_numpy(values).to(device) for name, values in batch.items()}
                use(rows, self.module(**tensors, **more).float().cpu().numpy(), counted(batch))

    def join(self, batches: Iterable[Join], use: Use) -> None:
        """Score documents' representations with those of queries, one batch after another."""
        with running(self.module, self.precision) as device:
            for rows, queries, docs in batches:
                states, query = _padded(docs, device), _padded(queries, device)
                if isinstance(self.module, PreTtr):
                    found = self.module.upper(*query, *states)
                else:
                    with torch.autocast(device.type, enabled=False):  # sums around 100 need full float32
                        found = cast(Any, self.module).late_scores(*query, *states)[0]
                use(rows, found.float().cpu().numpy(), query[1].cpu().numpy())


def _padded(states: Sequence[Floats], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad the states (T, H) of texts with zeros to (N, T, H); also returns the mask (N, T)."""
    lengths = torch.tensor([len(vectors) for vectors in states])
    mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
    tensors = [torch.from_numpy(vectors) for vectors in states]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True).to(device), mask.to(device)
