"""Fuse five published runs in every way: `python experiments/fusion/run.py FOLDER` writes two of the tables of page.md.

FOLDER holds qrels.dl19.txt and runs/NAME.dl19.trec of the five runs. The tables are published_runs.csv and fused_runs.csv.
"""

import csv
import itertools
import sys
from pathlib import Path

import numpy as np

from pyserini_kd.data import formats
from pyserini_kd.data.runs import Run
from pyserini_kd.evaluation import significance, tuning
from pyserini_kd.evaluation.engines import evaluate, mean
from pyserini_kd.retrieval import fusion

HERE = Path(__file__).parent
NAMES = {"bm25": "bm25", "bm25-rm3": "rm3", "distilbert-tas-b": "tasb", "openai-ada2": "ada2", "splade-pp-ed": "splade"}
BY_RANK, BY_SCORE = ("isr", "rbp", "borda", "condorcet"), ("combsum", "combmnz", "combanz", "combmax", "combmin", "combmed")
METHODS = [("rrf", None), *((m, None) for m in BY_RANK), *((m, "minmax") for m in BY_SCORE)]
METHODS += [("combsum", norm) for norm in ("none", "sum", "zscore", "rank")]
TUNED = ("wsum", "minmax, tuned")


def write_table(name: str, rows: list[list[str]]) -> None:
    """Write a CSV file beside this script; the first row is the header."""
    with open(HERE / name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def main(folder: Path) -> None:
    """Measure the runs and all their fusions, and write the tables."""
    qrels = formats.read_qrels(folder / "qrels.dl19.txt")
    runs = {short: Run.read(folder / "runs" / f"{name}.dl19.trec") for name, short in NAMES.items()}

    def ndcg(run: Run) -> dict[str, float]:
        return evaluate(run, qrels, ["nDCG@10"], "fast")["nDCG@10"]

    alone = {name: ndcg(run) for name, run in runs.items()}
    groups = [*itertools.combinations(runs, 2), tuple(runs)]
    best = {group: max(group, key=lambda name: mean(alone[name])) for group in groups}
    found = {}
    for method, group in itertools.product([*METHODS, TUNED], groups):
        inputs = [runs[name] for name in group]
        if method == TUNED:  # each topic under the weights that the other folds chose
            values = dict(zip(qrels, tuning.tune(inputs, qrels, "wsum", measure="nDCG@10").unseen.tolist(), strict=True))
        else:
            values = ndcg(fusion.rrf(inputs) if method[0] == "rrf" else fusion.combine(inputs, method[0], norm=method[1]))
        compared = significance.compare({"best": {"": alone[best[group]]}, "fused": {"": values}}, "best")["fused"][""]
        found[method, group] = mean(values), compared
    holm = dict(zip(found, significance.holm(np.array([c.p_value for _, c in found.values()])), strict=True))

    def cell(key: tuple) -> str:
        value, compared = found[key]
        sign = "+" if compared.difference > 0 else "-"
        return f"{value:.4f} {sign * (2 if holm[key] < 0.05 else compared.p_value < 0.05)}".rstrip()

    rows = [["method", *("all" if len(group) == len(runs) else "+".join(group) for group in groups)]]
    rows += [["(best input)", *(f"{mean(alone[best[group]]):.4f}" for group in groups)]]
    rows += [[" ".join(filter(None, method)), *(cell((method, group)) for group in groups)] for method in [*METHODS, TUNED]]
    write_table("published_runs.csv", [["run", "nDCG@10"], *([name, f"{mean(values):.4f}"] for name, values in alone.items())])
    write_table("fused_runs.csv", rows)
    significant = sum(compared.p_value < 0.05 and compared.difference > 0 for _, compared in found.values())
    print(f"{len(found)} comparisons; better than the best input at p < .05, uncorrected: {significant}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
