"""Transformers for PyTerrier (Macdonald et al. 2021), so that `pt.Experiment` compares our systems with others.

They need the package: `pip install 'pyserini-kd[pyterrier]'`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.models.rankers import Scorer
from pyserini_kd.retrieval import reranking
from pyserini_kd.retrieval.reranking import Source
from pyserini_kd.retrieval.system import System
from pyserini_kd.storage.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import pyterrier as pt


def retriever(system: System, hits: int = 1000, *, texts: bool = False) -> "pt.Transformer":
    """A transformer from queries to the results of `System.search`, the system's reranker included.

    Args:
        system: an open system; with `texts`, it was opened with texts.
        hits: results per query.
        texts: add the columns `title` and `text`, e.g. for a reranker.

    Returns:
        A transformer that takes `qid` and `query`, keeps the columns of the queries, and adds `docno`, `score` and `rank` (from
        0). Blank queries have no results.

    Raises:
        InputError: `hits` is below 1, the system has no texts, or PyTerrier is missing.
    """
    if hits < 1:
        raise InputError(f"must be at least 1, found {hits}", "hits")
    if texts and system.fetch is None:
        raise InputError("the system has no texts; open it with texts=True and an index that stores them", "texts")

    def retrieve(queries: "pd.DataFrame") -> "pd.DataFrame":
        from pyterrier.model import FIRST_RANK, query_columns

        asked = [Query(str(row), " ".join(text.split())) for row, text in enumerate(queries["query"])]
        run = system.search(asked, hits)[0] if asked else {}
        ranked = [run[query.query_id] for query in asked]
        rows = [row for row, found in enumerate(ranked) for _ in found.doc_ids]
        results = queries[list(query_columns(queries))].iloc[rows].reset_index(drop=True)
        doc_ids = [doc_id for found in ranked for doc_id in found.doc_ids]
        docs = list(system.fetch(doc_ids)) if texts and system.fetch is not None else []
        columns: dict[str, tuple[list[Any], str]] = {"docno": (doc_ids, "str")}
        if texts:
            columns |= {"title": ([doc.title for doc in docs], "str"), "text": ([doc.text for doc in docs], "str")}
        columns["score"] = ([score for found in ranked for score in found.scores.tolist()], "float64")
        columns["rank"] = ([rank for found in ranked for rank, _ in enumerate(found.doc_ids, FIRST_RANK)], "int64")
        return results.assign(**{name: _column(*column) for name, column in columns.items()})

    return _transformer(retrieve, "retriever", ["qid", "query"])


def reranker(system: System) -> "pt.Transformer":
    """A transformer that scores results anew by the system's reranker.

    Texts are those of the column `text`, after those of `title` if there is one. Without `text`, they (or the stored
    representations) come from the system, which must know the documents.

    Returns:
        A transformer that takes `qid`, `query` and `docno`, keeps all columns, and sets `score` and `rank`.

    Raises:
        InputError: the system has no reranker, or PyTerrier is missing.
    """
    scorer, source = system.reranker, system.source
    if scorer is None or source is None:
        raise InputError("the system has no reranker; open it with `rerank`")

    def rerank(results: "pd.DataFrame") -> "pd.DataFrame":
        from pyterrier.model import FIRST_RANK

        known = results.drop(columns=["score", "rank"], errors="ignore").reset_index(drop=True)
        queries = [" ".join(text.split()) for text in known["query"]]
        if "text" in known.columns:
            titles = known["title"] if "title" in known.columns else [""] * len(known)
            docs = [Doc("", title, text).contents for title, text in zip(titles, known["text"], strict=True)]
            scores = scorer.score(queries, docs).tolist()
        else:
            scores = _scores(scorer, source, known["qid"].tolist(), queries, known["docno"].tolist())
        scored = known.assign(score=_column(scores, "float64"))
        scored = scored.sort_values(["score", "docno"], ascending=False)  # ties as in all our runs
        scored["rank"] = scored.groupby("qid", sort=False).cumcount() + FIRST_RANK
        return scored.sort_values(["qid", "rank"]).reset_index(drop=True)

    return _transformer(rerank, "reranker", ["qid", "query", "docno"])


def _scores(scorer: Scorer, source: Source, qids: list[str], queries: list[str], doc_ids: list[str]) -> list[float]:
    """The score of each row. Texts or stored representations come from the system."""
    asked, wanted = dict(zip(qids, queries, strict=True)), dict[str, list[str]]()
    for qid, doc_id in zip(qids, doc_ids, strict=True):
        wanted.setdefault(qid, []).append(doc_id)
    run = Run.from_hits("results", ((qid, found, [0.0] * len(found)) for qid, found in wanted.items()))
    scored = reranking.rerank(run, scorer, [Query(*pair) for pair in asked.items()], source, depth=max(1, run.depth))
    known = {qid: dict(zip(hits.doc_ids, hits.scores.tolist(), strict=True)) for qid, hits in scored.items()}
    return [known[qid][doc_id] for qid, doc_id in zip(qids, doc_ids, strict=True)]


def _column(values: list[Any], dtype: str) -> "pd.Series[Any]":
    """Make a column of a given type, even if it has no values."""
    import pandas as pd

    return pd.Series(values, dtype=dtype)


def _transformer(function: "Callable[[pd.DataFrame], pd.DataFrame]", label: str, columns: list[str]) -> "pt.Transformer":
    """PyTerrier's transformer of a function on frames that have these columns."""
    try:
        import pyterrier as pt
    except ImportError:
        raise InputError("PyTerrier is not installed: pip install 'pyserini-kd[pyterrier]'") from None
    return pt.apply.generic(function, required_columns=columns, label=label)
