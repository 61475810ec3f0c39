"""Stored representations score as fresh ones do, and only with the checkpoint that made them."""

import numpy as np
import pytest
import torch
from conftest import tiny_config

from pyserini_kd import index, inference, rerank, token_index
from pyserini_kd.files import InputError
from pyserini_kd.models import checkpoints
from pyserini_kd.models.colbert import ColBert, ColBertSettings
from pyserini_kd.models.prettr import PreTtr, PreTtrSettings
from pyserini_kd.models.tk import Tk, TkSettings
from pyserini_kd.runs import Run

LENGTHS = {"max_query_len": 12, "max_doc_len": 24}
NAMES = ["colbert", "prettr", "tk"]


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """A saved checkpoint of each architecture."""
    from transformers import BertModel

    torch.manual_seed(9)
    encoder = BertModel(tiny_config(tokenizer), add_pooling_layer=False)
    models = [
        ColBert(encoder, tokenizer, ColBertSettings(masks=8, width=16, **LENGTHS)),
        PreTtr(encoder, tokenizer, PreTtrSettings(join_layer=1, **LENGTHS)),
        Tk(torch.randn(len(tokenizer), 20), tokenizer, TkSettings(heads=4, feed_forward=24, **LENGTHS)),
    ]
    root = tmp_path_factory.mktemp("students")
    return {model.architecture: checkpoints.save(model, root / model.architecture) for model in models}


@pytest.mark.parametrize(("dtype", "atol"), [("fp32", 1e-4), ("fp16", 5e-2)])
@pytest.mark.parametrize("name", NAMES)
def test_stored_scores_are_fresh_scores(saved, name, dtype, atol, corpus, queries, tmp_path):
    model = token_index.load_model(str(saved[name]), name)
    assert token_index.build(corpus, model, saved[name], tmp_path / "i", dtype=dtype, precision="fp32") == len(corpus)
    stored = token_index.TokenIndex.load(tmp_path / "i")
    pairs = [(query.text, doc) for query in queries[:3] for doc in reversed(corpus)]
    texts = [text for text, _ in pairs]
    fresh = inference.score(model, texts, [doc.contents for _, doc in pairs], precision="fp32")
    found = token_index.score(stored, model, texts, [doc.doc_id for _, doc in pairs], precision="fp32")
    assert np.ptp(fresh) > 10 * 1e-4  # or the comparison would say nothing
    np.testing.assert_allclose(found, fresh, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_commands(saved, name, files, corpus, queries, invoke, tmp_path):
    folder, run_path = tmp_path / "stored", tmp_path / "run.txt"
    Run.from_scores("bm25", {"q0": {doc.doc_id: 1.0 for doc in corpus}}).write(run_path)
    words = ["--collection", files["docs"], "--encoder", saved[name], "--for", name, "--dtype", "fp32", "--precision", "fp32"]
    result = invoke(index.main, *words, "--index", folder)
    assert result.exit_code == 0, result.output
    common = ["--run", run_path, "--encoder", saved[name], "--topics", files["topics"], "--precision", "fp32"]
    for source, output in ((["--index", folder], "stored.txt"), (["--collection", files["docs"]], "fresh.txt")):
        result = invoke(rerank.main, *common, *source, "--output", tmp_path / output)
        assert result.exit_code == 0, result.output
    a, b = (Run.read(tmp_path / f)["q0"] for f in ("stored.txt", "fresh.txt"))
    scores = dict(zip(b.doc_ids, b.scores, strict=True))
    assert list(a.scores) == pytest.approx([scores[doc_id] for doc_id in a.doc_ids], abs=1e-4)


def test_refusals(saved, corpus, tmp_path):
    model = token_index.load_model(str(saved["colbert"]), "colbert")
    token_index.build(corpus, model, saved["colbert"], tmp_path / "i")
    stored = token_index.TokenIndex.load(tmp_path / "i")
    with pytest.raises(InputError, match="sha256 is"):
        token_index.check_encoder(stored, model, saved["prettr"])
    shorter = token_index.load_model(str(saved["colbert"]), "colbert", max_doc_len=10)
    with pytest.raises(InputError, match="max_doc_len is 10, the index was made with 24"):
        token_index.check_encoder(stored, shorter, saved["colbert"])
    with pytest.raises(InputError, match="1 documents are not in the index .* e.g. nope"):
        token_index.score(stored, model, ["cat"], ["nope"])
    with pytest.raises(InputError, match="is a colbert; its documents cannot be stored for a prettr"):
        token_index.load_model(str(saved["colbert"]), "prettr")
    with pytest.raises(InputError, match="no documents"):
        token_index.build([], model, saved["colbert"], tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    (tmp_path / "i" / "docid").write_text("one\n")
    with pytest.raises(InputError, match="does not fit"):
        token_index.TokenIndex.load(tmp_path / "i")
