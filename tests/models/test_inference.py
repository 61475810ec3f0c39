"""The engine: order, padding and batching change nothing; equal texts are computed once; all architectures score."""

import contextlib
import copy
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyserini_kd.models import engine, fast_bert, hardware, loading, rankers
from pyserini_kd.models.cross_encoder import CrossEncoder
from pyserini_kd.storage.errors import InputError
from tests.conftest import encode, score


@pytest.fixture(scope="module")
def model(tiny_dot):
    return loading.load(str(tiny_dot))


def test_batching_order_and_padding_change_nothing(model, corpus):
    texts = [doc.contents for doc in corpus] + ["cat"]
    alone = np.concatenate([encode(model, [text], "doc", precision="fp32") for text in texts])
    for batch_size in (None, 1, 3, 100):
        assert np.allclose(encode(model, texts, "doc", precision="fp32", batch_size=batch_size), alone, atol=1e-5)
    assert np.allclose(encode(model, texts[::-1], "doc", precision="fp32"), alone[::-1], atol=1e-5)


def test_small_chunks_change_nothing(model, tiny_cross, corpus, monkeypatch):
    texts = [doc.contents for doc in corpus]
    cross = loading.load(str(tiny_cross))
    whole = encode(model, texts, "doc", precision="fp32"), score(cross, texts, texts, precision="fp32")
    monkeypatch.setattr(engine, "CHUNK", 3)
    assert np.allclose(encode(model, texts, "doc", precision="fp32"), whole[0], atol=1e-5)
    assert np.allclose(score(cross, texts, texts, precision="fp32"), whole[1], atol=1e-5)
    assert encode(model, [], "doc").shape == (0, 32)


def test_equal_texts_are_computed_once(model, monkeypatch):
    seen = []
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, **b: seen.append(len(b["input_ids"])) or forward(self, **b))
    vectors = encode(model, ["the cat", "the dog", "the cat", "the cat"], "doc")
    assert sum(seen) == 2
    assert np.array_equal(vectors[0], vectors[2])


@pytest.mark.parametrize("architecture", ["bert_dot", "colbert", "prettr", "tk", "cross_encoder"])
def test_each_query_and_document_is_prepared_once(tiny_dot, tiny_cross, corpus, queries, architecture, monkeypatch):
    """Not once a pair: texts are tokenised once, and run once where an architecture runs them apart."""
    if architecture == "cross_encoder":
        model = loading.load(str(tiny_cross))
    else:
        model = loading.load(
            str(tiny_dot), architecture=architecture, **({"join_layer": 1} if architecture == "prettr" else {})
        )
    asked, texts = [query.text for query in queries[:4]], [doc.contents for doc in corpus]
    pairs = [(query, text) for text in texts for query in asked] * 2
    monkeypatch.setattr(engine, "CHUNK", 7)
    monkeypatch.setattr(rankers, "LATE_BYTES", 4 * 24 * 32 * 3)  # three documents at a time
    tokenised, run = [], []
    plain, forward = type(model.tokenizer).__call__, type(model).forward

    def counting(self, text, *args, **kwargs):
        tokenised.extend([text] if isinstance(text, str) else text)
        return plain(self, text, *args, **kwargs)

    monkeypatch.setattr(type(model.tokenizer), "__call__", counting)
    monkeypatch.setattr(type(model), "forward", lambda self, *a, **b: run.append(len(b["input_ids"])) or forward(self, *a, **b))
    score(model, [q for q, _ in pairs], [d for _, d in pairs], precision="fp32")
    known = [text for text in tokenised if text in asked or text in texts]
    assert sorted(known) == sorted(asked + texts)
    assert sum(run) == (len(asked) * len(texts) if architecture == "cross_encoder" else len(asked) + len(texts))


words = st.lists(st.sampled_from(["cat", "dog", "eats", "hay", "the", "nowhere"]), max_size=30).map(" ".join)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=5), st.integers(3, 40), st.booleans())
@example(
    [("cat " * 6, "cat " * 5), ("cat " * 5, "cat " * 6), ("cat " * 20, "cat " * 21)], 4, False
)  # both longer than the pair
@settings(max_examples=60, deadline=None)
def test_joined_pairs_are_the_tokenizers_pairs(tokenizer, pairs, max_len, types):
    from pyserini_kd.models import tokens

    other = copy.copy(tokenizer)
    other.model_input_names = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    expected = tokens.tokenize(other, [q for q, _ in pairs], max_len, [d for _, d in pairs])
    ids = [tokens.plain_ids(other, side, max_len) for side in zip(*pairs, strict=True)]
    assert tokens.join_pairs(tokens.pair_frame(other), list(zip(*ids, strict=True)), max_len) == expected


def test_special_tokens_of_other_tokenizers_stand_where_they_belong():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from pyserini_kd.models import tokens

    inner = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "cat": 3, "dog": 4}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    roberta = PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=["input_ids", "attention_mask"])
    assert tokens.pair_frame(roberta) == (([0], [1, 1], [1]), None)
    records, cut = tokens.join_pairs(tokens.pair_frame(roberta), [(tokens.Plain([3, 3], 2), tokens.Plain([4], 1))], 10)
    assert (records, cut) == tokens.tokenize(roberta, ["cat cat"], 10, ["dog"])


def test_the_next_texts_are_tokenised_while_the_model_runs():
    """The second chunk's tokens are there before the first chunk is done with."""
    ready = threading.Event()

    def tokenise(rows):
        if rows == [2, 3]:
            ready.set()
        return [threading.current_thread().name], 0

    names = []
    for rows, (records, _) in engine._one_ahead([[0, 1], [2, 3], [4]], tokenise):
        if rows == [0, 1]:
            assert ready.wait(5)
        names += records
    assert len(names) == 3 and threading.main_thread().name not in names


def test_batches_keep_the_budget_and_lose_nothing():
    lengths = [5, 9000, 1, 300, 300, 2]
    rows = list(engine.batches(lengths))
    assert sorted(sum(rows, [])) == list(range(6))
    for batch in rows:
        assert len(batch) == 1 or len(batch) * max(lengths[r] for r in batch) <= engine.BATCH_TOKENS


def test_long_texts_are_cut_and_counted(model, caplog):
    caplog.set_level("INFO")
    long = "the cat eats hay " * 20
    cut = encode(model, [long, "the cat"], "doc", precision="fp32")
    assert "1 of 2 doc texts are longer than 24 tokens" in caplog.text
    assert np.allclose(cut[0], encode(model, [long + "and then some"], "doc", precision="fp32")[0], atol=1e-6)


def test_prefixes_and_lengths_by_side(tiny_dot):
    model = loading.load(str(tiny_dot), query_prefix="the ", max_query_len=4)
    plain = loading.load(str(tiny_dot))
    assert np.allclose(
        encode(model, ["cat eats hay and water"], "query", precision="fp32"),
        encode(plain, ["the cat"], "doc", precision="fp32"),  # [CLS] the cat [SEP]: 4 tokens
        atol=1e-6,
    )


@pytest.mark.parametrize("architecture", ["bert_dot", "colbert"])
def test_scores_are_the_definition(tiny_dot, corpus, queries, architecture):
    model = loading.load(str(tiny_dot), architecture=architecture)
    pairs = [(q.text, doc.contents) for q in queries[:3] for doc in corpus]
    got = score(model, [q for q, _ in pairs], [d for _, d in pairs], precision="fp32")
    for (query, doc), found in zip(pairs, got, strict=True):
        with torch.inference_mode():
            q, d = (model(**{k: v for k, v in model.tokenizer(t, return_tensors="pt").items() if k != "token_type_ids"})[0]
                    for t in (query, doc))  # fmt: skip
        expected = float(q @ d) if architecture == "bert_dot" else sum(float((d @ token).max()) for token in q)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_late_interaction_in_small_pieces_is_the_same(tiny_dot, corpus, queries, monkeypatch):
    model = loading.load(str(tiny_dot), architecture="colbert")
    pairs = [(q.text, doc.contents) for doc in corpus for q in queries]
    whole = score(model, [q for q, _ in pairs], [d for _, d in pairs], precision="fp32")
    monkeypatch.setattr(rankers, "LATE_BYTES", 4 * 24 * 32 * 3)  # three documents at a time
    assert np.allclose(score(model, [q for q, _ in pairs], [d for _, d in pairs], precision="fp32"), whole, atol=1e-4)


def test_precision_is_chosen_by_features_and_close(model, corpus, monkeypatch):
    monkeypatch.setattr(hardware, "cpu_flags", lambda: {"avx512_bf16"})
    assert hardware.choose_precision("auto") == "fp32"
    monkeypatch.setattr(hardware, "cpu_flags", lambda: {"amx_bf16"})
    assert hardware.choose_precision("auto") == "bf16"
    texts = [doc.contents for doc in corpus]
    a, b = (encode(model, texts, "doc", precision=p) for p in ("fp32", "bf16"))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.999
    with pytest.raises(InputError, match="precision: must be one of"):
        hardware.choose_precision("fp8")
    with pytest.raises(InputError, match="precision: fp16 needs a GPU"):
        hardware.choose_precision("fp16")


@pytest.mark.parametrize(
    ("flags", "told"), [({"avx2"}, 1), ({"avx2", "avx512_bf16"}, 0), ({"avx2", "amx_bf16"}, 0), (set(), 0)]
)
def test_bf16_without_instructions_for_it_is_told_once(monkeypatch, caplog, flags, told):
    monkeypatch.setattr(hardware, "cpu_flags", lambda: flags)
    hardware._warn_of_imitation.cache_clear()
    assert [hardware.choose_precision(asked) for asked in ("bf16", "bf16", "fp32")] == ["bf16", "bf16", "fp32"]
    hardware.choose_precision("auto")
    assert caplog.text.count("has no instructions for bf16") == told


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "fp16")])
def test_gpus_without_bf16_take_fp16(monkeypatch, native, chosen):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert hardware.choose_precision("auto", "cuda") == chosen
    assert hardware.choose_precision("fp16", "cuda:0") == "fp16"


def test_what_was_chosen_is_said(tiny_dot, caplog, monkeypatch):
    caplog.set_level("INFO")
    for flags, words in (
        ({"amx_bf16"}, "bf16 by torch on cpu, chosen for this processor"),
        (set(), "fp32 by torch on cpu, chosen"),
    ):
        monkeypatch.setattr(hardware, "cpu_flags", lambda flags=flags: flags)
        rankers.load(str(tiny_dot))
        assert f"tiny-dot runs in {words}" in caplog.text
    rankers.load(str(tiny_dot), precision="bf16")
    assert caplog.messages[-1] == "tiny-dot runs in bf16 by torch on cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("architecture", ["bert_dot", "colbert", "tk", "prettr", "cross_encoder"])
def test_a_gpu_gives_the_scores_of_the_cpu(tiny_dot, tiny_cross, corpus, queries, precision, architecture):
    pairs = [(query.text, doc.contents) for query in queries[:3] for doc in corpus]
    columns = [q for q, _ in pairs], [d for _, d in pairs]
    source = tiny_cross if architecture == "cross_encoder" else tiny_dot
    model = rankers.load(str(source), architecture=architecture, precision="fp32")
    expected = score(model, *columns, precision="fp32")
    found = score(model.to("cuda"), *columns, precision=precision)
    assert np.corrcoef(expected, found)[0, 1] > (0.99999 if precision == "fp32" else 0.99)


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
    lean = fast_bert.read(tiny_dot, "bert_dot")
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
        assert torch.allclose(fast_bert.read(tiny_cross, "cross_encoder")(**padded).logits, expected, atol=1e-5)
    two = BertForSequenceClassification.from_pretrained(tiny_cross, num_labels=2, ignore_mismatched_sizes=True)
    two.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = hugging_face(tmp_path, BertForSequenceClassification, padded).logits
    model = rankers.load(str(tmp_path), precision="fp32").module
    assert isinstance(model.classifier, fast_bert.BertClassifier)
    with torch.inference_mode():
        assert torch.allclose(model(**padded), expected[:, 1] - expected[:, 0], atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_lean_and_plain_loading_give_the_same_vectors(tiny_dot, corpus, pooling):
    texts = [doc.contents for doc in corpus] + ["cat"]
    lean = rankers.load(str(tiny_dot), precision="fp32", pooling=pooling).module
    assert isinstance(lean.encoder, fast_bert.Bert) and lean.encoder.first == (pooling == "cls") and lean.width == 32
    plain = loading.load(str(tiny_dot), pooling=pooling)
    got, expected = (encode(model, texts, "doc", precision="fp32") for model in (lean, plain))
    assert np.allclose(got, expected, atol=1e-5)


@pytest.fixture(params=["as it is", "no oneDNN", "with gradients"])
def way(request, monkeypatch):
    """How a processor takes bf16: by oneDNN where it can, by autocast alone as a GPU does, under autograd."""
    if request.param == "no oneDNN":
        monkeypatch.setattr(fast_bert, "onednn_has_bf16", lambda: False)
    if request.param == "with gradients":
        monkeypatch.setattr(torch, "inference_mode", contextlib.nullcontext)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_lean_bert_in_bf16_is_close(tiny_dot, corpus, pooling, way):
    model, texts = rankers.load(str(tiny_dot), precision="bf16", pooling=pooling).module, [doc.contents for doc in corpus]
    model.requires_grad_(False)  # vectors become arrays
    a, b = (encode(model, texts, "doc", precision=precision) for precision in ("fp32", "bf16"))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.999 and not np.array_equal(a, b)


@pytest.mark.skipif(not fast_bert.onednn_has_bf16(), reason="oneDNN has no bf16 on this processor")
@pytest.mark.parametrize("first", [False, True])
def test_products_in_bf16_are_those_of_rounded_weights(first):
    torch.manual_seed(0)
    dense, states, others = fast_bert.Dense(torch.randn(48, 32), torch.randn(48)), torch.randn(5, 7, 32), torch.randn(5, 7, 48)
    states, others = (states[:, :1], others[:, :1].contiguous()) if first else (states, others)
    others = others.bfloat16()
    kept = others.clone()
    exact = torch.nn.functional.linear(*(tensor.bfloat16().double() for tensor in (states, dense.weight, dense.bias)))
    with torch.inference_mode():
        assert torch.equal(dense(states), torch.nn.functional.linear(states, dense.weight, dense.bias)) and dense.packed is None
        for expected, asked in (
            (exact, {}),
            (torch.nn.functional.gelu(exact), {"gelu": True}),
            (exact + others.double(), {"plus": others}),
        ):
            got = dense(states.bfloat16(), **asked)
            assert got.dtype is torch.bfloat16 and dense.packed is not None
            assert torch.allclose(got.double(), expected, rtol=2**-7, atol=0.05)
    assert torch.equal(others, kept)  # the residual is not written into


@pytest.mark.skipif(not fast_bert.onednn_has_bf16(), reason="oneDNN has no bf16 on this processor")
def test_packed_weights_follow_the_weights(tiny_dot, tmp_path):
    model, texts = rankers.load(str(tiny_dot), precision="bf16").module, ["a cat", "the dog eats hay"]

    def encoded(of):
        return encode(of, texts, "doc", precision="bf16")

    before = encoded(model)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model.encoder))]
    assert np.array_equal(encoded(copies[0]), before) and isinstance(copies[1], fast_bert.Bert)
    model.load_state_dict({name: tensor * 1.5 for name, tensor in model.state_dict().items()})
    fresh = copies[0].float()
    for parameter in fresh.parameters():
        parameter.data *= 1.5
    assert np.array_equal(encoded(model), encoded(fresh)) and not np.allclose(encoded(model), before, atol=0.01)


def test_a_cross_encoder_in_half_precision_scores(tiny_cross):
    model = rankers.load(str(tiny_cross), precision="fp32").module
    expected = score(model, ["cat"], ["the cat eats hay"], precision="fp32")
    assert np.allclose(score(model.bfloat16(), ["cat"], ["the cat eats hay"], precision="fp32"), expected, atol=0.02)


def test_logits_in_bf16_are_close_and_not_rounded_to_bf16(tiny_cross, corpus, way):
    queries, docs = ["cat", "a dog"] * 4, [doc.contents for doc in corpus][:4] * 2
    model = rankers.load(str(tiny_cross), precision="bf16").module.requires_grad_(False)
    a, b = (score(model, queries, docs, precision=precision) for precision in ("fp32", "bf16"))
    assert np.allclose(a, b, atol=0.02) and not np.array_equal(a, b)
    assert not torch.equal(torch.from_numpy(b).bfloat16().float(), torch.from_numpy(b))


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "prettr"])
def test_scores_far_from_zero_do_not_tie_in_bf16(tmp_path, tokenizer, tiny_dot, corpus, kind):
    import transformers

    torch.manual_seed(0)
    if kind == "prettr":
        model = loading.load(str(tiny_dot), architecture="prettr", settings={"join_layer": 1})
        model.head.weight.data *= 20
    else:
        name, own = {"distilbert": ("DistilBert", {"dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 4}), "roberta": ("Roberta", {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4})}[kind]  # fmt: skip
        config = getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), num_labels=1, pad_token_id=0, **own)
        classifier = getattr(transformers, f"{name}ForSequenceClassification")(config)
        last = classifier.classifier if kind == "distilbert" else classifier.classifier.out_proj
        last.bias.data += 9
        model = CrossEncoder(classifier.eval(), tokenizer, 48)
    docs = [doc.contents for doc in corpus]
    scores = score(model, ["what the cat eats"] * len(docs), docs, precision="bf16")
    assert len(set(scores.tolist())) > len(set(torch.from_numpy(scores).bfloat16().tolist()))
    assert np.allclose(scores, score(model, ["what the cat eats"] * len(docs), docs, precision="fp32"), rtol=0.02, atol=0.1)


def test_other_models_are_left_to_transformers(tmp_path, tokenizer):
    from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

    distil = DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer), dim=32, hidden_dim=64, n_layers=1, n_heads=4))
    distil.save_pretrained(tmp_path / "distil")
    relu = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                      intermediate_size=64, hidden_act="relu")  # fmt: skip
    BertModel(relu).save_pretrained(tmp_path / "relu")
    for name in ("distil", "relu"):
        assert fast_bert.read(tmp_path / name, "bert_dot") is None
        tokenizer.save_pretrained(tmp_path / name)
        model = rankers.load(str(tmp_path / name), precision="fp32").module
        assert type(model.encoder).__module__.startswith("transformers.") and encode(model, ["cat"], "doc").any()


def test_small_searches_do_not_import_the_models_of_transformers(tiny_dot):
    code = f"""
import sys
from pyserini_kd import models
models.load({str(tiny_dot)!r}).encode_queries(["cat"])
assert "transformers.modeling_utils" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_auto_asks_the_gpu_that_was_named(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(asked.append(device)))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert hardware.choose_precision("auto", "cuda:1") == "bf16" and asked == ["cuda:1"]


def test_query_encoder(tiny_dot, tiny_cross):
    encoder = rankers.QueryEncoder(str(tiny_dot), precision="fp32")
    batch = encoder.encode_batch(["what the cat eats", "hay"])
    assert batch.shape == (2, 32) and batch.dtype == np.float32
    assert np.allclose(encoder.encode("hay"), batch[1], atol=1e-6)
    with pytest.raises(InputError, match="bert_dot"):
        rankers.QueryEncoder(str(tiny_cross))


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert hardware.own_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [hardware.own_device(device) for device in ("cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:0", "cpu"]
