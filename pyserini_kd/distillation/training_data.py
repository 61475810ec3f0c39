"""What training trains on: candidates with their texts and teacher scores, or plain text, kept on disk while it runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyserini_kd.data import passages, sources
from pyserini_kd.distillation import triples
from pyserini_kd.distillation.batches import Share
from pyserini_kd.distillation.candidates import Group, read_candidates
from pyserini_kd.distillation.config import Material, TrainConfig
from pyserini_kd.distillation.mining import left_out, mine
from pyserini_kd.distillation.processes import one_after_another, processes
from pyserini_kd.distillation.recipes import Stage
from pyserini_kd.distillation.score_store import ScoreStore, read_scores
from pyserini_kd.distillation.teacher_scores import TeacherScores
from pyserini_kd.distillation.text_store import PlainTexts, Texts, load_texts
from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.errors import InputError

logger = logging.getLogger(__name__)


class Given(NamedTuple):
    """What the command was given to train on."""

    collection: str
    topics: str | None
    candidates: Path | None
    scores: Path | None
    qrels: str | None
    segment: str | None


def _files(name: str, value: str | Path | None) -> list[Path]:
    """The files that the command was given as `name`: those of the collection, or one; none where they are named."""
    if name == "collection":
        return sources.files(str(value))
    return [Path(value)] if value and not sources.is_named(str(value)) and Path(value).is_file() else []


READERS: dict[str, Callable[[str], Any]] = {"topics": sources.topics, "qrels": sources.qrels}
"""What reads data that may be named, whose contents another release may change."""


def digest(name: str, value: str | Path) -> str | dict[str, str]:
    """Files, and topics and judgements that have a name, with their checksum; anything else as it was named."""
    files = _files(name, value)
    if not Path(value).exists() and (read := READERS.get(name.removeprefix("dev_"))):
        text = json.dumps(read(str(value)), sort_keys=True)
        return {"name": str(value), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return {"path": str(value), "sha256": sha256(*files)} if files else str(value)


@contextlib.contextmanager
def gather(given: Given, stages: Sequence[Stage], config: TrainConfig, output: Path) -> Iterator[Material]:
    """What the stages train on. Its texts, and the triples of a 5-column file, lie in `NAME.data.partial/` meanwhile.

    They stay there when training is interrupted or has a state to go on from, and serve the next run on the same data.
    """
    folder, share = data_folder(output), processes(config)
    plain, ranked = any(stage.text for stage in stages), any(not stage.text for stage in stages)
    scored = any(stage.needs_scores for stage in stages)
    published = given.scores and not given.candidates and given.scores.suffix != ".parquet"
    groups = _groups(given, config) if ranked and not published else []
    sources_of = {name: [str(value), sources.stamp(str(value)) if value else ""] for name, value in given._asdict().items()}
    made_from = {**sources_of, "plain": plain, "ranked": ranked, "blocks": [config.batch_size, config.seed]}
    try:
        with one_after_another(share):
            if share.rank == 0:
                triples.build_once(folder, made_from, lambda: _convert(folder, given, groups, plain=plain, ranked=ranked))
        scores: TeacherScores | None = None
        queries: Mapping[str, str] = {}
        docs: Mapping[str, str] = {}
        if ranked and published:
            scores = groups = triples.load(folder)
            queries, docs = groups.queries, groups.docs
        elif groups:
            queries, docs = Texts(folder / "queries"), Texts(folder / "docs")
            scores = read_scores(given.scores, groups) if given.scores and scored else None
            if given.scores and scored and given.scores.suffix == ".parquet":
                ScoreStore(given.scores).check_texts(queries, docs)
        texts = _sample(Texts(folder / "texts"), config) if plain else []
        yield Material(groups, queries, docs, scores if scored else None, texts, None)
    except Exception:  # not Ctrl-C
        if not state_folder(output).exists():
            _remove(folder, share)
        raise
    _remove(folder, share)


def data_folder(output: Path) -> Path:
    """Where the texts of a training run lie while it runs."""
    return output.with_name(output.name + ".data.partial")


def state_folder(output: Path) -> Path:
    """Where the resume state of a training run lies while it runs."""
    return output.with_name(output.name + ".partial")


def _remove(folder: Path, share: Share) -> None:
    if share.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)


def _groups(given: Given, config: TrainConfig) -> Sequence[Group]:
    if given.candidates:
        return read_candidates(given.candidates)
    if given.qrels and given.topics:
        mined = mine(sources.topics(given.topics), sources.qrels(given.qrels), [], sources.collection(given.collection),
                     negatives=0, shared=config.batch_size, seed=config.seed)  # fmt: skip
        logger.info("%d queries; %s", len(mined.groups), left_out(mined))
        return mined.groups
    raise InputError("--candidates is needed (or --qrels, or a 5-column score file, which brings its own triples)")


def _convert(folder: Path, given: Given, groups: Sequence[Group], *, plain: bool, ranked: bool) -> None:
    """Write the texts that training needs, and the triples of a 5-column file, as they stream by."""
    if ranked and given.topics:
        docs = sources.collection(given.collection)
        docs = passages.segment(docs, given.segment) if given.segment else docs
        queries = sources.topics(given.topics)
        if groups:
            load_texts(groups, queries, docs, folder)
        elif given.scores:
            triples.build(folder, given.scores, queries, ((doc.doc_id, doc.contents) for doc in docs))
    if plain:
        docs = sources.collection(given.collection)
        docs = passages.segment(docs, given.segment) if given.segment else docs
        Texts.build(folder / "texts", ((doc.doc_id, doc.contents) for doc in docs), "plain texts")


def _sample(texts: Texts, config: TrainConfig) -> PlainTexts:
    """The texts; with --max-steps a random sample, as many as will be read."""
    limit = config.max_steps * config.batch_size * config.accumulate if config.max_steps else len(texts)
    rows = np.arange(len(texts), dtype=np.int32)
    if limit < len(rows):
        rows = np.sort(np.random.default_rng(config.seed).choice(rows, limit, replace=False))
    return PlainTexts(texts, rows)
