"""The only module that talks to trectools.

trectools orders ties in several ways of its own, and fails on frames without rows. It gets our order and never an empty frame.
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
"""The RRF of trectools reads this many documents of each ranking and silently drops the rest."""
MEASURES = {
    "nDCG": "get_ndcg",
    "RR": "get_reciprocal_rank",
    "AP": "get_map",
    "P": "get_precision",
    "R": "get_recall",
    "RBP": "get_rbp",
}
"""What trectools computes correctly. Its Rprec and bpref are wrong, and it has no Judged and no Success."""


def to_trectools(run: Run, distinct_scores: bool = False) -> trectools.TrecRun:
    """The run as a trectools TrecRun. Its frame is in our order, and all ids are strings.

    With `distinct_scores` the scores are strictly decreasing whole numbers, so that every function of trectools sees our order.
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
    """The Run of a trectools TrecRun. Its rank column is ignored."""
    groups = trec_run.run_data.groupby("query", sort=False)
    hits = ((str(query_id), [str(d) for d in group["docid"]], group["score"].to_numpy()) for query_id, group in groups)
    return Run.from_hits(tag, hits)


def reciprocal_rank_fusion(runs: Sequence[Run], rrf_k: int, depth: int | None) -> Run:
    """All documents that trectools fuses from the first `depth` hits of each ranking; queries without hits are left out."""
    import trectools.fusion

    if not any(run.n_hits for run in runs):
        return Run("", {})
    inputs = [to_trectools(run if depth is None else run.top(depth), distinct_scores=True) for run in runs]
    fused = trectools.fusion.reciprocal_rank_fusion(inputs, k=rrf_k, max_docs=sum(run.depth for run in runs))
    return from_trectools(fused, "")


class Evaluator:
    """A run and its judgements, converted once for all measures."""

    def __init__(self, run: Run, qrels: Qrels) -> None:
        self._run, self._qrels = to_trectools(run, distinct_scores=True), qrels
        self._whole = max(run.depth, *map(len, qrels.values()))  # the depth of the run and of the ideal ranking
        self._at_level: dict[int | None, trectools.TrecQrel] = {}

    def measure(self, name: str, depth: int | None, level: int | None, p: float) -> dict[str, float]:
        """query_id -> value of one of MEASURES, 0 where trectools gives none.

        `depth` is the cut-off; None takes all documents. Those judged `level` or higher are relevant, with gain 1; None keeps
        the grades as gains, for nDCG. `p` is the persistence, for RBP.
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
    """The relevant judgements. With a level, relevance is 1 from there on."""
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
