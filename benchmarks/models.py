"""Benchmark rows on models: encode, search, rerank, students, int8, train."""

from __future__ import annotations

import contextlib
import functools
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.measure import Bench, Row, against_machine, interleaved, possible, score_tolerance
from pyserini_kd.data import docstrings, formats, sources
from pyserini_kd.data.runs import Run
from pyserini_kd.models import checkpoint_folder, hardware, loading, rankers, saving
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.retrieval import dense_build
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.retrieval.system import System

ROUNDS = 8


def encode(bench: Bench) -> list[Row]:
    """Encode 4,000 real documents with MiniLM-L6, 500 in each of eight rounds; only the better peer runs in all."""
    from pyserini_kd.data.java import start_jvm

    start_jvm()
    from pyserini.encode import AutoDocumentEncoder
    from sentence_transformers import SentenceTransformer

    folder = checkpoint_folder.resolve("minilm")
    size = bench.choose(500, 8)
    texts = [doc.contents for doc in docstrings.docs()][: ROUNDS * size]
    parts = [texts[start::ROUNDS] for start in range(ROUNDS)]  # short and long texts in each part
    model: Any = rankers.load("minilm")
    pyserini = AutoDocumentEncoder(str(folder), device="cpu", pooling="mean", l2_norm=True)
    sentence_transformer = SentenceTransformer(str(folder), device="cpu")

    def with_bf16(function: Any) -> Any:
        def run(number: int) -> Any:
            with peers.bf16():
                return function(number)

        return run

    jobs: dict[str, Any] = {
        "ours": lambda number: model.encode_docs(parts[number]),
        "Pyserini": lambda number: peers.pyserini_encode(pyserini, parts[number]),
        "sentence-transformers": lambda number: sentence_transformer.encode(parts[number]),
    }
    names = list(jobs)[1:]
    jobs = possible(jobs | {f"{name} bf16": with_bf16(jobs[name]) for name in names})
    parts.append(texts[: bench.choose(100, 4)])  # part -1: warm-up and choice of the better peer
    trial = interleaved({name: functools.partial(_first, job) for name, job in jobs.items()}, 2)
    in_bf16 = [name for name in jobs if name.endswith("bf16")]
    better, best_bf16 = trial.better(*names), trial.better(*in_bf16) if in_bf16 else "none in bf16"
    often = ("ours", better) if once_in_bf16() else ("ours", better, best_bf16)
    timed = interleaved(jobs, ROUNDS, once=[name for name in jobs if name not in often])
    ratio, against_bf16 = timed.ratio("ours", better), timed.ratio("ours", best_bf16)
    cosine = min(_cosine(a, b) for name in names for a, b in zip(timed.results["ours"], timed.results[name], strict=False))
    speed, amx = {name: size / timed.median(name) for name in jobs}, "amx_bf16" in hardware.cpu_flags()
    plain: Any = loading.load("minilm")
    lengths = [min(256, len(ids)) for ids in plain.tokenizer(parts[0])["input_ids"]]
    return [
        Row(
            f"encode {len(texts)} documents, MiniLM-L6",
            f"{speed['ours']:.0f} docs/s",
            ", ".join(f"{name} {value:.0f}" for name, value in speed.items() if name != "ours"),
            ratio,
            against_bf16,
            f"cosine >= {cosine:.5f}",
            ">= 4x; bf16 >= 1.7x; 1.5x without AMX",
            ratio >= (4 if amx else 1.5) and (against_bf16 >= 1.7 or not amx) and cosine >= 0.999,
            against_machine(plain.encoder.config, lengths, timed.seconds["ours"][0], hardware.choose_precision()),
        )
    ]


def _first(job: Any, _: int) -> Any:
    return job(-1)


def _cosine(a: Any, b: Any) -> float:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


# --------------------------------------------------------------------------------------------------------- search


def searched(bench: Bench) -> list[Row]:
    """Search the 30,005 passages of msmarco-dl19 with 1,000 SQuAD test questions, with and without start-up."""
    assert bench.data is not None
    folder, topics = dense_index(bench), bench.work / f"squad.{bench.choose(1000, 20)}.tsv"
    queries = formats.read_topics(bench.data / "squad" / "queries.test.tsv")[: bench.choose(1000, 20)]
    formats.write_topics(queries, topics, overwrite=True)
    checkpoint = checkpoint_folder.resolve("minilm")
    ours, theirs = bench.work / "ours.txt", bench.work / "pyserini.txt"
    command = [sys.executable, "-m", "pyserini_kd.search", "--index", folder, "--encoder", "minilm", "--topics", topics]
    command += ["--output", ours, "--overwrite"]
    run_peer = [sys.executable, "-m", "benchmarks.peers"]
    peer = ["pyserini.search.faiss", "--index", folder, "--topics", topics, "--encoder", checkpoint]
    peer += ["--encoder-class", "auto", "--pooling", "mean", "--l2-norm", "--output"]
    batched = "with --batch-size 64 --threads 2"
    jobs: dict[str, Any] = {
        "ours": lambda _: _run(command),
        "Pyserini": lambda _: _run([*run_peer, *peer, theirs]),
        batched: lambda _: _run([*run_peer, *peer, theirs, "--batch-size", "64", "--threads", "2"]),
        "bf16": lambda _: _run([*run_peer, "--bf16", *peer, bench.work / "pyserini.bf16.txt"]),
    }
    timed = interleaved(possible(jobs), bench.choose(3, 1), once=[batched, *once_in_bf16()])
    equal = same_ranking(Run.read(ours), Run.read(theirs))
    ratio = timed.ratio("ours", "Pyserini")
    begun = time.perf_counter()
    _run([sys.executable, "-c", "import torch, faiss"])
    bare = time.perf_counter() - begun
    with_start = Row(
        f"search end to end, {len(queries)} questions, start-up included",
        f"{timed.median('ours'):.1f} s",
        timed.each(("Pyserini", batched, "bf16"), lambda seconds: f"{seconds:.1f} s"),
        ratio,
        timed.ratio("ours", "bf16"),
        equal,
        ">= 8x",
        ratio >= 8 and equal == "equal rankings",
        f"a Python that imports torch and FAISS takes {bare:.1f} s",
    )
    return [with_start, _search_warm(folder, queries, checkpoint)]


def _search_warm(folder: Path, queries: list[Any], checkpoint: Path) -> Row:
    """The same in one process after loading; no run file is written."""
    from pyserini_kd.data.java import start_jvm

    start_jvm()
    from pyserini.encode import AutoQueryEncoder
    from pyserini.search.faiss import FaissSearcher

    opened = System.open(SystemSettings(index=(str(folder),), encoder="minilm"))
    searcher = FaissSearcher(str(folder), AutoQueryEncoder(encoder_dir=str(checkpoint), pooling="mean", l2_norm=True))

    def with_bf16(_: int) -> Any:
        with peers.bf16():
            return peers.pyserini_search(searcher, queries, 1000)

    jobs: dict[str, Any] = {
        "ours": lambda _: opened.search(queries, 1000)[0],
        "Pyserini": lambda _: peers.pyserini_search(searcher, queries, 1000),
        "bf16": with_bf16,
    }
    jobs = possible(jobs)
    for job in jobs.values():
        job(0)
    timed = interleaved(jobs, 3, once=once_in_bf16())
    ratio, against_bf16 = timed.ratio("ours", "Pyserini"), timed.ratio("ours", "bf16")
    equal = same_ranking(timed.results["ours"][0], peers.run_of(timed.results["Pyserini"][0]))
    model: Any = loading.load("minilm")
    lengths = [len(ids) for ids in model.tokenizer([query.text for query in queries])["input_ids"]]
    return Row(
        f"search, {len(queries)} questions, everything loaded",
        f"{len(queries) / timed.median('ours'):.0f} queries/s",
        timed.each(("Pyserini", "bf16"), lambda seconds: f"{len(queries) / seconds:.0f}"),
        ratio,
        against_bf16,
        equal,
        ">= 10x",
        ratio >= 10 and equal == "equal rankings",
        against_machine(model.encoder.config, lengths, timed.median("ours"), hardware.choose_precision()) + ", FAISS included",
    )


def dense_index(bench: Bench) -> Path:
    """The MiniLM index of the msmarco-dl19 passages; built once."""
    assert bench.data is not None
    folder = bench.work / f"dl19.minilm{'.quick' if bench.quick else ''}"
    if not folder.exists():
        docs = sources.collection(str(bench.data / "msmarco-dl19" / "collection.tsv"))
        first_docs = (doc for doc, _ in zip(docs, range(bench.choose(1 << 30, 200)), strict=False))
        dense_build.index_dense(first_docs, load_encoder("minilm"), folder)
    return folder


def once_in_bf16() -> list[str]:
    """Jobs for the first round only: the bf16 peer, where bf16 is slower than fp32."""
    return [] if hardware.choose_precision() == "bf16" else ["bf16"]


def same_ranking(run: Run, other: Run) -> str:
    """`equal rankings`, or how the runs differ. Scores may differ by `score_tolerance`, and near ties may swap documents."""
    tolerance = score_tolerance()
    if set(run) != set(other):
        return "different queries"
    for query_id in run:
        a, b = run[query_id], other[query_id]
        if len(a.doc_ids) != len(b.doc_ids) or not np.allclose(a.scores, b.scores, atol=tolerance):
            return f"scores differ, e.g. query {query_id}"
        last, scores = a.scores[-1], dict(zip(a.doc_ids, a.scores.tolist(), strict=True))
        if any(abs(scores.get(d, last) - s) > tolerance for d, s in zip(b.doc_ids, a.scores.tolist(), strict=True)):
            return f"documents differ, e.g. query {query_id}"
    return "equal rankings"


def _run(words: list[Any]) -> None:
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# -------------------------------------------------------------------------------------------------------- scoring


def random_cross_encoder(folder: Path, layers: int = 0, width: int = 0, heads: int = 12, inner: int = 0) -> Any:
    """Save and load a cross-encoder: MiniLM with a random head, or random weights of a given shape."""
    import torch
    from transformers import AutoConfig, BertForSequenceClassification

    from pyserini_kd.models.cross_encoder import CrossEncoder

    torch.manual_seed(0)
    source: Any = loading.load("minilm")
    config = AutoConfig.from_pretrained(checkpoint_folder.resolve("minilm"), num_labels=1)
    if layers:
        config.update(
            {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "intermediate_size": inner}
        )
    classifier = BertForSequenceClassification(config)
    if not layers:
        classifier.bert.load_state_dict(source.encoder.state_dict(), strict=False)
    saving.save(CrossEncoder(classifier.eval(), source.tokenizer, 256), folder, overwrite=True)
    return rankers.load(str(folder))


def dl19_pairs(bench: Bench) -> list[tuple[str, str, str, str]]:
    """(query id, document id, query, document) for the top 100 of the DL19 BM25 run."""
    assert bench.data is not None
    folder = bench.data / "msmarco-dl19"
    texts = {query.query_id: query.text for query in formats.read_topics(folder / "queries.dl19.tsv")}
    run = Run.read(folder / "runs" / "bm25.dl19.trec").top(100)
    wanted = {doc_id for hits in run.values() for doc_id in hits.doc_ids}
    docs = {doc.doc_id: doc.contents for doc in formats.read_collection(folder / "collection.tsv") if doc.doc_id in wanted}
    return [(q, d, texts[q], docs[d]) for q, hits in run.items() for d in hits.doc_ids]


def reranked(bench: Bench) -> list[Row]:
    """Rerank the DL19 BM25 top 100 with a MiniLM-size cross-encoder, in eight rounds; ours vs CrossEncoder.predict."""
    from sentence_transformers import CrossEncoder

    pairs = [(query, doc) for *_, query, doc in dl19_pairs(bench)][: bench.choose(1 << 30, 64)]
    size = -(-len(pairs) // ROUNDS)
    parts = [pairs[start::ROUNDS] for start in range(ROUNDS)]
    with tempfile.TemporaryDirectory() as folder:
        model = random_cross_encoder(Path(folder) / "cross")
        peer = CrossEncoder(str(Path(folder) / "cross"), device="cpu")

        def ours(number: int) -> Any:
            return model.score([query for query, _ in parts[number]], [doc for _, doc in parts[number]])

        def with_bf16(number: int) -> Any:
            with peers.bf16():
                return peer.predict(parts[number])

        jobs = possible({"ours": ours, "CrossEncoder": lambda number: peer.predict(parts[number]), "bf16": with_bf16})
        parts.append(pairs[:4])
        for job in jobs.values():
            job(-1)
        parts.pop()
        timed = interleaved(jobs, ROUNDS, once=once_in_bf16())
    a, b = np.concatenate(timed.results["ours"]), np.concatenate(timed.results["CrossEncoder"])
    together = float(np.corrcoef(a, b)[0, 1])
    ratio, against_bf16 = timed.ratio("ours", "CrossEncoder"), timed.ratio("ours", "bf16")
    lengths = [min(256, len(ids)) for ids in model.tokenizer(*map(list, zip(*parts[0], strict=True)))["input_ids"]]
    return [
        Row(
            f"rerank {len(pairs)} pairs, MiniLM-L6 cross-encoder",
            f"{size / timed.median('ours'):.0f} pairs/s",
            timed.each(("CrossEncoder", "bf16"), lambda seconds: f"{size / seconds:.0f}"),
            ratio,
            against_bf16,
            f"correlation {together:.5f}, largest difference {np.abs(a - b).max():.1e}",
            ">= 5x; bf16 >= 2x",
            ratio >= 4 and against_bf16 >= 1.3 and together >= 0.999,
            against_machine(model.classifier.config, lengths, timed.seconds["ours"][0], hardware.choose_precision()),
        )
    ]


STUDENTS = {"3/384": (3, 384, 12, 1536), "4/312": (4, 312, 12, 1200)}


def students(bench: Bench) -> list[Row]:
    """Students vs BERT-base, both with random weights: in our engine, and against CrossEncoder.predict."""
    from sentence_transformers import CrossEncoder

    pairs = [(query, doc) for *_, query, doc in dl19_pairs(bench)][:: bench.choose(34, 1000)]
    queries, docs = [query for query, _ in pairs], [doc for _, doc in pairs]
    with tempfile.TemporaryDirectory() as folder:
        shapes = STUDENTS | {"BERT-base": (12, 768, 12, 3072)}
        models = {name: random_cross_encoder(Path(folder) / name.replace("/", "-"), *shape) for name, shape in shapes.items()}
        peer = CrossEncoder(str(Path(folder) / "BERT-base"), device="cpu")
        jobs: dict[str, Any] = {name: lambda _, model=model: model.score(queries, docs) for name, model in models.items()}

        def with_bf16(_: int) -> Any:
            with peers.bf16():
                return peer.predict(pairs)

        jobs = possible(jobs | {"CrossEncoder BERT-base": lambda _: peer.predict(pairs), "bf16": with_bf16})
        for job in jobs.values():
            job(0)
        timed = interleaved(jobs, bench.choose(5, 1), once=once_in_bf16())
    lengths = [min(256, len(ids)) for ids in models["3/384"].tokenizer(queries, docs)["input_ids"]]
    rows, bf16 = [], timed.each(("bf16",), lambda seconds: f"{len(pairs) / seconds:.1f}")
    for name in STUDENTS:
        machine = against_machine(models[name].classifier.config, lengths, timed.median(name), hardware.choose_precision())
        for base, bar in (("BERT-base", 9.0), ("CrossEncoder BERT-base", None)):
            ratio = timed.ratio(name, base)
            rows.append(
                Row(
                    f"student {name} against {base}, {len(pairs)} pairs",
                    f"{len(pairs) / timed.median(name):.0f} pairs/s",
                    f"{base}{' in our engine' if bar else '.predict'} {len(pairs) / timed.median(base):.1f}"
                    + (f", {bf16}" if bf16 and not bar else ""),
                    ratio,
                    None if bar else timed.ratio(name, "bf16"),
                    "(random weights: speed only)",
                    ">= 9x, aim 15x" if bar else "",
                    ratio >= bar if bar else None,
                    machine,
                )
            )
    return rows


def int8(bench: Bench) -> list[Row]:
    """int8 vs the precision `auto`: MiniLM reranks the DL19 BM25 top 100 in eight rounds; speed and nDCG@10."""
    from pyserini_kd.evaluation import engines
    from pyserini_kd.models.openvino_export import export

    assert bench.data is not None
    other = hardware.choose_precision()
    pairs = dl19_pairs(bench)[: bench.choose(1 << 30, 80)]
    size = -(-len(pairs) // ROUNDS)
    parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    with tempfile.TemporaryDirectory() as folder:
        texts = [doc for *_, doc in pairs[:: max(1, len(pairs) // 300)]]
        exported = export("minilm", Path(folder) / "int8", calibration=[(text[:40], text) for text in texts])
        models = {precision: rankers.load(str(exported), precision=precision) for precision in ("int8", other)}

        def job(precision: str) -> Any:
            model = models[precision]
            return lambda number: model.score([query for *_, query, _ in parts[number]], [doc for *_, doc in parts[number]])

        parts.append(pairs[:4])
        for precision in models:
            job(precision)(-1)
        parts.pop()
        timed = interleaved({precision: job(precision) for precision in models}, ROUNDS)
        plain: Any = loading.load("minilm")
        texts = [doc for part in parts for doc in dict.fromkeys(doc for *_, doc in part)]  # without queries, which are short
        lengths = [min(len(ids), plain.settings.max_doc_len) for ids in plain.tokenizer(texts)["input_ids"]]
        machine = against_machine(plain.encoder.config, lengths, sum(timed.seconds["int8"]), "int8")
    qrels = formats.read_qrels(bench.data / "msmarco-dl19" / "qrels.dl19.txt")
    ndcg = {}
    for precision, found in timed.results.items():
        scores: dict[str, dict[str, float]] = {}
        for (query_id, doc_id, *_), score in zip(pairs, np.concatenate(found).tolist(), strict=True):
            scores.setdefault(query_id, {})[doc_id] = score
        judged = {query_id: qrels[query_id] for query_id in scores}
        ndcg[precision] = engines.mean(engines.evaluate(Run.from_scores(precision, scores), judged, ["nDCG@10"])["nDCG@10"])
    ratio = timed.ratio("int8", other)
    return [
        Row(
            f"int8 vs our {other}, {len(pairs)} pairs, MiniLM-L6 bi-encoder",
            f"{size / timed.median('int8'):.0f} pairs/s",
            f"{other} {size / timed.median(other):.0f}",
            ratio,
            None,
            f"nDCG@10 {ndcg['int8']:.4f} vs {ndcg[other]:.4f}",
            "aim >= 1.6x; nDCG@10 within .005",
            ratio >= 1.6 and abs(ndcg["int8"] - ndcg[other]) <= 0.005,
            machine,
        )
    ]


# ------------------------------------------------------------------------------------------------------- training

LENGTH, BATCH = 128, 16


def trained(bench: Bench) -> list[Row]:
    """Margin-MSE training of a MiniLM bi-encoder on triples: seconds per step, ours vs sentence-transformers."""
    from transformers import AutoConfig

    from pyserini_kd.distillation.candidates import Group
    from pyserini_kd.distillation.config import TrainConfig
    from pyserini_kd.distillation.teacher_scores import Scores
    from pyserini_kd.distillation.training import train

    few, many = bench.choose(2, 1), bench.choose(12, 2)
    docs = list(docstrings.docs())
    by_id = {doc.doc_id: doc.contents for doc in docs}
    topics, qrels = docstrings.topics("train"), docstrings.qrels("train")
    rng = np.random.default_rng(0)
    triples = [(query, next(iter(qrels[query.query_id])), docs[rng.integers(len(docs))].doc_id) for query in topics]
    triples = [triple for triple in triples if triple[1] != triple[2]][: many * BATCH]
    margins = rng.normal(5, 2, len(triples)).round(3).tolist()
    groups = [Group(query.query_id, [pos, neg], [1, 0], -1) for query, pos, neg in triples]
    scores = Scores(groups)
    for (query, pos, neg), margin in zip(triples, margins, strict=True):
        scores.fill([(query.query_id, pos, margin), (query.query_id, neg, 0.0)])
    columns = {
        "query": [query.text for query, *_ in triples],
        "positive": [by_id[pos] for _, pos, _ in triples],
        "negative": [by_id[neg] for *_, neg in triples],
        "label": margins,
    }
    checkpoint = checkpoint_folder.resolve("minilm")

    def ours(steps: int, folder: Path, dropout: float | None = None) -> None:
        config = TrainConfig(
            recipe="margin-mse",
            init="minilm",
            max_query_len=LENGTH,
            max_doc_len=LENGTH,
            batch_size=BATCH,
            max_steps=steps,
            dropout=dropout,
        )
        train(config, groups, {query.query_id: query.text for query, *_ in triples}, by_id, folder, scores=scores)

    def theirs(steps: int, folder: Path, bf16: bool = False) -> None:
        arguments = {"per_device_train_batch_size": BATCH, "max_steps": steps, "bf16": bf16, "learning_rate": 1e-4}
        peers.train_sentence_transformer(checkpoint, columns, folder, length=LENGTH, **arguments)

    jobs: dict[str, Any] = {}
    variants = {"ours": ours, "sentence-transformers": theirs, "bf16": functools.partial(theirs, bf16=True)}
    for name, job in {**variants, "without": functools.partial(ours, dropout=0.0)}.items():
        jobs[name] = lambda _, job=job: _further_steps(job, few, many)
    timed = interleaved(possible(jobs), bench.choose(2, 1), once=once_in_bf16())
    steps = {name: float(np.median(found)) for name, found in timed.results.items()}
    tokenizer = loading.load("minilm").tokenizer
    used = [text for name in ("query", "positive", "negative") for text in columns[name][few * BATCH :]]
    lengths = [min(LENGTH, len(ids)) for ids in tokenizer(used)["input_ids"]]
    config = AutoConfig.from_pretrained(checkpoint)
    rows = []
    for name, what, bar in (("ours", "same dropout", ">= 2x; bf16 >= 1.2x"), ("without", "ours without dropout", "")):
        ratio, against_bf16 = steps["sentence-transformers"] / steps[name], steps.get("bf16", math.inf) / steps[name]
        forward = steps[name] * (many - few) / 3  # the backward pass takes twice as long
        row = Row(
            f"train Margin-MSE, MiniLM-L6, batches of {BATCH} triples, {LENGTH} tokens, {what}",
            f"{BATCH / steps[name]:.1f} triples/s",
            ", ".join(f"{peer} {BATCH / steps[peer]:.1f}" for peer in ("sentence-transformers", "bf16") if peer in steps),
            ratio,
            against_bf16,
            "same start, batch, lengths",
            bar,
            ratio >= 2 and against_bf16 >= 1.2 if bar else None,
            against_machine(config, lengths, forward, hardware.choose_precision()),
        )
        rows.append(row)
    return rows


def _further_steps(job: Any, few: int, many: int) -> float:
    """Seconds per step, without loading, export and warm-up: the difference of a long and a short training."""
    seconds = {}
    for steps in (few, many):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            begun = time.perf_counter()
            job(steps, Path(folder) / "out")
            seconds[steps] = time.perf_counter() - begun
    return (seconds[many] - seconds[few]) / (many - few)
