"""Training: batches, scores with gradients, learning, resuming, refusals."""

import json

import numpy as np
import pytest
import torch

from pyserini_kd import inference, mine, recipes, teach, train
from pyserini_kd.files import InputError
from pyserini_kd.mine import Group
from pyserini_kd.models import checkpoints
from pyserini_kd.train import TrainConfig


@pytest.fixture(scope="module")
def data(queries, qrels, corpus):
    groups = mine.mine(queries, qrels, [], corpus, negatives=0, shared=5).groups
    return groups, *teach.load_texts(groups, queries, corpus)


@pytest.fixture(scope="module")
def scores(data, qrels):
    """A teacher that likes the relevant document: 10, others 0 to 4."""
    groups, *_ = data
    return {g.query_id: {d: 10.0 if label else float(len(d) % 5) for d, label in zip(g.doc_ids, g.labels, strict=True)}
            for g in groups}  # fmt: skip


def test_batches_never_cross_blocks():
    groups = [Group(str(n), ["p", "n"], [1, 0], n // 4) for n in range(10)]
    batches = train.cut_batches(groups, 3, seed=0)
    assert [[g.query_id for g in batch] for batch in batches] == [["0", "1", "2"], ["3"], ["4", "5", "6"], ["7"], ["8", "9"]]


def test_triples_are_shuffled_into_full_batches():
    groups = [Group(str(n), ["p", "n"], [1, 0], n) for n in range(10)]
    batches = train.cut_batches(groups, 4, seed=0)
    assert [len(b) for b in batches] == [4, 4, 2]
    assert sorted(g.query_id for b in batches for g in b) == sorted(str(n) for n in range(10))
    assert batches == train.cut_batches(groups, 4, seed=0) != train.cut_batches(groups, 4, seed=1)


@pytest.mark.parametrize("architecture", ["bert_dot", "colbert", "cross_encoder"])
def test_training_scores_are_inference_scores(data, scores, tiny_dot, tiny_cross, architecture):
    groups, queries, docs = data
    path = tiny_cross if architecture == "cross_encoder" else tiny_dot
    model = checkpoints.load(str(path), architecture=architecture)
    batch = train.Collator(model, queries, docs, scores)([groups[:3]])
    got = train.group_scores(model, batch).detach().numpy()
    for row, group in enumerate(groups[:3]):
        texts = [docs[d] for d in group.doc_ids]
        expected = inference.score(model, [queries[group.query_id]] * len(texts), texts, precision="fp32")
        assert np.allclose(got[row, : len(texts)], expected, rtol=1e-4, atol=1e-4)
        assert batch["teacher"][row, : len(texts)].tolist() == [scores[group.query_id][d] for d in group.doc_ids]


def test_each_document_of_a_block_is_encoded_once(data, tiny_dot):
    groups, queries, docs = data
    batch = train.Collator(checkpoints.load(str(tiny_dot)), queries, docs, None)([groups[:5]])
    assert len(batch["doc_input_ids"]) == 5  # five queries with five documents each, all shared
    assert batch["rows"].shape == (5, 5)


def test_documents_may_be_shorter_in_training_than_in_the_checkpoint(data, tiny_dot):
    groups, queries, docs = data
    model = checkpoints.load(str(tiny_dot))
    whole = train.Collator(model, queries, docs, None)([groups[:5]])["doc_input_ids"]
    head = train.Collator(model, queries, docs, None, 5)([groups[:5]])["doc_input_ids"]
    assert whole.shape[1] > head.shape[1] == 5
    assert torch.equal(head[:, :4], whole[:, :4]) and model.settings.max_doc_len == 24


def test_start_scale_meets_the_teacher_s_margin(data, scores, tiny_dot):
    groups, queries, docs = data
    model = checkpoints.load(str(tiny_dot))
    collator = train.Collator(model, queries, docs, scores)
    batches = train.cut_batches(groups, 5, 0)

    def mean_margin():
        from pyserini_kd.losses import margins

        batch = [collator([b]) for b in batches]
        with torch.no_grad():
            pairs = [margins(train.group_scores(model, b), b["teacher"], b["labels"], b["mask"]) for b in batch]
        return [float(torch.cat(side).mean()) for side in zip(*pairs, strict=True)]

    before = mean_margin()
    factor = train.match_scale(model, collator, batches)
    student, teacher = mean_margin()
    assert before[0] > 0  # or there is nothing to scale
    assert factor != 1.0 and student == pytest.approx(teacher, rel=1e-3)


@pytest.mark.parametrize(
    ("recipe", "architecture"),
    [("margin-mse", "bert_dot"), ("ranknet", "cross_encoder"), ("margin-mse", "colbert"), ("contrastive", "bert_dot")],
)
def test_recipes_learn(tmp_path, data, scores, tiny_dot, tiny_cross, recipe, architecture):
    init = tiny_cross if architecture == "cross_encoder" else tiny_dot
    config = TrainConfig(recipe, str(init), architecture, lr=3e-3, max_steps=40, batch_size=5, precision="fp32")
    out = train.train(config, *data, tmp_path / "out", scores=scores)
    record = json.loads((out / "training.json").read_text())
    loss = next(iter(recipes.get(recipe).losses))
    assert record["log"][-1][loss] < 0.5 * record["log"][0][loss]
    assert record["steps"] == 40 and record["config"]["lr"] == 3e-3
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
    broken = tmp_path / "cut.partial" / "checkpoint-6"  # killed while saving: no trainer_state.json
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    assert checkpoints.fingerprint(train.train(config, *data, tmp_path / "cut", scores=scores)) == whole


def test_the_best_checkpoint_on_dev_topics_is_kept(tmp_path, data, scores, tiny_dot, corpus, qrels, queries):
    from pyserini_kd import api, rerank
    from pyserini_kd.runs import Run

    first = Run.from_scores("first", {q.query_id: {d.doc_id: float(n) for n, d in enumerate(corpus)} for q in queries})
    dev = train.Dev(list(queries), qrels, first, {doc.doc_id: doc for doc in corpus})
    config = TrainConfig("margin-mse", str(tiny_dot), lr=3e-3, max_steps=30, batch_size=5, precision="fp32",
                         metric="RR@10", eval_steps=5, patience=2)  # fmt: skip
    out = train.train(config, *data, tmp_path / "out", scores=scores, dev=dev)
    record = json.loads((out / "training.json").read_text())
    values = [entry["RR@10"] for entry in record["dev"]]
    assert values[-1] > values[0] or max(values) == 1.0
    model = checkpoints.load(str(out))
    run = rerank.rerank(first, model, queries, rerank.fetch_from(corpus), depth=20, precision="fp32")
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
    learner = train.make_learner(checkpoints.load(str(tiny_dot)), {"margin_mse": 1.0}, 1.0)
    assert learner.accepts_loss_kwargs is False


def test_scores_keep_float32_under_autocast(data, scores, tiny_dot):
    groups, queries, docs = data
    model = checkpoints.load(str(tiny_dot))
    batch = train.Collator(model, queries, docs, scores)([groups[:5]])
    with torch.autocast("cpu", torch.bfloat16):
        got = train.group_scores(model, batch)
        vectors = [model(**train._part(batch, side)) for side in ("query_", "doc_")]
    exact = torch.gather(vectors[0].double() @ vectors[1].double().T, 1, batch["rows"])
    assert got.dtype == torch.float32 and torch.allclose(got.double(), exact, rtol=1e-5)


def test_a_loss_that_is_not_finite_stops(tmp_path, data, scores, tiny_dot):
    bad = {q: {d: float("inf") if d.startswith("eat-cat") else s for d, s in docs.items()} for q, docs in scores.items()}
    with pytest.raises(InputError, match="not finite"):
        train.train(TrainConfig("margin-mse", str(tiny_dot), max_steps=3), *data, tmp_path / "x", scores=bad)
    assert not (tmp_path / "x").exists()


def test_refusals(tmp_path, data, scores, tiny_dot, tiny_cross):
    with pytest.raises(InputError, match="needs --scores"):
        train.train(TrainConfig("margin-mse", str(tiny_dot)), *data, tmp_path / "x")
    few = {q: dict(list(docs.items())[1:]) for q, docs in scores.items()}
    with pytest.raises(InputError, match="10 candidate pairs have no teacher score"):
        train.train(TrainConfig("margin-mse", str(tiny_dot)), *data, tmp_path / "x", scores=few)
    with pytest.raises(InputError, match="unknown recipe 'magic'; expected one of margin-mse"):
        train.train(TrainConfig("magic", str(tiny_dot)), *data, tmp_path / "x")


def test_command(tmp_path, invoke, files, data, scores, tiny_dot):
    groups, *_ = data
    mine.write_candidates(groups, tmp_path / "c.jsonl")
    teach.write_triples(groups, scores, tmp_path / "s.tsv")
    base = ["--collection", files["docs"], "--topics", files["topics"], "--init", tiny_dot, "--output", tmp_path / "m"]
    result = invoke(train.main, "--recipe", "margin-mse", *base, "--scores", tmp_path / "s.tsv", "--max-steps", 2, "--layers", "0")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "m" / "training.json").read_text())["data"]["queries"] == 40  # triples
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
