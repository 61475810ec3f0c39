"""ONNX files beside a checkpoint's weights, and a module that runs them instead of the PyTorch encoder or classifier."""

import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import read_json

FOLDER = "onnx"
FILES = {"fp32": "model.onnx", "int8": "model_int8.onnx"}
RECORD = "export.json"


class OnnxModule(nn.Module):
    """An encoder or classifier run by ONNX Runtime on the CPU. It returns what transformers' does, without gradients."""

    def __init__(self, path: Path, config: Any, precision: str, output: str) -> None:
        """Open a file. `output` names the attribute of the result: `last_hidden_state` or `logits`."""
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [given.name for given in self.session.get_inputs()]
        self.config, self.precision, self.output = config, precision, output
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # callers read the device off a parameter

    def forward(self, **batch: Tensor) -> Any:
        """Return the float32 output for token tensors int64 (N, T); missing token types are zeros."""
        zeros = torch.zeros_like(batch["input_ids"])
        found = self.session.run(None, {name: batch.get(name, zeros).numpy() for name in self.inputs})
        return types.SimpleNamespace(**{self.output: torch.from_numpy(found[0])})


def has(folder: Path, precision: str) -> bool:
    """Whether a checkpoint folder has the exported file of a precision and the export record."""
    return all((folder / FOLDER / name).is_file() for name in (FILES[precision], RECORD))


def open_module(folder: Path, config: Any, precision: str, output: str, fingerprint: str) -> OnnxModule:
    """Open the exported file of a precision; InputError if it is missing or made from other weights."""
    if not has(folder, precision):
        hint = " --int8" if precision == "int8" else ""
        raise InputError(
            f"{folder} has no exported {FOLDER}/{FILES[precision]}; make it: "
            f"pyserini-kd export --encoder {folder} --output {folder.name}-onnx{hint}"
        )
    record = read_json(folder / FOLDER / RECORD, "export record")
    if record.get("encoder", {}).get("sha256") != fingerprint:
        raise InputError(f"{folder / FOLDER} was made from other weights than this checkpoint's; export it again")
    return OnnxModule(folder / FOLDER / FILES[precision], config, precision, output)


def has_vnni(flags: set[str]) -> bool:
    """Whether a CPU multiplies 8-bit integers without overflow; other CPUs need 7-bit weights (`reduce_range`)."""
    return bool(flags & {"avx512_vnni", "avx_vnni"})


def check_cpu(folder: Path, flags: set[str]) -> None:
    """Raise InputError if a checkpoint's int8 file would silently overflow on a CPU with these flags (empty: unknown)."""
    if has(folder, "int8") and flags and not has_vnni(flags):
        if not read_json(folder / FOLDER / RECORD, "export record").get("reduce_range"):
            raise InputError(f"{folder}: the int8 file needs VNNI, which this CPU lacks; export again on this machine")


def module_in(model: Any) -> OnnxModule | None:
    """The ONNX module inside a model; None if the model runs in torch."""
    module = getattr(model, "classifier", None) or getattr(model, "encoder", None)
    return module if isinstance(module, OnnxModule) else None
