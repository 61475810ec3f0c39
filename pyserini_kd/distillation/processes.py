"""Coordinate several training processes, started by torchrun or accelerate."""

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
    """Connect the processes that torchrun or accelerate started; return the share of this one. InputError: no such device."""
    hardware.check_device(device_of(config))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Share()
    from accelerate import PartialState

    # Others wait while the first reads 40 million rows; the default limit is ten minutes
    state = PartialState(cpu=config.device == "cpu", timeout=datetime.timedelta(days=7))
    if state.process_index:
        logging.getLogger("pyserini_kd").setLevel(logging.ERROR)  # only the first process logs
    return Share(state.process_index, state.num_processes)


@contextlib.contextmanager
def one_after_another(share: Share) -> Iterator[None]:
    """Run the block in the first process, then in the others; all leave it together."""
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
    """Return the device of this process."""
    return hardware.own_device("cuda" if config.device == "cuda:0" else config.device)


def precision_of(config: TrainConfig) -> str:
    """Return the training precision: bf16 (autocast) or fp32. Never fp16, which needs loss scaling."""
    return "bf16" if hardware.choose_precision(config.precision, config.device) == "bf16" else "fp32"


def check_precision(config: TrainConfig, share: Share) -> str:
    """Return the precision of this process; InputError if processes on other machines have another."""
    precision = precision_of(config)
    if share.world > 1:
        import torch.distributed as dist

        found = [precision] * share.world
        dist.all_gather_object(found, precision)
        if len(set(found)) > 1:
            raise InputError("auto is bf16 on some machines and fp32 on others; set fp32", "precision")
    return precision
