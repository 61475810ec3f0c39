"""Queries of the second stage: real queries that a passage covers, and keyword queries made from passages.

`python experiments/students/queries.py DATA WORK` needs a BM25 index of the passages in WORK/indexes/bm25. It writes
WORK/texts/train.tsv and WORK/texts/heldout.tsv (300 queries, for the agreement of students with the teacher).
"""

import collections
import math
import random
import re
import sys
from pathlib import Path

from pyserini_kd.data.types import Query
from pyserini_kd.retrieval import bm25_search

COVERED, MADE, HELD_OUT = 0.75, 3500, 300
COMMON = set(
    "a an and are as at be by can do does did for from had has have how i in is it its me my of on or that the their there "
    "these this to was were what when where which who whom why will with you your much many long if not no about into".split()
)


def words(text: str) -> list[str]:
    """Lower-case words without common words. A final s is removed, so that plurals match."""
    return [word.rstrip("s") for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in COMMON]


def main(data: Path, work: Path) -> None:
    lines = (data / "msmarco-dl19" / "collection.tsv").read_text(encoding="utf-8").splitlines()
    passages = dict(line.split("\t", 1) for line in lines)
    real = []
    for name in ("msmarco", "nq"):
        for line in (data / "queries" / f"{name}.dev.tsv").read_text(encoding="utf-8").splitlines():
            query_id, _, text = line.partition("\t")
            real.append(Query(f"{name}-{query_id}", text))
    run = bm25_search.search(str(work / "indexes" / "bm25"), real, hits=3, threads=2)
    kept = []
    for query in real:
        asked = set(words(query.text))
        best = max((len(asked & set(words(passages[doc_id]))) for doc_id in run[query.query_id].doc_ids), default=0)
        if asked and best / len(asked) >= COVERED:
            kept.append(query)
    count = collections.Counter(word for text in passages.values() for word in set(words(text)))
    draw = random.Random(0)
    made = [
        Query(f"made-{doc_id}", keywords(passages[doc_id], count, len(passages), draw))
        for doc_id in draw.sample(sorted(passages), MADE)
    ]
    queries = [query for query in (*kept, *made) if query.text]
    draw.shuffle(queries)
    for name, part in (("heldout", queries[:HELD_OUT]), ("train", queries[HELD_OUT:])):
        text = "".join(f"{query.query_id}\t{query.text}\n" for query in part)
        (work / "texts" / f"{name}.tsv").write_text(text, encoding="utf-8")
    print(len(real), "real queries,", len(kept), "covered;", len(made), "made from passages")


def keywords(text: str, count: collections.Counter[str], total: int, draw: random.Random) -> str:
    """Three to six rare words of one sentence or two neighbouring ones, in their order."""
    sentences = [part for part in re.split(r"(?<=[.!?])\s+", text) if len(part.split()) >= 5]
    if not sentences:
        return ""
    place = draw.randrange(len(sentences))
    found = [word for word in re.findall(r"[A-Za-z0-9]+", " ".join(sentences[place : place + 2])) if words(word)]
    rarity = {word: math.log(total / (1 + count[words(word)[0]])) * draw.uniform(0.7, 1.3) for word in found}
    chosen = set(sorted(rarity, key=lambda word: (-rarity[word], word))[: draw.randint(3, 6)])
    return " ".join(dict.fromkeys(word.lower() for word in found if word in chosen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
