"""ColBERT, PreTTR and TK as Hofstätter et al. 2020 use them, and the published checkpoints' layouts."""

import copy
import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pyserini_kd.models import checkpoint_folder, loading, saving
from pyserini_kd.models.colbert import ColBert, ColBertSettings
from pyserini_kd.models.cross_encoder import CrossEncoder
from pyserini_kd.models.prettr import PreTtr, PreTtrSettings
from pyserini_kd.models.tk import MU, SIGMA, Tk, TkSettings, positions, read_glove
from pyserini_kd.storage.errors import InputError
from tests.conftest import score

LENGTHS = {"max_query_len": 12, "max_doc_len": 24}
SHORT, LONG = "the cat eats", "at night the horse sleeps in the barn and the cow eats hay"


@pytest.fixture
def encoder(tokenizer):
    """A random two-layer BERT."""
    from transformers import BertModel

    from tests.conftest import tiny_config

    torch.manual_seed(3)
    return BertModel(tiny_config(tokenizer), add_pooling_layer=False).eval()


@pytest.fixture
def distil(tokenizer):
    """A random three-layer DistilBERT, 64 wide: one head, as the published checkpoints' shape is read off."""
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(4)
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=64, n_layers=3, n_heads=1, hidden_dim=96, max_position_embeddings=64
    )
    return DistilBertModel(config).eval()


@pytest.fixture
def students(encoder, tokenizer):
    """One model of each architecture that has a head of its own."""
    torch.manual_seed(5)
    vectors = torch.randn(len(tokenizer), 20)
    return {
        "colbert": ColBert(encoder, tokenizer, ColBertSettings(masks=8, width=16, **LENGTHS)).eval(),
        "prettr": PreTtr(encoder, tokenizer, PreTtrSettings(join_layer=1, **LENGTHS)).eval(),
        "tk": Tk(vectors, tokenizer, TkSettings(heads=4, feed_forward=24, **LENGTHS)).eval(),
    }


NAMES = ["colbert", "prettr", "tk"]


# ------------------------------------------------------------------------------------------------------------ all


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_no_score(students, name):
    model = students[name]
    with torch.no_grad():
        together = model.pair_scores(model.pair_batch([SHORT, LONG], [SHORT, LONG], [(0, 0), (0, 1), (1, 0), (1, 1)]))
        alone = [
            float(model.pair_scores(model.pair_batch([query], [doc], [(0, 0)])))
            for query in (SHORT, LONG)
            for doc in (SHORT, LONG)
        ]
    assert together.tolist() == pytest.approx(alone, abs=2e-5)


@pytest.mark.parametrize("name", ["colbert", "tk"])
def test_queries_are_compared_with_their_own_documents_only(students, name, monkeypatch):
    model, compared = students[name], []
    pairs = [(1, 0), (0, 1), (1, 2), (0, 0)]
    batch = model.pair_batch([SHORT, LONG], [LONG, SHORT, "hay"], pairs)
    late_scores = model.late_scores

    def counted(query_vecs, query_mask, doc_vecs, doc_mask):
        compared.append(len(query_vecs) * len(doc_vecs))
        return late_scores(query_vecs, query_mask, doc_vecs, doc_mask)

    monkeypatch.setattr(model, "late_scores", counted)
    scores = model.pair_scores(batch)
    assert sum(compared) == 4 and scores.requires_grad
    alone = [model.pair_scores({**batch, "pairs": torch.tensor([pair])}).item() for pair in pairs]
    assert scores.tolist() == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_scores_as_training_does(students, name, corpus, queries):
    model = students[name]
    docs = [doc.contents for doc in corpus] + [SHORT, LONG, "cow"]
    asked = [query.text for query in queries[:3]] + [LONG, "hay"]
    pairs = [(q, d) for q in range(len(asked)) for d in range(len(docs))]
    with torch.no_grad():
        expected = model.pair_scores(model.pair_batch(asked, docs, pairs))
    found = score(model, [asked[q] for q, _ in pairs], [docs[d] for _, d in pairs], precision="fp32")
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(students, name, tmp_path):
    model = students[name]
    folder = saving.save(model, tmp_path / name)
    again = loading.load(str(folder))
    assert again.architecture == name and again.settings == model.settings
    batch = model.pair_batch([SHORT], [LONG], [(0, 0)])
    assert torch.equal(again.pair_scores(batch), model.pair_scores(batch))
    assert not list(folder.glob("*.bin"))
    assert checkpoint_folder.fingerprint(folder) == checkpoint_folder.fingerprint(folder)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_learns(students, name):
    model = students[name].train()
    scores = model.pair_scores(model.pair_batch([SHORT, LONG], [LONG, SHORT], [(0, 0), (1, 1), (0, 1)]))
    (scores * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
    still = [n for n, weight in model.named_parameters() if weight.grad is None or not weight.grad.abs().sum() > 0]
    assert not [n for n in still if "pooler" not in n and "key.bias" not in n and "in_proj_bias" not in n], still


@pytest.mark.parametrize("name", NAMES)
def test_read_off_a_bert_checkpoint(tiny_dot, name):
    model = loading.load(str(tiny_dot), architecture=name, **({"join_layer": 1} if name == "prettr" else {}))
    assert model.architecture == name
    assert np.isfinite(score(model, [SHORT], [LONG], precision="fp32")).all()


# -------------------------------------------------------------------------------------------------------- ColBERT


def test_eight_masks_follow_every_query_and_are_attended_to(students, tokenizer):
    batch = students["colbert"].pair_batch([SHORT, LONG], [LONG], [(0, 0)])
    ids, mask = batch["query_input_ids"], batch["query_attention_mask"]
    assert ids[0, 5:13].tolist() == [tokenizer.mask_token_id] * 8  # [CLS] the cat eats [SEP], then the masks
    assert mask.sum(dim=1).tolist() == [5 + 8, 12 + 8]  # the long query is cut at 12 tokens first
    assert not (batch["doc_input_ids"] == tokenizer.mask_token_id).any()


def test_late_interaction_by_hand(students):
    query = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]])
    docs = torch.tensor([[[2.0, 0.0], [0.0, -3.0], [9.0, 9.0]], [[-3.0, 0.0], [9.0, 9.0], [9.0, 9.0]]])
    doc_mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    scores = students["colbert"].late_scores(query, torch.tensor([[1, 1, 0]]), docs, doc_mask)
    # max(2, 0) + max(0, -3) = 2; the second document has but one token: -3 + 0. Padding wins nothing and adds nothing.
    assert scores.tolist() == [[2.0, -3.0]]


# --------------------------------------------------------------------------------------------------------- PreTTR


@pytest.mark.parametrize("kind", ["encoder", "distil"])
def test_joined_from_the_start_it_is_a_cross_encoder(kind, tokenizer, request):
    """join 0 and an unpadded query: the encoder on `[CLS] query [SEP] document [SEP]`; BERT with segments, DistilBERT without."""
    encoder = request.getfixturevalue(kind)
    ids = tokenizer(SHORT, LONG, return_tensors="pt", return_token_type_ids=kind == "encoder")
    n_query = len(tokenizer(SHORT)["input_ids"])
    model = PreTtr(encoder, tokenizer, PreTtrSettings(join_layer=0, max_query_len=n_query, max_doc_len=40)).eval()
    with torch.no_grad():
        expected = model.head(encoder(**ids).last_hidden_state[:, 0])[:, 0]
        found = model.pair_scores(model.pair_batch([SHORT], [LONG], [(0, 0)]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_documents_states_do_not_depend_on_the_query(students):
    model = students["prettr"]
    states = []
    for query in (SHORT, LONG):
        batch = model.pair_batch([query], [LONG], [(0, 0)])
        states.append(model(batch["doc_input_ids"], batch["doc_attention_mask"], kind="doc"))
    assert torch.equal(*states)


def test_never_joined_a_query_scores_all_documents_the_same(students):
    """What the refusal is for: with every layer apart a document has no say in its score."""
    model = copy.deepcopy(students["prettr"])
    pairs = (["the cat eats"] * 2, ["at night the cat sleeps", "hay"])
    assert np.ptp(score(model, *pairs, precision="fp32")) > 1e-3
    model.settings = dataclasses.replace(model.settings, join_layer=2)
    assert np.ptp(score(model, *pairs, precision="fp32")) < 1e-6


def test_a_new_prettr_joins_half_way(tmp_path, tokenizer, tiny_dot):
    from transformers import BertModel

    from tests.conftest import tiny_config

    assert loading.load(str(tiny_dot), architecture="prettr").settings.join_layer == 1
    deep = BertModel(tiny_config(tokenizer, layers=5))
    deep.save_pretrained(tmp_path / "deep")
    tokenizer.save_pretrained(tmp_path / "deep")
    load = functools.partial(loading.load, str(tmp_path / "deep"), architecture="prettr")
    joined = [model.settings.join_layer for model in (load(), load(layers=(0, 2, 4)), load(settings={"join_layer": 4}))]
    assert joined == [2, 1, 4]


# ------------------------------------------------------------------------------------------------------------- TK


def test_tk_is_built_as_in_the_paper(tokenizer):
    """Literal values: kernels, layers, heads, ReLU, and documents whose places begin at 500."""
    model = Tk(torch.randn(len(tokenizer), 300), tokenizer, TkSettings(**LENGTHS)).eval()
    assert MU == (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, -0.1, -0.3, -0.5, -0.7, -0.9) and SIGMA == 0.1
    layers = model.context.layers
    assert len(layers) == 2 and all(layer.self_attn.num_heads == 10 and layer.linear1.out_features == 300 for layer in layers)
    assert all(layer.activation is torch.nn.functional.relu and not layer.norm_first for layer in layers)
    ids, mask = torch.tensor([[7, 9, 8]]), torch.ones(1, 3, dtype=torch.long)
    query, doc = model(ids, mask, "query"), model(ids, mask, "doc")
    assert not torch.allclose(query, doc, atol=1e-3)
    words = model.embeddings(ids)
    placed = words + positions(503, 300)[500:]
    assert torch.allclose(doc, 0.5 * words + 0.5 * model.context(placed), atol=1e-5)


def test_kernels_by_hand(students):
    """One query word, one document word, cosine 0.6: each kernel is exp(-(0.6 - mu)^2 / 0.02)."""
    model = students["tk"]
    with torch.no_grad():
        model.head.weight.fill_(1.0)
    query, doc = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.6, 0.8], [1.0, 0.0]]])
    found = model.late_scores(query, torch.ones(1, 1), doc, torch.tensor([[1, 0]])).detach()
    expected = sum(math.log(max(math.exp(-((0.6 - mu) ** 2) / (2 * SIGMA**2)), 1e-10)) for mu in MU)
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kernel", range(len(MU)))
def test_a_kernel_at_its_centre_is_one(students, kernel):
    model, mu = students["tk"], MU[kernel]
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[0, kernel] = 1.0  # this kernel alone: log(exp(0)) = 0 where the cosine is mu
    query, doc = torch.tensor([[[3.0, 0.0]]]), 7 * torch.tensor([[[mu, math.sqrt(1 - mu**2)]]])
    assert model.late_scores(query, torch.ones(1, 1), doc, torch.ones(1, 1)).item() == pytest.approx(0.0, abs=1e-5)


def test_the_mix_starts_at_half_and_at_one_forgets_positions(students):
    model = students["tk"]
    assert model.mix.item() == 0.5
    with torch.no_grad():
        model.mix.fill_(1.0)
        one = model.pair_scores(model.pair_batch(["cat"], ["the cat eats hay"], [(0, 0)]))
        other = model.pair_scores(model.pair_batch(["cat"], ["hay eats cat the"], [(0, 0)]))
    assert float(one) == pytest.approx(float(other), abs=1e-5)


def test_scores_move_with_gamma(students):
    model = students["tk"]
    with torch.no_grad():
        model.head.weight.fill_(1.0)
        batch = model.pair_batch([SHORT], [LONG], [(0, 0)])
        low = float(model.pair_scores(batch))
        model.gamma.mul_(2.0)
        assert float(model.pair_scores(batch)) > low


def test_document_positions_begin_elsewhere():
    assert torch.equal(positions(3, 8, 500)[0], positions(501, 8)[500])
    assert not torch.allclose(positions(3, 8)[0], positions(3, 8, 500)[0])


def test_glove(tmp_path, tiny_dot):
    path = tmp_path / "glove.txt"
    path.write_text("the 1 0 0 0\ncat 0 1 0 0\neats 0 0 1 0\n")
    vectors, tokenizer = read_glove(path)
    assert vectors.shape == (5, 4) and vectors[0].tolist() == [0.0] * 4
    assert vectors[1].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0.0])  # unknown words: the mean
    assert tokenizer("The CAT barks")["input_ids"] == [2, 3, 1]
    plain = path.read_text()
    path.write_text("3 4\n" + plain)  # the first line of word2vec and fastText
    assert torch.equal(read_glove(path)[0], vectors)
    for lines, message in (
        (plain + "dog 1 0 0 0 1\n", ":4: more than 4 numbers; the first word has 4"),
        ("3 4\n", "no word vectors"),
    ):
        path.write_text(lines)
        with pytest.raises(InputError, match=message):
            read_glove(path)
    path.write_text(plain)
    model = loading.load(str(tiny_dot), architecture="tk", glove=path, **LENGTHS)
    assert model.width == 4 and model.settings.heads == 4
    folder = saving.save(model, tmp_path / "tk")
    again = loading.load(str(folder))
    assert score(again, ["the cat"], ["cat eats"]).tolist() == score(model, ["the cat"], ["cat eats"]).tolist()


# ----------------------------------------------------------------------------------------------- published layouts


def published(folder, model_type, distil, tokenizer, prefix="bert_model.", **head):
    """A folder in the layout of the published checkpoints."""
    folder.mkdir()
    weights = {prefix + name: tensor.clone() for name, tensor in distil.state_dict().items()} | head
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(f'{{"model_type": "{model_type}", "bert_model": "distilbert-base-uncased"}}')
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_published_colbert(tmp_path, distil, tokenizer):
    torch.manual_seed(6)
    weight, bias = torch.randn(48, 64), torch.randn(48)
    head = {"compressor.weight": weight, "compressor.bias": bias}
    model = loading.load(published(tmp_path / "c", "ColBERT", distil, tokenizer, **head))
    assert (model.architecture, model.settings.masks, model.width) == ("colbert", 8, 48)
    ids = torch.tensor([tokenizer(SHORT)["input_ids"] + [tokenizer.mask_token_id] * 8])
    doc = torch.tensor([tokenizer(LONG)["input_ids"]])
    with torch.no_grad():
        query_vecs, doc_vecs = (distil(input_ids=x).last_hidden_state @ weight.T + bias for x in (ids, doc))
        expected = (query_vecs @ doc_vecs.transpose(1, 2)).amax(dim=-1).sum(dim=-1)
    assert score(model, [SHORT], [LONG], precision="fp32") == pytest.approx(expected.numpy(), rel=1e-5)


def test_a_student_may_take_some_layers_of_a_published_one_and_settings_of_its_own(tmp_path, distil, tokenizer):
    torch.manual_seed(6)
    head = {"compressor.weight": torch.randn(48, 64), "compressor.bias": torch.randn(48)}
    folder = published(tmp_path / "c", "ColBERT", distil, tokenizer, **head)
    model = loading.load(folder, layers=(0, 2), settings={"masks": 3, "width": 48})
    assert model.settings.masks == 3 and len(model.encoder.transformer.layer) == model.encoder.config.n_layers == 2
    kept, first = (encoder.transformer.layer[row].ffn.lin1.weight for encoder, row in ((model.encoder, 1), (distil, 2)))
    assert torch.equal(kept, first)
    with pytest.raises(InputError, match="has token vectors of width 48, not 16"):
        loading.load(folder, settings={"width": 16})
    with pytest.raises(InputError, match="is a colbert and cannot be read as a bert_dot"):
        loading.load(folder, architecture="bert_dot")
    split = {"_classification_layer.weight": torch.randn(1, 64)}
    folder = published(tmp_path / "p", "PreTTR", distil, tokenizer, **split)
    assert loading.load(folder, layers=(0, 1), settings={"masks": 2}).settings.join_layer == 1


def test_published_cross_encoder(tmp_path, distil, tokenizer):
    torch.manual_seed(7)
    weight, bias = torch.randn(1, 64), torch.randn(1)
    head = {"_classification_layer.weight": weight, "_classification_layer.bias": bias}
    model = loading.load(published(tmp_path / "c", "BERT_Cat", distil, tokenizer, **head))
    assert isinstance(model, CrossEncoder) and model.max_len == 64  # 230, or the encoder's window
    assert loading.load(str(tmp_path / "c"), max_doc_len=20).max_len == 20
    ids = torch.tensor([tokenizer(SHORT, LONG)["input_ids"]])
    with torch.no_grad():
        expected = distil(input_ids=ids).last_hidden_state[:, 0] @ weight[0] + bias
    assert score(model, [SHORT], [LONG], precision="fp32") == pytest.approx(expected.numpy(), rel=1e-4)
    again = loading.load(str(saving.save(model, tmp_path / "ours")))  # leaves the house as an ordinary classifier
    assert score(again, [SHORT], [LONG], precision="fp32") == pytest.approx(expected.numpy(), rel=1e-4)


def prettr_by_hand(encoder, weight, query, doc, split):
    """The published notebook's forward: layers apart up to `split`, the document after the query's positions, then joined."""

    def embedded(ids, first):
        positions = torch.arange(first, first + ids.shape[1])
        table = encoder.embeddings
        return table.LayerNorm(table.word_embeddings(ids) + table.position_embeddings(positions))

    states = [embedded(query, 0), embedded(doc[:, 1:], query.shape[1])]
    for layer in encoder.transformer.layer[:split]:
        states = [layer(part) for part in states]
    joined = torch.cat(states, dim=1)
    for layer in encoder.transformer.layer[split:]:
        joined = layer(joined)
    return joined[:, 0] @ weight[0]


@pytest.mark.parametrize(
    ("prefix", "config"),
    [("bert_model.", {"model_type": "PreTTR"}), ("", {"model_type": "distilbert", "architectures": ["PreTTR"]})],
)
def test_published_prettr(tmp_path, tokenizer, prefix, config):
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(8)
    shape = DistilBertConfig(
        vocab_size=len(tokenizer), dim=64, n_layers=5, n_heads=1, hidden_dim=96, max_position_embeddings=64
    )
    encoder, weight = DistilBertModel(shape).eval(), torch.randn(1, 64)
    head = {"_classification_layer.weight": weight, f"{prefix}embeddings.position_ids": torch.arange(64)[None]}
    folder = published(tmp_path / "c", "", encoder, tokenizer, prefix, **head)
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    query, doc = tokenizer(SHORT)["input_ids"], tokenizer(LONG)["input_ids"]
    model = loading.load(folder, max_query_len=len(query))  # the notebook's query is not padded; ours is, to the longest
    assert (model.architecture, model.settings.join_layer, model.settings.masks) == ("prettr", 3, 8)
    assert torch.equal(model.head.weight, weight)
    ids = torch.tensor([query + [tokenizer.mask_token_id] * 8]), torch.tensor([doc])
    with torch.no_grad():
        expected = prettr_by_hand(encoder, weight, *ids, split=3)
    assert score(model, [SHORT], [LONG], precision="fp32") == pytest.approx(expected.numpy(), rel=1e-4)
    again = loading.load(str(saving.save(model, tmp_path / "ours")))
    assert score(again, [SHORT], [LONG], precision="fp32") == pytest.approx(expected.numpy(), rel=1e-4)


# The query, the passages and the scores printed in the notebooks beside the published checkpoints.
LIBRARY = "what is the transformers library"
PASSAGES = (
    "We are very happy to show you the \U0001f917 Transformers library for pre-trained language models. We are helping the "
    "community work together towards the goal of advancing NLP \U0001f525.",
    "Hmm I don't like this new movie about transformers that i got from my local library. Those transformers are robots?",
)
GOLDEN = {
    "distilbert-dot-margin_mse-t2": (108.8286, 99.5865),
    "colbert-distilbert-margin_mse-t2": (106.4638, 99.9970),
    "distilbert-cat-margin_mse-t2": (5.8997, 2.2803),
    "prettr-distilbert-margin_mse-t2": (5.6730, 1.3766),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_published_checkpoints_give_their_golden_scores_where_present(name):
    assert checkpoint_folder.KNOWN[name].hub.startswith("sebastian-hofstaetter/")
    try:
        checkpoint_folder.resolve(name)
    except InputError:
        pytest.skip(f"{name} is not on this machine; its scores would have to be {GOLDEN[name]}")
    lengths = {"max_query_len": 7} if name.startswith("prettr") else {}  # the notebook does not pad its query of 7 tokens
    model = loading.load(name, **lengths)
    found = score(model, [LIBRARY] * 2, PASSAGES, precision="fp32")
    assert found.tolist() == pytest.approx(GOLDEN[name], abs=1e-2)


# --------------------------------------------------------------------------------------------------- parameter counts


@pytest.mark.parametrize(
    ("shape", "millions"),
    [((12, 768, 3072), 109.5), ((6, 768, 3072), 66.96), ((4, 312, 1200), 14.35), ((3, 384, 1536), 17.39)],
)
def test_parameter_counts_of_the_papers_shapes(shape, millions):
    from transformers import BertConfig, BertForSequenceClassification

    layers, width, feed_forward = shape
    with torch.device("meta"):
        model = BertForSequenceClassification(
            BertConfig(num_hidden_layers=layers, hidden_size=width, intermediate_size=feed_forward, num_attention_heads=12)
        )
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)
