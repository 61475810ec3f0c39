"""The engine: order, padding and batching change nothing; equal texts are computed once; all architectures score."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from pyserini_kd import inference
from pyserini_kd.files import InputError
from pyserini_kd.models import bert, checkpoints


@pytest.fixture(scope="module")
def model(tiny_dot):
    return checkpoints.load(str(tiny_dot))


def test_batching_order_and_padding_change_nothing(model, corpus):
    texts = [doc.contents for doc in corpus] + ["cat"]
    alone = np.concatenate([inference.encode(model, [text], "doc", precision="fp32") for text in texts])
    for batch_size in (None, 1, 3, 100):
        assert np.allclose(inference.encode(model, texts, "doc", precision="fp32", batch_size=batch_size), alone, atol=1e-5)
    assert np.allclose(inference.encode(model, texts[::-1], "doc", precision="fp32"), alone[::-1], atol=1e-5)


def test_small_chunks_change_nothing(model, tiny_cross, corpus, monkeypatch):
    texts = [doc.contents for doc in corpus]
    cross = checkpoints.load(str(tiny_cross))
    whole = inference.encode(model, texts, "doc", precision="fp32"), inference.score(cross, texts, texts, precision="fp32")
    monkeypatch.setattr(inference, "CHUNK", 3)
    assert np.allclose(inference.encode(model, texts, "doc", precision="fp32"), whole[0], atol=1e-5)
    assert np.allclose(inference.score(cross, texts, texts, precision="fp32"), whole[1], atol=1e-5)
    assert inference.encode(model, [], "doc").shape == (0, 32)


def test_equal_texts_are_computed_once(model, monkeypatch):
    seen = []
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, **b: seen.append(len(b["input_ids"])) or forward(self, **b))
    vectors = inference.encode(model, ["the cat", "the dog", "the cat", "the cat"], "doc")
    assert sum(seen) == 2
    assert np.array_equal(vectors[0], vectors[2])


def test_batches_keep_the_budget_and_lose_nothing():
    lengths = [5, 9000, 1, 300, 300, 2]
    rows = list(inference.batches(lengths))
    assert sorted(sum(rows, [])) == list(range(6))
    for batch in rows:
        assert len(batch) == 1 or len(batch) * max(lengths[r] for r in batch) <= inference.BATCH_TOKENS


def test_long_texts_are_cut_and_counted(model, caplog):
    caplog.set_level("INFO")
    long = "the cat eats hay " * 20
    cut = inference.encode(model, [long, "the cat"], "doc", precision="fp32")
    assert "1 of 2 doc texts are longer than 24 tokens" in caplog.text
    assert np.allclose(cut[0], inference.encode(model, [long + "and then some"], "doc", precision="fp32")[0], atol=1e-6)


def test_prefixes_and_lengths_by_side(tiny_dot):
    model = checkpoints.load(str(tiny_dot), query_prefix="the ", max_query_len=4)
    plain = checkpoints.load(str(tiny_dot))
    assert np.allclose(
        inference.encode(model, ["cat eats hay and water"], "query", precision="fp32"),
        inference.encode(plain, ["the cat"], "doc", precision="fp32"),  # [CLS] the cat [SEP]: 4 tokens
        atol=1e-6,
    )


@pytest.mark.parametrize("architecture", ["bert_dot", "colbert"])
def test_scores_are_the_definition(tiny_dot, corpus, queries, architecture):
    model = checkpoints.load(str(tiny_dot), architecture=architecture)
    pairs = [(q.text, doc.contents) for q in queries[:3] for doc in corpus]
    got = inference.score(model, [q for q, _ in pairs], [d for _, d in pairs], precision="fp32")
    for (query, doc), score in zip(pairs, got, strict=True):
        with torch.inference_mode():
            q, d = (model(**{k: v for k, v in model.tokenizer(t, return_tensors="pt").items() if k != "token_type_ids"})[0]
                    for t in (query, doc))  # fmt: skip
        expected = float(q @ d) if architecture == "bert_dot" else sum(float((d @ token).max()) for token in q)
        assert score == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_late_interaction_in_small_pieces_is_the_same(tiny_dot, corpus, queries, monkeypatch):
    model = checkpoints.load(str(tiny_dot), architecture="colbert")
    pairs = [(q.text, doc.contents) for doc in corpus for q in queries]
    whole = inference.score(model, [q for q, _ in pairs], [d for _, d in pairs], precision="fp32")
    monkeypatch.setattr(inference, "LATE_BYTES", 4 * 24 * 32 * 3)  # three documents at a time
    assert np.allclose(inference.score(model, [q for q, _ in pairs], [d for _, d in pairs], precision="fp32"), whole, atol=1e-4)


def test_precision_is_chosen_by_features_and_close(model, corpus, monkeypatch):
    monkeypatch.setattr(inference, "cpu_flags", lambda: {"avx512_bf16"})
    assert inference.choose_precision("auto") == "fp32"
    monkeypatch.setattr(inference, "cpu_flags", lambda: {"amx_bf16"})
    assert inference.choose_precision("auto") == "bf16"
    texts = [doc.contents for doc in corpus]
    a, b = (inference.encode(model, texts, "doc", precision=p) for p in ("fp32", "bf16"))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.999
    with pytest.raises(InputError, match="precision"):
        inference.choose_precision("fp8")


def hugging_face(folder, cls, inputs):
    reference = cls.from_pretrained(folder).eval()
    with torch.inference_mode():
        return reference(**inputs)


@pytest.fixture(scope="module")
def padded(tokenizer, corpus):
    texts = [doc.contents for doc in corpus] + ["cat", "what the cat eats"]
    pairs = ["the dog"] * len(texts)
    return tokenizer(texts, pairs, padding=True, return_tensors="pt")


def test_lean_bert_gives_the_states_of_transformers(tiny_dot, padded):
    from transformers import BertModel

    expected = hugging_face(tiny_dot, BertModel, padded).last_hidden_state
    lean = bert.read(tiny_dot, "bert_dot")
    with torch.inference_mode():
        kept = padded["attention_mask"].bool()
        assert torch.allclose(lean(**padded).last_hidden_state[kept], expected[kept], atol=1e-5)
        row = {name: values[-1:, : int(kept[-1].sum())] for name, values in padded.items()}  # no padding, no mask
        assert torch.allclose(lean(**row).last_hidden_state[0], expected[-1][kept[-1]], atol=1e-5)
        lean.first = True
        states = lean(**padded).last_hidden_state
    assert states.shape == (len(kept), 1, 32) and torch.allclose(states[:, 0], expected[:, 0], atol=1e-5)


def test_lean_classifier_gives_the_logits_of_transformers(tiny_cross, padded, tmp_path, tokenizer):
    from transformers import BertForSequenceClassification

    expected = hugging_face(tiny_cross, BertForSequenceClassification, padded).logits
    with torch.inference_mode():
        assert torch.allclose(bert.read(tiny_cross, "cross_encoder")(**padded).logits, expected, atol=1e-5)
    two = BertForSequenceClassification.from_pretrained(tiny_cross, num_labels=2, ignore_mismatched_sizes=True)
    two.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = hugging_face(tmp_path, BertForSequenceClassification, padded).logits
    model = inference.load(str(tmp_path), precision="fp32")
    assert isinstance(model.classifier, bert.BertClassifier)
    with torch.inference_mode():
        assert torch.allclose(model(**padded), expected[:, 1] - expected[:, 0], atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_lean_and_plain_loading_give_the_same_vectors(tiny_dot, corpus, pooling):
    texts = [doc.contents for doc in corpus] + ["cat"]
    lean = inference.load(str(tiny_dot), precision="fp32", pooling=pooling)
    assert isinstance(lean.encoder, bert.Bert) and lean.encoder.first == (pooling == "cls") and lean.width == 32
    plain = checkpoints.load(str(tiny_dot), pooling=pooling)
    got, expected = (inference.encode(model, texts, "doc", precision="fp32") for model in (lean, plain))
    assert np.allclose(got, expected, atol=1e-5)


def test_lean_bert_in_bf16_is_close(tiny_dot, corpus):
    model, texts = inference.load(str(tiny_dot), precision="bf16"), [doc.contents for doc in corpus]
    a, b = (inference.encode(model, texts, "doc", precision=precision) for precision in ("fp32", "bf16"))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.999 and not np.array_equal(a, b)


def test_other_models_are_left_to_transformers(tmp_path, tokenizer):
    from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

    distil = DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer), dim=32, hidden_dim=64, n_layers=1, n_heads=4))
    distil.save_pretrained(tmp_path / "distil")
    relu = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                      intermediate_size=64, hidden_act="relu")  # fmt: skip
    BertModel(relu).save_pretrained(tmp_path / "relu")
    for name in ("distil", "relu"):
        assert bert.read(tmp_path / name, "bert_dot") is None
        tokenizer.save_pretrained(tmp_path / name)
        model = inference.load(str(tmp_path / name), precision="fp32")
        assert type(model.encoder).__module__.startswith("transformers.") and inference.encode(model, ["cat"], "doc").any()


def test_small_searches_do_not_import_the_models_of_transformers(tiny_dot):
    code = f"""
import sys
from pyserini_kd import inference
inference.encode(inference.load({str(tiny_dot)!r}), ["cat"], "query")
assert "transformers.modeling_utils" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_devices():
    assert inference.check_device("cpu") == "cpu"
    for wrong in ("gpu", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(InputError, match="--device"):
            inference.check_device(wrong)


def test_query_encoder(tiny_dot, tiny_cross):
    encoder = inference.QueryEncoder(str(tiny_dot), precision="fp32")
    batch = encoder.encode_batch(["what the cat eats", "hay"])
    assert batch.shape == (2, 32) and batch.dtype == np.float32
    assert np.allclose(encoder.encode("hay"), batch[1], atol=1e-6)
    with pytest.raises(InputError, match="bert_dot"):
        inference.QueryEncoder(str(tiny_cross))
