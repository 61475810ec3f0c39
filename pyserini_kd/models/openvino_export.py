"""Write OpenVINO's files of a model: the network in fp32, in int8 if wanted, the tokenizer, and a record.

torch traces the network, and OpenVINO converts the trace. Before a file counts as made, its outputs are compared with torch's
on a few texts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyserini_kd.models import backbone, checkpoint_folder, hardware, openvino_files
from pyserini_kd.models.bert_dot import BertDot
from pyserini_kd.models.engine import Network
from pyserini_kd.models.layers import layers_of
from pyserini_kd.models.openvino_files import FOLDER, INT8, MODEL, RECORD, TOKENIZER, UPPER, CannotRun, made_from
from pyserini_kd.models.openvino_network import OpenVinoNetwork
from pyserini_kd.models.prettr import PreTtr
from pyserini_kd.models.tokens import pad_arrays, tokenize
from pyserini_kd.models.torch_network import TorchNetwork
from pyserini_kd.storage.arrays import Floats, Rows
from pyserini_kd.storage.environment import environment, sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_folder
from pyserini_kd.storage.records import Record, write_json

if TYPE_CHECKING:
    import openvino

    from pyserini_kd.models.loading import Model

logger = logging.getLogger(__name__)

WORST_FP32 = 1e-3  # largest allowed difference between OpenVINO's and torch's fp32 outputs, relative if these exceed 1
CHECK_TEXTS = (
    "sort an array in place",
    "How to merge two sorted lists without building a third one?",
    "Return the indices of the elements that are not zero, one array a dimension, in row-major order.",
    "The cat sat on the mat while the dog slept in the barn, and neither of them noticed the horse.",
    "In 1905 Einstein published four papers, on the photoelectric effect, Brownian motion, special relativity and mass.",
    "BM25",
)


def write(model: Model, checkpoint: Path, folder: Path, *, calibration: Sequence[tuple[str, str]] | None = None) -> None:
    """Write the files of a loaded model into an existing folder; with (query, document) texts for `calibration`, also in int8.

    Raises:
        CannotRun: OpenVINO cannot convert the model, or its outputs differ from torch's.
    """
    with _quiet():
        try:
            graphs = _graphs(model)
        except Exception as error:  # the tracer and the converter raise many kinds
            said = " ".join(str(error).split())[:300]
            raise CannotRun(f"OpenVINO cannot convert this {model.architecture}: {said}") from error
        for name, graph in graphs.items():
            openvino_files.library().save_model(graph, folder / name, compress_to_fp16=False)
    tokenizer: Any = model.tokenizer
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    _write_tensors(model, checkpoint, folder)
    _record(model, checkpoint, folder)
    _check(model, checkpoint, folder)
    if calibration is not None:
        with _quiet():
            _write_int8(model, folder, calibration)
        _record(model, checkpoint, folder)


def _write_tensors(model: Model, checkpoint: Path, folder: Path) -> None:
    """Write the layers after the network in float32, if the checkpoint stores them in another layout."""
    from safetensors.torch import save_file

    if checkpoint_folder.published_layout(checkpoint) and (head := getattr(model, "head", None)) is not None:
        save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, folder / checkpoint_folder.HEAD)
    dense = model.dense if isinstance(model, BertDot) else []
    tensors = {
        f"{n}.{name}": value for n, one in enumerate(dense) for name, value in (("weight", one.weight), ("bias", one.bias))
    }
    if tensors:
        found = {name: value.detach().cpu().contiguous() for name, value in tensors.items() if value is not None}
        save_file(found, folder / openvino_files.DENSE)


def export(
    name: str, folder: str | Path, *, calibration: Sequence[tuple[str, str]] | None = None, overwrite: bool = False
) -> Path:
    """Copy a checkpoint folder and add `openvino/`; with (query, document) texts for `calibration`, also an int8 file.

    Raises:
        InputError: the architecture cannot be exported, a package is missing, or OpenVINO's outputs differ from torch's.
    """
    from pyserini_kd.models import loading

    source, folder = checkpoint_folder.resolve(name), Path(folder)
    architecture = checkpoint_folder.architecture_of(source)
    if architecture not in openvino_files.GRAPHS:
        raise InputError(f"{name} is a {architecture}; only {', '.join(openvino_files.GRAPHS)} can be exported")
    if calibration is not None:
        if architecture == "prettr":
            raise InputError(f"{name} is a prettr; only bert_dot, colbert and cross_encoder can be exported as int8")
        _require_nncf()
    model = loading.load(name)
    with atomic_folder(folder, overwrite=overwrite) as partial:
        unwanted = shutil.ignore_patterns(FOLDER, "onnx", "*.h5", "*.msgpack", "*.ot", ".*")
        shutil.copytree(source, partial, ignore=unwanted, dirs_exist_ok=True)
        (partial / FOLDER).mkdir()
        write(model, partial, partial / FOLDER, calibration=calibration)
    checkpoint_folder.resolve.cache_clear()
    return folder


def _require_nncf() -> None:
    openvino_files.library()  # first, as it turns off NNCF's usage statistics too
    try:
        import nncf  # noqa: F401
    except ImportError:
        raise InputError("int8 needs the package nncf: pip install 'pyserini-kd[int8]'") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of the tracer and of transformers, and logs of the quantiser."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), checkpoint_folder.quiet_transformers():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)


class _Network(nn.Module):
    """The module that torch traces. It calls `compute` with the tensors `names`; `inner` holds the weights."""

    def __init__(self, inner: Any, names: Sequence[str], compute: Any) -> None:
        super().__init__()
        self.inner, self.names, self.compute = inner, tuple(names), compute

    def forward(self, *tensors: Tensor) -> Any:
        return self.compute(dict(zip(self.names, tensors, strict=True)))


def _graphs(model: Model) -> dict[str, openvino.Model]:
    """File name -> OpenVINO model, for any batch size and length."""
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    tokens = {"input_ids": mask * 5, "attention_mask": mask, "token_type_ids": torch.zeros_like(mask)}
    if isinstance(model, PreTtr):
        return _prettr_graphs(model, tokens)
    classifies = model.architecture == "cross_encoder"
    inner: Any = model.classifier if classifies else model.encoder
    known = set(inspect.signature(inner.forward).parameters) & set(model.tokenizer.model_input_names)
    given = {name: tensor for name, tensor in tokens.items() if name in known | {"input_ids", "attention_mask"}}
    if not classifies:
        made = _Network(inner, list(given), lambda batch: inner(**batch).last_hidden_state)
        return {MODEL: _converted(made, given, ["last_hidden_state"])}
    states: list[Tensor] = []
    hook = inner.base_model.register_forward_hook(lambda module, args, output: states.append(output[0]))

    def both(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = inner(**batch).logits
        return logits, states[-1]

    try:
        with _first_token_only(inner):
            return {MODEL: _converted(_Network(inner, list(given), both), given, ["logits", "last_hidden_state"])}
    finally:
        hook.remove()


@contextlib.contextmanager
def _first_token_only(classifier: Any) -> Iterator[None]:
    """Inside the block, the last layer of a BERT computes the first token only. The classifier reads no other token.

    The first token still attends to all tokens. This saves five sixths of the layer. Other model families do not change.
    """
    if classifier.config.model_type != "bert":
        yield
        return
    layer = classifier.bert.encoder.layer[-1]
    attention = layer.attention.self

    def heads(linear: nn.Linear, states: Tensor) -> Tensor:
        return linear(states).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)

    def forward(states: Tensor, mask: Tensor | None = None, *_: object, **__: object) -> Tensor:
        first = states[:, :1]
        query, key, value = heads(attention.query, first), heads(attention.key, states), heads(attention.value, states)
        mask = None if mask is None else mask[:, :, :1]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        attended = layer.attention.output(mixed, first)
        found: Tensor = layer.output(layer.intermediate(attended), attended)
        return found

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def _prettr_graphs(model: PreTtr, tokens: dict[str, Tensor]) -> dict[str, openvino.Model]:
    """The lower layers with the embeddings, and the upper layers down to the state of the first token."""
    embeddings, split = model.encoder.embeddings, model.settings.join_layer
    lower = {name: tensor for name, tensor in tokens.items() if name in inspect.signature(embeddings.forward).parameters}
    lower |= {"attention_mask": tokens["attention_mask"], "position_ids": torch.arange(7).expand(2, 7)}

    def below(batch: dict[str, Tensor]) -> Tensor:
        mask = batch.pop("attention_mask")
        states: Tensor = model.run_layers(embeddings(**batch), mask, slice(0, split))
        return states

    def above(batch: dict[str, Tensor]) -> Tensor:
        states: Tensor = model.run_layers(batch["states"], batch["attention_mask"], slice(split, len(layers_of(model.encoder))))
        return states[:, 0]

    upper = {"states": torch.zeros(2, 7, model.width), "attention_mask": tokens["attention_mask"]}
    return {
        MODEL: _converted(_Network(model.encoder, list(lower), below), lower, ["states"]),
        UPPER: _converted(_Network(model.encoder, list(upper), above), upper, ["first"]),
    }


def _converted(network: _Network, given: dict[str, Tensor], outputs: Sequence[str]) -> openvino.Model:
    """Trace a network with example tensors and convert it, with dynamic shapes and named inputs and outputs."""
    ov, inputs = openvino_files.library(), tuple(given.values())
    with torch.no_grad():
        traced = torch.jit.trace(network.eval(), inputs, check_trace=False, strict=False)  # `_check` compares outputs
        model: openvino.Model = ov.convert_model(traced, example_input=inputs)
    for parameter, (name, tensor) in zip(model.inputs, given.items(), strict=True):
        parameter.get_tensor().set_names({name})
        parameter.get_node().set_friendly_name(name)
        parameter.get_node().set_partial_shape(ov.PartialShape([-1, -1, *tensor.shape[2:]]))
        parameter.get_node().set_element_type(ov.Type.f32 if tensor.is_floating_point() else ov.Type.i64)
    for result, name in zip(model.outputs, outputs, strict=True):
        result.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()
    _name(model)
    return model


def _name(model: openvino.Model) -> None:
    """Name each node by its place in the network, so that equal networks give equal files.

    The converter's own names contain a counter of all nodes of the process.
    """
    model.set_friendly_name("pyserini_kd")
    for number, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() != "Parameter":
            node.set_friendly_name(f"{node.get_type_name()}_{number}")


def _record(model: Model, checkpoint: Path, folder: Path) -> None:
    tokenizer, published = model.tokenizer, checkpoint_folder.published_layout(checkpoint)
    classifies = model.architecture == "cross_encoder"
    network: Any = model.classifier if classifies else model.encoder
    record: Record = {
        "made_from": made_from(checkpoint, model.architecture),
        "window": backbone.window_of(network),
        "width": int(network.config.hidden_size),
        "max_len": getattr(model, "max_len", None),
        "settings": dataclasses.asdict(model.reader.settings) if published and not classifies else None,
        "tokenizer": {
            "pad_token_id": tokenizer.pad_token_id, "mask_token_id": tokenizer.mask_token_id,
            "model_max_length": int(tokenizer.model_max_length), "model_input_names": list(tokenizer.model_input_names),
        },
        "vnni": hardware.has_vnni(),
    }  # fmt: skip
    files = sorted(path for path in folder.iterdir() if path.name not in (RECORD, "quality.json"))
    write_json(folder / RECORD, record | {"sha256": {path.name: sha256(path) for path in files}, **environment()})


def _write_int8(model: Model, folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Quantise the network: weights per channel, activations with the ranges found on real texts."""
    ov = openvino_files.library()
    import nncf

    reader, queries, docs = model.reader, [query for query, _ in pairs], [doc for _, doc in pairs]
    if model.architecture == "cross_encoder":
        records, _ = tokenize(reader.tokenizer, queries, reader.lengths[1], docs)
    else:
        records, _ = reader.sides(docs, "doc")
    graph = ov.Core().read_model(folder / MODEL)
    names = [given.get_any_name() for given in graph.inputs]
    zeros = [{"token_type_ids": [0] * len(record["input_ids"]), **record} for record in records]
    batches = [{name: array for name, array in pad_arrays([one], reader.pad_id).items() if name in names} for one in zeros]
    fix = nncf.OverflowFix.DISABLE if hardware.has_vnni() else nncf.OverflowFix.ENABLE
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        quantised = nncf.quantize(
            graph, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
        )  # fmt: skip
    _name(quantised)
    ov.save_model(quantised, folder / INT8, compress_to_fp16=False)


def _check(model: Model, checkpoint: Path, folder: Path) -> None:
    """CannotRun if OpenVINO's outputs differ from torch's."""
    files = openvino_files.opened(folder, checkpoint, model.architecture, {})
    expected, found = (_outputs(network, model) for network in (TorchNetwork(model, "fp32"), OpenVinoNetwork(files, "fp32")))
    worst = max(float(np.abs(a - b).max() / max(1.0, np.abs(a).max())) for a, b in zip(expected, found, strict=True))
    if not worst <= WORST_FP32:
        raise CannotRun(f"OpenVINO's outputs differ from torch's by {worst:.2g}; nothing was written")


def _outputs(network: Network, model: Model) -> list[Floats]:
    """Outputs of a network for CHECK_TEXTS, without padding. For a PreTTR, the scores of (query, document) pairs follow."""
    reader, outputs = model.reader, list[Floats]()

    def use(rows: list[int], output: Floats, mask: Rows) -> None:
        for one, counts in zip(output.copy(), mask.astype(bool), strict=True):
            outputs.append(one[counts] if output.ndim == 3 else one)

    if model.architecture == "cross_encoder":
        batches = [tokenize(reader.tokenizer, CHECK_TEXTS, reader.lengths[1], CHECK_TEXTS[::-1])[0]]
        kinds: list[str | None] = [None]
    else:
        batches = [reader.sides(CHECK_TEXTS, side)[0] for side in ("query", "doc")]
        kinds = [None, None] if model.architecture == "bert_dot" else ["query", "doc"]
    for records, kind in zip(batches, kinds, strict=True):
        network.run([([*range(len(records))], pad_arrays(records, reader.pad_id))], use, kind)
    if model.architecture == "prettr":
        queries, docs = outputs[: len(CHECK_TEXTS)], outputs[len(CHECK_TEXTS) :]
        scores: list[Floats] = []
        network.join([([*range(len(docs))], queries, docs)], lambda rows, output, mask: scores.append(output))
        outputs += scores
    return outputs
