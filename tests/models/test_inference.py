"""The engine: order, padding and batching change nothing; equal texts are computed once; all architectures score."""

import contextlib
import copy
import threading

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyserini_kd.models import engine, hardware, loading, rankers, tokens
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
    plain, forward = tokens._encodings, type(model).forward

    def counting(tokenizer, texts, *, special):
        tokenised.extend(texts)
        return plain(tokenizer, texts, special=special)

    monkeypatch.setattr(tokens, "_encodings", counting)
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
    other = copy.copy(tokenizer)
    other.model_input_names = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    queries, docs = map(list, zip(*pairs, strict=True))
    expected = other(queries, docs, truncation="longest_first", max_length=max_len)
    records, cut = tokens.tokenize(other, queries, max_len, docs)
    assert [record["input_ids"] for record in records] == expected["input_ids"]
    assert [record.get("token_type_ids") for record in records] == expected.get("token_type_ids", [None] * len(pairs))
    assert cut == sum(bool(encoding.overflowing) for encoding in expected.encodings)
    alone = other(docs, truncation=True, max_length=max_len)
    records, cut = tokens.tokenize(other, docs, max_len)
    assert [record["input_ids"] for record in records] == alone["input_ids"]
    assert cut == sum(bool(encoding.overflowing) for encoding in alone.encodings)


def test_special_tokens_of_other_tokenizers_stand_where_they_belong():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

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
    rows = list(engine.batches(lengths, lambda longest: max(1, 2048 // longest)))
    assert sorted(sum(rows, [])) == list(range(6))
    for batch in rows:
        assert len(batch) == 1 or len(batch) * max(lengths[r] for r in batch) <= 2048


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
    for flags, chosen in (({"avx2"}, "fp32"), ({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), (set(), "fp32")):
        monkeypatch.setattr(hardware, "cpu_flags", lambda flags=flags: flags)
        assert hardware.choose_precision("auto") == chosen
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
        ({"amx_bf16"}, "bf16 by OpenVINO, chosen for this processor"),
        (set(), "fp32 by OpenVINO, chosen"),
    ):
        monkeypatch.setattr(hardware, "cpu_flags", lambda flags=flags: flags)
        rankers.load(str(tiny_dot))
        assert f"tiny-dot runs in {words}" in caplog.text
    rankers.load(str(tiny_dot), precision="bf16", backend="torch")
    assert caplog.messages[-1] == "tiny-dot runs in bf16 by torch on cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("architecture", ["bert_dot", "colbert", "tk", "prettr", "cross_encoder"])
def test_a_gpu_gives_the_scores_of_the_cpu(tiny_dot, tiny_cross, corpus, queries, precision, architecture):
    pairs = [(query.text, doc.contents) for query in queries[:3] for doc in corpus]
    columns = [q for q, _ in pairs], [d for _, d in pairs]
    source = tiny_cross if architecture == "cross_encoder" else tiny_dot
    model = loading.load(str(source), architecture=architecture)
    expected = score(model, *columns, precision="fp32")
    found = score(model.to("cuda"), *columns, precision=precision)
    assert np.corrcoef(expected, found)[0, 1] > (0.99999 if precision == "fp32" else 0.99)


def test_a_cross_encoder_in_half_precision_scores(tiny_cross):
    model = loading.load(str(tiny_cross))
    expected = score(model, ["cat"], ["the cat eats hay"], precision="fp32")
    assert np.allclose(score(model.bfloat16(), ["cat"], ["the cat eats hay"], precision="fp32"), expected, atol=0.02)


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


def test_parameters_are_those_of_the_module(tiny_dot, tiny_cross):
    for folder in (tiny_dot, tiny_cross):
        count = sum(weights.numel() for weights in loading.load(str(folder)).parameters())
        assert rankers.load(str(folder)).parameters == count
