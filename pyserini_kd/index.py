"""Dense indexes: encode a collection in resumable blocks, build a FAISS index, open one (ours, Pyserini's, anybody's).

An index folder holds `index` and `docid` exactly as Pyserini's FaissSearcher reads them, and beside them our
`manifest.json` (who encoded it, how) and `docs.jsonl` with `docs.offsets` (the texts, for snippets and reranking).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd import inference, lucene, passages, sources, token_index
from pyserini_kd.cli import command
from pyserini_kd.data import Doc
from pyserini_kd.files import (
    InputError,
    atomic_file,
    command_line,
    environment,
    read_json,
    refuse_existing,
    replace_folder,
    require_file,
    write_json,
)
from pyserini_kd.models import checkpoints

if TYPE_CHECKING:
    from pyserini_kd.models.bert_dot import BertDot

logger = logging.getLogger(__name__)

BLOCK = 8192  # documents a block: what a crash can cost
TRAIN_SAMPLE = 100_000  # vectors that a quantiser is trained on, at most

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class DenseIndex:
    """An inner-product index: FAISS rows and the document ids they stand for."""

    folder: Path
    index: Any
    doc_ids: npt.NDArray[np.object_]
    manifest: dict[str, Any] | None

    @classmethod
    def load(cls, folder: str | Path) -> DenseIndex:
        """Open an index folder; one that is not ours (no manifest) is checked as far as it can be.

        Raises:
            InputError: the folder is missing or incomplete, its parts do not fit, or its metric is not inner product.
        """
        import faiss

        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"index not found: {folder}")
        for name in ("index", "docid"):
            if not (folder / name).is_file():
                raise InputError(f"index folder {folder} is incomplete: no file `{name}` (expected `index` and `docid`)")
        manifest = read_json(folder / "manifest.json", "manifest") if (folder / "manifest.json").exists() else None
        try:
            index = faiss.read_index(str(folder / "index"))
        except RuntimeError as error:
            raise InputError(f"{folder / 'index'} is not a FAISS index: {str(error).splitlines()[0]}") from error
        doc_ids = np.array(_read_doc_ids(folder), dtype=object)
        if index.ntotal != len(doc_ids):
            raise InputError(f"index folder {folder} does not fit: {index.ntotal} vectors but {len(doc_ids)} document ids")
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise InputError(f"{folder / 'index'} measures L2 distance; only inner-product indexes are searched")
        if manifest is None:
            logger.warning("%s has no manifest of ours: which encoder made it cannot be checked", folder)
        return cls(folder, index, doc_ids, manifest)

    @property
    def width(self) -> int:
        """H: length of a vector."""
        return int(self.index.d)

    def search(self, query_vecs: Floats, k: int, *, ef_search: int | None = None) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Scores float32 (Q, K) and rows int64 (Q, K), best first; row -1 where there are fewer than k."""
        import faiss

        if query_vecs.shape[1] != self.width:
            raise InputError(f"encoder and index do not match: vectors of {query_vecs.shape[1]} against {self.width}")
        if ef_search is not None:
            try:
                faiss.ParameterSpace().set_index_parameter(self.index, "efSearch", ef_search)
            except RuntimeError:
                raise InputError(f"--ef-search is for HNSW indexes; {self.folder} is none") from None
        found: tuple[Floats, npt.NDArray[np.int64]] = self.index.search(query_vecs, min(k, self.index.ntotal))
        return found

    def vectors(self, doc_ids: Sequence[str]) -> Floats:
        """Stored vectors float32 (N, H) of documents, by id (exact for Flat, approximate for quantised indexes)."""
        rows = self.rows
        missing = [doc_id for doc_id in doc_ids if doc_id not in rows]
        if missing:
            raise InputError(f"{len(missing)} documents are not in the index {self.folder}, e.g. {missing[0]}")
        vectors: Floats = self.index.reconstruct_batch(np.array([rows[d] for d in doc_ids], dtype=np.int64))
        return vectors

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """doc_id -> row."""
        return {doc_id: row for row, doc_id in enumerate(self.doc_ids.tolist())}


def has_docs(folder: Path) -> bool:
    """Whether an index folder of ours holds the texts."""
    return all((folder / name).is_file() for name in ("docid", "docs.jsonl", "docs.offsets"))


def stored_docs(folder: Path) -> Callable[[Iterable[str]], Iterator[Doc]]:
    """A function from ids to stored documents, in the order asked; the vectors are not loaded."""
    rows = {doc_id: row for row, doc_id in enumerate(_read_doc_ids(folder))}
    offsets = np.fromfile(folder / "docs.offsets", dtype="<u8")

    def fetch(doc_ids: Iterable[str]) -> Iterator[Doc]:
        with open(folder / "docs.jsonl", "rb") as handle:
            for doc_id in doc_ids:
                if doc_id not in rows:
                    raise InputError(f"document {doc_id!r} is not in the index {folder}")
                handle.seek(int(offsets[rows[doc_id]]))
                yield Doc(*json.loads(handle.readline()))

    return fetch


def _read_doc_ids(folder: Path) -> list[str]:
    lines = require_file(folder / "docid", "docid file").read_text(encoding="utf-8").split("\n")
    return [line.rstrip() for line in (lines[:-1] if lines[-1] == "" else lines)]


def check_encoder(index: DenseIndex, encoder: BertDot, checkpoint: Path, *, ignore: bool = False) -> None:
    """InputError where the encoder is not the one that made the index (width, checksum, pooling, normalisation)."""
    if encoder.width != index.width:
        raise InputError(
            f"encoder does not match index {index.folder}: {checkpoint} gives vectors of {encoder.width}, "
            f"the index holds {index.width}"
        )
    if index.manifest is None or ignore:
        return
    made_by = index.manifest.get("encoder", {})
    mine = encoder_record(encoder, checkpoint)
    for name in ("sha256", "pooling", "l2_norm", "doc_prefix"):
        if name in made_by and made_by[name] != mine[name]:
            raise InputError(
                f"encoder does not match index {index.folder}: {name} is {str(mine[name])[:12]}, the index was made with "
                f"{str(made_by[name])[:12]} ({made_by.get('name')}); --ignore-encoder-mismatch if that is meant"
            )


def open_with_encoder(
    folder: str | Path,
    name: str,
    *,
    device: str = "cpu",
    ignore_mismatch: bool = False,
    **overrides: Any,
) -> tuple[DenseIndex, BertDot]:
    """Open an index together with the query encoder `name`; InputError where the two do not match.

    Pooling, normalisation and prefixes come from `overrides`, else from the index's manifest where this checkpoint made
    it, else from the checkpoint.
    """
    index = DenseIndex.load(folder)
    checkpoint = checkpoints.resolve(name)
    made_by = (index.manifest or {}).get("encoder", {})
    if made_by and made_by.get("sha256") == checkpoints.fingerprint(checkpoint):
        kept = {field: made_by.get(field) for field in ("pooling", "l2_norm", "query_prefix", "doc_prefix")}
        overrides = kept | {field: value for field, value in overrides.items() if value is not None}
    encoder = load_encoder(name, device, **overrides)
    check_encoder(index, encoder, checkpoint, ignore=ignore_mismatch)
    return index, encoder


def encoder_record(encoder: BertDot, checkpoint: Path) -> dict[str, Any]:
    """What a manifest says about an encoder."""
    return {
        "name": checkpoint.name,
        "sha256": checkpoints.fingerprint(checkpoint),
        **dataclasses.asdict(encoder.settings),
    }


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
) -> int:
    """Encode a stream of documents and write an index folder; returns the number of documents.

    Works in blocks under `.NAME.partial/` beside the folder: after a crash or Ctrl-C the same command goes on with the first
    block that is missing or whose documents have changed.
    """
    folder = Path(folder)
    refuse_existing(folder, overwrite)
    started = time.monotonic()
    faiss_index = _new_index(encoder.width, kind)
    settings: dict[str, Any] = {
        "encoder": encoder_record(encoder, checkpoint),
        "precision": inference.choose_precision(precision, str(next(encoder.parameters()).device)),
        "block": BLOCK,
    }
    work = folder.parent / f".{folder.name}.partial"
    work.mkdir(parents=True, exist_ok=True)
    _start_or_resume(work, settings)
    count = _encode_blocks(docs, encoder, work, settings["precision"], batch_size, store_docs)
    if count == 0:
        shutil.rmtree(work)
        raise InputError("the collection has no documents")
    new = work / "final"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    _assemble(work, new, faiss_index, kind, store_docs)
    write_json(
        new / "manifest.json",
        {
            "kind": "dense",
            "faiss": kind,
            "metric": "inner_product",
            "n_docs": count,
            "width": encoder.width,
            **settings,
            "seconds": round(time.monotonic() - started, 1),
            "command": command_line(),
            **environment(),
        },
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(new, folder)
    shutil.rmtree(work)
    return count


def _new_index(width: int, kind: str) -> Any:
    import faiss

    try:
        return faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise InputError(f"--faiss {kind!r} is not a FAISS factory string for width {width} (Flat, HNSW32, SQ8 ...)") from None


def _start_or_resume(work: Path, settings: dict[str, Any]) -> None:
    """Keep finished blocks only where they were made with the same encoder, precision and block size."""
    record = work / "settings.json"
    if record.exists() and read_json(record, "settings") == json.loads(json.dumps(settings)):
        done = len(list(work.glob("*.npy")))
        if done:
            logger.info("going on from %d finished blocks of %d documents", done, BLOCK)
        return
    for path in work.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(record, settings)


def _blocks(docs: Iterable[Doc], size: int) -> Iterator[list[Doc]]:
    block: list[Doc] = []
    for doc in docs:
        block.append(doc)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def _encode_blocks(
    docs: Iterable[Doc], encoder: BertDot, work: Path, precision: str, batch_size: int | None, store_docs: bool
) -> int:
    count = number = 0
    cut: list[int] = []
    with tqdm(desc="encode", unit=" docs", disable=None) as bar:
        for number, block in enumerate(_blocks(docs, BLOCK)):
            digest = hashlib.sha256(json.dumps(block, ensure_ascii=False).encode()).hexdigest()
            count += len(block)
            vectors_path, digest_path = work / f"{number:06d}.npy", work / f"{number:06d}.sha256"
            with atomic_file(work / f"{number:06d}.ids") as out:
                out.writelines(f"{doc.doc_id}\n" for doc in block)
            if store_docs:
                with atomic_file(work / f"{number:06d}.docs", binary=True) as out:
                    out.writelines(json.dumps(doc, ensure_ascii=False).encode() + b"\n" for doc in block)
            if not (vectors_path.exists() and digest_path.exists() and digest_path.read_text() == digest):
                digest_path.unlink(missing_ok=True)
                texts = [doc.contents for doc in block]
                vectors = inference.encode(encoder, texts, "doc", precision=precision, batch_size=batch_size, cut=cut)
                with atomic_file(vectors_path, binary=True) as out:
                    np.save(out, vectors)
                with atomic_file(digest_path) as out:
                    out.write(digest)
            bar.update(len(block))
    inference.log_cut(sum(cut), count, encoder.settings.max_doc_len, "documents")
    for path in work.glob("[0-9]*"):  # blocks of a longer collection, from an earlier start
        if count == 0 or int(path.stem) > number:
            path.unlink()
    return count


def _assemble(work: Path, new: Path, index: Any, kind: str, store_docs: bool) -> None:
    """Merge blocks into `index`, `docid` and the texts; a block at a time in memory."""
    import faiss

    vectors = sorted(work.glob("*.npy"))
    if not index.is_trained:
        rng = np.random.default_rng(0)
        share = max(1, TRAIN_SAMPLE // len(vectors))
        sample = []
        for path in vectors:
            block = np.load(path, mmap_mode="r")
            sample.append(block[np.sort(rng.permutation(len(block))[:share])])
        index.train(np.concatenate(sample))
    threads = faiss.omp_get_max_threads()
    if "HNSW" in kind:
        faiss.omp_set_num_threads(1)  # several threads would build a different graph every time
    for path in vectors:
        index.add(np.load(path))
    faiss.omp_set_num_threads(threads)
    try:
        faiss.write_index(index, str(new / "index"))
    except RuntimeError as error:  # FAISS's word for a full disk
        raise InputError(f"{new / 'index'} could not be written: {str(error).splitlines()[0]}") from error
    with open(new / "docid", "wb") as out:
        for path in sorted(work.glob("*.ids")):
            out.write(path.read_bytes())
    if store_docs:
        position = 0
        with open(new / "docs.jsonl", "wb") as out, open(new / "docs.offsets", "wb") as offsets:
            for path in sorted(work.glob("*.docs")):
                lines = path.read_bytes().splitlines(keepends=True)
                starts = position + np.cumsum([0] + [len(line) for line in lines])
                starts[:-1].astype("<u8").tofile(offsets)
                position = int(starts[-1])
                out.writelines(lines)


# ------------------------------------------------------------------------------------------------------- command


@command(
    name="index",
    example="pyserini-kd index --collection docs.jsonl --encoder models/student --index indexes/docs.student",
)
@click.option("--collection", required=True, help="Collection: a path, ir_datasets:<id> or pydocs.")
@click.option("--encoder", required=True, help="Checkpoint (name, folder or hub id), or bm25 for a Lucene index.")
@click.option("--index", "folder", required=True, type=click.Path(path_type=Path), help="Index folder to write.")
@click.option(
    "--for",
    "architecture",
    type=click.Choice(list(token_index.ARCHITECTURES)),
    help="Store what this architecture's reranking reuses of a document, instead of a FAISS index.",
)
@click.option("--dtype", default="fp16", type=click.Choice(list(token_index.DTYPES)), help="With --for: numbers stored.")
@click.option("--faiss", "kind", default="Flat", help="FAISS factory string: Flat, HNSW32, SQ8, IVF4096,PQ64 ...")
@click.option("--segment", metavar="WORDS:STRIDE", help="Index passages `docid#n` of so many words, e.g. 150:75.")
@click.option("--collection-class", help="With bm25: one of Anserini's readers (HtmlCollection, ...) for a folder.")
@click.option("--batch-size", "--batch", type=click.IntRange(1), help="Documents a batch [default: by token budget].")
@click.option("--max-length", type=click.IntRange(3), help="Tokens a document [default: from the checkpoint].")
@click.option("--pooling", type=click.Choice(["cls", "mean"]), help="[default: from the checkpoint]")
@click.option("--l2-norm/--no-l2-norm", default=None, help="[default: from the checkpoint]")
@click.option("--doc-prefix", help="[default: from the checkpoint]")
@click.option("--precision", default="auto", type=click.Choice(list(inference.PRECISIONS)), help="Arithmetic.")
@click.option("--device", default="cpu", help="cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1), help="[default: all processors]")
@click.option("--store-docs/--no-store-docs", default=True, help="Keep the texts in the index folder.")
@click.option("--overwrite", is_flag=True, help="Replace the index if it exists.")
def main(
    collection: str,
    encoder: str,
    folder: Path,
    architecture: str | None,
    dtype: str,
    kind: str,
    segment: str | None,
    collection_class: str | None,
    batch_size: int | None,
    max_length: int | None,
    pooling: str | None,
    l2_norm: bool | None,
    doc_prefix: str | None,
    precision: str,
    device: str,
    threads: int | None,
    store_docs: bool,
    overwrite: bool,
) -> None:
    """Index a collection: dense with a BERT_DOT checkpoint (FAISS), or sparse with BM25 (Lucene)."""
    refuse_existing(folder, overwrite)
    started = time.monotonic()
    count_threads = threads or inference.threads()
    if segment and collection_class:
        raise InputError("--segment cuts what we read ourselves, not what a --collection-class reads")
    if segment:
        passages.parse(segment)
    docs = passages.segment(sources.collection(collection), segment) if segment else sources.collection(collection)
    if architecture:
        if collection_class or encoder == "bm25":
            raise InputError("--for stores what a checkpoint computes; it does not go with bm25 or --collection-class")
        reader = token_index.load_model(encoder, architecture, l2_norm=l2_norm, doc_prefix=doc_prefix, max_doc_len=max_length)
        count = token_index.build(
            docs,
            reader.to(inference.check_device(device)),
            checkpoints.resolve(encoder),
            folder,
            dtype=dtype,
            precision=precision,
            batch_size=batch_size,
            overwrite=overwrite,
        )
    elif encoder == "bm25":
        if collection_class:
            count = lucene.build_index_with_reader(
                Path(collection), collection_class, folder, threads=count_threads, overwrite=overwrite
            )
        else:
            count = lucene.build_index(docs, folder, threads=count_threads, overwrite=overwrite)
    else:
        if collection_class:
            raise InputError("--collection-class is for --encoder bm25")
        model = load_encoder(
            encoder, device, threads, pooling=pooling, l2_norm=l2_norm, doc_prefix=doc_prefix, max_doc_len=max_length
        )
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
        )
    seconds = time.monotonic() - started
    click.echo(f"{folder}: {count} documents in {seconds:.0f} s ({count / seconds:.0f} a second)")


def load_encoder(name: str, device: str = "cpu", threads: int | None = None, **overrides: Any) -> BertDot:
    """A BERT_DOT checkpoint on a device; InputError for another architecture."""
    import torch

    if threads:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)
    model = checkpoints.load(name, **overrides)
    if model.architecture != "bert_dot":
        raise InputError(f"{name} is a {model.architecture}; a dense index needs a bert_dot checkpoint")
    return model.to(inference.check_device(device))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
