"""SPLADE: vectors equal those of transformers, sentence-transformers and Pyserini; gradients, memory, folders."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pyserini_kd.data.java import start_jvm
from pyserini_kd.models import checkpoint_folder, loading, rankers, saving, splade
from pyserini_kd.models.splade import SpladeSettings
from pyserini_kd.models.tokens import pad
from pyserini_kd.storage.errors import InputError
from tests.conftest import tiny_config

TEXTS = ["what the cat eats", "at night the cow sleeps in the barn", "hay", "the pig eats hay and drinks water and sleeps"]


def masked_lm(tokenizer, folder, kind="bert", *, tied=True, seed=3):
    """Save a random masked language model with transformers."""
    from transformers import BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

    torch.manual_seed(seed)
    config = tiny_config(tokenizer)
    if kind == "distilbert":
        config = DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64,
                                  dropout=0.0, attention_dropout=0.0, initializer_range=0.2)  # fmt: skip
    config.tie_word_embeddings = tied
    model = (DistilBertForMaskedLM if kind == "distilbert" else BertForMaskedLM)(config)
    with torch.no_grad():
        model.get_output_embeddings().bias.normal_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def for_pyserini(folder, copy):
    """A copy of a SPLADE with its weights as `pytorch_model.bin`, too: Pyserini 2 reads only this file."""
    shutil.copytree(folder, copy)
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    return str(copy)


@pytest.fixture(scope="module")
def tiny(tokenizer, tmp_path_factory):
    return masked_lm(tokenizer, tmp_path_factory.mktemp("models") / "tiny-mlm")


def sparse(name, **settings):
    return rankers.load(str(name), precision="fp32", **settings)


def theirs(folder, texts):
    """Vectors (N, V) from SparseEncoder of sentence-transformers."""
    from sentence_transformers import SparseEncoder

    return (
        SparseEncoder(str(folder), device="cpu").encode(texts, convert_to_sparse_tensor=False, show_progress_bar=False).numpy()
    )


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("tied", [True, False])
def test_vectors_are_log_1_plus_relu_of_the_maximum_logit(tmp_path, tokenizer, kind, tied):
    from transformers import AutoModelForMaskedLM

    folder = masked_lm(tokenizer, tmp_path / "mlm", kind, tied=tied)
    assert checkpoint_folder.architecture_of(folder) == "splade"
    network = AutoModelForMaskedLM.from_pretrained(folder).eval()
    encoder = sparse(folder)
    found = encoder.encode_docs(TEXTS).toarray()
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            logits = network(**tokenizer([text], return_tensors="pt", return_token_type_ids=False)).logits[0]
        assert np.allclose(vector, torch.log(1 + torch.relu(logits)).max(dim=0).values, atol=1e-5)
    assert np.allclose(encoder.encode_queries(TEXTS).toarray(), found, atol=1e-6) and (found == 0).any() and (found > 0).any()
    words = encoder.tokens()
    assert words[tokenizer.get_vocab()["hay"]] == "hay" and len(words) == encoder.width == len(tokenizer)


@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_folders_of_sentence_transformers_are_read_and_written(tmp_path, tiny, strategy, activation):
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

    modules = [MLMTransformer(str(tiny)), SpladePooling(strategy, activation_function=activation)]
    SparseEncoder(modules=modules, device="cpu").save_pretrained(str(tmp_path / "theirs"))
    assert checkpoint_folder.architecture_of(tmp_path / "theirs") == "splade"
    expected, encoder = theirs(tmp_path / "theirs", TEXTS), sparse(tmp_path / "theirs")
    assert (encoder.reader.settings.strategy, encoder.reader.settings.activation) == (strategy, activation)
    assert np.allclose(encoder.encode_docs(TEXTS).toarray(), expected, atol=1e-4)
    saving.save(encoder.network.module, tmp_path / "ours")
    assert np.allclose(theirs(tmp_path / "ours", TEXTS), expected, atol=1e-4)
    again = sparse(tmp_path / "ours")
    assert again.reader.settings == encoder.reader.settings and np.allclose(
        again.encode_docs(TEXTS).toarray(), expected, atol=1e-4
    )
    from transformers import AutoModelForMaskedLM

    network = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


def test_lengths_come_from_the_folder(tmp_path, tokenizer, tiny):
    room = min(64, loading.load(str(tiny)).tokenizer.model_max_length)
    assert sparse(tiny).reader.lengths == (room, room)
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(tiny), device="cpu")
    model.max_seq_length = 7
    model.save_pretrained(str(tmp_path / "short"))
    short = sparse(tmp_path / "short")
    cut = []
    assert np.allclose(short.encode_docs(TEXTS, cut=cut).toarray(), theirs(tmp_path / "short", TEXTS), atol=1e-4)
    assert cut == [2] and short.reader.lengths == (7, 7)
    with pytest.raises(InputError, match="reads at most 64 tokens; choose a shorter maximum length"):
        sparse(tiny, max_doc_len=65)


def test_splade_tiny_equals_sentence_transformers_and_pyserini(shared_data, queries, tmp_path):
    folder = shared_data / "splade-tiny"
    texts = [*TEXTS, "what is the capital of france?", "naïve cafés serve crêpes " * 30]
    encoder = sparse(folder)
    found = encoder.encode_docs(texts).toarray()
    assert np.abs(found - theirs(folder, texts)).max() < 1e-4
    start_jvm()  # before the import of Pyserini starts it
    from pyserini.encode import SpladeQueryEncoder

    query = SpladeQueryEncoder(for_pyserini(folder, tmp_path / "splade")).encode(texts[4])
    names = encoder.tokens()
    impacts = {names[column]: round(float(weight) / 5 * 256) for column, weight in enumerate(found[4]) if weight}
    assert impacts == query


def test_scores_are_dot_products_each_text_encoded_once(tiny, monkeypatch):
    encoder = sparse(tiny)
    queries, docs = [TEXTS[0], TEXTS[0], TEXTS[2]], [TEXTS[1], TEXTS[3], TEXTS[1]]
    vectors = encoder.encode_docs(TEXTS).toarray()
    expected = [vectors[0] @ vectors[1], vectors[0] @ vectors[3], vectors[2] @ vectors[1]]
    monkeypatch.setattr("pyserini_kd.models.sparse_encoder.STEP", 2)
    assert np.allclose(encoder.score(queries, docs), expected, rtol=1e-5)
    assert encoder.score([], []).shape == (0,) and encoder.encode_docs([]).shape == (0, encoder.width)


@pytest.mark.parametrize("at_once", [1, 45, 512])  # logits: one word, three words, all
@pytest.mark.parametrize("shorter", [True, False])
def test_gradients_equal_those_of_all_logits_at_once(tiny, monkeypatch, at_once, shorter):
    monkeypatch.setitem(splade.AT_ONCE, "cpu", at_once)
    random = torch.Generator().manual_seed(0)
    states, words, bias = (torch.randn(*shape, generator=random, dtype=torch.float64, requires_grad=True)
                           for shape in ((3, 5, 4), (7, 4), (7,)))  # fmt: skip
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)

    mask = mask if shorter else torch.ones_like(mask)

    def whole():
        logits = states @ words.T + bias
        return logits.masked_fill(~mask[:, :, None], -torch.inf).amax(dim=1)

    def objective(logits):
        return (torch.log1p(torch.relu(logits)) ** 2 * torch.arange(7)).sum()

    expected = torch.autograd.grad(objective(whole()), (states, words, bias))
    found = splade.MaxLogits.apply(states, words, bias, mask, True)
    assert torch.allclose(found, whole())
    assert torch.allclose(splade.MaxLogits.apply(*(each.detach() for each in (states, words, bias)), mask, False), found)
    for own, other in zip(torch.autograd.grad(objective(found), (states, words, bias)), expected, strict=True):
        assert torch.allclose(own, other)
    assert torch.autograd.gradcheck(splade.MaxLogits.apply, (states, words, bias, mask, True))


def test_the_logits_of_a_batch_are_never_in_memory_at_once(tmp_path, tiny):
    """64 texts of 64 tokens and 30,000 terms: all logits take 490 MB, the vectors take 8 MB."""
    states, words = torch.randn(64, 64, 8, requires_grad=True), torch.randn(30_000, 8, requires_grad=True)
    bias, mask = torch.zeros(30_000, requires_grad=True), torch.ones(64, 64, dtype=torch.bool)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel() * t.element_size()) or t, lambda t: t):
        vectors = torch.log1p(torch.relu(splade.MaxLogits.apply(states, words, bias, mask, True)))
    vectors.sum().backward()
    assert sum(sizes) < 40_000_000 and words.grad is not None


def test_layers_and_new_heads(tmp_path, tiny, tiny_dot, caplog):
    model = loading.load(str(tiny), layers=(1,))
    saving.save(model, tmp_path / "one")
    assert len(loading.load(str(tmp_path / "one")).encoder.encoder.layer) == 1
    with caplog.at_level(logging.WARNING):
        new = loading.load(str(tiny_dot), architecture="splade")
    assert "has no language model head; the new head needs training" in caplog.text
    assert torch.equal(next(new.transform.parameters()), torch.eye(32))
    old = loading.load(str(tiny), architecture="bert_dot")  # any student can start from a masked language model
    assert old.width == 32
    records, _ = new.reader.sides(TEXTS, "doc")
    assert new(**pad(records, 0)).shape == (4, new.width)


def test_settings_are_checked(tiny):
    with pytest.raises(ValueError, match="SPLADE needs strategy max or sum"):
        SpladeSettings(strategy="mean")
    assert checkpoint_folder.own_settings("splade") == []
    with pytest.raises(InputError, match="a splade does not run in OpenVINO"):
        rankers.load(str(tiny), backend="openvino")
    with pytest.raises(InputError, match="a dense index needs a bert_dot"):
        rankers.load_encoder(str(tiny))


def test_other_checkpoints_keep_their_architecture(tmp_path, tiny, tiny_dot, tiny_cross):
    assert [checkpoint_folder.architecture_of(path) for path in (tiny_dot, tiny_cross)] == ["bert_dot", "cross_encoder"]
    folder = tmp_path / "st"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]}))
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in ("Transformer", "Pooling")]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert checkpoint_folder.architecture_of(folder) == "bert_dot"
