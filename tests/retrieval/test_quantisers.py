"""Training in rounds: what FAISS itself learns, and the same bytes however often it is cut short."""

import faiss
import numpy as np
import pytest

from pyserini_kd.retrieval import faiss_kinds, faiss_training

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


def untrained(kind):
    index = faiss_kinds.new(WIDTH, kind)
    inner = faiss_kinds.inner_index(index)
    for part in (inner, getattr(inner, "pq", None)):
        if hasattr(part, "cp"):
            part.cp.min_points_per_centroid = 1
    return index


def trained(kind, sample, path=None):
    index = untrained(kind)
    faiss_training.train(faiss_kinds.transforms(index), faiss_kinds.inner_index(index), sample, path)
    index.train(sample)
    assert index.is_trained
    return index


def by_faiss(kind, sample):
    index = untrained(kind)
    for transform in faiss_kinds.transforms(index):
        if isinstance(transform, faiss.OPQMatrix):
            quantiser = faiss.ProductQuantizer(transform.d_out, transform.M, 8)
            quantiser.cp.min_points_per_centroid = 1
            transform.pq = quantiser
    index.train(sample)
    return index


@pytest.mark.parametrize("kind", ["OPQ4,PQ4x4", "OPQ2_8,PQ2x4", "OPQ4_32,PQ4x4", "RR8,OPQ4,SQ8"])
def test_the_rotation_is_that_of_faiss_bit_for_bit(sample, kind):
    ours, theirs = trained(kind, sample), by_faiss(kind, sample)
    assert np.array_equal(faiss.serialize_index(ours), faiss.serialize_index(theirs))


@pytest.mark.parametrize("kind", ["IVF8,Flat", "IVF8,SQ8", "OPQ4,IVF8,PQ4x4", "IVF8_HNSW4,Flat", "OPQ4,IVF8,PQ4x4,RFlat"])
def test_the_lists_are_those_of_faiss_but_for_rounding(sample, kind):
    ours, theirs = trained(kind, sample), by_faiss(kind, sample)
    some, others = (faiss.downcast_index(faiss_kinds.inner_index(index).quantizer) for index in (ours, theirs))
    np.testing.assert_allclose(some.reconstruct_n(0, 8), others.reconstruct_n(0, 8), atol=1e-5)
    for index in (ours, theirs):
        index.add(sample)
    found = [index.search(sample[:50], 5)[1] for index in (ours, theirs)]
    assert (found[0] == found[1]).mean() > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["OPQ4,IVF8,PQ4x4", "IVF8_HNSW4,SQ8", "OPQ4,PQ4x4"])
@pytest.mark.parametrize("lost", [0, 1, 3, 9, 50, 51, 59])
def test_cut_short_after_any_round(tmp_path, monkeypatch, sample, kind, lost):
    whole = trained(kind, sample, tmp_path / "whole")
    rounds, taken, path = faiss_training._Learnt.rounds, [], tmp_path / "learnt"

    def dying(self, part, count):
        for number in rounds(self, part, count):
            if len(taken) == lost:
                taken.append(None)
                raise KeyboardInterrupt
            taken.append((part, number))
            yield number

    monkeypatch.setattr(faiss_training._Learnt, "rounds", dying)
    monkeypatch.setattr(faiss_training, "SHARE", 0)
    for _ in range(3):
        try:
            again = trained(kind, sample, path)
            break
        except KeyboardInterrupt:
            (tmp_path / f".{path.name}.x").touch()  # as of a kill while it was written
    assert np.array_equal(faiss.serialize_index(again), faiss.serialize_index(whole))
    done = [one for one in taken if one]
    assert len(done) == len(set(done)) == (50 if "OPQ" in kind else 0) + (10 if "IVF" in kind else 0)  # no round twice
    if 0 < lost < len(done):
        assert not list(tmp_path.glob(".*"))


def test_a_cut_before_the_rest_is_trained_costs_no_round(tmp_path, monkeypatch, sample):
    monkeypatch.setattr(faiss_training, "SHARE", 0)
    whole = trained("OPQ4,IVF8,PQ4x4", sample, tmp_path / "learnt")
    monkeypatch.setattr(faiss.Clustering, "train", None)
    monkeypatch.setattr(faiss.OPQMatrix, "train", None)
    with pytest.raises(TypeError):
        trained("OPQ4,IVF8,PQ4x4", sample)
    again = trained("OPQ4,IVF8,PQ4x4", sample, tmp_path / "learnt")
    assert np.array_equal(faiss.serialize_index(again), faiss.serialize_index(whole))


def test_what_is_learnt_is_written_only_as_often_as_it_is_cheap(tmp_path, monkeypatch, sample):
    now, written = [0.0], []
    monkeypatch.setattr(faiss_training.time, "monotonic", lambda: now[0])

    def keep(path, write):
        written.append(now[0])
        now[0] += 2

    monkeypatch.setattr(faiss_training, "keep", keep)
    learnt = faiss_training._Learnt(tmp_path / "learnt")
    for _ in learnt.rounds("part", 10):
        now[0] += 9
    assert written == [9, 38, 67, 96]  # a writing takes 2 s: not before 20 s after the last


def test_what_faiss_trains_by_itself_is_left_to_it(sample):
    index = trained("IVF8(SQ8),Flat", sample)  # its lists are found by codes
    assert np.array_equal(index.sa_decode(index.sa_encode(sample)), sample)


def test_too_few_vectors(sample):
    with pytest.raises(RuntimeError, match="should be at least as large as number of clusters"):
        trained("IVF64,Flat", sample[:50])
