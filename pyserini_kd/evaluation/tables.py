"""Tables for readers: plain text, Markdown and LaTeX. Numbers have four digits; `-` stands for a number that is not known."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

Rows = Iterable[Sequence[str | float | None]]


def table(header: Sequence[str], rows: Rows) -> str:
    """Plain aligned text: words to the left, numbers to the right with four digits.

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
    """A tabular environment with booktabs' rules; words must be escaped already."""
    text = ["  " + " & ".join(line) + r" \\" for line in _cells(header, rows)]
    body = [r"  \toprule", text[0], r"  \midrule", *text[1:], r"  \bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", *body, r"\end{tabular}"])


def _cells(header: Sequence[str], rows: Rows) -> list[list[str]]:
    return [list(header), *([cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows)]


def number(value: float | None) -> str:
    """A number with four digits, `-` for None."""
    return "-" if value is None else f"{value:.4f}"


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$"}
    return re.sub(r"[\\~^<&%$#_{}]", lambda match: special.get(match.group(), "\\" + match.group()), text)


class Style(NamedTuple):
    """How a format shows a table, a word, a title, the best value of a column, a significant value, a remark."""

    table: Callable[[Sequence[str], Rows], str]
    escape: Callable[[str], str] = str
    title: str = "{}"
    best: str = "{}"
    mark: str = "*"
    no_mark: str = ""
    remark: str = ""
    """A comment that the reader of the finished page does not see. Empty: the format has none."""


STYLES = {
    "table": Style(table, no_mark=" "),
    "markdown": Style(markdown, lambda text: text.replace("|", r"\|"), "{}\n", "**{}**", r"\*", "", "<!-- {} -->\n"),
    "latex": Style(latex, _escape_latex, "% {}", r"\textbf{{{}}}", "$^{*}$", "", "% {}\n"),
}
