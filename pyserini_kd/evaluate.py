"""The command `evaluate`."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import click

from pyserini_kd.cli import Runs, command
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Qrels
from pyserini_kd.evaluation import caveats, latency, significance
from pyserini_kd.evaluation.engines import ENGINES, PerQuery, by_pytrec_eval, choose_engine, disagreement, evaluate
from pyserini_kd.evaluation.measures import DEFAULT_MEASURES, PRESETS, Measure
from pyserini_kd.evaluation.summary import Report, check_per_query, write_per_query
from pyserini_kd.evaluation.tables import STYLES
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file
from pyserini_kd.storage.records import refuse_existing_run, write_record

logger = logging.getLogger(__name__)


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
    from pyserini_kd.data import sources

    names, swallowed = split_words(measures)
    names = tuple(dict.fromkeys((*(PRESETS[preset].measures if preset else ()), *names))) or DEFAULT_MEASURES
    paths = run_paths((*runs, *swallowed), baseline)
    if baseline is None and (test or correction):
        raise InputError("--test and --correction compare runs to a --baseline; name one")
    if per_query is not None:
        check_per_query(per_query)
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
