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


def test_a_record_of_another_s_making_names_no_runs(tmp_path, record):
    record("foreign", seconds=1.5, config="fast")
    assert seconds_of(tmp_path / "foreign.txt") == (1.5, "foreign.txt")


def test_time_counts_what_a_run_was_made_from(tmp_path, record):
    record("a", seconds=1.5)
    record("b", seconds=2)
    record("ab", seconds=0.25, config={"runs": [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]})
    record("top", seconds=10, config={"run": "elsewhere/ab.txt"})  # found beside the run that names it
    assert seconds_of(tmp_path / "ab.txt")[0] == 3.75
    assert seconds_of(tmp_path / "top.txt") == (13.75, "top.txt + ab.txt + a.txt + b.txt")
    record("both", seconds=1, config={"runs": ["top.txt", "ab.txt"]})  # ab is there once, and so is its time
    assert seconds_of(tmp_path / "both.txt") == (14.75, "both.txt + top.txt + ab.txt + a.txt + b.txt")


def test_what_is_not_known_is_said(tmp_path, record):
    record("lost", seconds=10, config={"run": "gone.txt"})
    record("loop", seconds=1, config={"run": "loop.txt"})
    record("pool", seconds=1, config={"runs": ["loop.txt"]})
    for name, fields in (("none", {"seconds": 0}), ("word", {"seconds": "fast"}), ("only", {"write_seconds": 1.0})):
        record(name, **fields)
        assert ms_per_query(tmp_path / f"{name}.txt", 10) == (None, f"{name}.json has no seconds")
    assert seconds_of(tmp_path / "lost.txt") == (None, "it was made from gone.txt: no record gone.json")
    assert seconds_of(tmp_path / "loop.txt") == (None, "it was made from loop.txt: it is made from itself")
    assert seconds_of(tmp_path / "pool.txt") == (
        None,
        "it was made from loop.txt: it was made from loop.txt: it is made from itself",
    )
    (tmp_path / "bad.json").write_text("{\n,")
    assert seconds_of(tmp_path / "bad.txt") == (None, "bad.json is not the record of a run")  # but somebody else's file
    for foreign in ('{"config": {"run": 1, "runs": 7}, "seconds": 3}', '{"seconds": 3, "big": 1e999}'):
        (tmp_path / "bad.json").write_text(foreign)
        assert seconds_of(tmp_path / "bad.txt") == (3.0, "bad.txt")
