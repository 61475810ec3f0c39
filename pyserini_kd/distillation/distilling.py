"""Distil a whole search system from a collection: queries, teacher, students, indexes, choices, report.

Wang et al. 2022 (GPL, arXiv 2112.07577) showed that a collection alone is enough: made-up queries, a teacher's scores and
Margin-MSE. Here the students are small and the work fits a CPU.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pyserini_kd.data import sources
from pyserini_kd.distillation import made_queries, system_choice, system_plan, system_report, system_sizes, system_update
from pyserini_kd.distillation.made_queries import Found
from pyserini_kd.distillation.system_config import MINILM, DistillConfig
from pyserini_kd.distillation.system_plan import Folder, Step
from pyserini_kd.distillation.system_sizes import Sizes
from pyserini_kd.distillation.system_steps import Steps, command_of
from pyserini_kd.retrieval import system_file
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.retrieval.system import System
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import alone, atomic_file
from pyserini_kd.storage.records import Record

logger = logging.getLogger(__name__)

RECORD = "distill.json"
COMMANDS = "commands.sh"
KEPT = {"fields", "segment", "init", "precision", "device"}
"""Settings that an update needs."""
FEW = 200  # documents below which nothing can be learnt
Say = Callable[[str], None]


def distill(collection: str, output: str | Path, **settings: Any) -> System:
    """Distil a system from a collection and open it, ready for `System.search`.

    Args:
        collection: a path, `ir_datasets:<id>` or `pydocs`.
        output: folder of the system. What is there already is used again.
        settings: fields of `DistillConfig`, e.g. `minutes=30` or `topics="log.tsv"`.

    Raises:
        InputError: a setting is wrong, or the collection has no text or differs from that of an earlier call.
    """
    config = DistillConfig(collection=collection, output=Path(output), **settings)
    run(config, logger.info)
    return System.open(SystemSettings(system=str(config.output)), texts=True)


def run(config: DistillConfig, say: Say) -> None:
    """Make or update the system in `config.output`. `say` gets what was found, the plan and the results, line by line."""
    begun = time.monotonic()
    with contextlib.nullcontext() if config.dry_run else alone(config.output / ".distill", "distill"):
        steps = Steps(config.output / RECORD)
        if config.update:
            system_update.update(config, steps, say)
            return
        _refuse_another(config, steps)
        found = _read(config, say)
        few = len(found.docs) < FEW
        sizes = _sizes(config, found, steps)
        plan = system_plan.untrained(config) if few else system_plan.steps(config, sizes)
        system_sizes.refuse_full_disk(config, found)
        say(system_plan.table(plan))
        if config.dry_run:
            return
        steps.save(collection=config.collection, stamp=sources.stamp(config.collection), sizes=dataclasses.asdict(sizes),
                   n_docs=found.n_docs, config=config.model_dump(mode="json", include=KEPT))  # fmt: skip
        if not few:
            steps.run(plan, until=system_plan.TEACHER_SEARCHED)
            system_choice.check_teacher(config, Folder(config.output))
        steps.run(plan)
        _finish(config, steps, plan, sizes, say, few=few)
        say(f"{config.output}: {time.monotonic() - begun:.0f} s. Next: pyserini-kd search --system {config.output} --query ...")


def _read(config: DistillConfig, say: Say) -> Found:
    """Read the collection once and say what it holds; InputError if it has no text."""
    docs = sources.collection(config.collection, config.segment, config.fields)
    found = made_queries.sample(tqdm(docs, desc="read collection", unit=" docs", disable=None), system_sizes.MAX_SAMPLE)
    if not found.docs:
        raise InputError(f"{config.collection} has no document with text", "collection")
    counts = f"{found.n_duplicates} duplicates, {found.n_empty} empty"
    say(f"{found.n_docs} documents, {found.words:.0f} words on average, {counts}")
    if not found.is_english and config.init == MINILM:
        logger.warning("WARNING: the documents do not look English: %.0f%% of the words are function words of English. %s is "
                       "an English model: name a bi-encoder for your language with --init", 100 * found.english,
                       MINILM)  # fmt: skip
    if len(found.docs) < FEW:
        logger.warning("WARNING: %d different documents are too few to learn from; the system is BM25 and %s, untrained",
                       len(found.docs), config.init)  # fmt: skip
    return found


def _finish(config: DistillConfig, steps: Steps, plan: list[Step], sizes: Sizes, say: Say, *, few: bool) -> None:
    """Choose the settings, and write search.yaml, the report and the commands.

    If the steps are those of the last choice, its settings stay, also where someone changed search.yaml by hand.
    """
    made_from, known = steps.identities(plan), steps.known.get("chosen", {})
    if known.get("made_from") == made_from and (config.output / system_file.NAME).exists():
        say(f"{config.output / system_file.NAME}: chosen before")
        return
    held_out = None if few else system_choice.HeldOut.open(config, Folder(config.output))
    chosen = system_choice.choose(config, held_out, say) if held_out else system_choice.untrained(config)
    if "rerank_index" in chosen.settings:
        plan.append(system_plan.token_index(config, Folder(config.output), sizes))
        steps.run(plan)
    system_file.write(config.output, chosen.settings)
    _write_commands(config.output / COMMANDS, plan, chosen.settings)
    if held_out:
        say(system_report.write(config, held_out))
    steps.save(chosen={**chosen.record, "settings": chosen.settings, "made_from": made_from})


def _refuse_another(config: DistillConfig, steps: Steps) -> None:
    """InputError if the folder holds the system of another or a changed collection."""
    known = steps.known
    if not known:
        return
    if known["collection"] != config.collection:
        raise InputError(f"{config.output} is the system of {known['collection']}; name another folder", "output")
    if known.get("updates"):
        raise InputError(f"documents were added to {config.output} after its training. Set `update` to add more, or name "
                         "another folder to train again", "output")  # fmt: skip
    if known["stamp"] != sources.stamp(config.collection):
        raise InputError(f"{config.collection} changed since {config.output} was made. Set `update` to add its new documents, "
                         "or name another folder to train again", "collection")  # fmt: skip


def _sizes(config: DistillConfig, found: Found, steps: Steps) -> Sizes:
    """Sizes of the training: those of an earlier run for the same students, so that its results serve; else by the budget."""
    known = steps.known.get("sizes")
    if known and known["made_for"] == system_sizes.made_for(config):
        return Sizes(**known)
    return Sizes.choose(config, found)


def _write_commands(path: Path, plan: list[Step], settings: Record) -> None:
    """Write the single commands that make the same models and indexes."""
    with atomic_file(path) as out:
        out.write("# The commands that `pyserini-kd distill` ran. Each can be run by hand, also with other settings.\n")
        out.write("set -e\n" + "".join(f"{command_of(step)}\n" for step in plan))
        out.write("# search.yaml holds the weights that were chosen on the held-out queries:\n")
        out.write("".join(f"#   {name}: {value}\n" for name, value in settings.items()))
