"""Export a checkpoint to ONNX beside its weights, optionally in int8.

transformers and sentence-transformers still load the folder, and their tools find the ONNX files in `onnx/`. int8 is dynamic
quantisation of the matrix products: weights per output channel, activations at run time.
"""

import contextlib
import inspect
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyserini_kd.models import checkpoint_folder, hardware, loading, rankers
from pyserini_kd.storage.environment import command_line, environment, sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_folder
from pyserini_kd.storage.records import write_json

logger = logging.getLogger(__name__)
Floats = npt.NDArray[np.float32]

WORST_FP32 = 1e-3  # largest allowed difference between fp32 ONNX and torch outputs, relative if these exceed 1
WORST_CORRELATION = 0.99  # of int8 outputs with fp32 outputs; `_check` warns 0.04 below this
OPSET = 17
CHECK_TEXTS = (
    "sort an array in place",
    "How to merge two sorted lists without building a third one?",
    "Return the indices of the elements that are not zero, one array a dimension, in row-major order.",
    "The cat sat on the mat while the dog slept in the barn, and neither of them noticed the horse.",
    "In 1905 Einstein published four papers, on the photoelectric effect, Brownian motion, special relativity and mass.",
    "BM25",
)


def export(name: str, folder: str | Path, *, int8: bool = False, overwrite: bool = False) -> Path:
    """Copy a checkpoint folder and add `onnx/model.onnx` and, with `int8`, `onnx/model_int8.onnx`.

    Raises:
        InputError: the architecture cannot be exported, a package is missing, or the ONNX outputs differ from torch's.
    """
    from pyserini_kd.models import onnx_runtime

    source, folder = checkpoint_folder.resolve(name), Path(folder)
    architecture = checkpoint_folder.architecture_of(source)
    if architecture not in checkpoint_folder.ONNX_ARCHITECTURES or checkpoint_folder.published_layout(source):
        known = " and ".join(checkpoint_folder.ONNX_ARCHITECTURES)
        raise InputError(f"{name} is a {architecture}; only {known} in our layout or that of transformers can be exported")
    _require_onnx()
    model = loading.load(name)
    flags = hardware.cpu_flags()
    quantised = {
        "weights": "int8 per channel",
        "activations": "uint8, dynamic",
        "reduce_range": not onnx_runtime.has_vnni(flags),
    }
    with atomic_folder(folder, overwrite=overwrite) as partial:
        unwanted = shutil.ignore_patterns(onnx_runtime.FOLDER, "openvino", "*.h5", "*.msgpack", "*.ot", ".*")
        shutil.copytree(source, partial, ignore=unwanted, dirs_exist_ok=True)
        files = partial / onnx_runtime.FOLDER
        files.mkdir()
        with _quiet():
            _write_fp32(model, files / onnx_runtime.FILES["fp32"])
            if int8:
                _write_int8(
                    files / onnx_runtime.FILES["fp32"], files / onnx_runtime.FILES["int8"], quantised["reduce_range"] is True
                )
        record: dict[str, Any] = {"encoder": {"name": source.name, "sha256": checkpoint_folder.fingerprint(source)}}
        record |= {"architecture": architecture, "opset": OPSET, **(quantised if int8 else {})}
        record |= {"sha256": {path.name: sha256(path) for path in sorted(files.glob("*.onnx"))}}
        write_json(files / onnx_runtime.RECORD, record | {"command": command_line(), **environment()})
        _check(model, partial, int8)
    checkpoint_folder.resolve.cache_clear()
    return folder


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise InputError("export needs the package onnx: pip install 'pyserini-kd[onnx]'") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence logs and warnings of the exporter and the quantiser."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)


def _write_fp32(model: Any, path: Path) -> None:
    """Write the encoder or classifier as an ONNX graph of standard operators, for any batch size and length."""
    import torch

    inner = model.classifier if model.architecture == "cross_encoder" else model.encoder
    output = "logits" if model.architecture == "cross_encoder" else "last_hidden_state"
    inner.set_attn_implementation("eager")
    known = set(inspect.signature(inner.forward).parameters) & set(model.tokenizer.model_input_names)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if "token_type_ids" in known else [])]

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.inner(**dict(zip(names, tensors, strict=True)))[output]
            return found

    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    given = {"input_ids": mask * 5, "attention_mask": mask, "token_type_ids": torch.zeros_like(mask)}
    axes = {name: {0: "batch", 1: "sequence"} for name in (*names, "last_hidden_state")} | {"logits": {0: "batch"}}
    torch.onnx.export(
        Plain().eval(),
        tuple(given[name] for name in names),
        str(path),
        input_names=names,
        output_names=[output],
        dynamic_axes={name: axes[name] for name in (*names, output)},
        opset_version=OPSET,
        dynamo=False,  # the newer exporter needs another package, takes six times as long, and its file breaks the quantiser
    )


def _write_int8(source: Path, path: Path, reduce_range: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    settings: dict[str, Any] = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": reduce_range}
    quantize_dynamic(str(source), str(path), op_types_to_quantize=["MatMul"], **settings)


def _check(model: Any, folder: Path, int8: bool) -> None:
    """Raise InputError if fp32 outputs differ from torch's; warn if int8 outputs are far from them."""
    expected = _outputs(model)
    found = _outputs(loading.load(str(folder), onnx="fp32"))
    worst = float(np.abs(found - expected).max())
    if not worst <= WORST_FP32 * max(1.0, float(np.abs(expected).max())):
        raise InputError(f"the ONNX file's outputs differ from torch's by {worst:.2g}; nothing was written")
    if int8:
        rough = _outputs(loading.load(str(folder), onnx="int8"))
        correlation = float(np.corrcoef(rough.ravel(), expected.ravel())[0, 1])
        log = logger.info if correlation >= WORST_CORRELATION - 0.04 else logger.warning
        word = "" if correlation >= WORST_CORRELATION - 0.04 else "WARNING: int8 is far from fp32: "
        log("%sint8 and fp32 outputs correlate by %.4f on %d texts", word, correlation, len(CHECK_TEXTS))


def _outputs(model: Any) -> Floats:
    """Vectors or scores of CHECK_TEXTS."""
    from pyserini_kd.models import onnx_runtime

    loaded = rankers.ranker(model, precision="fp32" if onnx_runtime.module_in(model) is None else "auto")
    if isinstance(loaded, rankers.Encoder):
        return loaded.encode_docs(CHECK_TEXTS)
    pairs = [(query, doc) for query in CHECK_TEXTS for doc in CHECK_TEXTS]
    return loaded.score([q for q, _ in pairs], [d for _, d in pairs])
