"""Training of FAISS indexes: equal to FAISS's own, reproducible, without its warnings."""

import faiss
import numpy as np
import pytest

from pyserini_kd.retrieval import faiss_kinds

WIDTH = 16


@pytest.fixture(autouse=True)
def one_thread():
    """FAISS with one thread."""
    faiss.omp_set_num_threads(1)


@pytest.fixture
def sample():
    """Vectors around 40 points."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((40, WIDTH))
    return (points[rng.integers(40, size=1500)] + 0.3 * rng.standard_normal((1500, WIDTH))).astype(np.float32)


def trained(kind, sample):
    index = faiss_kinds.new(WIDTH, kind)
    faiss_kinds.train(index, sample)
    assert index.is_trained
    return index


KINDS = ["OPQ4,PQ4x4", "OPQ2_8,PQ2x4", "OPQ4_32,PQ4x4", "RR8,OPQ4,SQ8", "IVF8,Flat", "IVF8,SQ8", "OPQ4,IVF8,PQ4x4"]
KINDS += ["IVF8_HNSW4,Flat", "OPQ4,IVF8,PQ4x4,RFlat"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_equals_faiss_bit_for_bit(sample, kind, capfd):
    ours, theirs = trained(kind, sample), faiss_kinds.new(WIDTH, kind)
    assert "WARNING" not in "".join(capfd.readouterr())
    theirs.train(sample)
    assert np.array_equal(faiss.serialize_index(ours), faiss.serialize_index(theirs))


def test_the_graph_over_lists_does_not_depend_on_threads(sample):
    one = trained("IVF32_HNSW4,Flat", sample)
    faiss.omp_set_num_threads(3)
    several = trained("IVF32_HNSW4,Flat", sample)
    graphs = [faiss.downcast_index(faiss_kinds.inner_index(index).quantizer).hnsw for index in (one, several)]
    levels, links = ([faiss.vector_to_array(getattr(graph, name)) for graph in graphs] for name in ("levels", "neighbors"))
    assert np.array_equal(*levels) and links[0].shape == links[1].shape


def test_a_quantised_coarse_index_is_trained_by_faiss(sample):
    index = trained("IVF8(SQ8),Flat", sample)  # a quantised coarse index
    assert np.array_equal(index.sa_decode(index.sa_encode(sample)), sample)
