"""Training on several processes."""

import json
import multiprocessing
import os
import signal
import socket

import pytest
import torch

from pyserini_kd.data.formats import read_collection, read_topics
from pyserini_kd.distillation import candidates, objective, text_store, training
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.teacher_scores import Scores
from pyserini_kd.models import loading
from tests.conftest import cross, stages_of

pytestmark = pytest.mark.slow
FRESH = multiprocessing.get_context("forkserver")  # fresh processes that share one import of torch and transformers

FRESH.set_forkserver_preload(
    [
        "pyserini_kd.distillation.training",
        "pyserini_kd.distillation.objective",
        "transformers.trainer",
        "transformers.models.bert.modeling_bert",
    ]
)


def run_in_process(folder, docs, topics, threads, environment, killed_in=None):
    """Train the runs of `runs.json` in a fresh process; kill it while it saves a state of stage `killed_in`."""
    import transformers

    os.environ.update(environment)
    torch.set_num_threads(threads)
    save = transformers.Trainer._save_optimizer_and_scheduler

    def save_or_die(self, state):
        save(self, state)
        if killed_in is not None and killed_in in state:
            os.kill(os.getpid(), signal.SIGKILL)

    transformers.Trainer._save_optimizer_and_scheduler = save_or_die
    losses = keep_losses()
    groups = candidates.read_candidates(folder / "c.jsonl")
    queries, texts = text_store.load_texts(groups, read_topics(topics), read_collection(docs))
    scores = Scores(groups).fill(json.loads((folder / "scores.json").read_text()))
    for name, settings in json.loads((folder / "runs.json").read_text()).items():
        config = TrainConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
        losses.clear()
        training.train(config, groups, queries, texts, folder / name, scores=scores)
        if environment.get("RANK") == "0":
            (folder / f"{name}-losses.json").write_text(json.dumps(losses))


def keep_losses():
    """A list that collects the loss of every following batch of this process."""
    forward, losses = objective.Learner.forward, []

    def kept(self, **batch):
        output = forward(self, **batch)
        losses.append(float(output["loss"].detach()))
        return output

    objective.Learner.forward = kept
    return losses


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def exit_codes_of_two(folder, files, killed_in=None):
    """Run two processes on the runs of a folder; return their exit codes."""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    own = [{**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    started = [
        FRESH.Process(target=run_in_process, args=(folder, files["docs"], files["topics"], 1, one, killed_in)) for one in own
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=120)
    return [process.exitcode for process in started]


def test_torchrun_with_one_process_trains_a_stage_on_layers(tmp_path, data, liked, files, tiny_cross, teacher):
    candidates.write_candidates(data[0], tmp_path / "c.jsonl")
    (tmp_path / "scores.json").write_text(json.dumps(liked))
    config = cross("tinybert", tiny_cross, teacher=teacher, max_steps=2)
    (tmp_path / "runs.json").write_text(json.dumps({"out": config.model_dump(exclude_unset=True)}))
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "1",
        "RANK": "0",
        "LOCAL_RANK": "0",
    }
    process = FRESH.Process(target=run_in_process, args=(tmp_path, files["docs"], files["topics"], 1, environment))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == 0 and len(stages_of(tmp_path / "out")) == 2


def test_two_processes_train_like_one(tmp_path, data, liked, scores, files, tiny_dot, tiny_cross, teacher, monkeypatch):
    """As with torchrun: same loss at each step and same final weights, also with uneven shares."""
    groups = [
        group._replace(doc_ids=group.doc_ids[: 5 - n % 3], labels=group.labels[: 5 - n % 3]) for n, group in enumerate(data[0])
    ]
    # at the recipe's rate; ten times as quick, Adam carries rounding to 3e-4 of a loss by the 50th step
    common = {"max_steps": 50, "batch_size": 3, "lr": 1e-4, "precision": "fp32", "save_steps": 4}
    layered = {**common, "init": str(tiny_cross), "architecture": "cross_encoder", "teacher": teacher}
    runs = {
        "dot": {**common, "recipe": "margin-mse", "init": str(tiny_dot), "losses": ["in_batch=0.5"], "accumulate": 2},
        "tinybert": {**layered, "recipe": "tinybert", "max_steps": 5},
    }
    candidates.write_candidates(groups, tmp_path / "c.jsonl")
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    (tmp_path / "scores.json").write_text(json.dumps(liked))
    assert exit_codes_of_two(tmp_path, files) == [0, 0]
    monkeypatch.setattr(objective.Learner, "forward", objective.Learner.forward)  # restored at the end
    losses = keep_losses()
    for name, settings in runs.items():
        losses.clear()
        config = TrainConfig(**{**settings, "losses": tuple(settings.get("losses", ()))})
        one = training.train(config, groups, *data[1:], tmp_path / f"{name}-alone", scores=scores)
        for alone, both in zip(stages_of(one), stages_of(tmp_path / name), strict=True):
            assert len(alone["log"]) == len(both["log"]) and alone["steps"] == both["steps"] == settings["max_steps"]
            for a, b in zip(alone["log"], both["log"], strict=True):
                assert a.keys() == b.keys() and b == pytest.approx(a, rel=1e-4)
        theirs = json.loads((tmp_path / f"{name}-losses.json").read_text())
        assert theirs == pytest.approx(losses, rel=1e-4)  # of every batch
        a, b = (loading.load(str(folder)).state_dict() for folder in (one, tmp_path / name))
        noise = "key.bias"  # softmax cancels it: its gradient is rounding noise, scaled up by Adam
        assert all(torch.allclose(a[name], b[name], atol=2e-5) for name in a if not name.endswith(noise))
        assert json.loads((tmp_path / name / "training.json").read_text())["processes"] == 2
