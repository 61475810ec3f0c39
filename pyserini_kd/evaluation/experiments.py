"""Run known experiments again: their commands, the expected measures, and the results. Pyserini's 2CR does the same.

`reproduce.yaml` beside this file lists the experiments and explains the fields of a row.
"""

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
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pyserini_kd.data import sources
from pyserini_kd.data.runs import Run
from pyserini_kd.evaluation import engines, tables
from pyserini_kd.evaluation.measures import Measure
from pyserini_kd.retrieval import diagnosis
from pyserini_kd.storage.environment import command_line, environment
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import home, require_file
from pyserini_kd.storage.records import write_json

logger = logging.getLogger(__name__)

MATRIX = Path(__file__).with_name("reproduce.yaml")
OFF = 5  # a value within so many tolerances is off, but not a failure: other versions and processors can cause it
PLACES = {"directory": "DIRECTORY", "data": "DATA", "home": "HOME"}  # the texts shown for places that are not known


def fill(text: str, places: Mapping[str, str] = PLACES) -> str:
    """Fill in the places of a text; InputError for an unknown place."""
    try:
        return text.format_map(places)
    except (KeyError, ValueError, IndexError, AttributeError, TypeError):
        known = ", ".join(f"{{{name}}}" for name in PLACES)
        raise InputError(f"{text!r} names a place that is unknown; known: {known}") from None


def words(text: str, places: Mapping[str, str] = PLACES) -> list[str]:
    """The words of a command. The command is split first and its places are filled in after that: a path may hold blanks."""
    try:
        found = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{text!r} is no command ({error})") from error
    if found[:1] != ["pyserini-kd"] and found[:2] != ["python", "-m"]:
        raise InputError(f"a command must begin with `pyserini-kd` or `python -m`, found {text!r}")
    return [fill(word, places) for word in found]


def _flat(value: object) -> tuple[object, ...]:
    """The items of a list that may hold lists (YAML's aliases make such lists); null has no items."""
    if not isinstance(value, list | None):
        raise ValueError(f"must be a list of texts, found {value!r:.60}")
    try:
        return tuple(item for one in value or () for item in (_flat(one) if isinstance(one, list) else [one]))
    except RecursionError:
        raise ValueError("must be a list of texts, found one that holds itself") from None


Text = Annotated[str, Field(min_length=1)]
Place = Annotated[Text, AfterValidator(lambda text: fill(text) and text)]
Command = Annotated[str, AfterValidator(lambda text: words(text) and text)]
MeasureName = Annotated[str, AfterValidator(lambda name: Measure.parse(name) and name)]


class Condition(BaseModel):
    """A row of the matrix."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Text
    about: Text
    run: Place
    qrels: Place
    expected: dict[MeasureName, float | None] = Field(min_length=1)
    source: Text
    commands: Annotated[tuple[Command, ...], BeforeValidator(_flat)] = ()
    needs: Annotated[tuple[Place, ...], BeforeValidator(_flat)] = ()
    tolerance: float = Field(0.0001, ge=0)


class Outcome(NamedTuple):
    """The result of one measure of a condition. The verdict is OK, off, FAIL, skipped, or new (no value was expected)."""

    condition: str
    measure: str
    expected: float | None
    got: float | None
    verdict: str
    why: str = ""


def read_matrix(path: Path) -> list[Condition]:
    """The conditions of a matrix file.

    Raises:
        InputError: the file is not YAML, or a row is wrong, or two rows have the same name.
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
    found: dict[str, Condition] = {}
    for number, row in enumerate(rows, start=1):
        try:
            condition = Condition.model_validate(row)
        except ValidationError as error:
            name = f" ({row['name']})" if isinstance(row, dict) and isinstance(row.get("name"), str) else ""
            raise InputError(f"{path}: row {number}{name}: {_fault(error)}") from None
        if condition.name in found:
            raise InputError(f"{path}: two rows are named {condition.name}")
        found[condition.name] = condition
    return list(found.values())


def _fault(error: ValidationError) -> str:
    """The first fault of a row, in one line."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "extra_forbidden":
        return f"unknown key `{key}`; {_hint(key, Condition.model_fields, '`')}"
    cause = first.get("ctx", {}).get("error")
    message = str(cause) if cause else f"{first['msg'][0].lower()}{first['msg'][1:]}, found {first['input']!r:.60}"
    return f"`{key}`: {message}" if key else message


def _hint(word: str, known: Iterable[str], quote: str = "") -> str:
    near = difflib.get_close_matches(word, known := list(known), n=1)
    return f"did you mean {quote}{near[0]}{quote}?" if near else f"known: {', '.join(known)}"


def choose(conditions: Sequence[Condition], names: Iterable[str]) -> list[Condition]:
    """The conditions of these names; InputError for an unknown one."""
    known = {condition.name: condition for condition in conditions}
    for name in names:
        if name not in known:
            raise InputError(f"unknown condition {name!r}; {_hint(name, known)}", "names")
    return [known[name] for name in dict.fromkeys(names)]


def missing(condition: Condition, places: Mapping[str, str]) -> list[str]:
    """The needs of a condition that this machine does not meet."""
    return [lack for need in condition.needs if (lack := _lack(need, places))]


def _lack(need: str, places: Mapping[str, str]) -> str | None:
    if need == "hub":
        return _no_hub()
    if "==" in need:
        name, _, version = need.partition("==")
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        return None if found == version else f"{need}, found {found}"
    if "{data}" in need and places["data"] == PLACES["data"]:
        return f"a folder of data with {need.removeprefix('{data}/')}"
    path = fill(need, places)
    return None if Path(path).exists() else path


@functools.cache
def _no_hub() -> str | None:
    """Why there is no network; None if there is one."""
    finding = next(diagnosis.hub())
    return None if finding.mark == "OK" else f"network: {finding.found}"


def run_condition(condition: Condition, places: Mapping[str, str]) -> list[Outcome]:
    """Run the commands of a condition and judge its measures."""

    def all_measures(verdict: str, why: str) -> list[Outcome]:
        return [Outcome(condition.name, measure, value, None, verdict, why) for measure, value in condition.expected.items()]

    if lacks := missing(condition, places):
        return all_measures("skipped", f"needs {'; '.join(lacks)}")
    for command in condition.commands:
        first, *others = words(command, places)
        shown = shlex.join([first, *others])
        logger.info("$ %s", shown)
        begin = [sys.executable, *(["-m", "pyserini_kd"] if first == "pyserini-kd" else [])]
        code = subprocess.run([*begin, *others], stdout=2, check=False).returncode  # stdout is for our results
        if code:
            return all_measures("FAIL", f"exit code {code} of: {shown}")
    try:
        run, qrels = Run.read(fill(condition.run, places)), sources.qrels(fill(condition.qrels, places))
        values = engines.evaluate(run, qrels, list(condition.expected))
    except InputError as error:
        return all_measures("FAIL", str(error))
    found = [(measure, expected, engines.mean(values[measure])) for measure, expected in condition.expected.items()]
    return [Outcome(condition.name, *row, verdict(row[2], row[1], condition.tolerance)) for row in found]


def verdict(got: float, expected: float | None, tolerance: float) -> str:
    """Judge a value.

    >>> [verdict(got, 0.5, 0.01) for got in (0.51, 0.55, 0.44)], verdict(0.5, None, 0.01)
    (['OK', 'off', 'FAIL'], 'new')
    """
    if expected is None:
        return "new"
    distance = abs(got - expected) - 1e-9  # 0.51 - 0.50 is a little more than 0.01
    return "OK" if distance <= tolerance else "off" if distance <= OFF * tolerance else "FAIL"


def places_of(data: Path | None, directory: Path | None) -> dict[str, str]:
    """The places of this machine; indexes and runs go to `directory` (default: runs/reproduce)."""
    folder = directory or home() / "runs" / "reproduce"
    return {"directory": str(folder), "data": str(data or PLACES["data"]), "home": str(home())}


def reproduce(conditions: Sequence[Condition], places: Mapping[str, str]) -> list[Outcome]:
    """Run conditions, log the result of each, and write a record of all."""
    directory = Path(places["directory"])
    directory.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    seconds: dict[str, float] = {}
    for condition in conditions:
        started = time.monotonic()
        found = run_condition(condition, places)
        said = (f"{o.verdict}, {o.why}" if o.why else f"{o.measure} {tables.number(o.got)} {o.verdict}" for o in found)
        logger.info("%s: %s", condition.name, "; ".join(dict.fromkeys(said)))
        outcomes += found
        seconds[condition.name] = round(time.monotonic() - started, 2)
    record = {"command": command_line(), "outcomes": [o._asdict() for o in outcomes], "seconds": seconds}
    write_json(directory / "reproduce.json", record | environment())
    return outcomes


def script(conditions: Iterable[Condition], places: Mapping[str, str]) -> Iterator[str]:
    """The commands of conditions, as lines for a shell."""
    for condition in conditions:
        yield f"# {condition.name}: {condition.about}"
        if lacks := missing(condition, places):
            yield f"# would be skipped: needs {'; '.join(lacks)}"
        yield from (shlex.join(words(text, places)) for text in condition.commands)
        run, qrels = fill(condition.run, places), fill(condition.qrels, places)
        yield shlex.join(["pyserini-kd", "evaluate", run, "--qrels", qrels, "--measures", *condition.expected]) + "\n"
