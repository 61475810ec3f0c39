"""The command `reproduce`."""

from __future__ import annotations

import difflib
import logging
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click

from pyserini_kd.cli import command
from pyserini_kd.evaluation import tables
from pyserini_kd.evaluation.experiments import (
    MATRIX,
    PLACES,
    Condition,
    Outcome,
    commands,
    fill,
    missing,
    read_matrix,
    reproduce,
)
from pyserini_kd.storage.environment import command_line, environment
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import home
from pyserini_kd.storage.records import write_json

logger = logging.getLogger(__name__)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _list(conditions: Iterable[Condition], style: str) -> str:
    if style == "markdown":
        header = ["condition", "what", "measure", "expected", "tolerance", "source"]
        return tables.markdown(
            header,
            [
                [row.name, row.about, measure, _number(value), f"{row.tolerance:g}", row.source]
                for row in conditions
                for measure, value in row.expected.items()
            ],
        )
    lines = []
    for row in conditions:
        lines.append(f"{row.name:26}{row.about}")
        values = ", ".join(f"{measure} {_number(value)}" for measure, value in row.expected.items())
        lines.append(f"{'':26}{values} (+-{row.tolerance:g}; {row.source})")
    return "\n".join(lines)


def _results(conditions: Iterable[Condition], outcomes: Sequence[Outcome], style: str) -> str:
    if style == "markdown":
        rows = {row.name: row for row in conditions}
        header = ["condition", "what", "measure", "expected", "source", "got", "verdict"]
        cells = []
        for o in outcomes:
            row = rows[o.condition]
            cells.append([row.name, row.about, o.measure, _number(o.expected), row.source, _number(o.got), o.verdict])
        return tables.markdown(header, cells)
    header = ["condition", "measure", "expected", "got", "verdict"]
    text = tables.table(header, [[o.condition, o.measure, _number(o.expected), _number(o.got), o.verdict] for o in outcomes])
    reasons: dict[str, dict[str, None]] = {}
    for o in outcomes:
        if o.why:
            reasons.setdefault(f"{o.verdict}, {o.why}", {})[o.condition] = None
    return "\n".join([text, *(f"\n{why}:\n  {', '.join(names)}" for why, names in reasons.items())])


@command(
    "reproduce",
    "pyserini-kd reproduce --condition bm25-scifact --data ~/collections",
    "Under --data are expected: cacm/, beir/scifact/, msmarco-dl19/, msmarco-passage/ (the matrix, reproduce.yaml in the "
    "package, says which files). Exit code 1 if anything failed; what is off or skipped is no failure.",
)
@click.option("--list", "list_them", is_flag=True, help="Print the conditions and stop.")
@click.option("--condition", "names", multiple=True, metavar="NAME", help="Run this one; may be given several times.")
@click.option("--all", "run_all", is_flag=True, help="Run all whose needs are met.")
@click.option("--dry-run", is_flag=True, help="Print the commands, run nothing.")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False, exists=True), help="Folder of real collections.")
@click.option("--directory", type=click.Path(path_type=Path), help="Where indexes and runs go [default: runs/reproduce].")
@click.option("--matrix", type=click.Path(path_type=Path), help="Another matrix than the package's.")
@click.option("--format", "style", default="table", type=click.Choice(["table", "markdown"]), help="What to print.")
@click.pass_context
def main(
    context: click.Context,
    list_them: bool,
    names: tuple[str, ...],
    run_all: bool,
    dry_run: bool,
    data: Path | None,
    directory: Path | None,
    matrix: Path | None,
    style: str,
) -> None:
    """Run known experiments again and compare the measures with what is expected."""
    conditions = read_matrix(matrix or MATRIX)
    if list_them + bool(names) + run_all != 1:
        raise InputError("give one of --list, --condition NAME and --all")
    if names:
        conditions = [_named(name, conditions) for name in dict.fromkeys(names)]
    if list_them:
        click.echo(_list(conditions, style))
        return
    directory = directory or home() / "runs" / "reproduce"
    places = {"directory": str(directory), "data": str(data or PLACES["data"]), "home": str(home())}
    if dry_run:
        for condition in conditions:
            _dry_run(condition, places)
        return
    directory.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    seconds: dict[str, float] = {}
    for condition in conditions:
        started = time.monotonic()
        found = list(reproduce(condition, places))
        said = (f"{o.verdict}, {o.why}" if o.why else f"{o.measure} {_number(o.got)} {o.verdict}" for o in found)
        logger.info("%s: %s", condition.name, "; ".join(dict.fromkeys(said)))
        outcomes += found
        seconds[condition.name] = round(time.monotonic() - started, 2)
    click.echo(_results(conditions, outcomes, style))
    counts = {word: sum(o.verdict == word for o in outcomes) for word in ("OK", "off", "FAIL", "new", "skipped")}
    click.echo("\n" + ", ".join(f"{count} {word}" for word, count in counts.items() if count))
    record = {"command": command_line(), "outcomes": [o._asdict() for o in outcomes], "seconds": seconds}
    write_json(directory / "reproduce.json", record | environment())
    context.exit(1 if counts["FAIL"] else 0)


def _named(name: str, conditions: list[Condition]) -> Condition:
    names = {condition.name: condition for condition in conditions}
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise InputError(f"unknown condition {name!r}; " + (f"did you mean {near[0]}?" if near else "--list shows them"))
    return names[name]


def _dry_run(condition: Condition, places: Mapping[str, str]) -> None:
    click.echo(f"# {condition.name}: {condition.about}")
    if lacks := missing(condition, places):
        click.echo(f"# would be skipped: needs {'; '.join(lacks)}")
    for words in commands(condition, places):
        click.echo(shlex.join(words))
    run, qrels = (fill(text, places, condition.name) for text in (condition.run, condition.qrels))
    click.echo(shlex.join(["pyserini-kd", "evaluate", run, "--qrels", qrels, "--measures", *condition.expected]) + "\n")


if __name__ == "__main__":
    main()
