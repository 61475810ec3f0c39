"""Validation against dev data that do not belong together, and against processes with different precision."""

import pytest
import torch

from pyserini_kd.distillation import batches, processes, training
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.validation import Watch, read_dev
from pyserini_kd.models import loading
from pyserini_kd.storage.errors import InputError
from tests.distillation.test_validation import given


def test_inconsistent_dev_data_is_refused_before_training(tmp_path, files):
    (tmp_path / "run.txt").write_text("nobody Q0 eat-cat 1 1.0 t\n")
    with pytest.raises(InputError, match="1 queries of .*run.txt are not among the dev topics, e.g. nobody"):
        read_dev(given(files, tmp_path / "run.txt"))
    (tmp_path / "other.qrels").write_text("nobody 0 eat-cat 1\n")
    (tmp_path / "run.txt").write_text("q0 Q0 eat-cat 1 1.0 t\n")
    with pytest.raises(InputError, match="share no"):
        read_dev(given(files, tmp_path / "run.txt", qrels=str(tmp_path / "other.qrels")))


def test_dev_retrieval_needs_a_relevant_document(tmp_path, files):
    (tmp_path / "other.qrels").write_text("q0 0 a-dog 1\nq0 0 eat-dog 0\n")
    with pytest.raises(InputError, match="the collection .* has no relevant document of .*other.qrels for the dev topics"):
        read_dev(given(files, qrels=str(tmp_path / "other.qrels"), dev_retrieval=True))


def test_best_weights_of_repeated_steps_are_removed(tmp_path, tiny_dot, dev, monkeypatch):
    """Best at step 6, state saved at 4, killed at 7: steps after 4 run again and may give other results."""
    values = iter([0.1, 0.4, 0.9, 0.3, 0.2])
    monkeypatch.setattr("pyserini_kd.evaluation.engines.mean", lambda _: next(values))
    model = loading.load(str(tiny_dot))
    weight = next(model.parameters())

    def measure(watch, *steps):
        for step in steps:
            torch.nn.init.constant_(weight, step)
            watch.measure(step)

    first = Watch(model, dev, tmp_path, metric="RR@10", eval_steps=2, precision="fp32")
    measure(first, 2, 4)
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "saved-0-of-1").touch()
    measure(first, 6)
    assert sorted(path.name for path in tmp_path.glob("best*")) == ["best-4.safetensors", "best-6.safetensors"]
    again = Watch(model, dev, tmp_path, metric="RR@10", eval_steps=2, precision="fp32")
    again.resume_from(4)
    measure(again, 6, 8)
    assert [entry["RR@10"] for entry in again.take_best()] == [0.1, 0.4, 0.3, 0.2]
    assert weight.unique().tolist() == [4.0]


def test_processes_with_different_precision_are_refused(monkeypatch):
    def gather(every, own):
        every[:] = [own, "bf16"]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    config = TrainConfig(recipe="ranknet", init="x", precision="fp32")
    with pytest.raises(InputError, match="bf16 on some machines and fp32 on others"):
        processes.check_precision(config, batches.Share(0, 2))


def test_dev_topics_are_refused_without_score_losses(tmp_path, data, tiny_cross, dev):
    config = TrainConfig(
        recipe="tinybert",
        init=str(tiny_cross),
        architecture="cross_encoder",
        losses=("soft_ce=none",),
        teacher=str(tiny_cross),
        patience=1,
    )
    with pytest.raises(InputError, match="dev topics need a loss on scores; recipe tinybert with these settings has none"):
        training.train(config, *data, tmp_path / "out", dev=dev)
