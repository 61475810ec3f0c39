"""Caveats where topics cannot be read and records are missing or broken."""

import json

from pyserini_kd.evaluation import caveats
from pyserini_kd.evaluation.caveats import of_training
from tests.evaluation.test_caveats import here, trained, written


def test_topics_that_cannot_be_read_are_compared_by_name(here):
    trained("student", "ir_datasets:far/train")
    run = written("run.txt", ["1"], encoder="student", topics="ir_datasets:far/train")
    expected = ["its topics are the training topics of student (ir_datasets:far/train)"]
    assert of_training("run.txt", run, "qrels.txt") == expected
    run = written("run.txt", ["1"], encoder="student", topics="ir_datasets:far/test")
    assert of_training("run.txt", run, "qrels.txt") == []
    assert of_training("run.txt", run, "ir_datasets:far/train") == expected


def test_nothing_is_said_where_nothing_is_known(here):
    run = written("run.txt", ["1"], encoder="student")
    (here / "run.json").unlink()
    assert of_training("run.txt", run, "q") == []  # no record
    for record in ("{broken", json.dumps([1]), json.dumps({"config": 3}), json.dumps({"config": {"runs": "x", "run": 1}})):
        (here / "run.json").write_text(record)
        assert of_training("run.txt", run, "q") == []
    run = written("run.txt", ["1"], encoder="sentence-transformers/unknown", topics="train.tsv")
    assert of_training("run.txt", run, "q") == []  # no training.json
    trained("student", None)
    run = written("run.txt", ["1"], encoder="student", topics="train.tsv")
    assert of_training("run.txt", run, "q") == []
    (here / "train.tsv").write_text("no tab\n")
    trained("student", "train.tsv")
    assert caveats.of_training("run.txt", run, "q") == ["its topics are the training topics of student (train.tsv)"]
