"""Dense indexes, opened: one folder or several (ours, Pyserini's, others'), the texts beside them, the encoder that fits."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyserini_kd import inference, kinds, lucene, passages
from pyserini_kd.data import Doc
from pyserini_kd.doc_ids import DocIds
from pyserini_kd.files import InputError, comparable, read_json, require_file
from pyserini_kd.models import checkpoints

if TYPE_CHECKING:
    from pyserini_kd.models.bert_dot import BertDot

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
        index = kinds.read(folder, mmap, foreign=manifest is None)
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
        joined = kinds.Joined([part.index for part in parts])
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
        return all(kinds.is_flat(part) for part in getattr(self.index, "parts", [self.index]))

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
        kinds.tune(self.index, self.folder, ef_search, nprobe)
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
        return kinds.vectors_of(self.index, rows)

    def score(self, encoder: BertDot, queries: Sequence[str], doc_ids: Sequence[str], **settings: Any) -> Floats:
        """Dot products float32 (P,) of (query, document) pairs with the stored vectors; `settings` of `inference.encode`."""
        (texts, query_rows), (ids, doc_rows) = inference.unique(queries), inference.unique(doc_ids)
        query_vecs = inference.encode(encoder, texts, "query", label="encode queries", **settings)
        return inference.dot_rows(query_vecs, query_rows, self.vectors(ids), doc_rows)


def shards(*paths: str | Path) -> list[Path]:
    """The index folders that stand behind some paths: folders themselves, and what a manifest of shards lists.

    Such a manifest is a JSON file `{"shards": ["a", "b", ...]}`, folders beside it or with their whole path, or a folder that
    holds it as `manifest.json`.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_file() and path.suffix != ".json":
            raise InputError(f"{path} is a file; name the index folder, or a manifest of shards (.json)")
        manifest = path / "manifest.json" if path.is_dir() else path
        listed = read_json(manifest, "index").get("shards") if manifest.is_file() else None
        if path.is_file() or listed is not None:
            if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
                raise InputError(f'{manifest}: expected {{"shards": ["folder", ...]}}')
            found += [manifest.parent / name for name in listed]
        else:
            found.append(path)
    return found


def has_docs(*paths: Path) -> bool:
    """Whether all index folders are ours and hold the texts."""
    return all((folder / name).is_file() for folder in shards(*paths) for name in ("docid", "docs.jsonl", "docs.offsets"))


def stored_docs(*paths: Path, known: DocIds | None = None) -> Callable[[Iterable[str]], Iterator[Doc]]:
    """A function from ids to stored documents of one index folder or several, in the order asked; no vectors are loaded.

    `known` are the ids of the folders where an index of them is open: they then are in memory once.
    """
    folders = shards(*paths)
    texts = [_Lines(folder) for folder in folders]
    starts = np.cumsum([0, *map(len, texts)]).tolist()
    ids = DocIds.read(*folders) if known is None else known
    ids.get_ready()  # while everything is opened, not at the first request
    if starts[-1] != len(ids):
        raise InputError(f"{' and '.join(map(str, folders))}: `docid` and `docs.offsets` are not of one collection")

    def fetch(doc_ids: Iterable[str]) -> Iterator[Doc]:
        for doc_id in doc_ids:
            row = ids.row(doc_id)
            if row < 0:
                raise InputError(f"document {doc_id!r} is not in the index {' or '.join(map(str, folders))}")
            part = bisect_right(starts, row) - 1
            doc = texts[part].doc(row - starts[part])
            if doc.doc_id != doc_id:
                raise InputError(f"{folders[part]} was replaced after it was opened ({doc.doc_id} for {doc_id}); start again")
            yield doc

    return fetch


class _Lines:
    """The stored documents of a folder by row; opened once, so that an index that takes its place changes nothing here."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "docs.jsonl"
        self._file = open(self._path, "rb", buffering=0)  # noqa: SIM115 - open as long as this lives
        starts = np.memmap(require_file(folder / "docs.offsets", "offsets"), dtype="<u8", mode="r")
        self._starts, self._end = starts, os.fstat(self._file.fileno()).st_size

    def __len__(self) -> int:
        return len(self._starts)

    def doc(self, row: int) -> Doc:
        start = int(self._starts[row])
        end = int(self._starts[row + 1]) if row + 1 < len(self) else self._end
        try:
            return Doc(*json.loads(os.pread(self._file.fileno(), end - start, start)))
        except (ValueError, OSError):
            raise InputError(f"{self._path} is damaged: no document at byte {start}") from None


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
    mine = checkpoints.record_of(encoder, checkpoint)
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
    checkpoint = checkpoints.resolve(name)
    made_by = index.made_by
    if made_by and made_by["sha256"] == checkpoints.fingerprint(checkpoint):
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
        inference.use_threads(threads)
    saved = checkpoints.architecture_of(checkpoints.resolve(name))
    if saved != "bert_dot":
        raise InputError(f"{name} is a {saved}; a dense index needs a bert_dot checkpoint")
    return inference.load(name, device=device, precision=precision, backend=backend, **overrides)  # type: ignore[return-value]
