"""The settings of a search, and the rules for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pyserini_kd.data.run_files import check_tag
from pyserini_kd.storage.errors import InputError

QUERY_HITS = 10
RRF_K, ALPHA, DEPTH = 60, 0.5, 100  # where nothing else is said


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The command's options, as click read them; those without a default are what `serve` takes too."""

    encoder: str
    index: str | None
    more_indexes: tuple[str, ...] = ()
    sparse_index: str | None
    fusion: str
    rrf_k: int
    alpha: float
    k1: float | None
    b: float | None
    rm3: bool
    rerank: str | None
    depth: int
    batch_size: int | None
    threads: int | None
    device: str
    precision: str
    backend: str = "auto"
    max_length: int | None
    ef_search: int | None
    nprobe: int | None = None
    mmap: bool = False
    pooling: str | None
    l2_norm: bool | None
    query_prefix: str | None
    doc_prefix: str | None
    ignore_encoder_mismatch: bool
    query_cache: str | None = None
    rerank_index: str | None = None
    hits: int = 1000
    topics: str | None = None
    query: str | None = None
    explain: bool = False
    qrels: str | None = None
    output: Path | None = None
    output_format: str = "trec"
    runtag: str | None = None
    remove_query: bool = False
    max_passage: bool = False
    max_passage_hits: int = 100
    max_passage_delimiter: str = "#"
    ir_metadata: bool = False
    overwrite: bool = False


def refuse_contradictions(settings: Settings, fusion: str | None) -> None:
    """InputError where options do not go together; `fusion` as it was typed."""
    if settings.runtag is not None:
        check_tag(settings.runtag)
    sparse, both = settings.encoder == "bm25", bool(settings.sparse_index)
    only_dense = settings.more_indexes or settings.nprobe or settings.mmap or settings.query_cache
    own = (settings.max_length, settings.l2_norm, settings.query_prefix, settings.doc_prefix)
    encoding = any(value is not None for value in own)
    passages_set = settings.max_passage_hits != 100 or settings.max_passage_delimiter != "#"
    fused = settings.fusion if both and not sparse else None
    wrong = {
        "--fusion needs a dense --encoder and a --sparse-index": fusion and (sparse or not both),
        "--alpha is for --fusion interpolation": settings.alpha != ALPHA and fused != "interpolation",
        "--rrf.k is for --fusion rrf": settings.rrf_k != RRF_K and fused != "rrf",
        "--sparse-index, --ef-search and --pooling are for a dense --encoder": sparse
        and (both or settings.ef_search or settings.pooling),
        "--max-length, --l2-norm, --query-prefix and --doc-prefix are for a dense --encoder": sparse and encoding,
        "--device, --precision and --backend are for a dense --encoder or --rerank": sparse
        and not settings.rerank
        and (settings.device, settings.precision, settings.backend) != ("cpu", "auto", "auto"),
        "several --index, --nprobe, --mmap and --query-cache are for a dense --encoder": sparse and only_dense,
        "--rm3, --k1 and --b are for --encoder bm25 or a --sparse-index": not (sparse or both)
        and (settings.rm3 or settings.k1 is not None or settings.b is not None),
        "--rerank-index is for --rerank": settings.rerank_index and not settings.rerank,
        "--depth is for --rerank": settings.depth != DEPTH and not settings.rerank,
        "give --query or --topics, not both": settings.query is not None and settings.topics,
        "--explain needs a --query": settings.explain and settings.query is None,
        "--max-passage is for --topics; --query shows passages": settings.max_passage and settings.query is not None,
        "--max-passage-hits and --max-passage-delimiter need --max-passage": not settings.max_passage and passages_set,
        "--max-passage-delimiter is empty": not settings.max_passage_delimiter,
        "--ir-metadata is for --output-format trec": settings.ir_metadata and settings.output_format != "trec",
    }
    for message, found in wrong.items():
        if found:
            raise InputError(message)
