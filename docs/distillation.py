"""The distillation experiments: `python docs/distillation.py DATA WORK [--queries N] [--seeds 1,2,3]`.

DATA holds the folders `squad` and `msmarco-dl19`, WORK takes what is made. What is there already is not made again, so the
script can be stopped at any moment and goes on when it is started again; `--table` prints what there is. The table
compares each system with the undistilled student (`ranknet`) of its shape: mean over seeds, paired t-test over topics, on
the seeds that both have.
"""

import argparse
import functools
import json
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pyserini_kd import data, significance
from pyserini_kd.evaluate import evaluate, mean
from pyserini_kd.runs import Run
from pyserini_kd.tables import markdown

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
    "two stages, hard labels": ["--recipe", "tinybert", "--loss", "bce=1"],
    "simplified-tinybert": ["--recipe", "simplified-tinybert"],
    "merged, soft labels only": ["--recipe", "simplified-tinybert", "--loss", "bce=none"],
    "standard-kd": ["--recipe", "standard-kd"],
}
LAYERED = {  # the same beside layers of the live cross-encoder, from the pretrained layers
    "ranknet + margin-mse + layers": ["--recipe", "uniform", "--loss", "hidden=1", "--loss", "attention=1"],
}
RANKED = {  # on the score file, from the live cross-encoder's layers
    "margin-mse from the ranker": ["--recipe", "margin-mse", "--student", "cross_encoder"],
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
    "tk4": ["--student", "tk", "--epochs", "4"],  # its own layers, and what they are for, must be learnt from nothing
}
TEACHER, BASE = "6/384", "12/768 (random)"
RANDOM = {  # shapes for which there are no pretrained weights here: layers, width, heads, inner width
    "4/312 (random)": (4, 312, 12, 1200),
    "6/768 (random)": (6, 768, 12, 3072),
    BASE: (12, 768, 12, 3072),
}
ALONE = "margin-mse, one teacher"  # the cross-encoder, live, without BM25's scores
TINY, MERGED, HARD = "tinybert = lm+ranker-distill", "merged, soft labels only", "two stages, hard labels"
PAIRS = [  # student, recipe, and the recipe that it is compared with: what the papers make claims about, and a few more
    ("3/384", TINY, "lm-distill+ft"),
    ("3/384", "ranker-distill from random", TINY),
    ("3/384", "simplified-tinybert", TINY),
    ("3/384", TINY, "standard-kd"),
    ("3/384", MERGED, TINY),
    ("3/384", HARD, TINY),
    ("3/384", "simplified-tinybert", MERGED),
    ("3/384", "simplified-tinybert", HARD),
    ("3/384", TINY, "ranknet + margin-mse"),
    ("3/384", "ranknet + margin-mse", "margin-mse"),
    ("3/384", "ranknet + margin-mse", "bce + margin-mse"),
    ("3/384", "ranknet + margin-mse + layers", "ranknet + margin-mse"),
    ("3/384", "margin-mse", ALONE),
    ("bert_dot", "margin-mse", ALONE),
    *(
        (student, *pair)
        for student in ("3/384", "bert_dot", "colbert", "prettr", "tk")
        for pair in (("margin-mse", "pointwise-mse"), ("pointwise-mse", "weighted-ranknet"), ("weighted-ranknet", "ranknet"))
    ),
    ("3/384", "margin-mse from the ranker", "margin-mse"),
    ("3/384", "ranker-distill", "margin-mse from the ranker"),
    ("3/384", "ranker-distill", "simplified-tinybert from the ranker"),
    ("2/384", "ranker-distill", "ranknet"),
    ("2/384", TINY, "lm-distill+ft"),
]
DEPTH, DL19_DEPTH, N_TEST = 10, 30, 300
SHUFFLES = 50  # random orders whose mean is called chance


Found = dict[tuple[str, str], dict[int, Path]]
"""(student, recipe) -> its checkpoints by seed."""


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
        one = ["--teacher", self.teacher]
        shape, *smaller = SHAPES
        yield from self.pretrained(shape, seed, batch, lr)
        for student, options in STUDENTS.items():
            common = ["--init", "minilm", *options, *batch, "--lr", 1e-3 if student.startswith("tk") else 2e-4]
            for recipe in ("ranknet", "margin-mse", "weighted-ranknet", "pointwise-mse"):
                more = [] if recipe == "ranknet" else ["--scores", self.scores]
                yield student, recipe, self.run(f"{student}.{recipe}.{seed}", "train", "--recipe", recipe, *common, *more)
            if student == "bert_dot":
                yield student, ALONE, self.run(f"{student}.one.{seed}", "train", "--recipe", "margin-mse", *common, *one)
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
        one = ["--teacher", self.teacher]
        yield shape, ALONE, self.run(file("one"), "train", "--recipe", "margin-mse", *cross, *batch, *one, *lr)
        for recipe, options in LAYERED.items():
            both = [*options, "--scores", self.scores, *one]
            yield shape, recipe, self.run(file(recipe), "train", *both, *cross, *batch, *lr)

    def distilled(self, shape: str, seed: int, batch: list[object], lr: list[object]) -> Iterator[tuple[str, str, Path]]:
        """The recipes that start from a distilled language model or from the ranker's layers, for one shape."""
        file, layers = functools.partial(self.file, shape, seed=seed), SHAPES[shape]
        lm = self.run(file("lm"), "train", "--recipe", "lm-distill", "--collection", self.plain_text(),
                      "--lm-teacher", "minilm", "--init", "minilm", "--layers", layers, "--max-length", self.length,
                      "--dropout", 0, *lr, "--seed", seed)  # fmt: skip
        for recipe, options in LIVE.items():
            live = [] if recipe == "lm-distill+ft" else ["--teacher", self.teacher]
            yield shape, recipe, self.run(file(recipe), "train", *options, "--init", lm, *live, *batch, *lr, "--epochs", 1)
        start = ["--init", self.teacher, "--layers", layers]
        random = [
            "--recipe",
            "ranker-distill",
            "--init",
            f"random:{shape}",
            "--teacher",
            self.teacher,
            *batch,
            *lr,
            "--epochs",
            1,
        ]
        yield shape, "ranker-distill from random", self.run(file("ranker-distill from random"), "train", *random)
        for recipe, options in RANKED.items():
            yield shape, recipe, self.run(file(recipe), "train", *options, *start, "--scores", self.scores, *batch, *lr)
        for recipe, options in COPIED.items():
            own = [*options, *start, "--teacher", self.teacher, *batch, *lr, "--epochs", 1]
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

    def retrieved(self, checkpoint: Path) -> Path:
        """The run of a bert_dot that finds SQuAD's passages by itself."""
        docs, name = self.squad / "docs.jsonl", checkpoint.name
        index = self.run(f"index.{name}", "index", "--collection", docs, "--encoder", checkpoint)
        return self.run(f"run.dense.{name}.txt", "search", "--encoder", checkpoint, "--index", index, "--topics", self.test)


def ensemble(reranked: Path, first: Path, depth: int) -> Run:
    """The teacher of the score file: the sum of a cross-encoder's score and BM25's."""
    scores, sparse = Run.read(reranked).top(depth), Run.read(first)
    summed = {}
    for query_id, hits in scores.items():
        known = dict(zip(*sparse[query_id], strict=True))
        summed[query_id] = {doc_id: float(s + known[doc_id]) for doc_id, s in zip(*hits, strict=True)}
    return Run.from_scores("ensemble", summed)


def shuffled(run: Run, seed: int) -> Run:
    """The same documents in random order."""
    rng = np.random.default_rng(seed)
    scores = {q: dict(zip(hits.doc_ids, rng.random(len(hits.doc_ids)).tolist(), strict=True)) for q, hits in run.items()}
    return Run.from_scores("chance", scores)


def costs(work: Work, checkpoints: dict[str, Path]) -> str:
    """The table of sizes and speeds, of checkpoints and of RANDOM shapes: 128 of DL19's BM25 pairs, median of three rounds."""
    from transformers import BertConfig, BertForSequenceClassification

    from pyserini_kd import inference
    from pyserini_kd.models import checkpoints as loading
    from pyserini_kd.models.cross_encoder import CrossEncoder

    texts = {doc.doc_id: doc.contents for doc in data.read_collection(work.dl19 / "collection.tsv")}
    topics = {query.query_id: query.text for query in data.read_topics(work.dl19 / "queries.dl19.tsv")}
    hits = Run.read(work.dl19 / "runs" / "bm25.dl19.trec").top(16)
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


Values = dict[str, dict[str, float]]
"""Name of a measure -> query_id -> its value, the mean over seeds."""


def measures(work: Work, runs: list[Run], names: Sequence[str], dl19: bool = False) -> Values:
    """What some seeds' runs of SQuAD's test topics (or DL19's) reach."""
    if dl19:
        qrels = data.read_qrels(work.dl19 / "qrels.dl19.txt")
    else:
        asked = {query.query_id for query in data.read_topics(work.test)}
        every = data.read_qrels(work.squad / "qrels.test.txt")
        qrels = {query_id: judged for query_id, judged in every.items() if query_id in asked}
    seeds = [evaluate(run, qrels, list(names)) for run in runs]
    return {name: {q: float(np.mean([values[name][q] for values in seeds])) for q in seeds[0][name]} for name in names}


def against(own: Values, plain: Values, name: str) -> str:
    """A measure's difference to the undistilled student's, with the p-value of a paired t-test over topics."""
    compared = significance.compare({"plain": {"": plain[name]}, "own": {"": own[name]}}, "plain")["own"][""]
    return f"{compared.difference:+.4f} ({compared.p_value:.3f})"


def reranking(work: Work, found: Found) -> str:
    """The table of reranked BM25."""
    firsts = work.first, work.dl19 / "runs" / "bm25.dl19.trec"
    taught = [[ensemble(*each)] for each in zip(work.measured(work.teacher), firsts, (DEPTH, DL19_DEPTH), strict=True)]

    def measured(inside: list[Run], outside: list[Run]) -> Values:
        in_domain = measures(work, inside, ["RR@10", "nDCG@10"])
        return {**in_domain, "DL19": measures(work, outside, ["nDCG@10"], dl19=True)["nDCG@10"]}

    sparse, summed = measured(*([Run.read(path)] for path in firsts)), measured(*taught)
    print(f"teacher + BM25 against BM25, RR@10: {against(summed, sparse, 'RR@10')}\n")
    chance = measured(*([shuffled(Run.read(path).top(depth), seed) for seed in range(SHUFFLES)]
                        for path, depth in zip(firsts, (DEPTH, DL19_DEPTH), strict=True)))  # fmt: skip
    first = {"chance": chance, "BM25": sparse, "teacher + BM25": summed}
    rows = [["", name, "", *map(mean, values.values()), "", ""] for name, values in first.items()]

    @functools.cache
    def of(key: tuple[str, str], seeds: tuple[int, ...]) -> Values:
        inside, outside = zip(*(map(Run.read, work.measured(found[key][seed])) for seed in seeds), strict=True)
        return measured(list(inside), list(outside))

    for (student, recipe), paths in found.items():
        plain, values = (student, "ranknet"), of((student, recipe), tuple(paths))
        both = tuple(seed for seed in paths if seed in found.get(plain, {}))
        cells = ["", ""]
        if both and recipe != "ranknet":
            cells = [against(of((student, recipe), both), of(plain, both), name) for name in ("RR@10", "DL19")]
        rows.append([student, recipe, str(len(paths)), *map(mean, values.values()), *cells])
    names = ["student", "recipe", "seeds", "RR@10", "nDCG@10", "DL19 nDCG@10", "RR@10 - ranknet (p)", "DL19 - ranknet (p)"]
    table = markdown(names, rows)

    rows = []
    for student, recipe, other in PAIRS:
        a, b = (student, recipe), (student, other)
        seeds = tuple(seed for seed in found.get(a, {}) if seed in found.get(b, {}))
        if seeds:
            cells = [against(of(a, seeds), of(b, seeds), name) for name in ("RR@10", "DL19")]
            each = [f"{mean(of(a, (seed,))['RR@10']) - mean(of(b, (seed,))['RR@10']):+.2f}" for seed in seeds]
            rows.append([student, recipe, other, cells[0], ", ".join(each), cells[1]])
    names = ["student", "recipe", "against", "RR@10 (p)", "seed by seed", "DL19 nDCG@10 (p)"]
    return f"{table}\n\n{markdown(names, rows)}\n\n{magnitudes(work, found)}"


def magnitudes(work: Work, found: Found) -> str:
    """The table of how large the scores are that a student without teacher gives BM25's top, all seeds together."""
    rows = []
    for (student, recipe), paths in found.items():
        if recipe == "ranknet":
            runs = [Run.read(work.measured(path)[0]) for path in paths.values()]
            scores = np.concatenate([hits.scores for run in runs for hits in run.values()])
            rows.append([student, str(len(runs)), f"{scores.mean():.1f}", f"{scores.std():.1f}"])
    return markdown(["student, ranknet", "seeds", "mean score", "standard deviation"], rows)


def retrieval(work: Work, found: Found) -> str:
    """The table of the bert_dot students' own retrieval."""
    names = ["RR@10", "nDCG@10", "R@100"]
    rows = [["BM25", "", *map(mean, measures(work, [Run.read(work.first)], names).values()), ""]]
    own = {
        recipe: {seed: run for seed, path in paths.items() if (run := work.retrieved(path)).exists()}  # not all, with --table
        for (student, recipe), paths in found.items()
        if student == "bert_dot"
    }

    def of(recipe: str, seeds: Sequence[int]) -> Values:
        return measures(work, [Run.read(own[recipe][seed]) for seed in seeds], names)

    for recipe, runs in own.items():
        both = [seed for seed in runs if seed in own["ranknet"]]
        cell = against(of(recipe, both), of("ranknet", both), "RR@10") if both and recipe != "ranknet" else ""
        rows.append([recipe, str(len(runs)), *map(mean, of(recipe, list(runs)).values()), cell])
    return markdown(["recipe", "seeds", *names, "RR@10 - ranknet (p)"], rows)


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
    found: Found = {}
    for seed in map(int, args.seeds.split(",")):
        for student, recipe, checkpoint in work.systems(seed):
            if student == "bert_dot":
                work.retrieved(checkpoint)
            if not all(path.exists() for path in work.measured(checkpoint)):
                continue  # only with --table
            kept = found.setdefault((student, recipe), {})
            if checkpoint not in kept.values():
                kept[seed] = checkpoint
    print(reranking(work, found) + "\n")
    print(retrieval(work, found) + "\n")
    if args.speed:
        print(costs(work, {student: next(iter(paths.values())) for (student, _), paths in found.items()}))


if __name__ == "__main__":
    main()
