"""Query vectors kept on request: encoded once, the same bytes again, never another encoder's."""

import numpy as np
import pytest

from pyserini_kd import search
from pyserini_kd.models import rankers
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.retrieval.query_cache import QueryCache
from tests.conftest import as_ranker


@pytest.fixture
def words(tmp_path, dense_index, tiny_dot, files):
    return ["--index", dense_index, "--encoder", tiny_dot, "--topics", files["topics"], "--query-cache", tmp_path / "cache"]


@pytest.fixture
def encoded(monkeypatch):
    """How many queries each call encodes."""
    calls, encode = [], rankers.Encoder.encode_queries

    def counting(self, texts, *args, **kwargs):
        calls.append(len(texts))
        return encode(self, texts, *args, **kwargs)

    monkeypatch.setattr(rankers.Encoder, "encode_queries", counting)
    return calls


def test_a_second_search_encodes_nothing_and_writes_the_same_bytes(invoke, words, encoded, tmp_path):
    for name in ("once", "twice"):
        result = invoke(search.main, *words, "--output", tmp_path / name)
        assert result.exit_code == 0, result.output
    plain = invoke(search.main, *words[:-2], "--output", tmp_path / "plain")
    assert plain.exit_code == 0 and encoded == [10, 10]
    assert (tmp_path / "once").read_bytes() == (tmp_path / "twice").read_bytes() == (tmp_path / "plain").read_bytes()
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_only_new_queries_are_encoded(invoke, words, encoded, tmp_path):
    (tmp_path / "more.tsv").write_text("1\twhat the cat eats\n2\tthe hen\n3\tthe hen\n4\t \n")
    assert invoke(search.main, *words, "--output", tmp_path / "a").exit_code == 0
    assert invoke(search.main, *words, "--topics", tmp_path / "more.tsv", "--output", tmp_path / "b").exit_code == 0
    assert encoded == [10, 1]


@pytest.mark.parametrize(
    "other",
    [
        ["--query-prefix", "query: "],
        ["--max-length", 8],
        ["--precision", "bf16"],
        ["--pooling", "cls", "--ignore-encoder-mismatch"],
    ],
)
def test_what_a_vector_depends_on_tells_caches_apart(invoke, words, encoded, tmp_path, other):
    assert invoke(search.main, *words, "--precision", "fp32", "--output", tmp_path / "a").exit_code == 0
    result = invoke(search.main, *words, "--precision", "fp32", *other, "--output", tmp_path / "b")
    assert result.exit_code == 0 and encoded == [10, 10], result.output
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_vectors_come_back_in_the_order_asked(tmp_path, tiny_dot):
    cache = QueryCache.of(tmp_path / "x", as_ranker(load_encoder(str(tiny_dot)), str(tiny_dot), precision="fp32"))

    def encode(texts):
        return np.array([[len(text), 0.1] for text in texts], np.float32).reshape(-1, 2)

    assert cache.encode([], encode).shape == (0, 2) and not cache.path.exists()
    assert cache.encode(["a", "ccc", "a"], encode)[:, 0].tolist() == [1, 3, 1]
    assert cache.encode(["bb", "ccc", "a"], encode)[:, 0].tolist() == [2, 3, 1]
    assert np.array_equal(cache.encode(["bb", "a"], lambda texts: pytest.fail("known")), encode(["bb", "a"]))
    assert [path.name for path in (tmp_path / "x").iterdir()] == [cache.path.name]
    with pytest.raises(KeyboardInterrupt):
        cache.encode(["new"], lambda texts: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cache.encode(["a"], encode).tolist() == [[1, np.float32(0.1)]]
