"""Tables as plain text, Markdown and LaTeX, and the report of an evaluation. `-` stands for an unknown number."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pyserini_kd.evaluation import significance
from pyserini_kd.evaluation.engines import PerQuery, mean
from pyserini_kd.storage.environment import command_line
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file

Rows = Iterable[Sequence[str | float | None]]
Results = Mapping[str, Mapping[str, PerQuery]]
"""run -> measure -> query_id -> value."""
Comparisons = Mapping[str, Mapping[str, significance.Comparison]]
"""run -> measure -> how it compares to the baseline."""
ALPHA = 0.05  # smaller p-values get a mark
MS = "ms/query"


def table(header: Sequence[str], rows: Rows) -> str:
    """Plain aligned text: words on the left, numbers on the right with four decimals.

    >>> print(table(["run", "RR@10", "AP"], [["bm25", 0.5, 0.25], ["student", 0.625, 1.0]]))
    run       RR@10      AP
    bm25     0.5000  0.2500
    student  0.6250  1.0000
    """
    cells = _cells(header, rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells)


def markdown(header: Sequence[str], rows: Rows) -> str:
    """A table in GitHub's Markdown.

    >>> print(markdown(["run", "AP"], [["bm25", 0.25]]))
    | run | AP |
    |:--|--:|
    | bm25 | 0.2500 |
    """
    text = ["| " + " | ".join(line) + " |" for line in _cells(header, rows)]
    return "\n".join([text[0], "|:--" + "|--:" * (len(header) - 1) + "|", *text[1:]])


def latex(header: Sequence[str], rows: Rows) -> str:
    """A tabular environment with booktabs rules. The caller must escape words."""
    text = ["  " + " & ".join(line) + r" \\" for line in _cells(header, rows)]
    body = [r"  \toprule", text[0], r"  \midrule", *text[1:], r"  \bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", *body, r"\end{tabular}"])


def _cells(header: Sequence[str], rows: Rows) -> list[list[str]]:
    return [list(header), *([cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows)]


def number(value: float | None) -> str:
    """A number with four decimals, `-` for None."""
    return "-" if value is None else f"{value:.4f}"


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$"}
    return re.sub(r"[\\~^<&%$#_{}]", lambda match: special.get(match.group(), "\\" + match.group()), text)


class Style(NamedTuple):
    """How a format shows a table, a word, a title, the best value of a column, a significant value and a remark."""

    table: Callable[[Sequence[str], Rows], str]
    escape: Callable[[str], str] = str
    title: str = "{}"
    best: str = "{}"
    mark: str = "*"
    no_mark: str = ""
    remark: str = ""
    """A comment that does not show on the finished page; empty if the format has none."""


STYLES = {
    "table": Style(table, no_mark=" "),
    "markdown": Style(markdown, lambda text: text.replace("|", r"\|"), "{}\n", "**{}**", r"\*", "", "<!-- {} -->\n"),
    "latex": Style(latex, _escape_latex, "% {}", r"\textbf{{{}}}", "$^{*}$", "", "% {}\n"),
}


class Report(NamedTuple):
    """The results of one evaluation."""

    results: Results
    baseline: str | None
    comparisons: Comparisons
    settings: significance.CompareSettings
    ms: Mapping[str, float | None] = {}  # run -> milliseconds per query, None if unknown; empty without `latency`

    def shown(self, output_format: str) -> str:
        """The report as `table`, `markdown`, `latex`, `csv` or `json`."""
        if output_format in STYLES:
            return self.readable(output_format)
        return self.as_csv() if output_format == "csv" else self.as_json()

    def readable(self, output_format: str) -> str:
        """Means and comparisons to the baseline as plain text, Markdown or LaTeX; the last two include the command."""
        style = STYLES[output_format]
        names = {path: style.escape(name) for path, name in _short_names(self.results).items()}
        measures = list(next(iter(self.results.values())))
        headings = [*(style.escape(measure) for measure in measures), *([MS] if self.ms else [])]
        text = style.table(["run", *headings], [[names[path], *self._means(path, style)] for path in self.results])
        text = style.remark.format(" ".join(command_line().split()).replace("-->", "-- >")) + text
        if not self.comparisons:
            return text
        corrected = self.settings["correction"] != "none"
        p_values = ["p", *(["p corrected"] if corrected else [])]
        header = ["run", "measure", "difference", "95% interval", *p_values, "d", "W/T/L", "zeros"]
        pairs = [(path, *pair) for path, by_measure in self.comparisons.items() for pair in by_measure.items()]
        cells = [(path, [measure, *_comparison_cells(found, corrected)]) for path, measure, found in pairs]
        rows = [[names[path], *map(style.escape, line)] for path, line in cells]
        title = style.escape(self._title()) if output_format != "latex" else self._title()
        return f"{text}\n\n{style.title.format(title)}\n{style.table(list(map(style.escape, header)), rows)}"

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
        correction = significance.correction_words(self.settings["correction"], sum(map(len, self.comparisons.values())))
        tested = f"{significance.TEST_NAMES[self.settings['test']]} over {self._n_queries()} queries, {correction}"
        return (
            f"Difference to {_short_names(self.results)[str(self.baseline)]}: {tested} (* p < {ALPHA}); "
            "d = Cohen's d; W/T/L = wins/ties/losses; zeros = queries with value 0 in the run/in the baseline"
        )

    def _n_queries(self) -> int:
        return len(next(iter(next(iter(self.results.values())).values())))

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
        """One line per run and measure, with all digits."""
        fields = dict.fromkeys(["mean", "zeros", *(significance.Comparison._fields if self.comparisons else [])])
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["run", "measure", *fields])
        for path, by_measure in self.records().items():
            writer.writerows([path, measure, *map(record.get, fields)] for measure, record in by_measure.items())
        return out.getvalue().rstrip("\n")

    def as_json(self) -> str:
        """The records with the command and the settings of the comparison."""
        compared = {"baseline": self.baseline, **self.settings} if self.comparisons else {}
        found = {"command": command_line(), "queries": self._n_queries(), **compared, "runs": self.records()}
        return json.dumps(found, indent=2)


def _short_names(paths: Iterable[str]) -> dict[str, str]:
    """File names without folders, if they are distinct."""
    short = {path: Path(path).name for path in paths}
    return short if len(set(short.values())) == len(short) else {path: path for path in short}


def _comparison_cells(found: significance.Comparison, corrected: bool) -> list[str]:
    p_values = [found.p_value, found.corrected] if corrected else [found.p_value]
    shown = ["-" if math.isnan(p) else "<0.0001" if p < 0.0001 else f"{p:.4f}" for p in p_values]
    interval = f"[{found.low:+.4f}, {found.high:+.4f}]"
    effect = "-" if math.isnan(found.effect_size) else f"{found.effect_size:+.2f}"
    counts = [f"{found.wins}/{found.ties}/{found.losses}", f"{found.zeros}/{found.baseline_zeros}"]
    return [f"{found.difference:+.4f}", interval, *shown, effect, *counts]


def write_per_query(path: str | Path, results: Results, *, overwrite: bool = False) -> None:
    """Write one line per run and query and one column per measure, as CSV or parquet by the file name's ending."""
    path = Path(path)
    check_per_query(path)
    measures = list(next(iter(results.values())))
    lines = [(run, query_id) for run, by_measure in results.items() for query_id in by_measure[measures[0]]]
    columns: dict[str, list[str | float]] = {"run": [run for run, _ in lines], "query_id": [query_id for _, query_id in lines]}
    columns |= {measure: [results[run][measure][query_id] for run, query_id in lines] for measure in measures}
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


def check_per_query(path: Path) -> None:
    """InputError unless the file's name ends in .csv or .parquet."""
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"must end in .csv or .parquet, not {path.name!r}", "per_query")
