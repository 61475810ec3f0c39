"""Validation while training: the student reranks dev topics now and then; the best weights are kept."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyserini_kd import sources
from pyserini_kd.data import Doc, Qrels, Query
from pyserini_kd.evaluate import evaluate, mean
from pyserini_kd.files import InputError, read_json, write_json
from pyserini_kd.rerank import rerank
from pyserini_kd.runs import Run

logger = logging.getLogger(__name__)

PLATEAU, FACTOR = 15, 0.25
"""`--schedule plateau`: measures without a better one that are borne, and what the learning rate is then multiplied by
(Hofstätter et al. 2020; they measured every 4,000 batches)."""


class Dev(NamedTuple):
    """Dev topics: the top of a first-stage run, reranked by the student every `eval_steps`, decides the best checkpoint."""

    queries: list[Query]
    qrels: Qrels
    run: Run
    docs: dict[str, Doc]


def read_dev(topics: str | None, qrels: str | None, run: Path | None, depth: int, collection: str) -> Dev | None:
    """Dev topics from what the command was given; None where it was given nothing."""
    given = [name for name in (topics, qrels, run) if name is not None]
    if not given:
        return None
    if topics is None or qrels is None or run is None:
        raise InputError("--dev-topics, --dev-qrels and --dev-run go together")
    first = Run.read(run).top(depth)
    wanted = {doc_id for hits in first.values() for doc_id in hits.doc_ids}
    docs = {doc.doc_id: doc for doc in sources.collection(collection) if doc.doc_id in wanted}
    missing = wanted - docs.keys()
    if missing:
        raise InputError(f"{len(missing)} documents of {run} are not in the collection, e.g. {min(missing)}")
    return Dev(sources.topics(topics), sources.qrels(qrels), first, docs)


def plateaus(values: Sequence[float]) -> int:
    """How often the learning rate has been lowered after these measures, as torch's ReduceLROnPlateau would.

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


def make_watch(
    model: Any,
    dev: Dev,
    folder: Path,
    *,
    metric: str,
    eval_steps: int,
    patience: int | None = None,
    plateau: bool = False,
    writes: bool = True,
) -> Any:
    """A Trainer callback that measures the student on dev topics, keeps the best weights, and may slow or stop training.

    With several processes each measures, so that all stop together; one (`writes`) keeps files in `folder`.
    """
    import transformers
    from safetensors.torch import load_model, save_model

    class Watch(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.kept = folder / "best.safetensors"
            self.measured: list[dict[str, float]] = []

        def measure(self, step: int) -> None:
            run = rerank(dev.run, model, dev.queries, lambda ids: (dev.docs[i] for i in ids), depth=dev.run.depth)
            value = mean(evaluate(run, dev.qrels, [metric])[metric])
            best = value > max((entry[metric] for entry in self.measured), default=-1.0)
            self.measured.append({"step": step, metric: value})
            if not writes:
                return
            logger.info("step %d: %s %.4f on dev topics%s", step, metric, value, " (best)" if best else "")
            if best:
                save_model(model, f"{self.kept}.partial")
                os.replace(f"{self.kept}.partial", self.kept)
            write_json(folder / "dev.json", {"measured": self.measured})

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.measured = _measured_before(folder / "dev.json", state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            last = state.global_step == state.max_steps
            if state.global_step % eval_steps and not last:
                return
            self.measure(state.global_step)
            values = [entry[metric] for entry in self.measured]
            if plateau:
                slow_down(values, others["lr_scheduler"])
            if patience is not None and len(values) - 1 - values.index(max(values)) >= patience:
                logger.info("no better for %d evaluations: training stops", patience)
                control.should_training_stop = True

        def take_best(self) -> list[dict[str, float]]:
            """Put the best weights into the model; returns what was measured."""
            if self.kept.exists():
                load_model(model, str(self.kept))
            return self.measured

    return Watch()


def _measured_before(path: Path, step: int) -> list[dict[str, float]]:
    """What was measured up to a step, where training goes on after a crash."""
    before: list[dict[str, float]] = read_json(path, "dev measures")["measured"] if step and path.exists() else []
    return [entry for entry in before if entry["step"] <= step]


def slow_down(values: Sequence[float], scheduler: Any) -> None:
    """Multiply the learning rates, from the next step but one, by FACTOR where measures have come to a plateau."""
    if plateaus(values) > plateaus(values[:-1]):
        scheduler.base_lrs = [FACTOR * rate for rate in scheduler.base_lrs]  # part of the saved state
        logger.info("no better for %d evaluations: learning rate %g", PLATEAU + 1, scheduler.base_lrs[0])
