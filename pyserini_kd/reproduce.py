"""Known experiments run again: the commands, the measures to expect, and what came out, in the manner of Pyserini's 2CR.

The experiments stand in `reproduce.yaml` beside this file (`--matrix` takes another), which says what a row holds.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.metadata
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from pyserini_kd import doctor, evaluate, sources, tables
from pyserini_kd.cli import command
from pyserini_kd.files import InputError, command_line, environment, home, require_file, write_json
from pyserini_kd.measures import Measure
from pyserini_kd.runs import Run

logger = logging.getLogger(__name__)

MATRIX = Path(__file__).with_name("reproduce.yaml")
OFF = 5  # times the tolerance, up to which a value is off but no failure: other versions and processors can do that


@dataclasses.dataclass(frozen=True)
class Condition:
    """A row of the matrix; its fields are explained there."""

    name: str
    about: str
    run: str
    qrels: str
    expected: dict[str, float | None]
    source: str
    commands: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    tolerance: float = 0.0001


class Outcome(NamedTuple):
    """What became of one measure of a condition: OK, off, FAIL, skipped, or new (nothing was expected)."""

    condition: str
    measure: str
    expected: float | None
    got: float | None
    verdict: str
    why: str = ""


# -------------------------------------------------------------------------------------------------------- matrix


def read_matrix(path: Path) -> list[Condition]:
    """The conditions of a matrix file.

    Raises:
        InputError: no YAML, or a row that lacks something, holds something unknown, or repeats a name.
    """
    import yaml

    require_file(path, "matrix")
    try:
        matrix = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', None) or error})") from error
    rows = matrix.get("conditions") if isinstance(matrix, dict) else None
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: expected `conditions:`, a list of rows")
    conditions = [_condition(row, f"{path}: row {number}") for number, row in enumerate(rows, start=1)]
    names = [condition.name for condition in conditions]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: two rows are named {name}")
    return conditions


def _condition(row: Any, where: str) -> Condition:
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected `name: ...` and so on, found {type(row).__name__}")
    if isinstance(row.get("name"), str):
        where += f" ({row['name']})"
    _check_keys(row, where)
    row = row | {key: tuple(_texts(row.get(key) or [], f"{where}: `{key}`")) for key in ("commands", "needs")}
    condition = Condition(**row)
    _check_measures(condition, where)
    for text in (condition.run, condition.qrels, *condition.needs):
        _fill(text, PLACES, where)
    for text in condition.commands:
        _words(text, PLACES, where)
    return condition


def _check_keys(row: dict[str, Any], where: str) -> None:
    fields = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(Condition)}
    for key in row:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(fields)}"
            raise InputError(f"{where}: unknown key `{key}`; {hint}")
    for key, needed in fields.items():
        if needed and not row.get(key):
            raise InputError(f"{where}: `{key}` is missing")
        if key in ("name", "about", "run", "qrels", "source") and not isinstance(row[key], str):
            raise InputError(f"{where}: `{key}` must be text, found {row[key]!r}")


def _check_measures(condition: Condition, where: str) -> None:
    tolerance, expected = condition.tolerance, condition.expected
    if not _is_number(tolerance) or tolerance < 0:
        raise InputError(f"{where}: `tolerance` must be a number of 0 or more, found {tolerance!r}")
    if not isinstance(expected, dict):
        raise InputError(f"{where}: `expected` must be `measure: value`, found {expected!r}")
    for measure, value in expected.items():
        if value is not None and not _is_number(value):
            raise InputError(f"{where}: `expected` {measure} must be a number or null, found {value!r}")
        try:
            Measure.parse(str(measure))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


DEEP = 20  # lists in lists


def _texts(value: Any, where: str, depth: int = 0) -> Iterator[str]:
    """The texts of a list, which may hold lists of texts (YAML's aliases)."""
    if not isinstance(value, list) or depth > DEEP:
        raise InputError(f"{where} must be a list of texts, found {'one in itself' if depth > DEEP else repr(value)}")
    for item in value:
        if isinstance(item, list):
            yield from _texts(item, where, depth + 1)
        elif isinstance(item, str):
            yield item
        else:
            raise InputError(f"{where} must be a list of texts, found {item!r} in it")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# ------------------------------------------------------------------------------------------------------- running

PLACES = {"directory": "DIRECTORY", "data": "DATA", "home": "HOME"}  # as shown where a place is not known


def _fill(text: str, places: Mapping[str, str], where: str) -> str:
    try:
        return text.format_map(places)
    except (KeyError, ValueError, IndexError, AttributeError, TypeError):
        known = ", ".join(f"{{{name}}}" for name in PLACES)
        raise InputError(f"{where}: {text!r} names a place that is unknown; known: {known}") from None


def _words(text: str, places: Mapping[str, str], where: str) -> list[str]:
    """The words of a command, places filled in after it was cut, so that a path may hold blanks."""
    try:
        words = [_fill(word, places, where) for word in shlex.split(text)]
    except ValueError as error:
        raise InputError(f"{where}: {text!r} is no command ({error})") from error
    if words[:1] != ["pyserini-kd"] and words[:2] != ["python", "-m"]:
        raise InputError(f"{where}: a command must begin with `pyserini-kd` or `python -m`, found {text!r}")
    return words


def missing(condition: Condition, places: Mapping[str, str]) -> list[str]:
    """What a condition needs and this machine lacks."""
    return [lack for need in condition.needs if (lack := _lack(need, places))]


def _lack(need: str, places: Mapping[str, str]) -> str | None:
    if need == "hub":
        return _hub()
    if "==" in need:
        name, _, version = need.partition("==")
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        return None if found == version else f"{need}, found {found}"
    if "{data}" in need and places["data"] == PLACES["data"]:
        return f"--data DIR with {need.removeprefix('{data}/')}"
    path = _fill(need, places, "needs")
    return None if Path(path).exists() else path


@functools.cache
def _hub() -> str | None:
    """Why there is no network, if there is none."""
    finding = next(doctor.hub())
    return None if finding.mark == "OK" else f"network: {finding.found}"


def reproduce(condition: Condition, places: Mapping[str, str]) -> Iterator[Outcome]:
    """Run a condition's commands and judge its measures."""
    name = condition.name

    def all_measures(verdict: str, why: str) -> Iterator[Outcome]:
        return (Outcome(name, measure, value, None, verdict, why) for measure, value in condition.expected.items())

    if lacks := missing(condition, places):
        yield from all_measures("skipped", f"needs {'; '.join(lacks)}")
        return
    for words in commands(condition, places):
        logger.info("$ %s", shlex.join(words))
        begin = [sys.executable, "-m", "pyserini_kd"] if words[0] == "pyserini-kd" else [sys.executable]
        code = subprocess.run([*begin, *words[1:]], stdout=2, check=False).returncode  # stdout is for our results
        if code:
            yield from all_measures("FAIL", f"exit code {code} of: {shlex.join(words)}")
            return
    try:
        run = Run.read(_fill(condition.run, places, name))
        values = evaluate.evaluate(run, sources.qrels(_fill(condition.qrels, places, name)), list(condition.expected))
    except InputError as error:
        yield from all_measures("FAIL", str(error))
        return
    for measure, expected in condition.expected.items():
        got = evaluate.mean(values[measure])
        yield Outcome(name, measure, expected, got, verdict(got, expected, condition.tolerance))


def commands(condition: Condition, places: Mapping[str, str]) -> list[list[str]]:
    """The commands of a condition, in words."""
    return [_words(text, places, condition.name) for text in condition.commands]


def verdict(got: float, expected: float | None, tolerance: float) -> str:
    """Judge a value.

    >>> [verdict(got, 0.5, 0.01) for got in (0.51, 0.55, 0.44)], verdict(0.5, None, 0.01)
    (['OK', 'off', 'FAIL'], 'new')
    """
    if expected is None:
        return "new"
    distance = abs(got - expected) - 1e-9  # 0.51 - 0.50 is a little more than 0.01
    return "OK" if distance <= tolerance else "off" if distance <= OFF * tolerance else "FAIL"


# ------------------------------------------------------------------------------------------------------- command


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
    run, qrels = (_fill(text, places, condition.name) for text in (condition.run, condition.qrels))
    click.echo(shlex.join(["pyserini-kd", "evaluate", run, "--qrels", qrels, "--measures", *condition.expected]) + "\n")


if __name__ == "__main__":
    main()
