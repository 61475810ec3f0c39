"""Stored document representations: token vectors for ColBERT and TK, states at the join layer for PreTTR.

An index folder holds `vectors` (little-endian, M tokens x H, read through memory mapping), `offsets` (document n has tokens
`offsets[n]` to `offsets[n + 1]`), `docid` and `manifest.json`, which says what checkpoint made it, and how.
"""

from __future__ import annotations

import dataclasses
import json
import time
from array import array
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pyserini_kd import inference
from pyserini_kd.data import Doc
from pyserini_kd.files import InputError, atomic_folder, command_line, environment, read_json, require_file, write_json
from pyserini_kd.models import checkpoints
from pyserini_kd.models.tokens import pad, side_records

ARCHITECTURES = ("colbert", "prettr", "tk")
DTYPES = {"fp16": "<f2", "fp32": "<f4"}
BLOCK = 1024  # documents encoded at a time

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class TokenIndex:
    """Stored representations (M, H) of documents, and where each document's begin."""

    folder: Path
    vectors: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    rows: dict[str, int]
    manifest: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> TokenIndex:
        """Open a folder; InputError where its parts do not fit."""
        folder = Path(folder)
        manifest = read_json(folder / "manifest.json", "manifest")
        doc_ids = require_file(folder / "docid", "docid file").read_text(encoding="utf-8").split("\n")[:-1]
        offsets = np.fromfile(require_file(folder / "offsets", "offsets"), dtype="<i8")
        dtype, width = np.dtype(DTYPES[manifest["dtype"]]), manifest["width"]
        size = require_file(folder / "vectors", "vectors").stat().st_size
        if len(offsets) != len(doc_ids) + 1 or size != int(offsets[-1]) * width * dtype.itemsize:
            raise InputError(f"index folder {folder} does not fit: docid, offsets and vectors are not of one collection")
        vectors = np.memmap(folder / "vectors", dtype=dtype, mode="r", shape=(int(offsets[-1]), width))
        return cls(folder, vectors, offsets, {doc_id: row for row, doc_id in enumerate(doc_ids)}, manifest)

    def of(self, doc_id: str) -> Floats:
        """Representation float32 (D, H) of a document."""
        row = self.rows[doc_id]
        return self.vectors[self.offsets[row] : self.offsets[row + 1]].astype(np.float32)


def architecture_in(folder: str | Path) -> str | None:
    """The architecture whose representations a folder holds; None where it is no such folder."""
    path = Path(folder) / "manifest.json"
    manifest = read_json(path, "manifest") if path.is_file() else {}
    return str(manifest["architecture"]) if manifest.get("kind") == "tokens" else None


def load_model(name: str, architecture: str, **overrides: Any) -> Any:
    """A checkpoint of the architecture; a bi-encoder can be read as a ColBERT, nothing else as something it is not."""
    saved = checkpoints.architecture_of(checkpoints.resolve(name))
    if saved != architecture and (saved, architecture) != ("bert_dot", "colbert"):
        raise InputError(f"{name} is a {saved}; its documents cannot be stored for a {architecture}")
    return checkpoints.load(name, architecture=architecture, **overrides)


def build(
    docs: Iterable[Doc],
    model: Any,
    checkpoint: Path,
    folder: str | Path,
    *,
    dtype: str = "fp16",
    precision: str = "auto",
    batch_size: int | None = None,
    overwrite: bool = False,
) -> int:
    """Store the representations of a stream of documents; returns the number of documents."""
    started, lengths = time.monotonic(), array("q", [0])  # 8 bytes a document
    with atomic_folder(folder, overwrite=overwrite) as partial:
        with open(partial / "vectors", "wb") as out, open(partial / "docid", "w", encoding="utf-8") as ids:
            stream = iter(docs)
            blocks = iter(lambda: list(islice(stream, BLOCK)), [])
            for block in tqdm(blocks, desc="encode", unit=f" x {BLOCK} docs", disable=None):
                texts = [doc.contents for doc in block]
                for doc, vectors in zip(block, represent(model, texts, precision, batch_size), strict=True):
                    with np.errstate(over="ignore"):
                        stored = vectors.astype(DTYPES[dtype])
                    if not np.isfinite(stored).all():
                        raise InputError(f"document {doc.doc_id!r} has values that {dtype} cannot hold; take --dtype fp32")
                    out.write(stored.tobytes())
                    ids.write(f"{doc.doc_id}\n")
                    lengths.append(len(stored))
        if len(lengths) == 1:
            raise InputError("the collection has no documents")
        np.cumsum(lengths).astype("<i8").tofile(partial / "offsets")
        width = int(model.encoder.config.hidden_size) if model.architecture == "prettr" else model.width
        record = {"kind": "tokens", "architecture": model.architecture, "dtype": dtype, "width": width}
        record |= {"n_docs": len(lengths) - 1, "n_tokens": sum(lengths), "encoder": _encoder_record(model, checkpoint)}
        record |= {"precision": inference.choose_precision(precision, str(next(model.parameters()).device))}
        seconds = round(time.monotonic() - started, 1)
        write_json(partial / "manifest.json", record | {"seconds": seconds, "command": command_line(), **environment()})
    return len(lengths) - 1


def represent(model: Any, texts: Sequence[str], precision: str, batch_size: int | None) -> list[Floats]:
    """What is stored of each text: float32 (D, H)."""
    if model.architecture != "prettr":
        found = inference.token_vectors(model, texts, "doc", label="encode", precision=precision, batch_size=batch_size)
        return [vectors.numpy() for vectors in found]
    records, _ = side_records(model, texts, "doc")
    records = [{"input_ids": record["input_ids"][1:]} for record in records]  # a document drops its own [CLS]
    states: list[Any] = [None] * len(texts)
    with inference.running(model, precision) as device:
        for rows in inference.batches([len(record["input_ids"]) for record in records], batch_size):
            batch = pad([records[row] for row in rows], model.tokenizer.pad_token_id or 0, device)
            output = model.lower(**batch, kind="doc").float().cpu().numpy()
            for row, vectors in zip(rows, output, strict=True):
                states[row] = vectors[: len(records[row]["input_ids"])].copy()
    return states


def _encoder_record(model: Any, checkpoint: Path) -> dict[str, Any]:
    settings = json.loads(json.dumps(dataclasses.asdict(model.settings)))
    return {"name": checkpoint.name, "sha256": checkpoints.fingerprint(checkpoint), **settings}


def check_encoder(index: TokenIndex, model: Any, checkpoint: Path) -> None:
    """InputError where the checkpoint, read as it is now, is not what made the index."""
    mine, made_by = _encoder_record(model, checkpoint), index.manifest["encoder"]
    for name in mine:
        if name != "name" and mine[name] != made_by.get(name):
            raise InputError(
                f"encoder does not match index {index.folder}: {name} is {str(mine[name])[:12]}, "
                f"the index was made with {str(made_by.get(name))[:12]} ({made_by['name']})"
            )


def score(
    index: TokenIndex,
    model: Any,
    queries: Sequence[str],
    doc_ids: Sequence[str],
    *,
    precision: str = "auto",
    batch_size: int | None = None,
) -> Floats:
    """Raw scores float32 (P,) of (query, stored document) pairs; equals `inference.score` up to what `dtype` rounds."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    missing = [doc_id for doc_id in doc_ids if doc_id not in index.rows]
    if missing:
        raise InputError(f"{len(missing)} documents are not in the index {index.folder}, e.g. {missing[0]}")
    scores = np.zeros(len(doc_ids), dtype=np.float32)
    by_query: dict[str, list[int]] = {}
    for pair, query in enumerate(queries):
        by_query.setdefault(query, []).append(pair)
    bar = tqdm(total=len(doc_ids), desc="score", unit=" pairs", disable=None)
    with inference.running(model, precision) as device, bar:
        for query, pairs in by_query.items():
            batch = {name: tensor.to(device) for name, tensor in model.pair_batch([query], [""], [(0, 0)]).items()}
            kind = {} if model.architecture == "colbert" else {"kind": "query"}
            encode = model.lower if model.architecture == "prettr" else model
            mask = batch["query_attention_mask"]
            states = encode(batch["query_input_ids"], mask, **kind)
            lengths = [int(index.offsets[index.rows[doc_ids[p]] + 1] - index.offsets[index.rows[doc_ids[p]]]) for p in pairs]
            for rows in inference.batches([states.shape[1] + length for length in lengths], batch_size):
                docs = pad_sequence([torch.from_numpy(index.of(doc_ids[pairs[r]])) for r in rows], batch_first=True).to(device)
                sizes = torch.tensor([lengths[r] for r in rows], device=device)
                doc_mask = (torch.arange(docs.shape[1], device=device)[None] < sizes[:, None]).long()
                if model.architecture == "prettr":
                    n = len(rows)
                    found = model.upper(states.float().expand(n, -1, -1), mask.expand(n, -1), docs, doc_mask)
                else:
                    with torch.autocast(device.type, enabled=False):  # sums around 100 need all of float32
                        found = model.late_scores(states.float(), mask, docs, doc_mask)[0]
                scores[[pairs[r] for r in rows]] = found.float().cpu().numpy()
            bar.update(len(pairs))
    return scores
