"""Dense indexes: encode a collection in resumable blocks, build a FAISS or Lucene index, open one (ours, Pyserini's, others').

An index folder holds `index` and `docid` exactly as Pyserini's FaissSearcher reads them, or a Lucene index as Pyserini's
LuceneHnswDenseSearcher reads it and `docid`; and beside them our `manifest.json` (who encoded it, how) and `docs.jsonl` with
`docs.offsets` (the texts, for snippets and reranking).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import numpy.typing as npt

from pyserini_kd import blocks, inference, kinds, lucene, passages, sources, token_index, vectors
from pyserini_kd.cli import command
from pyserini_kd.data import Doc
from pyserini_kd.doc_ids import DocIds
from pyserini_kd.files import (
    InputError,
    atomic_file,
    comparable,
    read_json,
    refuse_existing,
    require_file,
)
from pyserini_kd.models import checkpoints

if TYPE_CHECKING:
    from pyserini_kd.models.bert_dot import BertDot

logger = logging.getLogger(__name__)

BLOCK = 8192  # documents a block: what a crash can cost

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
            yield texts[part].doc(row - starts[part])

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


# ------------------------------------------------------------------------------------------------------ building


def build(
    docs: Iterable[Doc],
    encoder: BertDot,
    checkpoint: Path,
    folder: str | Path,
    *,
    kind: str = "Flat",
    precision: str = "auto",
    batch_size: int | None = None,
    store_docs: bool = True,
    overwrite: bool = False,
    block: int | None = None,
    shard: tuple[int, int] = (0, 1),
    collection: str = "",
    segment: str | None = None,
) -> int | None:
    """Encode a stream of documents and write an index folder of a kind (see `kinds`); returns the number of documents.

    Works in blocks (of BLOCK documents, unless told) under `.NAME.partial/` beside the folder: after a crash, a kill or Ctrl-C
    the same command goes on with the blocks that are missing or whose documents have changed; a second process shares the
    work. With `shard` = (I, N) only every N-th block is encoded here: the process that ends last writes the index, the others
    return None. The bytes written do not depend on any of this (`manifest.json` excepted, which holds the time, and Lucene's
    files, which hold random names). The manifest names the `collection` and says how it was cut into passages (`segment`).
    """
    settings: dict[str, Any] = {
        "encoder": checkpoints.record_of(encoder, checkpoint),
        "precision": inference.precision_of(encoder, precision),
        "backend": inference.backend_of(encoder),
        "block": block or BLOCK,
        "store_docs": store_docs,
    }
    cut: list[int] = []

    def encode(texts: list[str]) -> Floats:
        return inference.encode(encoder, texts, "doc", precision=precision, batch_size=batch_size, cut=cut)

    count = build_from(
        docs, encode, encoder.width, folder, settings,
        kind=kind, overwrite=overwrite, shard=shard, collection=collection, segment=segment,
    )
    inference.log_cut(sum(cut), count, encoder.settings.max_doc_len, "documents")
    return count


def build_from(
    docs: Iterable[Doc],
    encode: Callable[[list[str]], Floats],
    width: int,
    folder: str | Path,
    settings: dict[str, Any],
    *,
    kind: str,
    overwrite: bool,
    shard: tuple[int, int],
    collection: str,
    segment: str | None = None,
) -> int | None:
    """`build` with any function from texts to vectors (N, H); `settings` is what the vectors depend on.

    The manifest says by `segment` how the documents were cut into passages, and of which `collection` they are.
    """
    logger.info("%s", kinds.estimate(width, kind))

    def make(work: blocks.Work, number: int, block: list[Doc]) -> None:
        found = encode([doc.contents for doc in block])
        if not np.isfinite(found).all():
            lost = next(doc.doc_id for doc, vector in zip(block, found, strict=True) if not np.isfinite(vector).all())
            raise InputError(f"the vector of document {lost!r} is not finite; these weights, so computed, are of no use")
        _save(work, number, found)

    def assemble(work: blocks.Work, new: Path) -> dict[str, Any]:
        kinds.write(work.paths("npy"), width, kind, new)
        return {"kind": "dense", "metric": "inner_product", "width": width}

    only_result = {"index": kind, "collection": collection, "segment": segment, "collection_stamp": sources.stamp(collection)}
    return blocks.build(docs, Path(folder), settings, make, assemble, only_result=only_result, overwrite=overwrite, shard=shard)


def _save(work: blocks.Work, number: int, found: Floats) -> None:
    with atomic_file(work.path(number, "npy"), binary=True) as out:
        np.save(out, found)


def build_from_vectors(
    path: Path,
    ids: Path | None,
    folder: str | Path,
    *,
    kind: str = "Flat",
    encoder: dict[str, Any] | None = None,
    width: int | None = None,
    overwrite: bool = False,
) -> int | None:
    """Write an index folder of vectors made elsewhere (see `vectors.read`); `encoder` is what the manifest says of their maker.

    No texts are stored. A run that was killed is gone on with, as in `build`. InputError where `width`, the encoder's, is not
    that of the vectors.
    """

    def make(work: blocks.Work, number: int, block: list[vectors.Embedded]) -> None:
        found = np.stack([one.vector for one in block])
        if width and found.shape[1] != width:
            raise InputError(f"{path} holds vectors of {found.shape[1]}, the encoder makes vectors of {width}")
        _save(work, number, found)

    def assemble(work: blocks.Work, new: Path) -> dict[str, Any]:
        files = work.paths("npy")
        own = np.load(files[0], mmap_mode="r").shape[1]
        kinds.write(files, own, kind, new)
        return {"kind": "dense", "metric": "inner_product", "width": own}

    found = vectors.read(path, ids, lambda source: DenseIndex.load(source, mmap=True))
    settings = {"encoder": encoder or {"name": "unknown"}, "vectors": str(path), "block": BLOCK, "store_docs": False}
    return blocks.build(found, Path(folder), settings, make, assemble, only_result={"index": kind}, overwrite=overwrite)


# ------------------------------------------------------------------------------------------------------- command


@command(
    name="index",
    example="pyserini-kd index --collection docs.jsonl --encoder models/student --index indexes/docs.student",
)
@click.option("--collection", help="Collection: a path, ir_datasets:<id> or pydocs.")
@click.option("--encoder", help="Checkpoint (name, folder or hub id), or bm25 for a Lucene index.")
@click.option(
    "--vectors", "ready", type=click.Path(path_type=Path),
    help="Instead of --collection: vectors made elsewhere, .npy, Pyserini's embeddings.jsonl, an index folder.",
)  # fmt: skip
@click.option("--ids", type=click.Path(path_type=Path), help="With --vectors X.npy: ids of the rows, one a line.")
@click.option("--index", "folder", required=True, type=click.Path(path_type=Path), help="Index folder to write.")
@click.option(
    "--for",
    "architecture",
    type=click.Choice(list(token_index.ARCHITECTURES)),
    help="Store what this architecture's reranking reuses of a document, instead of a FAISS index.",
)
@click.option("--dtype", default="fp16", type=click.Choice(list(token_index.DTYPES)), help="With --for: numbers stored.")
@click.option("--faiss", metavar="KIND", help="FAISS factory string: HNSW32, SQ8, IVF4096,PQ64 ...  [default: Flat]")
@click.option("--lucene-hnsw", "in_lucene", flag_value="lucene-hnsw", help="Vectors in Lucene, with an HNSW graph.")
@click.option("--lucene-flat", "in_lucene", flag_value="lucene-flat", help="Vectors in Lucene, every one compared.")
@click.option("--segment", metavar="WORDS:STRIDE", help="Index passages `docid#n` of so many words, e.g. 150:75.")
@click.option("--collection-class", help="With bm25: one of Anserini's readers (HtmlCollection, ...) for a folder.")
@click.option("--batch-size", "--batch", type=click.IntRange(1), help="Documents a batch [default: by token budget].")
@click.option("--max-length", type=click.IntRange(3), help="Tokens a document [default: from the checkpoint].")
@click.option("--pooling", type=click.Choice(["cls", "mean"]), help="[default: from the checkpoint]")
@click.option("--l2-norm/--no-l2-norm", default=None, help="[default: from the checkpoint]")
@click.option("--doc-prefix", help="[default: from the checkpoint]")
@click.option("--precision", default="auto", type=click.Choice(list(inference.PRECISIONS)), help="Arithmetic.")
@click.option("--backend", default="auto", type=click.Choice(list(inference.BACKENDS)), help="What computes.")
@click.option("--shard-num", type=click.IntRange(1), help="Processes that share the work, one command each [default: 1].")
@click.option("--shard-id", type=click.IntRange(0), help="Which of them this is, from 0 [default: torchrun's RANK].")
@click.option("--block", type=click.IntRange(1), hidden=True, help="Documents a block.")
@click.option("--device", default="cpu", help="cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1), help="[default: all processors]")
@click.option("--store-docs/--no-store-docs", default=True, help="Keep the texts in the index folder.")
@click.option("--overwrite", is_flag=True, help="Replace the index if it exists.")
def main(
    collection: str | None,
    encoder: str | None,
    ready: Path | None,
    ids: Path | None,
    folder: Path,
    architecture: str | None,
    dtype: str,
    faiss: str | None,
    in_lucene: str | None,
    segment: str | None,
    collection_class: str | None,
    batch_size: int | None,
    max_length: int | None,
    pooling: str | None,
    l2_norm: bool | None,
    doc_prefix: str | None,
    precision: str,
    backend: str,
    shard_num: int | None,
    shard_id: int | None,
    block: int | None,
    device: str,
    threads: int | None,
    store_docs: bool,
    overwrite: bool,
) -> None:
    """Index a collection: dense with a BERT_DOT checkpoint (FAISS or Lucene), or sparse with BM25 (Lucene)."""
    if faiss and in_lucene:
        raise InputError(f"--faiss and --{in_lucene} do not go together: vectors have one home")
    if (faiss or in_lucene) and (architecture or encoder == "bm25"):
        raise InputError("--faiss and --lucene-hnsw or -flat say where a dense index lives; not with --for or bm25")
    kind = in_lucene or faiss or "Flat"
    shard = _shard(shard_id, shard_num, overwrite)
    if shard[1] == 1:
        refuse_existing(folder, overwrite, folder=True)
    started = time.monotonic()
    count_threads = threads or inference.threads()
    if ready:
        if collection or segment or architecture or collection_class or encoder == "bm25" or shard[1] > 1:
            raise InputError("--vectors goes with --index, --ids, --faiss, --lucene-* and the name of the --encoder only")
        who = _who(encoder, pooling=pooling, l2_norm=l2_norm, doc_prefix=doc_prefix, max_doc_len=max_length)
        written = build_from_vectors(ready, ids, folder, kind=kind, overwrite=overwrite, **who)
        click.echo(f"{folder}: {written} vectors")
        return
    if collection is None or encoder is None or ids:
        raise InputError("--collection and --encoder are needed, or else --vectors; --ids goes with --vectors")
    _refuse_contradictions(encoder, architecture, segment, collection_class, shard)
    docs = passages.segment(sources.collection(collection), segment) if segment else sources.collection(collection)
    count: int | None
    if architecture:
        if threads:
            inference.use_threads(threads)
        reader = token_index.load_model(
            encoder, architecture, device=device, precision=precision, backend=backend, l2_norm=l2_norm, doc_prefix=doc_prefix,
            max_doc_len=max_length,
        )  # fmt: skip
        count = token_index.build(
            docs,
            reader,
            checkpoints.resolve(encoder),
            folder,
            dtype=dtype,
            segment=segment,
            precision=precision,
            batch_size=batch_size,
            store_docs=store_docs,
            overwrite=overwrite,
            block=block,
            shard=shard,
            collection=collection,
        )
    elif encoder == "bm25":
        if collection_class:
            count = lucene.build_index_with_reader(
                Path(collection), collection_class, folder, threads=count_threads, overwrite=overwrite
            )
        else:
            count = lucene.build_index(docs, folder, threads=count_threads, overwrite=overwrite)
    else:
        model = load_encoder(
            encoder, device, threads, precision=precision, backend=backend, pooling=pooling, l2_norm=l2_norm,
            doc_prefix=doc_prefix, max_doc_len=max_length,
        )  # fmt: skip
        count = build(
            docs,
            model,
            checkpoints.resolve(encoder),
            folder,
            kind=kind,
            precision=precision,
            batch_size=batch_size,
            store_docs=store_docs,
            overwrite=overwrite,
            block=block,
            shard=shard,
            collection=collection,
            segment=segment,
        )
    if count is None:  # other processes have work left
        return
    seconds = time.monotonic() - started
    click.echo(f"{folder}: {count} documents in {seconds:.0f} s ({count / seconds:.0f} a second)")


def _refuse_contradictions(
    encoder: str, architecture: str | None, segment: str | None, collection_class: str | None, shard: tuple[int, int]
) -> None:
    """InputError where options do not go together."""
    if segment and collection_class:
        raise InputError("--segment cuts what we read ourselves, not what a --collection-class reads")
    if segment:
        passages.parse(segment)
    if shard[1] > 1 and encoder == "bm25":
        raise InputError("several processes share the work of what a checkpoint computes, not that of bm25")
    if architecture and (collection_class or encoder == "bm25"):
        raise InputError("--for stores what a checkpoint computes; it does not go with bm25 or --collection-class")
    if collection_class and encoder != "bm25":
        raise InputError("--collection-class is for --encoder bm25")


def _who(encoder: str | None, **overrides: Any) -> dict[str, Any]:
    """What is known of who made ready vectors: the record and width of an encoder, or nothing."""
    if encoder is None:
        return {}
    model = load_encoder(encoder, **overrides)
    return {"encoder": checkpoints.record_of(model, checkpoints.resolve(encoder)), "width": model.width}


def _shard(shard_id: int | None, shard_num: int | None, overwrite: bool) -> tuple[int, int]:
    """(I, N) from the options, else from what `torchrun` and `accelerate launch` tell each process."""
    if shard_num is None and shard_id is None:
        shard_id, shard_num = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if shard_num is None or shard_id is None or shard_id >= shard_num:
        raise InputError("--shard-id and --shard-num go together: shards of N are counted from 0 to N - 1")
    if shard_num > 1 and overwrite:
        raise InputError("--overwrite does not go with several processes: one could remove what another has just finished")
    return shard_id, shard_num


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


if __name__ == "__main__":
    main()
