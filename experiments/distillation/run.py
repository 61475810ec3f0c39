"""The distillation experiments: `python experiments/distillation/run.py DATA WORK [--seeds 1,2,3] [--speed]`.

DATA holds the folders `squad`, `msmarco-dl19` and `beir/scifact`. WORK takes what is made. The Parquet files beside this script
keep what each system reaches on each topic, one file per seed. `tables.py` makes the tables of page.md from them. The script
does not make again what is there already: stop it at any moment, start it again, and it goes on.
"""

import argparse
import concurrent.futures
import csv
import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pyserini_kd.data import formats
from pyserini_kd.data.runs import Run
from pyserini_kd.evaluation.engines import evaluate
from pyserini_kd.models import rankers
from pyserini_kd.retrieval.token_index import TokenIndex
from pyserini_kd.storage.files import atomic_file

KEPT = Path(__file__).parent
SPEEDS = KEPT / "sizes_and_speeds.csv"
DEPTH, N_TEST = 10, 300
DEPTHS = DEPTH, DEPTH, 30  # documents reranked on SQuAD, SciFact and DL19
SHUFFLES = 50  # random orders whose mean is called chance
SCIFACT, DL19 = "SciFact nDCG@10", "DL19 nDCG@10"  # reranked zero-shot


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every experiment shares."""

    queries: int = 3200  # training queries of the students
    teacher_queries: int = 5000  # of the teacher
    lm_docs: int = 6000  # documents to distil the language model on
    length: int = 144  # tokens a pair
    epochs: int = 1  # of a stage


class Cell(NamedTuple):
    """How one system is trained: what it starts from, by which recipe, with which teacher, with which losses changed."""

    start: str  # "pretrained" layers, the "ranker"'s, the distilled "lm", or "random"
    recipe: str
    teacher: str = ""  # the score "file" of the ensemble, the "live" cross-encoder, or "both"
    losses: str = ""


SHAPES = {"3/384": "0,1,2", "2/384": "0,1"}  # layers kept of the six: the lowest learn soonest
PLAIN = {
    "ranknet": Cell("pretrained", "ranknet"),
    "margin-mse": Cell("pretrained", "margin-mse", "file"),
    "weighted-ranknet": Cell("pretrained", "weighted-ranknet", "file"),
    "pointwise-mse": Cell("pretrained", "pointwise-mse", "file"),
}
ONE = {"margin-mse, one teacher": Cell("pretrained", "margin-mse", "live")}  # without BM25's scores
CROSS = {
    "ranknet": PLAIN["ranknet"],
    "tinybert = lm+ranker-distill": Cell("lm", "tinybert", "live"),
    "margin-mse": PLAIN["margin-mse"],
    "simplified-tinybert": Cell("lm", "simplified-tinybert", "live"),
    "lm-distill+ft": Cell("lm", "lm-distill+ft"),
    "standard-kd": Cell("lm", "standard-kd", "live"),
    "ranknet + listwise KL": Cell("pretrained", "uniform", "file", "margin_mse=none listwise_kl=1"),
    "ranker-distill": Cell("ranker", "ranker-distill", "live"),
    "ranknet + margin-mse": Cell("pretrained", "uniform", "file"),
    "margin-mse from the ranker": Cell("ranker", "margin-mse", "file"),
    "weighted-ranknet": PLAIN["weighted-ranknet"],
    "pointwise-mse": PLAIN["pointwise-mse"],
    "simplified-tinybert from the ranker": Cell("ranker", "simplified-tinybert", "live"),
    "merged, soft labels only": Cell("lm", "simplified-tinybert", "live", "bce=none"),
    "two stages, hard labels": Cell("lm", "tinybert", "live", "bce=1"),
    "ranker-distill from random": Cell("random", "ranker-distill", "live"),
    **ONE,
}
GRID = {  # of the uniform study, for the larger of the SHAPES
    "bce": Cell("pretrained", "ranknet", "", "none bce=1"),
    "hinge": Cell("pretrained", "ranknet", "", "none hinge=1"),
    "listwise CE": Cell("pretrained", "ranknet", "", "none listwise_ce=1"),
    "listnet": Cell("pretrained", "ranknet", "", "none listnet=1"),
    "lambda": Cell("pretrained", "ranknet", "", "none lambda=1"),
    "listwise KL": Cell("pretrained", "uniform", "file", "none listwise_kl=1"),
    "soft CE": Cell("pretrained", "uniform", "file", "none soft_ce=1"),
    "soft ranknet": Cell("pretrained", "uniform", "file", "none soft_ranknet=1"),
    "bce + listwise KL": Cell("pretrained", "uniform", "file", "none bce=1 listwise_kl=1"),
    "bce + margin-mse": Cell("pretrained", "uniform", "file", "ranknet=none bce=1"),
    "ranknet + soft CE": Cell("pretrained", "uniform", "file", "margin_mse=none soft_ce=1"),
    "ranknet + soft ranknet": Cell("pretrained", "uniform", "file", "margin_mse=none soft_ranknet=1"),
    "ranknet + pointwise-mse": Cell("pretrained", "uniform", "file", "margin_mse=none pointwise_mse=1"),
    "ranknet + margin-mse + layers": Cell("pretrained", "uniform", "both", "hidden=1 attention=1"),
    "ranknet + listwise KL + layers": Cell(
        "pretrained", "uniform", "both", "margin_mse=none listwise_kl=1 hidden=1 attention=1"
    ),
}
FIRST = {"ranknet", "margin-mse", "tinybert = lm+ranker-distill", "simplified-tinybert", "standard-kd", "lm-distill+ft"}
STUDENTS = {
    "bert_dot": ["--pooling", "mean"],
    "colbert": [],
    "prettr": ["--setting", "join_layer=1"],
    "tk": [],
}
TEACHER, BASE = "6/384", "12/768 (random)"
RANDOM = {  # shapes for which there are no pretrained weights here: layers, width, heads, inner width
    "4/312 (random)": (4, 312, 12, 1200),
    "6/768 (random)": (6, 768, 12, 3072),
    BASE: (12, 768, 12, 3072),
}


class Measures:
    """What systems reach, topic by topic, in one file of `KEPT`."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.path = KEPT / f"{name}.parquet"
        self.settings = json.dumps(dataclasses.asdict(settings))
        self.rows: list[dict[str, object]] = []
        if self.path.exists():
            table = pq.read_table(self.path)
            self.rows = table.to_pylist()
            if (found := table.schema.metadata[b"settings"].decode()) != self.settings:
                raise SystemExit(f"{self.path} is of other settings: {found} instead of {self.settings}")
        self.known = {(row["student"], row["recipe"]) for row in self.rows if row["measure"] == SCIFACT}  # the newest measure
        self.lock = threading.Lock()

    def add(self, student: str, recipe: str, values: Mapping[str, Mapping[str, float]]) -> None:
        """Keep values by measure and topic, instead of older ones of this system."""
        own = [
            {"student": student, "recipe": recipe, "measure": name, "query_id": query_id, "value": value}
            for name, topics in values.items()
            for query_id, value in topics.items()
        ]
        text = [pa.field(name, pa.dictionary(pa.int32(), pa.string())) for name in ("student", "recipe", "measure", "query_id")]
        schema = pa.schema([*text, pa.field("value", pa.float32())], metadata={"settings": self.settings})
        with self.lock:
            self.rows = [row for row in self.rows if (row["student"], row["recipe"]) != (student, recipe)] + own
            self.known.add((student, recipe))
            with atomic_file(self.path, binary=True) as partial:
                pq.write_table(pa.Table.from_pylist(self.rows, schema), partial, compression="zstd")


class Work:
    """Paths and commands of one set of experiments."""

    def __init__(self, folder: Path, root: Path, settings: Settings) -> None:
        self.squad, self.dl19, self.scifact = folder / "squad", folder / "msmarco-dl19", folder / "beir" / "scifact"
        self.root, self.settings = root, settings
        self.environment, self.lock = dict(os.environ), threading.Lock()
        root.mkdir(parents=True, exist_ok=True)

    def run(self, output: str, stage: str, *options: object) -> Path:
        """Run one command of ours, unless its output is there; its log stays beside the output."""
        path = self.root / output
        if not path.exists():
            target = "--index" if stage == "index" else "--output"
            command = [sys.executable, "-m", f"pyserini_kd.{stage}", *map(str, options), target, str(path)]
            begun = time.monotonic()
            with open(f"{path}.log", "w", encoding="utf-8") as log:
                subprocess.run(command, stdout=log, stderr=log, check=True, env=self.environment)
            print(f"{time.monotonic() - begun:7.0f} s  {output}", file=sys.stderr, flush=True)
        return path

    def topics(self, split: str, count: int) -> Path:
        """The first `count` topics of a split in a stable pseudo-random order."""
        path = self.root / f"topics.{split}.{count}.tsv"
        if not path.exists():
            queries = formats.read_topics(self.squad / f"queries.{split}.tsv")
            queries = sorted(queries, key=lambda query: zlib.crc32(query.query_id.encode()))[:count]
            formats.write_topics(queries, path)
        return path

    def judged_scifact(self) -> Path:
        """SciFact's test topics."""
        path = self.root / "topics.scifact.tsv"
        if not path.exists():
            judged = formats.read_qrels(self.scifact / "qrels" / "test.tsv")
            queries = formats.read_topics(self.scifact / "queries.jsonl")
            formats.write_topics([query for query in queries if query.query_id in judged], path)
        return path

    def plain_text(self) -> Path:
        """Some documents, in a stable pseudo-random order, to distil a language model on."""
        path = self.root / f"docs.{self.settings.lm_docs}.jsonl"
        if not path.exists():
            docs = sorted(formats.read_collection(self.squad / "docs.jsonl"), key=lambda doc: zlib.crc32(doc.doc_id.encode()))
            lines = [json.dumps({"id": doc.doc_id, "contents": doc.contents}) + "\n" for doc in docs[: self.settings.lm_docs]]
            path.write_text("".join(lines), encoding="utf-8")
        return path

    def prepare(self) -> None:
        """Index, first stage, candidates, teacher, its scores."""
        docs, length = self.squad / "docs.jsonl", self.settings.length
        self.bm25 = self.run("bm25", "index", "--collection", docs, "--encoder", "bm25")
        self.test, self.train = self.topics("test", N_TEST), self.topics("train", self.settings.queries)
        self.first = self.run("run.bm25.txt", "search", "--encoder", "bm25", "--index", self.bm25, "--topics", self.test,
                              "--hits", 100)  # fmt: skip
        scifact = self.run("bm25.scifact", "index", "--collection", self.scifact, "--encoder", "bm25")
        first_scifact = self.run("run.bm25.scifact.txt", "search", "--encoder", "bm25", "--index", scifact, "--topics",
                                 self.judged_scifact(), "--hits", DEPTH)  # fmt: skip
        self.firsts = self.first, first_scifact, self.dl19 / "runs" / "bm25.dl19.trec"
        mine = ["--collection", docs, "--qrels", self.squad / "qrels.train.txt", "--index", self.bm25,
                "--negatives", 3, "--depth", 50]  # fmt: skip
        self.common = ["--collection", docs, "--topics", self.squad / "queries.train.tsv", "--max-length", length,
                       "--dropout", 0]  # fmt: skip
        every = self.run("candidates.teacher.jsonl", "mine", *mine, "--topics",
                         self.topics("train", self.settings.teacher_queries))  # fmt: skip
        self.candidates = self.run("candidates.jsonl", "mine", *mine, "--topics", self.train)
        self.teacher = self.run(
            "teacher", "train", "--recipe", "ranknet", "--loss", "none", "--loss", "listwise_ce=1",
            "--student", "cross_encoder", "--init", "minilm", "--candidates", every, *self.common,
            "--lr", 1e-4, "--batch-size", 16, "--length-buckets",
        )  # fmt: skip
        first = self.run("run.bm25.train.txt", "search", "--encoder", "bm25", "--index", self.bm25, "--topics", self.train,
                         "--hits", 200)  # fmt: skip
        self.scores = self.run("scores.parquet", "teach", "--candidates", self.candidates, "--collection", docs,
                               "--topics", self.train, "--teacher", self.teacher, "--teacher-run", first)  # fmt: skip

    def language_model(self, shape: str, seed: int) -> Path:
        """A language model of that shape, distilled from the six layers."""
        with self.lock:  # one for all that start from it
            return self.run(f"lm{shape[0]}.{seed}", "train", "--recipe", "lm-distill", "--collection", self.plain_text(),
                            "--lm-teacher", "minilm", "--init", "minilm", "--layers", SHAPES[shape], "--max-length",
                            self.settings.length, "--dropout", 0, "--lr", 2e-4, "--seed", seed)  # fmt: skip

    def trained(self, student: str, name: str, cell: Cell, seed: int) -> Path:
        """The checkpoint of one system."""
        layers, lr, kind = SHAPES.get(student, SHAPES["3/384"]), 2e-4, ["--student", student, *STUDENTS.get(student, [])]
        if student in SHAPES:
            kind = ["--student", "cross_encoder"]
        if student == "tk":
            start, lr = ["--init", "minilm"], 1e-3
        elif cell.start == "random":
            start = ["--init", f"random:{student}"]
        elif cell.start == "lm":
            start = ["--init", self.language_model(student, seed)]
        else:
            start = ["--init", "minilm" if cell.start == "pretrained" else self.teacher, "--layers", layers]
        later = ["--start-stage", 2] if cell.recipe == "lm-distill+ft" else []
        scores = ["--scores", self.scores] if cell.teacher in ("file", "both") else []
        live = ["--teacher", self.teacher] if cell.teacher in ("live", "both") else []
        losses = [part for change in cell.losses.split() for part in ("--loss", change)]
        short = "".join(letter if letter.isalnum() else "-" for letter in f"{student}.{name}")
        return self.run(f"{short}.{seed}", "train", "--recipe", cell.recipe, *kind, *start, *later, *scores, *live, *losses,
                        *self.common, "--candidates", self.candidates, "--batch-size", 8, "--length-buckets",
                        "--epochs", self.settings.epochs, "--lr", lr, "--seed", seed)  # fmt: skip

    def runs(self, checkpoint: Path) -> tuple[Run, ...]:
        """What a checkpoint makes of each of `firsts`."""
        texts = {
            "": (self.squad / "docs.jsonl", self.test),
            "scifact.": (self.scifact, self.judged_scifact()),
            "dl19.": (self.dl19 / "collection.tsv", self.dl19 / "queries.dl19.tsv"),
        }
        made = []
        for (where, (docs, topics)), first, depth in zip(texts.items(), self.firsts, DEPTHS, strict=True):
            options = ["--collection", docs, "--topics", topics, "--run", first, "--depth", depth, "--encoder", checkpoint]
            made.append(Run.read(self.run(f"run.{where}{checkpoint.name}.txt", "rerank", *options)))
        return tuple(made)

    def retrieved(self, checkpoint: Path) -> Run:
        """The run of a bert_dot that finds SQuAD's passages by itself."""
        docs, name = self.squad / "docs.jsonl", checkpoint.name
        index = self.run(f"index.{name}", "index", "--collection", docs, "--encoder", checkpoint)
        return Run.read(self.run(f"run.dense.{name}.txt", "search", "--encoder", checkpoint, "--index", index, "--topics",
                                 self.test))  # fmt: skip

    def evaluated(self, run: Run, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """What a run of SQuAD's test topics reaches."""
        asked = {query.query_id for query in formats.read_topics(self.test)}
        every = formats.read_qrels(self.squad / "qrels.test.txt")
        return evaluate(run, {query_id: judged for query_id, judged in every.items() if query_id in asked}, names)

    def reranking(self, inside: Run, scifact: Run, dl19: Run) -> dict[str, dict[str, float]]:
        """What three runs reach, and how large the scores are in domain."""
        measures = self.evaluated(inside, ("RR@10", "nDCG@10"))
        outside = {SCIFACT: (scifact, self.scifact / "qrels" / "test.tsv"), DL19: (dl19, self.dl19 / "qrels.dl19.txt")}
        for name, (run, qrels) in outside.items():
            measures[name] = evaluate(run, formats.read_qrels(qrels), ("nDCG@10",))["nDCG@10"]
        measures["score"] = {query_id: float(hits.scores.mean()) for query_id, hits in inside.items()}
        measures["squared score"] = {query_id: float(np.square(hits.scores).mean()) for query_id, hits in inside.items()}
        return measures

    def dense(self, run: Run) -> dict[str, dict[str, float]]:
        """What a run of retrieval reaches."""
        return {f"dense {name}": values for name, values in self.evaluated(run, ("RR@10", "nDCG@10", "R@100")).items()}


def ensemble(reranked: Run, first: Run, depth: int) -> Run:
    """The teacher of the score file: the sum of a cross-encoder's score and BM25's."""
    summed = {}
    for query_id, hits in reranked.top(depth).items():
        known = dict(zip(*first[query_id], strict=True))
        summed[query_id] = {doc_id: float(s + known[doc_id]) for doc_id, s in zip(*hits, strict=True)}
    return Run.from_scores("ensemble", summed)


def shuffled(run: Run, depth: int, seed: int) -> Run:
    """The best documents of a run in random order."""
    rng = np.random.default_rng(seed)
    top = run.top(depth).items()
    scores = {q: dict(zip(hits.doc_ids, rng.random(len(hits.doc_ids)).tolist(), strict=True)) for q, hits in top}
    return Run.from_scores("chance", scores)


def first_lines(work: Work, kept: Measures) -> None:
    """Measure what is no student: chance, BM25, the teachers."""
    if (TEACHER, "teacher") in kept.known:
        return
    firsts = [Run.read(path) for path in work.firsts]
    orders = [
        work.reranking(*(shuffled(run, depth, seed) for run, depth in zip(firsts, DEPTHS, strict=True)))
        for seed in range(SHUFFLES)
    ]
    chance = {name: {q: float(np.mean([each[name][q] for each in orders])) for q in orders[0][name]} for name in orders[0]}
    kept.add("", "chance", chance)
    kept.add("", "BM25", work.reranking(*firsts) | work.dense(firsts[0]))
    taught = work.runs(work.teacher)
    both = (ensemble(*each) for each in zip(taught, firsts, DEPTHS, strict=True))
    kept.add("", "teacher + BM25", work.reranking(*both))
    kept.add(TEACHER, "teacher", work.reranking(*taught))


def systems(first: bool) -> Iterator[tuple[str, str, Cell]]:
    """(student, name, how it is trained) of every system: those of FIRST (of 2/384 none), or all others."""
    large, small = SHAPES
    of = {large: CROSS | GRID, **dict.fromkeys(STUDENTS, PLAIN), "bert_dot": PLAIN | ONE, small: CROSS}
    for student, cells in of.items():
        yield from ((student, name, cell) for name, cell in cells.items() if (name in FIRST and student != small) == first)


def measure(work: Work, kept: Measures, seed: int, student: str, name: str, cell: Cell) -> None:
    """Train one system and keep what it reaches."""
    checkpoint = work.trained(student, name, cell, seed)
    values = work.reranking(*work.runs(checkpoint))
    if student == "bert_dot":
        values |= work.dense(work.retrieved(checkpoint))
    kept.add(student, name, values)


def random_shape(work: Work, name: str) -> Path:
    """A cross-encoder of one of the RANDOM shapes, on disk."""
    from transformers import BertConfig, BertForSequenceClassification

    from pyserini_kd.models import loading, saving
    from pyserini_kd.models.cross_encoder import CrossEncoder

    layers, width, heads, inner = RANDOM[name]
    path = work.root / f"random.{layers}-{width}"
    if not path.exists():
        shape = BertConfig(num_labels=1, num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads,
                           intermediate_size=inner)  # fmt: skip
        tokenizer = loading.load(str(work.teacher)).tokenizer
        saving.save(CrossEncoder(BertForSequenceClassification(shape), tokenizer, work.settings.length), path)
    return path


def measure_costs(work: Work, seed: int) -> None:
    """Write sizes and speeds of checkpoints and of RANDOM shapes: 128 of DL19's BM25 pairs, median of three rounds."""
    from pyserini_kd.retrieval import token_index

    docs = {doc.doc_id: doc for doc in formats.read_collection(work.dl19 / "collection.tsv")}
    topics = {query.query_id: query.text for query in formats.read_topics(work.dl19 / "queries.dl19.tsv")}
    hits = Run.read(work.dl19 / "runs" / "bm25.dl19.trec").top(16)
    pairs = [(topics[query_id], doc_id) for query_id in list(hits)[:8] for doc_id in hits[query_id].doc_ids]
    queries, doc_ids = map(list, zip(*pairs, strict=True))
    texts = [docs[doc_id].contents for doc_id in doc_ids]
    paths = {student: work.trained(student, "ranknet", CROSS["ranknet"], seed) for student in (*SHAPES, *STUDENTS)}
    paths = {TEACHER: work.teacher, **paths, **{name: random_shape(work, name) for name in RANDOM}}
    models = {name: rankers.load(str(path)) for name, path in paths.items()}
    ways: dict[str, Callable[[], object]] = {
        name: functools.partial(model.score, queries, texts) for name, model in models.items()
    }
    for name in ("colbert", "prettr", "tk"):
        folder = work.root / f"stored.{name}"
        if not folder.exists():
            token_index.build([docs[doc_id] for doc_id in dict.fromkeys(doc_ids)], models[name], folder)
        stored = f"{name}, documents stored"
        models[stored] = models[name]
        ways[stored] = functools.partial(TokenIndex.open(folder).score, models[name], queries, doc_ids)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(4):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begun)
    pace = {name: len(pairs) / float(np.median(some[1:])) for name, some in seconds.items()}  # the first warms up
    rows = [["student", "parameters", "pairs/s", "x teacher", "x BERT-base"]]
    for name, model in models.items():
        size = model.parameters
        rows.append([name, f"{size / 1e6:.1f} M", f"{pace[name]:.0f}", f"{pace[name] / pace[TEACHER]:.2f}",
                     f"{pace[name] / pace[BASE]:.1f}"])  # fmt: skip
    with atomic_file(SPEEDS) as partial:
        csv.writer(partial, lineterminator="\n").writerows(rows)


def main() -> None:
    """Run every experiment that is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--systems", default="", help="only those whose 'student recipe' matches this regular expression")
    parser.add_argument("--jobs", type=int, default=1, help="systems trained beside each other, which share the processors")
    parser.add_argument("--speed", action="store_true", help=f"only measure sizes and speeds, and write {SPEEDS.name}")
    args = parser.parse_args()
    settings, seeds = Settings(), [int(seed) for seed in args.seeds.split(",")]
    work = Work(args.data, args.work, settings)
    work.prepare()
    if args.speed:
        measure_costs(work, seeds[0])
        return
    first_lines(work, Measures("first", settings))
    work.environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // args.jobs))
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        every = {seed: Measures(f"seed-{seed}", settings) for seed in seeds}
        todo = [(seed, system) for first in (True, False) for seed in seeds for system in systems(first)]
        todo = [(seed, system) for seed, system in todo if re.search(args.systems, f"{system[0]} {system[1]}")]
        missing = [(seed, system) for seed, system in todo if system[:2] not in every[seed].known]
        list(pool.map(lambda one: measure(work, every[one[0]], one[0], *one[1]), missing))


if __name__ == "__main__":
    main()
