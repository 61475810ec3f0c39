"""Measures of Runs against Qrels, and whether two runs differ by more than chance.

All numbers are trec_eval's, averaged as its `-c` does: every judged query counts, one that the run lacks counts 0, and
queries that nobody judged are ignored. nDCG uses linear gain; negative relevance is none. trectools computes them;
where a run is too large for it, our own kernels do, with equal numbers.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pyserini_kd import caveats, latency, significance
from pyserini_kd.cli import Runs, command
from pyserini_kd.data import Qrels
from pyserini_kd.files import (
    InputError,
    atomic_file,
    command_line,
    refuse_existing_run,
    require_file,
    write_record,
)
from pyserini_kd.measures import DEFAULT_MEASURES, PRESETS, Measure, by_kernels
from pyserini_kd.runs import Run
from pyserini_kd.tables import STYLES, Style

if TYPE_CHECKING:
    import pandas as pd
    import trectools

logger = logging.getLogger(__name__)

PerQuery = dict[str, float]
"""query_id -> value, for every judged query."""
Results = Mapping[str, Mapping[str, PerQuery]]
"""run -> measure -> query_id -> value."""
Comparisons = Mapping[str, Mapping[str, significance.Comparison]]
"""run -> measure -> how it compares to the baseline."""

ENGINES = ("auto", "trectools", "fast")
TRECTOOLS_ROWS = 200_000
"""Rows up to which `auto` asks trectools: five measures then take it 1.2 seconds, and our own kernels 0.02."""
TRECTOOLS_MEASURES = ("nDCG", "RR", "AP", "P", "R", "RBP")
"""What trectools computes rightly. Its Rprec and bpref are wrong, and it has no Judged and no Success."""
TOLERANCE = 1e-6
"""How far a value may be from pytrec_eval's."""
ALPHA = 0.05
"""p-values below it are marked."""
MS = "ms/query"


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
    compute = _by_trectools if engine == "trectools" else by_kernels
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

    For more (other tests, corrections, effect sizes, intervals) see `significance.compare`.

    >>> difference, p_value = compare({"q1": 0.5, "q2": 0.75, "q3": 1.0}, {"q1": 0.5, "q2": 0.5, "q3": 0.5})
    >>> round(difference, 4), round(p_value, 4)
    (0.25, 0.2254)
    """
    found = significance.compare({"baseline": {"": baseline}, "run": {"": per_query}}, "baseline", samples=1)["run"][""]
    return found.difference, found.p_value


def _ids(mapping: Mapping[str, object]) -> str:
    shown = ", ".join(list(mapping)[:3])
    return f"{len(mapping)} queries ({shown}{', ...' if len(mapping) > 3 else ''})"


# ------------------------------------------------------------------------------------------- engine: trectools


def _by_trectools(run: Run, qrels: Qrels, measures: Mapping[str, Measure]) -> dict[str, PerQuery]:
    """Ask trectools only what it computes rightly: ties broken for it, relevance levels cut for it, gaps filled.

    The rest comes from our own kernels.
    """
    import trectools

    trec_run = run.to_trectools(distinct_scores=True)
    trec_qrels: dict[int | None, trectools.TrecQrel] = {}
    results = by_kernels(run, qrels, {n: measure for n, measure in measures.items() if measure.name not in TRECTOOLS_MEASURES})
    for name, measure in measures.items():
        if measure.name not in TRECTOOLS_MEASURES:
            continue
        level = None if measure.name == "nDCG" else measure.rel
        if level not in trec_qrels:
            trec_qrels[level] = _trec_qrel(qrels, level)
        found: dict[str, float] = {}
        if run.n_hits and len(trec_qrels[level].qrels_data):  # trectools fails on empty frames
            evaluator = trectools.TrecEval(trec_run, trec_qrels[level])
            depth = measure.cutoff or max(run.depth, *map(len, qrels.values()))  # the whole run, the whole ideal
            found = _trectools_measure(evaluator, measure, depth).iloc[:, 0].fillna(0.0).to_dict()
        results[name] = {query_id: float(found.get(query_id, 0.0)) for query_id in qrels}
    return {name: results[name] for name in measures}


def _trectools_measure(evaluator: trectools.TrecEval, measure: Measure, depth: int) -> pd.DataFrame:
    if measure.name == "RBP":
        return evaluator.get_rbp(p=measure.p, depth=depth, per_query=True, average_ties=False)[0]
    functions = {
        "nDCG": evaluator.get_ndcg,
        "RR": evaluator.get_reciprocal_rank,
        "AP": evaluator.get_map,
        "P": evaluator.get_precision,
        "R": evaluator.get_recall,
    }
    return functions[measure.name](depth=depth, per_query=True)


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


# -------------------------------------------------------------------------------------------------- cross-check

_TREC_EVAL = {
    "nDCG": ("ndcg", "ndcg_cut"), "RR": ("recip_rank", None), "AP": ("map", "map_cut"), "P": (None, "P"), "R": (None, "recall"),
    "Rprec": ("Rprec", None), "Bpref": ("bpref", None), "Success": (None, "success"),
}  # fmt: skip
"""trec_eval's names, without and with a cut-off. Its recip_rank takes none: the run is cut instead."""


def by_pytrec_eval(run: Run, qrels: Qrels, measures: Sequence[str]) -> dict[str, PerQuery]:
    """The same as `evaluate`, by pytrec_eval; without the measures that it does not know (RBP, Judged)."""
    import pytrec_eval

    groups: dict[tuple[int, int | None], dict[str, str]] = {}
    for name, measure in ((name, Measure.parse(name)) for name in measures):
        if measure.name in _TREC_EVAL:
            whole, cut = _TREC_EVAL[measure.name]
            trec_name = f"{cut}.{measure.cutoff}" if cut and measure.cutoff else str(whole)
            run_cut = measure.cutoff if measure.name == "RR" else None
            groups.setdefault((measure.rel, run_cut), {})[name] = trec_name
    results: dict[str, PerQuery] = {}
    useful = {q: docs for q, docs in qrels.items() if any(rel > 0 for rel in docs.values())}  # others may crash pytrec_eval
    for (level, run_cut), names in groups.items():
        hits = {query_id: run[query_id] for query_id in useful if query_id in run}
        scores = {q: dict(zip(h.doc_ids[:run_cut], h.scores[:run_cut].tolist(), strict=True)) for q, h in hits.items()}
        found = pytrec_eval.RelevanceEvaluator(useful, set(names.values()), relevance_level=level).evaluate(scores)
        for name, trec_name in names.items():
            key = trec_name.replace(".", "_")
            results[name] = {query_id: found[query_id][key] if query_id in found else 0.0 for query_id in qrels}
    return {name: results[name] for name in measures if name in results}


def disagreement(ours: Mapping[str, PerQuery], theirs: Mapping[str, PerQuery]) -> str | None:
    """Where two engines differ by more than 1e-6: one line with the worst case, or None."""
    worst = [
        (abs(values[query_id] - value), measure, query_id)
        for measure, values in theirs.items()
        for query_id, value in ours[measure].items()
        if not abs(values[query_id] - value) <= TOLERANCE
    ]
    if not worst:
        return None
    _, measure, query_id = max(worst)
    values = f"{ours[measure][query_id]:.7f} here, {theirs[measure][query_id]:.7f} by pytrec_eval"
    return f"{len(worst)} values differ by more than {TOLERANCE:g}; the worst is {measure} of query {query_id}: {values}"


# ------------------------------------------------------------------------------------------------------ report


class Report(NamedTuple):
    """All that is shown of one evaluation."""

    results: Results
    baseline: str | None
    comparisons: Comparisons
    settings: Mapping[str, Any]
    """test, correction, samples and seed of the comparisons"""
    ms: Mapping[str, float | None] = {}
    """run -> milliseconds a query, None where not known; empty where nobody asked"""

    def readable(self, output_format: str) -> str:
        """Means, then, with a baseline, how each run differs from it: as plain text, Markdown or LaTeX.

        A table that is pasted elsewhere takes along the command that made it, in a comment.
        """
        style = STYLES[output_format]
        names = {path: style.escape(name) for path, name in _short_names(list(self.results)).items()}
        measures = list(next(iter(self.results.values())))
        headings = [*(style.escape(measure) for measure in measures), *([MS] if self.ms else [])]
        text = style.table(["run", *headings], [[names[path], *self._means(path, style)] for path in self.results])
        text = style.remark.format(" ".join(command_line().split()).replace("-->", "-- >")) + text
        if not self.comparisons:
            return text
        corrected = self.settings["correction"] != "none"
        p_values = ["p", *(["p corrected"] if corrected else [])]
        header = ["run", "measure", "difference", "95% interval", *p_values, "d", "W/T/L", "zeros"]
        rows = [
            [names[path], style.escape(measure), *(style.escape(cell) for cell in _comparison_cells(found, corrected))]
            for path, by_measure in self.comparisons.items()
            for measure, found in by_measure.items()
        ]
        title = style.escape(self._title()) if output_format != "latex" else self._title()
        return f"{text}\n\n{style.title.format(title)}\n{style.table([style.escape(word) for word in header], rows)}"

    def _means(self, path: str, style: Style) -> list[str]:
        cells = []
        for measure, per_query in self.results[path].items():
            cell = f"{mean(per_query):.4f}"
            best = max(f"{mean(values[measure]):.4f}" for values in self.results.values())
            if cell == best and len(self.results) > 1:
                cell = style.best.format(cell)
            found = self.comparisons.get(path, {}).get(measure)
            if self.comparisons:
                cell += style.mark if found is not None and found.corrected < ALPHA else style.no_mark
            cells.append(cell)
        if self.ms:
            ms = self.ms[path]
            cells.append("-" if ms is None else f"{ms:.1f}")
        return cells

    def _title(self) -> str:
        per_query = next(iter(next(iter(self.results.values())).values()))
        count = sum(map(len, self.comparisons.values()))
        correction = significance.correction_words(self.settings["correction"], count)
        baseline = _short_names(list(self.results))[str(self.baseline)]
        test = significance.TEST_NAMES[self.settings["test"]]
        return (
            f"Difference to {baseline}: {test} over {len(per_query)} queries, {correction} (* p < {ALPHA}); "
            "d = Cohen's d; wins/ties/losses; zeros: queries on which it, and the baseline, get nothing"
        )

    def records(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """Run -> measure -> mean, zeros and, with a baseline, its Comparison; None where there is no number."""
        found: dict[str, dict[str, dict[str, float | None]]] = {}
        for path, by_measure in self.results.items():
            found[path] = {m: {"mean": mean(values), "zeros": significance.zeros(values)} for m, values in by_measure.items()}
            for measure, comparison in self.comparisons.get(path, {}).items():
                fields = comparison._asdict().items()
                found[path][measure] |= {name: value if math.isfinite(value) else None for name, value in fields}
            if self.ms:
                found[path][MS] = {"mean": self.ms[path]}
        return found

    def as_csv(self) -> str:
        """A line per run and measure, all digits."""
        fields = dict.fromkeys(["mean", "zeros", *(significance.Comparison._fields if self.comparisons else [])])
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["run", "measure", *fields])
        for path, by_measure in self.records().items():
            for measure, record in by_measure.items():
                writer.writerow([path, measure, *(record.get(field) for field in fields)])
        return out.getvalue().rstrip("\n")

    def as_json(self) -> str:
        """The same as nested objects, with the command and what was compared how."""
        compared = {"baseline": self.baseline, **self.settings} if self.comparisons else {}
        queries = len(next(iter(next(iter(self.results.values())).values())))
        return json.dumps({"command": command_line(), "queries": queries, **compared, "runs": self.records()}, indent=2)


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """File names without their folders, where that leaves them distinct."""
    short = {path: Path(path).name for path in paths}
    return short if len(set(short.values())) == len(short) else {path: path for path in paths}


def _comparison_cells(found: significance.Comparison, corrected: bool) -> list[str]:
    p_values = [found.p_value, found.corrected] if corrected else [found.p_value]
    shown = ["-" if math.isnan(p) else "<0.0001" if p < 0.0001 else f"{p:.4f}" for p in p_values]
    interval = f"[{found.low:+.4f}, {found.high:+.4f}]"
    effect = "-" if math.isnan(found.effect_size) else f"{found.effect_size:+.2f}"
    counts = [f"{found.wins}/{found.ties}/{found.losses}", f"{found.zeros}/{found.baseline_zeros}"]
    return [f"{found.difference:+.4f}", interval, *shown, effect, *counts]


def write_per_query(path: str | Path, results: Results, *, overwrite: bool = False) -> None:
    """Write a line per run and query, a column per measure, as CSV or parquet by the file's ending."""
    path = Path(path)
    _check_per_query(path)
    measures = list(next(iter(results.values())))
    columns: dict[str, list[Any]] = {name: [] for name in ("run", "query_id", *measures)}
    for name, by_measure in results.items():
        query_ids = list(by_measure[measures[0]])
        columns["run"] += [name] * len(query_ids)
        columns["query_id"] += query_ids
        for measure in measures:
            columns[measure] += [by_measure[measure][query_id] for query_id in query_ids]
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet

        with atomic_file(path, overwrite=overwrite, binary=True) as out:
            pyarrow.parquet.write_table(pa.table(columns), out)
        return
    with atomic_file(path, overwrite=overwrite) as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _check_per_query(path: Path) -> None:
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"--per-query writes .csv or .parquet, not {path.name!r}")


# ------------------------------------------------------------------------------------------------------- command


@command(
    "evaluate",
    "evaluate --qrels qrels.dl19.txt --preset dl19 --baseline run.bm25.txt run.student.txt",
    "\b\nMeasures: nDCG@k RR[@k] AP[@k] P@k R@k Rprec Bpref RBP(p=0.8)[@k] Judged@k Success@k; binary ones count\n"
    "relevance from 1, or from 2 as in AP(rel=2), RR(rel=2)@10. Presets: "
    + "".join(f"\n  {name}: {' '.join(preset.measures)}" for name, preset in PRESETS.items()),
)
@click.argument("runs", metavar="RUN...", nargs=-1)
@click.option("--qrels", required=True, metavar="QRELS", help="A file, ir_datasets:<id>, or pydocs:test.")
@click.option("--measures", "-m", cls=Runs, multiple=True, metavar="M...", help=f"[default: {' '.join(DEFAULT_MEASURES)}]")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="The collection's measures, before those of --measures.")
@click.option("--baseline", metavar="RUN", help="Also compare each run to this one.")
@click.option("--test", type=click.Choice(list(significance.TESTS)), help="Against --baseline  [default: t]")
@click.option(
    "--correction", type=click.Choice(list(significance.CORRECTIONS)), help="For all runs x measures  [default: holm]"
)
@click.option("--samples", type=click.IntRange(1), default=significance.SAMPLES, help="Of the bootstrap and randomisation.")
@click.option("--seed", type=click.IntRange(0), default=significance.SEED, help="Of the bootstrap and randomisation.")
@click.option("--per-query", metavar="FILE", type=click.Path(path_type=Path), help="Write each query's values: .csv, .parquet.")
@click.option("--overwrite", is_flag=True, help="Replace the --per-query file if it exists.")
@click.option("--latency", "with_latency", is_flag=True, help="Add ms/query, from the records (.json) beside the runs.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", help="auto is trectools where the run is small.")
@click.option("--cross-check", is_flag=True, help="Fail where a value is further than 1e-6 from pytrec_eval's.")
@click.option("--format", "output_format", type=click.Choice([*STYLES, "csv", "json"]), default="table", help="What to print.")
def main(
    runs: tuple[str, ...],
    qrels: str,
    measures: tuple[str, ...],
    preset: str | None,
    baseline: str | None,
    test: str | None,
    correction: str | None,
    samples: int,
    seed: int,
    per_query: Path | None,
    overwrite: bool,
    with_latency: bool,
    engine: str,
    cross_check: bool,
    output_format: str,
) -> None:
    """Measure runs against relevance judgements, as trec_eval -c does; say where the numbers may mislead."""
    from pyserini_kd import sources

    names, swallowed = split_words(measures)
    names = tuple(dict.fromkeys((*(PRESETS[preset].measures if preset else ()), *names))) or DEFAULT_MEASURES
    paths = run_paths((*runs, *swallowed), baseline)
    if baseline is None and (test or correction):
        raise InputError("--test and --correction compare runs to a --baseline; name one")
    if per_query is not None:
        _check_per_query(per_query)
        refuse_existing_run(per_query, overwrite)
    judgements = sources.qrels(qrels)
    for line in caveats.of_levels(judgements, names, preset):
        logger.warning("%s: %s", qrels, line)
    started = time.monotonic()
    found = _evaluate_files(paths, qrels, judgements, names, engine, cross_check)
    results = {path: one.results for path, one in found.items()}
    measured = time.monotonic()
    settings: dict[str, Any] = {"test": test or "t", "correction": correction or "holm", "samples": samples, "seed": seed}
    comparisons = significance.compare(results, baseline, **settings) if baseline is not None else {}
    seconds = {"measure_seconds": round(measured - started, 3), "compare_seconds": round(time.monotonic() - measured, 3)}
    ms = {path: _latency(path, one.n_queries) for path, one in found.items()} if with_latency else {}
    report = Report(results, baseline, comparisons, settings, ms)
    if per_query is not None:
        write_per_query(per_query, results, overwrite=overwrite)
        config = {"runs": paths, "qrels": qrels, "measures": list(names), "preset": preset, "baseline": baseline}
        config |= settings if baseline is not None else {}
        engines = {path: one.engine for path, one in found.items()}
        write_record(per_query, config=config, engines=engines, results=report.records(), **seconds)
    machine = {"csv": report.as_csv, "json": report.as_json}
    click.echo(machine[output_format]() if output_format in machine else report.readable(output_format))


def _latency(path: str, n_queries: int) -> float | None:
    ms, why = latency.ms_per_query(path, n_queries)
    if ms is None:
        logger.warning("%s: its time is not known: %s", path, why)
    return None if ms is None else round(ms, 4)


def run_paths(runs: Sequence[str], baseline: str | None) -> list[str]:
    """The baseline, then the runs, each once and each there."""
    if not runs:
        raise click.UsageError("Missing argument 'RUN...'.")
    named: dict[Path, str] = {}
    for path in runs:
        other = named.get(Path(path).resolve())
        if other is not None:
            raise InputError(f"run {path} is named twice" + (f" (also as {other})" if other != path else ""))
        named[Path(path).resolve()] = path
    if baseline is not None:
        named.pop(Path(baseline).resolve(), None)  # a pattern such as runs/*.txt may name it too
    paths = [*([] if baseline is None else [baseline]), *named.values()]
    for path in paths:
        require_file(path, "run file")
    return paths


class Measured(NamedTuple):
    """What is kept of a run."""

    results: dict[str, PerQuery]
    engine: str
    n_queries: int
    """of the run, judged or not"""


def _evaluate_files(
    paths: Sequence[str], qrels: str, judgements: Qrels, measures: Sequence[str], engine: str, cross_check: bool
) -> dict[str, Measured]:
    """Read and measure one run after another, and say what should be known of them."""
    from tqdm import tqdm

    found: dict[str, Measured] = {}
    covered: dict[str, Set[str]] = {}
    depths: dict[str, int] = {}
    for path in tqdm(paths, unit="run", disable=None, leave=False):
        run = Run.read(path)
        chosen = choose_engine(run) if engine == "auto" else engine
        try:
            found[path] = Measured(evaluate(run, judgements, measures, chosen), chosen, len(run))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        if cross_check:
            _cross_check(path, run, judgements, found[path].results)
        for line in (*caveats.of_run(run, judgements), *caveats.of_ranks(path), *caveats.of_training(path, run, qrels)):
            logger.warning("%s: %s", path, line)
        covered[path], depths[path] = run.keys() & judgements.keys(), run.depth
    check_common_topics(covered)
    for line in caveats.of_depths(depths, measures):
        logger.warning("%s", line)
    return found


def check_common_topics(covered: Mapping[str, Set[str]]) -> None:
    """InputError where two runs (path -> judged queries that it holds) have no query in common."""
    for one, other in combinations(covered, 2):
        if not covered[one] & covered[other]:
            raise InputError(f"runs {one} and {other} share no judged query, so their means cannot be compared")


def _cross_check(path: str, run: Run, qrels: Qrels, ours: Mapping[str, PerQuery]) -> None:
    theirs = by_pytrec_eval(run, qrels, list(ours))
    wrong = disagreement(ours, theirs)
    if wrong is not None:
        raise click.ClickException(f"{path}: {wrong}")
    skipped = [name for name in ours if name not in theirs]
    text = f"{', '.join(theirs)} equal pytrec_eval's" if theirs else "nothing to compare"
    logger.info("%s: %s%s", path, text, f"; it does not know {', '.join(skipped)}" if skipped else "")


def split_words(words: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Measures, and the run files that `--measures A B RUN` swallowed: a word that is no measure but names a file."""
    measures: list[str] = []
    paths: list[str] = []
    for word in words:
        names = [re.sub(r"\s", "", name) for name in re.split(r"[,\s]+(?![^(]*\))", word) if name]
        try:
            for name in names:
                Measure.parse(name)
            measures += names
        except InputError as error:
            if not Path(word).is_file():
                raise InputError(f"{error} (nor is there a run file of that name)") from None
            paths.append(word)
    if words and not measures:
        raise InputError("--measures names no measure")
    return tuple(dict.fromkeys(measures)), tuple(paths)


if __name__ == "__main__":
    main()
