"""Training against kills, full disks, damaged states, data that do not fit and values that are not finite."""

import json

import pytest
import torch

from pyserini_kd import teach, train
from pyserini_kd.data import docstrings
from pyserini_kd.data.formats import write_collection
from pyserini_kd.distillation import batches, stages, training, training_data
from pyserini_kd.distillation.candidates import Group, write_candidates
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.teacher_scores import Scores
from pyserini_kd.distillation.train_settings import TrainSettings
from pyserini_kd.distillation.trainer import checkpoints, last_state
from pyserini_kd.models import checkpoint_folder, loading, saving
from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import locked
from tests.conftest import cross, save_cross, stages_of


@pytest.mark.parametrize(("architecture", "more"), [("bert_dot", ()), ("tk", ("heads=4",))])  # a tk has two learning rates
def test_same_seed_same_weights_and_a_cut_run_resumes_to_them(
    tmp_path, data, scores, tiny_dot, monkeypatch, architecture, more
):
    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), architecture=architecture, settings=more, lr=1e-3, max_steps=8, batch_size=5,
                         save_steps=3, precision="fp32")  # fmt: skip
    whole = checkpoint_folder.fingerprint(training.train(config, *data, tmp_path / "whole", scores=scores))
    assert checkpoint_folder.fingerprint(training.train(config, *data, tmp_path / "again", scores=scores)) == whole
    import transformers

    step = transformers.Trainer.training_step
    monkeypatch.setattr(
        transformers.Trainer, "training_step",
        lambda self, *a, **k: (_ for _ in ()).throw(KeyboardInterrupt) if self.state.global_step == 5 else step(self, *a, **k),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        training.train(config, *data, tmp_path / "cut", scores=scores)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(transformers.Trainer, "training_step", step)
    broken = tmp_path / "cut.partial" / "stage-1" / "checkpoint-6"  # killed while the last of its files was written
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    (broken / "trainer_state.json").write_text('{"epoch"')
    (tmp_path / "cut.partial" / ".made_from.json.abc.partial").write_text("{")
    assert checkpoint_folder.fingerprint(training.train(config, *data, tmp_path / "cut", scores=scores)) == whole


@pytest.mark.parametrize("patience", [None, 1])
def test_a_kill_between_the_last_step_and_its_record_adds_no_step(tmp_path, data, scores, tiny_dot, dev, monkeypatch, patience):
    """5 steps are no whole epoch. With patience, training stops since the measure is always 1."""
    monkeypatch.setattr(
        "pyserini_kd.evaluation.engines.evaluate", lambda run, qrels, names: {name: {"q": 1.0} for name in names}
    )
    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), lr=1e-3, schedule="constant", max_steps=5 if patience is None else 20,
                         batch_size=5, save_steps=1, eval_steps=2, patience=patience, precision="fp32")  # fmt: skip
    given = {"scores": scores, "dev": dev if patience else None}
    whole = training.train(config, *data, tmp_path / "whole", **given)
    save = stages.save_model

    def killed(model, path):
        if path.endswith("000001.safetensors"):
            raise KeyboardInterrupt
        save(model, path)

    monkeypatch.setattr(stages, "save_model", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(config, *data, tmp_path / "cut", **given)
    monkeypatch.setattr(stages, "save_model", save)
    cut = training.train(config, *data, tmp_path / "cut", **given)
    assert checkpoint_folder.fingerprint(cut) == checkpoint_folder.fingerprint(whole)
    (a,), (b,) = stages_of(whole), stages_of(cut)
    assert a["steps"] == b["steps"] == (5 if patience is None else 4)
    assert [entry["step"] for entry in a["log"]] == [entry["step"] for entry in b["log"]]
    assert a["dev"] == b["dev"]


def test_a_state_needs_all_processes_that_saved_it(tmp_path, caplog):
    for step, seals in ((2, ["saved-0-of-1"]), (4, ["saved-1-of-2", "saved-0-of-2"]), (6, ["saved-1-of-2"]), (8, [])):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for seal in seals:
            (tmp_path / f"checkpoint-{step}" / seal).touch()
    assert last_state(tmp_path, batches.Share(0, 2)) == str(tmp_path / "checkpoint-4")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]  # the others were incomplete
    assert not caplog.records
    assert last_state(tmp_path, batches.Share(0, 1)) == str(tmp_path / "checkpoint-4")
    assert "2 processes saved this state and 1 resume it" in caplog.text


def test_runs_with_dropout_resume_to_the_same_weights(tmp_path, data, scores, tiny_dot, monkeypatch):
    config = TrainConfig(
        recipe="margin-mse",
        init=str(tiny_dot),
        lr=1e-3,
        max_steps=21,
        batch_size=5,
        save_steps=3,
        precision="fp32",
        dropout=0.3,
    )
    whole = training.train(config, *data, tmp_path / "whole", scores=scores)
    import transformers

    step = transformers.Trainer.training_step
    monkeypatch.setattr(
        transformers.Trainer, "training_step",
        lambda self, *a, **k: (_ for _ in ()).throw(KeyboardInterrupt) if self.state.global_step == 10 else step(self, *a, **k),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        training.train(config, *data, tmp_path / "cut", scores=scores)
    monkeypatch.setattr(transformers.Trainer, "training_step", step)
    resumed = training.train(config.but(save_steps=4), *data, tmp_path / "cut", scores=scores)  # no effect on the result
    assert checkpoint_folder.fingerprint(resumed) == checkpoint_folder.fingerprint(whole)
    (a,), (b,) = stages_of(whole), stages_of(resumed)
    assert a["log"] == b["log"] and [entry["step"] for entry in a["log"]] == list(
        range(2, 21, 2)
    )  # step 9 was saved, 10 logged


def test_a_gradient_that_is_not_finite_stops_training_in_its_step(tmp_path, data, scores, tiny_dot, monkeypatch):
    from pyserini_kd.distillation import losses

    calls = []

    def steep(student, *args):
        calls.append(1)
        value = losses.margin_mse(student, *args)
        return value + (0 * student.sum()).sqrt() if len(calls) == 4 else value  # the root's slope at 0 is infinite

    monkeypatch.setitem(losses.LOSSES, "margin_mse", steep)
    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), max_steps=4, batch_size=5, save_steps=2, precision="fp32")
    with pytest.raises(InputError, match="step 4: a gradient is not finite .*last good checkpoint is .*out.last-good"):
        training.train(config, *data, tmp_path / "out", scores=scores)
    assert not (tmp_path / "out").exists()
    kept = loading.load(str(tmp_path / "out.last-good")).state_dict()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())


def test_one_command_at_a_time_trains_an_output(tmp_path, invoke, data, files, tiny_dot):
    write_candidates(data[0], tmp_path / "c.jsonl")
    words = ["--recipe", "ranknet", "--init", tiny_dot, "--candidates", tmp_path / "c.jsonl", "--collection", files["docs"]]
    words += ["--topics", files["topics"], "--output", tmp_path / "m", "--max-steps", 1, "--max-length", 32]
    with locked(tmp_path / ".m.lock" / "lock"):
        result = invoke(train.main, *words)
    assert result.exit_code == 2 and "another train is at work in" in result.output
    result = invoke(train.main, *words)
    assert result.exit_code == 0, result.output
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".m", "m."))]


def test_scores_of_other_texts_are_refused(tmp_path, invoke, data, files, corpus, tiny_dot, tiny_cross):
    groups, *_ = data
    write_candidates(groups, tmp_path / "c.jsonl")
    given = ["--candidates", tmp_path / "c.jsonl", "--topics", files["topics"]]
    result = invoke(
        teach.main, *given, "--collection", files["docs"], "--teacher", tiny_cross, "--output", tmp_path / "s.parquet"
    )
    assert result.exit_code == 0, result.output
    write_collection(
        [doc._replace(text=doc.text + ".") if doc.doc_id == "eat-dog" else doc for doc in corpus], tmp_path / "new.jsonl"
    )
    base = [
        "--recipe",
        "margin-mse",
        "--init",
        tiny_dot,
        "--scores",
        tmp_path / "s.parquet",
        "--score-scale",
        1,
        "--max-steps",
        1,
    ]
    result = invoke(train.main, *base, *given, "--collection", tmp_path / "new.jsonl", "--output", tmp_path / "m")
    of_it = sum("eat-dog" in group.doc_ids for group in groups)
    assert result.exit_code == 2 and f"{of_it} of 50 pairs were scored with other texts than they have here" in result.output
    result = invoke(train.main, *base, *given, "--collection", files["docs"], "--output", tmp_path / "m")
    assert result.exit_code == 0, result.output


def test_a_device_that_is_not_there_is_refused_before_data_are_converted(tmp_path, invoke, data, files, tiny_dot, monkeypatch):
    monkeypatch.setattr(training_data, "_convert", lambda *_, **__: pytest.fail("converted"))
    write_candidates(data[0], tmp_path / "c.jsonl")
    words = ["--recipe", "ranknet", "--init", tiny_dot, "--candidates", tmp_path / "c.jsonl", "--collection", files["docs"]]
    words += ["--topics", files["topics"], "--output", tmp_path / "m"]
    for device, message in (
        ("cuda:99", "--device: training uses the first visible GPU: set CUDA_VISIBLE_DEVICES=99"),
        ("gpu", "--device: must be"),
    ):
        result = invoke(train.main, *words, "--device", device)
        assert result.exit_code == 2 and message in result.output, result.output


@pytest.mark.parametrize(
    ("recipe", "more", "told"),
    [
        ("ranknet", ["--layers", "0,9"], "layers must be ascending numbers from 0 to 1, not 0,9"),
        ("ranknet", ["--student", "prettr", "--setting", "join_layer=7"], "join_layer"),
        ("ranknet", ["--init", "no/where"], "no/where"),
        (
            "ranknet",
            ["--student", "tk", "--dev-topics", "t", "--dev-qrels", "q", "--dev-retrieval"],
            "--dev-retrieval: is for a bert_dot",
        ),
        ("margin-mse", [], "--scores: recipe margin-mse needs teacher scores"),
        ("lm-distill", ["--init", "random:2/33"], "--lm-teacher: recipe lm-distill distils a language model: name the teacher"),
        ("lm-distill", ["--init", "random:2/33", "--lm-teacher", "CROSS"], "a multiple of the teacher's"),
        ("tinybert", ["--init", "random:2/32", "--lm-teacher", "CROSS", "--teacher", "DOT"], "cross"),
    ],
)
def test_model_errors_are_reported_before_data_are_read(
    tmp_path, invoke, files, data, tiny_dot, tiny_cross, monkeypatch, recipe, more, told
):
    for name in ("read_dev", "gather"):
        monkeypatch.setattr(training, name, lambda *args, **kwargs: pytest.fail("reads data"))
    words = ["--recipe", recipe, "--collection", files["docs"], "--topics", files["topics"], "--output", tmp_path / "m"]
    words += ["--candidates", tmp_path / "c.jsonl"]
    words += [] if "--init" in more else ["--init", tiny_dot]
    result = invoke(train.main, *words, *({"CROSS": tiny_cross, "DOT": tiny_dot}.get(word, word) for word in more))
    assert result.exit_code == 2 and told in result.output and "Traceback" not in result.output, result.output
    assert not list(tmp_path.glob("m*"))


def test_a_loss_that_is_not_finite_stops_training(tmp_path, data, liked, tiny_dot):
    bad = Scores(data[0]).fill((q, d, float("inf") if d.startswith("eat-cat") else s) for q, d, s in liked)
    with pytest.raises(InputError, match="not finite"):
        training.train(TrainConfig(recipe="margin-mse", init=str(tiny_dot), max_steps=3), *data, tmp_path / "x", scores=bad)
    assert not (tmp_path / "x").exists()


def test_refusals(tmp_path, data, liked, tiny_dot):
    with pytest.raises(InputError, match="scores: recipe margin-mse needs teacher scores"):
        training.train(TrainConfig(recipe="margin-mse", init=str(tiny_dot)), *data, tmp_path / "x")
    few = Scores(data[0]).fill(scored for scored in liked if scored[2] < 10)
    with pytest.raises(
        InputError, match=f"10 candidate pairs have no teacher score, e.g. query {liked[0][0]}, document {liked[0][1]}"
    ):
        training.train(TrainConfig(recipe="margin-mse", init=str(tiny_dot)), *data, tmp_path / "x", scores=few)
    with pytest.raises(InputError, match="unknown recipe 'magic'; expected one of margin-mse"):
        training.train(TrainConfig(recipe="magic", init=str(tiny_dot)), *data, tmp_path / "x")


def test_data_that_does_not_fit_is_refused(tmp_path, invoke, files, data, scores, tiny_dot):
    groups, *_ = data
    base = ["--collection", files["docs"], "--topics", files["topics"], "--init", tiny_dot, "--output", tmp_path / "m"]
    (tmp_path / "foreign.tsv").write_text("9\t1\tq1\teat-dog\tno-such-doc\n")
    (tmp_path / "other.tsv").write_text("9\t1\tq1\tone\ttwo\n")
    (tmp_path / "lonely.jsonl").write_text(json.dumps(Group("q1", ["eat-cow", "eat-pig"], [0, 0], 0)._asdict()) + "\n")
    (tmp_path / "elsewhere.jsonl").write_text(json.dumps(Group("q1", ["eat-dog", "absent"], [1, 0], 0)._asdict()) + "\n")
    write_candidates(groups, tmp_path / "c.jsonl")
    from transformers import GPT2Config, GPT2Model

    folder = tmp_path / "gpt"
    GPT2Model(GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=9, n_positions=512)).save_pretrained(folder)
    for wrong, words in (
        (
            ["--recipe", "margin-mse", "--scores", tmp_path / "foreign.tsv"],
            "none of its 1 triples has all its texts: 1 with a document that is not in the collection, e.g. no-such-doc",
        ),
        (
            ["--recipe", "margin-mse", "--scores", tmp_path / "foreign.tsv", "--candidates", tmp_path / "c.jsonl"],
            "pairs have no teacher score",
        ),
        (
            ["--recipe", "margin-mse", "--scores", tmp_path / "other.tsv", "--candidates", tmp_path / "c.jsonl"],
            "pairs have no teacher score",
        ),
        (["--recipe", "ranknet", "--candidates", tmp_path / "elsewhere.jsonl"], "e.g. absent"),
        (["--recipe", "ranknet", "--candidates", tmp_path / "lonely.jsonl"], "query q1 has no positive document"),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--init", folder],
            "is a gpt2; a ranker needs an encoder like BERT",
        ),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--loss", "rank=1"], "unknown loss 'rank'"),
        (
            ["--recipe", "tinybert", "--candidates", tmp_path / "c.jsonl", "--student", "bert_dot"],
            "is for a cross_encoder student, not a bert_dot",
        ),
        (["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--start-stage", 2], "has 1 stage"),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--setting", "masks"],
            "NAME=NUMBER such as join_layer=3",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--setting", "magic=3"],
            "--setting: unknown setting magic; a bert_dot has none",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "tk", "--setting", "max_query_len=9"],
            "--setting: unknown setting max_query_len; a tk has layers, heads, feed_forward",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "tk", "--layers", "0"],
            "a tk has its own layers: use the setting layers=2",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "cross_encoder", "--max-length", 9999],
            "reads at most 64 tokens, not 9999",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--glove", "x.txt"],
            "word vectors are for a new tk student; ",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "cross_encoder", "--setting", "masks=8"],
            "unknown setting masks; a cross_encoder has none",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "cross_encoder", "--pooling", "mean"],
            "--pooling: a cross_encoder reads pairs",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "colbert", "--pooling", "mean"],
            "--pooling: is for a bert_dot",
        ),
        (
            ["--recipe", "ranknet", "--candidates", tmp_path / "c.jsonl", "--student", "tk", "--l2-norm"],
            "--l2-norm: is for a bert_dot or a colbert",
        ),
    ):
        result = invoke(train.main, *base, *wrong)
        assert result.exit_code == 2 and words in result.output, result.output
        assert not (tmp_path / "m").exists()
    result = invoke(train.main, "--recipe", "ranknet", "--collection", files["docs"], "--output", tmp_path / "m")
    assert result.exit_code == 2 and "--topics" in result.output


@pytest.mark.parametrize("by", ["states", "dev topics"])
def test_the_last_good_checkpoint_is_kept(tmp_path, data, scores, tiny_dot, dev, monkeypatch, by):
    from pyserini_kd.distillation import losses

    calls = []

    def broken(student, *args):
        calls.append(1)
        return losses.margin_mse(student, *args) * (float("nan") if len(calls) > 3 else 1.0)

    monkeypatch.setitem(losses.LOSSES, "margin_mse", broken)
    saved = {"save_steps": 2} if by == "states" else {"eval_steps": 2}
    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), max_steps=8, batch_size=5, precision="fp32", **saved)
    with pytest.raises(InputError, match="not finite .*last good checkpoint is .*out.last-good"):
        training.train(config, *data, tmp_path / "out", scores=scores, dev=None if by == "states" else dev)
    assert not (tmp_path / "out").exists()
    kept, start = (loading.load(str(path)).state_dict() for path in (tmp_path / "out.last-good", tiny_dot))
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert any(not torch.equal(kept[name], start[name]) for name in kept)


def test_remains_of_a_kill_are_removed_and_foreign_folders_stay(tmp_path, data, tiny_dot):
    config = TrainConfig(recipe="ranknet", init=str(tiny_dot), max_steps=1, batch_size=5, precision="fp32")
    (tmp_path / "a.partial" / "stage-1").mkdir(parents=True)  # killed during removal
    (tmp_path / "a.partial" / ".made_from.json.x1y2.partial").write_text("{")
    (tmp_path / "a.partial" / "clock.json").write_text('{"seconds": 1, "began": 1}')
    training.train(config, *data, tmp_path / "a")
    assert not (tmp_path / "a.partial").exists()
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"b.partial holds other files"):
        training.train(config, *data, tmp_path / "b")
    assert (tmp_path / "b.partial" / "thesis.txt").exists()


def test_saved_states_of_other_settings_stay_without_overwrite(tmp_path, data, tiny_dot):
    config = TrainConfig(
        recipe="ranknet", init=str(tiny_dot), max_steps=4, batch_size=5, precision="fp32", lr=1e-3, save_steps=1
    )
    whole = training.train(config, *data, tmp_path / "whole")
    import transformers

    step = transformers.Trainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transformers.Trainer, "training_step", killed)
        training.train(config, *data, tmp_path / "m")
    other = config.but(lr=2e-3)
    with pytest.raises(
        InputError, match="m.partial holds 2 finished parts made with lr 0.001 instead of 0.002; use the same settings"
    ):
        training.train(other, *data, tmp_path / "m")
    assert checkpoint_folder.fingerprint(training.train(config, *data, tmp_path / "m")) == checkpoint_folder.fingerprint(whole)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transformers.Trainer, "training_step", killed)
        training.train(config, *data, tmp_path / "n")
    assert (
        json.loads((training.train(other, *data, tmp_path / "n", overwrite=True) / "training.json").read_text())["config"]["lr"]
        == 2e-3
    )


def test_a_full_disk_is_one_line_and_the_next_run_resumes(tmp_path, invoke, files, data, tiny_dot, monkeypatch):
    import safetensors.torch
    import transformers

    write_candidates(data[0], tmp_path / "c.jsonl")
    words = [
        "--recipe",
        "ranknet",
        "--init",
        tiny_dot,
        "--collection",
        files["docs"],
        "--topics",
        files["topics"],
        "--max-steps",
        4,
    ]
    words += ["--candidates", tmp_path / "c.jsonl", "--save-steps", 2, "--precision", "fp32", "--output", tmp_path / "m"]

    def saving_state(*args):
        raise OSError(28, "No space left on device")

    def exporting(model, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    for place, name, full in ((transformers.Trainer, "_save_optimizer_and_scheduler", saving_state),
                              (saving, "_save_encoder", exporting)):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            result = invoke(train.main, *words)
        assert result.exit_code == 2 and "No space left on device" in result.output, result.output
        assert (
            sorted(path.name for path in tmp_path.glob("*m*")) == ["m.data.partial", "m.partial"]
            and "Traceback" not in result.output
        )
    result = invoke(train.main, *words)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "m" / "training.json").read_text())
    assert record["data"]["candidates"]["sha256"] == sha256(tmp_path / "c.jsonl")
    assert record["data"]["topics"] == {"path": files["topics"], "sha256": sha256(files["topics"])}
    assert record["data"]["collection"]["sha256"] == sha256(files["docs"])


def test_a_collapsed_model_causes_a_warning(tmp_path, data, tokenizer, caplog):
    folder = save_cross(tokenizer, tmp_path / "flat", layers=2)
    model = loading.load(str(folder))
    torch.nn.init.zeros_(model.classifier.classifier.weight)
    flat = saving.save(model, tmp_path / "flatter")
    training.train(cross("ranknet", flat, max_steps=1, lr=1e-9), *data, tmp_path / "out")
    assert "collapsed" in caplog.text


def test_texts_of_an_interrupted_run_on_pydocs_are_removed_when_packages_change(
    tmp_path, data, corpus, queries, tiny_dot, monkeypatch
):
    monkeypatch.setattr(docstrings, "docs", lambda: iter(corpus))
    monkeypatch.setattr(docstrings, "topics", lambda split: queries)
    real, made = training_data._convert, []
    monkeypatch.setattr(training_data, "_convert", lambda *given, **more: made.append(versions) or real(*given, **more))
    write_candidates(data[0], tmp_path / "c.jsonl")
    given = TrainSettings(recipe="ranknet", init=str(tiny_dot), collection="pydocs", topics="pydocs:train",
                          candidates=tmp_path / "c.jsonl", output=tmp_path / "m")  # fmt: skip
    for versions in ("old", "old", "new"):
        monkeypatch.setattr(docstrings, "stamp", lambda versions=versions: versions)
        with pytest.raises(KeyboardInterrupt), training_data.gather(given):
            raise KeyboardInterrupt
    assert made == ["old", "new"]
