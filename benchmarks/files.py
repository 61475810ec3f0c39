"""Benchmark rows on files: evaluate, fuse, and the start-up time of --help."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Bench, Row, interleaved, read_bandwidth
from pyserini_kd.__main__ import COMMANDS
from pyserini_kd.data import formats
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Qrels
from pyserini_kd.evaluation import engines
from pyserini_kd.retrieval import fusion

COLLECTION = 8_841_823  # documents, as in MS MARCO
MEASURES = ("RR@10", "nDCG@10", "AP", "R@1000", "P@10")


def made_run(bench: Bench, number: int) -> Path:
    """A random run of 6,980 queries with 1,000 hits each; ids and scores resemble a dense run, without ties."""
    queries, hits = bench.choose(6980, 100), bench.choose(1000, 100)
    path = bench.work / f"made.{queries}x{hits}.{number}.txt"
    if not path.exists():
        rng = np.random.default_rng(number)
        found = []
        for query in range(queries):
            doc_ids = rng.choice(COLLECTION // 100, hits, replace=False) * 100 + query % 100  # so that two runs share some ids
            scores = 80 - (np.arange(hits) + 0.9 * rng.random(hits)) / 50
            found.append((str(query * 7), [str(d) for d in doc_ids.tolist()], scores))
        Run.from_hits(f"made{number}", found).write(path)
    return path


def made_qrels(bench: Bench, run: Run) -> tuple[Qrels, Path]:
    """One relevant document per query, as in MS MARCO dev; 90% of them are in the run."""
    rng = np.random.default_rng(9)
    qrels = {
        q: {hits.doc_ids[int(rng.integers(len(hits.doc_ids)))] if rng.random() < 0.9 else "none": 1} for q, hits in run.items()
    }
    path = bench.work / f"qrels.{len(qrels)}.txt"
    formats.write_qrels(qrels, path, overwrite=True)
    return qrels, path


# ------------------------------------------------------------------------------------------------------- evaluate


def lean_reader(path: Path) -> dict[str, dict[str, float]]:
    """A run as input of pytrec_eval, by the fastest way known: the CSV reader of pyarrow, then one dict per query."""
    import pyarrow as pa
    import pyarrow.csv

    names = ["q", "Q0", "d", "rank", "score", "tag"]
    table = pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(column_names=names),
        parse_options=pyarrow.csv.ParseOptions(delimiter=" ", quote_char=False),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=["q", "d", "score"], column_types={"q": pa.string(), "d": pa.string(), "score": pa.float64()}
        ),
    )
    queries = table["q"].to_numpy()
    doc_ids, scores = table["d"].to_pylist(), table["score"].to_pylist()
    starts = [0, *(np.flatnonzero(queries[1:] != queries[:-1]) + 1).tolist(), len(queries)]
    return {queries[a]: dict(zip(doc_ids[a:b], scores[a:b], strict=True)) for a, b in zip(starts, starts[1:], strict=False)}


def by_pytrec_eval(path: Path, qrels: Qrels) -> dict[str, float]:
    """The five means by pytrec_eval, in one pass: RR@10 drops reciprocal ranks below 0.1 (beyond rank 10)."""
    import pytrec_eval

    names = {"nDCG@10": "ndcg_cut_10", "AP": "map", "R@1000": "recall_1000", "P@10": "P_10", "RR@10": "recip_rank"}
    asked = {"ndcg_cut.10", "map", "recall.1000", "P.10", "recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(lean_reader(path))
    means = {}
    for measure, name in names.items():
        values = [result[name] for result in found.values()]
        means[measure] = sum(value for value in values if measure != "RR@10" or value >= 0.1) / len(qrels)
    return means


def by_trectools(run: Path, qrels: Path) -> dict[str, float]:
    """The five means by trectools alone, as in its documentation."""
    from trectools import TrecEval, TrecQrel, TrecRun

    judge = TrecEval(TrecRun(str(run)), TrecQrel(str(qrels)))
    return {
        "RR@10": judge.get_reciprocal_rank(depth=10),
        "nDCG@10": judge.get_ndcg(depth=10),
        "AP": judge.get_map(),
        "R@1000": judge.get_recall(depth=1000),
        "P@10": judge.get_precision(depth=10),
    }


def evaluated(bench: Bench) -> list[Row]:
    """Five measures of 6,980 x 1,000 hits, with reading of a cached file: ours, pytrec_eval, and trectools on a sample."""
    import pyarrow.csv  # noqa: F401 - import before timing
    import trectools  # noqa: F401

    path = made_run(bench, 1)
    qrels, qrels_path = made_qrels(bench, Run.read(path))
    sample = bench.choose(100, 20)
    small = bench.work / "sample.txt"
    whole = Run.read(path)
    Run("sample", {q: whole[q] for q in list(whole)[:sample]}).write(small, overwrite=True)
    n_queries = len(whole)
    del whole

    def ours(_: int) -> dict[str, float]:
        return {m: engines.mean(values) for m, values in engines.evaluate(Run.read(path), qrels, MEASURES).items()}

    jobs: dict[str, Any] = {
        "ours": ours,
        "pytrec_eval": lambda _: by_pytrec_eval(path, qrels),
        "trectools": lambda _: by_trectools(small, qrels_path),
    }
    timed = interleaved(jobs, bench.choose(3, 1), once=["trectools"])
    mine, theirs = timed.results["ours"][-1], timed.results["pytrec_eval"][-1]
    gap = max(abs(mine[measure] - theirs[measure]) for measure in MEASURES)
    ratio = timed.ratio("ours", "pytrec_eval")
    whole_trectools = timed.median("trectools") * n_queries / sample
    faster = whole_trectools / timed.median("ours")
    speed = read_bandwidth(path)
    share = path.stat().st_size / speed / timed.median("ours")
    equal = f"means within {gap:.0e}"
    disk = f"reading the file alone, {speed / 1e9:.1f} GB/s, would take {share:.1%} of it"
    what = f"evaluate {n_queries} x {bench.choose(1000, 100)}, 5 measures"
    seconds = f"{timed.median('ours'):.1f} s"
    return [
        Row(what, seconds, f"pytrec_eval, pyarrow's reader {timed.median('pytrec_eval'):.1f} s", ratio, None, equal,
            "<= 2x its time (ratio >= 0.5)", ratio >= 0.5 and gap < 1e-6, disk),
        Row(what, seconds, f"trectools alone {whole_trectools:.0f} s, extrapolated from {sample} queries", faster, None, "",
            ">= 10x", faster >= 10),
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- fuse


def fused(bench: Bench) -> list[Row]:
    """RRF of two runs. Ours reads, fuses and writes; for ranx only reading and fusing is timed.

    The kernels of ranx are compiled before timing. Its `save` would take many minutes, so its time is extrapolated.
    """
    import ranx

    paths = [made_run(bench, number) for number in (1, 2)]
    ours_path, theirs_path, tiny_path = (bench.work / f"fused.{name}.txt" for name in ("ours", "ranx", "tiny"))

    def ours(_: int) -> None:
        fusion.rrf([Run.read(path) for path in paths], k=None).write(ours_path, overwrite=True)

    def by_ranx(paths: list[Path]) -> Any:
        runs = [ranx.Run.from_file(str(path), kind="trec") for path in paths]
        return ranx.fuse(runs, norm=None, method="rrf", params={"k": 60})

    Run.from_scores("tiny", {"q": {"a": 2.0, "b": 1.0}}).write(tiny_path, overwrite=True)
    by_ranx([tiny_path, tiny_path]).save(str(theirs_path), kind="trec")
    kept: dict[str, Any] = {}  # only the last round, because ranx runs are large
    timed = interleaved({"ours": ours, "ranx": lambda _: kept.update(run=by_ranx(paths))}, bench.choose(2, 1))
    mine, theirs = Run.read(ours_path), kept["run"]
    queries = list(mine)[:: max(1, len(mine) // 100)]
    gap = 0.0
    for query_id in queries:
        other = theirs[query_id]
        gap = max(gap, abs(len(other) - len(mine[query_id].doc_ids)))
        gap = max(gap, max(abs(other.get(d, np.inf) - s) for d, s in zip(*mine[query_id], strict=True)))
    sample = ranx.Run.from_dict({query_id: theirs[query_id] for query_id in queries[:10]})
    begun = time.perf_counter()
    sample.save(str(theirs_path), kind="trec")
    saving = (time.perf_counter() - begun) * len(mine) / len(queries[:10])
    ratio, seconds = timed.ratio("ours", "ranx"), timed.median("ours")
    moved = sum(path.stat().st_size for path in [*paths, ours_path])
    share = moved / read_bandwidth(paths[0]) / seconds
    return [
        Row(
            f"fuse two runs of {len(mine)} x {bench.choose(1000, 100)} by RRF",
            f"{seconds:.1f} s, reading and writing included",
            f"ranx {timed.median('ranx'):.1f} s, without writing (about {saving:.0f} s more, from 10 queries)",
            ratio,
            None,
            f"scores of {len(queries)} queries within {gap:.0e}",
            "<= 30 s, as fast as ranx",
            seconds <= 30 and ratio >= 1 and gap < 1e-6,
            f"moving {moved / 1e6:.0f} MB alone would take {share:.1%} of it",
        )
    ]


# ----------------------------------------------------------------------------------------------------------- help


def helped(bench: Bench) -> list[Row]:
    """`--help` of every command: the slowest median of three rounds."""
    # with bytecode, as when installed
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def show(command: str) -> Any:
        words = [sys.executable, "-m", "pyserini_kd", command, "--help"]
        return lambda _: subprocess.run(words, check=True, capture_output=True, env=compiled)

    timed = interleaved({command: show(command) for command in COMMANDS}, bench.choose(3, 1))
    slowest = max(COMMANDS, key=timed.median)
    bare = interleaved({"python": lambda _: subprocess.run([sys.executable, "-c", ""], check=True)}, 3).median("python")
    seconds = timed.median(slowest)
    return [
        Row(
            f"--help of all {len(COMMANDS)} commands",
            f"{seconds:.2f} s ({slowest}, the slowest)",
            "",
            bar="<= 0.5 s",
            passed=seconds <= 0.5,
            machine=f"an empty Python takes {bare:.2f} s",
        )
    ]
