"""Load test of the service with concurrent local clients: latency, errors, memory growth, and results equal to `search`.

`python -m benchmarks.load --index INDEX --encoder ENCODER --topics TOPICS --seconds 60` tests any index; `make bench` tests
the embedded documents.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

from benchmarks.measure import Bench, Row, score_tolerance
from pyserini_kd.data import docstrings, formats
from pyserini_kd.data.runs import Run
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.retrieval import bm25_build, dense_build

HITS = 10
DOCS = 8861  # the embedded documents
GROWTH = 2.0  # MiB that memory may grow from the middle third of the time to the last: allocator noise


@contextlib.contextmanager
def serving(words: Sequence[str]) -> Iterator[tuple[int, psutil.Process]]:
    """Run `pyserini-kd serve` with these arguments; yields its port and process once it answers. Ends it with Ctrl-C."""
    command = [sys.executable, "-m", "pyserini_kd", "serve", "--port", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                raise SystemExit("the service did not start")
            yield int(line.split(":")[2].split("/")[0]), psutil.Process(server.pid)
        finally:
            server.send_signal(signal.SIGINT)


class Clients:
    """Client threads, each with its own connection; collects latencies in seconds and errors."""

    def __init__(self, port: int, expected: Run, texts: dict[str, str]) -> None:
        self.port, self.expected, self.texts = port, expected, list(texts.items())
        self.seconds: list[float] = []
        self.errors: list[str] = []

    def run(self, count: int, seconds: float, rude: bool = False) -> float:
        """Run `count` clients for `seconds`; returns requests per second. `rude` adds a client with malformed requests."""
        self.seconds, until = [], time.monotonic() + seconds
        threads = [threading.Thread(target=self._client, args=(number, until)) for number in range(count)]
        threads += [threading.Thread(target=self._rude_client, args=(until,))] if rude else []
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(self.seconds) / seconds

    def percentiles(self) -> tuple[float, float]:
        """p50 and p95 in milliseconds."""
        cuts = statistics.quantiles(self.seconds, n=20)
        return cuts[9] * 1000, cuts[18] * 1000

    def _client(self, number: int, until: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while time.monotonic() < until:
            query_id, text = self.texts[number % len(self.texts)]
            number += 7
            begun = time.perf_counter()
            try:
                connection.request(
                    "POST", "/search", json.dumps({"query": text, "hits": HITS}), {"Content-Type": "application/json"}
                )
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(f"no answer: {error!r}")
                connection.close()
                continue
            self.seconds.append(time.perf_counter() - begun)
            if response.status != 200:
                self.errors.append(f"{response.status}: {body[:200]!r}")
            elif wrong := difference(json.loads(body)["results"][0]["hits"], self.expected, query_id):
                self.errors.append(wrong)
        connection.close()

    def _rude_client(self, until: float) -> None:
        """Send malformed, huge and too many queries, which must get a 4xx; and disconnect before an answer."""
        bodies = [b'{"query": ', b"x" * (4 << 20), json.dumps({"query": ["a"] * 1000}).encode()]
        while time.monotonic() < until:
            for body in bodies:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                try:
                    connection.request("POST", "/search", body, {"Content-Type": "application/json"})
                    status: Any = connection.getresponse().status
                except (OSError, http.client.HTTPException) as error:
                    status = repr(error)
                connection.close()
                if status not in range(400, 500):
                    self.errors.append(f"a malformed request got {status}")
            with socket.create_connection(("127.0.0.1", self.port)) as leaving:
                leaving.sendall(b"GET /search?query=leaving HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.05)


def difference(hits: list[dict[str, Any]], expected: Run, query_id: str) -> str:
    """How hits differ from the run of `search`, or ""; rounding and the order of near ties are ignored."""
    doc_ids, scores = expected[query_id]
    tolerance = score_tolerance()
    if not np.allclose([hit["score"] for hit in hits], scores[: len(hits)], atol=tolerance):
        return f"other scores for query {query_id}"
    wanted = dict(zip(doc_ids, scores.tolist(), strict=True))
    far = [hit for hit in hits if abs(wanted.get(hit["doc_id"], scores[-1]) - hit["score"]) > tolerance]
    return f"other documents for query {query_id}" if far else ""


def under_load(words: Sequence[str], topics: Path, work: Path, seconds: float, clients: int = 8) -> dict[str, Any]:
    """Load the service with one client and then with `clients`; returns the measurements."""
    run = work / "load.txt"
    search = [sys.executable, "-m", "pyserini_kd", "search", *words, "--topics", str(topics), "--hits", str(2 * HITS)]
    subprocess.run([*search, "--output", str(run), "--overwrite"], check=True, stdout=subprocess.DEVNULL)
    texts = {query.query_id: query.text for query in formats.read_topics(topics)}
    with serving(words) as (port, process):
        load = Clients(port, Run.read(run), texts)
        load.run(clients, max(2.0, seconds / 10), rude=True)  # warm-up: one-time allocations
        load.run(1, max(2.0, seconds / 10))
        alone = load.percentiles()
        held: list[float] = []
        done = threading.Event()
        watch = threading.Thread(target=_watch, args=(process, held, done))
        watch.start()
        try:
            rate = load.run(clients, seconds, rude=True)
        finally:
            done.set()
            watch.join()
        third = len(held) // 3
        return {
            "alone": alone,
            "together": load.percentiles(),
            "rate": rate,
            "requests": len(load.seconds),
            "errors": load.errors,
            "growth": statistics.median(held[-third:]) - statistics.median(held[third:-third]),
            "since": held[-1] - held[0],
        }


def _watch(process: psutil.Process, held: list[float], done: threading.Event) -> None:
    """Append the resident memory of a process in MiB to `held`, five times a second."""
    while not done.wait(0.2):
        held.append(process.memory_info().rss / 2**20)


def _memory(found: dict[str, Any]) -> str:
    return f"memory {found['growth']:+.1f} MiB from the middle third to the last, {found['since']:+.1f} since the start"


def described(found: dict[str, Any], clients: int = 8) -> str:
    """The measurements in one line."""
    return (
        f"alone p50 {found['alone'][0]:.1f} ms, p95 {found['alone'][1]:.1f} ms; {clients} clients "
        f"p50 {found['together'][0]:.1f} ms, p95 {found['together'][1]:.1f} ms, {found['rate']:.0f} requests/s"
    )


def dense_words(bench: Bench) -> list[str]:
    """Options of a search with MiniLM over the embedded documents; the index is built once."""
    count = bench.choose(1 << 30, 200)
    folder = bench.work / f"pydocs.{'whole' if count > DOCS else count}.minilm"
    if not folder.exists():
        dense_build.index_dense(islice(docstrings.docs(), count), load_encoder("minilm"), folder)
    return ["--index", str(folder), "--encoder", "minilm"]


def hybrid_words(bench: Bench) -> list[str]:
    """Options of the same search with BM25 beside it."""
    words = dense_words(bench)
    sparse = Path(words[1]).with_suffix(".bm25")
    if not sparse.exists():
        bm25_build.index_bm25(islice(docstrings.docs(), bench.choose(1 << 30, 200)), sparse)
    return [*words, "--sparse-index", str(sparse)]


LOADS = (  # what, options, clients, share of a minute, least requests a second, most milliseconds (p95)
    ("dense", dense_words, 8, 1.0, 300, 60.0), ("dense", dense_words, 64, 0.5, 0, math.inf),
    ("hybrid", hybrid_words, 8, 0.5, 120, math.inf),
)  # fmt: skip


def served(bench: Bench) -> list[Row]:
    """The service over the embedded documents under load: one query a request, clients on the same machine."""
    rows, topics = [], bench.work / "pydocs.tsv"
    formats.write_topics(docstrings.topics("test")[: bench.choose(500, 20)], topics, overwrite=True)
    for what, words, clients, share, least, most in LOADS:
        seconds = bench.choose(60, 3) * share if not bench.quick else 3
        found = under_load(words(bench), topics, bench.work, seconds, clients)
        errors = found["errors"]
        bar = ", ".join(filter(None, [
            f">= {least} requests/s" if least else "", f"p95 <= {most:.0f} ms" if most < math.inf else "",
            "no error, no growth in memory",
        ]))  # fmt: skip
        good = not errors and found["growth"] < GROWTH and found["rate"] >= least and found["together"][1] <= most
        equal = f"{len(errors)} errors or other results in {found['requests']} requests{''.join(errors[:1])}"
        name = f"serve, MiniLM {what}, {clients} clients for {seconds:.0f} s"
        rows.append(Row(name, described(found, clients), "", equal=equal, bar=bar, passed=good, machine=_memory(found)))
    return rows


@click.command()
@click.option("--index", "folder", required=True)
@click.option("--encoder", required=True)
@click.option("--sparse-index")
@click.option("--rerank")
@click.option("--topics", required=True, type=click.Path(path_type=Path))
@click.option("--seconds", default=60.0, type=click.FloatRange(3), show_default=True)
@click.option("--clients", default=8, type=click.IntRange(1, 64), show_default=True)
def main(
    folder: str, encoder: str, sparse_index: str | None, rerank: str | None, topics: Path, seconds: float, clients: int
) -> None:
    """Load-test the service over any index. Exit code 1 if results differ from `search` or memory grows."""
    words = ["--index", folder, "--encoder", encoder]
    words += ["--sparse-index", sparse_index] if sparse_index else []
    words += ["--rerank", rerank] if rerank else []
    import tempfile

    with tempfile.TemporaryDirectory() as work:
        found = under_load(words, topics, Path(work), seconds, clients)
    click.echo(described(found, clients))
    click.echo(f"{found['requests']} requests, {len(found['errors'])} errors, {_memory(found)}")
    for error in found["errors"][:5]:
        click.echo(error)
    sys.exit(bool(found["errors"]) or found["growth"] >= GROWTH)


if __name__ == "__main__":
    main()
