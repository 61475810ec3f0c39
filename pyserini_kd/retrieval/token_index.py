"""Stored document representations: token vectors for ColBERT and TK, states at the join layer for PreTTR.

An index folder holds `vectors` (little-endian, M tokens x H, read through memory mapping), `offsets` (document n has tokens
`offsets[n]` to `offsets[n + 1]`), `docid`, the texts unless that was refused, and `manifest.json`, which says what checkpoint
made it, and how.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

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

if TYPE_CHECKING:
    import torch


logger = logging.getLogger(__name__)

ARCHITECTURES = ("colbert", "prettr", "tk")
DTYPES = {"fp16": "<f2", "fp32": "<f4"}
BLOCK = 512  # documents in a block: what a crash can cost, and what memory holds


class TokenManifest(Manifest):
    """The manifest of stored representations: (M, `width`) numbers of type `dtype`, for rankers of an architecture."""

    architecture: str
    dtype: Literal["fp16", "fp32"]
    width: int


@dataclasses.dataclass(frozen=True)
class TokenIndex:
    """Stored representations of documents, of one folder or several: (M, H) each, and where each document's begin."""

    folders: tuple[Path, ...]
    vectors: tuple[AnyArray, ...]
    offsets: tuple[npt.NDArray[np.int64], ...]
    starts: tuple[int, ...]  # the first row of each folder; rows are counted through
    doc_ids: DocIds
    manifest: TokenManifest

    @classmethod
    def open(cls, *folders: str | Path) -> TokenIndex:
        """Open a folder, or several as one.

        Raises:
            InputError: the parts of a folder do not fit, or the folders are not of one encoder, or share a document.
        """
        manifests = [TokenManifest.read(folder) for folder in folders]
        for manifest in manifests[1:]:
            for name in ("architecture", "encoder", "segment"):
                if comparable(getattr(manifest, name)) != comparable(getattr(manifests[0], name)):
                    raise InputError(f"{folders[0]} and {manifest.folder} were made with different settings ({name})")
        vectors, offsets, starts = [], [], []
        every: list[DocIds] = []
        for manifest in manifests:
            folder, width, dtype = manifest.folder, manifest.width, np.dtype(DTYPES[manifest.dtype])
            doc_ids = DocIds.read(folder)
            offsets.append(np.fromfile(require_file(folder / "offsets", "offsets"), dtype="<i8"))
            size = require_file(folder / "vectors", "vectors").stat().st_size
            if len(offsets[-1]) != len(doc_ids) + 1 or size != int(offsets[-1][-1]) * width * dtype.itemsize:
                raise InputError(f"index folder {folder} does not fit: docid, offsets and vectors are not of one collection")
            shape = (int(offsets[-1][-1]), width)
            vectors.append(np.memmap(folder / "vectors", dtype=dtype, mode="r", shape=shape))
            starts.append(sum(map(len, every)))
            every.append(doc_ids)
        joined = DocIds.join(every)
        if (twice := joined.twice()) is not None:
            where = " and ".join(str(folder) for folder, own in zip(folders, every, strict=True) if twice in own)
            raise InputError(f"document {twice!r} is stored more than once: {where}")
        return cls(tuple(map(Path, folders)), tuple(vectors), tuple(offsets), tuple(starts), joined, manifests[0])

    def of(self, doc_id: str) -> Floats:
        """Representation float32 (D, H) of a document."""
        row = self.doc_ids.row(doc_id)
        if row < 0:
            raise KeyError(doc_id)
        part = bisect_right(self.starts, row) - 1
        begin, end = self.offsets[part][row - self.starts[part] :][:2]
        return self.vectors[part][begin:end].astype(np.float32)

    def check(self, scorer: TokenScorer) -> None:
        """InputError where the ranker, read as it is now, is not the one that made the index."""
        record = scorer.record()
        self.manifest.refuse_other(record, [name for name in record if name != "name"])

    def score(self, scorer: TokenScorer, queries: Sequence[str], doc_ids: Sequence[str]) -> Floats:
        """Raw scores float32 (P,) of (query, stored document) pairs: `Scorer.score` up to what `dtype` rounds."""
        import torch

        self.parts(doc_ids, None)
        (texts, query_rows), (ids, doc_rows) = unique(queries), unique(doc_ids)
        return scorer.score_represented(
            texts, query_rows, doc_rows, lambda rows: [torch.from_numpy(self.of(ids[row])) for row in rows]
        )

    def parts(self, doc_ids: Iterable[str], segment: str | None) -> dict[str, list[str]]:
        """What is stored of each document: itself, or with `segment` its passages, in the order of the text.

        Raises:
            InputError: the index holds passages of another size, or none, or does not hold a document.
        """
        stored = self.manifest.segment
        where = " and ".join(map(str, self.folders))
        if segment and segment != stored:
            holds = f"passages of {stored}" if stored else "whole documents, no passages"
            raise InputError(f"{where} holds {holds}, not --segment {segment}; name the --collection to cut texts anew")
        found = {d: passages.stored_parts(d, self.doc_ids) if segment else [d] * (d in self.doc_ids) for d in doc_ids}
        missing = [doc_id for doc_id, parts in found.items() if not parts]
        if missing:
            hint = f"; it holds passages: give --segment {stored} to rerank their documents" if stored and not segment else ""
            raise InputError(f"{len(missing)} documents are not in the index {where}, e.g. {missing[0]}{hint}")
        return found


def architecture_in(folder: str | Path) -> str | None:
    """The architecture whose representations a folder holds; None where it is no such folder."""
    manifest = Manifest.find(folder)
    return TokenManifest.read(folder).architecture if manifest and manifest.kind == "tokens" else None


def load_scorer(name: str, architecture: str, **settings: Any) -> TokenScorer:
    """A checkpoint of the architecture (`settings` as for `models.load`).

    A bi-encoder can be read as a ColBERT; nothing else can be read as something it is not.
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
    """Store the representations of a stream of documents, numbers as `dtype`; arguments and result as in `build.build`."""
    made_from = {"architecture": scorer.architecture, "encoder": scorer.record(), **scorer.arithmetic()}
    made_from |= {"dtype": dtype, "segment": options.get("segment")}
    cut: list[int] = []

    def make(job: Job, number: int, some: list[Doc]) -> None:
        found = scorer.encode_docs([doc.contents for doc in some], cut=cut, label="encode")
        with atomic_file(job.path(number, "tokens"), binary=True) as out:
            for doc, states in zip(some, found, strict=True):
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


def _stored(doc: Doc, states: torch.Tensor, dtype: Literal["fp16", "fp32"]) -> bytes:
    with np.errstate(over="ignore"):
        stored = states.numpy().astype(DTYPES[dtype])
    if not np.isfinite(stored).all():
        raise InputError(f"document {doc.doc_id!r} has values that {dtype} cannot hold; take --dtype fp32")
    return stored.tobytes()
