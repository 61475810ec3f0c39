"""Add new documents to a distilled system, without another training.

The new documents get vectors in indexes of their own, which are searched together with the earlier ones. Lucene indexes are
built again: BM25's weights depend on all documents.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from pyserini_kd.data import formats, passages, sources
from pyserini_kd.data.doc_ids import DocIds
from pyserini_kd.distillation.system_config import DistillConfig
from pyserini_kd.distillation.system_plan import Folder, Step, how, only_set
from pyserini_kd.distillation.system_steps import Steps
from pyserini_kd.retrieval import system_file
from pyserini_kd.retrieval.indexing import IndexSettings
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.retrieval.text_sources import stored_docs
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file
from pyserini_kd.storage.records import Record, write_json

logger = logging.getLogger(__name__)

PARTS = {"dense": "index", "colbert": "rerank_index"}
"""Index of a student's representations -> the setting that names it."""
GROWN = 1.25  # advise a new training if the collection grew by this factor; it may have new subjects


def update(config: DistillConfig, steps: Steps, say: Callable[[str], None]) -> None:
    """Encode the documents that are new in the collection and add them to the system.

    InputError if there is no finished system, or if documents changed or are gone, which an update cannot mend.
    """
    known, at = steps.known, Folder(config.output)
    if "chosen" not in known:
        raise InputError(f"{config.output} holds no finished system; run distill without it first", "update")
    names = set(SystemSettings.model_fields)
    settings, written = system_file.read(at.path, names), system_file.raw(at.path, names)
    made = config.but(**known["config"])
    parts = {name: key for name, key in PARTS.items() if key in settings and at.index(name).exists()}
    if not parts:
        raise InputError(f"{at.path} has no dense student, whose index would know the earlier documents; make the system again "
                         "in another folder", "update")  # fmt: skip
    number = len(known.get("updates", [])) + 1
    new = at.work(f"update.{number}.jsonl")
    count = _write_new(made, [folder for name in list(parts)[:1] for folder in _folders(at, name, number - 1)], new)
    if count == 0:
        say(f"{config.collection} has no new documents")
        return
    plan = [_index(made, name, settings, new, at.index(f"{name}.{number}")) for name in parts]
    plan += [_whole(made, name, encoder, at.index(name)) for name, encoder in (("bm25", "bm25"), ("sparse", at.model("sparse")))
             if at.index(name).exists()]  # fmt: skip
    steps.run(plan)
    for name, key in parts.items():
        write_json(at.index(f"{name}.json"), {"shards": [folder.name for folder in _folders(at, name, number)]})
        written[key] = [f"indexes/{name}.json"] if key == "index" else f"indexes/{name}.json"
    system_file.write(config.output, written)
    before, total = known["n_docs"], known["n_docs"] + sum(known.get("updates", [])) + count
    steps.save(stamp=sources.stamp(config.collection), updates=[*known.get("updates", []), count])
    say(f"{config.output}: {count} new documents, {total} in all")
    if total > GROWN * before:
        say(f"the collection grew from {before} documents to {total} since the training: train again, in another folder")


def _folders(at: Folder, name: str, updates: int) -> list[Path]:
    """The index of a student, and those of its updates."""
    return [at.index(name), *(at.index(f"{name}.{number}") for number in range(1, updates + 1))]


def _index(config: DistillConfig, name: str, settings: Record, docs: Path, output: Path) -> Step:
    """The step that indexes the new documents with a student."""
    model = settings["encoder" if name == "dense" else "rerank"]
    kind = {"architecture": "colbert"} if name == "colbert" else {}
    values = IndexSettings(
        **only_set(**how(config, collection=str(docs), segment=config.segment, encoder=str(model), index=output, **kind))
    )
    return Step(f"{output.name}-index", f"index the new documents with the student {name}", values, output)


def _whole(config: DistillConfig, name: str, encoder: str | Path, output: Path) -> Step:
    """The step that builds a Lucene index of all documents again."""
    given = {"collection": config.collection, "fields": config.fields, "segment": config.segment}
    settings = IndexSettings(**only_set(**how(config, **given, encoder=str(encoder), index=output)))
    return Step("bm25" if name == "bm25" else f"{name}-index", f"index all documents with {name}", settings, output)


def _write_new(config: DistillConfig, folders: list[Path], path: Path) -> int:
    """Write the documents that no folder holds; return their number."""
    ids, fetch = DocIds.read(*folders), stored_docs(*folders)
    present = changed = count = 0
    with atomic_file(path) as out:
        for doc in tqdm(
            sources.collection(config.collection, fields=config.fields), desc="compare", unit=" docs", disable=None
        ):
            parts = list(passages.segment([doc], config.segment)) if config.segment else [doc]
            known = [part for part in parts if ids.row(part.doc_id) >= 0]
            if known:
                present += len(known)
                stored = fetch([part.doc_id for part in known])
                changed += len(known) < len(parts) or any(a.contents != b.contents for a, b in zip(known, stored, strict=True))
            elif parts:
                formats.write_docs([doc], out)
                count += 1
    gone = len(ids) - present
    if changed or gone:
        raise InputError(f"{changed} documents of the system changed and {gone} are gone; an update only adds documents. Name "
                         "another folder to make the system again", "collection")  # fmt: skip
    return count
