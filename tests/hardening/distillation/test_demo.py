"""The embedded default against packages that change during the work and checkpoints that the user made."""

import json
import shutil

import pytest

from pyserini_kd import demo
from pyserini_kd.data import docstrings
from pyserini_kd.distillation import embedded
from tests.distillation.test_demo import small_home


def test_other_package_versions_during_the_work_rebuild_candidates_and_scores(small_home, caplog, monkeypatch):
    at = embedded.prepare()
    shutil.rmtree(at.student)
    candidates = at.training / "candidates.jsonl"
    lines = candidates.read_text()
    candidates.write_text(lines.replace("eat-cat", "gone"))  # a document of earlier versions
    unfinished = at.student.with_name("student.partial")
    (unfinished / "stage-1" / "checkpoint-1").mkdir(parents=True)
    (unfinished / "made_from.json").write_text('{"data": {"candidates_sha256": "another"}}')
    monkeypatch.setattr(docstrings, "stamp", lambda: "newer")
    with caplog.at_level("INFO"):
        embedded.prepare()
    assert caplog.text.count("made for other versions of the packages") == 5  # those two and three indexes
    assert candidates.read_text() == lines and at.student.is_dir() and not unfinished.exists()


@pytest.mark.parametrize("part", ["teacher", "reranker"])
def test_a_checkpoint_of_the_user_is_not_overwritten(small_home, invoke, part):
    own = small_home / "models" / part
    shutil.copytree(small_home / "models" / "minilm", own)
    record = {"data": {"collection": "docs.jsonl"}} if part == "teacher" else {"data": {"groups": 3}}
    (own / "training.json").write_text(json.dumps(record))
    result = invoke(demo.main)
    assert result.exit_code == 2 and f"{own} is in the way" in result.output
    assert (own / "model.safetensors").exists()
