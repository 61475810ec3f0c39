"""SPLADE students: FLOPS values, growth of the weights, training, resuming, and loading in sentence-transformers."""

import json

import numpy as np
import pytest
import torch

from pyserini_kd import rerank, teach, train
from pyserini_kd.data.runs import Run
from pyserini_kd.distillation import batches, candidates, recipes, sparsity, stages, training
from pyserini_kd.distillation.batches import Share
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.models import checkpoint_folder, loading, rankers
from pyserini_kd.storage.errors import InputError
from tests.conftest import score, stages_of
from tests.models.test_splade import masked_lm, theirs


@pytest.fixture(scope="module")
def mlm(tokenizer, tmp_path_factory):
    return masked_lm(tokenizer, tmp_path_factory.mktemp("models") / "mlm")


def config_of(init, **settings):
    settings = {"recipe": "margin-mse", "max_steps": 40, "lr": 3e-3, "batch_size": 5, "precision": "fp32", **settings}
    return TrainConfig(init=str(init), architecture="splade", **settings)


def test_flops_equals_a_hand_worked_value_and_sentence_transformers():
    from sentence_transformers.sparse_encoder.losses import FlopsLoss

    vectors = torch.tensor([[2.0, 0.0, 1.0, 0.0], [4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0]])
    assert sparsity.flops(vectors).item() == pytest.approx(2.0**2 + 2.0**2)
    random = torch.rand(7, 30)
    assert sparsity.flops(random).item() == pytest.approx(FlopsLoss(None).compute_loss_from_embeddings(random).item())
    assert [sparsity.strength(done) for done in (0.0, 1 / 6, 1 / 3, 1.0)] == [0.0, pytest.approx(0.25), 1.0, 1.0]


def test_a_splade_is_regularised_by_default():
    def losses(recipe, *changes, student="splade"):
        return [
            stage.losses for _, stage in TrainConfig(recipe=recipe, init="x", architecture=student, losses=changes).stages()
        ]

    assert losses("margin-mse") == [{"margin_mse": 1.0, "flops_query": 0.1, "flops_doc": 0.08}]
    assert losses("ranknet") == [{"ranknet": 1.0, "flops_query": 0.0003, "flops_doc": 0.0001}]
    assert losses("margin-mse", "flops_query=0.1", "flops_doc=none") == [{"margin_mse": 1.0, "flops_query": 0.1}]
    assert losses("margin-mse", student="colbert") == [{"margin_mse": 1.0}]
    with pytest.raises(InputError, match="with the loss flops_doc is for a splade student, not a bert_dot"):
        losses("margin-mse", "flops_doc=1", student="bert_dot")
    with pytest.raises(InputError, match="needs unit vectors, but a splade is no bert_dot"):
        losses("contrastive")


def test_the_loss_of_one_step(data, scores, mlm):
    groups, queries, docs = data
    model = loading.load(str(mlm))
    batch = batches.Collator(model, queries, docs, scores)([groups[:3]])
    module = sparsity.SparseLearner(model, {"margin_mse": 1.0, "flops_query": 0.5, "flops_doc": 0.25})
    module.done = 1 / 6
    total = float(module(**batch)["loss"].detach())
    encoder = rankers.ranker(model, precision="fp32")
    texts = [queries[g.query_id] for g in groups[:3]], list(dict.fromkeys(docs[d] for g in groups[:3] for d in g.doc_ids))
    for name, vectors in zip(("query", "doc"), (encoder.encode_queries(texts[0]), encoder.encode_docs(texts[1])), strict=True):
        dense = vectors.toarray()
        assert module.terms[f"flops_{name}"] == [pytest.approx(float((dense.mean(axis=0) ** 2).sum()), rel=1e-4)]
        assert module.terms[f"words_{name}"] == [pytest.approx((dense > 0).sum(axis=1).mean())]
    flops = 0.5 * module.terms["flops_query"][0] + 0.25 * module.terms["flops_doc"][0]
    assert total == pytest.approx(module.terms["margin_mse"][0] + 0.25 * flops, rel=1e-4)


@pytest.mark.parametrize(("recipe", "weight"), [("margin-mse", 0.3), ("ranknet", 0.01)])
def test_students_learn_and_become_sparse(tmp_path, data, scores, mlm, recipe, weight):
    out = training.train(
        config_of(mlm, recipe=recipe, losses=(f"flops_query={weight}", f"flops_doc={weight}")),
        *data,
        tmp_path / "out",
        scores=scores,
    )
    (stage,) = stages_of(out)
    first, last, (loss, *_) = stage["log"][0], stage["log"][-1], stage["losses"]
    assert (
        last[loss] < 0.5 * first[loss]
        and last["words_doc"] < 0.8 * first["words_doc"]
        and last["flops_doc"] < first["flops_doc"]
    )
    free = training.train(
        config_of(mlm, recipe=recipe, losses=("flops_query=0", "flops_doc=0")), *data, tmp_path / "free", scores=scores
    )
    (stage,) = stages_of(free)
    assert "flops_doc" not in stage["log"][-1]
    texts = list(data[2].values())
    assert checkpoint_folder.architecture_of(out) == "splade"
    found = rankers.load(str(out), precision="fp32").encode_docs(texts).toarray()
    assert np.allclose(found, theirs(out, texts), atol=1e-4)
    assert (found > 0).mean() < (rankers.load(str(free), precision="fp32").encode_docs(texts).toarray() > 0).mean()


def test_resumed_training_gives_the_same_weights(tmp_path, data, scores, mlm, interrupted_at):
    config = config_of(mlm, max_steps=9, save_steps=2, layers=(1,))
    whole = training.train(config, *data, tmp_path / "whole", scores=scores)
    with interrupted_at(5):
        training.train(config, *data, tmp_path / "cut", scores=scores)
    cut = training.train(config, *data, tmp_path / "cut", scores=scores)
    assert checkpoint_folder.fingerprint(cut) == checkpoint_folder.fingerprint(whole)
    assert stages_of(cut)[0]["log"][-1]["flops_doc"] == stages_of(whole)[0]["log"][-1]["flops_doc"]


def test_several_processes_are_refused(data, scores, mlm, monkeypatch):
    config = config_of(mlm)
    material = stages.Material(candidates.as_groups(data[0]), data[1], data[2], scores)
    work = stages.Work(config, loading.load(str(mlm)), stages.Teachers(), material, None, Share(0, 2))
    with pytest.raises(InputError, match="flops_query and flops_doc need the whole batch in one process; start one process"):
        stages._candidates(work, config.stages()[0][1], None)


def test_a_splade_teaches_reranks_and_is_trained_by_commands(tmp_path, data, files, mlm, invoke, queries, corpus):
    groups, query_texts, doc_texts = data
    candidates.write_candidates(groups, tmp_path / "c.jsonl")
    base = ["--collection", files["docs"], "--topics", files["topics"], "--precision", "fp32"]
    result = invoke(
        teach.main, *base, "--candidates", tmp_path / "c.jsonl", "--teacher", mlm, "--output", tmp_path / "s.parquet"
    )
    assert result.exit_code == 0, result.output
    for more in (["--scores", tmp_path / "s.parquet"], ["--teacher", mlm]):  # scores from a store, then from a live teacher
        result = invoke(train.main, *base, "--recipe", "margin-mse", "--student", "splade", "--init", mlm, "--candidates", tmp_path / "c.jsonl",
                        *more, "--max-steps", 1, "--lr", 1e-9, "--output", tmp_path / "out", "--overwrite")  # fmt: skip
        assert result.exit_code == 0, result.output
        assert stages_of(tmp_path / "out")[0]["log"][0]["margin_mse"] == pytest.approx(
            0.0, abs=1e-4
        )  # the student equals the teacher
    Run.from_scores("all", {q.query_id: {doc.doc_id: 1.0 for doc in corpus} for q in queries}).write(tmp_path / "run.txt")
    result = invoke(rerank.main, "--run", tmp_path / "run.txt", "--topics", files["topics"], "--collection", files["docs"],
                    "--encoder", tmp_path / "out", "--precision", "fp32", "--output", tmp_path / "reranked.txt")  # fmt: skip
    assert result.exit_code == 0, result.output
    hits = Run.read(tmp_path / "reranked.txt")["q3"]
    expected = score(
        loading.load(str(mlm)), [queries[3].text] * len(corpus), [doc.contents for doc in corpus], precision="fp32"
    )
    assert dict(zip(hits.doc_ids, hits.scores.tolist(), strict=True)) == pytest.approx(
        dict(zip([doc.doc_id for doc in corpus], expected.tolist(), strict=True)), rel=1e-4
    )
    assert json.loads((tmp_path / "out" / "pyserini_kd.json").read_text())["architecture"] == "splade"
    assert set(recipes.FLOPS_LOSSES) <= set(stages_of(tmp_path / "out")[0]["losses"])
