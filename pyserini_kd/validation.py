"""Validation while training: the student reranks dev topics now and then; the best weights are kept."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from pyserini_kd import sources
from pyserini_kd.data import Doc, Qrels, Query
from pyserini_kd.evaluate import evaluate, mean
from pyserini_kd.files import InputError, read_json, write_json
from pyserini_kd.rerank import rerank
from pyserini_kd.runs import Run

logger = logging.getLogger(__name__)


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


def make_watch(
    model: Any, dev: Dev, folder: Path, *, metric: str, eval_steps: int, patience: int | None, writes: bool = True
) -> Any:
    """A Trainer callback that measures the student on dev topics, keeps the best weights, and may stop training.

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
                save_model(model, str(self.kept))
            write_json(folder / "dev.json", {"measured": self.measured})

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step and (folder / "dev.json").exists():  # going on after a crash
                before = read_json(folder / "dev.json", "dev measures")["measured"]
                self.measured = [entry for entry in before if entry["step"] <= state.global_step]

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            last = state.global_step == state.max_steps
            if state.global_step % eval_steps and not last:
                return
            self.measure(state.global_step)
            values = [entry[metric] for entry in self.measured]
            if patience is not None and len(values) - 1 - values.index(max(values)) >= patience:
                logger.info("no better for %d evaluations: training stops", patience)
                control.should_training_stop = True

        def take_best(self) -> list[dict[str, float]]:
            """Put the best weights into the model; returns what was measured."""
            if self.kept.exists():
                load_model(model, str(self.kept))
            return self.measured

    return Watch()
