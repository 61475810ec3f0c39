"""Add new documents to a distilled system, without another training.

The new documents get indexes of their own, which are searched together with the earlier ones. BM25's index is built again,
because its weights depend on all documents.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pyserini_kd.data import formats, passages, sources
from pyserini_kd.data.doc_ids import DocIds
from pyserini_kd.distillation.system_config import DistillConfig
from pyserini_kd.distillation.system_plan import Folder, Step, how, only_set
from pyserini_kd.distillation.system_steps import Steps
from pyserini_kd.retrieval import system_file
from pyserini_kd.retrieval.indexing import IndexSettings
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.retrieval.text_sources import shards, stored_docs
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file
from pyserini_kd.storage.records import write_json

logger = logging.getLogger(__name__)

GROWN = 1.25  # a collection that grew by this factor since the training has probably changed its subjects


def update(config: DistillConfig, steps: Steps, say: Callable[[str], None]) -> None:
    """Encode the documents that are new in the collection and add them to the system.

    InputError if there is no finished system, or if documents changed or are gone, which an update cannot mend.
    """
    known, at = steps.known, Folder(config.output)
    if "chosen" not in known:
        raise InputError(f"{config.output} holds no finished system; run distill without it first", "update")
    settings = system_file.read(config.output, set(SystemSettings.model_fields))
    made = config.but(**known["config"])
    dense = shards(*settings["index"]) if settings["encoder"] != "bm25" else []
    number = len(known.get("updates", [])) + 1
    new = at.work(f"update.{number}.jsonl")
    count = _write_new(made, dense, new) if dense else None
    if count == 0:
        say(f"{config.collection} has no new documents")
        return
    names = [name for name, key in (("dense", "index"), ("colbert", "rerank_index")) if count and dense and key in settings]
    plan = [_index(made, name, settings, new, at.index(f"{name}.{number}")) for name in names]
    whole = how(made, collection=made.collection, fields=made.fields, segment=made.segment, encoder="bm25")
    again = IndexSettings(**only_set(**whole), index=at.index("bm25"))
    steps.run([*plan, Step("bm25", "index all documents with BM25", again, at.index("bm25"))])
    for name in names:
        parts = [name, *(f"{name}.{part}" for part in range(1, number + 1) if at.index(f"{name}.{part}").exists())]
        write_json(at.index(f"{name}.json"), {"shards": parts})
    written = known["chosen"]["settings"]
    joined: dict[str, Any] = {"index": ["indexes/dense.json"]} if "dense" in names else {}
    joined |= {"rerank_index": "indexes/colbert.json"} if "colbert" in names and "rerank_index" in written else {}
    system_file.write(config.output, written | joined)
    total = known["n_docs"] + sum(known.get("updates", [])) + (count or 0)
    steps.save(stamp=sources.stamp(config.collection), updates=[*known.get("updates", []), count or 0])
    say(f"{config.output}: {count or 0} new documents, {total} in all")
    if total > GROWN * known["n_docs"]:
        before = known["n_docs"]
        say(f"the collection grew from {before} documents to {total} since the training: train again, in another folder")


def _index(config: DistillConfig, name: str, settings: dict[str, Any], docs: Path, output: Path) -> Step:
    """The step that indexes the new documents with a student."""
    model = settings["encoder" if name == "dense" else "rerank"]
    kind = {"architecture": "colbert"} if name == "colbert" else {}
    values = IndexSettings(
        **only_set(**how(config, collection=str(docs), segment=config.segment, encoder=str(model), index=output, **kind))
    )
    return Step(f"{output.name}-index", f"index the new documents with the student {name}", values, output)


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
