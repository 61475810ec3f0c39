"""Run the steps of a plan, skip what is there, and keep a record of what each step was made from."""

import hashlib
import json
import logging
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pyserini_kd.data import sources
from pyserini_kd.distillation.candidates import write_candidates
from pyserini_kd.distillation.mining import MineConfig, mine_files
from pyserini_kd.distillation.query_files import RECORD as QUERIES_RECORD
from pyserini_kd.distillation.query_files import QueryConfig, make_files
from pyserini_kd.distillation.system_plan import Step
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


WORK: Mapping[type[Settings], Callable[[Any], object]] = {
    QueryConfig: make_files, IndexSettings: index, SearchSettings: _search, MineConfig: _mine, TeachConfig: teach_files,
    TrainSettings: train_from_files,
}  # fmt: skip
"""Settings -> the function that does the work of the command."""


def command_of(step: Step) -> str:
    """The command line of a step."""
    return f"pyserini-kd {step.command} {shlex.join(step.settings.words())}"


def identity(output: Path) -> str:
    """A checksum that changes when an output changes: of a checkpoint's weights, a folder's record, or a file."""
    if not output.is_dir():
        return sha256(output)
    if (output / manifest.NAME).exists():
        return sha256(output / manifest.NAME)
    return sha256(output / QUERIES_RECORD) if (output / QUERIES_RECORD).exists() else checkpoint_folder.fingerprint(output)


class Steps:
    """The steps of a system. The file `record` says what each output was made from.

    An output is used again if its settings and inputs are the same. An output that someone replaced by hand is used as it is.
    """

    def __init__(self, record: Path) -> None:
        self.record = record
        self.known: Record = read_json(record, "record of a system") if record.exists() else {}

    def run(self, steps: Iterable[Step], after: Iterable[Step] = ()) -> None:
        """Make the outputs that are missing or stale. The steps in `after` are finished; others may need their outputs."""
        listed = list(steps)
        outputs = {step.name: step.output for step in (*after, *listed)}
        for number, step in enumerate(listed, start=1):
            made_from = self._made_from(step, outputs)
            what = f"[{number}/{len(listed)}] {step.what}"
            why = self._stale(step, made_from)
            if why is None:
                logger.info("%s: done before", what)
                continue
            logger.info("%s%s ...", what, f", again because {why}" if why else "")
            if why:
                _remove(step.output)
            begun = time.monotonic()
            step.output.parent.mkdir(parents=True, exist_ok=True)
            WORK[type(step.settings)](step.settings)
            self._keep(step, made_from, time.monotonic() - begun)

    def _keep(self, step: Step, made_from: Record, seconds: float) -> None:
        about = {"command": command_of(step), "made_from": made_from, "is": identity(step.output), "seconds": round(seconds, 1)}
        self.save(steps=self.known.get("steps", {}) | {step.name: about})

    def save(self, **entries: object) -> None:
        """Add entries to the record."""
        self.known |= entries
        write_json(self.record, self.known)

    def seconds(self) -> float:
        """Seconds of all steps."""
        return sum(step["seconds"] for step in self.known.get("steps", {}).values())

    def _made_from(self, step: Step, outputs: Mapping[str, Path]) -> Record:
        values = step.settings.model_dump(mode="json", include=step.settings.model_fields_set)
        text = json.dumps(values, sort_keys=True).replace(str(self.record.parent), "")  # the folder may move
        found: Record = {"settings": hashlib.sha256(text.encode()).hexdigest()}
        if not step.needs or "index" in step.name or step.name == "bm25":
            found["collection"] = sources.stamp(str(values.get("collection")))
        return found | {name: identity(outputs[name]) for name in step.needs}

    def _stale(self, step: Step, made_from: Record) -> str | None:
        """None if the output can be used; "" if it is missing; else why it must be made again."""
        if not step.output.exists():
            return ""
        known = self.known.get("steps", {}).get(step.name)
        if known is None or identity(step.output) != known["is"]:
            logger.info("%s was not made by this command; it is used as it is", step.output)
            self._keep(step, made_from, 0.0)
            return None
        changed = [name for name, value in made_from.items() if known["made_from"].get(name) != value]
        return f"{' and '.join(changed)} changed" if changed else None


def _remove(output: Path) -> None:
    """Remove an output and its record."""
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)
        record_path(output).unlink(missing_ok=True)
