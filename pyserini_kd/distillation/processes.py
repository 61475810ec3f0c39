"""Several training processes, as torchrun or accelerate start them."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from collections.abc import Iterator
from typing import Any

from pyserini_kd.distillation.batches import Share
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.models import hardware
from pyserini_kd.storage.errors import InputError


def processes(config: TrainConfig) -> Share:
    """This process among those that torchrun or accelerate started; they are connected here.

    Raises:
        InputError: the device is not there.
    """
    hardware.check_device(device_of(config))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Share()
    from accelerate import PartialState

    # 40 million rows take the first process more than the ten minutes that the others would wait
    state = PartialState(cpu=config.device == "cpu", timeout=datetime.timedelta(days=7))
    if state.process_index:
        logging.getLogger("pyserini_kd").setLevel(logging.ERROR)  # the first process speaks for all
    return Share(state.process_index, state.num_processes)


@contextlib.contextmanager
def one_after_another(share: Share) -> Iterator[None]:
    """The first process does the block, then the others; all go on together."""
    if share.world == 1:
        yield
        return
    import torch.distributed as dist

    if share.rank:
        dist.barrier()
    yield
    if not share.rank:
        dist.barrier()
    dist.barrier()


def device_of(config: TrainConfig) -> str:
    """The device of this process."""
    if config.device.startswith("cuda:") and config.device != "cuda:0":  # Trainer always takes the first one it sees
        number = config.device.removeprefix("cuda:")
        raise InputError(f"train --device {config.device}: choose the GPU by CUDA_VISIBLE_DEVICES={number} and --device cuda")
    return hardware.own_device("cuda" if config.device == "cuda:0" else config.device)


def precision_of(config: TrainConfig) -> str:
    """What training computes in: bf16 by autocast, or fp32; never fp16, which would need its losses scaled."""
    return "bf16" if hardware.choose_precision(config.precision, config.device) == "bf16" else "fp32"


def check_precision(config: TrainConfig, share: Share) -> str:
    """The precision of this process; InputError where others, on other machines, compute in another."""
    own = precision_of(config)
    if share.world > 1:
        import torch.distributed as dist

        every: list[Any] = [None] * share.world
        dist.all_gather_object(every, own)
        if len(set(every)) > 1:
            raise InputError("--precision auto is bf16 on some of the machines and fp32 on others; give --precision fp32")
    return own
