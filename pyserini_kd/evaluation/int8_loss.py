"""Measure the loss of int8: scores and nDCG@10 of the same documents in fp32 and in int8."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyserini_kd.data.runs import Run, Scores
from pyserini_kd.data.types import Qrels, Query
from pyserini_kd.evaluation import engines
from pyserini_kd.models import rankers
from pyserini_kd.retrieval import reranking, text_sources

MEASURE = "nDCG@10"
WORST_CORRELATION, WORST_CHANGE = 0.99, 0.005  # limits before a warning: correlation with fp32 scores, loss of nDCG@10


def compare(before: Run, after: Run, qrels: Qrels) -> dict[str, float]:
    """Compare scores and nDCG@10 of two rerankings of the same documents.

    `kendall` is tau-b between the two orders, averaged over queries. `pearson` is over all pairs.
    """
    from scipy.stats import kendalltau

    columns: list[tuple[Scores, Scores]] = []
    for query_id, hits in before.items():
        other = dict(zip(after[query_id].doc_ids, after[query_id].scores.tolist(), strict=True))
        columns.append((hits.scores, np.array([other[doc_id] for doc_id in hits.doc_ids], np.float32)))
    fp32, int8 = (np.concatenate([column[side] for column in columns]) for side in (0, 1))
    taus = [float(kendalltau(a, b).statistic) for a, b in columns if len(a) > 1]
    effect = [engines.mean(engines.evaluate(run, qrels, [MEASURE])[MEASURE]) for run in (before, after)]
    return {
        "pairs": len(fp32),
        "largest difference": float(np.abs(fp32 - int8).max()),
        "mean difference": float(np.abs(fp32 - int8).mean()),
        "spread of scores (fp32)": float(fp32.std()),
        "pearson": float(np.corrcoef(fp32, int8)[0, 1]),
        "kendall": float(np.nanmean(taus)) if taus else float("nan"),
        f"{MEASURE} fp32": effect[0],
        f"{MEASURE} int8": effect[1],
    }


def quality(folder: Path, run: Run, queries: Sequence[Query], judged: Qrels, collection: str, depth: int) -> dict[str, float]:
    """Rerank the top of a run in fp32 and in int8, and compare the two."""
    top = run.top(depth)
    wanted = list(dict.fromkeys(doc_id for hits in top.values() for doc_id in hits.doc_ids))
    texts = {doc.doc_id: doc for doc in text_sources.fetch_from(collection)(wanted)}
    runs = []
    for precision in ("fp32", "int8"):
        scorer = rankers.load(str(folder), precision=precision)
        runs.append(reranking.rerank(top, scorer, queries, lambda ids: (texts[one] for one in ids), depth=depth))
    return compare(runs[0], runs[1], judged)
