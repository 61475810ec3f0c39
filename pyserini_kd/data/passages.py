"""Cut documents into passages, and aggregate passage scores to documents by MaxP, FirstP, SumP or AvgP.

A passage is a `Doc` with the id `docid#n`, n from 0. All other modules treat passages as documents.
"""

from collections.abc import Callable, Container, Iterable, Iterator

import numpy as np

from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Qrels
from pyserini_kd.storage.arrays import Floats
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.manifest import Manifest

AGGREGATES: dict[str, Callable[[Floats], float]] = {
    "maxp": lambda scores: float(scores.max()),
    "firstp": lambda scores: float(scores[0]),
    "sump": lambda scores: float(scores.sum(dtype=np.float64)),
    "avgp": lambda scores: float(scores.mean(dtype=np.float64)),
}
"""Document score from its passage scores in text order (Dai and Callan, SIGIR 2019)."""
ADDED = ("sump", "avgp")  # these add scores, so they need probabilities, not logits


def parse(windows: str) -> tuple[int, int]:
    """(words per passage, stride in words) of `150:75`; InputError if malformed, or if text would be lost."""
    words, colon, stride = windows.partition(":")
    if not (colon and words.isdecimal() and stride.isdecimal() and 1 <= int(stride) <= int(words)):
        raise InputError(f"segments must be `WORDS:STRIDE` with 1 <= STRIDE <= WORDS, e.g. 150:75, not {windows!r}")
    return int(words), int(stride)


def refuse_mixture(*manifests: Manifest | None) -> None:
    """InputError if indexes mix whole documents and passages, or passages of different windows. Unknown ones are ignored."""
    known = [
        (manifest.folder, manifest.segment or "")
        for manifest in manifests
        if manifest and not manifest.says_of("vectors") and (manifest.kind != "bm25" or manifest.says_of("segment"))
    ]
    for name, cut in known[1:]:
        if cut != known[0][1]:
            what = [f"{n} holds {f'passages ({c})' if c else 'whole documents'}" for n, c in (known[0], (name, cut))]
            raise InputError(f"{', '.join(what)}: their results cannot be merged")


def segment(docs: Iterable[Doc], windows: str) -> Iterator[Doc]:
    """Cut streamed documents into windows of WORDS words; each passage keeps the title.

    A window starts every STRIDE words until one reaches the end of the text, so the last may be shorter than WORDS. No word is
    lost, and no passage is contained in the previous one. A document without text gives one passage.

    >>> [(p.doc_id, p.text) for p in segment([Doc("d", "", "a b c d e f")], "3:2")]
    [('d#0', 'a b c'), ('d#1', 'c d e'), ('d#2', 'e f')]
    """
    size, stride = parse(windows)
    for doc in docs:
        words = doc.text.split()
        count = 1 + max(0, -(-(len(words) - size) // stride))
        for n in range(count):
            yield Doc(f"{doc.doc_id}#{n}", doc.title, " ".join(words[n * stride : n * stride + size]))


def segment_qrels(qrels: Qrels, passages: Iterable[Doc]) -> Qrels:
    """Qrels of passages: each passage gets the grade of its document, even where the passage itself is not relevant."""
    judged = {doc_id for documents in qrels.values() for doc_id in documents}
    of: dict[str, list[str]] = {}
    for passage in passages:
        doc_id, _ = split_id(passage.doc_id)
        if doc_id in judged:
            of.setdefault(doc_id, []).append(passage.doc_id)
    return {q: {p: grade for d, grade in documents.items() for p in of.get(d, [])} for q, documents in qrels.items()}


def split_id(passage_id: str) -> tuple[str, int]:
    """(document id, passage number) of a passage id; InputError for an id that does not end in `#n`.

    >>> split_id("a#b#12")
    ('a#b', 12)
    """
    doc_id, _, number = passage_id.rpartition("#")
    if not doc_id or not number.isdecimal():
        raise InputError(f"{passage_id!r} is not a passage id: it must end in #n")
    return doc_id, int(number)


def stored_parts(doc_id: str, known: Container[str]) -> list[str]:
    """Ids of a document's passages in `known`, in text order.

    >>> stored_parts("a", {"a#0", "b#0", "a#1"})
    ['a#0', 'a#1']
    """
    parts: list[str] = []
    while (part := f"{doc_id}#{len(parts)}") in known:
        parts.append(part)
    return parts


def aggregate(run: Run, how: str = "maxp", k: int | None = None) -> Run:
    """Convert a passage run to a document run with at most k documents per query.

    A document gets the best score (`maxp`), first score in text order (`firstp`), sum (`sump`) or mean (`avgp`) of the scores
    of its passages in the run.
    """
    if how not in AGGREGATES:
        raise InputError(f"the aggregation must be one of {', '.join(AGGREGATES)}, not {how!r}")
    documents: dict[str, dict[str, float]] = {}
    for query_id, hits in run.items():
        found: dict[str, list[tuple[int, float]]] = {}
        for passage_id, value in zip(hits.doc_ids, hits.scores.tolist(), strict=True):
            doc_id, number = split_id(passage_id)
            found.setdefault(doc_id, []).append((number, value))
        documents[query_id] = {d: AGGREGATES[how](np.array([s for _, s in sorted(of)], np.float32)) for d, of in found.items()}
    merged = Run.from_scores(run.tag, documents)
    return merged if k is None else merged.top(k)


def max_passage(run: Run, k: int = 100, delimiter: str = "#") -> Run:
    """Pyserini's `--max-passage`: the top k documents, each with the score of its best passage.

    As in Pyserini, the document id is the part before the first delimiter. An id without a delimiter is a document.
    """
    if not delimiter:
        raise InputError("the delimiter between document id and passage number must not be empty")
    documents: dict[str, dict[str, float]] = {}
    for query_id, hits in run.items():
        best = documents.setdefault(query_id, {})
        for passage_id, score in zip(hits.doc_ids, hits.scores.tolist(), strict=True):  # best first
            best.setdefault(passage_id.split(delimiter)[0], score)
    return Run.from_scores(run.tag, documents).top(k)
