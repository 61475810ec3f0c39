"""The engine against devices that are not there."""

import pytest
import torch

from pyserini_kd.models import hardware, rankers
from pyserini_kd.storage.errors import InputError


def test_devices():
    assert hardware.check_device("cpu") == "cpu"
    for wrong in ("gpu", "cpu:0", "meta", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(InputError, match="device: (must be cpu, cuda or cuda:N, not|torch finds no GPU cuda)"):
            hardware.check_device(wrong)


def test_more_processes_than_gpus_are_told_so(tiny_dot, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="device: torch finds no GPU cuda:1"):
        rankers.load(str(tiny_dot), device="cuda")
