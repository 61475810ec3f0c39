"""Figures for papers from the data of the report page, as PDF, SVG or PNG. The same data give the same bytes.

Colours are those of Okabe and Ito (2008), without yellow, which is too pale on paper. Markers and line styles differ too, so
figures stay readable in black and white. `report.js` uses the same order of colours, markers and styles.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyserini_kd.storage.files import atomic_file, refuse_existing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = dict[str, Any]
"""Data of the report page, or a part of them. `page.collect` makes them; `report.js` reads them."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv*PX"
LINES = ("-", "--", ":", "-.")
STYLE: Json = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e0e0e0",
    "grid.linewidth": 0.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "lines.markeredgewidth": 0.4,
    "pdf.fonttype": 42,  # TrueType: many publishers refuse type 3 fonts
    "svg.hashsalt": "pyserini_kd",
    "text.parse_math": False,  # names may contain dollar signs
}
METADATA = {"pdf": ("Subject", "CreationDate"), "svg": ("Description", "Date"), "png": ("Description", "Date")}
"""Format -> metadata fields for the command that made the figure and for the date, which is left out."""


def draw(data: Json, folder: Path, figure_format: str, *, overwrite: bool = False) -> list[Path]:
    """Draw pareto, recall, wins (one per system) and loss (one per stage) by the first measure, where there are data."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    pictures: list[tuple[Path, bytes]] = []
    settings: Any = {**matplotlib.rcParamsDefault, **STYLE}  # the user's settings would change the bytes
    with matplotlib.rc_context(settings):
        for name, figure in _figures(data):
            path = folder / f"{name}.{figure_format}"
            refuse_existing(path, overwrite)
            FigureCanvasAgg(figure)
            out = io.BytesIO()
            about, date = METADATA[figure_format]
            metadata = {about: data["command"], date: None}
            figure.savefig(out, format=figure_format, dpi=300, bbox_inches="tight", metadata=metadata)
            pictures.append((path, out.getvalue()))
    for path, content in pictures:
        with atomic_file(path, overwrite=overwrite, binary=True) as file:
            file.write(content)
    return [path for path, _ in pictures]


def _figures(data: Json) -> Iterator[tuple[str, Figure]]:
    if any(system["ms"] is not None for system in data["systems"]):
        yield "pareto", _pareto(data)
    yield "recall", _recall(data)
    for number, system in enumerate(data["systems"]):
        if data["baseline"] not in (None, number):
            yield f"wins.{number}.{_safe(system['name'])}", _wins(data, number)
    for number, stage in enumerate(data["training"]):
        if stage["losses"]:
            yield f"loss.{number}.{_safe(stage['name'])}", _loss(stage)


def _safe(name: str) -> str:
    """A name that is valid on any file system."""
    return "".join(c if c.isascii() and c.isalnum() or c in "-_.+" else "-" for c in name)[:80]


def _axes(width: float = 3.4, height: float = 2.4) -> tuple[Figure, Axes]:
    """A figure as wide as a column of a two-column paper."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _look(number: int) -> Json:
    colour = COLOURS[number % len(COLOURS)]
    look = {"color": colour, "marker": MARKERS[number % len(MARKERS)], "linestyle": LINES[number % len(LINES)]}
    return look | {"markeredgecolor": "black"}  # separates overlapping markers


def _pareto(data: Json) -> Figure:
    """Effectiveness against latency (log axis), with a line through the undominated systems (filled markers).

    Names stand beside the points, or in a legend if one of them has no room.
    """
    figure, axes = _axes()
    front = data["fronts"][0]
    points = {n: (s["ms"], s["means"][0], s["name"]) for n, s in enumerate(data["systems"]) if s["ms"] is not None}
    along = [points[n][:2] for n in front]
    axes.plot([ms for ms, _ in along], [value for _, value in along], "-", color="#777777", linewidth=1)
    for n, (ms, value, name) in points.items():
        look = _look(n) | {"linestyle": "none", "markersize": 6}
        if n not in front:
            look |= {"markerfacecolor": "white", "markeredgecolor": look["color"], "markeredgewidth": 1.2}
        axes.plot([ms], [value], label=name, **look)
    axes.margins(0.12)
    _log_axis(axes, "ms per query")
    axes.set_ylabel(data["measures"][0])
    if not _labelled(figure, axes, list(points.values()), along):
        _legend(figure)
    return figure


SIDES = (
    ("left", "center", 6, 0), ("right", "center", -6, 0), ("center", "bottom", 0, 5), ("center", "top", 0, -5),
    ("left", "bottom", 4, 3), ("left", "top", 4, -3), ("right", "bottom", -4, 3), ("right", "top", -4, -3),
)  # fmt: skip
"""Positions of a name: alignment, and offset from its marker in points."""


def _labelled(
    figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]], along: Sequence[tuple[float, float]]
) -> bool:
    """Write each name beside its point without overlaps. If one name has no room, write none and return False."""
    import numpy as np
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    line = axes.transData.transform(along) if along else np.empty((0, 2))
    steps = np.linspace(0, 1, 100)[:, None]
    dots = [a + (b - a) * step for a, b in zip(line, line[1:], strict=False) for step in steps]
    marks = axes.transData.transform([(x, y) for x, y, _ in points])
    taken = [Bbox.from_extents(*(at - size), *(at + size)) for size, ats in ((1, dots), (5, marks)) for at in ats]
    room, written = axes.get_window_extent(), []
    for x, y, name in points:
        for across, up, right, above in SIDES:
            place = (right, above)
            note = axes.annotate(name, (x, y), place, textcoords="offset points", fontsize=7, ha=across, va=up)
            box = note.get_window_extent()
            inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
            if inside and not box.count_overlaps(taken):
                taken.append(box)
                written.append(note)
                break
            note.remove()
        else:
            for note in written:
                note.remove()
            return False
    return True


def _recall(data: Json) -> Figure:
    figure, axes = _axes()
    for n, system in enumerate(data["systems"]):
        values = [value for value in system["recall"] if value is not None]
        axes.plot(data["depths"][: len(values)], values, label=system["name"], **_look(n))
    _log_axis(axes, "depth")
    level = data["level"]
    axes.set_ylabel("recall" if level == 1 else f"recall (relevance from {level})")
    axes.set_ylim(0, 1.02)
    _legend(figure)
    return figure


def _wins(data: Json, number: int) -> Figure:
    """Differences to the baseline by query, largest first: wins above the line, losses below."""
    ours, theirs = data["values"][number][0], data["values"][data["baseline"]][0]
    differences = sorted(((one - other) / 1e4 for one, other in zip(ours, theirs, strict=True)), reverse=True)
    figure, axes = _axes(height=1.8)
    for sign, colour in ((1, COLOURS[0]), (-1, COLOURS[1])):
        heights = [value if value * sign > 0 else 0 for value in differences]
        axes.fill_between(range(len(heights) + 1), [*heights, 0], step="post", color=colour, linewidth=0)
    axes.axhline(0, color="black", lw=0.6)
    axes.set_xlim(0, len(differences))
    axes.set_xlabel("queries")
    axes.set_ylabel(f"Δ {data['measures'][0]}")
    wins, losses = sum(value > 0 for value in differences), sum(value < 0 for value in differences)
    names = " − ".join(data["systems"][n]["name"] for n in (number, data["baseline"]))
    axes.set_title(f"{names}: {wins} wins, {losses} losses", fontsize=8, loc="left")
    return figure


def _loss(stage: Json) -> Figure:
    figure, axes = _axes()
    for n, (term, curve) in enumerate(stage["losses"].items()):
        axes.plot([step for step, _ in curve], [value for _, value in curve], label=f"{stage['name']}: {term}", **_look(n))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    _legend(figure)
    return figure


def _log_axis(axes: Axes, label: str) -> None:
    """A log axis with plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(label)


def _legend(figure: Figure) -> None:
    """A legend below the plot, outside the axes."""
    figure.legend(loc="outside lower center", ncols=3, fontsize=7)
