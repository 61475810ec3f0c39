"""Write a model as a checkpoint folder with safetensors weights.

`transformers`, `sentence-transformers` and Pyserini's `AutoQueryEncoder` load it unchanged.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pyserini_kd.models.checkpoint_folder import HEAD, OURS, quiet_transformers, resolve
from pyserini_kd.models.pooling import Dense
from pyserini_kd.models.sentence_folder import OLD_POOLINGS
from pyserini_kd.models.tokens import lower_cases
from pyserini_kd.storage.files import atomic_folder
from pyserini_kd.storage.records import Record, write_json

logger = logging.getLogger(__name__)

CARD = "README.md"  # where model hubs look for it

if TYPE_CHECKING:
    from pyserini_kd.models.bert_dot import BertDot
    from pyserini_kd.models.cross_encoder import CrossEncoder
    from pyserini_kd.models.loading import Model
    from pyserini_kd.models.splade import Splade
    from pyserini_kd.models.two_sides import TwoSides


def save(
    model: Model, folder: str | Path, *, record: Record | None = None, card: str | None = None, openvino: bool = False,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write a complete checkpoint folder, or nothing on failure.

    `record` becomes its training.json, `card` its README.md. `openvino` adds files for OpenVINO if it can run the model.
    """
    from pyserini_kd.models.bert_dot import BertDot
    from pyserini_kd.models.cross_encoder import CrossEncoder
    from pyserini_kd.models.splade import Splade

    folder = Path(folder)
    with atomic_folder(folder, overwrite=overwrite) as partial, quiet_transformers():
        if isinstance(model, CrossEncoder):
            _save_cross_encoder(model, partial)
        else:
            _save_encoder(model, partial)
        if isinstance(model, BertDot):
            _describe_to_sentence_transformers(model, partial)
        if isinstance(model, Splade):
            _describe_splade(model, partial)
        if record is not None:
            write_json(partial / "training.json", record)
        if card is not None:
            (partial / CARD).write_text(card, encoding="utf-8")
        if openvino:
            _write_openvino(model, partial)
        for written in partial.glob("*.safetensors"):  # safetensors makes files readable for their owner only
            written.chmod((partial / "config.json").stat().st_mode)
    resolve.cache_clear()
    return folder


def _write_openvino(model: Model, folder: Path) -> None:
    from pyserini_kd.models import openvino_export, openvino_files

    if openvino_files.obstacle(folder, model.architecture, {}) is None:
        (folder / openvino_files.FOLDER).mkdir()
        try:
            openvino_export.write(model, folder, folder / openvino_files.FOLDER)
        except openvino_files.CannotRun as error:
            shutil.rmtree(folder / openvino_files.FOLDER)
            logger.warning("WARNING: the checkpoint has no OpenVINO files: %s", error)


def _save_cross_encoder(model: CrossEncoder, folder: Path) -> None:
    # keep raw logits: by default, sentence-transformers applies a sigmoid to a single label
    model.classifier.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "6"}
    model.classifier.save_pretrained(folder)
    model.tokenizer.model_max_length = model.max_len
    model.tokenizer.save_pretrained(folder)
    write_json(folder / OURS, {"architecture": model.architecture, "max_doc_len": model.max_len, **_lower(model)})


def _lower(model: Model) -> Record:
    """The entry of `pyserini_kd.json` about lower-casing. transformers does not save this with every tokenizer."""
    return {"lower_case": True} if lower_cases(model.tokenizer.backend_tokenizer) else {}


def _save_encoder(model: TwoSides, folder: Path) -> None:
    from safetensors.torch import save_file

    from pyserini_kd.models.splade import Splade

    model.tokenizer.model_max_length = model.settings.max_doc_len
    model.tokenizer.save_pretrained(folder)
    write_json(folder / OURS, {"architecture": model.architecture, **dataclasses.asdict(model.settings), **_lower(model)})
    if model.architecture == "tk":
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
        write_json(folder / "config.json", {"model_type": "tk", "hidden_size": model.width})
        return
    network = model.network[0] if isinstance(model, Splade) else model.encoder
    network.save_pretrained(folder)
    if model.head is not None:
        save_file({name: tensor.contiguous() for name, tensor in model.head.state_dict().items()}, folder / HEAD)


def _describe_to_sentence_transformers(model: BertDot, folder: Path) -> None:
    settings = model.settings
    kinds = ["Pooling", *["Dense"] * len(model.dense), *["Normalize"] * settings.l2_norm]
    modules = [("", "Transformer"), *((f"{n}_{kind}", kind) for n, kind in enumerate(kinds, 1))]
    _list_modules(folder, "sentence_transformers.models", modules)
    modes = settings.pooling.split("+")
    pooling: Record = {"word_embedding_dimension": model.encoder.config.hidden_size}
    if len(modes) == 1:  # older versions know only these keys
        pooling |= {f"pooling_mode_{old}": new in modes for old, new in OLD_POOLINGS.items()}
    else:
        pooling["pooling_mode"] = modes
    write_json(folder / "1_Pooling" / "config.json", pooling)
    for n, layer in enumerate(model.dense, 2):
        _save_dense(layer, folder / f"{n}_Dense")
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": settings.max_doc_len, "do_lower_case": bool(_lower(model))}
    )
    prompts = {"query": settings.query_prefix, "document": settings.doc_prefix}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "similarity_fn_name": "dot"})


def _save_dense(layer: Dense, folder: Path) -> None:
    from safetensors.torch import save_file

    width, before = layer.weight.shape
    sizes = {"in_features": before, "out_features": width, "bias": layer.bias is not None}
    place = "linear.Identity" if layer.activation == "Identity" else f"activation.{layer.activation}"
    write_json(folder / "config.json", {**sizes, "activation_function": f"torch.nn.modules.{place}"})
    tensors = {"linear.weight": layer.weight, "linear.bias": layer.bias}
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
    save_file(found, folder / "model.safetensors")


def _describe_splade(model: Splade, folder: Path) -> None:
    settings = model.settings
    modules = [("", "MLMTransformer"), ("1_SpladePooling", "SpladePooling")]
    _list_modules(folder, "sentence_transformers.sparse_encoder.models", modules)
    pooling = {"pooling_strategy": settings.strategy, "activation_function": settings.activation}
    write_json(folder / "1_SpladePooling" / "config.json", {**pooling, "word_embedding_dimension": model.width})
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": settings.max_doc_len, "do_lower_case": bool(_lower(model))}
    )
    prompts = {"query": settings.query_prefix, "document": settings.doc_prefix}
    about = {"model_type": "SparseEncoder", "prompts": prompts, "similarity_fn_name": "dot"}
    write_json(folder / "config_sentence_transformers.json", about)


def _list_modules(folder: Path, package: str, modules: list[tuple[str, str]]) -> None:
    """Write modules.json of sentence-transformers for (folder, class) pairs, and create the folders."""
    listed = [{"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"} for i, (path, kind) in enumerate(modules)]
    for path, _ in modules[1:]:
        (folder / path).mkdir()
    (folder / "modules.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
