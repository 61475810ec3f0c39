"""latency: what the records beside runs say of the time that a query took."""

import json

import pytest

from pyserini_kd.evaluation.run_records import ms_per_query, seconds_of


@pytest.fixture
def record(tmp_path):
    """Write a run's record: record('a', seconds=1.5)."""
    return lambda name, **fields: (tmp_path / f"{name}.json").write_text(json.dumps(fields))


def test_only_the_stages_that_answer_queries_count(tmp_path, record):
    record("search", seconds=9.0, open_seconds=5.0, dense_seconds=1.0, sparse_seconds=0.5, fuse_seconds=0.25, write_seconds=2.0)
    assert seconds_of(tmp_path / "search.txt") == (1.75, "search.txt")
    assert ms_per_query(tmp_path / "search.txt", 500) == (3.5, "search.txt")
    record("fused", seconds=9.0, read_seconds=8.0, fuse_seconds=0.75, write_seconds=0.25, config={"runs": ["search.txt"]})
    assert seconds_of(tmp_path / "fused.txt") == (2.5, "fused.txt + search.txt")
    record(
        "mended", check_seconds=1.0, write_seconds=1.0, config={"run": "fused.txt"}
    )  # by check --fix: costs no query a thing
    assert seconds_of(tmp_path / "mended.txt")[0] == 2.5


def test_time_counts_what_a_run_was_made_from(tmp_path, record):
    record("a", seconds=1.5)
    record("b", seconds=2)
    record("ab", seconds=0.25, config={"runs": [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]})
    record("top", seconds=10, config={"run": "elsewhere/ab.txt"})  # found beside the run that names it
    assert seconds_of(tmp_path / "ab.txt")[0] == 3.75
    assert seconds_of(tmp_path / "top.txt") == (13.75, "top.txt + ab.txt + a.txt + b.txt")
    record("both", seconds=1, config={"runs": ["top.txt", "ab.txt"]})  # ab is there once, and so is its time
    assert seconds_of(tmp_path / "both.txt") == (14.75, "both.txt + top.txt + ab.txt + a.txt + b.txt")
