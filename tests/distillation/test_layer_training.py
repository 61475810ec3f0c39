"""Layers, live teachers, stages: TinyBERT, its simplification, language models on plain text."""

import json
import math

import numpy as np
import pytest
import torch

from pyserini_kd import train
from pyserini_kd.distillation import batches, candidates, layer_losses, objective, stages, training
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.teacher_scores import Scores
from pyserini_kd.models import checkpoint_folder, loading
from pyserini_kd.storage.errors import InputError
from tests.conftest import cross, save_cross, score, stages_of

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


def test_the_teacher_is_in_eval_mode_without_teacher_dropout(tmp_path, data, tokenizer, tiny_cross):
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
    """The loss of one step equals the loss from all recorded layers."""
    from transformers import BertForSequenceClassification

    from pyserini_kd.models.cross_encoder import CrossEncoder
    from tests.conftest import tiny_config

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
    batch = batches.Collator(model, queries, docs, scores, in_batch=True)([[groups[0], groups[5]]])  # from two blocks
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


def test_tinybert_trains_layers_then_scores(whole_tinybert):
    first, second = stages_of(whole_tinybert)
    assert {"hidden", "attention"} <= set(first["log"][0]) and not {"soft_ce", "score_std"} & set(first["log"][0])
    assert "soft_ce" in second["log"][0] and "hidden" not in second["log"][0]
    assert {entry["lr"] for entry in first["log"]} == {1e-3} and second["log"][-1]["lr"] < 1e-3  # constant, then linear


def test_language_models_are_distilled_on_plain_text_only(tmp_path, data, corpus, files, invoke, lm, teacher):
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


def test_settings_reach_the_losses(tmp_path, data, scores, tokenizer, tiny_cross):
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


def test_the_attention_loss_does_not_depend_on_padding(tiny_cross, teacher, data):
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
    assert found[0] == pytest.approx(found[1], rel=0.2)  # 4 times as long: padded queries count too, over real keys
    assert found[1] == pytest.approx(layer_losses.attention_loss(own.attention, theirs.attention).item())


def test_the_next_stage_continues_with_the_projection(tmp_path, data, teacher, monkeypatch):
    """The projection is learnt once, even if the run is interrupted between the stages."""
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


def test_accumulated_batches_do_not_shorten_an_epoch(tmp_path, data, tiny_cross):
    """Trainer ends the last accumulation group with the epoch."""
    config = cross("ranknet", tiny_cross, batch_size=2, max_steps=None, epochs=3, lr=1e-9)
    n_batches = len(batches.cut_batches(data[0], 2, 0))
    for accumulate in (1, 2, n_batches - 1):
        (stage,) = stages_of(training.train(config.but(accumulate=accumulate), *data, tmp_path / "out", overwrite=True))
        assert stage["steps"] == 3 * math.ceil(n_batches / accumulate)


def test_the_relation_loss_joins_or_replaces_other_layer_losses(tmp_path, data, tokenizer, lm):
    """Alone, it allows any numbers of layers and any widths."""
    texts = list(data[2].values())
    config = cross("lm-distill", "random:3/16", lm_teacher=lm, losses=("none", "relations=1"), max_steps=40, lr=3e-3)
    (stage,) = stages_of(training.train(config, [], {}, {}, tmp_path / "alone", texts=texts))
    assert set(stage["losses"]) == {"relations"} and stage["log"][-1]["relations"] < 0.8 * stage["log"][0]["relations"]
    beside = cross("lm-distill", "random:2/16", lm_teacher=lm, losses=("relations=1",))
    (stage,) = stages_of(training.train(beside, [], {}, {}, tmp_path / "beside", texts=texts))
    assert {"hidden", "attention", "relations"} <= set(stage["log"][0])
    same = cross("lm-distill", lm, lm_teacher=lm, losses=("none", "relations=1"), max_steps=1, lr=1e-9)
    (stage,) = stages_of(training.train(same, [], {}, {}, tmp_path / "same", texts=texts))
    assert stage["log"][0]["relations"] == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(InputError, match="4 layers cannot be mapped onto a student of 3"):
        training.train(cross("lm-distill", "random:3/16", lm_teacher=lm), [], {}, {}, tmp_path / "x", texts=texts)
