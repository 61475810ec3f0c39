"""Measure Runs against Qrels, and compare two runs.

All values equal trec_eval's, averaged like `trec_eval -c`: all judged queries count, a query missing from the run counts as 0,
and queries without judgements are ignored. nDCG uses linear gain. Negative relevance counts as 0. trectools measures small
runs, our own kernels large ones. Both give equal numbers.
"""

import math
from collections.abc import Mapping, Sequence

from pyserini_kd.data import trectools_adapter
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Qrels
from pyserini_kd.evaluation import significance
from pyserini_kd.evaluation.measures import Measure, by_kernels
from pyserini_kd.storage.errors import InputError

PerQuery = dict[str, float]
"""query_id -> value, for every judged query."""

ENGINES = ("auto", "trectools", "fast")
TRECTOOLS_ROWS = 200_000
"""`auto` uses trectools up to this many rows. There it takes 1.2 seconds for five measures, our own kernels 0.02."""
TOLERANCE = 1e-6
"""Differences to pytrec_eval up to this count as equal."""


def evaluate(run: Run, qrels: Qrels, measures: Sequence[str], engine: str = "auto") -> dict[str, PerQuery]:
    """Evaluate a run: measure -> {query_id: value}, for every judged query in the order of the qrels.

    >>> run = Run.from_scores("demo", {"q1": {"a": 3.0, "b": 2.0, "c": 1.0}})
    >>> evaluate(run, {"q1": {"b": 1}, "q2": {"a": 1}}, ["RR@10", "P@2"])
    {'RR@10': {'q1': 0.5, 'q2': 0.0}, 'P@2': {'q1': 0.5, 'q2': 0.0}}

    Raises:
        InputError: a measure or the engine is unknown, or qrels and run share no query.
    """
    if engine not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    parsed = {name: Measure.parse(name) for name in measures}
    judged = Run(run.tag, {query_id: run[query_id] for query_id in qrels if query_id in run})
    if not judged:
        raise InputError(f"run {run.tag} and the qrels share no query: {_ids(run)} against {_ids(qrels)}")
    if engine == "auto":
        engine = choose_engine(run)
    compute = _by_trectools if engine == "trectools" else by_kernels
    return compute(judged, qrels, parsed)


def choose_engine(run: Run) -> str:
    """The engine that `auto` means for this run: trectools for small runs, else our own kernels."""
    return "trectools" if run.n_hits <= TRECTOOLS_ROWS else "fast"


def mean(per_query: PerQuery) -> float:
    """The mean over all judged queries.

    >>> mean({"q1": 0.5, "q2": 0.0})
    0.25
    """
    return math.fsum(per_query.values()) / len(per_query)


def compare(per_query: PerQuery, baseline: PerQuery) -> tuple[float, float]:
    """Mean difference to the baseline, and p-value of a two-sided paired t-test over all judged queries.

    `significance.compare` offers other tests, corrections, effect sizes and intervals.

    >>> difference, p_value = compare({"q1": 0.5, "q2": 0.75, "q3": 1.0}, {"q1": 0.5, "q2": 0.5, "q3": 0.5})
    >>> round(difference, 4), round(p_value, 4)
    (0.25, 0.2254)
    """
    found = significance.compare({"baseline": {"": baseline}, "run": {"": per_query}}, "baseline", samples=1)["run"][""]
    return found.difference, found.p_value


def _ids(mapping: Mapping[str, object]) -> str:
    shown = ", ".join(list(mapping)[:3])
    return f"{len(mapping)} queries ({shown}{', ...' if len(mapping) > 3 else ''})"


def _by_trectools(run: Run, qrels: Qrels, measures: Mapping[str, Measure]) -> dict[str, PerQuery]:
    """Use trectools for the measures that it computes correctly, and our own kernels for the rest."""
    ours = {name: measure for name, measure in measures.items() if measure.name not in trectools_adapter.MEASURES}
    results = by_kernels(run, qrels, ours)
    evaluator = trectools_adapter.Evaluator(run, qrels)
    for name, measure in measures.items():
        if name not in ours:
            level = None if measure.name == "nDCG" else measure.rel
            results[name] = evaluator.measure(measure.name, measure.cutoff, level, measure.p)
    return {name: results[name] for name in measures}


_TREC_EVAL = {
    "nDCG": ("ndcg", "ndcg_cut"), "RR": ("recip_rank", None), "AP": ("map", "map_cut"), "P": (None, "P"), "R": (None, "recall"),
    "Rprec": ("Rprec", None), "Bpref": ("bpref", None), "Success": (None, "success"),
}  # fmt: skip
"""Measure -> trec_eval's names without and with a cut-off. recip_rank takes no cut-off, so the run is cut instead."""


def by_pytrec_eval(run: Run, qrels: Qrels, measures: Sequence[str]) -> dict[str, PerQuery]:
    """The values of `evaluate`, computed by pytrec_eval. Measures that it does not know (RBP, Judged) are left out."""
    import pytrec_eval

    groups: dict[tuple[int, int | None], dict[str, str]] = {}
    for name, measure in ((name, Measure.parse(name)) for name in measures):
        if measure.name in _TREC_EVAL:
            whole, cut = _TREC_EVAL[measure.name]
            trec_name = f"{cut}.{measure.cutoff}" if cut and measure.cutoff else str(whole)
            run_cut = measure.cutoff if measure.name == "RR" else None
            groups.setdefault((measure.rel, run_cut), {})[name] = trec_name
    results: dict[str, PerQuery] = {}
    useful = {q: docs for q, docs in qrels.items() if any(rel > 0 for rel in docs.values())}  # pytrec_eval may crash on others
    for (level, run_cut), names in groups.items():
        hits = {query_id: run[query_id] for query_id in useful if query_id in run}
        scores = {q: dict(zip(h.doc_ids[:run_cut], h.scores[:run_cut].tolist(), strict=True)) for q, h in hits.items()}
        found = pytrec_eval.RelevanceEvaluator(useful, set(names.values()), relevance_level=level).evaluate(scores)
        for name, trec_name in names.items():
            key = trec_name.replace(".", "_")
            results[name] = {query_id: found[query_id][key] if query_id in found else 0.0 for query_id in qrels}
    return {name: results[name] for name in measures if name in results}


def disagreement(ours: Mapping[str, PerQuery], theirs: Mapping[str, PerQuery]) -> str | None:
    """One line about the values that differ by more than 1e-6, with the worst case; None if there are none."""
    pairs = ((measure, query_id) for measure, values in theirs.items() for query_id in values)
    apart = ((abs(theirs[measure][query_id] - ours[measure][query_id]), measure, query_id) for measure, query_id in pairs)
    worst = [pair for pair in apart if not pair[0] <= TOLERANCE]
    if not worst:
        return None
    _, measure, query_id = max(worst)
    values = f"{ours[measure][query_id]:.7f} here, {theirs[measure][query_id]:.7f} by pytrec_eval"
    return f"{len(worst)} values differ by more than {TOLERANCE:g}; the worst is {measure} of query {query_id}: {values}"
