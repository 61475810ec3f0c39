"""Folders of sentence-transformers: vectors and scores as there, by torch and by OpenVINO, or refused in one line.

Checkpoints are tiny and random, and mostly saved by sentence-transformers itself.
"""

import json
import shutil

import numpy as np
import pytest
import torch

from pyserini_kd.models import checkpoint_folder, loading, rankers, saving
from pyserini_kd.storage.errors import InputError

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
TEXTS = ["cat", "the Cat eats hay and drinks water", "At night the dog sleeps in the barn " * 12, "horse, cow, sheep"]
FAMILIES = {
    "Bert": {}, "DistilBert": {}, "Roberta": {"pad_token_id": 0, "max_position_embeddings": 65}, "MPNet": {"pad_token_id": 0, "max_position_embeddings": 66},
    "Electra": {"embedding_size": 16}, "Albert": {"embedding_size": 16, "intermediate_size": 64}, "DebertaV2": {}, "ModernBert": {},
    "XLMRoberta": {"pad_token_id": 0, "max_position_embeddings": 65}, "Deberta": {},
}  # fmt: skip


def config_of(family, tokenizer, **more):
    import transformers

    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, **SHAPE, **FAMILIES[family], **more}
    if family == "DistilBert":
        shape |= {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
    if family in ("Deberta", "DebertaV2"):
        shape |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
    if family == "ModernBert":
        shape |= {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    return getattr(transformers, f"{family}Config")(**shape)


def save_network(folder, tokenizer, family="Bert", task="Model", seed=0, **more):
    """A random network of transformers with its tokenizer."""
    import transformers

    torch.manual_seed(seed)
    getattr(transformers, f"{family}{task}")(config_of(family, tokenizer, **more)).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_sentence(folder, tokenizer, *behind, pooling="mean", **more):
    """A folder saved by SentenceTransformer: a network, Pooling and the modules `behind`; `more` as for SentenceTransformer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(1)
    first = Transformer(str(save_network(folder.parent / "network", tokenizer)))
    model = SentenceTransformer(modules=[first, Pooling(32, pooling), *behind], device="cpu", **more)
    model.save(str(folder))
    return folder


def edit(path, **changes):
    record = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({name: value for name, value in {**record, **changes}.items() if value != "GONE"}))


def check(folder, texts=TEXTS):
    """Both paths give the vectors of sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    for backend in ("torch", "openvino"):
        ours = rankers.load(str(folder), backend=backend, precision="fp32")
        assert ours.backend == backend
        assert np.allclose(ours.encode_queries(texts), theirs.encode_query(texts), atol=1e-4), backend
        assert np.allclose(ours.encode_docs(texts), theirs.encode_document(texts), atol=1e-4), backend
        assert ours.encode_docs(texts).shape[1] == ours.width
    return theirs


def check_pairs(folder):
    """Both paths give the logits of CrossEncoder. For two labels, they give the difference of the logits."""
    from sentence_transformers import CrossEncoder

    theirs = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    pairs = [(query, doc) for query in TEXTS for doc in TEXTS[::-1]]
    logits = theirs.predict(pairs, activation_fn=torch.nn.Identity())
    expected = logits[:, 1] - logits[:, 0] if logits.ndim == 2 else logits
    for backend in ("torch", "openvino"):
        ours = rankers.load(str(folder), backend=backend, precision="fp32")
        assert (ours.backend, ours.architecture) == (backend, "cross_encoder")
        assert np.allclose(ours.score(*zip(*pairs, strict=True)), expected, atol=1e-4), backend


def refused(folder, message):
    for backend in ("torch", "openvino"):
        with pytest.raises(InputError, match=message) as caught:
            rankers.load(str(folder), backend=backend, precision="fp32")
        assert "\n" not in str(caught.value)


MODES = ["cls", "mean", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens", ("lasttoken", "max"),
         ("cls", "mean", "weightedmean")]  # fmt: skip


@pytest.mark.parametrize("modes", MODES, ids=str)
def test_poolings(tmp_path, tokenizer, modes):
    folder = save_sentence(tmp_path / "st", tokenizer, pooling=modes)
    check(folder)
    again = saving.save(loading.load(str(folder)), tmp_path / "again")
    assert np.allclose(check(again).encode(TEXTS), check(folder).encode(TEXTS), atol=1e-5)


OLD = ["cls_token", "mean_tokens", "max_tokens", "lasttoken", "weightedmean_tokens", "mean_sqrt_len_tokens"]


@pytest.mark.parametrize("names", [*([name] for name in OLD), ["lasttoken", "cls_token"], []], ids=str)
def test_old_names_of_poolings(tmp_path, tokenizer, names):
    folder = save_sentence(tmp_path / "st", tokenizer)
    old = {f"pooling_mode_{name}": name in names for name in OLD}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **old}))
    check(folder)


@pytest.mark.parametrize("most", [None, 20, 12])
@pytest.mark.parametrize("tokenizers", [8, 40, "GONE"])
def test_texts_are_cut_where_the_checkpoint_says(tmp_path, tokenizer, most, tokenizers):
    folder = save_sentence(tmp_path / "st", tokenizer)
    edit(folder / "tokenizer_config.json", model_max_length=tokenizers)
    edit(folder / "sentence_bert_config.json", max_seq_length=most)
    check(folder)
    edit(folder / "sentence_bert_config.json", query_length=7, document_length=9)
    check(folder)


def test_lower_casing_is_that_of_the_sentence_config(tmp_path, corpus):
    from transformers import BertTokenizer

    words = sorted({word for doc in corpus for word in doc.contents.lower().split()})
    vocab = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    folder = save_sentence(tmp_path / "st", BertTokenizer(vocab=vocab, do_lower_case=False))
    plain = check(folder).encode(["The Cat"])
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    lower = check(folder).encode(["The Cat"])
    assert not np.allclose(lower, plain)
    again = saving.save(loading.load(str(folder)), tmp_path / "again")
    assert np.allclose(check(again).encode(["The Cat"]), lower, atol=1e-5)
    student = saving.save(loading.load(str(folder), architecture="colbert"), tmp_path / "colbert")
    assert np.array_equal(*(rankers.load(str(student)).encode_docs([text])[0] for text in ("The Cat", "the cat")))


@pytest.mark.parametrize("config", [
    {"prompts": {"query": "what the "}},
    {"prompts": {"query": "what ", "document": "the cat "}, "default_prompt_name": "document"},
    {"prompts": {"passage": "the ", "corpus": "hay "}},
    {"prompts": {"other": "the "}, "default_prompt_name": "other"},
    {"prompts": {"query": None}},
    {"prompts": {}, "similarity_fn_name": "cosine"},
])  # fmt: skip
def test_prompts(tmp_path, tokenizer, config):
    folder = save_sentence(tmp_path / "st", tokenizer)
    edit(folder / "config_sentence_transformers.json", **config)
    check(folder)


@pytest.mark.parametrize("activation", ["Tanh", "Identity", "ReLU", "Sigmoid"])
def test_dense_layers_and_normalize(tmp_path, tokenizer, activation):
    from sentence_transformers.sentence_transformer.modules import Dense, Dropout, Normalize

    made = getattr(torch.nn, activation)()
    behind = [Dropout(0.5), Dense(64, 24, bias=activation != "ReLU", activation_function=made), Dense(24, 8), Normalize()]
    folder = save_sentence(tmp_path / "st", tokenizer, *behind, pooling=("mean", "max"))
    check(folder)
    again = saving.save(loading.load(str(folder)), tmp_path / "again")
    assert np.allclose(check(again).encode(TEXTS), check(folder).encode(TEXTS), atol=1e-5)
    if activation == "Tanh":
        torch.save(
            {"linear.weight": torch.ones(24, 64), "linear.bias": torch.ones(24)}, folder / "3_Dense" / "pytorch_model.bin"
        )
        (folder / "3_Dense" / "model.safetensors").unlink()
        check(folder)


def test_an_old_layout_has_the_network_in_a_folder(tmp_path, tokenizer):
    folder = save_sentence(tmp_path / "st", tokenizer, pooling="cls")
    first = folder / "0_Transformer"
    first.mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        if path.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
            path.rename(first / path.name)
    (first / "sentence_bert_config.json").rename(first / "sentence_distilbert_config.json")
    edit(first / "sentence_distilbert_config.json", max_seq_length=11)
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(listed))
    check(folder)
    assert checkpoint_folder.fingerprint(folder)
    kind = "sentence_transformers.models.Transformer"
    (folder / "modules.json").write_text(json.dumps([{**listed[0], "type": kind}, *listed[1:]]))
    check(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path, tokenizer, family):
    """Encoders are compared with mean pooling there. Classifiers have one or two labels."""
    from sentence_transformers import SentenceTransformer

    folder = save_network(tmp_path / "encoder", tokenizer, family)
    edit(folder / "tokenizer_config.json", model_max_length=64)
    model = SentenceTransformer(str(folder), device="cpu")
    model.save(str(tmp_path / "st"))
    check(tmp_path / "st")
    for labels in (1, 2):
        pairs = save_network(tmp_path / f"pairs{labels}", tokenizer, family, "ForSequenceClassification", num_labels=labels)
        edit(pairs / "tokenizer_config.json", model_max_length=64)
        check_pairs(pairs)


@pytest.mark.parametrize("classes", ["GONE", None, ["BertModel"], ["BertForMaskedLM"]], ids=str)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_classifier_is_a_cross_encoder_whatever_the_config_says(tmp_path, tokenizer, classes, kind):
    folder = save_network(tmp_path / "pairs", tokenizer, task="ForSequenceClassification", num_labels=2)
    edit(folder / "config.json", architectures=classes)
    edit(folder / "tokenizer_config.json", model_max_length=64)
    if kind == "bin":
        from safetensors.torch import load_file

        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    assert checkpoint_folder.architecture_of(folder) == "cross_encoder"
    expected = save_network(tmp_path / "same", tokenizer, task="ForSequenceClassification", num_labels=2)
    pair = ["cat"], ["the cat eats hay"]
    assert rankers.load(str(folder)).score(*pair) == pytest.approx(rankers.load(str(expected)).score(*pair), abs=1e-6)


def test_cross_encoders_saved_there(tmp_path, tokenizer):
    from sentence_transformers import CrossEncoder

    folder = save_network(tmp_path / "pairs", tokenizer, task="ForSequenceClassification", num_labels=1)
    CrossEncoder(str(folder), device="cpu", max_length=24).save_pretrained(str(tmp_path / "st"))
    check_pairs(tmp_path / "st")
    about = tmp_path / "st" / "config_sentence_transformers.json"
    edit(about, prompts={"q": "the "}, default_prompt_name="q")
    refused(tmp_path / "st", "a default prompt of a cross-encoder is not supported")


@pytest.mark.parametrize("form", ["sharded", "float16", "bfloat16", "gamma and beta", "torch", "with a prefix"])
def test_forms_of_weights(tmp_path, tokenizer, form):
    from safetensors.torch import load_file, save_file
    from transformers import AutoModel

    folder = save_sentence(tmp_path / "st", tokenizer)
    path = folder / "model.safetensors"
    if form == "sharded":
        AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
        path.unlink(missing_ok=True)
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    elif form.startswith(("float", "bfloat")):
        AutoModel.from_pretrained(folder).to(getattr(torch, form)).save_pretrained(folder)
    else:
        tensors = load_file(path)
        if form == "gamma and beta":
            old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
            tensors = {next((n.replace(a, b) for a, b in old.items() if a in n), n): t for n, t in tensors.items()}
            assert any("gamma" in name for name in tensors)
        if form == "with a prefix":
            tensors = {f"bert.{name}": tensor for name, tensor in tensors.items()}
        path.unlink()
        if form == "torch":
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            save_file(tensors, path, metadata={"format": "pt"})
    check(folder)


@pytest.mark.parametrize("task", ["Model", "ForSequenceClassification", "ForMaskedLM"])
@pytest.mark.parametrize("lost", ["encoder.layer.1.attention.self.query.weight", "all", "classifier.weight"])
def test_missing_weights_are_named(tmp_path, tokenizer, task, lost):
    from safetensors.torch import load_file, save_file

    folder = save_network(tmp_path / "network", tokenizer, task=task, num_labels=1)
    tensors = load_file(folder / "model.safetensors")
    if lost == "all":
        tensors = {f"encoder_model.{name}": tensor for name, tensor in tensors.items()}
    else:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(lost)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if lost == "classifier.weight" and task != "ForSequenceClassification":
        return
    with pytest.raises(InputError, match="lacks weights that a Bert.* needs: .*" + ("and .* more" if lost == "all" else lost)):
        rankers.load(str(folder))
    if task == "Model":
        with pytest.raises(InputError, match="lacks weights"):
            loading.load(str(folder), architecture="cross_encoder")


def set_module(folder, number, **changes):
    listed = json.loads((folder / "modules.json").read_text())
    listed[number] |= changes
    (folder / "modules.json").write_text(json.dumps(listed))


ABOUT, TEXT, POOLING = "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json"


@pytest.mark.parametrize(("file", "change", "message"), [
    (ABOUT, {"truncate_dim": 8}, "`truncate_dim` of config_sentence_transformers.json is not supported"),
    (ABOUT, {"similarity_fn_name": "euclidean"}, "similarity euclidean is not supported"),
    (ABOUT, {"default_prompt_name": "nowhere"}, "default_prompt_name 'nowhere' is not among the prompts"),
    (ABOUT, {"model_type": "MultiVectorEncoder"}, "a MultiVectorEncoder of sentence-transformers is not supported"),
    ("adapter_config.json", {"peft_type": "LORA"}, "a PEFT adapter .* is not supported"),
    (TEXT, {"query_expansion": {"length": 32}}, "`query_expansion` of sentence_bert_config.json is not supported"),
    (TEXT, {"tokenizer_args": {"do_lower_case": True}}, "`tokenizer_args` of sentence_bert_config.json .* is not supported"),
    (POOLING, {"include_prompt": False}, "pooling without the prompt .* is not supported"),
    (POOLING, {"pooling_mode": "median"}, "pooling median is not supported"),
    ("2_Dense/config.json", {"activation_function": "torch.nn.GELU"}, "activation torch.nn.GELU of module Dense is not supported"),
    ("2_Dense/config.json", {"module_output_name": "other"}, "a Dense module on other, sentence_embedding.* is not supported"),
    ("tokenizer_config.json", {"truncation_side": "left"}, "cuts the beginning of long texts .* is not supported"),
])  # fmt: skip
def test_other_settings_are_refused(tmp_path, tokenizer, file, change, message):
    from sentence_transformers.sentence_transformer.modules import Dense

    folder = save_sentence(tmp_path / "st", tokenizer, Dense(32, 8))
    check(folder, TEXTS[:1])  # its OpenVINO files are there now, and must not hide the change
    edit(folder / file, **change)
    refused(folder, message)


@pytest.mark.parametrize(("number", "kind", "message"), [
    (2, "sentence_transformers.models.LSTM", "module LSTM is not supported"),
    (2, "my_code.Dense", "module my_code.Dense, whose code is not in sentence-transformers, is not supported"),
    (0, "sentence_transformers.models.StaticEmbedding", "first module StaticEmbedding is not supported"),
    (1, "sentence_transformers.models.Normalize", "the order of modules Transformer, Normalize, Dense"),
])  # fmt: skip
def test_other_modules_are_refused(tmp_path, tokenizer, number, kind, message):
    from sentence_transformers.sentence_transformer.modules import Dense

    folder = save_sentence(tmp_path / "st", tokenizer, Dense(32, 8))
    set_module(folder, number, type=kind)
    refused(folder, message)


def test_dot_products_of_a_model_for_cosine_get_a_warning(tmp_path, tokenizer, caplog):
    from sentence_transformers.sentence_transformer.modules import Normalize

    folder = save_sentence(tmp_path / "st", tokenizer, similarity_fn_name="cosine")
    theirs = check(folder)
    assert "compares by cosine and has no Normalize" in caplog.text
    caplog.clear()
    unit = rankers.load(str(folder), l2_norm=True, precision="fp32")
    expected = theirs.similarity(theirs.encode_query(TEXTS), theirs.encode_document(TEXTS)).numpy()
    assert np.allclose(unit.score(TEXTS, TEXTS), expected.diagonal(), atol=1e-4)
    check(save_sentence(tmp_path / "unit", tokenizer, Normalize(), similarity_fn_name="cosine"))
    check(save_sentence(tmp_path / "dot", tokenizer, similarity_fn_name="dot"))
    assert "cosine" not in caplog.text


def test_a_router_is_refused_with_the_names_of_its_parts(tmp_path, tokenizer):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    network = str(save_network(tmp_path / "network", tokenizer))
    sides = ([Transformer(network), Pooling(32)] for _ in range(2))
    router = Router.for_query_document(*sides)
    SentenceTransformer(modules=[router, Normalize()], device="cpu").save(str(tmp_path / "st"))
    refused(tmp_path / "st", "a Router, which is not supported; name one of its parts instead: .*document_0_Transformer, ")
    assert len(rankers.load(str(tmp_path / "st" / "query_0_Transformer")).encode_queries(TEXTS)) == len(TEXTS)


def test_a_tokenizer_in_python_only_is_refused(tmp_path, tokenizer):
    folder = save_network(tmp_path / "phobert", tokenizer, "Roberta", max_position_embeddings=66)
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "vocab.txt").write_text("cat 10\ndog 9\n")
    (folder / "bpe.codes").write_text("c a 10\n")
    edit(folder / "tokenizer_config.json", tokenizer_class="PhobertTokenizer")
    with pytest.raises(InputError, match="tokenizer PhobertTokenizer, which exists in Python only, is not supported"):
        rankers.load(str(folder))


def stanford(folder, tokenizer, **about):
    """A checkpoint in the layout of Stanford's ColBERT."""
    from safetensors.torch import load_file, save_file

    save_network(folder, tokenizer)
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors | {"linear.weight": torch.randn(8, 32)}, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "config.json", architectures=["HF_ColBERT"])
    (folder / "artifact.metadata").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("about", [{}, {"attend_to_mask_tokens": True, "mask_punctuation": False, "query_maxlen": 12}], ids=str)
def test_stanford_s_colbert(tmp_path, corpus, about):
    """Compare with a direct transcription of its `query`, `doc` and MaxSim."""
    import string

    from transformers import BertModel, BertTokenizer

    words = sorted({word for doc in corpus for word in doc.contents.lower().split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]", *".,!?-"]
    tokenizer = BertTokenizer(vocab={word: n for n, word in enumerate([*special, *words])})
    given = {"query_maxlen": 16, "doc_maxlen": 24, "query_token_id": "[unused0]", "doc_token_id": "[unused1]", **about}
    folder = stanford(tmp_path / "colbert", tokenizer, **given)
    from safetensors.torch import load_file

    linear = load_file(folder / "model.safetensors")["linear.weight"]
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()

    def vectors(text, longest, marker, query):
        found = tokenizer([f". {text}"], padding="max_length" if query else False, truncation=True, max_length=longest,
                          return_tensors="pt")  # fmt: skip
        ids, mask = found["input_ids"], found["attention_mask"]
        ids[:, 1] = tokenizer.convert_tokens_to_ids(marker)
        if query:
            ids[ids == 0] = tokenizer.mask_token_id
            mask[ids == tokenizer.mask_token_id] = int(given.get("attend_to_mask_tokens", False)) or 0
        with torch.no_grad():
            states = bert(ids, attention_mask=mask).last_hidden_state[0] @ linear.T
        skip = [tokenizer.convert_tokens_to_ids(sign) for sign in string.punctuation] if not query else []
        keep = [token not in skip or not given.get("mask_punctuation", True) for token in ids[0].tolist()]
        return torch.nn.functional.normalize(states[keep], dim=-1)

    queries, docs = ["cat", "what the dog, eats?"], ["the cat eats hay, and drinks water.", "dog " * 40, "cow - hay!"]
    pairs = [(query, doc) for query in queries for doc in docs]
    expected = [
        float((vectors(q, given["query_maxlen"], "[unused0]", True) @ vectors(d, 24, "[unused1]", False).T).amax(1).sum())
        for q, d in pairs
    ]
    again = saving.save(loading.load(str(folder)), tmp_path / "again")
    for name in (folder, again):
        for backend in ("torch", "openvino"):
            ours = rankers.load(str(name), backend=backend, precision="fp32")
            assert ours.architecture == "colbert" and ours.width == 8
            assert np.allclose(ours.score(*zip(*pairs, strict=True)), expected, atol=1e-4), (name, backend)
    model = loading.load(str(folder))
    batch = model.pair_batch(queries, docs, [(0, 0), (1, 1), (1, 2)])
    with torch.no_grad():
        assert np.allclose(model.pair_scores(batch), [expected[0], expected[4], expected[5]], atol=1e-4)


def test_a_colbert_without_its_projection_or_with_another_similarity(tmp_path, tokenizer):
    folder = stanford(tmp_path / "colbert", tokenizer, similarity="l2")
    refused(folder, "similarity 'l2' is not supported; only 'cosine' is")
    shutil.copy(save_network(tmp_path / "network", tokenizer) / "model.safetensors", folder)
    (folder / "artifact.metadata").unlink()
    refused(folder, "lacks weights that a ColBERT needs: linear.weight")
