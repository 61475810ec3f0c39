"""Training: batches, scores with gradients, learning, resuming, refusals."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import cross, save_cross, score, stages_of

from pyserini_kd import teach, train
from pyserini_kd.data import docstrings
from pyserini_kd.data.formats import write_collection
from pyserini_kd.distillation import batches, objective, processes, stages, text_store, training, training_data
from pyserini_kd.distillation.candidates import Group, write_candidates
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.teacher_scores import Scores
from pyserini_kd.distillation.train_settings import TrainSettings
from pyserini_kd.distillation.trainer import checkpoints, clock, last_state, make_trainer, time
from pyserini_kd.models import checkpoint_folder, loading, saving
from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import locked


def test_batches_never_cross_blocks():
    groups = [Group(str(n), ["p", "n"], [1, 0], n // 4) for n in range(10)]
    cut = batches.cut_batches(groups, 3, seed=0)
    assert [[g.query_id for g in batch] for batch in cut] == [["0", "1", "2"], ["3"], ["4", "5", "6"], ["7"], ["8", "9"]]


def test_small_blocks_make_a_batch_together(caplog):
    groups = [Group(str(n), ["p", "n"], [1, 0], n // 2) for n in range(20)] + [
        Group(str(n), ["p"], [1], -1) for n in range(20, 24)
    ]
    cut = list(batches.cut_batches(groups, 6, seed=0))
    assert sum(map(len, cut)) == 24 and max(map(len, cut)) == 6 and len(cut) <= 5
    together = [{g.query_id for g in batch} for batch in cut]
    assert all(any({str(n), str(n + 1)} <= batch for batch in together) for n in range(0, 20, 2))  # each block in one batch
    assert cut != list(batches.cut_batches(groups, 6, seed=1)) and not caplog.text
    batches.cut_batches([Group(str(n), ["p"], [1], n // 4) for n in range(16)], 6, seed=0)
    assert "batches have 4 queries on average, not 6" in caplog.text


def test_triples_are_shuffled_into_full_batches():
    groups = [Group(str(n), ["p", "n"], [1, 0], n) for n in range(10)]
    cut = batches.cut_batches(groups, 4, seed=0)
    assert [len(b) for b in cut] == [4, 4, 2]
    assert sorted(g.query_id for b in cut for g in b) == sorted(str(n) for n in range(10))
    assert list(cut) == list(batches.cut_batches(groups, 4, seed=0)) != list(batches.cut_batches(groups, 4, seed=1))
    assert cut[1:] == list(cut)[1:]
    lengths = [5, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    cut = batches.cut_batches(groups, 4, seed=0, lengths=lengths)
    assert [sorted(lengths[int(g.query_id)] for g in batch) for batch in cut] == [[1, 1, 2, 3], [4, 5, 5, 5], [6, 9]]


@pytest.mark.parametrize("architecture", ["bert_dot", "colbert", "cross_encoder", "tk"])
def test_training_scores_are_inference_scores(data, scores, tiny_dot, tiny_cross, architecture):
    groups, queries, docs = data
    path = tiny_cross if architecture == "cross_encoder" else tiny_dot
    model = loading.load(str(path), architecture=architecture)
    batch = batches.Collator(model, queries, docs, scores)([groups[:3]])
    got = objective.group_scores(model, batch).detach().numpy()
    for row, group in enumerate(groups[:3]):
        texts = [docs[d] for d in group.doc_ids]
        expected = score(model, [queries[group.query_id]] * len(texts), texts, precision="fp32")
        assert np.allclose(got[row, : len(texts)], expected, rtol=1e-4, atol=1e-4)
        assert batch["teacher"][row, : len(texts)].tolist() == scores.of(group)


class Spy:
    """A model that keeps what it is asked to tokenise."""

    architecture, max_len = "cross_encoder", 48

    def pair_batch(self, queries, docs, pairs, max_doc_len=None):
        self.asked = (queries, docs, pairs, max_doc_len)
        return {"input_ids": torch.tensor(pairs)}


def test_each_query_document_and_pair_is_tokenised_once(data):
    groups, queries, docs = data
    spy = Spy()
    batch = batches.Collator(spy, queries, docs, train_len=20)([groups[:5]])
    assert [len(x) for x in spy.asked[:3]] == [5, 5, 25] and spy.asked[3] == 20  # a block shares its documents
    assert batch["rows"].shape == (5, 5) and int(batch["pairs"]) == 25
    twice = [groups[0], groups[0]._replace(doc_ids=groups[0].doc_ids[:2], labels=groups[0].labels[:2])]
    batch = batches.Collator(spy, queries, docs)([twice])
    assert [len(x) for x in spy.asked[:3]] == [1, 5, 5] and spy.asked[3] == 48
    assert batch["rows"].tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 0, 0]] and batch["mask"].sum(1).tolist() == [5, 2]
    for (query, doc), place in zip(spy.asked[2], batch["rows"][0].tolist(), strict=True):
        assert spy.asked[0][query] == queries[groups[0].query_id] and spy.asked[1][doc] == docs[groups[0].doc_ids[place]]


def test_in_batch_negatives_pair_every_query_with_every_document():
    groups = [Group("a", ["x", "y"], [1, 0], 0), Group("b", ["z", "x"], [1, 0], 0), Group("a", ["z", "y"], [1, 0], 1)]
    spy = Spy()
    batch = batches.Collator(spy, {"a": "A", "b": "B"}, {"x": "X", "y": "Y", "z": "Z"}, in_batch=True)([groups])
    assert batch["batch_labels"].tolist() == [[1, 0, 1], [0, 0, 1], [1, 0, 1]]  # columns x, y, z; a has two positives
    places = [
        [(spy.asked[0][q], spy.asked[1][d]) for q, d in (spy.asked[2][row] for row in rows)] for rows in batch["batch_rows"]
    ]
    assert places == [[(query, doc) for doc in "XYZ"] for query in "ABA"]
    assert int(batch["pairs"]) == 6
    teacher = Spy()
    live = batches.Collator(spy, {"a": "A", "b": "B"}, {"x": "X", "y": "Y", "z": "Z"}, in_batch=True, teacher=teacher)([groups])
    assert len(spy.asked[2]) == 6 and len(teacher.asked[2]) == int(live["taught"]) == 5  # b y belongs to no group


def test_the_spread_of_scores_is_that_within_queries():
    scores = torch.tensor([[5.0, 5.0, 99.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert objective.spread(scores, mask) == (pytest.approx(7.4), 0.0)  # documents do not matter, however far queries are apart
    assert objective.spread(torch.tensor([[1.0, 3.0], [7.0, 9.0]]), torch.ones(2, 2, dtype=torch.bool)) == (5.0, 1.0)


def test_shares_cover_every_pair_once(data):
    groups, queries, docs = data
    for world in (1, 2, 3, 40):
        ends = [batches.Share(rank, world).of(25) for rank in range(world)]
        assert [row for start, end in ends for row in range(start, end)] == list(range(25))
    spy = Spy()
    whole = batches.Collator(spy, queries, docs)([groups[:5]])["student"]["input_ids"]
    assert len(whole) == 25
    half = batches.Collator(spy, queries, docs, share=batches.Share(1, 2))([groups[:5]])
    assert len(half["student"]["input_ids"]) == 13 and half["rows"].shape == (5, 5) and int(half["pairs"]) == 25


def test_texts_are_cut_into_batches_of_like_length():
    texts = [f"{n:03}" + "x" * (n % 50) for n in range(200)]
    cut = batches.cut_texts(texts, 8, seed=0)
    assert sorted(t for batch in cut for t in batch) == sorted(texts) and {len(batch) for batch in cut} == {8}
    assert max(len(batch[-1]) - len(batch[0]) for batch in cut) <= 3
    assert list(cut) == list(batches.cut_texts(texts, 8, seed=0)) != list(batches.cut_texts(texts, 8, seed=1))


@pytest.mark.parametrize(
    ("recipe", "architecture"),
    [
        ("margin-mse", "bert_dot"),
        ("ranknet", "cross_encoder"),
        ("margin-mse", "colbert"),
        ("contrastive", "bert_dot"),
        ("margin-mse", "prettr"),
        ("ranknet", "tk"),
    ],
)
def test_recipes_learn(tmp_path, data, scores, tiny_dot, tiny_cross, recipe, architecture):
    init = tiny_cross if architecture == "cross_encoder" else tiny_dot
    settings = {"prettr": ("join_layer=1",), "tk": ("heads=4",)}.get(architecture, ())
    lr = 3e-2 if architecture == "tk" else 3e-3
    config = TrainConfig(
        recipe=recipe,
        init=str(init),
        architecture=architecture,
        lr=lr,
        max_steps=40,
        batch_size=5,
        precision="fp32",
        settings=settings,
    )
    out = training.train(config, *data, tmp_path / "out", scores=scores)
    record = json.loads((out / "training.json").read_text())
    (stage,) = record["stages"]
    (loss,) = stage["losses"]
    assert stage["log"][-1][loss] < 0.5 * stage["log"][0][loss]
    assert stage["steps"] == 40 and record["config"]["lr"] == lr
    groups, queries, docs = data
    model = loading.load(str(out))
    assert model.architecture == architecture
    best = [int(np.argmax(score(model, [queries[g.query_id]] * len(g.doc_ids), [docs[d] for d in g.doc_ids])))
            for g in groups]  # fmt: skip
    assert np.mean([b == 0 for b in best]) >= 0.9  # the positive stands first in each group
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(("architecture", "more"), [("bert_dot", ()), ("tk", ("heads=4",))])  # a tk has two learning rates
def test_same_seed_same_weights_and_a_cut_run_resumes_to_them(
    tmp_path, data, scores, tiny_dot, monkeypatch, architecture, more
):
    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), architecture=architecture, settings=more, lr=1e-3, max_steps=8, batch_size=5,
                         save_steps=3, precision="fp32")  # fmt: skip
    whole = checkpoint_folder.fingerprint(training.train(config, *data, tmp_path / "whole", scores=scores))
    assert checkpoint_folder.fingerprint(training.train(config, *data, tmp_path / "again", scores=scores)) == whole
    import transformers

    step = transformers.Trainer.training_step
    monkeypatch.setattr(
        transformers.Trainer, "training_step",
        lambda self, *a, **k: (_ for _ in ()).throw(KeyboardInterrupt) if self.state.global_step == 5 else step(self, *a, **k),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        training.train(config, *data, tmp_path / "cut", scores=scores)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(transformers.Trainer, "training_step", step)
    broken = tmp_path / "cut.partial" / "stage-1" / "checkpoint-6"  # killed while the last of its files was written
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    (broken / "trainer_state.json").write_text('{"epoch"')
    (tmp_path / "cut.partial" / ".made_from.json.abc.partial").write_text("{")
    assert checkpoint_folder.fingerprint(training.train(config, *data, tmp_path / "cut", scores=scores)) == whole


@pytest.mark.parametrize("patience", [None, 1])
def test_a_kill_between_the_last_step_and_its_record_adds_no_step(tmp_path, data, scores, tiny_dot, dev, monkeypatch, patience):
    """5 steps are no whole epoch; with patience training stops when the measure, always 1, has not risen once."""
    monkeypatch.setattr(
        "pyserini_kd.evaluation.engines.evaluate", lambda run, qrels, names: {name: {"q": 1.0} for name in names}
    )
    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), lr=1e-3, schedule="constant", max_steps=5 if patience is None else 20,
                         batch_size=5, save_steps=1, eval_steps=2, patience=patience, precision="fp32")  # fmt: skip
    given = {"scores": scores, "dev": dev if patience else None}
    whole = training.train(config, *data, tmp_path / "whole", **given)
    save = stages.save_model

    def killed(model, path):
        if path.endswith("000001.safetensors"):
            raise KeyboardInterrupt
        save(model, path)

    monkeypatch.setattr(stages, "save_model", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(config, *data, tmp_path / "cut", **given)
    monkeypatch.setattr(stages, "save_model", save)
    cut = training.train(config, *data, tmp_path / "cut", **given)
    assert checkpoint_folder.fingerprint(cut) == checkpoint_folder.fingerprint(whole)
    (a,), (b,) = stages_of(whole), stages_of(cut)
    assert a["steps"] == b["steps"] == (5 if patience is None else 4)
    assert [entry["step"] for entry in a["log"]] == [entry["step"] for entry in b["log"]]
    assert a["dev"] == b["dev"]


def test_a_state_belongs_to_all_the_processes_that_saved_it(tmp_path, caplog):
    for step, seals in ((2, ["saved-0-of-1"]), (4, ["saved-1-of-2", "saved-0-of-2"]), (6, ["saved-1-of-2"]), (8, [])):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for seal in seals:
            (tmp_path / f"checkpoint-{step}" / seal).touch()
    assert last_state(tmp_path, batches.Share(0, 2)) == str(tmp_path / "checkpoint-4")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]  # the others were cut short
    assert not caplog.records
    assert last_state(tmp_path, batches.Share(0, 1)) == str(tmp_path / "checkpoint-4")
    assert "it was saved by 2 processes, here are 1" in caplog.text


def test_runs_with_dropout_resume_to_the_same_weights(tmp_path, data, scores, tiny_dot, monkeypatch):
    config = TrainConfig(
        recipe="margin-mse",
        init=str(tiny_dot),
        lr=1e-3,
        max_steps=21,
        batch_size=5,
        save_steps=3,
        precision="fp32",
        dropout=0.3,
    )
    whole = training.train(config, *data, tmp_path / "whole", scores=scores)
    import transformers

    step = transformers.Trainer.training_step
    monkeypatch.setattr(
        transformers.Trainer, "training_step",
        lambda self, *a, **k: (_ for _ in ()).throw(KeyboardInterrupt) if self.state.global_step == 10 else step(self, *a, **k),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        training.train(config, *data, tmp_path / "cut", scores=scores)
    monkeypatch.setattr(transformers.Trainer, "training_step", step)
    resumed = training.train(config.but(save_steps=4), *data, tmp_path / "cut", scores=scores)  # decides nothing
    assert checkpoint_folder.fingerprint(resumed) == checkpoint_folder.fingerprint(whole)
    (a,), (b,) = stages_of(whole), stages_of(resumed)
    assert a["log"] == b["log"] and [entry["step"] for entry in a["log"]] == list(
        range(2, 21, 2)
    )  # step 9 was saved, 10 logged


def test_the_time_of_earlier_sessions_counts_up_to_what_they_left(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    assert clock(tmp_path) == 0
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "model").touch()
    for path in tmp_path.rglob("*"):
        os.utime(path, (1030, 1030))  # the last that was saved before a kill
    now[0] = 5000.0
    assert clock(tmp_path) == 30
    for path in tmp_path.rglob("*"):
        os.utime(path, (5012, 5012))
    assert clock(tmp_path) == 42


def test_a_gradient_that_is_not_finite_stops_in_its_step(tmp_path, data, scores, tiny_dot, monkeypatch):
    from pyserini_kd.distillation import losses

    calls = []

    def steep(student, *args):
        calls.append(1)
        value = losses.margin_mse(student, *args)
        return value + (0 * student.sum()).sqrt() if len(calls) == 4 else value  # the root's slope at 0 is infinite

    monkeypatch.setitem(losses.LOSSES, "margin_mse", steep)
    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), max_steps=4, batch_size=5, save_steps=2, precision="fp32")
    with pytest.raises(InputError, match="step 4: a gradient is not finite .*last good checkpoint is .*out.last-good"):
        training.train(config, *data, tmp_path / "out", scores=scores)
    assert not (tmp_path / "out").exists()
    kept = loading.load(str(tmp_path / "out.last-good")).state_dict()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())


def test_accumulated_batches_are_averaged(tmp_path, data, scores, tiny_dot):
    """Trainer divides by the number of accumulated batches: same first step from twice the same batch as from one."""
    groups, queries, docs = data
    same = [group._replace(block=0) for group in groups[:5]]
    twice = same + [group._replace(block=1) for group in groups[:5]]
    kwargs = {"lr": 1e-3, "max_steps": 1, "batch_size": 5, "precision": "fp32", "warmup": 0.0, "max_grad_norm": 1e-3}
    one = training.train(
        TrainConfig(recipe="margin-mse", init=str(tiny_dot), **kwargs), same, queries, docs, tmp_path / "a", scores=scores
    )
    two = training.train(TrainConfig(recipe="margin-mse", init=str(tiny_dot), accumulate=2, **kwargs), twice, queries, docs, tmp_path / "b",
                      scores=scores)  # fmt: skip
    a, b = (loading.load(str(folder)).state_dict() for folder in (one, two))
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)
    assert objective.Learner(loading.load(str(tiny_dot)), {"margin_mse": 1.0}).accepts_loss_kwargs is False


def test_scores_keep_float32_under_autocast(data, scores, tiny_dot):
    groups, queries, docs = data
    model = loading.load(str(tiny_dot))
    batch = batches.Collator(model, queries, docs, scores)([groups[:5]])
    with torch.autocast("cpu", torch.bfloat16):
        got = objective.group_scores(model, batch)
    assert got.dtype == torch.float32 and not torch.equal(got, got.bfloat16().float())


def test_precision_is_ours_whatever_accelerate_is_configured_for(tmp_path, data, scores, tiny_dot, monkeypatch):
    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), lr=1e-3, max_steps=2, batch_size=5, precision="fp32")
    plain = training.train(config, *data, tmp_path / "plain", scores=scores)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert checkpoint_folder.fingerprint(
        training.train(config, *data, tmp_path / "other", scores=scores)
    ) == checkpoint_folder.fingerprint(plain)


def test_an_output_is_trained_by_one_command_at_a_time(tmp_path, invoke, data, files, tiny_dot):
    write_candidates(data[0], tmp_path / "c.jsonl")
    words = ["--recipe", "ranknet", "--init", tiny_dot, "--candidates", tmp_path / "c.jsonl", "--collection", files["docs"]]
    words += ["--topics", files["topics"], "--output", tmp_path / "m", "--max-steps", 1, "--max-length", 32]
    with locked(tmp_path / ".m.lock" / "lock"):
        result = invoke(train.main, *words)
    assert result.exit_code == 2 and "another train is at work in" in result.output
    result = invoke(train.main, *words)
    assert result.exit_code == 0, result.output
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".m", "m."))]


def test_scores_of_other_texts_are_refused(tmp_path, invoke, data, files, corpus, tiny_dot, tiny_cross):
    groups, *_ = data
    write_candidates(groups, tmp_path / "c.jsonl")
    given = ["--candidates", tmp_path / "c.jsonl", "--topics", files["topics"]]
    result = invoke(
        teach.main, *given, "--collection", files["docs"], "--teacher", tiny_cross, "--output", tmp_path / "s.parquet"
    )
    assert result.exit_code == 0, result.output
    write_collection(
        [doc._replace(text=doc.text + ".") if doc.doc_id == "eat-dog" else doc for doc in corpus], tmp_path / "new.jsonl"
    )
    base = [
        "--recipe",
        "margin-mse",
        "--init",
        tiny_dot,
        "--scores",
        tmp_path / "s.parquet",
        "--score-scale",
        1,
        "--max-steps",
        1,
    ]
    result = invoke(train.main, *base, *given, "--collection", tmp_path / "new.jsonl", "--output", tmp_path / "m")
    of_it = sum("eat-dog" in group.doc_ids for group in groups)
    assert result.exit_code == 2 and f"{of_it} of 50 pairs were scored with other texts than they have here" in result.output
    result = invoke(train.main, *base, *given, "--collection", files["docs"], "--output", tmp_path / "m")
    assert result.exit_code == 0, result.output


def test_a_device_that_is_not_there_is_refused_before_data_are_converted(tmp_path, invoke, data, files, tiny_dot, monkeypatch):
    monkeypatch.setattr(training_data, "_convert", lambda *_, **__: pytest.fail("converted"))
    write_candidates(data[0], tmp_path / "c.jsonl")
    words = ["--recipe", "ranknet", "--init", tiny_dot, "--candidates", tmp_path / "c.jsonl", "--collection", files["docs"]]
    words += ["--topics", files["topics"], "--output", tmp_path / "m"]
    for device, message in (("cuda:99", "--device: choose the GPU by CUDA_VISIBLE_DEVICES=99"), ("gpu", "--device must be")):
        result = invoke(train.main, *words, "--device", device)
        assert result.exit_code == 2 and message in result.output, result.output


@pytest.mark.parametrize(
    ("recipe", "more", "told"),
    [
        ("ranknet", ["--layers", "0,9"], "layers must be ascending numbers from 0 to 1, not 0,9"),
        ("ranknet", ["--student", "prettr", "--setting", "join_layer=7"], "join_layer"),
        ("ranknet", ["--init", "no/where"], "no/where"),
        (
            "ranknet",
            ["--student", "tk", "--dev-topics", "t", "--dev-qrels", "q", "--dev-retrieval"],
            "--dev-retrieval: is for a bert_dot",
        ),
        ("margin-mse", [], "--scores: recipe margin-mse needs them"),
        ("lm-distill", ["--init", "random:2/33"], "--lm-teacher: recipe lm-distill distils a language model: name one"),
        ("lm-distill", ["--init", "random:2/33", "--lm-teacher", "CROSS"], "a multiple of the teacher's"),
        ("tinybert", ["--init", "random:2/32", "--lm-teacher", "CROSS", "--teacher", "DOT"], "cross"),
    ],
)
def test_a_mistake_about_models_is_told_before_data_are_read(
    tmp_path, invoke, files, data, tiny_dot, tiny_cross, monkeypatch, recipe, more, told
):
    for name in ("read_dev", "gather"):
        monkeypatch.setattr(training, name, lambda *args, **kwargs: pytest.fail("reads data"))
    words = ["--recipe", recipe, "--collection", files["docs"], "--topics", files["topics"], "--output", tmp_path / "m"]
    words += ["--candidates", tmp_path / "c.jsonl"]
    words += [] if "--init" in more else ["--init", tiny_dot]
    result = invoke(train.main, *words, *({"CROSS": tiny_cross, "DOT": tiny_dot}.get(word, word) for word in more))
    assert result.exit_code == 2 and told in result.output and "Traceback" not in result.output, result.output
    assert not list(tmp_path.glob("m*"))


def test_each_process_takes_its_own_gpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    of = {name: processes.device_of(TrainConfig(recipe="ranknet", init="x", device=name)) for name in ("cpu", "cuda", "cuda:0")}
    assert of == {"cpu": "cpu", "cuda": "cuda:1", "cuda:0": "cuda:1"}


def test_processes_wait_for_the_first_as_long_as_it_takes(monkeypatch):
    import accelerate

    told = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        accelerate, "PartialState", lambda **given: told.update(given) or SimpleNamespace(process_index=0, num_processes=2)
    )
    assert processes.processes(TrainConfig(recipe="ranknet", init="x")).world == 2
    assert told["cpu"] is True and told["timeout"].days >= 1


def test_a_loss_that_is_not_finite_stops(tmp_path, data, liked, tiny_dot):
    bad = Scores(data[0]).fill((q, d, float("inf") if d.startswith("eat-cat") else s) for q, d, s in liked)
    with pytest.raises(InputError, match="not finite"):
        training.train(TrainConfig(recipe="margin-mse", init=str(tiny_dot), max_steps=3), *data, tmp_path / "x", scores=bad)
    assert not (tmp_path / "x").exists()


def test_the_learning_rate_follows_the_schedule(tmp_path, data, tiny_dot):
    def rates(schedule):
        config = TrainConfig(
            recipe="ranknet",
            init=str(tiny_dot),
            lr=1e-3,
            max_steps=5,
            warmup=0.2,
            schedule=schedule,
            batch_size=5,
            precision="fp32",
        )
        return [entry["lr"] for entry in stages_of(training.train(config, *data, tmp_path / schedule))[0]["log"]]

    assert rates("linear") == pytest.approx([0.0, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3])  # of each step; one to warm up
    assert rates("cosine") == pytest.approx([0.0, *(1e-3 * (1 + np.cos(np.pi * n / 4)) / 2 for n in range(4))])
    assert rates("constant") == pytest.approx([0.0, 1e-3, 1e-3, 1e-3, 1e-3])


def test_kernels_learn_at_a_rate_of_their_own(tiny_dot):
    from pyserini_kd.distillation.trainer import quicken

    model = loading.load(str(tiny_dot), architecture="tk", heads=4)
    optimizer = quicken(torch.optim.AdamW(model.parameters(), lr=1e-5), model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, p in model.named_parameters() if rates[id(p)] == pytest.approx(1e-4)} == {
        "mix",
        "gamma",
        "head.weight",
    }
    assert len(rates) == len(list(model.parameters()))
    other = loading.load(str(tiny_dot))
    assert len(quicken(torch.optim.AdamW(other.parameters()), other).param_groups) == 1


def test_what_a_stage_and_its_settings_say_reaches_the_trainer(tmp_path, data, tiny_dot, tiny_cross, monkeypatch):
    made, build = [], make_trainer

    def kept(*args):
        made.append(build(*args))
        return made[-1]

    monkeypatch.setattr(stages, "make_trainer", kept)
    settings = {"lr": 1e-4, "max_steps": 2, "batch_size": 5, "precision": "fp32", "seed": 3}
    config = TrainConfig(recipe="ranknet", init=str(tiny_dot), architecture="tk", settings=("heads=4",), max_grad_norm=7.0,
                         weight_decay=0.25, **settings)  # fmt: skip
    training.train(config, *data, tmp_path / "tk")
    (trainer,) = made
    args = trainer.args
    assert (args.weight_decay, args.max_grad_norm, args.seed, args.learning_rate) == (0.25, 7.0, 3, 1e-4)
    names = {id(p): name for name, p in trainer.model.student.named_parameters()}
    quick = {
        names[id(p)]
        for group in trainer.optimizer.param_groups
        if group["initial_lr"] == pytest.approx(1e-3)
        for p in group["params"]
    }
    assert quick == {"mix", "gamma", "head.weight"}
    for recipe, decay in (("standard-kd", 0.01), ("simplified-tinybert", 0.01)):
        made.clear()
        training.train(
            TrainConfig(recipe=recipe, init=str(tiny_cross), architecture="cross_encoder", teacher=str(tiny_cross), **settings),
            *data,
            tmp_path / recipe,
        )
        (trainer,) = made
        assert (trainer.args.weight_decay, trainer.args.max_grad_norm) == (decay, 1.0)
        assert trainer.model.length == 48  # tokens a pair, by which the attention loss is averaged


def test_refusals(tmp_path, data, liked, tiny_dot):
    with pytest.raises(InputError, match="scores: recipe margin-mse needs them"):
        training.train(TrainConfig(recipe="margin-mse", init=str(tiny_dot)), *data, tmp_path / "x")
    few = Scores(data[0]).fill(scored for scored in liked if scored[2] < 10)
    with pytest.raises(InputError, match=f"10 candidate pairs have no teacher score, e.g. query {liked[0][0]}, {liked[0][1]}"):
        training.train(TrainConfig(recipe="margin-mse", init=str(tiny_dot)), *data, tmp_path / "x", scores=few)
    with pytest.raises(InputError, match="unknown recipe 'magic'; expected one of margin-mse"):
        training.train(TrainConfig(recipe="magic", init=str(tiny_dot)), *data, tmp_path / "x")


def test_command(tmp_path, invoke, files, data, scores, tiny_dot):
    groups, *_ = data
    write_candidates(groups, tmp_path / "c.jsonl")
    text_store.write_triples(scores.each(groups), tmp_path / "s.tsv")
    base = ["--collection", files["docs"], "--topics", files["topics"], "--init", tiny_dot, "--output", tmp_path / "m"]
    result = invoke(
        train.main, "--recipe", "margin-mse", *base, "--scores", tmp_path / "s.tsv", "--max-steps", 2, "--layers", "0"
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "m" / "training.json").read_text())["data"]["triples"] == 40
    assert result.output.endswith("m: trained on 40 triples\n")
    result = invoke(train.main, "--list")
    assert result.exit_code == 0 and "margin-mse" in result.output and "2010.02666" in result.output
    assert invoke(train.main, "--recipe", "ranknet").exit_code == 2
    more = ["--overwrite", "--candidates", tmp_path / "c.jsonl"]
    for wrong, word in (
        (["--recipe", "magic", *more], "unknown recipe"),
        (["--recipe", "ranknet", *more, "--student", "gpt"], "unknown student"),
        (["--recipe", "ranknet", *more, "--layers", "zero"], "--layers"),
        (["--recipe", "ranknet", *more, "--layers", "7"], "layers"),
        (["--recipe", "ranknet", "--overwrite"], "--candidates"),
        (["--recipe", "ranknet", *more, "--qrels", files["qrels"]], "--qrels: make candidates where none are given"),
        (
            ["--recipe", "ranknet", *more, "--scores", tmp_path / "s.tsv"],
            "--scores: recipe ranknet, as asked for, learns nothing",
        ),
        (["--recipe", "ranknet", *more, "--dev-topics", files["topics"]], "goes together"),
        (["--recipe", "ranknet", *more, "--metric", "nDGC@10"], "nDCG@10"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl"], "exists"),
    ):
        result = invoke(train.main, *base, *wrong)
        assert result.exit_code == 2 and word in result.output, result.output


def test_data_that_does_not_fit_is_refused(tmp_path, invoke, files, data, scores, tiny_dot):
    groups, *_ = data
    base = ["--collection", files["docs"], "--topics", files["topics"], "--init", tiny_dot, "--output", tmp_path / "m"]
    (tmp_path / "foreign.tsv").write_text("9\t1\tq1\teat-dog\tno-such-doc\n")
    (tmp_path / "other.tsv").write_text("9\t1\tq1\tone\ttwo\n")
    (tmp_path / "lonely.jsonl").write_text(json.dumps(Group("q1", ["eat-cow", "eat-pig"], [0, 0], 0)._asdict()) + "\n")
    (tmp_path / "elsewhere.jsonl").write_text(json.dumps(Group("q1", ["eat-dog", "absent"], [1, 0], 0)._asdict()) + "\n")
    write_candidates(groups, tmp_path / "c.jsonl")
    from transformers import GPT2Config, GPT2Model

    folder = tmp_path / "gpt"
    GPT2Model(GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=9, n_positions=512)).save_pretrained(folder)
    for wrong, words in (
        (
            ["--recipe", "margin-mse", "--scores", tmp_path / "foreign.tsv"],
            "none of its 1 triples has all its texts: 1 with a document that is not in the collection, e.g. no-such-doc",
        ),
        (
            ["--recipe", "margin-mse", "--scores", tmp_path / "foreign.tsv", "--candidates", tmp_path / "c.jsonl"],
            "pairs have no teacher score",
        ),
        (
            ["--recipe", "margin-mse", "--scores", tmp_path / "other.tsv", "--candidates", tmp_path / "c.jsonl"],
            "pairs have no teacher score",
        ),
        (["--recipe", "ranknet", "--candidates", tmp_path / "elsewhere.jsonl"], "e.g. absent"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "lonely.jsonl"], "query q1 has no positive document"),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--init", folder],
            "is a gpt2; rankers are made from encoders like BERT",
        ),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--loss", "rank=1"], "unknown loss 'rank'"),
        (
            ["--recipe", "tinybert", "--candidates", tmp_path / "c.jsonl", "--student", "bert_dot"],
            "is for a cross_encoder student, not a bert_dot",
        ),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--start-stage", 2], "has 1 stage"),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--setting", "masks"],
            "NAME=NUMBER such as join_layer=3",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--setting", "magic=3"],
            "--setting: magic: a bert_dot has no settings of its own",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "tk", "--setting", "max_query_len=9"],
            "--setting: max_query_len: a tk has layers, heads, feed_forward",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "tk", "--layers", "0"],
            "a tk has its own (setting layers=2)",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "cross_encoder", "--max-length", 9999],
            "tokens at most; a longer length was asked for",
        ),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--glove", "x.txt"], "for a new tk student, not for"),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "cross_encoder", "--setting", "masks=8"],
            "no settings of its own",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "cross_encoder", "--pooling", "mean"],
            "--pooling: a cross_encoder reads pairs",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "colbert", "--pooling", "mean"],
            "--pooling: is for a bert_dot",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "tk", "--l2-norm"],
            "--l2-norm: is for a bert_dot or a colbert",
        ),
    ):
        result = invoke(train.main, *base, *wrong)
        assert result.exit_code == 2 and words in result.output, result.output
        assert not (tmp_path / "m").exists()
    result = invoke(train.main, "--recipe", "ranknet", "--collection", files["docs"], "--output", tmp_path / "m")
    assert result.exit_code == 2 and "--topics" in result.output


@pytest.mark.parametrize("by", ["states", "dev topics"])
def test_the_last_good_checkpoint_is_kept(tmp_path, data, scores, tiny_dot, dev, monkeypatch, by):
    from pyserini_kd.distillation import losses

    calls = []

    def broken(student, *args):
        calls.append(1)
        return losses.margin_mse(student, *args) * (float("nan") if len(calls) > 3 else 1.0)

    monkeypatch.setitem(losses.LOSSES, "margin_mse", broken)
    saved = {"save_steps": 2} if by == "states" else {"eval_steps": 2}
    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), max_steps=8, batch_size=5, precision="fp32", **saved)
    with pytest.raises(InputError, match="not finite .*last good checkpoint is .*out.last-good"):
        training.train(config, *data, tmp_path / "out", scores=scores, dev=None if by == "states" else dev)
    assert not (tmp_path / "out").exists()
    kept, start = (loading.load(str(path)).state_dict() for path in (tmp_path / "out.last-good", tiny_dot))
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert any(not torch.equal(kept[name], start[name]) for name in kept)


def test_bf16_trains_otherwise_than_fp32_and_nearly_the_same(tmp_path, data, scores, tiny_dot):
    logs = []
    for precision in ("fp32", "bf16"):
        config = TrainConfig(
            recipe="margin-mse", init=str(tiny_dot), lr=1e-3, max_steps=4, batch_size=5, precision=precision, dropout=0.0
        )
        (stage,) = stages_of(training.train(config, *data, tmp_path / precision, scores=scores))
        logs.append([entry["margin_mse"] for entry in stage["log"]])
    assert logs[0] != logs[1] and logs[0] == pytest.approx(logs[1], rel=0.1)


def test_the_record_of_a_training_tells_what_it_was(tmp_path, data, scores, tiny_dot):
    out = training.train(
        TrainConfig(recipe="margin-mse", init=str(tiny_dot), max_steps=1, seed=7), *data, tmp_path / "out", scores=scores
    )
    record = json.loads((out / "training.json").read_text())
    assert record["recipe"]["name"] == "margin-mse" and "2010.02666" in record["recipe"]["source"]
    assert record["config"]["seed"] == 7 and record["config"]["max_grad_norm"] == 1.0
    assert record["made_from"] == {"init": checkpoint_folder.fingerprint(tiny_dot)}
    assert record["seconds"] > 0 and {"torch", "transformers", "python"} <= set(record["versions"])


def test_remains_of_a_kill_are_cleared_and_foreign_folders_are_not(tmp_path, data, tiny_dot):
    config = TrainConfig(recipe="ranknet", init=str(tiny_dot), max_steps=1, batch_size=5, precision="fp32")
    (tmp_path / "a.partial" / "stage-1").mkdir(parents=True)  # killed while it was being removed
    (tmp_path / "a.partial" / ".made_from.json.x1y2.partial").write_text("{")
    (tmp_path / "a.partial" / "clock.json").write_text('{"seconds": 1, "began": 1}')
    training.train(config, *data, tmp_path / "a")
    assert not (tmp_path / "a.partial").exists()
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"b.partial is in the way"):
        training.train(config, *data, tmp_path / "b")
    assert (tmp_path / "b.partial" / "thesis.txt").exists()


def test_saved_states_of_other_settings_are_kept_until_the_user_says_otherwise(tmp_path, data, tiny_dot):
    config = TrainConfig(
        recipe="ranknet", init=str(tiny_dot), max_steps=4, batch_size=5, precision="fp32", lr=1e-3, save_steps=1
    )
    whole = training.train(config, *data, tmp_path / "whole")
    import transformers

    step = transformers.Trainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transformers.Trainer, "training_step", killed)
        training.train(config, *data, tmp_path / "m")
    other = config.but(lr=2e-3)
    with pytest.raises(
        InputError, match="m.partial holds 2 finished parts made with another lr: 0.001, here 0.002; go on with the same"
    ):
        training.train(other, *data, tmp_path / "m")
    assert checkpoint_folder.fingerprint(training.train(config, *data, tmp_path / "m")) == checkpoint_folder.fingerprint(whole)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transformers.Trainer, "training_step", killed)
        training.train(config, *data, tmp_path / "n")
    assert (
        json.loads((training.train(other, *data, tmp_path / "n", overwrite=True) / "training.json").read_text())["config"]["lr"]
        == 2e-3
    )


def test_queries_that_qrels_give_no_group_are_counted(tmp_path, invoke, files, tiny_dot, caplog):
    caplog.set_level("INFO")
    (tmp_path / "some.qrels").write_text("q0 0 eat-cat 1\nq1 0 eat-dog 1\nq2 0 elsewhere 1\n")
    words = [
        "--recipe",
        "ranknet",
        "--init",
        tiny_dot,
        "--collection",
        files["docs"],
        "--topics",
        files["topics"],
        "--max-steps",
        1,
    ]
    result = invoke(train.main, *words, "--qrels", tmp_path / "some.qrels", "--output", tmp_path / "m")
    assert result.exit_code == 0, result.output
    assert "2 queries; left out: 8 queries without a positive in the collection, 0 without a negative" in caplog.text


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path, invoke, files, data, tiny_dot, monkeypatch):
    import safetensors.torch
    import transformers

    write_candidates(data[0], tmp_path / "c.jsonl")
    words = [
        "--recipe",
        "ranknet",
        "--init",
        tiny_dot,
        "--collection",
        files["docs"],
        "--topics",
        files["topics"],
        "--max-steps",
        4,
    ]
    words += ["--candidates", tmp_path / "c.jsonl", "--save-steps", 2, "--precision", "fp32", "--output", tmp_path / "m"]

    def saving_state(*args):
        raise OSError(28, "No space left on device")

    def exporting(model, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    for place, name, full in ((transformers.Trainer, "_save_optimizer_and_scheduler", saving_state),
                              (saving, "_save_encoder", exporting)):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            result = invoke(train.main, *words)
        assert result.exit_code == 2 and "No space left on device" in result.output, result.output
        assert (
            sorted(path.name for path in tmp_path.glob("*m*")) == ["m.data.partial", "m.partial"]
            and "Traceback" not in result.output
        )
    result = invoke(train.main, *words)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "m" / "training.json").read_text())
    assert record["data"]["candidates"]["sha256"] == sha256(tmp_path / "c.jsonl")
    assert record["data"]["topics"] == {"path": files["topics"], "sha256": sha256(files["topics"])}
    assert record["data"]["collection"]["sha256"] == sha256(files["docs"])


def test_a_collapsed_model_is_said_so(tmp_path, data, tokenizer, caplog):
    folder = save_cross(tokenizer, tmp_path / "flat", layers=2)
    model = loading.load(str(folder))
    torch.nn.init.zeros_(model.classifier.classifier.weight)
    flat = saving.save(model, tmp_path / "flatter")
    training.train(cross("ranknet", flat, max_steps=1, lr=1e-9), *data, tmp_path / "out")
    assert "collapsed" in caplog.text


def test_passages_are_trained_on_as_they_were_mined(files, tmp_path, invoke, tiny_dot):
    candidates = tmp_path / "passages.tsv"
    candidates.write_text("q0\teat-cat#0\teat-dog#1\nq1\teat-dog#0\teat-cat#0\n")
    words = ["--recipe", "ranknet", "--init", tiny_dot, "--collection", files["docs"], "--topics", files["topics"]]
    words += ["--candidates", candidates, "--max-steps", "1", "--output", tmp_path / "model", "--precision", "bf16"]
    whole = invoke(train.main, *words)
    assert whole.exit_code == 2 and "3 documents of the candidates are not in the collection" in whole.output
    cut = invoke(train.main, *words, "--segment", "4:2")
    assert cut.exit_code == 0, cut.output
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["data"]["segment"] == "4:2" and record["precision"] == "bf16"
    assert "1:2" in invoke(train.main, *words, "--segment", "1:2", "--overwrite").output


def test_data_in_folders_has_a_checksum_too(tmp_path):
    (tmp_path / "docs" / "more").mkdir(parents=True)
    for name, text in (("docs/b.jsonl", "b"), ("docs/more/a.jsonl", "a")):
        (tmp_path / name).write_text(text)
    before = training_data.digest("collection", tmp_path / "docs")
    (tmp_path / "both").write_text("ba")
    assert before == {"path": str(tmp_path / "docs"), "sha256": sha256(tmp_path / "both")}
    (tmp_path / "docs" / "more" / "a.jsonl").write_text("c")
    assert training_data.digest("collection", tmp_path / "docs") != before
    assert training_data.digest("collection", "ir_datasets:far/away") == "ir_datasets:far/away"
    with pytest.raises(InputError, match="no dataset 'far/away'"):
        training_data.digest("topics", "ir_datasets:far/away")
    assert training_data.digest("topics", tmp_path / "both") == {
        "path": str(tmp_path / "both"),
        "sha256": sha256(tmp_path / "both"),
    }
    assert training_data.digest("topics", tmp_path / "docs") == str(tmp_path / "docs")  # reading it will say what is wrong


def test_texts_of_an_interrupted_run_on_pydocs_go_when_the_packages_change(
    tmp_path, data, corpus, queries, tiny_dot, monkeypatch
):
    monkeypatch.setattr(docstrings, "docs", lambda: iter(corpus))
    monkeypatch.setattr(docstrings, "topics", lambda split: queries)
    real, made = training_data._convert, []
    monkeypatch.setattr(training_data, "_convert", lambda *given, **more: made.append(versions) or real(*given, **more))
    write_candidates(data[0], tmp_path / "c.jsonl")
    given = TrainSettings(recipe="ranknet", init=str(tiny_dot), collection="pydocs", topics="pydocs:train",
                          candidates=tmp_path / "c.jsonl", output=tmp_path / "m")  # fmt: skip
    for versions in ("old", "old", "new"):
        monkeypatch.setattr(docstrings, "stamp", lambda versions=versions: versions)
        with pytest.raises(KeyboardInterrupt), training_data.gather(given):
            raise KeyboardInterrupt
    assert made == ["old", "new"]


@pytest.mark.slow
def test_named_topics_and_judgements_have_a_checksum_of_what_they_are(monkeypatch):
    found = {name: training_data.digest(name, "pydocs:test") for name in ("topics", "dev_topics", "qrels", "dev_qrels")}
    assert all(record["name"] == "pydocs:test" and len(record["sha256"]) == 64 for record in found.values())
    assert found["topics"] == found["dev_topics"] != found["qrels"] == found["dev_qrels"]
    assert training_data.digest("topics", "pydocs:train")["sha256"] != found["topics"]["sha256"]
    monkeypatch.setitem(training_data.READERS, "topics", lambda name: [])  # another release
    assert training_data.digest("topics", "pydocs:test")["sha256"] != found["topics"]["sha256"]


def test_tiny_numbers_are_zero_while_training_and_only_then(tmp_path, data, tiny_dot, monkeypatch):
    from pyserini_kd.distillation import losses

    seen, tiny = [], torch.tensor([1e-40])
    monkeypatch.setitem(losses.LOSSES, "ranknet", lambda *args: seen.append(float(tiny + 0)) or losses.ranknet(*args))
    training.train(
        TrainConfig(recipe="ranknet", init=str(tiny_dot), max_steps=1, batch_size=5, precision="fp32"), *data, tmp_path / "out"
    )
    assert set(seen) == {0.0} and float(tiny + 0) > 0
