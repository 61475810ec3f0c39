"""The names of measures, the presets of collections, and our own kernel for each measure.

Names and values follow ir_measures. The kernels give trec_eval's values for the measures that trec_eval has. Negative
relevance counts as 0. A document with a grade below the relevance level is judged, but not relevant.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Qrels
from pyserini_kd.storage.errors import InputError

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "AP", "R@100", "R@1000")


class Preset(NamedTuple):
    """The measures that papers report for a collection, and the grades of its judgements."""

    measures: tuple[str, ...]
    grades: range | None = None  # None: a family of collections with different grades


_DEEP_LEARNING = Preset(("nDCG@10", "RR(rel=2)@10", "AP(rel=2)", "R(rel=2)@100", "R(rel=2)@1000"), range(4))
PRESETS = {
    "dl19": _DEEP_LEARNING,
    "dl20": _DEEP_LEARNING,
    "msmarco": Preset(("RR@10", "nDCG@10", "R@100", "R@1000"), range(2)),
    "beir": Preset(("nDCG@10", "R@100", "R@1000")),
}
"""In TREC Deep Learning passages, binary measures count relevance from 2: grade 1 is "on topic, but no answer"."""


class Measure(NamedTuple):
    """A measure with its parameters: `nDCG@10`, `RR`, `AP(rel=2)`, `P@10`, `RBP(p=0.5,rel=2)@20`."""

    name: str
    cutoff: int | None
    rel: int  # the lowest grade that counts as relevant; nDCG and Judged do not use it
    p: float = 0.8  # persistence; only RBP uses it

    @property
    def k(self) -> float:
        """The cut-off, or infinity."""
        return self.cutoff or math.inf

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a measure's name.

        >>> Measure.parse("RR(rel=2)@10")
        Measure(name='RR', cutoff=10, rel=2, p=0.8)

        Raises:
            InputError: the measure does not exist (the message suggests one), or does not take these parameters.
        """
        match = re.fullmatch(r"([A-Za-z]+)(?:\(([^()]*)\))?(?:@([1-9]\d*))?", text)
        if match is None or match[1] not in KINDS:
            raise InputError(f"unknown measure {text!r}; {_suggest(text)}")
        name, given, cutoff = match.groups()
        kind = KINDS[name]
        if kind.cutoff == "needed" and cutoff is None:
            raise InputError(f"measure {text} needs a cut-off, for example {text}@{kind.example.partition('@')[2]}")
        if kind.cutoff == "none" and cutoff is not None:
            raise InputError(f"measure {text}: {name} takes no cut-off")
        values = {"rel": "1", "p": "0.8"}
        for parameter in [] if given is None else given.split(","):
            key, _, value = parameter.strip().partition("=")
            if key not in kind.takes:
                takes = " and ".join(f"({known}=...)" for known in kind.takes) or "no parameter"
                raise InputError(f"measure {text}: {name} takes {takes}, not {parameter.strip()!r}")
            values[key] = value
        rel, p = values["rel"], values["p"]
        if not re.fullmatch(r"[1-9]\d*", rel):
            raise InputError(f"measure {text}: rel must be a whole number from 1, not {rel!r}")
        if not re.fullmatch(r"0?\.\d*[1-9]\d*", p) or not 0 < float(p) < 1:  # 0.999... with many digits is 1 as float64
            raise InputError(f"measure {text}: p must lie between 0 and 1, such as 0.8, not {p!r}")
        for number in (cutoff or "", rel):
            if len(number) > 9:  # trec_eval counts in 32 bits
                raise InputError(f"measure {text}: {number} is more than 999999999")
        return cls(name, int(cutoff) if cutoff else None, int(rel), float(p))


_OTHER_NAMES = {"ndcg_cut": "nDCG", "recip_rank": "RR", "mrr": "RR", "map": "AP", "map_cut": "AP", "precision": "P"} | {
    "recall": "R", "r-precision": "Rprec", "hit": "Success", "hits": "Success", "hit_rate": "Success",
}  # fmt: skip


def _suggest(text: str) -> str:
    """Suggest the right name for a name such as `ndcg_cut.10`, `MRR@10` or `nDGC@10`."""
    word, _, rest = text.partition("(") if "(" in text else re.split(r"([.@]|(?<=\D)(?=\d))", text + ".", maxsplit=1)
    names = {name.lower(): name for name in KINDS} | _OTHER_NAMES
    near = difflib.get_close_matches(word.lower().rstrip("._"), names, n=1, cutoff=0.5)
    if not near:
        examples = ", ".join(kind.example for kind in KINDS.values())
        return f"measures are {examples}; binary measures also take a level: AP(rel=2), RR(rel=2)@10"
    kind = KINDS[names[near[0]]]
    cutoff = re.search(r"(?<![=.])\b\d+", rest)
    if cutoff and kind.cutoff != "none":
        return f"did you mean {names[near[0]]}@{cutoff.group()}?"
    return f"did you mean {kind.example}?"


class Topic(NamedTuple):
    """The facts that measures need about one topic."""

    found: list[tuple[int, int]]  # (rank, grade) of each judged document in the run, best rank first
    grades: list[int]  # of every judged document, highest first
    n_hits: int  # retrieved documents, judged or not

    def n_relevant(self, rel: int) -> int:
        """The number of relevant documents, retrieved or not."""
        return sum(grade >= rel for grade in self.grades)

    def ranks(self, rel: int, k: float) -> list[int]:
        """Ranks of the relevant documents, up to k."""
        return [rank for rank, grade in self.found if grade >= rel and rank <= k]


def by_kernels(run: Run, qrels: Qrels, measures: Mapping[str, Measure]) -> dict[str, dict[str, float]]:
    """Compute measures with our own kernels: measure -> query_id -> value, for every query of the qrels."""
    results: dict[str, dict[str, float]] = {name: {} for name in measures}
    for query_id, docs in qrels.items():
        ranking = run[query_id].doc_ids if query_id in run else []
        found = [(rank, docs[doc_id]) for rank, doc_id in enumerate(ranking, start=1) if doc_id in docs]
        topic = Topic(found, sorted(docs.values(), reverse=True), len(ranking))
        for name, measure in measures.items():
            results[name][query_id] = KINDS[measure.name].kernel(topic, measure)
    return results


def _ndcg(topic: Topic, measure: Measure) -> float:
    """Linear gain, discount log2(rank + 1) (Jarvelin and Kekalainen 2002, as trec_eval)."""
    k = measure.k
    ideal = sum(max(gain, 0) / math.log2(rank + 1) for rank, gain in enumerate(topic.grades, start=1) if rank <= k)
    return sum(max(gain, 0) / math.log2(rank + 1) for rank, gain in topic.found if rank <= k) / ideal if ideal else 0.0


def _average_precision(topic: Topic, measure: Measure) -> float:
    ranks = topic.ranks(measure.rel, measure.k)
    return sum(n / rank for n, rank in enumerate(ranks, start=1)) / max(topic.n_relevant(measure.rel), 1)


def _recall(topic: Topic, measure: Measure) -> float:
    """Recall at k; without a cut-off, precision at R, the number of relevant documents (Rprec)."""
    n_relevant = topic.n_relevant(measure.rel)
    return len(topic.ranks(measure.rel, measure.cutoff or n_relevant)) / max(n_relevant, 1)


def _bpref(topic: Topic, measure: Measure) -> float:
    """Binary preference (Buckley and Voorhees 2004), as in trec_eval."""
    n_relevant = topic.n_relevant(measure.rel)
    most = min(n_relevant, sum(0 <= grade < measure.rel for grade in topic.grades))
    total, above = 0.0, 0
    for _, grade in topic.found:
        if grade >= measure.rel:
            total += 1 - min(above, n_relevant) / most if above else 1
        elif grade >= 0:
            above += 1
    return total / max(n_relevant, 1)


def _rbp(topic: Topic, measure: Measure) -> float:
    """(1 - p) x the sum of p^(rank - 1) over relevant documents (Moffat and Zobel 2008). Binary, as trectools' default."""
    return (1 - measure.p) * math.fsum(measure.p ** (rank - 1) for rank in topic.ranks(measure.rel, measure.k))


def _judged(topic: Topic, measure: Measure) -> float:
    """The share of judged documents among the first k, or among all if the run has fewer than k."""
    return sum(rank <= measure.k for rank, _ in topic.found) / max(min(measure.k, topic.n_hits), 1)


class Kind(NamedTuple):
    """A measure without parameter values: its kernel, and which parameters it takes."""

    kernel: Callable[[Topic, Measure], float]
    example: str
    cutoff: str = "optional"  # or needed, or none
    takes: tuple[str, ...] = ("rel",)


KINDS = {
    "nDCG": Kind(_ndcg, "nDCG@10", takes=()),
    "RR": Kind(lambda topic, m: next((1 / rank for rank in topic.ranks(m.rel, m.k)), 0.0), "RR@10"),
    "AP": Kind(_average_precision, "AP"),
    "P": Kind(lambda topic, m: len(topic.ranks(m.rel, m.k)) / m.k, "P@10", "needed"),
    "R": Kind(_recall, "R@1000", "needed"),
    "Rprec": Kind(_recall, "Rprec", "none"),
    "Bpref": Kind(_bpref, "Bpref", "none"),
    "RBP": Kind(_rbp, "RBP(p=0.8)", takes=("p", "rel")),
    "Judged": Kind(_judged, "Judged@10", "needed", takes=()),
    "Success": Kind(lambda topic, m: float(bool(topic.ranks(m.rel, m.k))), "Success@5", "needed"),
}
