"""Load a checkpoint folder as a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pyserini_kd.models import backbone, checkpoint_folder, pooling, sentence_folder, weights
from pyserini_kd.models.checkpoint_folder import (
    architecture_of,
    check_length,
    check_lengths,
    published_layout,
    quiet_transformers,
    resolve,
    settings_with,
)
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import Record, read_json

if TYPE_CHECKING:
    from pyserini_kd.models.cross_encoder import CrossEncoder
    from pyserini_kd.models.tk import Tk
    from pyserini_kd.models.two_sides import TwoSides

    Model = TwoSides | CrossEncoder


class Wanted(NamedTuple):
    """The resolved arguments of `load`."""

    folder: Path
    layers: tuple[int, ...] | None
    overrides: Record


def load(
    name: str,
    *,
    architecture: str | None = None,
    layers: tuple[int, ...] | None = None,
    glove: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
    **overrides: object,
) -> Model:
    """Load a checkpoint, ready to score (eval mode, float32, CPU).

    Args:
        name: a name, folder or hub id (see `resolve`).
        architecture: load it as this architecture instead of the saved one.
        layers: keep these Transformer layers (0-based) and drop the others.
        glove: for `tk`: read word vectors from this GloVe text file instead of the checkpoint's input embeddings.
        settings: settings of this architecture only (`own_settings`); they replace the checkpoint's.
        overrides: shared settings (fields of EncoderSettings) that replace the checkpoint's; None keeps the checkpoint's.
    """
    from pyserini_kd.models import published, splade

    folder = resolve(name)
    own, known = architecture_of(folder), checkpoint_folder.ARCHITECTURES
    architecture = architecture or own
    if architecture not in known:
        raise InputError(f"unknown architecture {architecture!r}; expected one of {', '.join(known)}")
    if architecture != own and (own == "tk" or published_layout(folder)):
        raise InputError(f"{name} is a {own} and cannot be read as a {architecture}")
    given = {name: value for name, value in {**overrides, **(settings or {})}.items() if value is not None}
    wanted = Wanted(folder, layers, given)
    try:
        with quiet_transformers():
            if published_layout(folder):
                model: Model = published.read(folder, layers, given)
            elif architecture == "cross_encoder":
                model = _load_cross_encoder(wanted)
            elif architecture == "tk":
                model = _load_tk(wanted, glove)
            elif architecture == "splade":
                model = splade.read(folder, backbone.tokenizer(folder), layers, given)
            else:
                model = _load_encoder(wanted, architecture)
            return model.eval()
    except InputError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds for broken folders
        said = " ".join(line.strip() for line in str(error).splitlines()[:2])  # torch's second line says what is wrong
        raise InputError(f"checkpoint {folder} cannot be loaded: {said}") from error


def _load_encoder(wanted: Wanted, architecture: str) -> TwoSides:
    from safetensors.torch import load_file

    from pyserini_kd.models.bert_dot import BertDot
    from pyserini_kd.models.colbert import ColBert
    from pyserini_kd.models.layers import keep_layers, layers_of
    from pyserini_kd.models.prettr import PreTtr

    folder, overrides, same = wanted.folder, wanted.overrides, architecture_of(wanted.folder) == architecture
    encoder = backbone.network(folder, architecture)
    keep_layers(encoder, wanted.layers)
    if architecture == "prettr" and not same:
        overrides = {"join_layer": len(layers_of(encoder)) // 2} | overrides  # as published: 3 of 6
    window = backbone.window_of(encoder)
    settings = settings_with(folder, checkpoint_folder.SETTINGS[architecture], window, overrides)
    query_len = settings.max_query_len + getattr(settings, "masks", 0)
    if architecture == "prettr" and not (folder / checkpoint_folder.HEAD).exists() and "max_doc_len" not in overrides:
        settings = dataclasses.replace(settings, max_doc_len=min(settings.max_doc_len, window - query_len))
    check_lengths(folder, settings, window)
    if architecture == "bert_dot":
        return BertDot(encoder, backbone.tokenizer(folder), settings, _dense(folder))
    classes: dict[str, type[TwoSides]] = {"colbert": ColBert, "prettr": PreTtr}
    model = classes[architecture](encoder, backbone.tokenizer(folder), settings)
    if same and model.head is not None and (folder / checkpoint_folder.HEAD).exists():
        model.head.load_state_dict(load_file(folder / checkpoint_folder.HEAD))
    return model


def _dense(folder: Path) -> list[pooling.Dense]:
    """The Dense layers behind the pooling of a sentence-transformers folder."""
    found = []
    for path in sentence_folder.dense_folders(folder):
        tensors = weights.load(path)
        needed = ["linear.weight"] + ["linear.bias"] * bool(read_json(path / "config.json", "config").get("bias", True))
        if lacking := [name for name in needed if name not in tensors]:
            raise InputError(f"{path} lacks weights that its Dense needs: {', '.join(lacking)}; get the whole checkpoint")
        found.append(pooling.Dense(tensors[needed[0]], tensors.get("linear.bias"), sentence_folder.activation_of(folder, path)))
    return found


def _load_tk(wanted: Wanted, glove: str | Path | None) -> Tk:
    """Load a TK of ours, or make a new one from a GloVe file or a checkpoint's input embeddings."""
    import torch
    from safetensors.torch import load_file

    from pyserini_kd.models.tk import Tk, TkSettings, read_glove

    folder = wanted.folder
    settings = settings_with(folder, TkSettings, checkpoint_folder.DEFAULT_DOC_LEN, wanted.overrides)
    if architecture_of(folder) == "tk":
        tensors = load_file(folder / "model.safetensors")
        model = Tk(torch.zeros_like(tensors["embeddings.weight"]), backbone.tokenizer(folder), settings)
        model.load_state_dict(tensors)
        return model
    if glove is not None:
        vectors, tokenizer = read_glove(Path(glove))
    else:
        tokenizer = backbone.tokenizer(folder)
        vectors = backbone.network(folder, "tk").get_input_embeddings().weight.detach()
    if "heads" not in wanted.overrides:  # 10 for the paper's width of 300; for others the nearest divisor
        heads = min((n for n in range(1, 17) if vectors.shape[1] % n == 0), key=lambda n: (abs(n - settings.heads), n))
        settings = dataclasses.replace(settings, heads=heads)
    return Tk(vectors, tokenizer, settings)


def _load_cross_encoder(wanted: Wanted) -> CrossEncoder:
    from pyserini_kd.models.cross_encoder import CrossEncoder, fold_two_classes
    from pyserini_kd.models.layers import keep_layers

    folder = wanted.folder
    if architecture_of(folder) == "cross_encoder":
        sentence_folder.check_pairs(folder)
        classifier = backbone.network(folder, "cross_encoder")
    else:  # a plain encoder gets a new ranking head
        classifier = backbone.network(folder, "cross_encoder", new_head=True, num_labels=1)
    labels = classifier.config.num_labels
    if labels == 2:
        fold_two_classes(classifier)
    elif labels != 1:
        raise InputError(f"checkpoint {folder} has {labels} labels; a ranker has one or two")
    if wanted.layers is not None:
        keep_layers(classifier.base_model, wanted.layers)
    tokenizer, room = backbone.tokenizer(folder), backbone.window_of(classifier)
    max_len = wanted.overrides.get("max_doc_len") or sentence_folder.lengths(folder, room)[1]
    check_length(folder, max_len, room)
    return CrossEncoder(classifier, tokenizer, max_len)
