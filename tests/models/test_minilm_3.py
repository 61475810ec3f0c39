"""`minilm-3`: put together from MiniLM's embeddings and the package's layers; close to MiniLM; opened by sentence-transformers."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from pyserini_kd.models import checkpoint_folder, minilm_3
from pyserini_kd.models.rankers import load_encoder

TEXTS = [
    "Paris is the capital of France.", "The capital of France is Paris.", "How do I sort a list in Python?",
    "sorted() returns a new list from the items of an iterable.", "The printer in the office shows an error.",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSERINI_KD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield minilm_3.folder(checkpoint_folder.resolve("minilm"))


def test_embeddings_are_minilms_and_layers_are_the_packages(folder):
    found, minilm = (
        load_file(folder / "model.safetensors"),
        load_file(checkpoint_folder.resolve("minilm") / "model.safetensors"),
    )
    layers = load_file(minilm_3.WEIGHTS)
    assert found.keys() == {name for name in minilm if "embeddings" in name} | layers.keys()
    for name, weights in found.items():
        expected = layers[name].astype(np.float32) if name in layers else minilm[name]
        np.testing.assert_array_equal(weights, expected)


def test_its_vectors_are_close_to_minilms(folder):
    ours, theirs = (
        load_encoder(str(name), precision="fp32", backend="torch").encode_docs(TEXTS) for name in (folder, "minilm")
    )
    assert (ours * theirs).sum(axis=1).min() > 0.85
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    assert (ours[0] @ ours.T).argsort()[-2] == 1 and (ours[2] @ ours.T).argsort()[-2] == 3


def test_sentence_transformers_gives_the_same_vectors(folder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    ours = load_encoder(str(folder), precision="fp32", backend="torch").encode_docs(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_the_second_call_makes_nothing(folder):
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert checkpoint_folder.architecture_of(folder) == "bert_dot"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSERINI_KD_CACHE", str(folder.parents[2]))
        assert minilm_3.folder(checkpoint_folder.resolve("minilm")) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
