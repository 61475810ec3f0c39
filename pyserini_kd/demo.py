"""The command `demo`: prepares the embedded default where it is missing, runs every system on it, and measures them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyserini_kd.cli import command
from pyserini_kd.files import home, write_record

if TYPE_CHECKING:
    from pyserini_kd.evaluate import PerQuery
    from pyserini_kd.runs import Run

MEASURES = ("RR@10", "nDCG@10", "R@100")


@command(
    name="demo",
    example="pyserini-kd demo",
    epilog="Prepares what is missing (minutes to half an hour, once), then searches pydocs test topics and prints measures.",
)
def main() -> None:
    """Run the main job on the embedded default, from nothing to a table of measures."""
    from pyserini_kd import embedded, evaluate, fuse, inference, latency, lucene, pydocs, retrieve, tables
    from pyserini_kd.dense_index import open_with_encoder

    started = time.monotonic()
    at = embedded.prepare()
    alpha, weight = embedded.prepare_reranker(at)
    queries, qrels = pydocs.topics("test"), pydocs.qrels("test")
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
        results = evaluate.evaluate(run, qrels, MEASURES)
        means = {measure: evaluate.mean(values) for measure, values in results.items()}
        engine = evaluate.choose_engine(run)
        write_record(path, config=config, system=name, measures=means, engine=engine, seconds=round(seconds, 2))
        values[system] = results["RR@10"]
        rows.append([name, *means.values(), f"{latency.ms_per_query(path, len(queries))[0]:.1f}", str(path)])
        return run

    def dense() -> Run:
        return retrieve.dense(*open_with_encoder(at.index, str(at.student)), queries, tag="student")

    bm25 = measured("BM25", "bm25", lambda: lucene.search(str(at.bm25), queries, threads=inference.threads()))
    student = measured("student, dense", "student", dense)
    both = ("bm25", "student")
    measured("hybrid, RRF", "hybrid-rrf", lambda: fuse.rrf([bm25, student], tag="hybrid-rrf"), both)
    name = f"hybrid, {alpha:g} BM25 + {1 - alpha:g} student"
    hybrid = measured(name, "hybrid", lambda: fuse.interpolation(bm25, student, alpha=alpha, tag="hybrid"), both)

    def reranked() -> Run:
        late = embedded.late_interaction(at, hybrid, queries)
        return fuse.interpolation(hybrid.top(embedded.RERANK_DEPTH), late, alpha=weight, tag="reranked")

    measured(f"reranked, {weight:g} hybrid + {1 - weight:g} MaxSim", "reranked", reranked, ("hybrid",))
    click.echo(f"\npydocs test: {len(queries)} topics over {sum(1 for _ in pydocs.docs())} documents\n")
    click.echo(tables.table(["system", *MEASURES, "ms/query", "run"], rows) + "\n")
    for better, worse in (("hybrid", "bm25"), ("hybrid", "student"), ("reranked", "hybrid")):
        difference, p_value = evaluate.compare(values[better], values[worse])
        click.echo(f"RR@10, {better} against {worse}: {difference:+.4f} (p = {p_value:.2g}, paired t-test)")
    click.echo(f"\n{time.monotonic() - started:.0f} s in all. Next: python -m pyserini_kd.search --encoder student")
    click.echo('or: python -m pyserini_kd.search --query "merge two sorted arrays"')


if __name__ == "__main__":
    main()
