"""Validation while training: the student reranks or retrieves for dev topics now and then; the best weights are kept."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyserini_kd.data import passages, sources
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Qrels, Query
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import read_json, write_json

logger = logging.getLogger(__name__)

PLATEAU, FACTOR = 15, 0.25
"""`--schedule plateau`: measures without a better one that are borne, and what the learning rate is then multiplied by
(Hofstätter et al. 2020; they measured every 4,000 batches)."""


HITS = 1000
"""Documents that a dev query retrieves, as many as `search` does."""
PASSAGES = 10
"""Passages that are looked at for one of them."""


class Dev(NamedTuple):
    """Dev topics, on which the student decides its best checkpoint every `eval_steps`."""

    queries: list[Query]
    qrels: Qrels
    run: Run | None  # whose documents are reranked; None: a bert_dot searches all `docs`
    docs: dict[str, Doc]
    segment: str | None = None  # how documents are cut; their best passage counts


def read_dev(
    topics: str | None,
    qrels: str | None,
    run: Path | None,
    depth: int,
    collection: str,
    segment: str | None = None,
    retrieval: bool = False,
) -> Dev | None:
    """Dev topics from what the command was given; None where it was given nothing.

    For `retrieval` the documents are those of the run (to `depth`) and the judged ones; without a run, the collection.

    Raises:
        InputError: what was given does not belong together.
    """
    from pyserini_kd.evaluation.engines import evaluate

    if topics is None and qrels is None and run is None and not retrieval:
        return None
    if topics is None or qrels is None or (run is None and not retrieval):
        raise InputError("--dev-topics, --dev-qrels and --dev-run (or --dev-retrieval) go together")
    judged, queries = sources.qrels(qrels), sources.topics(topics)
    first = Run.read(run).top(depth) if run else Run.from_scores("none", {query.query_id: {} for query in queries})
    unknown = sorted(first.keys() - {query.query_id for query in queries})
    if unknown:
        raise InputError(f"{len(unknown)} queries of {run} are not among the dev topics, e.g. {unknown[0]}")
    evaluate(first, judged, ["RR@10"])  # they must share queries
    wanted = {doc_id for hits in first.values() for doc_id in hits.doc_ids}
    found = [judged.get(query_id, {}) for query_id in first] if retrieval else []
    more = {doc_id for labels in found for doc_id in labels}
    docs = {doc.doc_id: doc for doc in sources.collection(collection) if not run or doc.doc_id in wanted or doc.doc_id in more}
    missing = wanted - docs.keys()
    if missing:
        raise InputError(f"{len(missing)} documents of {run} are not in the collection, e.g. {min(missing)}")
    if retrieval and not any(label > 0 and doc_id in docs for labels in found for doc_id, label in labels.items()):
        raise InputError(f"no document that {qrels} calls relevant to a dev topic is in the collection {collection}")
    return Dev([query for query in queries if query.query_id in first], judged, None if retrieval else first, docs, segment)


def retrieved(model: Any, dev: Dev, precision: str = "auto") -> Run:
    """What a bert_dot finds among all documents of some dev topics, by exact search."""
    import faiss

    from pyserini_kd.data.doc_ids import DocIds
    from pyserini_kd.models.rankers import Encoder
    from pyserini_kd.retrieval.dense_index import DenseIndex
    from pyserini_kd.retrieval.dense_search import dense
    from pyserini_kd.retrieval.vector_store import FaissStore

    docs = list(passages.segment(dev.docs.values(), dev.segment) if dev.segment else dev.docs.values())
    encoder = Encoder(model, precision=precision)
    vectors = encoder.encode_docs([doc.contents for doc in docs])
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    index = DenseIndex(Path(), FaissStore(flat), DocIds("".join(f"{doc.doc_id}\n" for doc in docs).encode()), None)
    run = dense(index, encoder, dev.queries, hits=HITS * PASSAGES if dev.segment else HITS)
    return passages.aggregate(run, k=HITS) if dev.segment else run


def plateaus(values: Sequence[float]) -> int:
    """How often the learning rate has been lowered after these measures, as by torch's ReduceLROnPlateau with threshold 0.

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


def in_vain(values: Sequence[float]) -> int:
    """How many measures have come since the best, the first of equals.

    >>> in_vain([0.1, 0.3, 0.3, 0.2]), in_vain([])
    (2, 0)
    """
    return len(values) - 1 - values.index(max(values)) if values else 0


class Watch:
    """Measures the student on dev topics, keeps the best weights, and may slow or stop training.

    With several processes one (`writes`) measures and keeps files in `folder`; all have its measures, and stop together.
    """

    def __init__(
        self,
        model: Any,
        dev: Dev,
        folder: Path,
        *,
        metric: str,
        eval_steps: int,
        patience: int | None = None,
        plateau: bool = False,
        precision: str = "auto",
        writes: bool = True,
    ) -> None:
        self.model, self.dev, self.folder = model, dev, folder
        self.metric, self.eval_steps, self.patience, self.plateau = metric, eval_steps, patience, plateau
        self.precision, self.writes = precision, writes
        self.measured: list[dict[str, float]] = []

    def values(self) -> list[float]:
        """The measures so far."""
        return [entry[self.metric] for entry in self.measured]

    def measure(self, step: int) -> None:
        """Rank documents for the dev topics and keep the measure; and the weights, if it is the best."""
        from safetensors.torch import save_model

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
            for old in [path for path in self._kept() if _step(path) <= saved][:-1]:  # of which a crash needs the last
                old.unlink()
        write_json(self.folder / "dev.json", {"measured": self.measured})

    def _value(self) -> float:
        from pyserini_kd.evaluation.engines import evaluate, mean
        from pyserini_kd.models.rankers import ranker
        from pyserini_kd.retrieval.reranking import rerank

        texts, dev = self.dev.docs.__getitem__, self.dev
        if dev.run is None:
            run = retrieved(self.model, dev, self.precision)
        else:
            scorer = ranker(self.model, precision=self.precision)
            run = rerank(dev.run, scorer, dev.queries, lambda ids: map(texts, ids), depth=dev.run.depth, segment=dev.segment)
        return mean(evaluate(run, dev.qrels, [self.metric])[self.metric])

    def go_on(self, step: int) -> None:
        """Take up what was measured before a crash, until `step`."""
        path = self.folder / "dev.json"
        before = read_json(path, "dev measures")["measured"] if step and path.exists() else []
        self.measured = [entry for entry in before if entry["step"] <= step]
        for path in self._kept():
            if _step(path) > step and self.writes:  # of steps that will be taken again
                path.unlink()

    def _kept(self) -> list[Path]:
        """The weights that were the best when they were measured, in that order."""
        return sorted(self.folder.glob("best-*.safetensors"), key=_step)

    def is_enough(self) -> bool:
        """Whether training is to stop, as `patience` has it."""
        return in_vain(self.values()) >= (self.patience or sys.maxsize)

    def take_best(self) -> list[dict[str, float]]:
        """Put the best weights into the model; returns what was measured."""
        from safetensors.torch import load_model

        if kept := self._kept():
            load_model(self.model, str(kept[-1]))
        return self.measured

    def callback(self) -> Any:
        """What Trainer calls after every step."""
        import transformers

        class Look(transformers.TrainerCallback):
            def on_step_end(_, args: Any, state: Any, control: Any, **others: Any) -> None:
                if state.global_step % self.eval_steps and state.global_step != state.max_steps:
                    return
                self.measure(state.global_step)
                if self.plateau:
                    slow_down(self.values(), others["lr_scheduler"])
                if self.is_enough():
                    logger.info("no better for %d evaluations: training stops", self.patience)
                    control.should_training_stop = True

        return Look()


def _of_the_first(value: float) -> float:
    """The first process's value: what follows from it, a stop or a lower learning rate, must be the same in all."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _step(path: Path) -> int:
    """The step in the name of a file of weights or a saved state."""
    return int(path.stem.rpartition("-")[2])


def slow_down(values: Sequence[float], scheduler: Any) -> None:
    """Multiply the learning rates, from the next step but one, by FACTOR where measures have come to a plateau."""
    if plateaus(values) > plateaus(values[:-1]):
        scheduler.base_lrs = [FACTOR * rate for rate in scheduler.base_lrs]  # part of the saved state
        logger.info("no better for %d evaluations: learning rate %g", PLATEAU + 1, scheduler.base_lrs[0])
