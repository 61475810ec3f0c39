"""Measure run files: the part that `evaluate` and `report` share, and all of `evaluate`."""

import logging
import re
import time
from collections.abc import Iterator, Mapping, Set
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import model_validator

from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Qrels
from pyserini_kd.evaluation import caveats, run_records, significance
from pyserini_kd.evaluation.engines import PerQuery, by_pytrec_eval, choose_engine, disagreement, evaluate
from pyserini_kd.evaluation.measures import DEFAULT_MEASURES, PRESETS, Measure
from pyserini_kd.evaluation.tables import Report, check_per_query, write_per_query
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file
from pyserini_kd.storage.records import refuse_existing_run, write_record
from pyserini_kd.storage.settings import Settings, option

logger = logging.getLogger(__name__)


class DisagreementError(Exception):
    """A value differs from pytrec_eval's by more than 1e-6."""


class RunFiles(Settings):
    """Settings: the runs to measure, the measures, and the comparison to a baseline."""

    runs: tuple[str, ...] = option("RUN", (), metavar="RUN...")
    qrels: str = option("--qrels", help="A file, ir_datasets:<id>, or pydocs:test.", metavar="QRELS")
    measures: tuple[str, ...] = option(
        "--measures -m", (), f"[default: {' '.join(DEFAULT_MEASURES)}]", metavar="M...", words=True
    )
    preset: Literal["dl19", "dl20", "msmarco", "beir"] | None = option(
        "--preset", None, "Report this collection's measures before those of --measures."
    )
    baseline: str | None = option("--baseline", None, "Also compare each run to this run.", metavar="RUN")
    test: significance.Test = option("--test", "t", "Significance test against --baseline.")
    correction: significance.Correction = option("--correction", "holm", "Correction for testing all runs x measures.")

    @model_validator(mode="after")
    def rules(self) -> Self:
        """Check that the runs exist, each named once, and that a test has a baseline."""
        self.only("test correction", self.baseline, "compares runs to a baseline; give `baseline`")
        for path in self.paths():
            require_file(path, "run file")
        return self

    def names(self) -> tuple[str, ...]:
        """The measures, each once: the preset's, then the named ones; the default measures if there are none."""
        preset = PRESETS[self.preset].measures if self.preset else ()
        return tuple(dict.fromkeys((*preset, *self._words()[0]))) or DEFAULT_MEASURES

    def paths(self) -> list[str]:
        """The baseline, then the other runs."""
        runs = (*self.runs, *self._words()[1])
        if not runs:
            raise InputError("name at least one run file", "runs")
        named: dict[Path, str] = {}
        for path in runs:
            if other := named.get(Path(path).resolve()):
                raise InputError(f"run {path} is named twice" + (f" (also as {other})" if other != path else ""))
            named[Path(path).resolve()] = path
        if self.baseline is None:
            return list(named.values())
        named.pop(Path(self.baseline).resolve(), None)  # a pattern such as runs/*.txt may include it
        return [self.baseline, *named.values()]

    def _words(self) -> tuple[list[str], list[str]]:
        """Split `measures` into (measures, run files), as `--measures A B RUN` also collects the runs that follow."""
        measures, paths = list[str](), list[str]()
        for word in self.measures:
            names = [re.sub(r"\s", "", name) for name in re.split(r"[,\s]+(?![^(]*\))", word) if name]
            try:
                measures += [name for name in names if Measure.parse(name)]
            except InputError as error:
                if not Path(word).is_file():
                    raise InputError(f"{error} (no run file has this name either)") from None
                paths.append(word)
        if self.measures and not measures:
            raise InputError("name at least one measure", "measures")
        return measures, paths


class EvaluateConfig(RunFiles):
    """The options of `evaluate`."""

    samples: int = option("--samples", significance.SAMPLES, "Samples of the bootstrap and randomisation.", ge=1)
    seed: int = option("--seed", significance.SEED, "Seed of the bootstrap and randomisation.", ge=0)
    per_query: Path | None = option("--per-query", None, "Write each query's values to .csv or .parquet.", metavar="FILE")
    overwrite: bool = option("--overwrite", False, "Replace the --per-query file if it exists.")
    latency: bool = option("--latency", False, "Add ms/query, from the records (.json) beside the runs.")
    engine: Literal["auto", "trectools", "fast"] = option("--engine", "auto", "auto: trectools for small runs, else fast.")
    cross_check: bool = option("--cross-check", False, "Fail if a value differs from pytrec_eval's by more than 1e-6.")
    output_format: Literal["table", "markdown", "latex", "csv", "json"] = option("--format", "table", "Output format.")

    @model_validator(mode="after")
    def output_is_free(self) -> Self:
        """Check that the `per_query` file can be written."""
        if self.per_query is not None:
            check_per_query(self.per_query)
            refuse_existing_run(self.per_query, self.overwrite)
        return self


class Measured(NamedTuple):
    """A run file, its measures (`results`) and its caveats (`notes`)."""

    path: str
    run: Run
    results: dict[str, PerQuery]
    engine: str
    notes: list[str]


def measure_files(chosen: RunFiles, qrels: Qrels, engine: str = "auto") -> Iterator[Measured]:
    """Read and measure one run after the other.

    Raises:
        InputError: a run is malformed, or shares no judged query with the qrels or another run.
    """
    from tqdm import tqdm

    names = chosen.names()
    covered: dict[str, Set[str]] = {}
    for path in tqdm(chosen.paths(), unit="run", disable=None, leave=False):
        run = Run.read(path)
        used = choose_engine(run) if engine == "auto" else engine
        try:
            results = evaluate(run, qrels, names, used)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        notes = [*caveats.of_run(run, qrels), *caveats.of_ranks(path), *caveats.of_training(path, run, chosen.qrels)]
        yield Measured(path, run, results, used, notes)
        covered[path] = run.keys() & qrels.keys()
    for one, other in combinations(covered, 2):
        if not covered[one] & covered[other]:
            raise InputError(f"runs {one} and {other} share no judged query, so their means cannot be compared")


def evaluate_files(config: EvaluateConfig) -> Report:
    """Measure run files, compare them to a baseline, log caveats, and write each query's values if `per_query` is set.

    Raises:
        InputError: as `measure_files`.
        DisagreementError: a cross-check found values that differ from pytrec_eval's.
    """
    from pyserini_kd.data import sources

    qrels, names = sources.qrels(config.qrels), config.names()
    for line in caveats.of_levels(qrels, names, config.preset):
        logger.warning("%s: %s", config.qrels, line)
    started = time.monotonic()
    results: dict[str, dict[str, PerQuery]] = {}
    engines: dict[str, str] = {}
    depths: dict[str, int] = {}
    ms: dict[str, float | None] = {}
    for path, run, values, engine, lines in measure_files(config, qrels, config.engine):
        results[path], engines[path], depths[path] = values, engine, run.depth
        if config.cross_check:
            _cross_check(path, run, qrels, values)
        for line in lines:
            logger.warning("%s: %s", path, line)
        if config.latency:
            milliseconds, why = run_records.ms_per_query(path, len(run))
            ms[path] = None if milliseconds is None else round(milliseconds, 4)
            if milliseconds is None:
                logger.warning("%s: time unknown: %s", path, why)
    for line in caveats.of_depths(depths, names):
        logger.warning("%s", line)
    measured = time.monotonic()
    tests: significance.CompareSettings = {"test": config.test, "correction": config.correction}
    tests |= {"samples": config.samples, "seed": config.seed}
    comparisons = {} if config.baseline is None else significance.compare(results, config.baseline, **tests)
    seconds = {"measure_seconds": round(measured - started, 3), "compare_seconds": round(time.monotonic() - measured, 3)}
    report = Report(results, config.baseline, comparisons, tests, ms)
    if config.per_query is not None:
        write_per_query(config.per_query, results, overwrite=config.overwrite)
        made = {"runs": list(results), "qrels": config.qrels, "measures": list(names), "preset": config.preset}
        compared = {"baseline": config.baseline, **tests} if config.baseline is not None else {"baseline": None}
        write_record(config.per_query, config=made | compared, engines=engines, results=report.records(), **seconds)
    return report


def _cross_check(path: str, run: Run, qrels: Qrels, ours: Mapping[str, PerQuery]) -> None:
    theirs = by_pytrec_eval(run, qrels, list(ours))
    if wrong := disagreement(ours, theirs):
        raise DisagreementError(f"{path}: {wrong}")
    skipped = [name for name in ours if name not in theirs]
    text = f"{', '.join(theirs)} equal pytrec_eval's values" if theirs else "nothing to compare with pytrec_eval"
    logger.info("%s: %s%s", path, text, f"; it does not support {', '.join(skipped)}" if skipped else "")
