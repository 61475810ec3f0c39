"""Query vectors kept between searches: a folder with one safetensors file for each way of encoding.

A file holds the SHA-256 of each text and its vector; its name is a checksum of all that a vector depends on besides the text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pyserini_kd.models.rankers import Encoder
from pyserini_kd.storage.arrays import AnyArray, Floats
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class QueryCache:
    """The file of one way of encoding; `made_by` says which."""

    path: Path
    made_by: str

    @classmethod
    def of(cls, folder: str | Path, encoder: Encoder) -> QueryCache:
        """The cache of what an encoder makes of queries: weights, pooling, length, prefix and arithmetic tell it apart."""
        known = encoder.record()
        made_by = {field: known[field] for field in ("pooling", "l2_norm", "max_query_len", "query_prefix", "sha256")}
        made_by |= encoder.arithmetic()
        text = json.dumps(made_by, sort_keys=True)
        return cls(Path(folder) / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors", text)

    def encode(self, texts: Sequence[str], encode: Callable[[list[str]], Floats]) -> Floats:
        """Vectors float32 (Q, H) of texts: those known from the file, the others by `encode`, which are then kept too.

        Raises:
            InputError: the file is damaged, or not ours.
        """
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]
        known, vectors = self._read()
        rows = {key: row for row, key in enumerate(known)}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in rows}
        if missing:
            found = encode(list(missing.values()))
            vectors = found if vectors is None else np.concatenate([vectors, found])
            rows |= {key: row for row, key in enumerate(missing, start=len(known))}
            self._write([*known, *missing], vectors)
        logger.info("%d of %d queries are encoded, the others come from %s", len(missing), len(set(keys)), self.path)
        if vectors is None:  # no queries, no file
            return encode([])
        return vectors[[rows[key] for key in keys]]

    def _read(self) -> tuple[list[bytes], Floats | None]:
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return [], None
        try:
            with safe_open(self.path, framework="numpy") as stored:
                digests, vectors = stored.get_tensor("texts"), stored.get_tensor("vectors")
                made_by = (stored.metadata() or {}).get("made_by")
        except SafetensorError as error:
            raise InputError(f"the query cache {self.path} is damaged or not ours ({error}); remove it") from error
        if made_by != self.made_by or digests.shape != (len(vectors), 32):
            raise InputError(f"the query cache {self.path} is not ours; remove it")
        return [digest.tobytes() for digest in digests], vectors

    def _write(self, keys: list[bytes], vectors: Floats) -> None:
        from safetensors.numpy import save

        tensors: dict[str, AnyArray] = {"texts": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32), "vectors": vectors}
        with atomic_file(self.path, binary=True) as out:
            out.write(save(tensors, {"made_by": self.made_by}))
