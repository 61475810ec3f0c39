"""Training data: candidates with texts and teacher scores, or plain text, kept on disk during training."""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyserini_kd.data import passages, sources
from pyserini_kd.data.types import Doc
from pyserini_kd.distillation import text_store
from pyserini_kd.distillation.candidates import Groups, as_groups, read_candidates
from pyserini_kd.distillation.mining import left_out, mine
from pyserini_kd.distillation.processes import one_after_another, processes
from pyserini_kd.distillation.teacher_scores import ScoreStore, TeacherScores, read_scores
from pyserini_kd.distillation.text_store import PlainTexts, Texts, load_texts
from pyserini_kd.distillation.train_settings import TrainSettings
from pyserini_kd.distillation.validation import Dev
from pyserini_kd.storage.environment import sha256

logger = logging.getLogger(__name__)


class Material(NamedTuple):
    """Data of a training run: candidates with texts and teacher scores, plain texts, dev topics."""

    groups: Groups
    queries: Mapping[str, str]
    docs: Mapping[str, str]
    scores: TeacherScores | None = None
    texts: Sequence[str] = ()
    dev: Dev | None = None


READERS: dict[str, Callable[[str], object]] = {"topics": sources.topics, "qrels": sources.qrels}
"""Readers of named data, whose contents another release may change."""


def digest(name: str, value: str | Path) -> str | dict[str, str]:
    """Return files, named topics and named judgements with their checksum; return any other value as a string."""
    files: list[Path] = []
    if name == "collection":
        files = sources.files(str(value))
    elif value and not sources.is_named(str(value)) and Path(value).is_file():
        files = [Path(value)]
    if not Path(value).exists() and (read := READERS.get(name.removeprefix("dev_"))):
        text = json.dumps(read(str(value)), sort_keys=True)
        return {"name": str(value), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return {"path": str(value), "sha256": sha256(*files)} if files else str(value)


@contextlib.contextmanager
def gather(given: TrainSettings) -> Iterator[Material]:
    """Yield the data of the stages. Texts and 5-column triples lie in `NAME.data.partial/` meanwhile.

    They stay after an interruption, or if there is a state to resume, and serve the next run on the same data.
    """
    stages = [stage for _, stage in given.stages()]
    folder, share = data_folder(given.output), processes(given)
    plain, ranked = any(stage.text for stage in stages), any(not stage.text for stage in stages)
    scored = any(stage.needs_scores for stage in stages)
    published = given.scores and not given.candidates and given.scores.suffix != ".parquet"
    groups = _groups(given) if ranked and not published else Groups([])
    made_from: dict[str, object] = {
        name: [str(value), sources.stamp(str(value)) if value else ""] for name, value in given.for_training().items()
    }
    made_from |= {"plain": plain, "ranked": ranked, "blocks": [given.batch_size, given.seed]}
    try:
        with one_after_another(share):
            if share.rank == 0:
                text_store.build_once(folder, made_from, lambda: _convert(folder, given, groups, plain=plain, ranked=ranked))
        texts = _sample(Texts(folder / "texts"), given) if plain else []
        if ranked and published:
            rows = text_store.load_triples(folder)
            yield Material(rows, rows.queries, rows.docs, rows if scored else None, texts)
        elif groups:
            queries, docs = Texts(folder / "queries"), Texts(folder / "docs")
            scores = read_scores(given.scores, groups) if given.scores and scored else None
            if given.scores and scored and given.scores.suffix == ".parquet":
                ScoreStore(given.scores).check_texts(queries, docs)
            yield Material(groups, queries, docs, scores, texts)
        else:
            topics = Texts(folder / "queries") if (folder / "queries").exists() else {}
            yield Material(groups, topics, {}, None, texts)
    except Exception:  # not Ctrl-C
        if share.rank == 0 and not state_folder(given.output).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if share.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)


def data_folder(output: Path) -> Path:
    """Return the folder for the texts of a training run."""
    return output.with_name(output.name + ".data.partial")


def state_folder(output: Path) -> Path:
    """Return the folder for the state of a training run."""
    return output.with_name(output.name + ".partial")


def _groups(given: TrainSettings) -> Groups:
    if given.candidates:
        return read_candidates(given.candidates)
    topics, qrels = sources.topics(str(given.topics)), sources.qrels(str(given.qrels))
    docs = sources.collection(given.collection, fields=given.fields)
    mined = mine(topics, qrels, [], docs, negatives=0, shared=given.batch_size, seed=given.seed)
    logger.info("%d queries; %s", len(mined.groups), left_out(mined))
    return as_groups(mined.groups)


def _docs(given: TrainSettings) -> Iterator[Doc]:
    docs = sources.collection(given.collection, fields=given.fields)
    return iter(passages.segment(docs, given.segment) if given.segment else docs)


def _convert(folder: Path, given: TrainSettings, groups: Groups, *, plain: bool, ranked: bool) -> None:
    """Write the texts for training, and the triples of a 5-column file."""
    if ranked and groups:
        load_texts(groups, sources.topics(str(given.topics)), _docs(given), folder)
    elif ranked and given.scores:
        text_store.build_triples(
            folder, given.scores, sources.topics(str(given.topics)), ((d.doc_id, d.contents) for d in _docs(given))
        )
    if given.topics and any(stage.needs_vectors for _, stage in given.stages()):
        topics = ((query.query_id, query.text) for query in sources.topics(given.topics))
        Texts.build(folder / "queries", topics, "topics")
    if plain:
        Texts.build(folder / "texts", ((doc.doc_id, doc.contents) for doc in _docs(given)), "plain texts")


def _sample(texts: Texts, config: TrainSettings) -> PlainTexts:
    """Return the texts; with `max_steps` a random sample of those that fit into the steps, unless batches count tokens."""
    by_tokens = any(stage.batch_tokens for _, stage in config.stages())
    limit = config.max_steps * config.batch_size * config.accumulate if config.max_steps and not by_tokens else len(texts)
    rows = np.arange(len(texts), dtype=np.int32)
    if limit < len(rows):
        rows = np.sort(np.random.default_rng(config.seed).choice(rows, limit, replace=False))
    return PlainTexts(texts, rows)
