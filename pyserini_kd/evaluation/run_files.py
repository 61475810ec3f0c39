"""Measure run files: what `evaluate` and `report` share, and the whole of `evaluate`."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence, Set
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import model_validator

from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Qrels
from pyserini_kd.evaluation import caveats, latency, significance
from pyserini_kd.evaluation.engines import PerQuery, by_pytrec_eval, choose_engine, disagreement, evaluate
from pyserini_kd.evaluation.measures import DEFAULT_MEASURES, PRESETS, Measure
from pyserini_kd.evaluation.summary import Report, write_per_query
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file
from pyserini_kd.storage.records import write_record
from pyserini_kd.storage.settings import Settings, option

logger = logging.getLogger(__name__)


class DisagreementError(Exception):
    """A value is further than 1e-6 from pytrec_eval's."""


class RunFiles(Settings):
    """Which runs are measured, by which measures, and how they are compared."""

    runs: Annotated[tuple[str, ...], option("RUN", metavar="RUN...")] = ()
    qrels: Annotated[str, option("--qrels", metavar="QRELS", help="A file, ir_datasets:<id>, or pydocs:test.")]
    measures: Annotated[
        tuple[str, ...],
        option("--measures", "-m", words=True, metavar="M...", help=f"[default: {' '.join(DEFAULT_MEASURES)}]"),
    ] = ()
    preset: Annotated[
        Literal["dl19", "dl20", "msmarco", "beir"] | None,
        option("--preset", help="The collection's measures, before those of --measures."),
    ] = None
    baseline: Annotated[str | None, option("--baseline", metavar="RUN", help="Also compare each run to this one.")] = None
    test: Annotated[significance.Test, option("--test", help="Against --baseline.")] = "t"
    correction: Annotated[significance.Correction, option("--correction", help="For all runs x measures.")] = "holm"

    @model_validator(mode="after")
    def rules(self) -> Self:
        """Measures and runs are there, each run once."""
        self.only("test correction", self.baseline, "compares runs to a baseline; name one")
        for path in self.paths():
            require_file(path, "run file")
        return self

    def names(self) -> tuple[str, ...]:
        """The measures, each once: those of the preset, then the others; the default ones if none was named."""
        preset = PRESETS[self.preset].measures if self.preset else ()
        return tuple(dict.fromkeys((*preset, *self._words()[0]))) or DEFAULT_MEASURES

    def paths(self) -> list[str]:
        """The baseline, then the other runs."""
        runs = (*self.runs, *self._words()[1])
        if not runs:
            raise InputError("name at least one run file", "runs")
        named: dict[Path, str] = {}
        for path in runs:
            other = named.get(Path(path).resolve())
            if other is not None:
                raise InputError(f"run {path} is named twice" + (f" (also as {other})" if other != path else ""))
            named[Path(path).resolve()] = path
        if self.baseline is None:
            return list(named.values())
        named.pop(Path(self.baseline).resolve(), None)  # a pattern such as runs/*.txt may name it too
        return [self.baseline, *named.values()]

    def _words(self) -> tuple[list[str], list[str]]:
        """(measures, run files) of `measures`. `--measures A B RUN` also takes the words of runs that follow it."""
        measures: list[str] = []
        paths: list[str] = []
        for word in self.measures:
            names = [re.sub(r"\s", "", name) for name in re.split(r"[,\s]+(?![^(]*\))", word) if name]
            try:
                measures += [name for name in names if Measure.parse(name)]
            except InputError as error:
                if not Path(word).is_file():
                    raise InputError(f"{error} (nor is there a run file of that name)") from None
                paths.append(word)
        if self.measures and not measures:
            raise InputError("no measure is named", "measures")
        return measures, paths


class Measured(NamedTuple):
    """What is kept of a run: its results, and the number of its queries, judged or not."""

    results: dict[str, PerQuery]
    engine: str
    n_queries: int


def evaluate_files(
    chosen: RunFiles,
    *,
    samples: int = significance.SAMPLES,
    seed: int = significance.SEED,
    engine: str = "auto",
    cross_check: bool = False,
    with_latency: bool = False,
    per_query: Path | None = None,
    overwrite: bool = False,
) -> Report:
    """Measure run files and compare them to a baseline; log the caveats.

    `samples` and `seed` are those of `significance.compare`, `engine` that of `evaluate`. `with_latency` adds the time per
    query. `per_query` is a .csv or .parquet file for the values of each query; a record is written beside it.

    Raises:
        InputError: a run is malformed, or shares no judged query with the qrels or another run.
        DisagreementError: `cross_check` found values that differ from pytrec_eval's.
    """
    from pyserini_kd.data import sources

    qrels, names, paths = sources.qrels(chosen.qrels), chosen.names(), chosen.paths()
    for line in caveats.of_levels(qrels, names, chosen.preset):
        logger.warning("%s: %s", chosen.qrels, line)
    started = time.monotonic()
    found = _measure_files(paths, chosen.qrels, qrels, names, engine, cross_check)
    results = {path: one.results for path, one in found.items()}
    measured = time.monotonic()
    tests: significance.CompareSettings = {
        "test": chosen.test,
        "correction": chosen.correction,
        "samples": samples,
        "seed": seed,
    }
    comparisons = {} if chosen.baseline is None else significance.compare(results, chosen.baseline, **tests)
    compared = time.monotonic()
    ms = {path: _latency(path, one.n_queries) for path, one in found.items()} if with_latency else {}
    report = Report(results, chosen.baseline, comparisons, tests, ms)
    if per_query is not None:
        write_per_query(per_query, results, overwrite=overwrite)
        write_record(
            per_query,
            config={"runs": paths, "qrels": chosen.qrels, "measures": list(names), "preset": chosen.preset}
            | {"baseline": chosen.baseline, **(tests if chosen.baseline is not None else {})},
            engines={path: one.engine for path, one in found.items()},
            results=report.records(),
            measure_seconds=round(measured - started, 3),
            compare_seconds=round(compared - measured, 3),
        )
    return report


def _measure_files(
    paths: Sequence[str], qrels_name: str, qrels: Qrels, measures: Sequence[str], engine: str, cross_check: bool
) -> dict[str, Measured]:
    """Read and measure one run after the other."""
    from tqdm import tqdm

    found: dict[str, Measured] = {}
    covered: dict[str, Set[str]] = {}
    depths: dict[str, int] = {}
    for path in tqdm(paths, unit="run", disable=None, leave=False):
        run = Run.read(path)
        chosen = choose_engine(run) if engine == "auto" else engine
        try:
            found[path] = Measured(evaluate(run, qrels, measures, chosen), chosen, len(run))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        if cross_check:
            _cross_check(path, run, qrels, found[path].results)
        for line in (*caveats.of_run(run, qrels), *caveats.of_ranks(path), *caveats.of_training(path, run, qrels_name)):
            logger.warning("%s: %s", path, line)
        covered[path], depths[path] = run.keys() & qrels.keys(), run.depth
    check_common_topics(covered)
    for line in caveats.of_depths(depths, measures):
        logger.warning("%s", line)
    return found


def check_common_topics(covered: Mapping[str, Set[str]]) -> None:
    """InputError if two runs (path -> its judged queries) have no query in common."""
    for one, other in combinations(covered, 2):
        if not covered[one] & covered[other]:
            raise InputError(f"runs {one} and {other} share no judged query, so their means cannot be compared")


def _cross_check(path: str, run: Run, qrels: Qrels, ours: Mapping[str, PerQuery]) -> None:
    theirs = by_pytrec_eval(run, qrels, list(ours))
    wrong = disagreement(ours, theirs)
    if wrong is not None:
        raise DisagreementError(f"{path}: {wrong}")
    skipped = [name for name in ours if name not in theirs]
    text = f"{', '.join(theirs)} equal pytrec_eval's" if theirs else "nothing to compare"
    logger.info("%s: %s%s", path, text, f"; it does not know {', '.join(skipped)}" if skipped else "")


def _latency(path: str, n_queries: int) -> float | None:
    ms, why = latency.ms_per_query(path, n_queries)
    if ms is None:
        logger.warning("%s: its time is not known: %s", path, why)
    return None if ms is None else round(ms, 4)
