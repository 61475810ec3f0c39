"""Measures of Runs against Qrels, and whether two runs differ by more than chance.

All numbers are trec_eval's, averaged as its `-c` does: every judged query counts, one that the run lacks counts 0, and
queries that nobody judged are ignored. nDCG uses linear gain; negative relevance is none. trectools computes them;
where a run is too large for it, our own kernels do, with equal numbers.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from pyserini_kd.cli import Runs, command
from pyserini_kd.data import Qrels
from pyserini_kd.files import InputError, atomic_file, refuse_existing
from pyserini_kd.runs import Run

if TYPE_CHECKING:
    import pandas as pd
    import trectools

PerQuery = dict[str, float]
"""query_id -> value, for every judged query."""
Results = Mapping[str, Mapping[str, PerQuery]]
"""run -> measure -> query_id -> value."""

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "AP", "R@100", "R@1000")
ENGINES = ("auto", "trectools", "fast")
TRECTOOLS_ROWS = 200_000
"""Rows up to which `auto` asks trectools: five measures then take it 1.2 seconds, and our own kernels 0.02."""

_NAMES = {"nDCG": "nDCG@10", "RR": "RR@10", "AP": "AP", "P": "P@10", "R": "R@1000"}
_OTHER_NAMES = {"ndcg": "nDCG", "ndcg_cut": "nDCG", "recip_rank": "RR", "mrr": "RR", "map": "AP", "map_cut": "AP"} | {
    "precision": "P",
    "recall": "R",
}


class Measure(NamedTuple):
    """What to compute: `nDCG@10`, `RR`, `AP(rel=2)`, `P@10`, `R@1000` (the names of ir_measures)."""

    name: str
    cutoff: int | None
    rel: int
    """The least relevance that counts as relevant; nDCG uses the grades and has no such level."""

    @classmethod
    def parse(cls, text: str) -> Measure:
        """Read a measure's name.

        >>> Measure.parse("RR(rel=2)@10")
        Measure(name='RR', cutoff=10, rel=2)

        Raises:
            InputError: no such measure; the message names the nearest one.
        """
        match = re.fullmatch(r"(nDCG|RR|AP|P|R)(?:\(rel=([1-9]\d*)\))?(?:@([1-9]\d*))?", text)
        if match is None:
            raise InputError(f"unknown measure {text!r}; {_suggest(text)}")
        name, rel, cutoff = match.groups()
        if name in ("P", "R") and cutoff is None:
            raise InputError(f"measure {text} needs a cut-off, for example {text}@{_NAMES[name].partition('@')[2]}")
        if name == "nDCG" and rel is not None:
            raise InputError(f"measure {text}: nDCG uses the relevance grades themselves and takes no (rel=N)")
        return cls(name, int(cutoff) if cutoff else None, int(rel or 1))


def _suggest(text: str) -> str:
    """The measure that was probably meant by a name such as `ndcg_cut.10`, `MRR@10` or `nDGC@10`."""
    word, _, rest = text.partition("(") if "(" in text else re.split(r"([.@]|(?<=\D)(?=\d))", text + ".", maxsplit=1)
    names = {name.lower(): name for name in _NAMES} | _OTHER_NAMES
    near = difflib.get_close_matches(word.lower().rstrip("._"), names, n=1, cutoff=0.5)
    if not near:
        return "measures are " + ", ".join(_NAMES.values()) + "; binary ones also as AP(rel=2), RR(rel=2)@10"
    name = names[near[0]]
    cutoff = re.search(r"(?<!=)\b\d+", rest)
    return f"did you mean {name}@{cutoff.group()}?" if cutoff else f"did you mean {_NAMES[name]}?"


# ---------------------------------------------------------------------------------------------------- evaluation


def evaluate(run: Run, qrels: Qrels, measures: Sequence[str], engine: str = "auto") -> dict[str, PerQuery]:
    """Evaluate a run: measure -> {query_id: value}, for every judged query in the order of the qrels.

    >>> run = Run.from_scores("demo", {"q1": {"a": 3.0, "b": 2.0, "c": 1.0}})
    >>> evaluate(run, {"q1": {"b": 1}, "q2": {"a": 1}}, ["RR@10", "P@2"])
    {'RR@10': {'q1': 0.5, 'q2': 0.0}, 'P@2': {'q1': 0.5, 'q2': 0.0}}

    Raises:
        InputError: an unknown measure or engine, or qrels and run share no query.
    """
    if engine not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    parsed = {name: Measure.parse(name) for name in measures}
    judged = Run(run.tag, {query_id: run[query_id] for query_id in qrels if query_id in run})
    if not judged:
        raise InputError(f"run {run.tag} and the qrels share no query: {_ids(run)} against {_ids(qrels)}")
    if engine == "auto":
        engine = choose_engine(run)
    compute = _by_trectools if engine == "trectools" else _by_kernels
    return compute(judged, qrels, parsed)


def choose_engine(run: Run) -> str:
    """What `auto` means for this run: trectools, or our own kernels where that would take long."""
    return "trectools" if run.n_hits <= TRECTOOLS_ROWS else "fast"


def mean(per_query: PerQuery) -> float:
    """The mean over all judged queries.

    >>> mean({"q1": 0.5, "q2": 0.0})
    0.25
    """
    return math.fsum(per_query.values()) / len(per_query)


def compare(per_query: PerQuery, baseline: PerQuery) -> tuple[float, float]:
    """Mean difference to the baseline and the p-value of a two-sided paired t-test over all judged queries.

    The p-value is 1 where the two agree on every query, and NaN where there is but one query.

    >>> difference, p_value = compare({"q1": 0.5, "q2": 0.75, "q3": 1.0}, {"q1": 0.5, "q2": 0.5, "q3": 0.5})
    >>> round(difference, 4), round(p_value, 4)
    (0.25, 0.2254)
    """
    from scipy.stats import ttest_rel

    if per_query.keys() != baseline.keys():
        raise ValueError("compare: both sides must hold the same queries, those of one qrels")
    ours, theirs = list(per_query.values()), [baseline[query_id] for query_id in per_query]
    difference = mean(per_query) - mean(baseline)
    if ours == theirs:
        return 0.0, 1.0
    if len(ours) == 1:
        return difference, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # differences that are all alike: p is 0
        return difference, float(ttest_rel(ours, theirs).pvalue)


def _ids(mapping: Mapping[str, object]) -> str:
    shown = ", ".join(list(mapping)[:3])
    return f"{len(mapping)} queries ({shown}{', ...' if len(mapping) > 3 else ''})"


# ------------------------------------------------------------------------------------------- engine: trectools


def _by_trectools(run: Run, qrels: Qrels, measures: Mapping[str, Measure]) -> dict[str, PerQuery]:
    """Ask trectools only what it computes rightly: ties broken for it, relevance levels cut for it, gaps filled."""
    import trectools

    trec_run = run.to_trectools(distinct_scores=True)
    trec_qrels: dict[int | None, trectools.TrecQrel] = {}
    results = {}
    for name, measure in measures.items():
        level = None if measure.name == "nDCG" else measure.rel
        if level not in trec_qrels:
            trec_qrels[level] = _trec_qrel(qrels, level)
        found: dict[str, float] = {}
        if run.n_hits and len(trec_qrels[level].qrels_data):  # trectools fails on empty frames
            evaluator = trectools.TrecEval(trec_run, trec_qrels[level])
            depth = measure.cutoff or max(run.depth, *map(len, qrels.values()))  # the whole run, the whole ideal
            found = _trectools_measure(evaluator, measure.name, depth).iloc[:, 0].fillna(0.0).to_dict()
        results[name] = {query_id: float(found.get(query_id, 0.0)) for query_id in qrels}
    return results


def _trectools_measure(evaluator: trectools.TrecEval, name: str, depth: int) -> pd.DataFrame:
    functions = {
        "nDCG": evaluator.get_ndcg,
        "RR": evaluator.get_reciprocal_rank,
        "AP": evaluator.get_map,
        "P": evaluator.get_precision,
        "R": evaluator.get_recall,
    }
    return functions[name](depth=depth, per_query=True)


def _trec_qrel(qrels: Qrels, level: int | None) -> trectools.TrecQrel:
    """The relevant judgements as trectools wants them; with a level, relevance is 1 from there on."""
    import pandas as pd
    import trectools

    rows = [
        (query_id, "0", doc_id, rel if level is None else 1)
        for query_id, docs in qrels.items()
        for doc_id, rel in docs.items()
        if rel >= (level or 1)
    ]
    trec_qrel = trectools.TrecQrel()
    frame = pd.DataFrame(rows, columns=["query", "q0", "docid", "rel"])
    trec_qrel.qrels_data = frame.astype({"query": str, "q0": str, "docid": str, "rel": int})
    return trec_qrel


# --------------------------------------------------------------------------------------------- engine: our own


class _Topic(NamedTuple):
    """All that a measure needs of one topic: which relevant documents there are, and where the run put them."""

    found: list[tuple[int, int]]
    """(rank, relevance) of each relevant document found, best rank first."""
    relevant: list[int]
    """Relevance of every relevant document, highest first."""


def _by_kernels(run: Run, qrels: Qrels, measures: Mapping[str, Measure]) -> dict[str, PerQuery]:
    kernels = {"nDCG": _ndcg, "RR": _reciprocal_rank, "AP": _average_precision, "P": _precision, "R": _recall}
    results: dict[str, PerQuery] = {name: {} for name in measures}
    for query_id, docs in qrels.items():
        relevant = {doc_id: rel for doc_id, rel in docs.items() if rel > 0}
        ranking = run[query_id].doc_ids if query_id in run else []
        topic = _Topic(
            [(rank, relevant[doc_id]) for rank, doc_id in enumerate(ranking, start=1) if doc_id in relevant],
            sorted(relevant.values(), reverse=True),
        )
        for name, (kind, cutoff, rel) in measures.items():
            results[name][query_id] = kernels[kind](topic, cutoff or math.inf, rel)
    return results


def _ndcg(topic: _Topic, k: float, rel: int) -> float:
    ideal = sum(gain / math.log2(rank + 1) for rank, gain in enumerate(topic.relevant, start=1) if rank <= k)
    return sum(gain / math.log2(rank + 1) for rank, gain in topic.found if rank <= k) / ideal if ideal else 0.0


def _reciprocal_rank(topic: _Topic, k: float, rel: int) -> float:
    return next((1 / rank for rank, grade in topic.found if grade >= rel and rank <= k), 0.0)


def _average_precision(topic: _Topic, k: float, rel: int) -> float:
    ranks = [rank for rank, grade in topic.found if grade >= rel and rank <= k]
    return sum(n / rank for n, rank in enumerate(ranks, start=1)) / max(_n_relevant(topic, rel), 1)


def _precision(topic: _Topic, k: float, rel: int) -> float:
    return _n_found(topic, k, rel) / k


def _recall(topic: _Topic, k: float, rel: int) -> float:
    return _n_found(topic, k, rel) / max(_n_relevant(topic, rel), 1)


def _n_found(topic: _Topic, k: float, rel: int) -> int:
    return sum(grade >= rel and rank <= k for rank, grade in topic.found)


def _n_relevant(topic: _Topic, rel: int) -> int:
    return sum(grade >= rel for grade in topic.relevant)


# ------------------------------------------------------------------------------------------------------ report


def table(header: Sequence[str], rows: Iterable[Sequence[str | float]]) -> str:
    """Plain aligned text: words to the left, numbers to the right with four digits.

    >>> print(table(["run", "RR@10", "AP"], [["bm25", 0.5, 0.25], ["student", 0.625, 1.0]]))
    run       RR@10      AP
    bm25     0.5000  0.2500
    student  0.6250  1.0000
    """
    cells = [list(header)] + [[f"{x:.4f}" if isinstance(x, float) else x for x in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells
    )


def write_per_query(path: str | Path, results: Results, *, overwrite: bool = False) -> None:
    """Write CSV: a line per run and query, a column per measure."""
    with atomic_file(path, overwrite=overwrite) as out:
        writer = csv.writer(out, lineterminator="\n")
        for number, (name, measures) in enumerate(results.items()):
            if number == 0:
                writer.writerow(["run", "query_id", *measures])
            for query_id in next(iter(measures.values())):
                writer.writerow([name, query_id, *(per_query[query_id] for per_query in measures.values())])


@command(
    "evaluate",
    "evaluate --qrels qrels.dl19.txt --measures nDCG@10 'AP(rel=2)' --baseline run.bm25.txt run.student.txt",
    "Measures: nDCG@k, RR[@k], AP[@k], P@k, R@k; AP(rel=2), RR(rel=2)@10 and so on count relevance from 2 only.",
)
@click.argument("runs", metavar="RUN...", nargs=-1)
@click.option("--qrels", required=True, metavar="QRELS", help="A file, ir_datasets:<id>, or pydocs:test.")
@click.option("--measures", "-m", cls=Runs, multiple=True, default=DEFAULT_MEASURES, metavar="M...", help="Which ones.")
@click.option("--baseline", metavar="RUN", help="Also show each run's difference to this one, with a paired t-test.")
@click.option("--per-query", metavar="FILE.csv", type=click.Path(path_type=Path), help="Write each query's values.")
@click.option("--overwrite", is_flag=True, help="Replace the --per-query file if it exists.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", help="auto is trectools where the run is small.")
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", help="What to print.")
def main(
    runs: tuple[str, ...],
    qrels: str,
    measures: tuple[str, ...],
    baseline: str | None,
    per_query: Path | None,
    overwrite: bool,
    engine: str,
    output_format: str,
) -> None:
    """Measure runs against relevance judgements, as trec_eval -c does."""
    from pyserini_kd import sources

    measures, swallowed = _split_words(measures)
    paths = [*([baseline] if baseline else []), *(path for path in (*runs, *swallowed) if path != baseline)]
    if not runs and not swallowed:
        raise click.UsageError("Missing argument 'RUN...'.")
    if per_query is not None:
        refuse_existing(per_query, overwrite)
    judgements = sources.qrels(qrels)
    results = {path: _evaluate_file(path, judgements, measures, engine) for path in paths}
    if per_query is not None:
        write_per_query(per_query, results, overwrite=overwrite)
    report = _report_json if output_format == "json" else _report_table
    click.echo(report(results, baseline))


def _evaluate_file(path: str, qrels: Qrels, measures: Sequence[str], engine: str) -> dict[str, PerQuery]:
    run = Run.read(path)
    try:
        return evaluate(run, qrels, measures, engine)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _split_words(words: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Measures, and the run files that `--measures A B RUN` swallowed: a word that is no measure but names a file."""
    measures: list[str] = []
    paths: list[str] = []
    for word in words:
        names = word.replace(",", " ").split()
        try:
            for name in names:
                Measure.parse(name)
            measures += names
        except InputError as error:
            if not Path(word).is_file():
                raise InputError(f"{error} (nor is there a run file of that name)") from None
            paths.append(word)
    if not measures:
        raise InputError("--measures names no measure")
    return tuple(dict.fromkeys(measures)), tuple(paths)


def _report_table(results: Results, baseline: str | None) -> str:
    measures = list(next(iter(results.values())))
    short = {path: Path(path).name for path in results}
    names = short if len(set(short.values())) == len(short) else {path: path for path in results}
    text = table(["run", *measures], [[names[path], *map(mean, values.values())] for path, values in results.items()])
    if baseline is not None and len(results) > 1:
        rows = [
            [names[path], *("{:+.4f} ({:.4f})".format(*compare(values[m], results[baseline][m])) for m in measures)]
            for path, values in results.items()
            if path != baseline
        ]
        text += f"\n\nDifference to {names[baseline]} (p-value of a paired t-test)\n" + table(["run", *measures], rows)
    return text


def _report_json(results: Results, baseline: str | None) -> str:
    report: dict[str, dict[str, dict[str, float | None]]] = {}
    for path, values in results.items():
        report[path] = {measure: {"mean": mean(per_query)} for measure, per_query in values.items()}
        if baseline is not None and path != baseline:
            for measure, per_query in values.items():
                difference, p_value = compare(per_query, results[baseline][measure])
                p = None if math.isnan(p_value) else p_value
                report[path][measure] |= {"difference": difference, "p_value": p}
    return json.dumps(report, indent=2)


if __name__ == "__main__":
    main()
