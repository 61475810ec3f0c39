"""Reranking: rescore the top of a Run with a checkpoint. Documents below `depth` are dropped, never mixed in."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyserini_kd.data import passages
from pyserini_kd.data.runs import Run, Scores
from pyserini_kd.data.types import Query
from pyserini_kd.models import checkpoint_names, checkpoint_settings, engine, scoring
from pyserini_kd.retrieval import token_index
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.stored_docs import has_docs, shards
from pyserini_kd.retrieval.text_sources import Fetch, fetch_from
from pyserini_kd.retrieval.token_index import TokenIndex
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.locks import alone, clear
from pyserini_kd.storage.records import comparable, read_json

logger = logging.getLogger(__name__)
Source = Fetch | TokenIndex | DenseIndex
LOGITS = "cross_encoder", "prettr"  # architectures whose scores are logits


def rerank(
    run: Run,
    model: Any,
    queries: Sequence[Query],
    source: Source,
    *,
    depth: int = 100,
    segment: str | None = None,
    aggregate: str = "maxp",
    precision: str = "auto",
    batch_size: int | None = None,
    tag: str = "rerank",
    work: Path | None = None,
) -> Run:
    """Rescore the first `depth` documents of each query; the rest are dropped.

    Args:
        run: a first-stage run.
        model: any checkpoint of ours, of any architecture.
        queries: texts of the run's queries.
        source: gives the documents for ids, in the order asked; or holds what this model stored of them.
        depth: documents rescored a query.
        segment: `WORDS:STRIDE` cuts documents into passages (or finds them in the index), each scored with the query; None
            takes documents whole.
        aggregate: how passages' scores become their document's: maxp, firstp, sump or avgp. The last two add the
            probabilities of a cross-encoder or PreTTR, not their logits, as Dai and Callan, and Chen et al., do: a sum of
            logits would hold each irrelevant passage against its document. A TK's scores, which may be negative as well, are
            no logits: its passages are not summed.
        precision: arithmetic, as in `inference`.
        batch_size: pairs (or texts) a batch; by token budget where None.
        tag: the new run's tag.
        work: folder for finished scores, as in `inference.score`.
    """
    if segment and aggregate == "sump" and model.architecture == "tk":
        raise InputError("--aggregate sump: a tk's scores may be negative, and a document's further passages would count "
                         "against it; take maxp, firstp or avgp")  # fmt: skip
    texts = {query.query_id: query.text for query in queries}
    missing = [query_id for query_id in run if query_id not in texts]
    if missing:
        raise InputError(f"{len(missing)} queries of the run are not among the topics, e.g. {missing[0]}")
    top = run.top(depth)
    wanted = list(dict.fromkeys(doc_id for hits in top.values() for doc_id in hits.doc_ids))
    contents: dict[str, str] = {}
    if isinstance(source, TokenIndex):
        parts = source.parts(wanted, segment)
    elif isinstance(source, DenseIndex):
        if segment:
            raise InputError("--segment needs texts; the stored vectors are of whole documents")
        parts = {doc_id: [doc_id] for doc_id in wanted}
    else:
        docs = {doc.doc_id: list(passages.segment([doc], segment)) if segment else [doc] for doc in source(wanted)}
        contents = {part.doc_id: part.contents for found in docs.values() for part in found}
        parts = {doc_id: [part.doc_id for part in found] for doc_id, found in docs.items()}
    candidates = {q: [part for doc_id in hits.doc_ids for part in parts[doc_id]] for q, hits in top.items()}
    pairs = [(texts[q], part) for q, found in candidates.items() for part in found]
    if not pairs:
        return Run.from_hits(tag, ((query_id, [], []) for query_id in top))
    scores = _scores(model, source, pairs, contents, precision=precision, batch_size=batch_size, work=work)
    if segment and aggregate in passages.ADDED and model.architecture in LOGITS:
        scores = (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
    pieces = np.split(scores, np.cumsum([len(found) for found in candidates.values()])[:-1])
    rescored = Run.from_hits(tag, ((q, ids, s) for (q, ids), s in zip(candidates.items(), pieces, strict=True)))
    return passages.aggregate(rescored, aggregate) if segment else rescored


def _scores(
    model: Any, source: Source, pairs: Sequence[tuple[str, str]], contents: dict[str, str], work: Path | None, **settings: Any
) -> Scores:
    """Scores (P,) of (query, doc_id) pairs, from what is stored or from the documents' contents."""
    queries, doc_ids = [query for query, _ in pairs], [doc_id for _, doc_id in pairs]
    if isinstance(source, TokenIndex):
        return token_index.score(source, model, queries, doc_ids, **settings)
    if isinstance(source, DenseIndex):
        return source.score(model, queries, doc_ids, **settings)
    return scoring.score(model, queries, [contents[doc_id] for doc_id in doc_ids], work=work, **settings)


@contextlib.contextmanager
def unfinished(output: Path, model: Any, folder: Path, *, precision: str, batch_size: int | None) -> Iterator[Path]:
    """A folder beside a run for finished scores by a checkpoint in `folder`; it goes when the run is written, not before.

    InputError where another process reranks for the same output.
    """
    how = [checkpoint_settings.record_of(model, folder), engine.arithmetic(model, precision, batch_size), batch_size]
    work = output.with_name(f"{output.name}.partial")
    with alone(work, "rerank"):
        yield work / hashlib.sha256(json.dumps(comparable(how)).encode()).hexdigest()
        clear(work, "[0-9a-f]" * 64)


def open_source(
    encoder: str, indexes: Sequence[str], *, segment: str | None = None, precision: str = "auto", **settings: Any
) -> tuple[Any, Source]:
    """A checkpoint, and the best that indexes have for it: its own representations or vectors, else texts.

    Vectors are reused for whole documents, where they are exact (Flat) and are what this checkpoint would make. `settings` as
    for `inference.load`; lengths, prefix and normalisation of stored representations are those of their index.
    """
    checkpoint, folders = checkpoint_names.resolve(encoder), shards(*indexes)
    architecture = token_index.architecture_in(folders[0])
    same = len({token_index.architecture_in(folder) for folder in folders}) == 1
    if not same:
        logger.info("the indexes are of several kinds: documents are scored from their texts")
    if architecture and same:
        index = TokenIndex.load(*folders)
        made_by = index.manifest["encoder"]
        if made_by["sha256"] == checkpoint_names.fingerprint(checkpoint):
            given = {name: value for name, value in settings.items() if value is not None}
            kept = {name: made_by[name] for name in ("l2_norm", "doc_prefix", "max_doc_len")}
            model = token_index.load_model(encoder, architecture, precision=precision, **kept | given)
            token_index.check_encoder(index, model, checkpoint)
            return model, index
        if not has_docs(*folders):
            raise InputError(f"{folders[0]} holds what {made_by['name']} makes of documents, nothing of {encoder}, and no "
                             f"texts: name the --collection, or make an index --for this checkpoint")  # fmt: skip
        logger.info("%s is not %s, which made the index: documents are scored from its texts", encoder, made_by["name"])
    model = engine.load(encoder, precision=precision, **settings)
    if model.architecture == "bert_dot" and not segment:
        if all(_has_vectors(folder, model, checkpoint, precision) for folder in folders):
            logger.info("the documents' vectors are taken from the index")
            return model, DenseIndex.load(*folders, mmap=True)
    return model, fetch_from(*map(str, folders))


def _has_vectors(folder: Path, model: Any, checkpoint: Path, precision: str) -> bool:
    """Whether a folder holds exactly the vectors that the model would make."""
    path = folder / "manifest.json"
    manifest = read_json(path, "manifest") if path.is_file() else {}
    made_by, mine = manifest.get("encoder", {}), checkpoint_settings.record_of(model, checkpoint)
    sides = ("sha256", "pooling", "l2_norm", "doc_prefix", "max_doc_len")
    exact = manifest.get("index") == "Flat" and manifest.get("precision") == engine.precision_of(model, precision)
    return exact and all(made_by.get(name) == mine[name] for name in sides)
