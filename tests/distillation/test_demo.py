"""The embedded default end to end, with twenty documents and a random BERT in place of pydocs and MiniLM."""

import json
import shutil

import pytest

from pyserini_kd import demo, search
from pyserini_kd.data import docstrings
from pyserini_kd.data.runs import Run
from pyserini_kd.distillation import embedded


@pytest.fixture
def small_home(tmp_path, monkeypatch, corpus, queries, qrels, tiny_dot):
    """A working folder with the tiny BERT as `minilm` and the animals as pydocs."""
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path))
    shutil.copytree(tiny_dot, tmp_path / "models" / "minilm")
    monkeypatch.setattr(docstrings, "docs", lambda: iter(corpus))
    monkeypatch.setattr(docstrings, "topics", lambda split: queries)
    monkeypatch.setattr(docstrings, "qrels", lambda split: qrels)
    monkeypatch.setattr(embedded, "TRAINING", {"max_query_len": 16, "max_doc_len": 32, "train_len": 16})
    monkeypatch.setattr(embedded, "BLOCK", 5)
    from pyserini_kd.models import checkpoint_folder

    checkpoint_folder.resolve.cache_clear()
    yield tmp_path
    checkpoint_folder.resolve.cache_clear()


def test_demo_makes_everything_once_and_measures_it(small_home, invoke, qrels):
    result = invoke(demo.main)
    assert result.exit_code == 0, result.output
    at = embedded.paths()
    for made in (at.bm25, at.teacher, at.teacher_index, at.student, at.index, at.reranker):
        assert made.is_dir()
    names = ["bm25", "student", "hybrid-rrf", "hybrid", "reranked"]
    runs = {name: Run.read(small_home / "runs" / f"run.pydocs.{name}.test.txt") for name in names}
    assert all(set(run) == set(qrels) for run in runs.values())
    assert runs["reranked"].depth == embedded.RERANK_DEPTH and runs["hybrid"].depth == 20
    assert "RR@10, reranked against hybrid" in result.output
    weights = json.loads((at.training / "weights.json").read_text())
    assert weights["alpha"] in embedded.ALPHAS and weights["weight"] in embedded.WEIGHTS

    # second run: no step runs again, same figures
    before = {path: path.stat().st_mtime_ns for path in (at.student / "model.safetensors", at.index / "index", at.bm25)}
    again = invoke(demo.main)
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert all(
        Run.read(small_home / "runs" / f"run.pydocs.{name}.test.txt")["q0"].doc_ids == runs[name]["q0"].doc_ids
        for name in names
    )

    # search without options uses the prepared parts
    found = invoke(search.main, "--encoder", "student")
    assert found.exit_code == 0, found.output
    assert Run.read(small_home / "runs" / "run.pydocs.student.test.txt")["q3"].doc_ids == runs["student"]["q3"].doc_ids


def test_a_new_student_rebuilds_its_index(small_home, caplog):
    at = embedded.prepare()
    made = (at.index / "index").stat().st_mtime_ns
    shutil.rmtree(at.student)
    shutil.copytree(at.teacher, at.student)
    with caplog.at_level("INFO"):
        embedded.prepare()
    assert "made with another checkpoint" in caplog.text
    assert (at.index / "index").stat().st_mtime_ns > made


def test_other_package_versions_rebuild_the_indexes(small_home, caplog, monkeypatch):
    at = embedded.prepare()
    made = {path: path.stat().st_mtime_ns for path in (at.student / "model.safetensors", at.index / "index", at.bm25)}
    monkeypatch.setattr(docstrings, "stamp", lambda: "newer")
    with caplog.at_level("INFO"):
        embedded.prepare()
    assert caplog.text.count("made for other versions of the packages") == 2
    assert [path.stat().st_mtime_ns == before for path, before in made.items()] == [True, False, False]


def test_a_teacher_that_does_not_beat_bm25_causes_a_warning(small_home, caplog):
    at = embedded.prepare()  # BM25 ranks the animals perfectly: nothing beats it
    assert "the teacher does not beat BM25" in caplog.text
    assert json.loads((at.training / "teacher.json").read_text())["BM25"] == 1.0
