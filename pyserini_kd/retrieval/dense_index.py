"""Dense indexes: vectors and document ids of one index folder, or of several joined."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyserini_kd.data import passages
from pyserini_kd.data.doc_ids import DocIds
from pyserini_kd.models.engine import dot_rows, unique
from pyserini_kd.retrieval import lucene
from pyserini_kd.retrieval.text_sources import shards
from pyserini_kd.storage.arrays import Floats, Nearest
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_path
from pyserini_kd.storage.manifest import Manifest
from pyserini_kd.storage.records import Record, comparable

if TYPE_CHECKING:
    from pyserini_kd.models.rankers import Encoder
    from pyserini_kd.retrieval.vector_store import VectorStore

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DenseIndex:
    """Document vectors, compared by inner product, and the document id of each row."""

    folder: Path  # the first if there are several
    store: VectorStore
    doc_ids: DocIds  # of each row
    manifest: Manifest | None  # None for a folder from another program

    @classmethod
    def open(cls, *folders: str | Path, mmap: bool = False, any_metric: bool = False) -> DenseIndex:
        """Open an index folder, or several as one (named, or listed as `shards`). Row numbers continue across folders.

        A folder without manifest is checked as far as possible. With `mmap`, vectors stay on disk until a search needs them.
        With `any_metric`, an index with L2 distance is opened too, to read its vectors.

        Raises:
            InputError: a folder is missing, incomplete or inconsistent, its metric is not inner product, or the folders differ
                in width or encoder, or share a document.
        """
        parts = [cls._open_one(folder, mmap, any_metric) for folder in shards(*folders)]
        return parts[0] if len(parts) == 1 else cls._join(parts)

    @classmethod
    def _open_one(cls, folder: Path, mmap: bool, any_metric: bool) -> DenseIndex:
        from pyserini_kd.retrieval.vector_store import open_store  # lazy: importing FAISS is slow

        opened = require_path(folder, "index").stat().st_ino
        if not (folder / "docid").is_file():
            if lucene.is_lucene_index(folder):
                raise InputError(f"{folder} is a text index; search it with the encoder bm25, or as a sparse index")
            raise InputError(f"index folder {folder} is incomplete: no file docid (expected index and docid)")
        manifest = Manifest.find(folder)
        if manifest is not None and manifest.kind == "impact":
            raise InputError(f"{folder} holds the impacts of a splade, not vectors; search it with the encoder that made it")
        store, doc_ids = open_store(folder, mmap, manifest is None, any_metric), DocIds.read(folder)
        if store.count != len(doc_ids):
            raise InputError(f"index folder {folder} is inconsistent: {store.count} vectors but {len(doc_ids)} document ids")
        if manifest is None:
            logger.warning("%s has no manifest; its encoder cannot be checked", folder)
            if doc_ids.twice() is not None:
                raise InputError(f"index folder {folder} cannot be searched: its docid file names a document twice")
            if (odd := next((doc_id for doc_id in doc_ids if len(doc_id.split()) != 1), None)) is not None:
                raise InputError(f"index folder {folder} cannot be searched: its docid file names {odd!r}, an id is one word")
        if folder.stat().st_ino != opened:
            raise InputError(f"{folder} was replaced while it was opened; start again")
        return cls(folder, store, doc_ids, manifest)

    @classmethod
    def _join(cls, parts: list[DenseIndex]) -> DenseIndex:
        first = parts[0]
        for part in parts[1:]:
            if part.width != first.width:
                raise InputError(f"{first.folder} holds vectors of width {first.width}, {part.folder} of width {part.width}")
        known = [part for part in parts if part.made_by]  # the others have no known encoder
        for part in known[1:]:
            if comparable(part.made_by) != comparable(known[0].made_by):
                raise InputError(f"{known[0].folder} and {part.folder} were made with different encoders or encoder settings")
        passages.refuse_mixture(*(part.manifest for part in parts))
        manifest = known[0].manifest if known else first.manifest
        doc_ids = DocIds.join(part.doc_ids for part in parts)
        if (twice := doc_ids.twice()) is not None:
            where = " and ".join(str(part.folder) for part in parts if twice in part.doc_ids)
            raise InputError(f"document {twice!r} is in more than one index: {where}")
        from pyserini_kd.retrieval.vector_store import JoinedStore  # lazy: importing FAISS is slow

        return cls(first.folder, JoinedStore([part.store for part in parts]), doc_ids, manifest)

    @property
    def width(self) -> int:
        """H: length of a vector."""
        return self.store.width

    @property
    def made_by(self) -> Record:
        """The encoder's record (see `checkpoint_folder.record_of`); empty if unknown."""
        return self.manifest.made_by if self.manifest else {}

    def search(self, query_vecs: Floats, k: int, *, ef_search: int | None = None, nprobe: int | None = None) -> Nearest:
        """Scores float32 (Q, K) and rows int64 (Q, K) for query vectors (Q, H), best first; row -1 if fewer than k are found.

        Ties at rank k go to the larger doc_ids, for any number of shards; a store alone would choose arbitrarily.
        """
        if query_vecs.shape[1] != self.width:
            raise InputError(
                f"encoder and index do not match: query vectors have width {query_vecs.shape[1]}, index vectors {self.width}"
            )
        find = functools.partial(self.store.search, ef_search=ef_search, nprobe=nprobe)
        k = min(k, self.store.count)
        scores, rows = find(query_vecs, min(k + 1, self.store.count))
        tied = (scores[:, k - 1] == scores[:, -1]) & (rows[:, -1] >= 0) & (scores.shape[1] > k)
        for query in np.flatnonzero(tied).tolist():
            find_one = functools.partial(find, query_vecs[query : query + 1])
            scores[query, :k], rows[query, :k] = self._cut_ties(find_one, k)
        return scores[:, :k], rows[:, :k]

    def _cut_ties(self, find: Callable[[int], Nearest], k: int) -> Nearest:
        """The k best for one query with ties beyond rank k: larger doc_ids win, as in a Run."""
        depth = k + 1
        while True:
            depth = min(2 * depth, self.store.count)
            scores, rows = (found[0] for found in find(depth))
            if depth == self.store.count or rows[-1] < 0 or scores[-1] < scores[k - 1]:
                break
        real = np.flatnonzero((rows >= 0) & (scores >= scores[k - 1]))
        order = sorted(real.tolist(), key=lambda i: (scores[i], self.doc_ids[rows[i]]), reverse=True)[:k]
        return scores[order], rows[order]

    def vectors(self, doc_ids: Sequence[str]) -> Floats:
        """Stored vectors float32 (N, H) of documents; approximate if the index quantises. InputError for an unknown id."""
        rows = self.doc_ids.rows(doc_ids)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            raise InputError(f"{len(missing)} documents are not in the index {self.folder}, e.g. {doc_ids[missing[0]]}")
        return self.store.reconstruct(rows)

    def score(self, encoder: Encoder, queries: Sequence[str], doc_ids: Sequence[str]) -> Floats:
        """Dot products float32 (P,) of (query, document) pairs with the stored vectors."""
        (texts, query_rows), (ids, doc_rows) = unique(queries), unique(doc_ids)
        return dot_rows(encoder.encode_queries(texts), query_rows, self.vectors(ids), doc_rows)
