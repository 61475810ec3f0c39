"""Open an index with the encoder that made it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyserini_kd.models import checkpoint_folder
from pyserini_kd.models.rankers import Encoder, load_encoder
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.storage.errors import InputError

SIDES = ("sha256", "pooling", "l2_norm", "doc_prefix")
"""Settings that determine a document's vector, besides text length and precision."""


def check_encoder(index: DenseIndex, encoder: Encoder, *, ignore: bool = False) -> None:
    """InputError if the encoder did not make the index; with `ignore`, only its width is checked."""
    if encoder.width != index.width:
        raise InputError(
            f"encoder does not match index {index.folder}: {encoder.folder} has vectors of width {encoder.width}, "
            f"the index of width {index.width}"
        )
    if not ignore and index.manifest is not None and index.made_by:
        try:
            index.manifest.refuse_other(encoder.record(), SIDES)
        except InputError as error:
            raise InputError(f"{error}; to search anyway, set `ignore_encoder_mismatch`") from None


def open_with_encoder(
    folders: str | Path | Sequence[str | Path], name: str, *, mmap: bool = False, ignore_mismatch: bool = False, **settings: Any
) -> tuple[DenseIndex, Encoder]:
    """Open an index folder, or several as one, with the query encoder `name`; InputError if they do not match.

    `settings` as for `models.load`. Pooling, normalisation and prefixes come from `settings`, else from the index's manifest if
    this checkpoint made it, else from the checkpoint.
    """
    index = DenseIndex.open(*([folders] if isinstance(folders, str | Path) else folders), mmap=mmap)
    made_by = index.made_by
    if made_by and made_by["sha256"] == checkpoint_folder.fingerprint(checkpoint_folder.resolve(name)):
        kept = {field: made_by.get(field) for field in ("pooling", "l2_norm", "query_prefix", "doc_prefix")}
        settings = kept | {field: value for field, value in settings.items() if value is not None}
    encoder = load_encoder(name, **settings)
    check_encoder(index, encoder, ignore=ignore_mismatch)
    return index, encoder
