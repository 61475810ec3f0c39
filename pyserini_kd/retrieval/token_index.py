"""Stored document representations: token vectors for ColBERT and TK, states at the join layer for PreTTR.

An index folder holds `vectors` (little-endian, M tokens x H, memory-mapped), `offsets` (document n has tokens `offsets[n]` to
`offsets[n + 1]`), `docid`, the texts if stored, and `manifest.json` (checkpoint and settings).
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import numpy.typing as npt

from pyserini_kd.data import passages
from pyserini_kd.data.doc_ids import DocIds
from pyserini_kd.data.types import Doc
from pyserini_kd.models import checkpoint_folder, rankers
from pyserini_kd.models.engine import unique
from pyserini_kd.models.rankers import TokenScorer
from pyserini_kd.retrieval import index_folder
from pyserini_kd.retrieval.index_folder import Blocks, Options
from pyserini_kd.storage.arrays import AnyArray, Floats
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, require_file
from pyserini_kd.storage.job import Job
from pyserini_kd.storage.manifest import Manifest
from pyserini_kd.storage.records import Record, comparable

logger = logging.getLogger(__name__)

ARCHITECTURES = ("colbert", "prettr", "tk")
DTYPES = {"fp16": "<f2", "fp32": "<f4"}
BLOCK = 512  # documents in a block: memory holds one block, and a crash loses one at most


class TokenManifest(Manifest):
    """The manifest of stored representations: (M, `width`) numbers of `dtype` for an `architecture`."""

    architecture: str
    dtype: Literal["fp16", "fp32"]
    width: int


@dataclasses.dataclass(frozen=True)
class TokenIndex:
    """Stored representations (M, H) and document offsets, of one folder or several."""

    folders: tuple[Path, ...]
    vectors: tuple[AnyArray, ...]
    offsets: tuple[npt.NDArray[np.int64], ...]
    starts: tuple[int, ...]  # the first row of each folder; row numbers continue across folders
    doc_ids: DocIds
    manifest: TokenManifest

    @classmethod
    def open(cls, *folders: str | Path) -> TokenIndex:
        """Open a folder, or several as one.

        Raises:
            InputError: a folder is inconsistent, or the folders differ in encoder or settings, or share a document.
        """
        manifests = [TokenManifest.read(folder) for folder in folders]
        for manifest in manifests[1:]:
            for name in ("architecture", "encoder", "segment"):
                if comparable(getattr(manifest, name)) != comparable(getattr(manifests[0], name)):
                    raise InputError(f"{folders[0]} and {manifest.folder} were made with different settings ({name})")
        vectors, offsets, starts = [], [], []
        ids: list[DocIds] = []
        for manifest in manifests:
            folder, width, dtype = manifest.folder, manifest.width, np.dtype(DTYPES[manifest.dtype])
            doc_ids = DocIds.read(folder)
            offsets.append(np.fromfile(require_file(folder / "offsets", "offsets"), dtype="<i8"))
            size = require_file(folder / "vectors", "vectors").stat().st_size
            if len(offsets[-1]) != len(doc_ids) + 1 or size != int(offsets[-1][-1]) * width * dtype.itemsize:
                raise InputError(f"index folder {folder} is inconsistent: docid, offsets and vectors are not of one collection")
            shape = (int(offsets[-1][-1]), width)
            vectors.append(np.memmap(folder / "vectors", dtype=dtype, mode="r", shape=shape))
            starts.append(sum(map(len, ids)))
            ids.append(doc_ids)
        joined = DocIds.join(ids)
        if (twice := joined.twice()) is not None:
            where = " and ".join(str(folder) for folder, here in zip(folders, ids, strict=True) if twice in here)
            raise InputError(f"document {twice!r} is stored more than once: {where}")
        return cls(tuple(map(Path, folders)), tuple(vectors), tuple(offsets), tuple(starts), joined, manifests[0])

    def of(self, doc_id: str) -> Floats:
        """Representation float32 (D, H) of a document; KeyError for an unknown id."""
        row = self.doc_ids.row(doc_id)
        if row < 0:
            raise KeyError(doc_id)
        part = bisect_right(self.starts, row) - 1
        begin, end = self.offsets[part][row - self.starts[part] :][:2]
        return self.vectors[part][begin:end].astype(np.float32)

    def check(self, scorer: TokenScorer) -> None:
        """InputError if the ranker with its settings did not make the index."""
        record = scorer.record()
        self.manifest.refuse_other(record, [name for name in record if name != "name"])

    def score(self, scorer: TokenScorer, queries: Sequence[str], doc_ids: Sequence[str]) -> Floats:
        """Raw scores float32 (P,) of (query, stored document) pairs, as `Scorer.score` up to rounding by `dtype`."""
        self.parts(doc_ids, None)
        (texts, query_rows), (ids, doc_rows) = unique(queries), unique(doc_ids)
        return scorer.score_represented(texts, query_rows, doc_rows, lambda rows: [self.of(ids[row]) for row in rows])

    def parts(self, doc_ids: Iterable[str], segment: str | None) -> dict[str, list[str]]:
        """The stored ids of each document: itself, or with `segment` its passages, in text order.

        Raises:
            InputError: the index has no passages of this size, or lacks a document.
        """
        stored = self.manifest.segment
        where = " and ".join(map(str, self.folders))
        if segment and segment != stored:
            holds = f"passages of {stored}" if stored else "whole documents"
            raise InputError(f"{where} holds {holds}, not passages of {segment}; give a `collection` to cut its texts")
        found = {d: passages.stored_parts(d, self.doc_ids) if segment else [d] * (d in self.doc_ids) for d in doc_ids}
        missing = [doc_id for doc_id, parts in found.items() if not parts]
        if missing:
            hint = f"; it holds passages: set `segment` to {stored} to rerank their documents" if stored and not segment else ""
            raise InputError(f"{len(missing)} documents are not in the index {where}, e.g. {missing[0]}{hint}")
        return found


def architecture_in(folder: str | Path) -> str | None:
    """The architecture of the representations in a folder; None if it has none."""
    manifest = Manifest.find(folder)
    return TokenManifest.read(folder).architecture if manifest and manifest.kind == "tokens" else None


def load_scorer(name: str, architecture: str, **settings: Any) -> TokenScorer:
    """Load a checkpoint as an architecture; `settings` as for `models.load`.

    A bert_dot can be loaded as a ColBERT; any other mismatch is an InputError.
    """
    saved = checkpoint_folder.architecture_of(checkpoint_folder.resolve(name))
    if saved != architecture and (saved, architecture) != ("bert_dot", "colbert"):
        raise InputError(f"{name} is a {saved}; its documents cannot be stored for a {architecture}")
    scorer = rankers.load(name, architecture=architecture, **settings)
    assert isinstance(scorer, TokenScorer)
    return scorer


def build(
    docs: Iterable[Doc],
    scorer: TokenScorer,
    folder: str | Path,
    *,
    dtype: Literal["fp16", "fp32"] = "fp16",
    **options: Unpack[Options],
) -> int | None:
    """Store representations of documents as `dtype` numbers; other arguments and result as in `dense_build.index_dense`."""
    made_from = {"architecture": scorer.architecture, "encoder": scorer.record(), **scorer.arithmetic()}
    made_from |= {"dtype": dtype, "segment": options.get("segment")}
    cut: list[int] = []

    def make(job: Job, number: int, block: list[Doc]) -> None:
        found = scorer.encode_docs([doc.contents for doc in block], cut=cut, label="encode")
        with atomic_file(job.path(number, "tokens"), binary=True) as out:
            for doc, states in zip(block, found, strict=True):
                out.write(_stored(doc, states, dtype))
        with atomic_file(job.path(number, "lengths"), binary=True) as out:
            out.write(np.array([len(states) for states in found], dtype="<i8").tobytes())

    def assemble(blocks: Blocks, new: Path) -> Record:
        n_tokens = 0
        with open(new / "vectors", "wb") as out, open(new / "offsets", "wb") as offsets:
            offsets.write(bytes(8))
            for tokens, lengths in zip(blocks.paths("tokens"), blocks.paths("lengths"), strict=True):
                with open(tokens, "rb") as part:
                    shutil.copyfileobj(part, out, 1 << 20)
                ends = n_tokens + np.cumsum(np.fromfile(lengths, dtype="<i8"))
                offsets.write(ends.astype("<i8").tobytes())
                n_tokens = int(ends[-1])
        return {"kind": "tokens", "width": scorer.width, "n_tokens": n_tokens}

    count = index_folder.build(docs, Path(folder), made_from, make, assemble, default_block=BLOCK, **options)
    scorer.count_cut(sum(cut), count, "documents")
    return count


def _stored(doc: Doc, states: Floats, dtype: Literal["fp16", "fp32"]) -> bytes:
    with np.errstate(over="ignore"):
        stored = states.astype(DTYPES[dtype])
    if not np.isfinite(stored).all():
        raise InputError(f"document {doc.doc_id!r} has values that {dtype} cannot hold; set `dtype` to fp32")
    return stored.tobytes()
