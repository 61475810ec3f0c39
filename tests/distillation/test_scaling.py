"""Scaling of teachers: spreads and z-scores by hand, in a score store, and for teachers with very different scores."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from pyserini_kd import teach
from pyserini_kd.data.runs import Run
from pyserini_kd.distillation import scaling, teaching, text_store
from pyserini_kd.distillation.candidates import Group, write_candidates
from pyserini_kd.distillation.teacher_scores import Pairs, ScoreStore
from pyserini_kd.distillation.teaching import Teacher
from pyserini_kd.storage import arrays
from pyserini_kd.storage.errors import InputError
from tests.conftest import training_data

GROUPS = [Group("q0", ["eat-cat", "eat-dog"], [1, 0], 0), Group("q1", ["eat-cat", "eat-cow", "eat-pig"], [1, 0, 0], 0),
          Group("q0", ["eat-cow", "eat-cat"], [1, 0], 1)]  # fmt: skip
FIRST = {"q0": {"eat-cat": 1.0, "eat-dog": 5.0, "eat-cow": 3.0}, "q1": {"eat-cat": 10.0, "eat-cow": 10.0, "eat-pig": 4.0}}
SECOND = {"q0": {"eat-cat": 0.2, "eat-dog": 0.1, "eat-cow": 0.3}, "q1": {"eat-cat": 0.5, "eat-cow": 0.5, "eat-pig": 0.5}}


@pytest.fixture
def texts(queries, corpus):
    return text_store.load_texts(GROUPS, queries, corpus)


@pytest.fixture
def runs(tmp_path):
    for name, scores in (("first", FIRST), ("second", SECOND)):
        Run.from_scores(name, scores).write(tmp_path / f"{name}.txt")
    return [str(tmp_path / "first.txt"), str(tmp_path / "second.txt")]


def by_pair(taught):
    return {(query_id, doc_id): float(taught.score[place]) for place, query_id, doc_id in taught.pairs}


def deviation(scores):
    return np.std(list(scores.values()))


def test_spread_by_hand(texts, runs):
    """The first run has the standard deviations sqrt(8 / 3) (q0) and sqrt(8) (q1). A pair in two groups counts once."""
    teachers = [Teacher("run", runs[0], 3.0), Teacher("run", runs[1])]  # the second has no weight, and scores below 1
    taught = teaching.teach(GROUPS, *texts, teachers, scale="spread")
    first = ((8 / 3) ** 0.5 + 8**0.5) / 2
    second = (deviation(SECOND["q0"]) + 0.0) / 2
    assert taught.record["spreads"] == pytest.approx({runs[0]: first, runs[1]: second}) and taught.record["scale"] == "spread"
    found = by_pair(taught)
    for query_id, scores in FIRST.items():
        for doc_id, score in scores.items():
            expected = (3 * score / first + SECOND[query_id][doc_id] / second) / 2
            assert found[query_id, doc_id] == pytest.approx(expected, rel=1e-6)
    raw = {(q, d): float(taught.raw[runs[0]][place]) for place, q, d in taught.pairs}
    assert raw["q1", "eat-cat"] == 10.0  # raw scores do not change


def test_z_scores_by_hand(texts, runs):
    found = by_pair(teaching.teach(GROUPS, *texts, [Teacher("run", runs[0], 3.0), Teacher("run", runs[1])], scale="zscore"))
    mean, second = 0.2, deviation(SECOND["q0"])
    assert found["q0", "eat-dog"] == pytest.approx((3 * (5 - 3) / (8 / 3) ** 0.5 + (0.1 - mean) / second) / 2, rel=1e-5)
    assert found["q1", "eat-pig"] == pytest.approx(
        (3 * (4 - 8) / 8**0.5 + 0.0) / 2, rel=1e-5
    )  # standard deviation 0: the result is 0, not NaN
    alone = by_pair(teaching.teach(GROUPS, *texts, [Teacher("run", runs[0])], scale="zscore"))
    for query_id in FIRST:
        scores = [score for (q, _), score in alone.items() if q == query_id]
        assert np.mean(scores) == pytest.approx(0, abs=1e-6) and np.std(scores) == pytest.approx(1, rel=1e-5)


def test_scale_none_uses_raw_scores(texts, runs):
    taught = teaching.teach(GROUPS, *texts, [Teacher("run", runs[0], 2.0), Teacher("run", runs[1], 4.0)])
    assert by_pair(taught)["q0", "eat-dog"] == pytest.approx((10 + 0.4) / 2) and taught.record["scale"] == "none"


def test_queries_with_one_candidate_are_ignored_and_constant_teachers_are_refused(tmp_path, queries, corpus):
    groups = [*GROUPS, Group("q2", ["eat-hen"], [1], 0)]
    texts = text_store.load_texts(groups, queries, corpus)
    Run.from_scores("a", {**FIRST, "q2": {"eat-hen": 99.0}}).write(tmp_path / "a.txt")
    Run.from_scores("b", {q: dict.fromkeys(scores, 2.0) for q, scores in FIRST.items()}).write(tmp_path / "b.txt")
    taught = teaching.teach(groups, *texts, [Teacher("run", str(tmp_path / "a.txt"))], scale="spread")
    assert next(iter(taught.record["spreads"].values())) == pytest.approx(((8 / 3) ** 0.5 + 8**0.5) / 2)
    taught = teaching.teach(groups, *texts, [Teacher("run", str(tmp_path / "a.txt"))], scale="zscore")
    assert by_pair(taught)["q2", "eat-hen"] == 0.0
    with pytest.raises(InputError, match=r"b\.txt gives all candidates of a query the same score and cannot teach; drop it"):
        teaching.teach(GROUPS, *texts, [Teacher("run", str(tmp_path / "b.txt"))], scale="spread")


def test_moments_of_pairs_in_files(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "SPAN", 7)
    monkeypatch.setattr(scaling, "BLOCK", 5)
    random = np.random.default_rng(0)
    groups = [Group(f"q{n % 9}", [f"d{d}" for d in random.choice(30, 6, replace=False)], [], -1) for n in range(40)]
    pairs = Pairs(groups, tmp_path)
    rows, scores = scaling.query_rows(pairs), (1000 + random.normal(size=len(pairs))).astype(np.float32)
    counts, means, deviations = scaling.moments(rows, scores)
    for place, query_id, _ in pairs:
        assert rows[place] == int(query_id[1:])  # queries are numbered in the order of the pairs
    for row in range(9):
        of_query = scores[rows == row].astype(np.float64)
        expected = len(of_query), pytest.approx(of_query.mean()), pytest.approx(of_query.std(), rel=1e-6)
        assert (counts[row], means[row], deviations[row]) == expected


def test_the_command_records_the_scale_and_reuses_raw_scores(tmp_path, invoke, files, runs, tiny_dot):
    write_candidates(GROUPS, tmp_path / "c.jsonl")
    base = ["--candidates", tmp_path / "c.jsonl", *training_data(files), "--precision", "fp32"]
    teachers = ["--teacher", tiny_dot, "--teacher-run", runs[1]]
    result = invoke(teach.main, *base, *teachers, "--output", tmp_path / "none.parquet")
    assert result.exit_code == 2 and "[-1, 1]" in result.output
    result = invoke(teach.main, *base, *teachers, "--scale", "spread", "--output", tmp_path / "s.parquet")
    assert result.exit_code == 0, result.output
    record = json.loads(pq.read_metadata(tmp_path / "s.parquet").metadata[b"pyserini_kd"])
    assert record["scale"] == "spread" and record["spreads"][runs[1]] == pytest.approx(deviation(SECOND["q0"]) / 2)
    result = invoke(
        teach.main, *base, *teachers, "--scale", "zscore", "--reuse", tmp_path / "s.parquet", "--output", tmp_path / "z.parquet"
    )
    assert result.exit_code == 0, result.output
    (known,) = ScoreStore(tmp_path / "z.parquet").known()
    assert len(known.scores.keys) == 6
    result = invoke(teach.main, *base, *teachers, "--scale", "minmax", "--output", tmp_path / "x.parquet")
    assert result.exit_code == 2 and "--scale" in result.output
