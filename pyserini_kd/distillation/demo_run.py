"""Every system on the embedded default: prepared where it is missing, run, and measured on the test topics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pyserini_kd.data import docstrings
from pyserini_kd.data.runs import Run
from pyserini_kd.distillation import embedded
from pyserini_kd.evaluation import engines, run_records
from pyserini_kd.evaluation.engines import PerQuery
from pyserini_kd.models import hardware
from pyserini_kd.retrieval import bm25_search, fusion, searching
from pyserini_kd.retrieval.open_index import open_with_encoder
from pyserini_kd.storage.files import home
from pyserini_kd.storage.records import write_record

MEASURES = ("RR@10", "nDCG@10", "R@100")
BOTH = ("bm25", "student")
PAIRS = (("hybrid", "bm25"), ("hybrid", "student"), ("reranked", "hybrid"))
"""Systems that are compared: (better, worse)."""


class Comparison(NamedTuple):
    """The difference of two systems in RR@10, with the p value of a paired t-test."""

    better: str
    worse: str
    difference: float
    p_value: float


class Results(NamedTuple):
    """What `demo` prints: a row for each system (name, measures, ms a query, run), and comparisons."""

    topics: int
    docs: int
    rows: list[list[str | float]]
    comparisons: list[Comparison]


class _Systems:
    """Runs systems on the test topics one after the other, writes their runs and keeps their measures."""

    def __init__(self) -> None:
        self.queries, self.qrels = docstrings.topics("test"), docstrings.qrels("test")
        self.rows: list[list[str | float]] = []
        self.values: dict[str, PerQuery] = {}

    @staticmethod
    def path_of(system: str) -> Path:
        return home() / "runs" / f"run.pydocs.{system}.test.txt"

    def measure(self, name: str, system: str, work: Callable[[], Run], made_of: Sequence[str] = ()) -> Run:
        """Run a system; `made_of` are the systems whose runs it uses: their time counts too."""
        begun = time.monotonic()
        run = work()
        seconds = time.monotonic() - begun
        path = self.path_of(system)
        run.write(path, overwrite=True)
        results = engines.evaluate(run, self.qrels, MEASURES)
        means = {measure: engines.mean(values) for measure, values in results.items()}
        config = {"runs": [str(self.path_of(other)) for other in made_of]}
        engine = engines.choose_engine(run)
        write_record(path, config=config, system=name, measures=means, engine=engine, seconds=round(seconds, 2))
        self.values[system] = results["RR@10"]
        milliseconds = run_records.ms_per_query(path, len(self.queries))[0]
        self.rows.append([name, *means.values(), f"{milliseconds:.1f}", str(path)])
        return run


def run_all() -> Results:
    """Prepare what is missing of the embedded default, run its systems, write their runs and measure them."""
    at = embedded.prepare()
    alpha, weight = embedded.prepare_reranker(at)
    systems = _Systems()
    queries = systems.queries

    def dense() -> Run:
        return searching.dense(*open_with_encoder(at.index, str(at.student)), queries, tag="student")

    bm25 = systems.measure("BM25", "bm25", lambda: bm25_search.search(str(at.bm25), queries, threads=hardware.threads()))
    student = systems.measure("student, dense", "student", dense)
    systems.measure("hybrid, RRF", "hybrid-rrf", lambda: fusion.rrf([bm25, student], tag="hybrid-rrf"), BOTH)
    name = f"hybrid, {alpha:g} BM25 + {1 - alpha:g} student"
    hybrid = systems.measure(name, "hybrid", lambda: fusion.interpolation(bm25, student, alpha=alpha, tag="hybrid"), BOTH)

    def reranked() -> Run:
        late = embedded.late_interaction(at, hybrid, queries)
        return fusion.interpolation(hybrid.top(embedded.RERANK_DEPTH), late, alpha=weight, tag="reranked")

    systems.measure(f"reranked, {weight:g} hybrid + {1 - weight:g} MaxSim", "reranked", reranked, ("hybrid",))
    compared = [Comparison(a, b, *engines.compare(systems.values[a], systems.values[b])) for a, b in PAIRS]
    return Results(len(queries), sum(1 for _ in docstrings.docs()), systems.rows, compared)
