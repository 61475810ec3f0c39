"""The command `demo`: prepares the embedded default where it is missing, runs every system on it, and measures them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyserini_kd.cli import command
from pyserini_kd.storage.files import home
from pyserini_kd.storage.records import write_record

if TYPE_CHECKING:
    from pyserini_kd.data.runs import Run
    from pyserini_kd.evaluation.engines import PerQuery

MEASURES = ("RR@10", "nDCG@10", "R@100")


@command(
    name="demo",
    example="pyserini-kd demo",
    epilog="Prepares what is missing (minutes to half an hour, once), then searches pydocs test topics and prints measures.",
)
def main() -> None:
    """Run the main job on the embedded default, from nothing to a table of measures."""
    from pyserini_kd.data import docstrings
    from pyserini_kd.distillation import embedded
    from pyserini_kd.evaluation import engines, latency, tables
    from pyserini_kd.models import hardware
    from pyserini_kd.retrieval import bm25_search, dense_search, fusion
    from pyserini_kd.retrieval.open_index import open_with_encoder

    started = time.monotonic()
    at = embedded.prepare()
    alpha, weight = embedded.prepare_reranker(at)
    queries, qrels = docstrings.topics("test"), docstrings.qrels("test")
    rows: list[list[str | float]] = []
    values: dict[str, PerQuery] = {}

    def path_of(system: str) -> Path:
        return home() / "runs" / f"run.pydocs.{system}.test.txt"

    def measured(name: str, system: str, work: Callable[[], Run], made_of: Sequence[str] = ()) -> Run:
        begun = time.monotonic()
        run = work()
        seconds = time.monotonic() - begun
        path = path_of(system)
        config = {"runs": [str(path_of(other)) for other in made_of]}  # their time counts too
        run.write(path, overwrite=True)
        results = engines.evaluate(run, qrels, MEASURES)
        means = {measure: engines.mean(values) for measure, values in results.items()}
        engine = engines.choose_engine(run)
        write_record(path, config=config, system=name, measures=means, engine=engine, seconds=round(seconds, 2))
        values[system] = results["RR@10"]
        rows.append([name, *means.values(), f"{latency.ms_per_query(path, len(queries))[0]:.1f}", str(path)])
        return run

    def dense() -> Run:
        return dense_search.dense(*open_with_encoder(at.index, str(at.student)), queries, tag="student")

    bm25 = measured("BM25", "bm25", lambda: bm25_search.search(str(at.bm25), queries, threads=hardware.threads()))
    student = measured("student, dense", "student", dense)
    both = ("bm25", "student")
    measured("hybrid, RRF", "hybrid-rrf", lambda: fusion.rrf([bm25, student], tag="hybrid-rrf"), both)
    name = f"hybrid, {alpha:g} BM25 + {1 - alpha:g} student"
    hybrid = measured(name, "hybrid", lambda: fusion.interpolation(bm25, student, alpha=alpha, tag="hybrid"), both)

    def reranked() -> Run:
        late = embedded.late_interaction(at, hybrid, queries)
        return fusion.interpolation(hybrid.top(embedded.RERANK_DEPTH), late, alpha=weight, tag="reranked")

    measured(f"reranked, {weight:g} hybrid + {1 - weight:g} MaxSim", "reranked", reranked, ("hybrid",))
    click.echo(f"\npydocs test: {len(queries)} topics over {sum(1 for _ in docstrings.docs())} documents\n")
    click.echo(tables.table(["system", *MEASURES, "ms/query", "run"], rows) + "\n")
    for better, worse in (("hybrid", "bm25"), ("hybrid", "student"), ("reranked", "hybrid")):
        difference, p_value = engines.compare(values[better], values[worse])
        click.echo(f"RR@10, {better} against {worse}: {difference:+.4f} (p = {p_value:.2g}, paired t-test)")
    click.echo(f"\n{time.monotonic() - started:.0f} s in all. Next: python -m pyserini_kd.search --encoder student")
    click.echo('or: python -m pyserini_kd.search --query "merge two sorted arrays"')


if __name__ == "__main__":
    main()
