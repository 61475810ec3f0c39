"""Training: batches, scores with gradients, learning, precision, records."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyserini_kd import train
from pyserini_kd.distillation import batches, objective, processes, stages, text_store, training, training_data
from pyserini_kd.distillation.candidates import Group, write_candidates
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.trainer import clock, make_trainer, time
from pyserini_kd.models import checkpoint_folder, loading
from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.errors import InputError
from tests.conftest import encode, score, stages_of


def test_batches_never_cross_blocks():
    groups = [Group(str(n), ["p", "n"], [1, 0], n // 4) for n in range(10)]
    cut = batches.cut_batches(groups, 3, seed=0)
    assert [[g.query_id for g in batch] for batch in cut] == [["0", "1", "2"], ["3"], ["4", "5", "6"], ["7"], ["8", "9"]]


def test_small_blocks_share_a_batch(caplog):
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
    """A model that keeps its texts to tokenise."""

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


@pytest.mark.parametrize("twin", ["X", " X\n"])
def test_a_text_equal_to_a_positive_is_no_negative(twin):
    """One passage has the ids x and y. Query a has x and query b has y as a positive. Neither id may be a negative of the other query."""
    texts = {"x": "X", "y": twin, "z": "Z"}
    groups = [Group("a", ["x", "z"], [1, 0], 0), Group("b", ["y", "z"], [1, 0], 0), Group("c", ["z", "x"], [1, 0], 0)]
    batch = batches.Collator(Spy(), {"a": "A", "b": "B", "c": "C"}, texts, in_batch=True)([groups])
    assert batch["batch_labels"].tolist() == [[1, 0, 1], [1, 0, 1], [0, 1, 0]]  # columns x, z, y
    assert batch["labels"].tolist() == [[1, 0], [1, 0], [1, 0]]
    inside = [Group("a", ["x", "y", "z"], [1, 0, 0], -1)]
    assert batches.Collator(Spy(), {"a": "A"}, texts)([inside])["labels"].tolist() == [[1, 1, 0]]
    nothing_else = [Group("a", ["x", "y"], [1, 0], -1)]  # a pair of equal texts has no gradient
    assert batches.Collator(Spy(), {"a": "A"}, texts)([nothing_else])["labels"].tolist() == [[1, 0]]


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


def test_spread_is_the_deviation_within_queries():
    scores = torch.tensor([[5.0, 5.0, 99.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert objective.spread(scores, mask) == (pytest.approx(7.4), 0.0)  # differences between queries do not count
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


def test_texts_are_cut_into_batches_of_similar_length():
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
    lr = 1e-2 if architecture == "tk" else 3e-3
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
    share = 0.6 if architecture == "tk" else 0.5  # a TK starts from random layers
    assert stage["log"][-1][loss] < share * stage["log"][0][loss]
    assert stage["steps"] == 40 and record["config"]["lr"] == lr
    groups, queries, docs = data
    model = loading.load(str(out))
    assert model.architecture == architecture
    best = [int(np.argmax(score(model, [queries[g.query_id]] * len(g.doc_ids), [docs[d] for d in g.doc_ids])))
            for g in groups]  # fmt: skip
    assert np.mean([b == 0 for b in best]) >= 0.9  # the positive is the first of each group
    assert not (tmp_path / "out.partial").exists()


def test_earlier_sessions_count_until_their_last_file(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    assert clock(tmp_path) == 0
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "model").touch()
    for path in tmp_path.rglob("*"):
        os.utime(path, (1030, 1030))  # the last save before a kill
    now[0] = 5000.0
    assert clock(tmp_path) == 30
    for path in tmp_path.rglob("*"):
        os.utime(path, (5012, 5012))
    assert clock(tmp_path) == 42


def test_accumulated_batches_are_averaged(tmp_path, data, scores, tiny_dot):
    """Trainer divides by the number of accumulated batches: the same batch twice gives the same first step."""
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


def test_precision_overrides_the_accelerate_configuration(tmp_path, data, scores, tiny_dot, monkeypatch):
    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), lr=1e-3, max_steps=2, batch_size=5, precision="fp32")
    plain = training.train(config, *data, tmp_path / "plain", scores=scores)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert checkpoint_folder.fingerprint(
        training.train(config, *data, tmp_path / "other", scores=scores)
    ) == checkpoint_folder.fingerprint(plain)


def test_each_process_uses_its_own_gpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    of = {name: processes.device_of(TrainConfig(recipe="ranknet", init="x", device=name)) for name in ("cpu", "cuda", "cuda:0")}
    assert of == {"cpu": "cpu", "cuda": "cuda:1", "cuda:0": "cuda:1"}


def test_processes_wait_for_the_first_without_a_short_limit(monkeypatch):
    import accelerate

    told = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        accelerate, "PartialState", lambda **given: told.update(given) or SimpleNamespace(process_index=0, num_processes=2)
    )
    assert processes.processes(TrainConfig(recipe="ranknet", init="x")).world == 2
    assert told["cpu"] is True and told["timeout"].days >= 1


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

    assert rates("linear") == pytest.approx([0.0, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3])  # per step; one warm-up step
    assert rates("cosine") == pytest.approx([0.0, *(1e-3 * (1 + np.cos(np.pi * n / 4)) / 2 for n in range(4))])
    assert rates("constant") == pytest.approx([0.0, 1e-3, 1e-3, 1e-3, 1e-3])


def test_kernels_have_their_own_learning_rate(tiny_dot):
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


def test_stage_and_settings_reach_the_trainer(tmp_path, data, tiny_dot, tiny_cross, monkeypatch):
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
        assert trainer.model.length == 48  # tokens per pair, for the mean of the attention loss


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
        (["--recipe", "ranknet", *more, "--qrels", files["qrels"]], "--qrels: give --candidates or judgements, not both"),
        (
            ["--recipe", "ranknet", *more, "--scores", tmp_path / "s.tsv"],
            "--scores: recipe ranknet with these settings does not use teacher scores",
        ),
        (["--recipe", "ranknet", *more, "--dev-topics", files["topics"]], "--dev-topics: needs --dev-qrels and --dev-run"),
        (["--recipe", "ranknet", *more, "--metric", "nDGC@10"], "nDCG@10"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl"], "exists"),
    ):
        result = invoke(train.main, *base, *wrong)
        assert result.exit_code == 2 and word in result.output, result.output


def test_bf16_differs_slightly_from_fp32(tmp_path, data, scores, tiny_dot):
    logs = []
    for precision in ("fp32", "bf16"):
        config = TrainConfig(
            recipe="margin-mse", init=str(tiny_dot), lr=1e-3, max_steps=4, batch_size=5, precision=precision, dropout=0.0
        )
        (stage,) = stages_of(training.train(config, *data, tmp_path / precision, scores=scores))
        logs.append([entry["margin_mse"] for entry in stage["log"]])
    assert logs[0] != logs[1] and logs[0] == pytest.approx(logs[1], rel=0.1)


def test_the_record_describes_the_training(tmp_path, data, scores, tiny_dot):
    out = training.train(
        TrainConfig(recipe="margin-mse", init=str(tiny_dot), max_steps=1, seed=7), *data, tmp_path / "out", scores=scores
    )
    record = json.loads((out / "training.json").read_text())
    assert record["recipe"]["name"] == "margin-mse" and "2010.02666" in record["recipe"]["source"]
    assert record["config"]["seed"] == 7 and record["config"]["max_grad_norm"] == 1.0
    assert record["made_from"] == {"init": checkpoint_folder.fingerprint(tiny_dot)}
    assert record["seconds"] > 0 and {"torch", "transformers", "python"} <= set(record["versions"])


def test_queries_without_a_group_from_qrels_are_counted(tmp_path, invoke, files, tiny_dot, caplog):
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


def test_training_uses_the_mined_passages(files, tmp_path, invoke, tiny_dot):
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


def test_data_in_folders_has_a_checksum(tmp_path):
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
    assert training_data.digest("topics", tmp_path / "docs") == str(tmp_path / "docs")  # reading it raises an error later


@pytest.mark.slow
def test_named_topics_and_judgements_have_a_checksum_of_their_contents(monkeypatch):
    found = {name: training_data.digest(name, "pydocs:test") for name in ("topics", "dev_topics", "qrels", "dev_qrels")}
    assert all(record["name"] == "pydocs:test" and len(record["sha256"]) == 64 for record in found.values())
    assert found["topics"] == found["dev_topics"] != found["qrels"] == found["dev_qrels"]
    assert training_data.digest("topics", "pydocs:train")["sha256"] != found["topics"]["sha256"]
    monkeypatch.setitem(training_data.READERS, "topics", lambda name: [])  # another release
    assert training_data.digest("topics", "pydocs:test")["sha256"] != found["topics"]["sha256"]


def test_denormals_are_zero_only_during_training(tmp_path, data, tiny_dot, monkeypatch):
    from pyserini_kd.distillation import losses

    seen, tiny = [], torch.tensor([1e-40])
    monkeypatch.setitem(losses.LOSSES, "ranknet", lambda *args: seen.append(float(tiny + 0)) or losses.ranknet(*args))
    training.train(
        TrainConfig(recipe="ranknet", init=str(tiny_dot), max_steps=1, batch_size=5, precision="fp32"), *data, tmp_path / "out"
    )
    assert set(seen) == {0.0} and float(tiny + 0) > 0


@pytest.mark.openvino_files
def test_a_trained_checkpoint_carries_its_openvino_files(tmp_path, data, scores, tiny_dot, monkeypatch):
    from pyserini_kd.models import rankers

    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), max_steps=2, batch_size=5, precision="fp32")
    folder = training.train(config, *data, tmp_path / "student", scores=scores)
    assert (folder / "openvino" / "openvino_model.xml").is_file()
    monkeypatch.setattr(rankers, "_make_openvino", lambda *_: pytest.fail("made again"))
    texts = list(data[2].values())
    found = rankers.load(str(folder), precision="fp32", backend="openvino").encode_docs(texts)
    assert np.allclose(found, encode(loading.load(str(folder)), texts, "doc", precision="fp32"), atol=1e-5)
