"""Open a dense index together with the encoder that made it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyserini_kd.models import checkpoint_names, checkpoint_settings, engine, hardware
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.storage.errors import InputError

if TYPE_CHECKING:
    from pyserini_kd.models.bert_dot import BertDot


def check_encoder(index: DenseIndex, encoder: BertDot, checkpoint: Path, *, ignore: bool = False) -> None:
    """InputError where the encoder is not the one that made the index (width, checksum, pooling, normalisation)."""
    if encoder.width != index.width:
        raise InputError(
            f"encoder does not match index {index.folder}: {checkpoint} gives vectors of {encoder.width}, "
            f"the index holds {index.width}"
        )
    made_by = index.made_by
    if not made_by or ignore:
        return
    mine = checkpoint_settings.record_of(encoder, checkpoint)
    for name in ("sha256", "pooling", "l2_norm", "doc_prefix"):
        if name in made_by and made_by[name] != mine[name]:
            raise InputError(
                f"encoder does not match index {index.folder}: {name} is {str(mine[name])[:12]}, the index was made with "
                f"{str(made_by[name])[:12]} ({made_by.get('name')}); --ignore-encoder-mismatch if that is meant"
            )


def open_with_encoder(
    folder: str | Path | Sequence[str | Path],
    name: str,
    *,
    mmap: bool = False,
    device: str = "cpu",
    ignore_mismatch: bool = False,
    **overrides: Any,
) -> tuple[DenseIndex, BertDot]:
    """Open an index, or several as one, with the query encoder `name`; InputError where they do not match.

    Pooling, normalisation and prefixes come from `overrides`, else from the index's manifest where this checkpoint made
    it, else from the checkpoint.
    """
    folders = [folder] if isinstance(folder, str | Path) else folder
    index = DenseIndex.load(*folders, mmap=mmap)
    checkpoint = checkpoint_names.resolve(name)
    made_by = index.made_by
    if made_by and made_by["sha256"] == checkpoint_names.fingerprint(checkpoint):
        kept = {field: made_by.get(field) for field in ("pooling", "l2_norm", "query_prefix", "doc_prefix")}
        overrides = kept | {field: value for field, value in overrides.items() if value is not None}
    encoder = load_encoder(name, device, **overrides)
    check_encoder(index, encoder, checkpoint, ignore=ignore_mismatch)
    return index, encoder


def load_encoder(
    name: str,
    device: str = "cpu",
    threads: int | None = None,
    *,
    precision: str = "auto",
    backend: str = "auto",
    **overrides: Any,
) -> BertDot:
    """A BERT_DOT checkpoint on a device; InputError for another architecture."""
    if threads:
        hardware.use_threads(threads)
    saved = checkpoint_settings.architecture_of(checkpoint_names.resolve(name))
    if saved != "bert_dot":
        raise InputError(f"{name} is a {saved}; a dense index needs a bert_dot checkpoint")
    return engine.load(name, device=device, precision=precision, backend=backend, **overrides)  # type: ignore[return-value]
