"""The tables of 400 steps in page.md, from what run.py measured: `python experiments/distillation/tables.py` prints them.

`reranking` compares each system with the undistilled student (`ranknet`) of its shape. `pairs` compares the pairs of systems
that the papers make claims about. Both show means over seeds, and paired t-tests over topics on the seeds that both have.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pyserini_kd.evaluation import significance
from pyserini_kd.evaluation.engines import mean
from pyserini_kd.evaluation.tables import markdown

KEPT = Path(__file__).parent
TINY, MERGED, HARD = "tinybert = lm+ranker-distill", "merged, soft labels only", "two stages, hard labels"
ALONE, SIMPLE = "margin-mse, one teacher", "simplified-tinybert"
ORDER = (("margin-mse", "pointwise-mse"), ("pointwise-mse", "weighted-ranknet"), ("weighted-ranknet", "ranknet"))
CROSS = [  # a recipe, and the one that it is compared with, for both cross-encoders
    (TINY, "lm-distill+ft"),
    (TINY, "ranker-distill from random"),
    (SIMPLE, TINY),
    (TINY, "standard-kd"),
    (SIMPLE, "standard-kd"),
    (MERGED, TINY),
    (HARD, TINY),
    (SIMPLE, MERGED),
    ("ranknet + margin-mse", TINY),
    ("ranknet + listwise KL", "ranknet + margin-mse"),
    ("margin-mse", ALONE),
    ("margin-mse", "ranknet"),
    *ORDER,
    ("margin-mse from the ranker", "margin-mse"),
    ("ranker-distill", "margin-mse from the ranker"),
    ("ranker-distill", "simplified-tinybert from the ranker"),
]
GRID = [  # of the uniform study
    ("ranknet", "bce"),
    ("hinge", "bce"),
    ("hinge", "ranknet"),
    ("listwise CE", "ranknet"),
    ("soft ranknet", "margin-mse"),
    ("soft CE", "soft ranknet"),
    ("ranknet + listwise KL", "bce + listwise KL"),
    ("ranknet + margin-mse", "bce + margin-mse"),
    ("ranknet + listwise KL", "listwise KL"),
    ("ranknet + soft CE", "soft CE"),
    ("ranknet + soft ranknet", "soft ranknet"),
    ("ranknet + margin-mse", "margin-mse"),
    ("ranknet + pointwise-mse", "pointwise-mse"),
    ("ranknet + margin-mse + layers", "ranknet + margin-mse"),
    ("ranknet + listwise KL + layers", "ranknet + listwise KL"),
]
OTHERS = [("margin-mse", "ranknet"), *ORDER]  # for the students that are no cross-encoders
OF = {"": [("teacher + BM25", "BM25")], "3/384": CROSS + GRID, "2/384": CROSS, "bert_dot": [*OTHERS, ("margin-mse", ALONE)],
      "colbert": OTHERS, "prettr": OTHERS, "tk": OTHERS}  # fmt: skip
TAUGHT = [("3/384", "ranker-distill"), *((s, "margin-mse") for s in ("3/384", "bert_dot", "colbert", "prettr", "tk"))]
PAIRS = [
    *(((student, one), (student, other)) for student, some in OF.items() for one, other in some),
    (("3/384", "margin-mse"), ("2/384", "margin-mse")),
    *((student, other) for student in TAUGHT for other in (("6/384", "teacher"), ("", "BM25"))),
]
STUDENTS = "", "6/384", "3/384", "2/384", "bert_dot", "colbert", "prettr", "tk"
RERANKED = {"RR@10": "RR@10", "nDCG@10": "nDCG@10", "SciFact nDCG@10": "SciFact", "DL19 nDCG@10": "DL19"}
DENSE = {"dense RR@10": "RR@10", "dense nDCG@10": "nDCG@10", "dense R@100": "R@100"}

System = tuple[str, str]
"""Student and recipe."""
PerTopic = dict[str, dict[str, float]]
"""Measure -> query_id -> value."""


@functools.cache
def measured() -> dict[System, dict[int, PerTopic]]:
    """What was measured: system -> seed (0: none) -> values."""
    found: dict[System, dict[int, PerTopic]] = {}
    for path in sorted(KEPT.glob("*.parquet")):
        seed = int(path.stem.partition("-")[2] or 0)
        columns = pq.read_table(path).to_pydict()
        for student, recipe, measure, query_id, value in zip(*columns.values(), strict=True):
            found.setdefault((student, recipe), {}).setdefault(seed, {}).setdefault(measure, {})[query_id] = value
    return found


@functools.cache
def over_seeds(system: System, seeds: tuple[int, ...]) -> PerTopic:
    """The means over some seeds."""
    each = [measured()[system][seed] for seed in seeds]
    return {name: {q: float(np.mean([values[name][q] for values in each])) for q in each[0][name]} for name in each[0]}


def shared(one: System, other: System) -> list[tuple[int, int]]:
    """The seeds in which two systems are compared: those that both have, or all of the one where the other knows none."""
    theirs = measured().get(other, {})
    return [(seed, 0 if 0 in theirs else seed) for seed in measured().get(one, {}) if seed in theirs or 0 in theirs]


def against(one: System, other: System, name: str) -> str:
    """The difference of a measure, with the p-value of a paired t-test over topics."""
    own, theirs = zip(*shared(one, other), strict=True)
    pair = {"one": {"": over_seeds(one, own)[name]}, "other": {"": over_seeds(other, theirs)[name]}}
    found = significance.compare(pair, "other")["one"][""]
    return f"{found.difference:+.4f} ({found.p_value:.3f})"


def means(system: System, names: Sequence[str]) -> list[float]:
    """Means over topics and all seeds."""
    values = over_seeds(system, tuple(measured()[system]))
    return [mean(values[name]) for name in names]


def lines(kept: dict[str, str], compared: Sequence[str]) -> str:
    """A line a system, a student's best recipe first: some measures, and for those `compared` the difference to `ranknet`."""
    rows = []
    complete = [system for system, seeds in measured().items() if set(kept) <= set(next(iter(seeds.values())))]
    for system in sorted(complete, key=lambda one: (STUDENTS.index(one[0]), -means(one, list(kept))[0], one)):
        student, recipe = system
        seeds = str(len(measured()[system])) if 0 not in measured()[system] else ""
        plain = (student, "ranknet")
        known = recipe != "ranknet" and shared(system, plain)
        cells = [against(system, plain, name) if known else "" for name in compared]
        rows.append([student, recipe, seeds, *means(system, list(kept)), *cells])
    return markdown(["student", "recipe", "seeds", *kept.values(), *(f"{kept[name]} - ranknet (p)" for name in compared)], rows)


def reranking() -> str:
    """The measures of reranking, a line a system."""
    return lines(RERANKED, ["RR@10", "SciFact nDCG@10", "DL19 nDCG@10"])


def retrieval() -> str:
    """The measures of the students that search the passages by themselves, a line a system."""
    return lines(DENSE, ["dense RR@10"])


def pairs() -> str:
    """A line for each of PAIRS."""
    rows = []
    for one, two in PAIRS:
        if seeds := shared(one, two):
            each = [mean(over_seeds(one, (a,))["RR@10"]) - mean(over_seeds(two, (b,))["RR@10"]) for a, b in seeds]
            outside = [against(one, two, name) for name in ("SciFact nDCG@10", "DL19 nDCG@10")]
            other = " ".join(two).strip() if two[0] != one[0] else two[1]
            rows.append([*one, other, against(one, two, "RR@10"), ", ".join(f"{x:+.2f}" for x in each), *outside])
    return markdown(["student", "recipe", "against", "RR@10 (p)", "seed by seed", "SciFact (p)", "DL19 (p)"], rows)


def magnitudes() -> str:
    """How large the scores are that an undistilled student gives BM25's top, all seeds together."""
    rows = []
    for system in ((student, "ranknet") for student in STUDENTS if (student, "ranknet") in measured()):
        average, square = means(system, ["score", "squared score"])
        rows.append([system[0], str(len(measured()[system])), f"{average:.1f}", f"{(square - average**2) ** 0.5:.1f}"])
    return markdown(["student, ranknet", "seeds", "mean score", "standard deviation"], rows)


if __name__ == "__main__":
    print(reranking(), pairs(), magnitudes(), retrieval(), sep="\n\n")
