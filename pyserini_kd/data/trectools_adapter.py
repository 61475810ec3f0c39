"""The only module that uses trectools.

trectools orders ties inconsistently and fails on empty frames. This module passes scores without ties and never an empty frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Qrels

if TYPE_CHECKING:
    import trectools

MAX_DEPTH = 1000
"""RRF in trectools silently drops documents beyond this rank."""
MEASURES = {
    "nDCG": "get_ndcg",
    "RR": "get_reciprocal_rank",
    "AP": "get_map",
    "P": "get_precision",
    "R": "get_recall",
    "RBP": "get_rbp",
}
"""Measures that trectools computes correctly. Its Rprec and bpref are wrong; it lacks Judged and Success."""


def to_trectools(run: Run, distinct_scores: bool = False) -> trectools.TrecRun:
    """Convert a run to a trectools TrecRun in canonical order, with string ids.

    `distinct_scores` replaces scores by strictly decreasing whole numbers, so that all trectools functions keep the order.
    """
    import pandas as pd
    import trectools

    ranks = np.array([rank for hits in run.values() for rank in range(1, len(hits.doc_ids) + 1)], int)
    scores = run.depth + 1.0 - ranks if distinct_scores else [s for hits in run.values() for s in hits.scores.tolist()]
    frame = pd.DataFrame(
        {
            "query": pd.Series([query_id for query_id, hits in run.items() for _ in hits.doc_ids], dtype=object),
            "q0": "Q0",
            "docid": pd.Series([doc_id for hits in run.values() for doc_id in hits.doc_ids], dtype=object),
            "rank": ranks,
            "score": np.asarray(scores, np.float64),
            "system": run.tag,
        }
    )
    trec_run = trectools.TrecRun()
    trec_run.load_run_from_dataframe(frame)
    return trec_run


def from_trectools(trec_run: trectools.TrecRun, tag: str) -> Run:
    """Convert a trectools TrecRun to a Run. The rank column is ignored."""
    groups = trec_run.run_data.groupby("query", sort=False)
    hits = ((str(query_id), [str(d) for d in group["docid"]], group["score"].to_numpy()) for query_id, group in groups)
    return Run.from_hits(tag, hits)


def reciprocal_rank_fusion(runs: Sequence[Run], rrf_k: int, depth: int | None) -> Run:
    """RRF by trectools of the first `depth` hits of each ranking, with all documents. Queries without hits are dropped."""
    import trectools.fusion

    if not any(run.n_hits for run in runs):
        return Run("", {})
    inputs = [to_trectools(run if depth is None else run.top(depth), distinct_scores=True) for run in runs]
    fused = trectools.fusion.reciprocal_rank_fusion(inputs, k=rrf_k, max_docs=sum(run.depth for run in runs))
    return from_trectools(fused, "")


class Evaluator:
    """Computes measures of one run; run and qrels are converted once."""

    def __init__(self, run: Run, qrels: Qrels) -> None:
        self._run, self._qrels = to_trectools(run, distinct_scores=True), qrels
        self._whole = max(run.depth, *map(len, qrels.values()))  # a cut-off beyond the run and the ideal ranking
        self._at_level: dict[int | None, trectools.TrecQrel] = {}

    def measure(self, name: str, depth: int | None, level: int | None, p: float) -> dict[str, float]:
        """query_id -> value of a measure in MEASURES; 0 where trectools returns none.

        `depth` is the cut-off; None means all documents. Grades of `level` or more are relevant with gain 1; for nDCG, level
        None uses the grades as gains. `p` is the persistence of RBP.
        """
        import trectools

        if level not in self._at_level:
            self._at_level[level] = _trec_qrels(self._qrels, level)
        found: dict[str, float] = {}
        if len(self._run.run_data) and len(self._at_level[level].qrels_data):
            function = getattr(trectools.TrecEval(self._run, self._at_level[level]), MEASURES[name])
            extra = {"p": p, "average_ties": False} if name == "RBP" else {}
            values = function(depth=depth or self._whole, per_query=True, **extra)
            found = (values[0] if name == "RBP" else values).iloc[:, 0].fillna(0.0).to_dict()
        return {query_id: float(found.get(query_id, 0.0)) for query_id in self._qrels}


def _trec_qrels(qrels: Qrels, level: int | None) -> trectools.TrecQrel:
    """Relevant judgements only. With a level, grades of that level or more become 1."""
    import pandas as pd
    import trectools

    rows = [
        (query_id, "0", doc_id, grade if level is None else 1)
        for query_id, judged in qrels.items()
        for doc_id, grade in judged.items()
        if grade >= (level or 1)
    ]
    trec_qrels = trectools.TrecQrel()
    frame = pd.DataFrame(rows, columns=["query", "q0", "docid", "rel"])
    trec_qrels.qrels_data = frame.astype({"query": str, "q0": str, "docid": str, "rel": int})
    return trec_qrels
