"""Recipe vectors: losses by hand, batches by tokens, queries and documents, resumed runs, wrong input."""

import json
import logging
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pyserini_kd import train
from pyserini_kd.data import formats
from pyserini_kd.distillation import candidates, recipes, training, vectors
from pyserini_kd.distillation.batches import Share, cut_by_tokens
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.models import checkpoint_folder, loading, saving
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.storage.errors import InputError
from tests.conftest import as_ranker, stages_of, tiny_config


def dot(tokenizer, folder, *, seed=8, layers=2, width=32, **settings):
    """Save a random bi-encoder in a folder."""
    from transformers import BertModel

    from pyserini_kd.models.bert_dot import BertDot, EncoderSettings

    torch.manual_seed(seed)
    config = tiny_config(tokenizer, layers)
    config.hidden_size = width
    settings = {"pooling": "cls", "l2_norm": True, "max_query_len": 8, "max_doc_len": 24, **settings}
    return saving.save(BertDot(BertModel(config, add_pooling_layer=False), tokenizer, EncoderSettings(**settings)), folder)


@pytest.fixture(scope="module")
def bi_encoder(tokenizer, tmp_path_factory):
    """A teacher with 4 layers, [CLS] pooling, unit vectors and a query prefix."""
    return dot(tokenizer, tmp_path_factory.mktemp("teachers") / "dot", layers=4, query_prefix="what the ")


def config_of(init, teacher, **settings):
    settings = {"recipe": "vectors", "max_steps": 30, "lr": 3e-3, "batch_tokens": 60, "precision": "fp32", **settings}
    return TrainConfig(init=str(init), teacher=str(teacher), **settings)


@pytest.fixture(scope="module")
def texts(queries, corpus):
    """Queries by id, and a list of document texts."""
    return {q.query_id: q.text for q in queries}, [doc.contents for doc in corpus]


def learn(config, texts, output, **more):
    queries, docs = texts
    return training.train(config, [], queries, {}, output, texts=docs, **more)


def test_losses_by_hand():
    student, teacher = torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, -1.0]])
    assert vectors.vector_mse(student, teacher).item() == pytest.approx((4 + 1 + 0 + 9) / 4)
    assert vectors.vector_cosine(student, teacher).item() == pytest.approx((1 - 0.5**0.5 + 2) / 2)
    assert set(vectors.LOSSES) == set(recipes.VECTOR_LOSSES)


def test_batches_respect_the_token_budget():
    tokens = np.random.default_rng(0).integers(3, 50, 3000).astype(np.int32)
    cut = cut_by_tokens(range(3000), tokens, 200, seed=1)
    padded = [len(batch) * max(tokens[row] for row in batch) for batch in cut]
    assert sorted(row for batch in cut for row in batch) == list(range(3000)) and max(padded) <= 200
    assert sum(padded) / sum(tokens) < 1.05 and np.median(padded) > 160  # little padding, full batches
    assert (
        list(cut)
        == list(cut_by_tokens(range(3000), tokens, 200, seed=1))
        != list(cut_by_tokens(range(3000), tokens, 200, seed=2))
    )
    assert [list(b) for b in cut_by_tokens([7], np.array([500], np.int32), 200, seed=1)] == [[7]]  # above the budget
    sample = cut.sample(10, seed=3)
    assert len(sample) == 10 and all(batch in list(cut) for batch in sample)


def test_tokens_are_estimated_from_a_sample(tokenizer):
    texts = ["cat " * n for n in range(1, 40)]
    found = vectors.estimated_tokens(tokenizer, texts.__getitem__, vectors.lengths_of(texts), 30)
    exact = np.minimum([n + 2 for n in range(1, 40)], 30)
    assert found.max() == 30 and np.abs(found - exact).max() <= 3


def test_a_student_equal_to_its_teacher_has_loss_0(tmp_path, bi_encoder, texts):
    for loss in ("vector_cosine", "vector_mse"):
        config = config_of(bi_encoder, bi_encoder, losses=("none", f"{loss}=1"), max_steps=1, lr=1e-9)
        (stage,) = stages_of(learn(config, texts, tmp_path / loss))
        assert stage["log"][0][loss] == pytest.approx(0.0, abs=1e-6)
        assert stage["losses"] == {loss: 1.0} and stage["start_scale"] == 1.0


def test_a_student_with_fewer_layers_learns_the_vectors(tmp_path, bi_encoder, texts):
    out = learn(config_of(bi_encoder, bi_encoder, layers=(0, 3), max_steps=60), texts, tmp_path / "out")
    (stage,) = stages_of(out)
    first, last = stage["log"][0]["vector_cosine"], stage["log"][-1]["vector_cosine"]
    assert last < 0.5 * first and first > 1e-3
    queries, docs = texts
    student, teacher = (as_ranker(load_encoder(str(path), precision="fp32")) for path in (out, bi_encoder))
    a, b = (np.concatenate([e.encode_queries(list(queries.values())), e.encode_docs(docs)]) for e in (student, teacher))
    assert 1 - float((a * b).sum(axis=1).mean()) < 0.5 * first
    settings = student.reader.settings
    assert (settings.pooling, settings.l2_norm, settings.query_prefix) == ("cls", True, "what the ")
    assert json.loads((out / "training.json").read_text())["distilled_lm"] is False


def test_frozen_embeddings_stay_and_the_layers_learn(tmp_path, bi_encoder, texts):
    how = {"layers": (0, 3), "max_steps": 5}
    out = learn(config_of(bi_encoder, bi_encoder, freeze_embeddings=True, **how), texts, tmp_path / "frozen")
    free = learn(config_of(bi_encoder, bi_encoder, **how), texts, tmp_path / "free")
    before, frozen, moved = (load_file(path / "model.safetensors") for path in (bi_encoder, out, free))
    names = [name for name in before if "embeddings" in name]
    assert len(names) == 5 and all(torch.equal(before[name], frozen[name]) for name in names)
    assert not torch.equal(before[names[0]], moved[names[0]])
    weights = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(before[weights], frozen[weights])


def test_the_model_card_describes_a_ranker_and_its_code_runs(tmp_path, bi_encoder, texts):
    out = learn(config_of(bi_encoder, bi_encoder, layers=(0, 3), max_steps=1), texts, tmp_path / "out")
    card = (out / "README.md").read_text("utf-8")
    assert "A bi-encoder (BERT_DOT)" in card and "Recipe: `vectors` (Reimers and Gurevych 2020" in card
    assert "1.0 x vector_cosine; 1 steps" in card and "queries 10, pairs 0, texts 20" in card
    names = {}
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], names)
    encoder = as_ranker(load_encoder(str(out), precision="fp32"))
    expected = encoder.encode_queries(["a query"]) @ encoder.encode_docs(["a document"]).T
    np.testing.assert_allclose(names["scores"].numpy(), expected, rtol=1e-4)


def test_pooling_and_l2_norm_come_from_the_teacher_unless_given(tmp_path, tiny_dot, bi_encoder, texts):
    mean = loading.load(str(tiny_dot)).settings
    assert (mean.pooling, mean.l2_norm) == ("mean", False)
    out = learn(config_of(tiny_dot, bi_encoder, max_steps=1), texts, tmp_path / "as-teacher")
    assert (loading.load(str(out)).settings.pooling, loading.load(str(out)).settings.l2_norm) == ("cls", True)
    out = learn(config_of(tiny_dot, bi_encoder, max_steps=1, pooling="mean", l2_norm=False), texts, tmp_path / "given")
    assert (loading.load(str(out)).settings.pooling, loading.load(str(out)).settings.l2_norm) == ("mean", False)


def test_student_and_teacher_may_differ_in_width(tmp_path, tokenizer, bi_encoder, texts):
    narrow = dot(tokenizer, tmp_path / "narrow", width=16)
    out = learn(config_of(narrow, bi_encoder, max_steps=60), texts, tmp_path / "out")
    (stage,) = stages_of(out)
    assert stage["log"][-1]["vector_cosine"] < 0.7 * stage["log"][0]["vector_cosine"]
    assert loading.load(str(out)).width == 16
    from safetensors import safe_open

    with safe_open(out / "model.safetensors", "pt") as weights:
        assert not any("projection" in name for name in weights.keys())  # noqa: SIM118
    learner = vectors.VectorLearner(loading.load(str(narrow)), {"vector_mse": 1.0}, 32)
    assert torch.allclose(learner.projection.weight.T @ learner.projection.weight, torch.eye(16), atol=1e-5)


def test_queries_and_documents_keep_their_sides(tmp_path, bi_encoder, texts):
    queries, docs = texts
    sided = vectors.SidedTexts(queries, docs)
    assert [sided[0].side, sided[len(queries)].side, len(sided)] == ["query", "doc", 30]
    encoder = as_ranker(loading.load(str(bi_encoder)), precision="fp32")
    rows = np.array([1, 3, 12, 29], np.int32)
    found = vectors.encode_once(tmp_path / "v", encoder, sided, rows)
    assert np.allclose(
        found.of([12, 3]), [encoder.encode_docs([docs[2]])[0], encoder.encode_queries([queries["q3"]])[0]], atol=1e-5
    )
    model = encoder.network.module
    collator = vectors.VectorCollator(model, found, None)
    batch = collator([[sided[row] for row in (3, 29, 12, 1)]])
    with torch.no_grad():
        assert torch.allclose(model(**batch["student"]), batch["vectors"], atol=1e-5)  # the rows of both match
    assert int(batch["pairs"]) == 4 and batch["student"]["input_ids"].shape[0] == 4


@pytest.mark.parametrize("world", [1, 3])
def test_processes_share_a_batch(tmp_path, bi_encoder, texts, world):
    encoder, sided = as_ranker(loading.load(str(bi_encoder)), precision="fp32"), vectors.SidedTexts(*texts)
    found = vectors.encode_once(tmp_path / "v", encoder, sided, np.arange(30, dtype=np.int32))
    parts = [
        vectors.VectorCollator(encoder.network.module, found, None, share=Share(n, world))([[*sided]]) for n in range(world)
    ]
    assert sum(len(part["vectors"]) for part in parts) == 30 and {int(part["pairs"]) for part in parts} == {30}


def test_the_teacher_encodes_once_and_resumes_after_a_kill(tmp_path, bi_encoder, texts, monkeypatch):
    monkeypatch.setattr(vectors, "PART", 8)
    encoded, encode = [], vectors._encoded

    def dying(encoder, part, cut):
        encoded.append(len(part))
        if len(encoded) == 3:
            raise KeyboardInterrupt
        return encode(encoder, part, cut)

    monkeypatch.setattr(vectors, "_encoded", dying)
    config = config_of(bi_encoder, bi_encoder, layers=(0, 3), max_steps=None, epochs=3)
    with pytest.raises(KeyboardInterrupt):
        learn(config, texts, tmp_path / "out")
    out = learn(config, texts, tmp_path / "out")
    assert encoded == [8, 8, 8, 8, 6]  # the interrupted part again, then the last part; nothing in later epochs
    monkeypatch.setattr(vectors, "_encoded", encode)
    assert checkpoint_folder.fingerprint(out) == checkpoint_folder.fingerprint(learn(config, texts, tmp_path / "whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_training_resumes_to_the_same_weights(tmp_path, tokenizer, bi_encoder, texts, monkeypatch, interrupted_at):
    narrow = dot(tokenizer, tmp_path / "narrow", width=16)  # other width: the learner has a projection
    config = config_of(narrow, bi_encoder, max_steps=9, save_steps=2, dropout=0.2)
    whole = learn(config, texts, tmp_path / "whole")
    with interrupted_at(5):
        learn(config, texts, tmp_path / "cut")
    monkeypatch.setattr(vectors, "_encoded", None)  # nothing is encoded again
    assert checkpoint_folder.fingerprint(learn(config, texts, tmp_path / "cut")) == checkpoint_folder.fingerprint(whole)


def test_the_teacher_encodes_only_texts_in_batches(tmp_path, bi_encoder, texts, monkeypatch):
    encoded, encode = [], vectors._encoded
    monkeypatch.setattr(vectors, "_encoded", lambda encoder, part, cut: encoded.append(len(part)) or encode(encoder, part, cut))
    learn(config_of(bi_encoder, bi_encoder, max_steps=2), texts, tmp_path / "out")
    assert sum(encoded) < 20


def test_the_command_reads_a_collection_and_topics(tmp_path, files, bi_encoder, invoke, queries, caplog):
    words = ["--recipe", "vectors", "--teacher", bi_encoder, "--init", bi_encoder, "--layers", "0,3",
             "--collection", files["docs"], "--lr", 3e-3, "--max-steps", 40,
             "--batch-size", 10, "--precision", "fp32"]  # fmt: skip
    dev = ["--dev-topics", files["topics"], "--dev-qrels", files["qrels"], "--dev-retrieval", "--eval-steps", 20]
    with caplog.at_level(logging.INFO):
        result = invoke(train.main, *words, "--topics", files["topics"], *dev, "--output", tmp_path / "both")
    assert result.exit_code == 0, result.output
    assert "30 of 30 texts (10 queries, 20 documents) in 3 batches" in caplog.text
    assert "trained on 20 plain texts and 10 topics" in result.output
    (stage,) = stages_of(tmp_path / "both")
    assert [entry["step"] for entry in stage["dev"]] == [20, 40] and stage["batch_tokens"] is None
    with caplog.at_level(logging.INFO):
        result = invoke(train.main, *words, "--output", tmp_path / "docs")
    assert "20 of 20 texts (0 queries, 20 documents) in 2 batches" in caplog.text, result.output
    more = ["--batch-tokens", 80]
    result = invoke(train.main, *words[:-4], *more, "--output", tmp_path / "tokens")
    assert result.exit_code == 0 and stages_of(tmp_path / "tokens")[0]["batch_tokens"] == 80, result.output


def test_errors_take_one_line(tmp_path, files, data, tokenizer, bi_encoder, tiny_cross, texts, invoke, caplog):
    candidates.write_candidates(data[0], tmp_path / "c.jsonl")
    words = ["--recipe", "vectors", "--collection", files["docs"], "--output", tmp_path / "x"]

    def refused(match, *more):
        result = invoke(train.main, *words, *more)
        assert result.exit_code == 2 and match in result.output.splitlines()[-1], result.output

    refused("--teacher: recipe vectors learns the vectors of a bi-encoder: name the teacher")
    refused("is a cross_encoder; vector losses need a bert_dot", "--teacher", tiny_cross)
    given = ["--teacher", bi_encoder, "--topics", files["topics"]]
    refused(
        "--candidates: recipe vectors does not use it; remove it",
        *given,
        "--candidates",
        tmp_path / "c.jsonl",
    )
    refused("--qrels: recipe vectors does not use it; remove it", *given, "--qrels", files["qrels"])
    refused("is for a bert_dot student, not a colbert", *given, "--student", "colbert")
    refused("a stage on plain text takes only vector_mse and vector_cosine", *given, "--loss", "hidden=1")
    refused("--batch-tokens: conflicts with --batch-size; give one of them", *given, "--batch-tokens", 9, "--batch-size", 3)
    with pytest.raises(InputError, match="is for plain text; recipe margin-mse with these settings has none"):
        TrainConfig(recipe="margin-mse", batch_tokens=9)
    with pytest.raises(InputError, match="recipe vectors needs plain text to learn vectors; give texts"):
        learn(config_of(bi_encoder, bi_encoder), ({}, []), tmp_path / "x")
    with pytest.raises(InputError, match="need plain text; use them with the recipe vectors only"):
        TrainConfig(recipe="margin-mse", losses=("vector_mse=1",))
    free = dot(tokenizer, tmp_path / "free", l2_norm=False)
    learn(config_of(free, free, max_steps=1), texts, tmp_path / "cosine")
    assert "vector_cosine ignores lengths; add the loss vector_mse" in caplog.text


def test_lm_distill_with_batches_by_tokens(tmp_path, lm, texts):
    config = TrainConfig(recipe="lm-distill", init="random:2/16", lm_teacher=lm, batch_tokens=60, precision="fp32", epochs=1)
    (stage,) = stages_of(training.train(config, [], {}, {}, tmp_path / "out", texts=texts[1]))
    assert stage["steps"] == 4 and stage["log"]


def test_topics_and_documents_may_share_ids(tmp_path, files, bi_encoder, invoke, queries):
    """Both are stored on disk, in separate folders."""
    formats.write_topics([q._replace(query_id=f"eat-{q.text.split()[2]}") for q in queries], tmp_path / "same.tsv")
    result = invoke(train.main, "--recipe", "vectors", "--teacher", bi_encoder, "--init", bi_encoder,
                    "--collection", files["docs"], "--topics", tmp_path / "same.tsv",
                    "--max-steps", 2, "--output", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0, result.output
