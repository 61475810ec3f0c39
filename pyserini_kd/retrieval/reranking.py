"""Reranking: rescore the top of a Run with a checkpoint. Documents below `depth` are dropped."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyserini_kd.data import passages
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Query
from pyserini_kd.models import rankers
from pyserini_kd.models.checkpoint_folder import fingerprint, resolve
from pyserini_kd.models.rankers import Encoder, Scorer, TokenScorer
from pyserini_kd.retrieval import token_index
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.open_index import SIDES
from pyserini_kd.retrieval.text_sources import Fetch, fetch_from, has_docs, shards
from pyserini_kd.retrieval.token_index import TokenIndex
from pyserini_kd.storage.arrays import Floats
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import alone, clear
from pyserini_kd.storage.manifest import Manifest
from pyserini_kd.storage.records import comparable

logger = logging.getLogger(__name__)

Source = Fetch | TokenIndex | DenseIndex
"""A function from ids to texts, or an index with the reranker's representations of documents."""
LOGITS = "cross_encoder", "prettr"  # architectures whose scores are logits


def rerank(
    run: Run,
    scorer: Scorer,
    queries: Sequence[Query],
    source: Source,
    *,
    depth: int = 100,
    segment: str | None = None,
    aggregate: str = "maxp",
    tag: str = "rerank",
    work: Path | None = None,
) -> Run:
    """Rescore the first `depth` documents of each query; the others are dropped.

    Args:
        run: a first-stage run.
        scorer: a ranker of any architecture.
        queries: texts of the run's queries.
        source: gives the documents' texts, or this ranker's stored representations.
        depth: documents rescored for each query.
        segment: `WORDS:STRIDE` cuts documents into passages (or finds them in the index) and scores each passage.
        aggregate: how passage scores give a document score: maxp, firstp, sump or avgp. For a cross-encoder or PreTTR, the
            last two add probabilities, as do Dai and Callan, and Chen et al.: in a sum of logits, each irrelevant passage
            would lower its document. A TK is refused with sump, as its scores may be negative.
        tag: the new run's tag.
        work: folder for finished scores, as in `Scorer.score`.

    Raises:
        InputError: a query of the run has no text, a document is missing, or the settings do not fit the ranker.
    """
    if segment and aggregate == "sump" and scorer.architecture == "tk":
        raise InputError("a tk's scores may be negative, so further passages could lower a document's score; "
                         "use maxp, firstp or avgp", "aggregate")  # fmt: skip
    texts = {query.query_id: query.text for query in queries}
    missing = [query_id for query_id in run if query_id not in texts]
    if missing:
        raise InputError(f"{len(missing)} queries of the run are not among the topics, e.g. {missing[0]}")
    top = run.top(depth)
    wanted = list(dict.fromkeys(doc_id for hits in top.values() for doc_id in hits.doc_ids))
    parts, contents = _parts(source, wanted, segment)
    candidates = {q: [part for doc_id in hits.doc_ids for part in parts[doc_id]] for q, hits in top.items()}
    pairs = [(texts[q], part) for q, found in candidates.items() for part in found]
    if not pairs:
        return Run.from_hits(tag, ((query_id, [], []) for query_id in top))
    scores = _scores(scorer, source, pairs, contents, work)
    if segment and aggregate in passages.ADDED and scorer.architecture in LOGITS:
        scores = (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
    pieces = np.split(scores, np.cumsum([len(found) for found in candidates.values()])[:-1])
    rescored = Run.from_hits(tag, ((q, ids, s) for (q, ids), s in zip(candidates.items(), pieces, strict=True)))
    return passages.aggregate(rescored, aggregate) if segment else rescored


def _parts(source: Source, wanted: Sequence[str], segment: str | None) -> tuple[dict[str, list[str]], dict[str, str]]:
    """(document -> itself or its passages, contents of each if texts are scored)."""
    if isinstance(source, TokenIndex):
        return source.parts(wanted, segment), {}
    if isinstance(source, DenseIndex):
        if segment:
            raise InputError("passages need texts; the stored vectors are of whole documents", "segment")
        return {doc_id: [doc_id] for doc_id in wanted}, {}
    docs = {doc.doc_id: list(passages.segment([doc], segment)) if segment else [doc] for doc in source(wanted)}
    contents = {part.doc_id: part.contents for found in docs.values() for part in found}
    return {doc_id: [part.doc_id for part in found] for doc_id, found in docs.items()}, contents


def _scores(
    scorer: Scorer, source: Source, pairs: Sequence[tuple[str, str]], contents: dict[str, str], work: Path | None
) -> Floats:
    """Scores float32 (P,) of (query, doc_id) pairs, from stored representations or from contents."""
    queries, doc_ids = [query for query, _ in pairs], [doc_id for _, doc_id in pairs]
    if isinstance(source, TokenIndex) and isinstance(scorer, TokenScorer):
        return source.score(scorer, queries, doc_ids)
    if isinstance(source, DenseIndex) and isinstance(scorer, Encoder):
        return source.score(scorer, queries, doc_ids)
    return scorer.score(queries, [contents[doc_id] for doc_id in doc_ids], work=work)


@contextlib.contextmanager
def unfinished(output: Path, scorer: Scorer) -> Iterator[Path]:
    """Folder beside a run for this ranker's finished scores; removed once the run is written.

    InputError if another process reranks for the same output.
    """
    work = output.with_name(f"{output.name}.partial")
    how = [scorer.record(), scorer.arithmetic(), scorer.batch_size]
    with alone(work, "rerank"):
        yield work / hashlib.sha256(json.dumps(comparable(how)).encode()).hexdigest()
        clear(work, "[0-9a-f]" * 64)


def open_source(encoder: str, indexes: Sequence[str], *, segment: str | None = None, **settings: Any) -> tuple[Scorer, Source]:
    """A ranker and its best source in the indexes: its own representations or vectors, else texts.

    Vectors are reused for whole documents if they are exact (Flat) and equal to this checkpoint's. `settings` as for
    `models.load`; length, prefix and normalisation of stored representations default to those of their index.
    """
    folders = shards(*indexes)
    architecture = token_index.architecture_in(folders[0])
    same_kind = len({token_index.architecture_in(folder) for folder in folders}) == 1
    if not same_kind:
        logger.info("the indexes are of several kinds: documents are scored from their texts")
    if architecture and same_kind:
        index = TokenIndex.open(*folders)
        made_by = index.manifest.encoder
        if made_by["sha256"] == fingerprint(resolve(encoder)):
            kept = {name: made_by[name] for name in ("l2_norm", "doc_prefix", "max_doc_len")}
            given = {name: value for name, value in settings.items() if value is not None}
            reader = token_index.load_scorer(encoder, architecture, **kept | given)
            index.check(reader)
            return reader, index
        if not has_docs(*folders):
            raise InputError(f"{folders[0]} holds representations of {made_by['name']}, not of {encoder}, and no texts; give "
                             "a `collection`, or an index of this checkpoint")  # fmt: skip
        logger.info("%s is not %s, which made the index: documents are scored from the index's texts", encoder, made_by["name"])
    scorer = rankers.load(encoder, **settings)
    if isinstance(scorer, Encoder) and not segment and all(_has_vectors(folder, scorer) for folder in folders):
        logger.info("document vectors are read from the index")
        return scorer, DenseIndex.open(*folders, mmap=True)
    return scorer, fetch_from(*map(str, folders))


def _has_vectors(folder: Path, encoder: Encoder) -> bool:
    """Whether a folder holds exactly this encoder's vectors."""
    manifest, record = Manifest.find(folder), encoder.record()
    if manifest is None or manifest.index != "Flat" or manifest.precision != encoder.precision:
        return False
    return all(manifest.encoder.get(name) == record[name] for name in (*SIDES, "max_doc_len"))
