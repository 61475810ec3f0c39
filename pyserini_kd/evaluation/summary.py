"""The tables of an evaluation."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pyserini_kd.evaluation import significance
from pyserini_kd.evaluation.engines import PerQuery, mean
from pyserini_kd.evaluation.tables import STYLES, Style
from pyserini_kd.storage.environment import command_line
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file

Results = Mapping[str, Mapping[str, PerQuery]]
"""run -> measure -> query_id -> value."""
Comparisons = Mapping[str, Mapping[str, significance.Comparison]]
"""run -> measure -> how it compares to the baseline."""
ALPHA = 0.05  # smaller p-values are marked
MS = "ms/query"


class Report(NamedTuple):
    """The results of one evaluation."""

    results: Results
    baseline: str | None
    comparisons: Comparisons
    settings: significance.CompareSettings
    ms: Mapping[str, float | None] = {}  # run -> milliseconds per query, None if not known; empty if nobody asked

    def shown(self, output_format: str) -> str:
        """The report as `table`, `markdown`, `latex`, `csv` or `json`."""
        machine = {"csv": self.as_csv, "json": self.as_json}
        return machine[output_format]() if output_format in machine else self.readable(output_format)

    def readable(self, output_format: str) -> str:
        """Means and the comparisons to the baseline as plain text, Markdown or LaTeX; the last two with the command."""
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
        ms = self.ms.get(path)
        return [*cells, *(["-" if ms is None else f"{ms:.1f}"] if self.ms else [])]

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
        """Run -> measure -> mean, zeros and, with a baseline, the Comparison. None stands for NaN and infinity."""
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
        """A line per run and measure, with all digits."""
        fields = dict.fromkeys(["mean", "zeros", *(significance.Comparison._fields if self.comparisons else [])])
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["run", "measure", *fields])
        for path, by_measure in self.records().items():
            for measure, record in by_measure.items():
                writer.writerow([path, measure, *(record.get(field) for field in fields)])
        return out.getvalue().rstrip("\n")

    def as_json(self) -> str:
        """The records with the command and the settings of the comparison."""
        compared = {"baseline": self.baseline, **self.settings} if self.comparisons else {}
        queries = len(next(iter(next(iter(self.results.values())).values())))
        return json.dumps({"command": command_line(), "queries": queries, **compared, "runs": self.records()}, indent=2)


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """File names without their folders, if they are distinct."""
    short = {path: Path(path).name for path in paths}
    return short if len(set(short.values())) == len(short) else dict(zip(paths, paths, strict=True))


def _comparison_cells(found: significance.Comparison, corrected: bool) -> list[str]:
    p_values = [found.p_value, found.corrected] if corrected else [found.p_value]
    shown = ["-" if math.isnan(p) else "<0.0001" if p < 0.0001 else f"{p:.4f}" for p in p_values]
    interval = f"[{found.low:+.4f}, {found.high:+.4f}]"
    effect = "-" if math.isnan(found.effect_size) else f"{found.effect_size:+.2f}"
    counts = [f"{found.wins}/{found.ties}/{found.losses}", f"{found.zeros}/{found.baseline_zeros}"]
    return [f"{found.difference:+.4f}", interval, *shown, effect, *counts]


def write_per_query(path: str | Path, results: Results, *, overwrite: bool = False) -> None:
    """Write a line per run and query, a column per measure: CSV or parquet, by the ending of the file's name."""
    path = Path(path)
    check_per_query(path)
    measures = list(next(iter(results.values())))
    rows = [
        (run, query_id, *(by_measure[measure][query_id] for measure in measures))
        for run, by_measure in results.items()
        for query_id in by_measure[measures[0]]
    ]
    header = ("run", "query_id", *measures)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet

        with atomic_file(path, overwrite=overwrite, binary=True) as out:
            pyarrow.parquet.write_table(pa.table(dict(zip(header, zip(*rows, strict=True), strict=True))), out)
        return
    with atomic_file(path, overwrite=overwrite) as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def check_per_query(path: Path) -> None:
    """InputError unless the file's name ends in .csv or .parquet."""
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"writes .csv or .parquet, not {path.name!r}", "per_query")
