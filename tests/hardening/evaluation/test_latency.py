"""latency against records that are missing, broken or somebody else's."""

from pyserini_kd.evaluation.run_records import ms_per_query, seconds_of
from tests.evaluation.test_latency import record


def test_a_record_of_another_s_making_names_no_runs(tmp_path, record):
    record("foreign", seconds=1.5, config="fast")
    assert seconds_of(tmp_path / "foreign.txt") == (1.5, "foreign.txt")


def test_what_is_not_known_is_said(tmp_path, record):
    record("lost", seconds=10, config={"run": "gone.txt"})
    record("loop", seconds=1, config={"run": "loop.txt"})
    record("pool", seconds=1, config={"runs": ["loop.txt"]})
    for name, fields in (("none", {"seconds": 0}), ("word", {"seconds": "fast"}), ("only", {"write_seconds": 1.0})):
        record(name, **fields)
        assert ms_per_query(tmp_path / f"{name}.txt", 10) == (None, f"{name}.json has no times")
    assert seconds_of(tmp_path / "lost.txt") == (None, "it was made from gone.txt: no record gone.json")
    assert seconds_of(tmp_path / "loop.txt") == (None, "it was made from loop.txt: it was made from itself")
    assert seconds_of(tmp_path / "pool.txt") == (
        None,
        "it was made from loop.txt: it was made from loop.txt: it was made from itself",
    )
    (tmp_path / "bad.json").write_text("{\n,")
    assert seconds_of(tmp_path / "bad.txt") == (None, "bad.json is not the record of a run")  # but somebody else's file
    for foreign in ('{"config": {"run": 1, "runs": 7}, "seconds": 3}', '{"seconds": 3, "big": 1e999}'):
        (tmp_path / "bad.json").write_text(foreign)
        assert seconds_of(tmp_path / "bad.txt") == (3.0, "bad.txt")
