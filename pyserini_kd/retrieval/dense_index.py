"""Dense indexes: one folder or several as one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyserini_kd.data import passages
from pyserini_kd.data.doc_ids import DocIds
from pyserini_kd.models.engine import dot_rows, unique
from pyserini_kd.retrieval import lucene, vector_store
from pyserini_kd.retrieval.stored_docs import shards
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import comparable, read_json

if TYPE_CHECKING:
    from pyserini_kd.models.rankers import Encoder

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class DenseIndex:
    """An inner-product index: the rows of FAISS or Lucene, and the document ids they stand for."""

    folder: Path
    index: Any
    doc_ids: DocIds
    manifest: dict[str, Any] | None

    @classmethod
    def load(cls, *folders: str | Path, mmap: bool = False) -> DenseIndex:
        """Open an index folder, or several as one (named, or listed as `shards` are): rows are counted through, in that order.

        A folder that is not ours (no manifest) is checked as far as it can be. With `mmap` vectors stay on disk and are read
        when a search needs them.

        Raises:
            InputError: a folder is missing or incomplete, its parts do not fit, its metric is not inner product, or the folders
                are not of one width and encoder, or share a document.
        """
        parts = [cls._load_one(folder, mmap) for folder in shards(*folders)]
        return parts[0] if len(parts) == 1 else cls._join(parts)

    @classmethod
    def _load_one(cls, folder: Path, mmap: bool) -> DenseIndex:
        if not folder.is_dir():
            raise InputError(f"index not found: {folder}")
        opened = folder.stat().st_ino
        if lucene.is_lucene_index(folder) and not (folder / "docid").is_file():
            raise InputError(f"{folder} is an index of words: search it by --encoder bm25, or give it as --sparse-index")
        if not (folder / "docid").is_file():
            raise InputError(f"index folder {folder} is incomplete: no file `docid` (expected `index` and `docid`)")
        manifest = read_json(folder / "manifest.json", "manifest") if (folder / "manifest.json").exists() else None
        if manifest and not isinstance(manifest.get("encoder", {}), dict):
            raise InputError(f"{folder / 'manifest.json'}: `encoder` must be a record, not {manifest['encoder']!r}")
        index = vector_store.read(folder, mmap, foreign=manifest is None)
        doc_ids = DocIds.read(folder)
        if index.ntotal != len(doc_ids):
            raise InputError(f"index folder {folder} does not fit: {index.ntotal} vectors but {len(doc_ids)} document ids")
        if manifest is None:
            logger.warning("%s has no manifest of ours: which encoder made it cannot be checked", folder)
            if doc_ids.twice() is not None:
                raise InputError(f"index folder {folder} is not searched: its `docid` names a document twice")
            if (odd := next((doc_id for doc_id in doc_ids if len(doc_id.split()) != 1), None)) is not None:
                raise InputError(f"index folder {folder} is not searched: its `docid` names {odd!r}, an id is one word")
        if folder.stat().st_ino != opened:
            raise InputError(f"{folder} was replaced while it was opened; start again")
        return cls(folder, index, doc_ids, manifest)

    @classmethod
    def _join(cls, parts: list[DenseIndex]) -> DenseIndex:
        first = parts[0]
        for part in parts[1:]:
            if part.width != first.width:
                raise InputError(f"{first.folder} holds vectors of {first.width}, {part.folder} of {part.width}")
        known = [part for part in parts if part.made_by]  # vectors made elsewhere may come from anything
        for part in known[1:]:
            if comparable(part.made_by) != comparable(known[0].made_by):
                raise InputError(f"{known[0].folder} and {part.folder} were made with different encoders or settings of one")
        passages.refuse_mixture(*((part.folder, part.manifest) for part in parts))
        joined = vector_store.Joined([part.index for part in parts])
        manifest = known[0].manifest if known else first.manifest
        whole = cls(first.folder, joined, DocIds.join(part.doc_ids for part in parts), manifest)
        if (twice := whole.doc_ids.twice()) is not None:
            where = " and ".join(str(part.folder) for part in parts if twice in part.doc_ids)
            raise InputError(f"document {twice!r} is in more than one index: {where}")
        return whole

    @property
    def width(self) -> int:
        """H: length of a vector."""
        return int(self.index.d)

    @property
    def is_exact(self) -> bool:
        """Whether the vectors are kept as they were made, not approximately."""
        return all(vector_store.is_flat(part) for part in getattr(self.index, "parts", [self.index]))

    @property
    def made_by(self) -> dict[str, Any]:
        """What the manifest says of the encoder, as `checkpoints.record_of` does; nothing where that is not known."""
        record = (self.manifest or {}).get("encoder", {})
        return record if "sha256" in record else {}

    def search(
        self, query_vecs: Floats, k: int, *, ef_search: int | None = None, nprobe: int | None = None
    ) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Scores float32 (Q, K) and rows int64 (Q, K), best first; row -1 where there are fewer than k.

        Which of equal scores an index keeps at the end is chance; here it is decided by doc_id, however the index is cut up.
        """
        if query_vecs.shape[1] != self.width:
            raise InputError(f"encoder and index do not match: vectors of {query_vecs.shape[1]} against {self.width}")
        vector_store.tune(self.index, self.folder, ef_search, nprobe)
        k = min(k, self.index.ntotal)
        scores, rows = self.index.search(query_vecs, min(k + 1, self.index.ntotal))
        tied = (scores[:, k - 1] == scores[:, -1]) & (rows[:, -1] >= 0) & (scores.shape[1] > k)
        for query in np.flatnonzero(tied).tolist():
            scores[query, :k], rows[query, :k] = self._cut_ties(query_vecs[query : query + 1], k)
        return scores[:, :k], rows[:, :k]

    def _cut_ties(self, query_vec: Floats, k: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        """The K best where equal scores go on beyond K: of those the larger doc_ids stay, as in a Run."""
        depth = k + 1
        while True:
            depth = min(2 * depth, self.index.ntotal)
            scores, rows = (found[0] for found in self.index.search(query_vec, depth))
            if depth == self.index.ntotal or rows[-1] < 0 or scores[-1] < scores[k - 1]:
                break
        real = np.flatnonzero((rows >= 0) & (scores >= scores[k - 1]))
        order = sorted(real.tolist(), key=lambda i: (scores[i], self.doc_ids[rows[i]]), reverse=True)[:k]
        return scores[order], rows[order]

    def vectors(self, doc_ids: Sequence[str]) -> Floats:
        """Stored vectors float32 (N, H) of documents, by id (exact for Flat, approximate for quantised indexes)."""
        rows = self.doc_ids.rows(doc_ids)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            raise InputError(f"{len(missing)} documents are not in the index {self.folder}, e.g. {doc_ids[missing[0]]}")
        return vector_store.vectors_of(self.index, rows)

    def score(self, encoder: Encoder, queries: Sequence[str], doc_ids: Sequence[str]) -> Floats:
        """Dot products float32 (P,) of (query, document) pairs with the stored vectors."""
        (texts, query_rows), (ids, doc_rows) = unique(queries), unique(doc_ids)
        return dot_rows(encoder.encode_queries(texts), query_rows, self.vectors(ids), doc_rows)
