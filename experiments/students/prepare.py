"""Texts of the first stage: the passages, real queries without labels, and one sentence of every second passage.

`python experiments/students/prepare.py DATA WORK` writes WORK/texts/docs.tsv and WORK/texts/topics.tsv.
"""

import random
import re
import sys
from pathlib import Path


def main(data: Path, work: Path) -> None:
    folder = work / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    collection = (data / "msmarco-dl19" / "collection.tsv").read_text(encoding="utf-8")
    (folder / "docs.tsv").write_text(collection, encoding="utf-8")
    draw, topics = random.Random(0), []
    for name in ("msmarco", "nq"):
        lines = (data / "queries" / f"{name}.dev.tsv").read_text(encoding="utf-8").splitlines()
        topics += [f"{name}-{line}" for line in lines]
    for line in collection.splitlines()[::2]:
        doc_id, _, text = line.partition("\t")
        sentences = [part for part in re.split(r"(?<=[.!?])\s+", text) if 4 <= len(part.split()) <= 30]
        if sentences:
            topics.append(f"s-{doc_id}\t{draw.choice(sentences)}")
    (folder / "topics.tsv").write_text("\n".join(topics) + "\n", encoding="utf-8")
    print(len(collection.splitlines()), "passages,", len(topics), "queries and sentences")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
