"""Training: batches, scores with gradients, learning, resuming, refusals."""

import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket

import numpy as np
import pytest
import torch

from pyserini_kd import batches, inference, learner, material, mine, score_files, stages, train, triples
from pyserini_kd.data import read_collection, read_topics
from pyserini_kd.files import InputError, sha256
from pyserini_kd.mine import Group
from pyserini_kd.models import checkpoints
from pyserini_kd.stages import TrainConfig
from pyserini_kd.student import load_student, refuse_ignored
from pyserini_kd.triples import Scores
from pyserini_kd.validation import Dev


@pytest.fixture(scope="module")
def data(queries, qrels, corpus):
    groups = mine.mine(queries, qrels, [], corpus, negatives=0, shared=5).groups
    return groups, *triples.load_texts(groups, queries, corpus)


@pytest.fixture(scope="module")
def liked(data):
    """What a teacher that likes the relevant document says: 10, others 0 to 4."""
    return [(g.query_id, d, 10.0 if label else float(len(d) % 5))
            for g in data[0] for d, label in zip(g.doc_ids, g.labels, strict=True)]  # fmt: skip


@pytest.fixture(scope="module")
def scores(data, liked):
    return Scores(data[0]).fill(liked)


def test_batches_never_cross_blocks():
    groups = [Group(str(n), ["p", "n"], [1, 0], n // 4) for n in range(10)]
    cut = batches.cut_batches(groups, 3, seed=0)
    assert [[g.query_id for g in batch] for batch in cut] == [["0", "1", "2"], ["3"], ["4", "5", "6"], ["7"], ["8", "9"]]


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
    model = checkpoints.load(str(path), architecture=architecture)
    batch = batches.Collator(model, queries, docs, scores)([groups[:3]])
    got = learner.group_scores(model, batch).detach().numpy()
    for row, group in enumerate(groups[:3]):
        texts = [docs[d] for d in group.doc_ids]
        expected = inference.score(model, [queries[group.query_id]] * len(texts), texts, precision="fp32")
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
    places = [[(spy.asked[0][q], spy.asked[1][d]) for q, d in (spy.asked[2][row] for row in rows)] for rows in batch["batch_rows"]]
    assert places == [[(query, doc) for doc in "XYZ"] for query in "ABA"]
    assert int(batch["pairs"]) == 6
    teacher = Spy()
    live = batches.Collator(spy, {"a": "A", "b": "B"}, {"x": "X", "y": "Y", "z": "Z"}, in_batch=True, teacher=teacher)([groups])
    assert len(spy.asked[2]) == 6 and len(teacher.asked[2]) == int(live["taught"]) == 5  # b y belongs to no group


def test_the_spread_of_scores_is_that_within_queries():
    scores = torch.tensor([[5.0, 5.0, 99.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert learner.spread(scores, mask) == (pytest.approx(7.4), 0.0)  # documents do not matter, however far queries are apart
    assert learner.spread(torch.tensor([[1.0, 3.0], [7.0, 9.0]]), torch.ones(2, 2, dtype=torch.bool)) == (5.0, 1.0)


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


@pytest.mark.parametrize(("architecture", "own"), [("bert_dot", {}), ("colbert", {}), ("colbert", {"width": 8})])
def test_start_scale_meets_the_teacher_s_margin(data, scores, tiny_dot, architecture, own):
    groups, queries, docs = data
    model = checkpoints.load(str(tiny_dot), architecture=architecture, settings=own)
    asked = [queries["q0"]] * 2, [docs["eat-cat"], docs["eat-dog"]]
    before = inference.score(model, *asked, precision="fp32")
    collator = batches.Collator(model, queries, docs, scores)
    cut = batches.cut_batches(groups, 5, 0)

    def rms_margin():
        from pyserini_kd.losses import margins

        batch = [collator([b]) for b in cut]
        with torch.no_grad():
            pairs = [margins(learner.group_scores(model, b), b["teacher"], b["labels"], b["mask"]) for b in batch]
        return [float(torch.cat(side).square().mean().sqrt()) for side in zip(*pairs, strict=True)]

    factor = learner.match_scale(model, collator, cut)
    student, teacher = rms_margin()
    assert factor != 1.0 and student == pytest.approx(teacher, rel=1e-3)
    assert inference.score(model, *asked, precision="fp32") == pytest.approx(factor * before, rel=1e-3)


@pytest.mark.parametrize(
    ("recipe", "architecture"),
    [("margin-mse", "bert_dot"), ("ranknet", "cross_encoder"), ("margin-mse", "colbert"), ("contrastive", "bert_dot"),
     ("margin-mse", "prettr"), ("ranknet", "tk")],
)
def test_recipes_learn(tmp_path, data, scores, tiny_dot, tiny_cross, recipe, architecture):
    init = tiny_cross if architecture == "cross_encoder" else tiny_dot
    settings = {"prettr": ("join_layer=1",), "tk": ("heads=4",)}.get(architecture, ())
    lr = 3e-2 if architecture == "tk" else 3e-3
    config = TrainConfig(recipe, str(init), architecture, lr=lr, max_steps=40, batch_size=5, precision="fp32", settings=settings)
    out = train.train(config, *data, tmp_path / "out", scores=scores)
    record = json.loads((out / "training.json").read_text())
    (stage,) = record["stages"]
    (loss,) = stage["losses"]
    assert stage["log"][-1][loss] < 0.5 * stage["log"][0][loss]
    assert stage["steps"] == 40 and record["config"]["lr"] == lr
    groups, queries, docs = data
    model = checkpoints.load(str(out))
    assert model.architecture == architecture
    best = [int(np.argmax(inference.score(model, [queries[g.query_id]] * len(g.doc_ids), [docs[d] for d in g.doc_ids])))
            for g in groups]  # fmt: skip
    assert np.mean([b == 0 for b in best]) >= 0.9  # the positive stands first in each group
    assert not (tmp_path / "out.partial").exists()


def test_same_seed_same_weights_and_a_cut_run_resumes_to_them(tmp_path, data, scores, tiny_dot, monkeypatch):
    config = TrainConfig("margin-mse", str(tiny_dot), lr=1e-3, max_steps=8, batch_size=5, save_steps=3, precision="fp32")
    whole = checkpoints.fingerprint(train.train(config, *data, tmp_path / "whole", scores=scores))
    assert checkpoints.fingerprint(train.train(config, *data, tmp_path / "again", scores=scores)) == whole
    import transformers

    step = transformers.Trainer.training_step
    monkeypatch.setattr(
        transformers.Trainer, "training_step",
        lambda self, *a, **k: (_ for _ in ()).throw(KeyboardInterrupt) if self.state.global_step == 5 else step(self, *a, **k),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        train.train(config, *data, tmp_path / "cut", scores=scores)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(transformers.Trainer, "training_step", step)
    broken = tmp_path / "cut.partial" / "stage-1" / "checkpoint-6"  # killed while the last of its files was written
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    (broken / "trainer_state.json").write_text('{"epoch"')
    (tmp_path / "cut.partial" / ".config.json.abc.partial").write_text("{")
    assert checkpoints.fingerprint(train.train(config, *data, tmp_path / "cut", scores=scores)) == whole


@pytest.mark.parametrize("patience", [None, 1])
def test_a_kill_between_the_last_step_and_its_record_adds_no_step(tmp_path, data, scores, tiny_dot, dev, monkeypatch, patience):
    """5 steps are no whole epoch; with patience training stops when the measure, always 1, has not risen once."""
    import safetensors.torch

    from pyserini_kd import validation

    monkeypatch.setattr(validation, "evaluate", lambda run, qrels, names: {name: {"q": 1.0} for name in names})
    config = TrainConfig("margin-mse", str(tiny_dot), lr=1e-3, schedule="constant", max_steps=5 if patience is None else 20,
                         batch_size=5, save_steps=1, eval_steps=2, patience=patience, precision="fp32")  # fmt: skip
    given = {"scores": scores, "dev": dev if patience else None}
    whole = train.train(config, *data, tmp_path / "whole", **given)
    save = safetensors.torch.save_model

    def killed(model, path):
        if path.endswith("stage-1.safetensors"):
            raise KeyboardInterrupt
        save(model, path)

    monkeypatch.setattr(safetensors.torch, "save_model", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(config, *data, tmp_path / "cut", **given)
    monkeypatch.setattr(safetensors.torch, "save_model", save)
    cut = train.train(config, *data, tmp_path / "cut", **given)
    assert checkpoints.fingerprint(cut) == checkpoints.fingerprint(whole)
    (a,), (b,) = stages_of(whole), stages_of(cut)
    assert a["steps"] == b["steps"] == (5 if patience is None else 4)
    assert [entry["step"] for entry in a["log"]] == [entry["step"] for entry in b["log"]]
    assert a["dev"] == b["dev"]


def test_a_state_belongs_to_all_the_processes_that_saved_it(tmp_path, caplog):
    for step, seals in ((2, ["saved-0-of-1"]), (4, ["saved-1-of-2", "saved-0-of-2"]), (6, ["saved-1-of-2"]), (8, [])):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for seal in seals:
            (tmp_path / f"checkpoint-{step}" / seal).touch()
    assert stages._last_state(tmp_path, batches.Share(0, 2)) == str(tmp_path / "checkpoint-4")
    assert [path.name for path in stages.states_of(tmp_path)] == ["checkpoint-2", "checkpoint-4"]  # the others were cut short
    assert not caplog.records
    assert stages._last_state(tmp_path, batches.Share(0, 1)) == str(tmp_path / "checkpoint-4")
    assert "it was saved by 2 processes, here are 1" in caplog.text


def test_runs_with_dropout_resume_to_the_same_weights(tmp_path, data, scores, tiny_dot, monkeypatch):
    config = TrainConfig("margin-mse", str(tiny_dot), lr=1e-3, max_steps=21, batch_size=5, save_steps=3, precision="fp32", dropout=0.3)
    whole = train.train(config, *data, tmp_path / "whole", scores=scores)
    import transformers

    step = transformers.Trainer.training_step
    monkeypatch.setattr(
        transformers.Trainer, "training_step",
        lambda self, *a, **k: (_ for _ in ()).throw(KeyboardInterrupt) if self.state.global_step == 10 else step(self, *a, **k),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        train.train(config, *data, tmp_path / "cut", scores=scores)
    monkeypatch.setattr(transformers.Trainer, "training_step", step)
    resumed = train.train(dataclasses.replace(config, save_steps=4), *data, tmp_path / "cut", scores=scores)  # decides nothing
    assert checkpoints.fingerprint(resumed) == checkpoints.fingerprint(whole)
    (a,), (b,) = stages_of(whole), stages_of(resumed)
    assert a["log"] == b["log"] and [entry["step"] for entry in a["log"]] == list(range(2, 21, 2))  # step 9 was saved, 10 logged


def test_layers_of_a_random_start_are_refused():
    with pytest.raises(InputError, match="random:2/32 says how many there are"):
        refuse_ignored(TrainConfig("ranker-distill", "random:2/32", "cross_encoder", layers=(0,)))


def test_the_time_of_earlier_sessions_counts_up_to_what_they_left(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(stages.time, "time", lambda: now[0])
    assert stages.clock(tmp_path) == 0
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "model").touch()
    for path in tmp_path.rglob("*"):
        os.utime(path, (1030, 1030))  # the last that was saved before a kill
    now[0] = 5000.0
    assert stages.clock(tmp_path) == 30
    for path in tmp_path.rglob("*"):
        os.utime(path, (5012, 5012))
    assert stages.clock(tmp_path) == 42


def test_a_gradient_that_is_not_finite_stops_in_its_step(tmp_path, data, scores, tiny_dot, monkeypatch):
    from pyserini_kd import losses

    calls = []

    def steep(student, *args):
        calls.append(1)
        value = losses.margin_mse(student, *args)
        return value + (0 * student.sum()).sqrt() if len(calls) == 4 else value  # the root's slope at 0 is infinite

    monkeypatch.setitem(losses.LOSSES, "margin_mse", steep)
    config = TrainConfig("margin-mse", str(tiny_dot), max_steps=4, batch_size=5, save_steps=2, precision="fp32")
    with pytest.raises(InputError, match="step 4: a gradient is not finite .*last good checkpoint is .*out.last-good"):
        train.train(config, *data, tmp_path / "out", scores=scores)
    assert not (tmp_path / "out").exists()
    kept = checkpoints.load(str(tmp_path / "out.last-good")).state_dict()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())


def test_unit_vectors_under_raw_losses_are_warned_of(tmp_path, data, tiny_dot, caplog):
    for l2_norm, scale, warned in ((True, None, True), (True, 20.0, False), (None, None, False)):
        caplog.clear()
        config = TrainConfig("uniform", str(tiny_dot), losses=("margin_mse=none",), l2_norm=l2_norm, score_scale=scale,
                             max_steps=1, batch_size=5, precision="fp32")  # fmt: skip
        out = train.train(config, *data, tmp_path / "out", overwrite=(tmp_path / "out").exists())
        assert ("vectors have length 1" in caplog.text) is warned
        assert checkpoints.load(str(out)).settings.l2_norm is bool(l2_norm)


def test_a_tk_has_the_layers_it_is_told(tmp_path, invoke, files, data, tiny_dot):
    mine.write_candidates(data[0], tmp_path / "c.jsonl")
    words = ["--recipe", "ranknet", "--student", "tk", "--collection", files["docs"], "--topics", files["topics"]]
    words += ["--candidates", tmp_path / "c.jsonl", "--max-steps", 1]
    result = invoke(train.main, *words, "--init", tiny_dot, "--setting", "layers=3", "--output", tmp_path / "tk")
    assert result.exit_code == 0, result.output
    assert len(checkpoints.load(str(tmp_path / "tk")).context.layers) == 3
    (tmp_path / "glove.txt").write_text("the 1 0\n")
    again = invoke(train.main, *words, "--init", tmp_path / "tk", "--glove", tmp_path / "glove.txt", "--output", tmp_path / "no")
    assert again.exit_code == 2 and "word vectors are for a new tk student" in again.output


def test_dev_data_that_does_not_belong_together_is_refused_before_training(tmp_path, files):
    from pyserini_kd.validation import read_dev

    (tmp_path / "run.txt").write_text("nobody Q0 eat-cat 1 1.0 t\n")
    with pytest.raises(InputError, match="1 queries of .*run.txt are not among the dev topics, e.g. nobody"):
        read_dev(files["topics"], files["qrels"], tmp_path / "run.txt", 5, files["docs"])
    (tmp_path / "other.qrels").write_text("nobody 0 eat-cat 1\n")
    (tmp_path / "run.txt").write_text("q0 Q0 eat-cat 1 1.0 t\n")
    with pytest.raises(InputError, match="share no"):
        read_dev(files["topics"], str(tmp_path / "other.qrels"), tmp_path / "run.txt", 5, files["docs"])


def test_dev_documents_are_measured_by_their_best_passage(tmp_path, files, queries, tiny_dot, dev):
    from pyserini_kd import rerank, validation

    dev.run.write(tmp_path / "run.txt")
    read = validation.read_dev(files["topics"], files["qrels"], tmp_path / "run.txt", 5, files["docs"], "3:2")
    model = checkpoints.load(str(tiny_dot))
    seen = []
    for one in (read, read._replace(segment=None)):
        folder = tmp_path / str(one.segment)
        folder.mkdir()
        watch = validation.Watch(model, one, folder, metric="RR@10", eval_steps=1, precision="fp32")
        watch.measure(1)
        run = rerank.rerank(read.run, model, queries, lambda ids: (read.docs[i] for i in ids), depth=5, segment=one.segment, precision="fp32")
        expected = validation.evaluate(run, read.qrels, ["RR@10"])["RR@10"]
        assert watch.measured == [{"step": 1, "RR@10": validation.mean(expected)}]
        seen.append(run["q0"].scores.tolist())
    assert seen[0] != seen[1]


@pytest.fixture
def dev(corpus, qrels, queries):
    from pyserini_kd.runs import Run

    first = Run.from_scores("first", {q.query_id: {d.doc_id: float(n) for n, d in enumerate(corpus)} for q in queries})
    return Dev(list(queries), qrels, first, {doc.doc_id: doc for doc in corpus})


def test_the_best_checkpoint_on_dev_topics_is_kept(tmp_path, data, scores, tiny_dot, corpus, qrels, queries, dev):
    from pyserini_kd import api, rerank

    config = TrainConfig("margin-mse", str(tiny_dot), lr=3e-3, max_steps=30, batch_size=5, precision="fp32",
                         metric="RR@10", eval_steps=5, patience=2)  # fmt: skip
    out = train.train(config, *data, tmp_path / "out", scores=scores, dev=dev)
    (record,) = json.loads((out / "training.json").read_text())["stages"]
    values = [entry["RR@10"] for entry in record["dev"]]
    assert values[-1] > values[0] or max(values) == 1.0
    model = checkpoints.load(str(out))
    run = rerank.rerank(dev.run, model, queries, rerank.fetch_from(corpus), depth=20, precision="fp32")
    assert api.mean(api.evaluate(run, qrels, ["RR@10"])["RR@10"]) == pytest.approx(max(values), abs=1e-6)
    assert record["steps"] == record["dev"][-1]["step"] <= 30
    assert len(values) - 1 - values.index(max(values)) <= 2


def test_accumulated_batches_are_averaged(tmp_path, data, scores, tiny_dot):
    """Trainer divides by the number of accumulated batches: same first step from twice the same batch as from one."""
    groups, queries, docs = data
    same = [group._replace(block=0) for group in groups[:5]]
    twice = same + [group._replace(block=1) for group in groups[:5]]
    kwargs = {"lr": 1e-3, "max_steps": 1, "batch_size": 5, "precision": "fp32", "warmup": 0.0, "max_grad_norm": 1e-3}
    one = train.train(TrainConfig("margin-mse", str(tiny_dot), **kwargs), same, queries, docs, tmp_path / "a", scores=scores)
    two = train.train(TrainConfig("margin-mse", str(tiny_dot), accumulate=2, **kwargs), twice, queries, docs, tmp_path / "b",
                      scores=scores)  # fmt: skip
    a, b = (checkpoints.load(str(folder)).state_dict() for folder in (one, two))
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)
    assert learner.Learner(checkpoints.load(str(tiny_dot)), {"margin_mse": 1.0}).accepts_loss_kwargs is False


def test_scores_keep_float32_under_autocast(data, scores, tiny_dot):
    groups, queries, docs = data
    model = checkpoints.load(str(tiny_dot))
    batch = batches.Collator(model, queries, docs, scores)([groups[:5]])
    with torch.autocast("cpu", torch.bfloat16):
        got = learner.group_scores(model, batch)
    assert got.dtype == torch.float32 and not torch.equal(got, got.bfloat16().float())


def test_a_loss_that_is_not_finite_stops(tmp_path, data, liked, tiny_dot):
    bad = Scores(data[0]).fill((q, d, float("inf") if d.startswith("eat-cat") else s) for q, d, s in liked)
    with pytest.raises(InputError, match="not finite"):
        train.train(TrainConfig("margin-mse", str(tiny_dot), max_steps=3), *data, tmp_path / "x", scores=bad)
    assert not (tmp_path / "x").exists()


def test_bounded_scores_are_refused_or_scaled(tmp_path, invoke, files, data, liked, tiny_dot):
    bounded = Scores(data[0]).fill((q, d, s / 10) for q, d, s in liked)
    config = TrainConfig("margin-mse", str(tiny_dot), max_steps=1, batch_size=5, precision="fp32")
    with pytest.raises(InputError, match=r"all teacher scores lie in \[-1, 1\]"):
        train.train(config, *data, tmp_path / "x", scores=bounded)
    train.train(dataclasses.replace(config, score_scale=0.05), *data, tmp_path / "scaled", scores=bounded)
    (tmp_path / "s.tsv").write_text("0.75\t-1\tq0\teat-cat\teat-dog\n")
    words = ["--recipe", "margin-mse", "--init", tiny_dot, "--collection", files["docs"], "--topics", files["topics"]]
    result = invoke(train.main, *words, "--scores", tmp_path / "s.tsv", "--max-steps", 1, "--output", tmp_path / "y")
    assert result.exit_code == 2 and "all teacher scores lie in [-1, 1]" in result.output and not list(tmp_path.glob("y*"))
    cosine = checkpoints.load(str(tiny_dot), l2_norm=True)
    checkpoints.save(cosine, tmp_path / "cosine")
    live = dataclasses.replace(config, teacher=str(tmp_path / "cosine"))
    with pytest.raises(InputError, match=r"gives cosines in \[-1, 1\]: say with --score-scale"):
        train.train(live, *data, tmp_path / "z")
    with pytest.raises(InputError, match=r"gives cosines in \[-1, 1\]: say with --score-scale"):
        train.train(dataclasses.replace(live, temperature=0.1), *data, tmp_path / "z")  # which margin-mse takes no notice of
    train.train(dataclasses.replace(live, score_scale=0.05), *data, tmp_path / "z")
    soft = dataclasses.replace(live, recipe="uniform", losses=("margin_mse=none", "soft_ranknet=1"), temperature=0.1)
    train.train(soft, *data, tmp_path / "soft")


def test_the_learning_rate_follows_the_schedule(tmp_path, data, tiny_dot):
    def rates(schedule):
        config = TrainConfig("ranknet", str(tiny_dot), lr=1e-3, max_steps=5, warmup=0.2, schedule=schedule, batch_size=5, precision="fp32")
        return [entry["lr"] for entry in stages_of(train.train(config, *data, tmp_path / schedule))[0]["log"]]

    assert rates("linear") == pytest.approx([0.0, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3])  # of each step; one to warm up
    assert rates("cosine") == pytest.approx([0.0, *(1e-3 * (1 + np.cos(np.pi * n / 4)) / 2 for n in range(4))])
    assert rates("constant") == pytest.approx([0.0, 1e-3, 1e-3, 1e-3, 1e-3])


def test_plateaus_are_those_of_torch():
    from pyserini_kd.validation import FACTOR, PLATEAU, plateaus

    rng = np.random.default_rng(0)
    values = np.round(np.r_[rng.random(30), np.full(40, 0.5), [1.5], np.full(50, 1.0)], 2)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", FACTOR, PLATEAU, threshold=0.0, eps=0.0)
    for n, value in enumerate(values, start=1):
        oracle.step(value)
        assert FACTOR ** plateaus(values[:n].tolist()) == optimizer.param_groups[0]["lr"]
    assert plateaus(values.tolist()) >= 5


def test_the_learning_rate_falls_on_a_plateau_of_the_dev_measure(tmp_path, data, scores, tiny_dot, dev, monkeypatch):
    import transformers

    from pyserini_kd import validation

    monkeypatch.setattr(validation, "PLATEAU", 1)
    monkeypatch.setattr(validation, "mean", lambda values: 0.5)  # never better than the first
    settings = {"lr": 1e-3, "max_steps": 8, "batch_size": 5, "precision": "fp32", "schedule": "plateau", "warmup": 0.0}
    config = TrainConfig("margin-mse", str(tiny_dot), eval_steps=1, save_steps=2, **settings)
    out = train.train(config, *data, tmp_path / "out", scores=scores, dev=dev)
    rates = [entry["lr"] for entry in stages_of(out)[0]["log"]]
    assert rates == pytest.approx([1e-3 * 0.25**n for n in (0, 0, 0, 0, 1, 1, 2, 2)])  # measures 3, 5 and 7, a step later
    step = transformers.Trainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transformers.Trainer, "training_step", killed)
        train.train(config, *data, tmp_path / "cut", scores=scores, dev=dev)
    resumed = train.train(config, *data, tmp_path / "cut", scores=scores, dev=dev)
    assert [entry["lr"] for entry in stages_of(resumed)[0]["log"]] == rates
    assert checkpoints.fingerprint(resumed) == checkpoints.fingerprint(out)
    with pytest.raises(InputError, match="--schedule plateau follows measures on dev topics: give --dev-topics"):
        train.train(config, *data, tmp_path / "x", scores=scores)


def test_kernels_learn_at_a_rate_of_their_own(tiny_dot):
    from pyserini_kd.stages import quicken

    model = checkpoints.load(str(tiny_dot), architecture="tk", heads=4)
    optimizer = quicken(torch.optim.AdamW(model.parameters(), lr=1e-5), model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, p in model.named_parameters() if rates[id(p)] == pytest.approx(1e-4)} == {"mix", "gamma", "head.weight"}
    assert len(rates) == len(list(model.parameters()))
    other = checkpoints.load(str(tiny_dot))
    assert len(quicken(torch.optim.AdamW(other.parameters()), other).param_groups) == 1


def test_refusals(tmp_path, data, liked, tiny_dot):
    with pytest.raises(InputError, match="needs --scores"):
        train.train(TrainConfig("margin-mse", str(tiny_dot)), *data, tmp_path / "x")
    few = Scores(data[0]).fill(scored for scored in liked if scored[2] < 10)
    with pytest.raises(InputError, match=f"10 candidate pairs have no teacher score, e.g. query {liked[0][0]}, {liked[0][1]}"):
        train.train(TrainConfig("margin-mse", str(tiny_dot)), *data, tmp_path / "x", scores=few)
    with pytest.raises(InputError, match="unknown recipe 'magic'; expected one of margin-mse"):
        train.train(TrainConfig("magic", str(tiny_dot)), *data, tmp_path / "x")


def test_command(tmp_path, invoke, files, data, scores, tiny_dot):
    groups, *_ = data
    mine.write_candidates(groups, tmp_path / "c.jsonl")
    score_files.write_triples(scores.each(groups), tmp_path / "s.tsv")
    base = ["--collection", files["docs"], "--topics", files["topics"], "--init", tiny_dot, "--output", tmp_path / "m"]
    result = invoke(train.main, "--recipe", "margin-mse", *base, "--scores", tmp_path / "s.tsv", "--max-steps", 2, "--layers", "0")
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
        (["--recipe", "ranknet", *more, "--dev-topics", files["topics"]], "go together"),
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
    mine.write_candidates(groups, tmp_path / "c.jsonl")
    from transformers import GPT2Config, GPT2Model

    folder = tmp_path / "gpt"
    GPT2Model(GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=9, n_positions=512)).save_pretrained(folder)
    for wrong, words in (
        (["--recipe", "margin-mse", "--scores", tmp_path / "foreign.tsv"], "none of its 1 triples has all its texts: 1 with a document that is not in the collection, e.g. no-such-doc"),
        (["--recipe", "margin-mse", "--scores", tmp_path / "foreign.tsv", "--candidates", tmp_path / "c.jsonl"], "pairs have no teacher score"),
        (["--recipe", "margin-mse", "--scores", tmp_path / "other.tsv", "--candidates", tmp_path / "c.jsonl"], "pairs have no teacher score"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "elsewhere.jsonl"], "e.g. absent"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "lonely.jsonl"], "query q1 has no positive document"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--init", folder], "is a gpt2; rankers are made from encoders like BERT"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--loss", "rank=1"], "unknown loss 'rank'"),
        (["--recipe", "tinybert", "--candidates", tmp_path / "c.jsonl", "--student", "bert_dot"], "is for a cross_encoder student, not a bert_dot"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--start-stage", 2], "has 1 stage"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--setting", "masks"], "NAME=NUMBER such as join_layer=3"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--setting", "magic=3"], "--setting magic: a bert_dot has none of its own"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "tk", "--setting", "max_query_len=9"], "--setting max_query_len: a tk has layers, heads, feed_forward"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "tk", "--layers", "0"], "a tk has its own (--setting layers=2)"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "cross_encoder", "--max-length", 9999], "tokens at most; a longer length was asked for"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--glove", "x.txt"], "for a new tk student, not for"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "cross_encoder", "--setting", "masks=8"], "no settings of its own"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "cross_encoder", "--pooling", "mean"], "are not for a cross_encoder"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "colbert", "--pooling", "mean"], "--pooling is for a bert_dot"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "tk", "--l2-norm"], "--l2-norm is for a bert_dot or a colbert"),
    ):
        result = invoke(train.main, *base, *wrong)
        assert result.exit_code == 2 and words in result.output, result.output
        assert not (tmp_path / "m").exists()
    result = invoke(train.main, "--recipe", "ranknet", "--collection", files["docs"], "--output", tmp_path / "m")
    assert result.exit_code == 2 and "--topics" in result.output


# ------------------------------------------------------------------------------------- layers, live teachers, stages


def save_cross(tokenizer, folder, *, layers=4, width=48, heads=4, dropout=0.0, seed=5):
    from conftest import tiny_config
    from transformers import BertForSequenceClassification

    from pyserini_kd.models.cross_encoder import CrossEncoder

    torch.manual_seed(seed)
    config = tiny_config(tokenizer, layers)
    config.hidden_size, config.num_attention_heads, config.num_labels = width, heads, 1
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    return checkpoints.save(CrossEncoder(BertForSequenceClassification(config).eval(), tokenizer, 48), folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tokenizer):
    """A random cross-encoder of 4 layers, wider than the student."""
    return str(save_cross(tokenizer, tmp_path_factory.mktemp("teachers") / "ranker"))


@pytest.fixture(scope="module")
def lm(tmp_path_factory, tokenizer):
    """A random language model of 4 layers."""
    from conftest import tiny_config
    from transformers import BertModel

    torch.manual_seed(6)
    folder = tmp_path_factory.mktemp("teachers") / "lm"
    BertModel(tiny_config(tokenizer, 4)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def cross(recipe, init, **settings):
    settings = {"max_steps": 4, "batch_size": 5, "lr": 1e-3, "precision": "fp32", **settings}
    return TrainConfig(recipe, str(init), "cross_encoder", **settings)


def stages_of(folder):
    return json.loads((folder / "training.json").read_text())["stages"]


def test_simplified_tinybert_learns_layers_scores_and_labels(tmp_path, data, tiny_cross, teacher):
    out = train.train(cross("simplified-tinybert", tiny_cross, teacher=teacher, max_steps=60, lr=3e-3), *data, tmp_path / "out")
    (stage,) = stages_of(out)
    first, last = stage["log"][0], stage["log"][-1]
    assert {"hidden", "attention", "soft_ce", "bce", "score_std", "grad_norm"} <= set(first)
    assert all(last[name] < first[name] for name in ("hidden", "attention"))
    from transformers import AutoModelForSequenceClassification

    weights = AutoModelForSequenceClassification.from_pretrained(out).state_dict()
    assert not any("projection" in name for name in weights)
    assert weights.keys() == checkpoints.load(str(tiny_cross)).classifier.state_dict().keys()
    assert checkpoints.load(str(out)).classifier.config.hidden_size == 32


def test_a_live_teacher_gives_the_scores_of_a_score_file(tmp_path, data, tiny_dot, teacher):
    groups, queries, docs = data
    model = checkpoints.load(teacher)
    asked = [(g.query_id, d) for g in groups for d in g.doc_ids]
    found = inference.score(model, [queries[q] for q, _ in asked], [docs[d] for _, d in asked], precision="fp32").tolist()
    scores = Scores(groups).fill((q, d, score) for (q, d), score in zip(asked, found, strict=True))
    config = TrainConfig("margin-mse", str(tiny_dot), lr=1e-3, max_steps=6, batch_size=5, precision="fp32")
    stored = train.train(config, *data, tmp_path / "stored", scores=scores)
    live = train.train(dataclasses.replace(config, teacher=teacher), *data, tmp_path / "live")
    a, b = (stages_of(folder)[0] for folder in (stored, live))
    assert a["start_scale"] == pytest.approx(b["start_scale"], rel=1e-4)
    assert [x["margin_mse"] for x in a["log"]] == pytest.approx([x["margin_mse"] for x in b["log"]], rel=1e-3)


def test_the_teacher_sleeps_unless_its_dropout_is_asked_for(tmp_path, data, tokenizer, tiny_cross):
    noisy = save_cross(tokenizer, tmp_path / "noisy", dropout=0.5)
    groups, queries, docs = data
    student, model = checkpoints.load(str(tiny_cross)), checkpoints.load(str(noisy))
    batch = batches.Collator(student, queries, docs, teacher=model, same_inputs=True)([groups[:3]])

    def losses_of(**settings):
        torch.manual_seed(0)
        module = learner.Learner(student, {"hidden": 1.0, "attention": 1.0}, teacher=model, **settings).train()
        assert not any("teacher" in name for name in module.state_dict())
        return [float(module(**batch)["loss"].detach()) for _ in range(2)]

    quiet, loud = losses_of(), losses_of(teacher_dropout=True)
    assert quiet[0] == quiet[1] and loud[0] != loud[1]


def test_dropout_replaces_the_checkpoints_in_every_layer(tmp_path, data, tokenizer):
    noisy = str(save_cross(tokenizer, tmp_path / "noisy", dropout=0.5))
    groups, queries, docs = data
    batch = batches.Collator(checkpoints.load(noisy), queries, docs)([groups[:3]])["student"]

    def scores(**settings):
        torch.manual_seed(0)
        model = load_student(cross("ranknet", noisy, **settings), {True: None, False: None})
        return [model.train(training).pair_scores(batch).tolist() for training in (True, True, False)]

    first, second, still = scores()
    assert first != second and first != still
    first, second, still = scores(dropout=0.0)
    assert first == second == pytest.approx(still, rel=1e-5)
    config = cross("ranknet", noisy, dropout=0.0, max_steps=2)
    saved = checkpoints.load(str(train.train(config, *data, tmp_path / "out"))).classifier.config
    assert saved.hidden_dropout_prob == 0.5  # how it was trained stands in training.json, not in the model's shape


def test_in_batch_negatives_join_margin_mse(data, scores, tiny_dot):
    from pyserini_kd.losses import listwise_ce

    groups, queries, docs = data
    model = checkpoints.load(str(tiny_dot))
    batch = batches.Collator(model, queries, docs, scores, in_batch=True)([[groups[0], groups[5]]])  # of two blocks
    module = learner.Learner(model, {"margin_mse": 1.0, "in_batch": 0.5})
    total = float(module(**batch)["loss"].detach())
    distinct = list(dict.fromkeys([*groups[0].doc_ids, *groups[5].doc_ids]))
    labels = torch.tensor([[int((d, 1) in zip(g.doc_ids, g.labels, strict=True)) for d in distinct] for g in (groups[0], groups[5])])
    own = [inference.score(model, [queries[g.query_id]] * len(distinct), [docs[d] for d in distinct], precision="fp32")
           for g in (groups[0], groups[5])]  # fmt: skip
    expected = float(listwise_ce(torch.tensor(np.stack(own)), None, labels, torch.ones_like(labels, dtype=torch.bool)))
    assert module.terms["in_batch"] == [pytest.approx(expected, rel=1e-4)]
    assert total == pytest.approx(module.terms["margin_mse"][0] + 0.5 * expected, rel=1e-4)


@pytest.mark.parametrize("where", [(1, 3), (2, 1)], ids=lambda where: f"stage{where[0]}-step{where[1]}")
def test_a_recipe_of_two_stages_resumes_where_it_was_killed(tmp_path, data, tiny_cross, teacher, whole_tinybert, monkeypatch, where):
    import transformers

    step, begun = transformers.Trainer.training_step, []

    def killed(self, *args, **kwargs):
        stage = int(str(self.args.output_dir)[-1])
        begun.append(stage)
        if (stage, self.state.global_step) == where:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    config = cross("tinybert", tiny_cross, teacher=teacher, save_steps=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transformers.Trainer, "training_step", killed)
        train.train(config, *data, tmp_path / "cut")
    assert not (tmp_path / "cut").exists() and (tmp_path / "cut.partial" / "stage-1.json").exists() == (where[0] == 2)
    begun.clear()
    with monkeypatch.context() as patch:
        patch.setattr(transformers.Trainer, "training_step", lambda self, *a, **k: begun.append(self.state.global_step) or step(self, *a, **k))
        out = train.train(config, *data, tmp_path / "cut")
    assert len(begun) == {(1, 3): 6, (2, 1): 4}[where]  # of 8 steps
    assert checkpoints.fingerprint(out) == checkpoints.fingerprint(whole_tinybert)
    assert [[entry["step"] for entry in stage["log"]] for stage in stages_of(out)] == [[1, 2, 3, 4]] * 2


@pytest.fixture(scope="module")
def whole_tinybert(tmp_path_factory, data, tiny_cross, teacher):
    return train.train(cross("tinybert", tiny_cross, teacher=teacher, save_steps=2), *data, tmp_path_factory.mktemp("whole") / "out")


def test_tinybert_trains_layers_then_scores(whole_tinybert):
    first, second = stages_of(whole_tinybert)
    assert {"hidden", "attention"} <= set(first["log"][0]) and not {"soft_ce", "score_std"} & set(first["log"][0])
    assert "soft_ce" in second["log"][0] and "hidden" not in second["log"][0]
    assert {entry["lr"] for entry in first["log"]} == {1e-3} and second["log"][-1]["lr"] < 1e-3  # constant, then linear


def test_language_models_are_distilled_on_plain_text_alone(tmp_path, data, corpus, files, invoke, lm, teacher):
    base = ["--collection", files["docs"], "--batch-size", 4, "--lr", 3e-3, "--precision", "fp32"]
    result = invoke(train.main, "--recipe", "lm-distill", *base, "--lm-teacher", lm, "--init", "random:2/16",
                    "--max-steps", 20, "--output", tmp_path / "small")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "20 plain texts" in result.output
    (stage,) = stages_of(tmp_path / "small")
    assert stage["log"][-1]["hidden"] < stage["log"][0]["hidden"]
    from transformers import AutoModel

    assert AutoModel.from_pretrained(tmp_path / "small").config.num_hidden_layers == 2
    groups = data[0]
    mine.write_candidates(groups, tmp_path / "c.jsonl")
    more = ["--topics", files["topics"], "--candidates", tmp_path / "c.jsonl", "--max-steps", 2, "--init", tmp_path / "small"]
    result = invoke(train.main, "--recipe", "ranker-distill", *base, *more, "--teacher", teacher, "--output", tmp_path / "x")
    assert result.exit_code == 2 and "ranker-distill must not start from a distilled language model, as " in result.output
    result = invoke(train.main, "--recipe", "ranker-distill", *base, *more[:-2], "--teacher", teacher, "--output", tmp_path / "x")
    assert result.exit_code == 2 and "must not start from a distilled language model, as minilm is; take --init" in result.output
    result = invoke(train.main, "--recipe", "lm-distill", *base, "--lm-teacher", lm, "--init", "random:2/16", "--segment", "4:2",
                    "--max-steps", 90, "--output", tmp_path / "cut")  # fmt: skip
    assert result.exit_code == 0 and "60 plain texts" in result.output, result.output
    result = invoke(train.main, "--recipe", "lm+ranker-distill", *base, *more, "--teacher", teacher, "--start-stage", 2,
                    "--output", tmp_path / "ranker")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert [stage["name"] for stage in stages_of(tmp_path / "ranker")] == ["ranker's layers", "ranker's scores"]
    assert json.loads((tmp_path / "ranker" / "training.json").read_text())["distilled_lm"] is True


def test_lm_distill_and_fine_tuning_in_one_command_never_sees_a_ranker(tmp_path, data, lm):
    out = train.train(cross("lm-distill+ft", "random:2/16", lm_teacher=lm), *data, tmp_path / "out", texts=list(data[2].values()))
    first, second = stages_of(out)
    assert "hidden" in first["log"][0] and "bce" in second["log"][0] and not {"hidden", "soft_ce"} & set(second["log"][0])
    assert checkpoints.load(str(out)).architecture == "cross_encoder"


def test_the_published_start_of_ranker_distill_is_layers_of_the_teacher(tmp_path, data, teacher, caplog):
    teacher = shutil.copytree(teacher, tmp_path / "minilm-teacher")  # itself from a distilled language model, as it says
    (teacher / "training.json").write_text('{"distilled_lm": true}')
    teacher = str(teacher)
    config = cross("ranker-distill", teacher, teacher=teacher, layers=(1, 3), max_steps=1)
    out = train.train(config, *data, tmp_path / "out")
    assert checkpoints.load(str(out)).classifier.config.num_hidden_layers == 2 and "distilled language" not in caplog.text


def test_the_last_good_checkpoint_is_kept(tmp_path, data, scores, tiny_dot, monkeypatch):
    from pyserini_kd import losses

    calls = []

    def broken(student, *args):
        calls.append(1)
        return losses.margin_mse(student, *args) * (float("nan") if len(calls) > 3 else 1.0)

    monkeypatch.setitem(losses.LOSSES, "margin_mse", broken)
    config = TrainConfig("margin-mse", str(tiny_dot), max_steps=8, batch_size=5, save_steps=2, precision="fp32")
    with pytest.raises(InputError, match="not finite .*last good checkpoint is .*out.last-good"):
        train.train(config, *data, tmp_path / "out", scores=scores)
    assert not (tmp_path / "out").exists()
    kept = checkpoints.load(str(tmp_path / "out.last-good")).state_dict()
    start = checkpoints.load(str(tiny_dot)).state_dict()
    assert any(not torch.equal(kept[name], start[name]) for name in kept)


def test_the_best_weights_on_dev_topics_are_a_good_checkpoint_too(tmp_path, data, scores, tiny_dot, dev, monkeypatch):
    from pyserini_kd import losses

    calls = []

    def broken(student, *args):
        calls.append(1)
        return losses.margin_mse(student, *args) * (float("nan") if len(calls) > 3 else 1.0)

    monkeypatch.setitem(losses.LOSSES, "margin_mse", broken)
    config = TrainConfig("margin-mse", str(tiny_dot), max_steps=8, batch_size=5, eval_steps=2, precision="fp32")
    with pytest.raises(InputError, match="last good checkpoint is .*out.last-good"):
        train.train(config, *data, tmp_path / "out", scores=scores, dev=dev)
    kept, start = (checkpoints.load(str(path)).state_dict() for path in (tmp_path / "out.last-good", tiny_dot))
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert any(not torch.equal(kept[name], start[name]) for name in kept)


def test_refusals_of_layer_distillation(tmp_path, data, scores, tokenizer, tiny_dot, tiny_cross, teacher, lm):
    def refused(match, config, **more):
        with pytest.raises(InputError, match=match):
            train.train(config, *data, tmp_path / "x", **more)
        assert not (tmp_path / "x").exists()

    refused("give --teacher", cross("tinybert", tiny_cross))
    refused("give --lm-teacher, or --start-stage 2", cross("lm-distill+ft", tiny_cross))
    refused("and there is none", cross("lm-distill", tiny_cross, lm_teacher=lm))
    refused("has 2 stage", cross("tinybert", tiny_cross, teacher=teacher, start_stage=3))
    refused("for a cross_encoder student, not a bert_dot", TrainConfig("tinybert", str(tiny_dot), teacher=teacher))
    refused("is a bert_dot; layers are those of a cross-encoder", cross("tinybert", tiny_cross, teacher=str(tiny_dot)))
    three = save_cross(tokenizer, tmp_path / "three", layers=3)
    refused("4 layers cannot be mapped onto a student of 3", cross("tinybert", three, teacher=teacher))
    heads = save_cross(tokenizer, tmp_path / "heads", layers=2, heads=8)
    refused("8 attention heads, the teacher 4", cross("tinybert", heads, teacher=teacher))
    train.train(cross("tinybert", heads, teacher=teacher, losses=("attention=0",), max_steps=1), *data, tmp_path / "fine")
    from transformers import BertTokenizer

    other = BertTokenizer(vocab={word: row for row, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"])})
    refused("different vocabularies", cross("tinybert", tiny_cross, teacher=str(save_cross(other, tmp_path / "other"))))
    short = checkpoints.load(teacher)
    short.max_len = 20
    short = checkpoints.save(short, tmp_path / "short")
    refused("reads 20 tokens a pair, the student 48: .* --train-length 20", cross("tinybert", tiny_cross, teacher=str(short)))
    train.train(cross("tinybert", tiny_cross, teacher=str(short), train_len=20, max_steps=1), *data, tmp_path / "cut")
    refused("random:LAYERS/WIDTH", cross("ranker-distill", "random:4", teacher=teacher))
    refused("multiple of the teacher's 4 heads", cross("ranker-distill", "random:2/30", teacher=teacher))
    refused("takes vocabulary and heads", cross("ranknet", "random:2/16"))
    refused("makes a cross_encoder", TrainConfig("ranknet", "random:2/16"))
    refused("unknown loss", cross("uniform", tiny_cross, losses=("magic=1",)), scores=scores)


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, invoke, files, data, scores, tokenizer, tiny_dot, tiny_cross, teacher, monkeypatch):
    from pyserini_kd import losses

    mine.write_candidates(data[0], tmp_path / "c.jsonl")
    score_files.write_triples(scores.each(data[0]), tmp_path / "s.tsv")
    three = save_cross(tokenizer, tmp_path / "three", layers=3)
    heads = save_cross(tokenizer, tmp_path / "heads", layers=2, heads=8)
    base = ["--collection", files["docs"], "--topics", files["topics"], "--output", tmp_path / "m", "--candidates", tmp_path / "c.jsonl"]
    monkeypatch.setitem(losses.LOSSES, "margin_mse", lambda student, *_: student.sum() * float("nan"))
    for words, message in (
        (["--recipe", "magic"], "unknown recipe 'magic'; expected one of margin-mse"),
        (["--recipe", "ranknet", "--student", "gpt"], "unknown student 'gpt'; one of"),
        (["--recipe", "tinybert", "--init", heads, "--teacher", teacher], "the student has 8 attention heads, the teacher 4"),
        (["--recipe", "tinybert", "--init", three, "--teacher", teacher], "4 layers cannot be mapped onto a student of 3"),
        (["--recipe", "tinybert", "--init", tiny_cross, "--teacher", tiny_dot], "is a bert_dot; layers are those of a cross-encoder"),
        (["--recipe", "margin-mse", "--init", tiny_dot, "--scores", tmp_path / "s.tsv"], "the loss is not finite"),
    ):
        result = invoke(train.main, *base, *words)
        assert result.exit_code == 2 and message in result.output, (words, result.output)
        assert not (tmp_path / "m").exists()


def test_tokenizers_that_cut_words_differently_are_refused(data, tokenizer, tiny_cross, teacher):
    from transformers import BertTokenizer

    groups, queries, docs = data
    student, other = checkpoints.load(str(tiny_cross)), checkpoints.load(teacher)
    other.tokenizer = BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=False)  # same vocabulary
    with pytest.raises(InputError, match="do not see the same tokens"):
        batches.Collator(student, queries, docs, teacher=other, same_inputs=True)([groups[:5]])


def meta_student(shape):
    """What --init random:SHAPE makes for a teacher with BERT-base's vocabulary, window and heads; no memory, no numbers."""
    from types import SimpleNamespace

    from transformers import BertConfig

    encoder = SimpleNamespace(config=BertConfig())
    like = SimpleNamespace(architecture="cross_encoder", classifier=SimpleNamespace(base_model=encoder), tokenizer=None, max_len=512)
    with torch.device("meta"):
        return learner.random_student(shape, like)


@pytest.mark.parametrize(("shape", "millions"), [("6/768", 66.96), ("4/312", 14.35), ("3/384", 17.39), ("12/768", 109.5)])
def test_random_students_have_the_papers_sizes(shape, millions):
    model = meta_student(shape)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)
    assert learner.encoder_of(model).config.num_attention_heads == 12


def test_random_students_have_the_papers_speed_ups():
    """Multiplications of 256 tokens against BERT-base: 2.0 and 15.2 in papers.md 4.2, 17 for 4/312 in 1.6."""
    from torch.utils.flop_counter import FlopCounterMode

    def flops(shape):
        model = meta_student(shape).eval()
        model.classifier.set_attn_implementation("eager")
        ids = torch.ones((1, 256), dtype=torch.long, device="meta")
        with FlopCounterMode(display=False) as counter:
            learner.encoder_of(model)(input_ids=ids, attention_mask=torch.zeros((1, 1, 256, 256), device="meta"))
        return counter.get_total_flops()

    base = flops("12/768")
    ratios = {shape: base / flops(shape) for shape in ("6/768", "3/384", "4/312")}
    assert (round(ratios["6/768"], 1), round(ratios["3/384"], 1), round(ratios["4/312"])) == (2.0, 15.2, 17)


def test_what_a_recipe_starts_from_is_seen_and_said(tmp_path, tokenizer, data, teacher, lm, caplog):
    """An undistilled start is recorded as such, and what wants a distilled one says so; the known mistake is refused."""
    def trained(recipe, init, **settings):
        caplog.clear()
        train.train(cross(recipe, init, teacher=teacher, lm_teacher=lm, max_steps=1, **settings), *data, tmp_path / "out", overwrite=True)
        return json.loads((tmp_path / "out" / "training.json").read_text())["distilled_lm"], "is meant to start from" in caplog.text

    plain = save_cross(tokenizer, tmp_path / "plain", layers=2)
    (distilled := save_cross(tokenizer, tmp_path / "distilled", layers=2)).joinpath("training.json").write_text('{"distilled_lm": true}')
    assert trained("lm+ranker-distill", plain, start_stage=2) == (False, True)
    assert trained("lm+ranker-distill", distilled, start_stage=2) == (True, False)
    assert trained("tinybert", "random:2/16") == (False, True)
    assert trained("ranker-distill", "random:2/16") == (False, False)
    for init in ("minilm", checkpoints.resolve("minilm"), distilled):
        with pytest.raises(InputError, match="must not start from a distilled language model, as "):
            trained("ranker-distill", init)


@pytest.mark.parametrize("match_scale", [None, False])
def test_a_student_may_keep_its_own_scale(tmp_path, data, scores, tiny_dot, match_scale):
    config = TrainConfig("margin-mse", str(tiny_dot), max_steps=1, precision="fp32", match_scale=match_scale)
    (stage,) = stages_of(train.train(config, *data, tmp_path / "out", scores=scores))
    assert (stage["match_scale"], stage["start_scale"] == 1.0) == ((True, False) if match_scale is None else (False, True))


def test_only_a_students_scores_are_brought_to_those_of_a_teacher(tmp_path, data, tiny_dot, tiny_cross):
    (stage,) = stages_of(train.train(TrainConfig("ranknet", str(tiny_dot), max_steps=1, match_scale=True), *data, tmp_path / "out"))
    assert stage["start_scale"] == 1.0  # nothing to be brought to
    with pytest.raises(InputError, match="--match-scale is for a bert_dot or a colbert whose vectors"):
        refuse_ignored(TrainConfig("margin-mse", str(tiny_cross), "cross_encoder", match_scale=True))
    with pytest.raises(InputError, match="--match-scale is for"):
        refuse_ignored(TrainConfig("margin-mse", str(tiny_dot), match_scale=True, l2_norm=True))


def test_bf16_trains_otherwise_than_fp32_and_nearly_the_same(tmp_path, data, scores, tiny_dot):
    logs = []
    for precision in ("fp32", "bf16"):
        config = TrainConfig("margin-mse", str(tiny_dot), lr=1e-3, max_steps=4, batch_size=5, precision=precision, dropout=0.0)
        (stage,) = stages_of(train.train(config, *data, tmp_path / precision, scores=scores))
        logs.append([entry["margin_mse"] for entry in stage["log"]])
    assert logs[0] != logs[1] and logs[0] == pytest.approx(logs[1], rel=0.1)


def test_what_is_set_reaches_the_losses(tmp_path, data, scores, tokenizer, tiny_cross):
    """Temperature, score scale, weights of layers, the teacher's dropout, the number of epochs."""
    def first(recipe, **settings):
        config = cross(recipe, tiny_cross, **{"max_steps": 1, "lr": 1e-9, **settings})
        with_scores = {} if settings.get("teacher") else {"scores": scores}
        (stage,) = stages_of(train.train(config, *data, tmp_path / "out", **with_scores, overwrite=True))
        return stage

    base = first("standard-kd")["log"][0]
    assert first("standard-kd", temperature=3.0)["log"][0]["soft_ce"] != base["soft_ce"]
    assert first("standard-kd", score_scale=3.0)["log"][0]["bce"] != base["bce"]
    noisy = str(save_cross(tokenizer, tmp_path / "noisy", dropout=0.3))
    layers = {"teacher": noisy, "losses": ("soft_ce=none", "bce=none", "attention=none", "hidden=1")}
    plain = first("simplified-tinybert", **layers)["log"][0]
    heavy = first("simplified-tinybert", **layers | {"losses": (*layers["losses"], "hidden=7")})["log"][0]
    assert heavy["grad_norm"] == pytest.approx(7 * plain["grad_norm"], rel=1e-3)
    dropped = first("simplified-tinybert", **layers, teacher_dropout=True)["log"][0]
    assert dropped["hidden"] != plain["hidden"] == heavy["hidden"]
    n_batches = len(batches.cut_batches(data[0], 5, 0))
    assert first("standard-kd", max_steps=None, epochs=1.5, batch_size=5)["steps"] == math.ceil(1.5 * n_batches)


def test_a_new_colbert_asks_with_eight_masks_and_others_inherit_none(tmp_path, data, tiny_dot):
    made = train.train(TrainConfig("ranknet", str(tiny_dot), "colbert", max_steps=1), *data, tmp_path / "c")
    assert checkpoints.load(str(made)).settings.masks == 8
    assert checkpoints.load(str(made), architecture="prettr").settings.masks == 0
    again = train.train(TrainConfig("ranknet", str(made), "prettr", max_steps=1), *data, tmp_path / "p")
    assert checkpoints.load(str(again)).settings.masks == 0


def test_the_record_of_a_training_tells_what_it_was(tmp_path, data, scores, tiny_dot):
    out = train.train(TrainConfig("margin-mse", str(tiny_dot), max_steps=1, seed=7), *data, tmp_path / "out", scores=scores)
    record = json.loads((out / "training.json").read_text())
    assert record["recipe"]["name"] == "margin-mse" and "2010.02666" in record["recipe"]["source"]
    assert record["config"]["seed"] == 7 and record["config"]["max_grad_norm"] == 1.0
    assert record["made_from"] == {"init": checkpoints.fingerprint(tiny_dot)}
    assert record["seconds"] > 0 and {"torch", "transformers", "python"} <= set(record["versions"])


def test_ranker_distill_warns_of_public_distilled_models(tmp_path, tokenizer, data, teacher, caplog):
    init = save_cross(tokenizer, tmp_path / "my-tinybert", layers=2)
    train.train(cross("ranker-distill", init, teacher=teacher, max_steps=1), *data, tmp_path / "out")
    assert "looks like a distilled language model; with it this is not ranker-distill" in caplog.text


def test_remains_of_a_kill_are_cleared_and_foreign_folders_are_not(tmp_path, data, tiny_dot):
    config = TrainConfig("ranknet", str(tiny_dot), max_steps=1, batch_size=5, precision="fp32")
    (tmp_path / "a.partial" / "stage-1").mkdir(parents=True)  # killed while it was being removed
    (tmp_path / "a.partial" / ".config.json.x1y2.partial").write_text("{")
    train.train(config, *data, tmp_path / "a")
    assert not (tmp_path / "a.partial").exists()
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"b.partial is in the way"):
        train.train(config, *data, tmp_path / "b")
    assert (tmp_path / "b.partial" / "thesis.txt").exists()


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path, invoke, files, data, tiny_dot, monkeypatch):
    import safetensors.torch
    import transformers

    mine.write_candidates(data[0], tmp_path / "c.jsonl")
    words = ["--recipe", "ranknet", "--init", tiny_dot, "--collection", files["docs"], "--topics", files["topics"], "--max-steps", 4]
    words += ["--candidates", tmp_path / "c.jsonl", "--save-steps", 2, "--precision", "fp32", "--output", tmp_path / "m"]

    def saving_state(*args):
        raise OSError(28, "No space left on device")

    def exporting(model, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    for place, name, full in ((transformers.Trainer, "_save_optimizer_and_scheduler", saving_state),
                              (checkpoints, "_save_encoder", exporting)):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            result = invoke(train.main, *words)
        assert result.exit_code == 2 and "No space left on device" in result.output, result.output
        assert sorted(path.name for path in tmp_path.glob("*m*")) == ["m.partial"] and "Traceback" not in result.output
    result = invoke(train.main, *words)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "m" / "training.json").read_text())
    assert record["data"]["candidates"]["sha256"] == sha256(tmp_path / "c.jsonl")
    assert record["data"]["topics"] == {"path": files["topics"], "sha256": sha256(files["topics"])}
    assert record["data"]["collection"]["sha256"] == sha256(files["docs"])


def test_a_collapsed_model_is_said_so(tmp_path, data, tokenizer, caplog):
    folder = save_cross(tokenizer, tmp_path / "flat", layers=2)
    model = checkpoints.load(str(folder))
    torch.nn.init.zeros_(model.classifier.classifier.weight)
    flat = checkpoints.save(model, tmp_path / "flatter")
    train.train(cross("ranknet", flat, max_steps=1, lr=1e-9), *data, tmp_path / "out")
    assert "collapsed" in caplog.text


# ------------------------------------------------------------------------------------------------- several processes

FRESH = multiprocessing.get_context("forkserver")  # fresh processes that share one import of torch and transformers
FRESH.set_forkserver_preload(["pyserini_kd.train", "pyserini_kd.learner", "transformers.trainer", "transformers.models.bert.modeling_bert"])


def run_in_process(folder, docs, topics, threads, environment, killed_in=None):
    """Train what `runs.json` says, in a fresh process; killed by signal 9 while it saves a state of stage `killed_in`."""
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
    groups = mine.read_candidates(folder / "c.jsonl")
    queries, texts = triples.load_texts(groups, read_topics(topics), read_collection(docs))
    scores = Scores(groups).fill(json.loads((folder / "scores.json").read_text()))
    for name, settings in json.loads((folder / "runs.json").read_text()).items():
        config = TrainConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
        losses.clear()
        train.train(config, groups, queries, texts, folder / name, scores=scores)
        if environment.get("RANK") == "0":
            (folder / f"{name}-losses.json").write_text(json.dumps(losses))


def keep_losses():
    """A list that will hold the loss of every batch that is trained on from now on in this process."""
    forward, losses = learner.Learner.forward, []

    def kept(self, **batch):
        output = forward(self, **batch)
        losses.append(float(output["loss"].detach()))
        return output

    learner.Learner.forward = kept
    return losses


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def exit_codes_of_two(folder, files, killed_in=None):
    """Start two processes on the runs of a folder, wait for both."""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    own = [{**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    started = [FRESH.Process(target=run_in_process, args=(folder, files["docs"], files["topics"], 1, one, killed_in)) for one in own]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=120)
    return [process.exitcode for process in started]


def test_two_processes_killed_with_signal_9_resume_to_the_same_weights(tmp_path, data, liked, files, tiny_dot):
    config = {"recipe": "margin-mse", "init": str(tiny_dot), "max_steps": 9, "batch_size": 3, "lr": 1e-3, "precision": "fp32",
              "save_steps": 2, "dropout": 0.3}  # fmt: skip
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        mine.write_candidates(data[0], tmp_path / name / "c.jsonl")
        (tmp_path / name / "scores.json").write_text(json.dumps(liked))
        (tmp_path / name / "runs.json").write_text(json.dumps({"out": config}))
    assert exit_codes_of_two(tmp_path / "whole", files) == [0, 0]
    assert exit_codes_of_two(tmp_path / "cut", files, killed_in="checkpoint-6") == [-signal.SIGKILL] * 2
    states = tmp_path / "cut" / "out.partial" / "stage-1"
    assert sorted(path.name for path in states.glob("checkpoint-4/saved-*")) == ["saved-0-of-2", "saved-1-of-2"]
    assert not list(states.glob("checkpoint-6/saved-*"))
    assert exit_codes_of_two(tmp_path / "cut", files) == [0, 0]
    whole, cut = tmp_path / "whole" / "out", tmp_path / "cut" / "out"
    assert checkpoints.fingerprint(cut) == checkpoints.fingerprint(whole)
    assert [entry["step"] for entry in stages_of(cut)[0]["log"]] == [entry["step"] for entry in stages_of(whole)[0]["log"]]


def test_two_processes_train_like_one(tmp_path, data, liked, scores, files, tiny_dot, tiny_cross, teacher, monkeypatch):
    """As torchrun starts them: same loss at each step, same weights in the end, also with uneven shares of the pairs."""
    groups = [group._replace(doc_ids=group.doc_ids[: 5 - n % 3], labels=group.labels[: 5 - n % 3]) for n, group in enumerate(data[0])]
    # at the recipe's rate; ten times as quick, Adam carries rounding to 3e-4 of a loss by the 50th step
    common = {"max_steps": 50, "batch_size": 3, "lr": 1e-4, "precision": "fp32", "save_steps": 4}
    layered = {**common, "init": str(tiny_cross), "architecture": "cross_encoder", "teacher": teacher}
    runs = {
        "dot": {**common, "recipe": "margin-mse", "init": str(tiny_dot), "losses": ["in_batch=0.5"], "accumulate": 2},
        "tinybert": {**layered, "recipe": "tinybert", "max_steps": 5},
    }
    mine.write_candidates(groups, tmp_path / "c.jsonl")
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    (tmp_path / "scores.json").write_text(json.dumps(liked))
    assert exit_codes_of_two(tmp_path, files) == [0, 0]
    monkeypatch.setattr(learner.Learner, "forward", learner.Learner.forward)  # put back at the end
    losses = keep_losses()
    for name, settings in runs.items():
        losses.clear()
        config = TrainConfig(**{**settings, "losses": tuple(settings.get("losses", ()))})
        one = train.train(config, groups, *data[1:], tmp_path / f"{name}-alone", scores=scores)
        for alone, both in zip(stages_of(one), stages_of(tmp_path / name), strict=True):
            assert len(alone["log"]) == len(both["log"]) and alone["steps"] == both["steps"] == settings["max_steps"]
            for a, b in zip(alone["log"], both["log"], strict=True):
                assert a.keys() == b.keys() and b == pytest.approx(a, rel=1e-4)
        theirs = json.loads((tmp_path / f"{name}-losses.json").read_text())
        assert theirs == pytest.approx(losses, rel=1e-4)  # of every batch
        a, b = (checkpoints.load(str(folder)).state_dict() for folder in (one, tmp_path / name))
        noise = "key.bias"  # softmax takes it out: its gradient is rounding noise, which Adam scales up
        assert all(torch.allclose(a[name], b[name], atol=2e-5) for name in a if not name.endswith(noise))
        assert json.loads((tmp_path / name / "training.json").read_text())["processes"] == 2


def test_a_run_killed_with_signal_9_in_its_second_stage_resumes_to_the_same_weights(
    tmp_path, data, liked, files, tiny_cross, teacher, whole_tinybert
):
    mine.write_candidates(data[0], tmp_path / "c.jsonl")
    (tmp_path / "scores.json").write_text(json.dumps(liked))
    config = cross("tinybert", tiny_cross, teacher=teacher, save_steps=2)
    (tmp_path / "runs.json").write_text(json.dumps({"out": dataclasses.asdict(config)}))
    process = FRESH.Process(target=run_in_process, args=(tmp_path, files["docs"], files["topics"], torch.get_num_threads(), {}, "stage-2"))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    half = tmp_path / "out.partial" / "stage-2" / "checkpoint-2"  # while saving: weights are there, the seal is not
    assert (half / "model.safetensors").exists() and not list(half.glob("saved-*"))
    out = train.train(config, *data, tmp_path / "out")
    assert checkpoints.fingerprint(out) == checkpoints.fingerprint(whole_tinybert)


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
    before = material.digest("collection", tmp_path / "docs")
    (tmp_path / "both").write_text("ba")
    assert before == {"path": str(tmp_path / "docs"), "sha256": sha256(tmp_path / "both")}
    (tmp_path / "docs" / "more" / "a.jsonl").write_text("c")
    assert material.digest("collection", tmp_path / "docs") != before
    for name in ("collection", "topics"):
        assert material.digest(name, "ir_datasets:far/away") == "ir_datasets:far/away"
    assert material.digest("topics", tmp_path / "both") == {"path": str(tmp_path / "both"), "sha256": sha256(tmp_path / "both")}
    assert material.digest("topics", tmp_path / "docs") == str(tmp_path / "docs")  # reading it will say what is wrong


def test_tiny_numbers_are_zero_while_training_and_only_then(tmp_path, data, tiny_dot, monkeypatch):
    from pyserini_kd import losses

    seen, tiny = [], torch.tensor([1e-40])
    monkeypatch.setitem(losses.LOSSES, "ranknet", lambda *args: seen.append(float(tiny + 0)) or losses.ranknet(*args))
    train.train(TrainConfig("ranknet", str(tiny_dot), max_steps=1, batch_size=5, precision="fp32"), *data, tmp_path / "out")
    assert set(seen) == {0.0} and float(tiny + 0) > 0
