"""The engine beside a busy process, and the start of a search in a new process."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.load import dense_words
from benchmarks.measure import Bench, Row
from pyserini_kd.data import docstrings
from pyserini_kd.models import checkpoint_folder, rankers

RUNS = 5


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """A process that keeps one processor busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            time.sleep(0.5)
            yield
        finally:
            other.kill()


def beside(bench: Bench) -> list[Row]:
    """Encode documents, and one query at a time: quiet, and beside one busy process."""
    from sentence_transformers import SentenceTransformer

    docs = [doc.contents for doc in docstrings.docs()][:: bench.choose(20, 2000)]
    queries = [query.text for query in docstrings.topics("test")][: bench.choose(200, 5)]
    model: Any = rankers.load("minilm")
    peer = SentenceTransformer(str(checkpoint_folder.resolve("minilm")), device="cpu")
    jobs: dict[str, Callable[[], Any]] = {
        "ours": lambda: model.encode_docs(docs), "sentence-transformers": lambda: peer.encode(docs, show_progress_bar=False),
    }  # fmt: skip
    for job in jobs.values():
        job()
    quiet = {name: _seconds(job) for name, job in jobs.items()}
    waits = _waits(model, queries)
    with busy():
        loud = {name: _seconds(job) for name, job in jobs.items()}
        worst = max(_percentile(_waits(model, queries), 95) for _ in range(RUNS))
    share, ratio = quiet["ours"] / loud["ours"], loud["sentence-transformers"] / loud["ours"]
    p50 = _percentile(waits, 50)
    return [
        Row(
            f"encode {len(docs)} documents beside a busy process",
            f"{len(docs) / loud['ours']:.0f} docs/s ({share:.0%} of the quiet {len(docs) / quiet['ours']:.0f})",
            f"sentence-transformers {len(docs) / loud['sentence-transformers']:.0f}",
            ratio,
            bar=">= 45% of quiet; >= 3x",
            passed=share >= 0.45 and ratio >= 3,
        ),
        Row(
            f"one query at a time, {len(queries)} queries",
            f"quiet p50 {p50:.1f} ms; beside a busy process p95 {worst:.1f} ms, worst of {RUNS} runs",
            "",
            bar="<= 4 ms; <= 25 ms",
            passed=p50 <= 4 and worst <= 25,
        ),
    ]


def started(bench: Bench) -> list[Row]:
    """The time of one query in a new process, from the start of the process to its end."""
    words = [sys.executable, "-m", "pyserini_kd", "search", *dense_words(bench), "--query", "merge two sorted arrays"]
    found = [_seconds(lambda: subprocess.run(words, check=True, capture_output=True)) for _ in range(1 + RUNS)][1:]
    middle = statistics.median(found)
    return [
        Row(
            "search --query in a new process",
            f"{middle:.2f} s (worst {max(found):.2f} s)",
            "",
            bar="<= 1.5 s",
            passed=middle <= 1.5,
        )
    ]


def _waits(model: Any, queries: Sequence[str]) -> list[float]:
    """Milliseconds of each query."""
    return [1000 * _seconds(lambda query=query: model.encode_queries([query])) for query in queries]  # type: ignore[misc]


def _percentile(values: Sequence[float], share: int) -> float:
    return statistics.quantiles(values, n=100)[share - 1]


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
