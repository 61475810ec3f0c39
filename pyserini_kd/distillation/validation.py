"""Validation during training: evaluate the student on dev topics regularly and keep the best weights."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import faiss
from safetensors.torch import load_model, save_model
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pyserini_kd.data import passages, sources
from pyserini_kd.data.doc_ids import DocIds
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Qrels, Query
from pyserini_kd.distillation.train_settings import Given
from pyserini_kd.evaluation import engines
from pyserini_kd.models.rankers import Encoder, ranker
from pyserini_kd.retrieval import reranking
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.searching import dense
from pyserini_kd.retrieval.vector_store import FaissStore
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import read_json, write_json

if TYPE_CHECKING:
    from pyserini_kd.models.loading import Model

logger = logging.getLogger(__name__)

PLATEAU, FACTOR = 15, 0.25
"""Schedule `plateau`: evaluations without improvement, then the learning-rate factor (Hofstätter et al. 2020, who evaluate
every 4,000 batches)."""
HITS = 1000
"""Documents retrieved per dev query, as in `search`."""
PASSAGES = 10
"""Passages retrieved per document."""


class Dev(NamedTuple):
    """Dev topics and their data. The evaluation on them selects the best checkpoint."""

    queries: list[Query]
    qrels: Qrels
    run: Run | None  # first-stage run to rerank; None: a bert_dot searches all `docs`
    docs: dict[str, Doc]
    segment: str | None = None  # passage size; the best passage of a document counts

    def fetch(self, doc_ids: Iterable[str]) -> Iterator[Doc]:
        """Yield the documents with these ids."""
        return (self.docs[doc_id] for doc_id in doc_ids)


def read_dev(given: Given) -> Dev | None:
    """Read the dev topics of the settings, if any.

    With `dev_retrieval` the documents are those of the run (to `dev_depth`) and judged ones; without a run, the collection.

    Raises:
        InputError: topics, judgements, run and collection do not fit together.
    """
    if given.dev_topics is None or given.dev_qrels is None:
        return None
    judged, queries, path = sources.qrels(given.dev_qrels), sources.topics(given.dev_topics), given.dev_run
    first = Run.read(path).top(given.dev_depth) if path else Run.from_scores("none", {query.query_id: {} for query in queries})
    unknown = sorted(first.keys() - {query.query_id for query in queries})
    if unknown:
        raise InputError(f"{len(unknown)} queries of {path} are not among the dev topics, e.g. {unknown[0]}")
    engines.evaluate(first, judged, ["RR@10"])  # InputError if they share no query
    wanted = {doc_id for hits in first.values() for doc_id in hits.doc_ids}
    found = [judged.get(query_id, {}) for query_id in first] if given.dev_retrieval else []
    judged_ids = {doc_id for labels in found for doc_id in labels}
    collection = sources.collection(given.collection, fields=given.fields)
    docs = {doc.doc_id: doc for doc in collection if not path or doc.doc_id in wanted or doc.doc_id in judged_ids}
    if missing := wanted - docs.keys():
        raise InputError(f"{len(missing)} documents of {path} are not in the collection, e.g. {min(missing)}")
    if given.dev_retrieval and not any(label > 0 and doc_id in docs for labels in found for doc_id, label in labels.items()):
        raise InputError(f"the collection {given.collection} has no relevant document of {given.dev_qrels} for the dev topics")
    run = None if given.dev_retrieval else first
    return Dev([query for query in queries if query.query_id in first], judged, run, docs, given.segment)


def retrieved(encoder: Encoder, dev: Dev) -> Run:
    """Return the run of a bert_dot that searches all dev documents exactly."""
    docs = list(passages.segment(dev.docs.values(), dev.segment) if dev.segment else dev.docs.values())
    vectors = encoder.encode_docs([doc.contents for doc in docs])
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    index = DenseIndex(Path(), FaissStore(flat), DocIds("".join(f"{doc.doc_id}\n" for doc in docs).encode()), None)
    run = dense(index, encoder, dev.queries, hits=HITS * PASSAGES if dev.segment else HITS)
    return passages.aggregate(run, k=HITS) if dev.segment else run


def plateaus(values: Sequence[float]) -> int:
    """Return how often these measures lowered the learning rate, as torch's ReduceLROnPlateau with threshold 0.

    >>> plateaus([0.3] * 16), plateaus([0.3] * 17)
    (0, 1)
    """
    best, since, count = -1.0, 0, 0
    for value in values:
        since = 0 if value > best else since + 1
        best = max(best, value)
        if since > PLATEAU:
            since, count = 0, count + 1
    return count


@dataclasses.dataclass(eq=False)
class Watch(TrainerCallback):
    """Evaluates the student on dev topics, keeps the best weights, and may lower the learning rate or stop training.

    Only one process (`writes`) evaluates and keeps files in `folder`. All processes get its measures and stop together.
    """

    model: Model
    dev: Dev
    folder: Path
    _: dataclasses.KW_ONLY
    metric: str
    eval_steps: int
    patience: int | None = None
    plateau: bool = False
    precision: str = "auto"
    writes: bool = True
    measured: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def values(self) -> list[float]:
        """Return the measures so far."""
        return [entry[self.metric] for entry in self.measured]

    def measure(self, step: int) -> None:
        """Evaluate on the dev topics; keep the measure, and the weights if they are the best."""
        value = _of_the_first(self._value() if self.writes else 0.0)
        best = value > max(self.values(), default=-1.0)
        self.measured.append({"step": step, self.metric: value})
        if not self.writes:
            return
        logger.info("step %d: %s %.4f on dev topics%s", step, self.metric, value, " (best)" if best else "")
        if best:
            kept = self.folder / f"best-{step}.safetensors"
            save_model(self.model, f"{kept}.partial")
            os.replace(f"{kept}.partial", kept)
            saved = max((_step(path.parent) for path in self.folder.glob("checkpoint-*/saved-*")), default=0)
            for old in [path for path in self._kept() if _step(path) <= saved][:-1]:  # keep the last: a crash resumes from it
                old.unlink()
        write_json(self.folder / "dev.json", {"measured": self.measured})

    def _value(self) -> float:
        dev, scorer = self.dev, ranker(self.model, precision=self.precision)
        if dev.run is None:
            assert isinstance(scorer, Encoder)
            run = retrieved(scorer, dev)
        else:
            run = reranking.rerank(dev.run, scorer, dev.queries, dev.fetch, depth=dev.run.depth, segment=dev.segment)
        return engines.mean(engines.evaluate(run, dev.qrels, [self.metric])[self.metric])

    def resume_from(self, step: int) -> None:
        """Load the measures of an earlier session up to `step`."""
        path = self.folder / "dev.json"
        before = read_json(path, "dev measures")["measured"] if step and path.exists() else []
        self.measured = [entry for entry in before if entry["step"] <= step]
        for path in self._kept():
            if _step(path) > step and self.writes:  # these steps run again
                path.unlink()

    def _kept(self) -> list[Path]:
        """Return weight files, each the best of its time, in order of steps."""
        return sorted(self.folder.glob("best-*.safetensors"), key=_step)

    def is_enough(self) -> bool:
        """Return whether `patience` has run out."""
        values = self.values()
        if self.patience is None or not values:
            return False
        return len(values) - 1 - values.index(max(values)) >= self.patience  # the first of ties is the best

    def take_best(self) -> list[dict[str, float]]:
        """Load the best weights into the model; return the measures."""
        if kept := self._kept():
            load_model(self.model, str(kept[-1]))
        return self.measured

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                    lr_scheduler: LRScheduler | None = None, **_: object) -> None:  # fmt: skip
        """Evaluate after every `eval_steps` steps and after the last one."""
        if state.global_step % self.eval_steps and state.global_step != state.max_steps:
            return
        self.measure(state.global_step)
        values = self.values()
        if self.plateau and lr_scheduler is not None and plateaus(values) > plateaus(values[:-1]):
            lr_scheduler.base_lrs = [FACTOR * rate for rate in lr_scheduler.base_lrs]  # acts after the next step; is saved
            logger.info("no improvement for %d evaluations: learning rate %g", PLATEAU + 1, lr_scheduler.base_lrs[0])
        if self.is_enough():
            logger.info("no improvement for %d evaluations: training stops", self.patience)
            control.should_training_stop = True


def _of_the_first(value: float) -> float:
    """Return the value of the first process: all must stop, or lower the learning rate, together."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _step(path: Path) -> int:
    """Return the step in the name of a weight file or a saved state."""
    return int(path.stem.rpartition("-")[2])
