"""Distil a system from each collection by one command, and measure it on the test topics, which nothing else reads.

`python experiments/distill/run.py DATA WORK [NAME ...] [-- OPTION ...]` writes WORK/NAME/ and WORK/results.csv. Options after
`--` go to `pyserini-kd distill`.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

from pyserini_kd.data import formats, sources
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Qrels, Query
from pyserini_kd.evaluation import engines
from pyserini_kd.retrieval import fusion
from pyserini_kd.storage.records import read_json

MEASURE = "nDCG@10"
HITS = 100


class Test(NamedTuple):
    """A collection with its test topics."""

    collection: str
    topics: str
    qrels: str


def tests(data: Path, work: Path) -> dict[str, Test]:
    """The five collections; BEIR's and CACM's files are first rewritten as TSV and JSONL in `work`."""
    scifact, squad, dl19 = data / "beir" / "scifact", data / "squad", data / "msmarco-dl19"
    return {
        "cacm": _cacm(data / "cacm", work / "cacm.data"),
        "scifact": _scifact(scifact, work / "scifact.data"),
        "cranfield": Test(*["ir_datasets:cranfield"] * 3),
        "squad": Test(str(squad / "docs.jsonl"), str(squad / "queries.test.tsv"), str(squad / "qrels.test.txt")),
        "dl19": Test(str(dl19 / "collection.tsv"), str(dl19 / "queries.dl19.tsv"), str(dl19 / "qrels.dl19.txt")),
    }


def _scifact(source: Path, folder: Path) -> Test:
    folder.mkdir(parents=True, exist_ok=True)
    with open(source / "qrels" / "test.tsv", encoding="utf-8") as file:
        judged: Qrels = {}
        for row in csv.DictReader(file, delimiter="\t"):
            judged.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    topics = [query for query in sources.topics(str(source / "queries.jsonl")) if query.query_id in judged]
    formats.write_topics(topics, folder / "topics.tsv", overwrite=True)
    formats.write_qrels(judged, folder / "qrels.txt", overwrite=True)
    return Test(str(source / "corpus.jsonl"), str(folder / "topics.tsv"), str(folder / "qrels.txt"))


def _cacm(source: Path, folder: Path) -> Test:
    """CACM's pages as title and text, without the numbers of cited articles."""
    folder.mkdir(parents=True, exist_ok=True)
    docs = []
    with tarfile.open(source / "cacm.tar.gz") as archive:
        for member in sorted((one for one in archive if one.name.endswith(".html")), key=lambda one: one.name):
            file = archive.extractfile(member)
            assert file is not None
            text = re.search(r"<pre>(.*?)</pre>", file.read().decode(errors="replace"), re.DOTALL)
            parts = re.split(r"\n\s*\n", text[1].strip()) if text else []
            body = " ".join(part for part in parts[1:] if not re.search(r"\t[456]\t", part))
            docs.append(Doc(Path(member.name).stem, " ".join(parts[0].split()), " ".join(body.split())))
    topics = re.findall(r"<DOCNO>\s*(\d+)\s*</DOCNO>(.*?)</DOC>", (source / "topics.cacm.txt").read_text(), re.DOTALL)
    if not (folder / "docs.jsonl").exists():
        formats.write_collection(docs, folder / "docs.jsonl")
    queries = [Query(number, " ".join(text.split())) for number, text in topics if text.strip()]
    formats.write_topics(queries, folder / "topics.tsv", overwrite=True)
    return Test(str(folder / "docs.jsonl"), str(folder / "topics.tsv"), str(source / "qrels.cacm.txt"))


def kd(*words: object) -> float:
    """Run a command; return its seconds."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "pyserini_kd", *map(str, words)], check=True)
    return time.monotonic() - begun


def runs_of(name: str, test: Test, work: Path, options: list[str]) -> tuple[dict[str, Run], float]:
    """Runs of the test topics, and the minutes of `distill`."""
    system, folder = work / name, work / f"{name}.runs"
    if not (system / "search.yaml").exists():
        kd("distill", "--collection", test.collection, "--output", system, *options)
    minutes = sum(step["seconds"] for step in read_json(system / "distill.json", "record")["steps"].values()) / 60
    bm25, model, zero_shot = system / "indexes" / "bm25", system / "models" / "dense", ("minilm", "minilm-3")
    for encoder in zero_shot:
        if not (index := work / f"{name}.{encoder}").exists():
            kd("index", "--collection", test.collection, "--encoder", encoder, "--index", index)
    search = {encoder: ["--encoder", encoder, "--index", work / f"{name}.{encoder}"] for encoder in zero_shot}
    search |= {"bm25": ["--encoder", "bm25", "--index", bm25], "system": ["--system", system]}
    search["dense"] = ["--encoder", model, "--index", system / "indexes" / "dense"]
    for one, words in search.items():
        if not (folder / f"{one}.txt").exists():
            kd("search", *words, "--topics", test.topics, "--hits", HITS, "--output", folder / f"{one}.txt")
    runs = {one: Run.read(folder / f"{one}.txt") for one in search}
    runs["rrf"] = fusion.rrf([runs["bm25"], runs["minilm"]], engine="fast")
    return runs, minutes


def main(data: Path, work: Path, names: list[str], options: list[str]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    os.environ["IR_DATASETS_HOME"] = str(work / "ir_datasets")
    if not (work / "ir_datasets").exists():
        shutil.copytree(data / "ir_datasets_home", work / "ir_datasets")
    found = tests(data, work)
    rows = {}
    for name in names or found:
        runs, minutes = runs_of(name, found[name], work, options)
        qrels = sources.qrels(found[name].qrels)
        values = {system: engines.evaluate(run, qrels, [MEASURE], "fast")[MEASURE] for system, run in runs.items()}
        means = {system: engines.mean(value) for system, value in values.items()}
        record = read_json(work / name / "distill.json", "record")
        better = max(("bm25", "dense"), key=lambda system: means[system])
        rows[name] = {
            "collection": name, "documents": record["n_docs"], "minutes": f"{minutes:.1f}",
            **{system: f"{means[system]:.4f}" for system in ("bm25", "minilm", "rrf", "minilm-3", "dense", "system")},
            "minilm-3 / MiniLM": f"{means['minilm-3'] / means['minilm']:.3f}",
            "dense / MiniLM": f"{means['dense'] / means['minilm']:.3f}",
            "system - better one": f"{means['system'] - means[better]:+.4f}",
            "system - RRF": "{:+.4f} (p = {:.2g})".format(*engines.compare(values["system"], values["rrf"])),
            "reranks": "yes" if "rerank" in record["chosen"]["settings"] else "no",
        }  # fmt: skip
        print(json.dumps(rows[name]))
    with open(work / "results.csv", "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, next(iter(rows.values())).keys())
        writer.writeheader()
        writer.writerows(rows.values())


if __name__ == "__main__":
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    main(Path(words[0]), Path(words[1]), words[2:end], words[end + 1 :])
