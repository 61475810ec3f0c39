"""Texts for the 3-layer start: documents, their sentences, and questions, from sources with permissive licences.

`python experiments/start/prepare.py DATA WORK` writes WORK/docs.jsonl and WORK/topics.tsv. Sources: paragraphs and training
questions of SQuAD (CC BY-SA 4.0), questions of Natural Questions (CC BY-SA 3.0), docstrings of numpy, scipy, pandas,
scikit-learn, networkx and matplotlib (BSD, PSF-like) with their summaries as queries.
"""

import sys
from pathlib import Path

from pyserini_kd.data import docstrings, formats, sources
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.distillation.made_queries import sentences

THIN = 3  # one of so many sentences


def main(data: Path, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    whole = [*sources.collection(str(data / "squad" / "docs.jsonl")), *docstrings.docs()]
    parts = [
        Doc(f"{doc.doc_id}/{number}", "", sentence) for doc in whole for number, sentence in enumerate(sentences(doc.text))
    ]
    topics = [*sources.topics(str(data / "squad" / "queries.train.tsv")), *docstrings.topics("train")]
    topics += sources.topics(str(data / "queries" / "nq.dev.tsv"))
    parts = parts[::THIN]
    formats.write_collection([*whole, *parts], work / "docs.jsonl", overwrite=True)
    numbered = (Query(str(number), query.text) for number, query in enumerate(topics))
    formats.write_topics(numbered, work / "topics.tsv", overwrite=True)
    print(len(whole), "documents,", len(parts), "sentences,", len(topics), "questions")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
