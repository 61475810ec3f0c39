"""Several training processes, as torchrun or accelerate start them."""

import contextlib
import datetime
import logging
import os
from collections.abc import Iterator

from pyserini_kd.distillation.batches import Share
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.models import hardware
from pyserini_kd.storage.errors import InputError


def processes(config: TrainConfig) -> Share:
    """Connect this process with the others that torchrun or accelerate started; returns its share of the work.

    Raises:
        InputError: the device is not there.
    """
    hardware.check_device(device_of(config))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Share()
    from accelerate import PartialState

    # The first process reads 40 million rows: that takes longer than the default limit of ten minutes
    state = PartialState(cpu=config.device == "cpu", timeout=datetime.timedelta(days=7))
    if state.process_index:
        logging.getLogger("pyserini_kd").setLevel(logging.ERROR)  # only the first process logs
    return Share(state.process_index, state.num_processes)


@contextlib.contextmanager
def one_after_another(share: Share) -> Iterator[None]:
    """The first process does the block, then the others do it; all go on together."""
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
    return hardware.own_device("cuda" if config.device == "cuda:0" else config.device)


def precision_of(config: TrainConfig) -> str:
    """The precision of training: bf16 by autocast, or fp32. Never fp16, for which losses would have to be scaled."""
    return "bf16" if hardware.choose_precision(config.precision, config.device) == "bf16" else "fp32"


def check_precision(config: TrainConfig, share: Share) -> str:
    """The precision of this process; InputError where processes on other machines have another."""
    own = precision_of(config)
    if share.world > 1:
        import torch.distributed as dist

        every = [own] * share.world
        dist.all_gather_object(every, own)
        if len(set(every)) > 1:
            raise InputError("auto is bf16 on some of the machines and fp32 on others; name fp32", "precision")
    return own
