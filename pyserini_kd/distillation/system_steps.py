"""Run the steps of a plan, skip what is there, and keep a record of what each step was made from."""

import hashlib
import json
import logging
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyserini_kd.data import sources
from pyserini_kd.distillation.candidates import write_candidates
from pyserini_kd.distillation.mining import MineConfig, mine_files
from pyserini_kd.distillation.query_files import RECORD as QUERIES_RECORD
from pyserini_kd.distillation.query_files import QueryConfig, make_files
from pyserini_kd.distillation.system_plan import Step
from pyserini_kd.distillation.teaching import Teacher
from pyserini_kd.distillation.teaching_files import TeachConfig, teach_files
from pyserini_kd.distillation.train_settings import TrainSettings
from pyserini_kd.distillation.training import train_from_files
from pyserini_kd.models import checkpoint_folder
from pyserini_kd.retrieval.indexing import IndexSettings, index
from pyserini_kd.retrieval.search_files import search_files
from pyserini_kd.retrieval.search_settings import SearchSettings
from pyserini_kd.storage import manifest
from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.records import Record, read_json, record_path, write_json, write_record
from pyserini_kd.storage.settings import Settings

logger = logging.getLogger(__name__)


def _search(settings: SearchSettings) -> None:
    found = search_files(settings)
    assert settings.output is not None
    write_record(settings.output, **found.record)


def _mine(settings: MineConfig) -> None:
    write_candidates(mine_files(settings).groups, settings.output, overwrite=settings.overwrite)


class Command(NamedTuple):
    """A command: its name, and the function that does its work."""

    name: str
    work: Callable[[Any], object]


COMMANDS: Mapping[type[Settings], Command] = {
    QueryConfig: Command("queries", make_files), IndexSettings: Command("index", index), MineConfig: Command("mine", _mine),
    SearchSettings: Command("search", _search), TeachConfig: Command("teach", teach_files),
    TrainSettings: Command("train", train_from_files),
}  # fmt: skip
DATA = ("collection", "topics", "qrels")
CHECKPOINTS = ("encoder", "init", "teacher", "teachers", "generator")
"""Settings that name inputs of a step."""


def command_of(step: Step) -> str:
    """The command line of a step."""
    return f"pyserini-kd {COMMANDS[type(step.settings)].name} {shlex.join(step.settings.words())}"


def identity(output: Path) -> str:
    """A checksum that changes when an output changes: of a checkpoint's weights, an index's manifest, or files."""
    if not output.is_dir():
        return sha256(output)
    if (output / manifest.NAME).exists():
        return sha256(output / manifest.NAME)
    if (output / QUERIES_RECORD).exists():
        return sha256(*sorted(path for path in output.iterdir() if path.is_file() and path.suffix != ".json"))
    return checkpoint_folder.fingerprint(output)


class Steps:
    """The steps of a system. The file `record` says what each output was made from.

    An output is used again if its settings and inputs are the same. An output that someone replaced by hand is used as it is.
    """

    def __init__(self, record: Path) -> None:
        self.record = record
        self.known: Record = read_json(record, "record of a system") if record.exists() else {}
        self._checked: set[str] = set()  # steps whose outputs are there, by an earlier `run` of this process

    def run(self, steps: Sequence[Step], until: str = "") -> None:
        """Make the outputs that are missing or stale, in order, and stop after the step with the name `until`."""
        outputs = {step.name: step.output for step in steps}
        for number, step in enumerate(steps, start=1):
            if step.name not in self._checked:
                self._run_one(step, f"[{number}/{len(steps)}] {step.what}", self._made_from(step, outputs))
                self._checked.add(step.name)
            if step.name == until:
                return

    def _run_one(self, step: Step, what: str, made_from: Record) -> None:
        known = self.known.get("steps", {}).get(step.name)
        if step.output.exists():
            if known is None or identity(step.output) != known["is"]:
                logger.info("%s: %s was not made by this command; it is used as it is", what, step.output)
                self._keep(step, made_from, 0.0)
                return
            changed = sorted(name for name in made_from.keys() | known["made_from"].keys()
                             if made_from.get(name) != known["made_from"].get(name))  # fmt: skip
            if not changed:
                logger.info("%s: done before", what)
                return
            logger.info("%s, again because of other %s ...", what, " and ".join(changed))
            _remove(step.output)
        else:
            logger.info("%s ...", what)
        begun = time.monotonic()
        step.output.parent.mkdir(parents=True, exist_ok=True)
        COMMANDS[type(step.settings)].work(step.settings)
        self._keep(step, made_from, time.monotonic() - begun)

    def _keep(self, step: Step, made_from: Record, seconds: float) -> None:
        about = {"command": command_of(step), "made_from": made_from, "is": identity(step.output), "seconds": round(seconds, 1)}
        self.save(steps=self.known.get("steps", {}) | {step.name: about})

    def save(self, **entries: object) -> None:
        """Add entries to the record."""
        self.known |= entries
        write_json(self.record, self.known)

    def identities(self, steps: Iterable[Step]) -> dict[str, str]:
        """The recorded checksums of outputs, by step."""
        return {step.name: self.known["steps"][step.name]["is"] for step in steps}

    def _made_from(self, step: Step, outputs: Mapping[str, Path]) -> Record:
        """Checksums of all that an output depends on: settings, outputs of other steps, data and checkpoints of the user."""
        values = step.settings.model_dump(mode="json", include=step.settings.model_fields_set)
        text = json.dumps(values, sort_keys=True).replace(str(self.record.parent), "")  # the folder may move
        found: Record = {"settings": hashlib.sha256(text.encode()).hexdigest()}
        found |= {name: identity(outputs[name]) for name in step.needs}
        for name in (*DATA, *CHECKPOINTS):
            value = getattr(step.settings, name, None)
            for one in value if isinstance(value, tuple) else (value,):
                if one and one != "bm25" and not any(Path(one).is_relative_to(outputs[other]) for other in step.needs):
                    found[f"{name} {one}"] = _checksum(name, str(one))
        return found


def _checksum(setting: str, value: str) -> str:
    """A checksum of an input: of a checkpoint's weights, of a file's content, or of the times of a collection's files."""
    if setting in CHECKPOINTS:
        return checkpoint_folder.fingerprint(checkpoint_folder.resolve(Teacher.parse("checkpoint", value).name))
    return sha256(value) if setting != "collection" and Path(value).is_file() else sources.stamp(value)


def _remove(output: Path) -> None:
    """Remove an output and its record."""
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)
        record_path(output).unlink(missing_ok=True)
