"""Mine candidates for training.

A group is its query's positives followed by negatives: hard ones, sampled from runs, and those of its block. Queries come
in blocks that share their documents: with `--shared 32`, every query of a block has the positives of the 31 others among
its negatives. A training batch is then one block, and each document is encoded once for all of its queries.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from pyserini_kd.data.ids import id_hash
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Qrels, Query
from pyserini_kd.distillation.candidates import Group

logger = logging.getLogger(__name__)


class Mined(NamedTuple):
    """Groups, and why some queries or documents are not among them."""

    groups: list[Group]
    without_positive: int
    without_negative: int
    equal_to_positive: int


def left_out(mined: Mined) -> str:
    """What is not among the groups, in words."""
    return (
        f"left out: {mined.without_positive} queries without a positive in the collection, "
        f"{mined.without_negative} without a negative, {mined.equal_to_positive} documents equal to a positive"
    )


def mine(
    queries: Sequence[Query],
    qrels: Qrels,
    runs: Sequence[Run],
    docs: Iterable[Doc],
    *,
    depth: int = 100,
    negatives: int = 1,
    shared: int = 0,
    seed: int = 42,
) -> Mined:
    """Sample candidates for every query with a positive.

    Args:
        queries: training queries.
        qrels: their judgements; grade 1 and above is positive.
        runs: first-stage runs whose top `depth` gives hard negatives, taken together; may be empty if `shared` is set.
        docs: the collection; read once, to find documents whose text equals a positive's (dropped and counted).
        depth: how deep into the runs negatives may lie.
        negatives: hard negatives a query.
        shared: queries a block whose documents are shared; 0 or 1 for none.
        seed: of the sampling and of the order of the queries.
    """
    rng = np.random.default_rng(seed)
    positives = {q.query_id: [d for d, grade in qrels.get(q.query_id, {}).items() if grade > 0] for q in queries}
    pools = {
        q.query_id: sorted({d for run in runs if q.query_id in run for d in run[q.query_id].doc_ids[:depth]})
        for q in queries
        if positives[q.query_id]
    }
    texts = _text_hashes(docs, {d for ids in positives.values() for d in ids} | {d for ids in pools.values() for d in ids})
    positives = {query_id: [d for d in ids if d in texts] for query_id, ids in positives.items()}
    usable = [q.query_id for q in queries if positives[q.query_id]]
    usable = [usable[i] for i in rng.permutation(len(usable))]
    groups: list[Group] = []
    equal, without_negative = 0, 0
    size = max(1, shared)
    for block, start in enumerate(range(0, len(usable), size)):
        members = usable[start : start + size]
        for query_id in members:
            own = {texts[d] for d in positives[query_id]}
            judged = qrels[query_id]
            others = [d for other in members if other != query_id for d in positives[other]] if shared > 1 else []
            pool = [d for d in pools[query_id] if judged.get(d, 0) <= 0 and d in texts]
            same = {d for d in [*pool, *others] if texts[d] in own and judged.get(d, 0) <= 0}
            equal += len(same)
            pool = [d for d in pool if d not in same]
            hard = [pool[i] for i in sorted(rng.permutation(len(pool))[:negatives])]
            rest = [d for d in dict.fromkeys(others) if d not in same and judged.get(d, 0) <= 0 and d not in hard]
            if not hard and not rest:
                without_negative += 1
                continue
            doc_ids = [*positives[query_id], *hard, *rest]
            labels = [1] * len(positives[query_id]) + [0] * (len(hard) + len(rest))
            groups.append(Group(query_id, doc_ids, labels, block))
    return Mined(groups, len(queries) - len(usable), without_negative, equal)


def first_hits(runs: Sequence[Run]) -> Qrels:
    """What stands in for judgements where there are none: the first hit of each query, in the first run that has one."""
    return {query_id: {hits.doc_ids[0]: 1} for run in reversed(runs) for query_id, hits in run.items() if hits.doc_ids}


def _text_hashes(docs: Iterable[Doc], wanted: set[str]) -> dict[str, int]:
    """doc_id -> hash of its text, for the wanted documents of a collection."""
    found = {}
    for doc in tqdm(docs, desc="read collection", unit=" docs", disable=None):
        if doc.doc_id in wanted:
            found[doc.doc_id] = id_hash(" ".join(doc.contents.split()))
    return found
