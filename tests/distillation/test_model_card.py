"""The model card beside a trained checkpoint: its code runs, its figures are those of training.json."""

import re

import numpy as np
import pytest
import yaml

from pyserini_kd.data.types import Query
from pyserini_kd.distillation.model_card import WHAT, model_card
from pyserini_kd.models import load, loading
from pyserini_kd.models.checkpoint_folder import ARCHITECTURES
from pyserini_kd.retrieval.impact_build import index_impacts
from pyserini_kd.retrieval.impact_index import ImpactIndex
from tests.models.test_splade import masked_lm

RECORD = {
    "recipe": {
        "name": "margin-mse",
        "source": "Hofstätter et al. 2020, arXiv 2010.02666, section 3",
        "start": "any checkpoint",
    },
    "config": {"metric": "RR@10", "init": "minilm", "layers": [0, 3, 5], "seed": 7},
    "made_from": {"init": "ab" * 32},
    "data": {"queries": 12, "pairs": 48, "texts": 0, "collection": "docs.jsonl", "scores_sha256": "cd" * 32},
    "stages": [
        {"name": "scores", "losses": {"margin_mse": 1.0, "in_batch": 0.1}, "steps": 3, "lr": 1e-4, "dev": []},
    ],
    "precision": "fp32",
}
DEV = [{"step": 1, "RR@10": 0.25}, {"step": 2, "RR@10": 0.5}, {"step": 3, "RR@10": 0.375}]


def python_of(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_the_card_says_what_the_training_record_says(tiny_dot):
    module = loading.load(str(tiny_dot))
    card = model_card("models/student", module, RECORD)
    head, body = card.split("---\n")[1:3]
    assert yaml.safe_load(head)["library_name"] == "sentence-transformers"
    assert "# models/student\n" in body and "Start: `minilm` (sha256 abababababab...)" in body
    assert "Layers taken from the start: [0, 3, 5]" in body and "seed 7" in body
    assert "1.0 x margin_mse + 0.1 x in_batch; 3 steps, learning rate 0.0001" in body
    assert "queries 12, pairs 48, texts 0, collection docs.jsonl" in body and "cdcd" not in body
    assert f"{sum(w.numel() for w in module.parameters()) / 1e6:.1f} million parameters" in body
    assert "No dev topics were given" in body
    assert card == model_card("models/student", module, RECORD)  # same training, same bytes
    assert "\n\n\n" not in card


def test_the_measure_is_the_best_of_the_checks(tiny_dot):
    record = {**RECORD, "stages": [{**RECORD["stages"][0], "dev": DEV}], "data": {**RECORD["data"], "dev_topics": "dev.tsv"}}
    card = model_card("x", loading.load(str(tiny_dot)), record)
    assert "RR@10 on the dev topics `dev.tsv`, best of 3 checks: 0.5000." in card and "it is optimistic" in card


def test_the_code_of_a_bi_encoder_runs(tiny_dot):
    encoder = load(str(tiny_dot), precision="fp32")
    names = {}
    exec(python_of(model_card(str(tiny_dot), loading.load(str(tiny_dot)), RECORD))[0], names)
    expected = encoder.encode_queries(["a query"]) @ encoder.encode_docs(["a document"]).T
    np.testing.assert_allclose(names["scores"].numpy(), expected, rtol=1e-4)


def test_the_code_of_a_cross_encoder_runs(tiny_cross):
    scorer = load(str(tiny_cross), precision="fp32")
    names = {}
    exec(python_of(model_card(str(tiny_cross), loading.load(str(tiny_cross)), RECORD))[0], names)
    np.testing.assert_allclose(names["scores"], scorer.score(["a query"], ["a document"]), rtol=1e-4, atol=1e-5)


def test_the_code_of_a_splade_runs(tmp_path, tokenizer, corpus):
    folder = masked_lm(tokenizer, tmp_path / "student")
    encoder = load(str(folder), precision="fp32")
    card = model_card(str(folder), loading.load(str(folder)), RECORD)
    assert yaml.safe_load(card.split("---\n")[1])["pipeline_tag"] == "feature-extraction"
    assert f"sparse vectors of {len(tokenizer)} numbers" in card
    sparse, pyserini = python_of(card)
    names = {}
    exec(sparse, names)
    scores = names["scores"].to_dense() if names["scores"].is_sparse else names["scores"]
    np.testing.assert_allclose(scores.numpy()[0], encoder.score(["a query"], ["a document"]), rtol=1e-4)
    index_impacts(corpus, encoder, tmp_path / "index")
    exec(pyserini.replace("INDEX", str(tmp_path / "index")).replace("a query", "the pig eats hay"), names)
    run = ImpactIndex.open(tmp_path / "index", precision="fp32").search([Query("1", "the pig eats hay")], hits=10)
    assert run["1"].doc_ids and [hit.docid for hit in names["hits"]] == run["1"].doc_ids


def test_an_encoder_of_text_is_no_ranker(tiny_dot):
    card = model_card("models/lm", loading.load(str(tiny_dot)), RECORD, is_ranker=False)
    assert "It is no ranker yet" in card and "library_name: transformers" in card


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_a_sentence(architecture):
    assert WHAT[architecture].endswith(".")
