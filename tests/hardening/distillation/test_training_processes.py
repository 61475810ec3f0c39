"""Training processes that are killed with signal 9 and started again."""

import json
import signal

import pytest
import torch

from pyserini_kd.distillation import candidates, training
from pyserini_kd.models import checkpoint_folder
from tests.conftest import cross, stages_of
from tests.distillation.test_training_processes import FRESH, exit_codes_of_two, run_in_process

pytestmark = pytest.mark.slow


def test_two_processes_killed_with_signal_9_resume_to_the_same_weights(tmp_path, data, liked, files, tiny_dot):
    config = {"recipe": "margin-mse", "init": str(tiny_dot), "max_steps": 9, "batch_size": 3, "lr": 1e-3, "precision": "fp32",
              "save_steps": 2, "dropout": 0.3}  # fmt: skip
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        candidates.write_candidates(data[0], tmp_path / name / "c.jsonl")
        (tmp_path / name / "scores.json").write_text(json.dumps(liked))
        (tmp_path / name / "runs.json").write_text(json.dumps({"out": config}))
    assert exit_codes_of_two(tmp_path / "whole", files) == [0, 0]
    assert exit_codes_of_two(tmp_path / "cut", files, killed_in="checkpoint-6") == [-signal.SIGKILL] * 2
    states = tmp_path / "cut" / "out.partial" / "stage-1"
    assert sorted(path.name for path in states.glob("checkpoint-4/saved-*")) == ["saved-0-of-2", "saved-1-of-2"]
    assert not list(states.glob("checkpoint-6/saved-*"))
    assert exit_codes_of_two(tmp_path / "cut", files) == [0, 0]
    whole, cut = tmp_path / "whole" / "out", tmp_path / "cut" / "out"
    assert checkpoint_folder.fingerprint(cut) == checkpoint_folder.fingerprint(whole)
    assert [entry["step"] for entry in stages_of(cut)[0]["log"]] == [entry["step"] for entry in stages_of(whole)[0]["log"]]


def test_a_run_killed_with_signal_9_in_its_second_stage_resumes_to_the_same_weights(
    tmp_path, data, liked, files, tiny_cross, teacher, whole_tinybert
):
    candidates.write_candidates(data[0], tmp_path / "c.jsonl")
    (tmp_path / "scores.json").write_text(json.dumps(liked))
    config = cross("tinybert", tiny_cross, teacher=teacher, save_steps=2)
    (tmp_path / "runs.json").write_text(json.dumps({"out": config.model_dump(exclude_unset=True)}))
    process = FRESH.Process(
        target=run_in_process, args=(tmp_path, files["docs"], files["topics"], torch.get_num_threads(), {}, "stage-2")
    )
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    half = tmp_path / "out.partial" / "stage-2" / "checkpoint-2"  # killed while saving: weights without the mark
    assert (half / "model.safetensors").exists() and not list(half.glob("saved-*"))
    out = training.train(config, *data, tmp_path / "out")
    assert checkpoint_folder.fingerprint(out) == checkpoint_folder.fingerprint(whole_tinybert)
