"""Layers, live teachers, stages: TinyBERT, its simplification, language models on plain text."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import cross, save_cross, score, stages_of

from pyserini_kd import train
from pyserini_kd.distillation import batches, candidates, layer_losses, objective, stages, text_store, training
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.student import load_teachers
from pyserini_kd.distillation.teacher_scores import Scores
from pyserini_kd.models import checkpoint_folder, fast_bert, loading, saving
from pyserini_kd.storage.errors import InputError

TOKENS = "input_ids", "token_type_ids", "attention_mask"


def test_simplified_tinybert_learns_layers_scores_and_labels(tmp_path, data, tiny_cross, teacher):
    out = training.train(
        cross("simplified-tinybert", tiny_cross, teacher=teacher, max_steps=60, lr=3e-3), *data, tmp_path / "out"
    )
    (stage,) = stages_of(out)
    first, last = stage["log"][0], stage["log"][-1]
    assert {"hidden", "attention", "soft_ce", "bce", "score_std", "grad_norm"} <= set(first)
    assert all(last[name] < first[name] for name in ("hidden", "attention"))
    from transformers import AutoModelForSequenceClassification

    weights = AutoModelForSequenceClassification.from_pretrained(out).state_dict()
    assert not any("projection" in name for name in weights)
    assert weights.keys() == loading.load(str(tiny_cross)).classifier.state_dict().keys()
    assert loading.load(str(out)).classifier.config.hidden_size == 32


@pytest.mark.parametrize(
    ("recipe", "settings", "lean"),
    [("standard-kd", {}, True), ("standard-kd", {"teacher_dropout": True}, False), ("simplified-tinybert", {}, False)],
)
def test_a_live_teacher_is_lean_where_its_scores_alone_are_asked_for(tiny_cross, teacher, recipe, settings, lean):
    config = cross(recipe, tiny_cross, teacher=teacher, **settings)
    loaded = load_teachers(config, [stage for _, stage in config.stages()]).ranker
    assert isinstance(loaded.classifier, fast_bert.BertClassifier) is lean


def test_a_live_teacher_gives_the_scores_of_a_score_file(tmp_path, data, tiny_dot, teacher):
    groups, queries, docs = data
    model = loading.load(teacher)
    asked = [(g.query_id, d) for g in groups for d in g.doc_ids]
    found = score(model, [queries[q] for q, _ in asked], [docs[d] for _, d in asked], precision="fp32").tolist()
    scores = Scores(groups).fill((q, d, score) for (q, d), score in zip(asked, found, strict=True))
    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), lr=1e-3, max_steps=6, batch_size=5, precision="fp32")
    stored = training.train(config, *data, tmp_path / "stored", scores=scores)
    live = training.train(config.but(teacher=teacher), *data, tmp_path / "live")
    a, b = (stages_of(folder)[0] for folder in (stored, live))
    assert a["start_scale"] == pytest.approx(b["start_scale"], rel=1e-4)
    assert [x["margin_mse"] for x in a["log"]] == pytest.approx([x["margin_mse"] for x in b["log"]], rel=1e-3)


def test_the_teacher_sleeps_unless_its_dropout_is_asked_for(tmp_path, data, tokenizer, tiny_cross):
    noisy = save_cross(tokenizer, tmp_path / "noisy", dropout=0.5)
    groups, queries, docs = data
    student, model = loading.load(str(tiny_cross)), loading.load(str(noisy))
    batch = batches.Collator(student, queries, docs, teacher=model, same_inputs=True)([groups[:3]])

    def losses_of(**settings):
        torch.manual_seed(0)
        module = objective.Learner(student, {"hidden": 1.0, "attention": 1.0}, teacher=model, **settings).train()
        assert not any("teacher" in name for name in module.state_dict())
        return [float(module(**batch)["loss"].detach()) for _ in range(2)]

    quiet, loud = losses_of(), losses_of(teacher_dropout=True)
    assert quiet[0] == quiet[1] and loud[0] != loud[1]


@pytest.mark.parametrize("count", [6, 4, 3])
def test_a_narrower_student_follows_the_right_layers_of_twelve(tokenizer, data, count):
    """One step's loss is that of full recordings: hidden states through the projection, attention head by head."""
    from conftest import tiny_config
    from transformers import BertForSequenceClassification

    from pyserini_kd.models.cross_encoder import CrossEncoder

    torch.manual_seed(3)
    shape = tiny_config(tokenizer, layers=12)
    shape.num_labels = 1
    big = CrossEncoder(BertForSequenceClassification(shape).eval(), tokenizer, 48)
    model = objective.random_student(count, 24, big).eval()
    groups, queries, docs = data
    batch = batches.Collator(model, queries, docs, teacher=big, same_inputs=True)([groups[:2]])
    module = objective.Learner(model, {"hidden": 1.0, "attention": 1.0}, teacher=big)
    found = float(module.eval()(**batch)["loss"].detach())
    every = []
    for one in (model, big):
        with torch.no_grad(), layer_losses.recorded(one.classifier.bert) as layers:
            one.classifier.bert(**{name: value for name, value in batch["student"].items() if name in TOKENS})
        every.append(layers)
    own, theirs = every
    expected = layer_losses.hidden_loss(own.hidden, theirs.hidden, module.projection)
    expected = float((expected + layer_losses.attention_loss(own.attention, theirs.attention)).detach())
    assert len(theirs.hidden) == 13 and found == pytest.approx(expected, rel=1e-4) and expected > 1e-3


def test_in_batch_negatives_join_margin_mse(data, scores, tiny_dot):
    from pyserini_kd.distillation.losses import listwise_ce

    groups, queries, docs = data
    model = loading.load(str(tiny_dot))
    batch = batches.Collator(model, queries, docs, scores, in_batch=True)([[groups[0], groups[5]]])  # of two blocks
    module = objective.Learner(model, {"margin_mse": 1.0, "in_batch": 0.5})
    total = float(module(**batch)["loss"].detach())
    distinct = list(dict.fromkeys([*groups[0].doc_ids, *groups[5].doc_ids]))
    labels = torch.tensor(
        [[int((d, 1) in zip(g.doc_ids, g.labels, strict=True)) for d in distinct] for g in (groups[0], groups[5])]
    )
    own = [score(model, [queries[g.query_id]] * len(distinct), [docs[d] for d in distinct], precision="fp32")
           for g in (groups[0], groups[5])]  # fmt: skip
    expected = float(listwise_ce(torch.tensor(np.stack(own)), None, labels, torch.ones_like(labels, dtype=torch.bool)))
    assert module.terms["in_batch"] == [pytest.approx(expected, rel=1e-4)]
    assert total == pytest.approx(module.terms["margin_mse"][0] + 0.5 * expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("where", [(1, 3), (2, 1)], ids=lambda where: f"stage{where[0]}-step{where[1]}")
def test_a_recipe_of_two_stages_resumes_where_it_was_killed(
    tmp_path, data, tiny_cross, teacher, whole_tinybert, monkeypatch, where
):
    import transformers

    step, begun = transformers.Trainer.training_step, []

    def killed(self, *args, **kwargs):
        stage = int(str(self.args.output_dir)[-1])
        begun.append(stage)
        if (stage, self.state.global_step) == where:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    config = cross("tinybert", tiny_cross, teacher=teacher, save_steps=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transformers.Trainer, "training_step", killed)
        training.train(config, *data, tmp_path / "cut")
    assert not (tmp_path / "cut").exists() and (tmp_path / "cut.partial" / "000001.done").exists() == (where[0] == 2)
    begun.clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            transformers.Trainer,
            "training_step",
            lambda self, *a, **k: begun.append(self.state.global_step) or step(self, *a, **k),
        )
        out = training.train(config, *data, tmp_path / "cut")
    assert len(begun) == {(1, 3): 6, (2, 1): 4}[where]  # of 8 steps
    assert checkpoint_folder.fingerprint(out) == checkpoint_folder.fingerprint(whole_tinybert)
    assert [[entry["step"] for entry in stage["log"]] for stage in stages_of(out)] == [[1, 2, 3, 4]] * 2


def test_tinybert_trains_layers_then_scores(whole_tinybert):
    first, second = stages_of(whole_tinybert)
    assert {"hidden", "attention"} <= set(first["log"][0]) and not {"soft_ce", "score_std"} & set(first["log"][0])
    assert "soft_ce" in second["log"][0] and "hidden" not in second["log"][0]
    assert {entry["lr"] for entry in first["log"]} == {1e-3} and second["log"][-1]["lr"] < 1e-3  # constant, then linear


def test_language_models_are_distilled_on_plain_text_alone(tmp_path, data, corpus, files, invoke, lm, teacher):
    base = ["--collection", files["docs"], "--batch-size", 4, "--lr", 3e-3, "--precision", "fp32"]
    result = invoke(train.main, "--recipe", "lm-distill", *base, "--lm-teacher", lm, "--init", "random:2/16",
                    "--max-steps", 20, "--output", tmp_path / "small")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "20 plain texts" in result.output
    (stage,) = stages_of(tmp_path / "small")
    assert stage["log"][-1]["hidden"] < stage["log"][0]["hidden"]
    from transformers import AutoModel

    assert AutoModel.from_pretrained(tmp_path / "small").config.num_hidden_layers == 2
    groups = data[0]
    candidates.write_candidates(groups, tmp_path / "c.jsonl")
    more = ["--topics", files["topics"], "--candidates", tmp_path / "c.jsonl", "--max-steps", 2, "--init", tmp_path / "small"]
    result = invoke(train.main, "--recipe", "ranker-distill", *base, *more, "--teacher", teacher, "--output", tmp_path / "x")
    assert result.exit_code == 2 and "ranker-distill must not start from a distilled language model, as " in result.output
    result = invoke(
        train.main, "--recipe", "ranker-distill", *base, *more[:-2], "--teacher", teacher, "--output", tmp_path / "x"
    )
    assert (
        result.exit_code == 2
        and "must not start from a distilled language model, as minilm is; start from random" in result.output
    )
    result = invoke(train.main, "--recipe", "lm-distill", *base, "--lm-teacher", lm, "--init", "random:2/16", "--segment", "4:2",
                    "--max-steps", 90, "--output", tmp_path / "cut")  # fmt: skip
    assert result.exit_code == 0 and "60 plain texts" in result.output, result.output
    result = invoke(train.main, "--recipe", "lm+ranker-distill", *base, *more, "--teacher", teacher, "--start-stage", 2,
                    "--output", tmp_path / "ranker")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert [stage["name"] for stage in stages_of(tmp_path / "ranker")] == ["ranker's layers", "ranker's scores"]
    assert json.loads((tmp_path / "ranker" / "training.json").read_text())["distilled_lm"] is True


def test_lm_distill_and_fine_tuning_in_one_command_never_sees_a_ranker(tmp_path, data, lm):
    out = training.train(
        cross("lm-distill+ft", "random:2/16", lm_teacher=lm), *data, tmp_path / "out", texts=list(data[2].values())
    )
    first, second = stages_of(out)
    assert "hidden" in first["log"][0] and "bce" in second["log"][0] and not {"hidden", "soft_ce"} & set(second["log"][0])
    assert loading.load(str(out)).architecture == "cross_encoder"


def made_dot(recipe, init, **settings):
    return TrainConfig(recipe=recipe, init=str(init), architecture="bert_dot", **settings)


def test_refusals_of_layer_distillation(tmp_path, data, tokenizer, tiny_dot, tiny_cross, teacher, lm):
    def refused(match, recipe, init, make=cross, **settings):
        with pytest.raises(InputError, match=match):
            training.train(make(recipe, init, **settings), *data, tmp_path / "x")
        assert not (tmp_path / "x").exists()

    refused("teacher: recipe tinybert distils layers: name a cross-encoder", "tinybert", tiny_cross)
    refused("lm_teacher: .*: name one, or start with stage 2", "lm-distill+ft", tiny_cross)
    refused("and there is none", "lm-distill", tiny_cross, lm_teacher=lm)
    refused("has 2 stage", "tinybert", tiny_cross, teacher=teacher, start_stage=3)
    refused("for a cross_encoder student, not a bert_dot", "tinybert", tiny_dot, made_dot, teacher=teacher)
    refused("is a bert_dot; layers are those of a cross-encoder", "tinybert", tiny_cross, teacher=str(tiny_dot))
    three = save_cross(tokenizer, tmp_path / "three", layers=3)
    refused("4 layers cannot be mapped onto a student of 3", "tinybert", three, teacher=teacher)
    heads = save_cross(tokenizer, tmp_path / "heads", layers=2, heads=8)
    refused("8 attention heads, the teacher 4", "tinybert", heads, teacher=teacher)
    training.train(cross("tinybert", heads, teacher=teacher, losses=("attention=0",), max_steps=1), *data, tmp_path / "fine")
    from transformers import BertTokenizer

    other = BertTokenizer(vocab={word: row for row, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"])})
    refused("different vocabularies", "tinybert", tiny_cross, teacher=str(save_cross(other, tmp_path / "other")))
    short = loading.load(teacher)
    short.max_len = 20
    short = saving.save(short, tmp_path / "short")
    refused("train_len: .* reads 20 tokens a pair, the student 48: .* set 20", "tinybert", tiny_cross, teacher=str(short))
    training.train(cross("tinybert", tiny_cross, teacher=str(short), train_len=20, max_steps=1), *data, tmp_path / "cut")
    refused("random:LAYERS/WIDTH", "ranker-distill", "random:4", teacher=teacher)
    refused("multiple of the teacher's 4 heads", "ranker-distill", "random:2/30", teacher=teacher)
    refused("tokens at most; a longer length", "ranker-distill", "random:2/16", teacher=teacher, max_doc_len=1000)
    refused("takes vocabulary and heads", "ranknet", "random:2/16")
    for number, like in enumerate(({"teacher": teacher}, {"lm_teacher": lm})):  # which teach nothing here
        training.train(cross("ranknet", "random:2/16", max_steps=1, **like), *data, made := tmp_path / f"like{number}")
        assert loading.load(str(made)).classifier.config.hidden_size == 16
    refused("makes a cross_encoder", "ranknet", "random:2/16", made_dot)
    refused("unknown loss", "uniform", tiny_cross, losses=("magic=1",))


def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path, invoke, files, data, scores, tokenizer, tiny_dot, tiny_cross, teacher, monkeypatch
):
    from pyserini_kd.distillation import losses

    candidates.write_candidates(data[0], tmp_path / "c.jsonl")
    text_store.write_triples(scores.each(data[0]), tmp_path / "s.tsv")
    three = save_cross(tokenizer, tmp_path / "three", layers=3)
    heads = save_cross(tokenizer, tmp_path / "heads", layers=2, heads=8)
    base = [
        "--collection",
        files["docs"],
        "--topics",
        files["topics"],
        "--output",
        tmp_path / "m",
        "--candidates",
        tmp_path / "c.jsonl",
    ]
    monkeypatch.setitem(losses.LOSSES, "margin_mse", lambda student, *_: student.sum() * float("nan"))
    for words, message in (
        (["--recipe", "magic"], "unknown recipe 'magic'; expected one of margin-mse"),
        (["--recipe", "ranknet", "--student", "gpt"], "unknown student 'gpt'; one of"),
        (["--recipe", "tinybert", "--init", heads, "--teacher", teacher], "the student has 8 attention heads, the teacher 4"),
        (["--recipe", "tinybert", "--init", three, "--teacher", teacher], "4 layers cannot be mapped onto a student of 3"),
        (
            ["--recipe", "tinybert", "--init", tiny_cross, "--teacher", tiny_dot],
            "is a bert_dot; layers are those of a cross-encoder",
        ),
        (["--recipe", "margin-mse", "--init", tiny_dot, "--scores", tmp_path / "s.tsv"], "the loss is not finite"),
    ):
        result = invoke(train.main, *base, *words)
        assert result.exit_code == 2 and message in result.output, (words, result.output)
        assert not (tmp_path / "m").exists()


def test_what_is_set_reaches_the_losses(tmp_path, data, scores, tokenizer, tiny_cross):
    """Temperature, score scale, weights of layers, the teacher's dropout, the number of epochs."""

    def first(recipe, **settings):
        config = cross(recipe, tiny_cross, **{"max_steps": 1, "lr": 1e-9, **settings})
        with_scores = {} if settings.get("teacher") else {"scores": scores}
        (stage,) = stages_of(training.train(config, *data, tmp_path / "out", **with_scores, overwrite=True))
        return stage

    base = first("standard-kd")["log"][0]
    assert first("standard-kd", temperature=3.0)["log"][0]["soft_ce"] != base["soft_ce"]
    assert first("standard-kd", score_scale=3.0)["log"][0]["bce"] != base["bce"]
    noisy = str(save_cross(tokenizer, tmp_path / "noisy", dropout=0.3))
    layers = {"teacher": noisy, "losses": ("soft_ce=none", "bce=none", "attention=none", "hidden=1")}
    plain = first("simplified-tinybert", **layers)["log"][0]
    heavy = first("simplified-tinybert", **layers | {"losses": (*layers["losses"], "hidden=7")})["log"][0]
    assert heavy["grad_norm"] == pytest.approx(7 * plain["grad_norm"], rel=1e-3)
    dropped = first("simplified-tinybert", **layers, teacher_dropout=True)["log"][0]
    assert dropped["hidden"] != plain["hidden"] == heavy["hidden"]
    n_batches = len(batches.cut_batches(data[0], 5, 0))
    assert first("standard-kd", max_steps=None, epochs=1.5, batch_size=5)["steps"] == math.ceil(1.5 * n_batches)


def test_the_attention_loss_does_not_depend_on_what_a_batch_is_padded_to(tiny_cross, teacher, data):
    groups, queries, docs = data
    model, big = loading.load(str(tiny_cross)), loading.load(teacher)
    collator = batches.Collator(model, queries, docs, teacher=big, same_inputs=True)
    module = objective.Learner(model, {"attention": 1.0}, teacher=big, length=collator.length)
    short = {who: dict(tokens) for who, tokens in collator([groups[:2]]).items() if isinstance(tokens, dict)}
    found = []
    for more in (0, collator.length - short["student"]["input_ids"].shape[1]):
        longer = {
            who: {name: torch.nn.functional.pad(t, (0, more)) for name, t in tokens.items()} for who, tokens in short.items()
        }
        _, own, _, theirs = module._run_both(longer)
        found.append(layer_losses.attention_loss(own.attention, theirs.attention, module.length).item())
    assert found[0] == pytest.approx(found[1], rel=0.2)  # 4 times as long: padded tokens ask too, of real ones only
    assert found[1] == pytest.approx(layer_losses.attention_loss(own.attention, theirs.attention).item())


def test_the_projection_goes_on_from_one_stage_to_the_next(tmp_path, data, teacher, monkeypatch):
    """What maps the student's states to the teacher's is learnt once, also when the run is cut between the stages."""
    taken, settings = [], {"lm_teacher": teacher, "teacher": teacher, "max_steps": 2, "lr": 1e-2, "losses": ("soft_ce=none",)}
    take = stages._take_projection

    def spy(module, job, number):
        fresh = module.projection.weight.clone()
        take(module, job, number)
        taken.append((number, fresh, module.projection.weight.clone(), module))

    monkeypatch.setattr(stages, "_take_projection", spy)
    config = cross("lm+ranker-distill", "random:2/16", **settings)
    whole = training.train(config, *data, tmp_path / "whole", texts=list(data[2].values()))
    (_, fresh, begun, first), (_, other, went_on, _) = taken
    assert torch.equal(fresh, begun) and not torch.equal(other, went_on)
    assert torch.equal(went_on, first.projection.weight)
    run = training.run_stage

    def dying(work, number, stage):
        if number == 2:
            raise KeyboardInterrupt
        return run(work, number, stage)

    monkeypatch.setattr(training, "run_stage", dying)
    with pytest.raises(KeyboardInterrupt):
        training.train(config, *data, tmp_path / "cut", texts=list(data[2].values()))
    monkeypatch.setattr(training, "run_stage", run)
    assert checkpoint_folder.fingerprint(
        training.train(config, *data, tmp_path / "cut", texts=list(data[2].values()))
    ) == checkpoint_folder.fingerprint(whole)


def test_a_ranker_that_reads_less_is_refused_before_the_language_model_is_distilled(tmp_path, data, tokenizer, lm):
    (short := loading.load(str(save_cross(tokenizer, tmp_path / "short", layers=2)))).max_len = 20
    saving.save(short, tmp_path / "ranker")
    config = cross("lm+ranker-distill", "random:2/16", lm_teacher=lm, teacher=str(tmp_path / "ranker"), max_steps=1)
    with pytest.raises(InputError, match=r"the teacher reads 20 tokens a pair, the student \d+: .* set 20"):
        training.train(config, *data, tmp_path / "out", texts=list(data[2].values()))
    assert not list(tmp_path.glob("out*"))
    training.train(config.but(train_len=20), *data, tmp_path / "out", texts=list(data[2].values()))


def test_accumulated_batches_do_not_shorten_an_epoch(tmp_path, data, tiny_cross):
    """Trainer ends an epoch's last group of batches with the epoch."""
    config = cross("ranknet", tiny_cross, batch_size=2, max_steps=None, epochs=3, lr=1e-9)
    n_batches = len(batches.cut_batches(data[0], 2, 0))
    for accumulate in (1, 2, n_batches - 1):
        (stage,) = stages_of(training.train(config.but(accumulate=accumulate), *data, tmp_path / "out", overwrite=True))
        assert stage["steps"] == 3 * math.ceil(n_batches / accumulate)


def test_settings_that_would_change_nothing_are_refused(tmp_path, data, tiny_dot, tiny_cross):
    for settings, message in (
        ({"patience": 2}, "patience: counts measures on dev topics"),
        ({"temperature": 5.0}, "temperature: is of soft_ranknet"),
        ({"teacher": str(tiny_cross)}, "teacher: recipe ranknet, as asked for, learns nothing from a ranker"),
    ):
        with pytest.raises(InputError, match=message):
            training.train(cross("ranknet", tiny_cross).but(**settings), *data, tmp_path / "x")
    for architecture, setting, message in (
        ("tk", "layers=0", "must be 1 at least"),
        ("tk", "heads=0", "must be 1 at least"),
        ("tk", "feed_forward=0", "must be 1 at least"),
        ("colbert", "width=0", "must be 1 at least"),
        ("colbert", "masks=600", "a longer length was asked for"),
    ):
        with pytest.raises(InputError, match=message):
            training.train(
                TrainConfig(recipe="ranknet", init=str(tiny_dot), architecture=architecture, settings=(setting,), max_steps=1),
                *data,
                tmp_path / "x",
            )
    assert not list(tmp_path.glob("x*"))
