"""Scaling of encoding and search: `python -m benchmarks.scaling` prints three tables, with one process per line.

Vectors are MiniLM-L6 vectors of real passages, repeated with noise up to the required number, so that recall is realistic.
Queries are real. Indexes are kept in `--work`; those of a million vectors take gigabytes.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.load import pydocs_index
from benchmarks.measure import Bench
from benchmarks.models import dense_index
from benchmarks.table import about_this_machine, table
from benchmarks.table import line as row
from pyserini_kd.data import docstrings, ids
from pyserini_kd.data.types import Doc
from pyserini_kd.models import loading, saving
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.retrieval import dense_build, faiss_build, faiss_kinds, vector_store
from pyserini_kd.retrieval.dense_index import DenseIndex

NOISE = 0.5  # length of the noise that is added to a vector of length 1
BLOCK = 1 << 15
K = 100
QUERIES = 200
ENCODED = {"minilm": (1_000, 10_000, 100_000), "tiny": (50_000, 100_000, 1_000_000)}  # tiny: 2/32, random
WORDS = 25  # of each of the two texts that form a document for the tiny model


def kinds_for(count: int) -> list[tuple[str, dict[str, int]]]:
    """Index kinds and search parameters for `count` vectors. Lucene uses Java memory and the page cache."""
    lists = 2 ** round(math.log2(4 * math.sqrt(count)))
    probes = {"nprobe": max(1, lists // 32)}
    return [
        ("Flat", {}),
        ("SQ8", {}),
        ("HNSW32", {"ef_search": 128}),
        (f"IVF{lists},Flat", probes),
        (f"IVF{lists},PQ48", probes),
        (f"OPQ48,IVF{lists},PQ48", probes),
        ("lucene-flat", {}),
        ("lucene-hnsw", {"ef_search": 128}),
    ]


def vector_blocks(bench: Bench, count: int) -> list[Path]:
    """Files (`.npy`) with `count` vectors: real ones, repeated with noise."""
    folder = bench.work / f"vectors.{count}"
    if not (folder / "done").exists():
        folder.mkdir(exist_ok=True)
        real = DenseIndex.open(dense_index(bench) if bench.data else pydocs_index(bench)).store
        base, rng = real.reconstruct(np.arange(real.count)), np.random.default_rng(0)
        for number, start in enumerate(range(0, count, BLOCK)):
            rows = np.arange(start, min(start + BLOCK, count)) % len(base)
            vectors = base[rows] + rng.normal(0, NOISE / math.sqrt(base.shape[1]), (len(rows), base.shape[1])).astype("f4")
            np.save(folder / f"{number:06d}.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        texts = [query.text for query in docstrings.topics("test")][:QUERIES]
        np.save(folder / "queries", load_encoder("minilm").encode_queries(texts))
        (folder / "done").touch()
    return sorted(folder.glob("[0-9]*.npy"))


def search_line(bench: Bench, count: int, kind: str, parameters: dict[str, int]) -> list[str]:
    """Build the index if it is missing (returns []); otherwise search it query by query and return a table line."""
    import psutil

    blocks = vector_blocks(bench, count)
    folder, queries = blocks[0].parent, np.load(blocks[0].parent / "queries.npy")
    place = folder / kind.replace(",", "-")
    if not (place / "seconds").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "docid").write_text("".join(f"{row}\n" for row in range(count)))
        begun = time.perf_counter()
        faiss_build.write(blocks, queries.shape[1], kind, place)
        (place / "seconds").write_text(f"{time.perf_counter() - begun:.1f}")
        return []  # a new process opens it, to measure memory
    process = psutil.Process()
    before = process.memory_info().rss
    opened = vector_store.open_store(place)
    opened.search(queries[:1], K, **parameters)
    held = (process.memory_info().rss - before) / 2**20
    seconds, found = [], []
    for query in queries:
        begun = time.perf_counter()
        found.append(opened.search(query[None], K, **parameters)[1][0])
        seconds.append(time.perf_counter() - begun)
    if kind == "Flat":
        np.save(folder / "exact", np.array(found))
    exact = np.load(folder / "exact.npy")
    recall = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, exact, strict=True)])
    cuts = statistics.quantiles(seconds, n=20)
    settings = "".join(f" {name}={value}" for name, value in parameters.items())
    speed = [f"{cuts[9] * 1000:.2f}", f"{cuts[18] * 1000:.2f}"]
    return [f"{count:,}", kind + settings, f"{recall:.3f}", *speed, f"{held:.0f}", (place / "seconds").read_text()]


def rotation_line(bench: Bench, sample: int) -> list[str]:
    """Recall and training CPU time of OPQ48,PQ48 over 100,000 vectors; `sample` vectors train the rotation (0: PQ48 alone).

    It uses one thread and CPU time, so that other processes do not matter.
    """
    import faiss

    faiss.omp_set_num_threads(1)
    vectors = np.concatenate([np.load(path) for path in vector_blocks(bench, 100_000)])
    queries = np.load(bench.work / "vectors.100000" / "queries.npy")
    index: Any = faiss_kinds.new(vectors.shape[1], "OPQ48,PQ48" if sample else "PQ48")
    if sample:
        faiss.downcast_VectorTransform(index.chain.at(0)).max_train_points = sample
    begun = time.process_time()
    index.train(vectors)
    seconds = time.process_time() - begun
    index.add(vectors)
    exact, found = (np.argsort(-(queries @ vectors.T), axis=1)[:, :K], index.search(queries, K)[1])
    recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
    return [f"{sample:,}" if sample else "(none)", f"{recall:.3f}", f"{seconds:.0f}"]


def encode_line(bench: Bench, count: int, name: str) -> list[str]:
    """Index `count` documents: real ones first. Further ones, and all for the tiny model, join the beginnings of two texts."""
    docs = list(docstrings.docs())
    whole = 0 if name == "tiny" else len(docs)

    def generated() -> Iterator[Doc]:
        return (docs[number] if number < whole else _combined(docs, number) for number in range(count))

    def places(doc_id: str) -> Iterator[str]:
        return (str(number) for number, doc in enumerate(generated()) if doc.doc_id == doc_id)

    with tempfile.TemporaryDirectory() as folder:
        if name == "tiny":
            name = str(saving.save(_tiny(), Path(folder) / "tiny"))
        begun = time.perf_counter()
        dense_build.index_dense(
            ids.unique_docs(generated(), places), load_encoder(name), Path(folder) / "index"
        )  # as the command does
        seconds = time.perf_counter() - begun
    import resource  # only POSIX systems have it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [f"{count:,}", Path(name).name, f"{count / seconds:.0f}", f"{seconds:.0f}", f"{peak:.0f}"]


def _combined(docs: Sequence[Doc], number: int) -> Doc:
    first, turn = docs[number % len(docs)], number // len(docs)
    second = docs[(number * 7 + turn) % len(docs)]
    return Doc(f"{turn}.{first.doc_id}", first.title, " ".join(first.text.split()[:WORDS] + second.text.split()[:WORDS]))


def _tiny() -> Any:
    import torch
    from transformers import BertConfig, BertModel

    from pyserini_kd.models.bert_dot import BertDot, EncoderSettings

    torch.manual_seed(0)
    tokenizer: Any = loading.load("minilm").tokenizer
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    return BertDot(BertModel(config, add_pooling_layer=False), tokenizer, EncoderSettings("mean", True, 32, 64))


@click.command()
@click.option("--data", type=click.Path(path_type=Path), envvar="PYSERINI_KD_DATA", default="../shared/data",
              help="Folder with msmarco-dl19/, the source of the vectors; otherwise the embedded documents.")  # fmt: skip
@click.option("--work", type=click.Path(path_type=Path), default="build/bench", help="Work folder.")
@click.option("--up-to", default=1_000_000, show_default=True, help="Largest number of vectors; HNSW is slow with a million.")
@click.option("--quick", is_flag=True, help="Small sizes, as a test of the program, not of its speed.")
@click.option("--line", hidden=True)
def main(data: Path, work: Path, up_to: int, quick: bool, line: str | None) -> None:
    """Print how indexing time and memory, and search recall, latency and memory, grow with the collection."""
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(data.resolve() if (data / "msmarco-dl19").is_dir() else None, work.resolve(), quick)
    if line:
        what, *arguments = json.loads(line)
        measure = {"encode": encode_line, "search": search_line, "rotation": rotation_line}[what]
        click.echo(json.dumps(measure(bench, *arguments)))
        return
    base = [sys.executable, "-m", "benchmarks.scaling", "--work", str(bench.work), "--data", str(bench.data or "none")]
    base += ["--quick"] if quick else []

    def measured(*arguments: Any) -> list[str]:
        done = subprocess.run([*base, "--line", json.dumps(arguments)], stdout=subprocess.PIPE, text=True, check=True)
        cells: list[str] = json.loads(done.stdout.splitlines()[-1])
        return cells

    click.echo(about_this_machine() + ("; QUICK sizes: the figures mean nothing" if quick else ""))
    click.echo("\n" + table([], ("documents", "model", "docs/s", "seconds", "peak MiB")))  # lines are printed as they come
    peaks = {}
    for name, counts in ENCODED.items():
        for count in counts:
            cells = measured("encode", count // bench.choose(1, 50), name)
            peaks[name, count] = float(cells[-1])
            click.echo(row(cells))
    more = peaks["tiny", 1_000_000] - peaks["tiny", 50_000]
    click.echo(f"\nA million documents need {more:.0f} MiB more than 50,000 (bar: 300): {'yes' if more <= 300 else 'NO'}.")
    click.echo("\n" + table([], ("vectors", "kind", f"recall@{K}", "p50 ms", "p95 ms", "MiB held", "build s")))
    for count in (2_000,) if quick else [size for size in (10_000, 100_000, 1_000_000) if size <= up_to]:
        for kind, parameters in kinds_for(count):
            if quick and "PQ" in kind:
                continue
            cells = measured("search", count, kind, parameters)
            click.echo(row(cells or measured("search", count, kind, parameters)))
    if not quick and up_to >= 100_000:
        click.echo("\n" + table([], ("OPQ's rotation trained on", f"recall@{K}", "CPU s of training")))
        for sample in (0, 16_384, 65_536):  # the last is the default of FAISS and ours
            click.echo(row(measured("rotation", sample)))


if __name__ == "__main__":
    main()
