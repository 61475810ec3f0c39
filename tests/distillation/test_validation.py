"""Validation during training: dev topics, measures against brute force, best checkpoint, plateau."""

import json

import numpy as np
import pytest
import torch

from pyserini_kd import train
from pyserini_kd.data.passages import segment as segmented
from pyserini_kd.data.runs import Run
from pyserini_kd.distillation import candidates, training, validation
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.train_settings import Given
from pyserini_kd.distillation.validation import FACTOR, PLATEAU, Watch, plateaus, read_dev
from pyserini_kd.evaluation import engines
from pyserini_kd.models import checkpoint_folder, loading
from pyserini_kd.retrieval import reranking, text_sources
from pyserini_kd.storage.errors import InputError
from tests.conftest import as_ranker, encode, stages_of, training_data


def given(files, run=None, depth=5, qrels=None, **more):
    return Given(collection=files["docs"], dev_topics=files["topics"], dev_qrels=qrels or files["qrels"], dev_run=run,
                 dev_depth=depth, **more)  # fmt: skip


def test_dev_documents_are_ranked_by_their_best_passage(tmp_path, files, queries, tiny_dot, dev):
    dev.run.write(tmp_path / "run.txt")
    read = read_dev(given(files, tmp_path / "run.txt", segment="3:2"))
    model = loading.load(str(tiny_dot))
    seen = []
    for one in (read, read._replace(segment=None)):
        folder = tmp_path / str(one.segment)
        folder.mkdir()
        watch = Watch(model, one, folder, metric="RR@10", eval_steps=1, precision="fp32")
        watch.measure(1)
        run = reranking.rerank(
            read.run,
            as_ranker(model, precision="fp32"),
            queries,
            lambda ids: (read.docs[i] for i in ids),
            depth=5,
            segment=one.segment,
        )
        expected = engines.evaluate(run, read.qrels, ["RR@10"])["RR@10"]
        assert watch.measured == [{"step": 1, "RR@10": engines.mean(expected)}]
        seen.append(run["q0"].scores.tolist())
    assert seen[0] != seen[1]


def found_by_brute_force(model, docs, queries, segment=None):
    """Rank all documents by their best passage, from vectors only."""
    passages = {doc.doc_id: [part.contents for part in (segmented([doc], segment) if segment else [doc])] for doc in docs}
    asked = encode(model, [query.text for query in queries], "query", precision="fp32")
    best = {doc_id: (asked @ encode(model, texts, "doc", precision="fp32").T).max(axis=1) for doc_id, texts in passages.items()}
    return Run.from_scores(
        "b", {q.query_id: {doc_id: float(of[n]) for doc_id, of in best.items()} for n, q in enumerate(queries)}
    )


@pytest.mark.parametrize("segment", [None, "3:2"])
def test_a_bert_dot_can_be_evaluated_by_its_own_retrieval(tmp_path, files, corpus, queries, qrels, tiny_dot, dev, segment):
    dev.run.top(3).write(tmp_path / "run.txt")  # none of them relevant for most queries
    model = loading.load(str(tiny_dot))
    values = []
    for run, docs in (
        (None, corpus),
        (tmp_path / "run.txt", [*dev.run.top(2)["q0"].doc_ids, *(d for of in qrels.values() for d in of)]),
    ):
        read = read_dev(given(files, run, 2, segment=segment, dev_retrieval=True))
        assert read.run is None and set(read.docs) == {getattr(doc, "doc_id", doc) for doc in docs}
        folder = tmp_path / str(run is None)
        folder.mkdir()
        watch = Watch(model, read, folder, metric="AP", eval_steps=1, precision="fp32")
        watch.measure(1)
        expected = engines.evaluate(found_by_brute_force(model, read.docs.values(), queries, segment), qrels, ["AP"])["AP"]
        assert watch.measured == [{"step": 1, "AP": pytest.approx(engines.mean(expected), abs=1e-6)}]
        values.append(watch.measured[0]["AP"])
    assert values[0] < values[1]  # fewer competing documents


def test_dev_retrieval_from_the_command_line(tmp_path, invoke, data, files, tiny_dot):
    candidates.write_candidates(data[0], tmp_path / "c.jsonl")
    words = ["--init", tiny_dot, "--candidates", tmp_path / "c.jsonl", *training_data(files)]
    words += [
        "--recipe",
        "ranknet",
        "--max-steps",
        4,
        "--dev-topics",
        files["topics"],
        "--dev-qrels",
        files["qrels"],
        "--eval-steps",
        2,
    ]
    words += ["--dev-retrieval", "--precision", "fp32", "--output", tmp_path / "out"]
    wrong = invoke(train.main, *words, "--student", "colbert")
    assert wrong.exit_code == 2 and "--dev-retrieval: is for a bert_dot student; a colbert reranks a run" in wrong.output
    with pytest.raises(InputError, match="dev_retrieval: is for a bert_dot student"):
        training.train(
            TrainConfig(recipe="ranknet", init=str(tiny_dot), architecture="tk"),
            *data,
            tmp_path / "tk",
            dev=read_dev(given(files, dev_retrieval=True)),
        )
    result = invoke(train.main, *words)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["data"]["dev_retrieval"] is True
    assert [entry["step"] for entry in record["stages"][0]["dev"]] == [2, 4]


def test_the_best_checkpoint_on_dev_topics_is_kept(tmp_path, data, scores, tiny_dot, corpus, qrels, queries, dev):
    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), lr=3e-3, max_steps=30, batch_size=5, precision="fp32",
                         metric="RR@10", eval_steps=5, patience=2)  # fmt: skip
    out = training.train(config, *data, tmp_path / "out", scores=scores, dev=dev)
    (record,) = json.loads((out / "training.json").read_text())["stages"]
    values = [entry["RR@10"] for entry in record["dev"]]
    assert values[-1] > values[0] or max(values) == 1.0
    model = loading.load(str(out))
    run = reranking.rerank(dev.run, as_ranker(model, precision="fp32"), queries, text_sources.fetch_from(corpus), depth=20)
    assert engines.mean(engines.evaluate(run, qrels, ["RR@10"])["RR@10"]) == pytest.approx(max(values), abs=1e-6)
    assert record["steps"] == record["dev"][-1]["step"] <= 30
    assert len(values) - 1 - values.index(max(values)) <= 2


def test_all_processes_get_the_measures_of_the_first(tmp_path, tiny_dot, dev, monkeypatch):
    def broadcast(values, src):
        values[0] = 0.25

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    other = Watch(None, dev, tmp_path, metric="RR@10", eval_steps=1, patience=1, writes=False)  # no model to evaluate
    other.measure(1)
    assert other.values() == [0.25] and not other.is_enough()
    other.measure(2)
    assert other.is_enough()


def test_plateaus_equal_those_of_torch():
    rng = np.random.default_rng(0)
    values = np.round(np.r_[rng.random(30), np.full(40, 0.5), [1.5], np.full(50, 1.0)], 2)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", FACTOR, PLATEAU, threshold=0.0, eps=0.0)
    for n, value in enumerate(values, start=1):
        oracle.step(value)
        assert FACTOR ** plateaus(values[:n].tolist()) == optimizer.param_groups[0]["lr"]
    assert plateaus(values.tolist()) >= 5


def test_the_learning_rate_falls_on_a_plateau_of_the_dev_measure(
    tmp_path, data, scores, tiny_dot, dev, monkeypatch, interrupted_at
):
    monkeypatch.setattr(validation, "PLATEAU", 1)
    monkeypatch.setattr("pyserini_kd.evaluation.engines.mean", lambda values: 0.5)  # never better than the first
    settings = {"lr": 1e-3, "max_steps": 8, "batch_size": 5, "precision": "fp32", "schedule": "plateau", "warmup": 0.0}
    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), eval_steps=1, save_steps=2, **settings)
    out = training.train(config, *data, tmp_path / "out", scores=scores, dev=dev)
    rates = [entry["lr"] for entry in stages_of(out)[0]["log"]]
    assert rates == pytest.approx([1e-3 * 0.25**n for n in (0, 0, 0, 0, 1, 1, 2, 2)])  # measures 3, 5 and 7, a step later
    with interrupted_at(5):
        training.train(config, *data, tmp_path / "cut", scores=scores, dev=dev)
    resumed = training.train(config, *data, tmp_path / "cut", scores=scores, dev=dev)
    assert [entry["lr"] for entry in stages_of(resumed)[0]["log"]] == rates
    assert checkpoint_folder.fingerprint(resumed) == checkpoint_folder.fingerprint(out)
    with pytest.raises(InputError, match="schedule: plateau needs dev topics"):
        training.train(config, *data, tmp_path / "x", scores=scores)
