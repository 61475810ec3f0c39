"""Choose device, threads and precision."""

import contextlib
import functools
import logging
import os
import re
import sys
from pathlib import Path

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.settings import PRECISIONS

logger = logging.getLogger(__name__)


@functools.cache
def cpu_flags() -> set[str]:
    """Feature flags of this processor; empty on systems other than Linux."""
    with contextlib.suppress(OSError):
        found = re.search(r"^flags.*?:(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        return set(found[1].split()) if found else set()
    return set()


def has_bf16() -> bool:
    """Whether this processor has instructions for bf16."""
    return not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


def has_vnni() -> bool:
    """Whether this processor multiplies 8-bit integers without overflow; others need a narrower range of weights."""
    return not cpu_flags().isdisjoint({"avx512_vnni", "avx_vnni"})


def imitates_bf16() -> bool:
    """Whether this processor has no instructions for bf16 and emulates it, more slowly than fp32."""
    return "avx2" in cpu_flags() and not has_bf16()


@functools.cache
def _warn_of_imitation() -> None:
    logger.warning("WARNING: this processor has no instructions for bf16 and emulates it; fp32 is faster here")


def choose_precision(precision: str = "auto", device: str = "cpu", *, has_int8: bool = False) -> str:
    """Choose `fp32`, `bf16`, `fp16` or `int8`. `auto` decides by the processor and the checkpoint's files, never by timing.

    On a GPU, `auto` is bf16, or fp16 if the GPU is too old for bf16. On a CPU, it is bf16 if the CPU has instructions for bf16
    (AMX or AVX-512); else int8 if the CPU has VNNI and the checkpoint has an int8 file (`has_int8`); else fp32.
    """
    if precision not in PRECISIONS:
        raise InputError(f"must be one of {', '.join(PRECISIONS)}, not {precision!r}", "precision")
    if precision == "fp16" and not device.startswith("cuda"):
        raise InputError("fp16 needs a GPU (`device` cuda); a CPU computes in fp32, bf16 or int8", "precision")
    if precision == "bf16" and device == "cpu" and imitates_bf16():
        _warn_of_imitation()
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        import torch

        with torch.cuda.device(device) if ":" in device else contextlib.nullcontext():
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if has_bf16():
        return "bf16"
    return "int8" if has_int8 and has_vnni() else "fp32"


def own_device(device: str) -> str:
    """The device of this process: under torchrun or accelerate, `cuda` becomes the process's own GPU."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local else device


_chosen: list[int] = []  # the last argument of `use_threads`


def threads() -> int:
    """Number of threads to use: of `use_threads`, else OMP_NUM_THREADS, else the processors that this process may use."""
    if _chosen:
        return _chosen[-1]
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Set the number of threads of OpenVINO (for models loaded afterwards), FAISS and torch."""
    import faiss

    _chosen[:] = [count]
    faiss.omp_set_num_threads(count)
    if "torch" in sys.modules:
        apply_threads()


def apply_threads() -> None:
    """Tell torch the number of threads of `use_threads`, if that was called."""
    import torch

    if _chosen:
        torch.set_num_threads(_chosen[-1])


def check_device(device: str) -> str:
    """Return the device; InputError if its name is wrong or torch cannot find it."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise InputError(f"must be cpu, cuda or cuda:N, not {device!r}", "device")
    if device != "cpu":
        import torch

        if int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
            raise InputError(f"torch finds no GPU {device}; use cpu or another GPU", "device")
    return device
