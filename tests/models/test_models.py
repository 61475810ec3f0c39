"""Checkpoints: names, layouts, folding, layers; the same numbers in transformers and sentence-transformers."""

import json
import shutil

import numpy as np
import pytest
import torch

from pyserini_kd.models import checkpoint_folder, loading, saving
from pyserini_kd.models.bert_dot import EncoderSettings
from pyserini_kd.models.cross_encoder import fold_two_classes
from pyserini_kd.models.pooling import pool
from pyserini_kd.storage.errors import InputError
from tests.conftest import encode, score, tiny_config


def test_dot_checkpoint_in_transformers_and_sentence_transformers(tiny_dot, corpus):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    texts = [doc.contents for doc in corpus]
    ours = encode(loading.load(str(tiny_dot)), texts, "doc", precision="fp32")
    theirs = SentenceTransformer(str(tiny_dot), device="cpu")
    assert np.allclose(ours, theirs.encode(texts), atol=1e-5)
    assert theirs.similarity_fn_name == "dot"
    batch = AutoTokenizer.from_pretrained(tiny_dot)(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(tiny_dot).eval()(**batch).last_hidden_state
    mean = (states * batch["attention_mask"][..., None]).sum(1) / batch["attention_mask"].sum(1, keepdim=True)
    assert np.allclose(ours, mean.numpy(), atol=1e-5)


def test_cross_encoder_in_transformers_and_sentence_transformers(tiny_cross, corpus, queries):
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    pairs = [(queries[i % 10].text, doc.contents) for i, doc in enumerate(corpus)]
    model = loading.load(str(tiny_cross))
    ours = score(model, [q for q, _ in pairs], [d for _, d in pairs], precision="fp32")
    theirs = CrossEncoder(str(tiny_cross), device="cpu").predict(pairs)
    assert np.allclose(ours, theirs, atol=1e-4)  # raw logits: no sigmoid
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_cross).eval()
    batch = AutoTokenizer.from_pretrained(tiny_cross)(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
    with torch.no_grad():
        assert np.allclose(ours, plain(**batch).logits[:, 0].numpy(), atol=1e-4)


def test_two_class_head_folds_to_the_difference_of_logits(tmp_path, tokenizer):
    from transformers import BertForSequenceClassification, DistilBertConfig, DistilBertForSequenceClassification

    config = tiny_config(tokenizer)
    distil = DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_layers=2, n_heads=4, hidden_dim=64)
    for model in (BertForSequenceClassification(config).eval(), DistilBertForSequenceClassification(distil).eval()):
        ids = torch.tensor([[2, 7, 8, 3], [2, 9, 6, 3]])
        with torch.no_grad():
            before = model(input_ids=ids).logits
            folder = tmp_path / type(model).__name__
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            fold_two_classes(model)
            assert torch.allclose(model(input_ids=ids).logits[:, 0], before[:, 1] - before[:, 0], atol=1e-6)
            loaded = loading.load(str(folder))
            assert loaded.architecture == "cross_encoder"
            assert torch.allclose(loaded(input_ids=ids), before[:, 1] - before[:, 0], atol=1e-6)


@pytest.mark.parametrize(("library", "array"), [(torch, torch.tensor), (np, np.array)])
def test_pooling_by_hand(library, array):
    states, mask = array([[[1.0, 5.0], [3.0, 4.0], [100.0, 100.0]]]), array([[1.0, 1.0, 0.0]])
    expected = {"cls": [1, 5], "mean": [2, 4.5], "max": [3, 5], "lasttoken": [3, 4], "weightedmean": [7 / 3, 13 / 3],
                "mean_sqrt_len_tokens": [4 / 2**0.5, 9 / 2**0.5], "max+cls": [3, 5, 1, 5]}  # fmt: skip
    for pooling, vector in expected.items():
        assert pool(library, states, mask, pooling)[0].tolist() == pytest.approx(vector), pooling


def test_layers_are_taken_in_order(tiny_dot):
    whole, first = loading.load(str(tiny_dot)), loading.load(str(tiny_dot), layers=(1,))
    assert len(first.encoder.encoder.layer) == first.encoder.config.num_hidden_layers == 1
    kept = first.encoder.encoder.layer[0].state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in whole.encoder.encoder.layer[1].state_dict().items())
    for wrong in ((0, 2), (1, 0), (), (0, 0)):
        with pytest.raises(InputError, match="layers"):
            loading.load(str(tiny_dot), layers=wrong)


def test_settings_come_from_the_checkpoint(tiny_dot, tmp_path, caplog):
    assert checkpoint_folder.settings_of(checkpoint_folder.resolve("minilm")) == EncoderSettings("mean", True, 256, 256)
    assert checkpoint_folder.settings_of(tiny_dot) == EncoderSettings("mean", False, 16, 24)
    foreign = tmp_path / "foreign"
    shutil.copytree(tiny_dot, foreign)
    (foreign / "pyserini_kd.json").unlink()
    assert checkpoint_folder.settings_of(foreign) == EncoderSettings("mean", False, 24, 24)
    (foreign / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    assert checkpoint_folder.settings_of(foreign).pooling == "cls"
    (foreign / "modules.json").unlink()
    assert checkpoint_folder.settings_of(foreign).pooling == "cls"
    assert loading.load(str(foreign), pooling="mean", l2_norm=True).settings.l2_norm
    assert loading.load(str(foreign), architecture="colbert").architecture == "colbert" and not caplog.text
    assert loading.load(str(foreign)).settings.pooling == "cls" and "has no pooling settings" in caplog.text


def test_who_may_read_a_checkpoint_may_read_its_weights(tiny_dot, tmp_path):
    saved = saving.save(loading.load(str(tiny_dot), architecture="colbert", width=8), tmp_path / "colbert")
    modes = {path.name: path.stat().st_mode & 0o777 for path in saved.iterdir() if path.is_file()}
    assert {"model.safetensors", "head.safetensors", "config.json"} <= set(modes) and len(set(modes.values())) == 1, modes


def test_names(tmp_path, monkeypatch, tiny_dot):
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path))
    checkpoint_folder.resolve.cache_clear()
    assert checkpoint_folder.resolve("minilm") == checkpoint_folder.resolve("sentence-transformers/all-MiniLM-L6-v2")
    with pytest.raises(InputError, match=r"'student' not found; tried: no folder .*models/student; no folder student"):
        checkpoint_folder.resolve("student")  # reserved: never asks a hub
    with pytest.raises(InputError, match="hub id nobody/nothing: "):
        checkpoint_folder.resolve("nobody/nothing")
    with pytest.raises(InputError, match="hub id sebastian-hofstaetter/distilbert-dot-margin_mse-T2-msmarco"):
        checkpoint_folder.resolve("distilbert-dot-margin_mse-t2")
    shutil.copytree(tiny_dot, tmp_path / "models" / "student")
    assert checkpoint_folder.resolve("student") == tmp_path / "models" / "student"
    checkpoint_folder.resolve.cache_clear()


@pytest.mark.parametrize("architecture", ["cross_encoder", "bert_dot"])
def test_roberta_and_its_kin_read_as_many_tokens_as_positions_after_padding_s(tmp_path, tokenizer, architecture):
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaModel

    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    config = RobertaConfig(
        max_position_embeddings=14, pad_token_id=3, type_vocab_size=2, num_labels=1, **shape
    )  # positions 4 to 13
    (RobertaForSequenceClassification if architecture == "cross_encoder" else RobertaModel)(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lengths = {"max_query_len": 4} if architecture == "bert_dot" else {}
    with pytest.raises(InputError, match="reads at most 10 tokens, not 11"):
        loading.load(str(tmp_path), architecture=architecture, max_doc_len=11, **lengths)
    model = loading.load(str(tmp_path), architecture=architecture, max_doc_len=10, **lengths)
    assert np.isfinite(score(model, ["cat"], ["the cat eats hay " * 9], precision="fp32")).all()
