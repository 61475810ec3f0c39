"""The distillation experiments: `python docs/distillation.py DATA WORK [--queries N] [--seeds 1,2,3]`.

DATA holds the folders `squad` and `msmarco-dl19`, WORK takes what is made. What is there already is not made again, so the
script can be stopped at any moment and goes on when it is started again; `--table` prints what there is. The table
compares each system with the undistilled student (`ranknet`) of its shape: mean over seeds, paired t-test over topics.
"""

import argparse
import functools
import json
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pyserini_kd import data, significance
from pyserini_kd.evaluate import evaluate, markdown, mean
from pyserini_kd.runs import Run

SHAPES = {"3/384": "0,1,2", "2/384": "0,1"}  # layers kept of the six: the lowest learn soonest
SOFT = {  # on the score file of the ensemble, from the pretrained layers
    "margin-mse": ["--recipe", "margin-mse"],
    "weighted-ranknet": ["--recipe", "weighted-ranknet"],
    "pointwise-mse": ["--recipe", "pointwise-mse"],
    "ranknet + margin-mse": ["--recipe", "uniform"],
    "ranknet + listwise KL": ["--recipe", "uniform", "--loss", "margin_mse=none", "--loss", "listwise_kl=1"],
    "bce + margin-mse": ["--recipe", "uniform", "--loss", "ranknet=none", "--loss", "bce=1"],
}
LIVE = {  # with the live cross-encoder, from a distilled language model; lm+ranker-distill from there on is tinybert
    "lm-distill+ft": ["--recipe", "lm-distill+ft", "--start-stage", "2"],
    "tinybert = lm+ranker-distill": ["--recipe", "tinybert"],
    "simplified-tinybert": ["--recipe", "simplified-tinybert"],
    "merged, soft labels only": ["--recipe", "simplified-tinybert", "--loss", "bce=none"],
    "standard-kd": ["--recipe", "standard-kd"],
}
COPIED = {  # with the live cross-encoder, from its layers
    "ranker-distill": ["--recipe", "ranker-distill"],
    "simplified-tinybert from the ranker": ["--recipe", "simplified-tinybert"],
}
STUDENTS = {
    "bert_dot": ["--student", "bert_dot", "--layers", "0,1,2", "--pooling", "mean"],
    "colbert": ["--student", "colbert", "--layers", "0,1,2"],
    "prettr": ["--student", "prettr", "--layers", "0,1,2", "--setting", "join_layer=1"],
    "tk": ["--student", "tk"],
}
TEACHER, BASE = "6/384", "12/768 (random)"
RANDOM = {  # shapes for which there are no pretrained weights here: layers, width, heads, inner width
    "4/312 (random)": (4, 312, 12, 1200),
    "6/768 (random)": (6, 768, 12, 3072),
    BASE: (12, 768, 12, 3072),
}
DEPTH, DL19_DEPTH, N_TEST = 10, 30, 300


class Work:
    """Paths and commands of one set of experiments."""

    def __init__(self, folder: Path, root: Path, args: argparse.Namespace) -> None:
        self.squad, self.dl19, self.root = folder / "squad", folder / "msmarco-dl19", root
        self.n_queries, self.n_teacher, self.n_docs = args.queries, args.teacher_queries, args.lm_docs
        self.length, self.dry = args.length, args.table
        root.mkdir(parents=True, exist_ok=True)

    def run(self, output: str, stage: str, *options: object) -> Path:
        """Run one command of ours, unless its output is there; its log and wall time stay beside the output."""
        path = self.root / output
        if not (path.exists() or self.dry):
            path.parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", f"pyserini_kd.{stage}", *map(str, options), *self.target(stage), str(path)]
            begun = time.monotonic()
            with open(f"{path}.log", "w", encoding="utf-8") as log:
                subprocess.run(command, stdout=log, stderr=log, check=True)
            Path(f"{path}.seconds").write_text(f"{time.monotonic() - begun:.0f}\n", encoding="utf-8")
            print(f"{time.monotonic() - begun:7.0f} s  {output}", file=sys.stderr, flush=True)
        return path

    @staticmethod
    def target(stage: str) -> list[str]:
        """The option that names a stage's output."""
        return ["--index"] if stage == "index" else ["--output"]

    def topics(self, split: str, count: int) -> Path:
        """The first `count` topics of a split in a stable pseudo-random order."""
        path = self.root / f"topics.{split}.{count}.tsv"
        if not path.exists():
            queries = data.read_topics(self.squad / f"queries.{split}.tsv")
            queries = sorted(queries, key=lambda query: zlib.crc32(query.query_id.encode()))[:count]
            data.write_topics(queries, path)
        return path

    def plain_text(self) -> Path:
        """Some documents, in a stable pseudo-random order, to distil a language model on."""
        path = self.root / f"docs.{self.n_docs}.jsonl"
        if not path.exists():
            docs = sorted(data.read_collection(self.squad / "docs.jsonl"), key=lambda doc: zlib.crc32(doc.doc_id.encode()))
            lines = [json.dumps({"id": doc.doc_id, "contents": doc.contents}) + "\n" for doc in docs[: self.n_docs]]
            path.write_text("".join(lines), encoding="utf-8")
        return path

    def prepare(self) -> None:
        """Index, first stage, candidates, teacher, its scores."""
        docs = self.squad / "docs.jsonl"
        self.bm25 = self.run("bm25", "index", "--collection", docs, "--encoder", "bm25")
        self.test, self.train = self.topics("test", N_TEST), self.topics("train", self.n_queries)
        self.first = self.run("run.bm25.txt", "search", "--encoder", "bm25", "--index", self.bm25, "--topics", self.test,
                              "--hits", 100)  # fmt: skip
        mine = ["--collection", docs, "--qrels", self.squad / "qrels.train.txt", "--index", self.bm25,
                "--negatives", 3, "--depth", 50]  # fmt: skip
        self.common = ["--collection", docs, "--topics", self.squad / "queries.train.tsv", "--max-length", self.length,
                       "--dropout", 0]  # fmt: skip
        every = self.run("candidates.teacher.jsonl", "mine", *mine, "--topics", self.topics("train", self.n_teacher))
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

    def systems(self, seed: int) -> Iterator[tuple[str, str, Path]]:
        """(student, recipe, checkpoint) of every experiment, training what is missing."""
        batch = [*self.common, "--candidates", self.candidates, "--batch-size", 8, "--length-buckets", "--seed", seed]
        lr = ["--lr", 2e-4]
        yield TEACHER, "teacher", self.teacher
        shape, *smaller = SHAPES
        yield from self.pretrained(shape, seed, batch, lr)
        for student, options in STUDENTS.items():
            for recipe in ("ranknet", "margin-mse"):
                scores = ["--scores", self.scores] if recipe == "margin-mse" else []
                yield student, recipe, self.run(
                    f"{student}.{recipe}.{seed}", "train", "--recipe", recipe, "--init", "minilm", *options, *scores, *batch,
                    "--lr", 1e-3 if student == "tk" else 2e-4,
                )  # fmt: skip
        yield from self.distilled(shape, seed, batch, lr)
        for shape in smaller:
            yield from self.pretrained(shape, seed, batch, lr)
            yield from self.distilled(shape, seed, batch, lr)

    @staticmethod
    def file(shape: str, recipe: str, seed: int) -> str:
        """The name of a checkpoint."""
        return f"ce{shape[0]}.{recipe.split(' = ')[0].replace(', ', '-').replace(' ', '')}.{seed}"

    def pretrained(self, shape: str, seed: int, batch: list[object], lr: list[object]) -> Iterator[tuple[str, str, Path]]:
        """The recipes that start from pretrained layers, for one shape of cross-encoder."""
        file, layers = functools.partial(self.file, shape, seed=seed), SHAPES[shape]
        cross = ["--student", "cross_encoder", "--init", "minilm", "--layers", layers]
        yield shape, "ranknet", self.run(file("ranknet"), "train", "--recipe", "ranknet", *cross, *batch, *lr)
        for recipe, options in SOFT.items():
            yield shape, recipe, self.run(file(recipe), "train", *options, *cross, *batch, "--scores", self.scores, *lr)

    def distilled(self, shape: str, seed: int, batch: list[object], lr: list[object]) -> Iterator[tuple[str, str, Path]]:
        """The recipes that start from a distilled language model or from the ranker's layers, for one shape."""
        file, layers = functools.partial(self.file, shape, seed=seed), SHAPES[shape]
        lm = self.run(file("lm"), "train", "--recipe", "lm-distill", "--collection", self.plain_text(),
                      "--lm-teacher", "minilm", "--init", "minilm", "--layers", layers, "--max-length", self.length,
                      "--dropout", 0, *lr, "--seed", seed)  # fmt: skip
        for recipe, options in LIVE.items():
            live = [] if recipe == "lm-distill+ft" else ["--teacher", self.teacher]
            yield shape, recipe, self.run(file(recipe), "train", *options, "--init", lm, *live, *batch, *lr, "--epochs", 1)
        for recipe, options in COPIED.items():
            own = [*options, "--init", self.teacher, "--layers", layers, "--teacher", self.teacher, *batch, *lr, "--epochs", 1]
            yield shape, recipe, self.run(file(recipe), "train", *own)

    def measured(self, checkpoint: Path) -> tuple[Path, Path]:
        """Runs of a checkpoint: reranked BM25 on SQuAD's test topics, and on DL19."""
        name = checkpoint.name
        texts = ["--collection", self.squad / "docs.jsonl", "--topics", self.test]
        inside = self.run(f"run.{name}.txt", "rerank", "--run", self.first, "--encoder", checkpoint, *texts, "--depth", DEPTH)
        texts = ["--collection", self.dl19 / "collection.tsv", "--topics", self.dl19 / "queries.dl19.tsv"]
        outside = self.run(f"run.dl19.{name}.txt", "rerank", "--run", self.dl19 / "runs" / "bm25.dl19.trec", "--encoder",
                           checkpoint, *texts, "--depth", DL19_DEPTH)  # fmt: skip
        return inside, outside


def ensemble(reranked: Path, first: Path, depth: int) -> Run:
    """The teacher of the score file: the sum of a cross-encoder's score and BM25's."""
    scores, sparse = Run.read(reranked).top(depth), Run.read(first)
    summed = {}
    for query_id, hits in scores.items():
        known = dict(zip(*sparse[query_id], strict=True))
        summed[query_id] = {doc_id: float(s + known[doc_id]) for doc_id, s in zip(*hits, strict=True)}
    return Run.from_scores("ensemble", summed)


def costs(work: Work, checkpoints: dict[str, Path]) -> str:
    """The table of sizes and speeds, of checkpoints and of RANDOM shapes: 512 of DL19's BM25 pairs, median of three rounds."""
    from transformers import BertConfig, BertForSequenceClassification

    from pyserini_kd import inference
    from pyserini_kd.models import checkpoints as loading
    from pyserini_kd.models.cross_encoder import CrossEncoder

    texts = {doc.doc_id: doc.contents for doc in data.read_collection(work.dl19 / "collection.tsv")}
    topics = {query.query_id: query.text for query in data.read_topics(work.dl19 / "queries.dl19.tsv")}
    hits = Run.read(work.dl19 / "runs" / "bm25.dl19.trec").top(64)
    pairs = [(topics[query_id], texts[doc_id]) for query_id in list(hits)[:8] for doc_id in hits[query_id].doc_ids]
    models = {name: loading.load(str(path)) for name, path in checkpoints.items()}
    for name, (layers, width, heads, inner) in RANDOM.items():
        shape = BertConfig(num_labels=1, num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads,
                           intermediate_size=inner)  # fmt: skip
        models[name] = CrossEncoder(BertForSequenceClassification(shape), models[TEACHER].tokenizer, work.length)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(3):
        for name, model in models.items():
            begun = time.perf_counter()
            inference.score(model, [q for q, _ in pairs], [d for _, d in pairs])
            seconds[name].append(time.perf_counter() - begun)
    pace = {name: len(pairs) / float(np.median(some)) for name, some in seconds.items()}
    rows = []
    for name, model in models.items():
        size = sum(parameter.numel() for parameter in model.parameters())
        rows.append([name, f"{size / 1e6:.1f} M", f"{pace[name]:.0f}", f"{pace[name] / pace[TEACHER]:.2f}",
                     f"{pace[name] / pace[BASE]:.1f}"])  # fmt: skip
    return markdown(["student", "parameters", "pairs/s", "x teacher", "x BERT-base"], rows)


def table(work: Work, found: dict[tuple[str, str], list[Path]]) -> str:
    """The table of docs/distillation.md."""
    squad, dl19 = data.read_qrels(work.squad / "qrels.test.txt"), data.read_qrels(work.dl19 / "qrels.dl19.txt")
    asked = {query.query_id for query in data.read_topics(work.test)}
    squad = {query_id: judged for query_id, judged in squad.items() if query_id in asked}

    def measure(runs: list[Run], qrels: data.Qrels, name: str) -> dict[str, float]:
        values = [evaluate(run, qrels, [name])[name] for run in runs]
        return {query_id: float(np.mean([seed[query_id] for seed in values])) for query_id in values[0]}

    def measures(inside: list[Run], outside: list[Run]) -> dict[str, dict[str, float]]:
        in_domain = {name: measure(inside, squad, name) for name in ("RR@10", "nDCG@10")}
        return {**in_domain, "DL19": measure(outside, dl19, "nDCG@10")}

    firsts = work.first, work.dl19 / "runs" / "bm25.dl19.trec"
    taught = map(ensemble, work.measured(work.teacher), firsts, (DEPTH, DL19_DEPTH))
    rows = []
    sparse = measures(*([Run.read(path)] for path in firsts))
    both = measures(*([run] for run in taught))
    for name, values in (("BM25", sparse), ("teacher + BM25", both)):
        rows.append(["", name, "", *map(mean, values.values()), "", "", ""])
    better = significance.compare({"BM25": {"": sparse["RR@10"]}, "both": {"": both["RR@10"]}}, "BM25")["both"][""]
    print(f"teacher + BM25 against BM25, RR@10: {better.difference:+.4f} (p = {better.p_value:.4f})\n")
    measured = {}
    for key, paths in found.items():
        inside, outside = zip(*(map(Run.read, work.measured(path)) for path in paths), strict=True)
        measured[key] = measures(list(inside), list(outside))
    for (student, recipe), values in measured.items():
        plain = measured.get((student, "ranknet"))
        cells = []
        for name in ("RR@10", "DL19"):
            if plain and recipe != "ranknet":
                compared = significance.compare({"plain": {"": plain[name]}, "own": {"": values[name]}}, "plain")["own"][""]
                cells.append(f"{compared.difference:+.4f} ({compared.p_value:.3f})")
            else:
                cells.append("")
        rows.append([student, recipe, str(len(found[student, recipe])), *(mean(v) for v in values.values()), *cells])
    names = ["student", "recipe", "seeds", "RR@10", "nDCG@10", "DL19 nDCG@10", "RR@10 - ranknet (p)", "DL19 - ranknet (p)"]
    return markdown(names, rows)


def main() -> None:
    """Run every experiment, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--queries", type=int, default=800, help="training queries of the students")
    parser.add_argument("--teacher-queries", type=int, default=5000, help="training queries of the teacher")
    parser.add_argument("--lm-docs", type=int, default=6000, help="documents to distil the language model on")
    parser.add_argument("--table", action="store_true", help="run nothing; the table of what there is")
    parser.add_argument("--speed", action="store_true", help="also the table of sizes and speeds; wants a quiet machine")
    parser.add_argument("--length", type=int, default=144, help="tokens a pair")
    parser.add_argument("--seeds", default="1")
    args = parser.parse_args()
    work = Work(args.data, args.work, args)
    work.prepare()
    found: dict[tuple[str, str], list[Path]] = {}
    for seed in map(int, args.seeds.split(",")):
        for student, recipe, checkpoint in work.systems(seed):
            if not all(path.exists() for path in work.measured(checkpoint)):
                continue  # only with --table
            kept = found.setdefault((student, recipe), [])
            if checkpoint not in kept:
                kept.append(checkpoint)
    print(table(work, found))
    if args.speed:
        print(costs(work, {student: paths[0] for (student, _), paths in found.items()}))


if __name__ == "__main__":
    main()
