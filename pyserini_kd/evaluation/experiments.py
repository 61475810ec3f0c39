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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pyserini_kd.data import sources
from pyserini_kd.data.runs import Run
from pyserini_kd.evaluation import engines
from pyserini_kd.evaluation.measures import Measure
from pyserini_kd.retrieval import diagnosis
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file

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
        fill(text, PLACES, where)
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


PLACES = {"directory": "DIRECTORY", "data": "DATA", "home": "HOME"}  # as shown where a place is not known


def fill(text: str, places: Mapping[str, str], where: str) -> str:
    """The text with its places filled in; InputError for an unknown place."""
    try:
        return text.format_map(places)
    except (KeyError, ValueError, IndexError, AttributeError, TypeError):
        known = ", ".join(f"{{{name}}}" for name in PLACES)
        raise InputError(f"{where}: {text!r} names a place that is unknown; known: {known}") from None


def _words(text: str, places: Mapping[str, str], where: str) -> list[str]:
    """The words of a command, places filled in after it was cut, so that a path may hold blanks."""
    try:
        words = [fill(word, places, where) for word in shlex.split(text)]
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
    path = fill(need, places, "needs")
    return None if Path(path).exists() else path


@functools.cache
def _hub() -> str | None:
    """Why there is no network, if there is none."""
    finding = next(diagnosis.hub())
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
        run = Run.read(fill(condition.run, places, name))
        values = engines.evaluate(run, sources.qrels(fill(condition.qrels, places, name)), list(condition.expected))
    except InputError as error:
        yield from all_measures("FAIL", str(error))
        return
    for measure, expected in condition.expected.items():
        got = engines.mean(values[measure])
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
