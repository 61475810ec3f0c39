"""Students and teachers at the start of training: sizes, scales and settings."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from pyserini_kd import train as command
from pyserini_kd.distillation import batches, candidates, objective
from pyserini_kd.distillation.config import TrainConfig, shape_of
from pyserini_kd.distillation.student import Teachers, load_student
from pyserini_kd.distillation.training import train
from pyserini_kd.models import checkpoint_folder, layers, loading
from pyserini_kd.storage.errors import InputError
from tests.conftest import cross, save_cross, score, stages_of


@pytest.mark.parametrize(("architecture", "own"), [("bert_dot", {}), ("colbert", {}), ("colbert", {"width": 8})])
def test_start_scale_matches_the_teacher_s_margins(data, scores, tiny_dot, architecture, own):
    groups, queries, docs = data
    model = loading.load(str(tiny_dot), architecture=architecture, settings=own)
    asked = [queries["q0"]] * 2, [docs["eat-cat"], docs["eat-dog"]]
    before = score(model, *asked, precision="fp32")
    collator = batches.Collator(model, queries, docs, scores)
    cut = batches.cut_batches(groups, 5, 0)

    def rms_margin():
        from pyserini_kd.distillation.losses import margins

        batch = [collator([b]) for b in cut]
        with torch.no_grad():
            pairs = [margins(objective.group_scores(model, b), b["teacher"], b["labels"], b["mask"]) for b in batch]
        return [float(torch.cat(side).square().mean().sqrt()) for side in zip(*pairs, strict=True)]

    factor = objective.match_scale(model, collator, cut)
    student, teacher = rms_margin()
    assert factor != 1.0 and student == pytest.approx(teacher, rel=1e-3)
    assert score(model, *asked, precision="fp32") == pytest.approx(factor * before, rel=1e-3)


def test_unit_vectors_with_raw_losses_cause_a_warning(tmp_path, data, tiny_dot, caplog):
    for l2_norm, scale, warned in ((True, None, True), (True, 20.0, False), (None, None, False)):
        caplog.clear()
        config = TrainConfig(recipe="uniform", init=str(tiny_dot), architecture="bert_dot", losses=("margin_mse=none",),
                             l2_norm=l2_norm, score_scale=scale, max_steps=1, batch_size=5, precision="fp32")  # fmt: skip
        out = train(config, *data, tmp_path / "out", overwrite=(tmp_path / "out").exists())
        assert ("vectors have length 1" in caplog.text) is warned
        assert loading.load(str(out)).settings.l2_norm is bool(l2_norm)


def test_a_tk_has_the_requested_layers(tmp_path, invoke, files, data, tiny_dot):
    candidates.write_candidates(data[0], tmp_path / "c.jsonl")
    words = ["--recipe", "ranknet", "--student", "tk", "--collection", files["docs"], "--topics", files["topics"]]
    words += ["--candidates", tmp_path / "c.jsonl", "--max-steps", 1]
    result = invoke(command.main, *words, "--init", tiny_dot, "--setting", "layers=3", "--output", tmp_path / "tk")
    assert result.exit_code == 0, result.output
    assert len(loading.load(str(tmp_path / "tk")).context.layers) == 3
    (tmp_path / "glove.txt").write_text("the 1 0\n")
    again = invoke(
        command.main, *words, "--init", tmp_path / "tk", "--glove", tmp_path / "glove.txt", "--output", tmp_path / "no"
    )
    assert again.exit_code == 2 and "word vectors are for a new tk student" in again.output


def test_dropout_replaces_the_checkpoints_in_every_layer(tmp_path, data, tokenizer):
    noisy = str(save_cross(tokenizer, tmp_path / "noisy", dropout=0.5))
    groups, queries, docs = data
    batch = batches.Collator(loading.load(noisy), queries, docs)([groups[:3]])["student"]

    def scores(**settings):
        torch.manual_seed(0)
        model = load_student(cross("ranknet", noisy, **settings), Teachers())
        return [model.train(training).pair_scores(batch).tolist() for training in (True, True, False)]

    first, second, still = scores()
    assert first != second and first != still
    first, second, still = scores(dropout=0.0)
    assert first == second == pytest.approx(still, rel=1e-5)
    config = cross("ranknet", noisy, dropout=0.0, max_steps=2)
    saved = loading.load(str(train(config, *data, tmp_path / "out"))).classifier.config
    assert saved.hidden_dropout_prob == 0.5  # training.json, not config.json, records the training dropout


def test_the_published_start_of_ranker_distill_is_layers_of_the_teacher(tmp_path, data, teacher, caplog):
    teacher = shutil.copytree(teacher, tmp_path / "minilm-teacher")  # its name says: from a distilled language model
    (teacher / "training.json").write_text('{"distilled_lm": true}')
    teacher = str(teacher)
    config = cross("ranker-distill", teacher, teacher=teacher, layers=(1, 3), max_steps=1)
    out = train(config, *data, tmp_path / "out")
    assert loading.load(str(out)).classifier.config.num_hidden_layers == 2 and "distilled language" not in caplog.text


def meta_student(shape):
    """The student of --init random:SHAPE for a BERT-base teacher, without memory for weights."""
    from types import SimpleNamespace

    from transformers import BertConfig

    encoder = SimpleNamespace(config=BertConfig())
    like = SimpleNamespace(
        architecture="cross_encoder", classifier=SimpleNamespace(base_model=encoder), tokenizer=None, max_len=512
    )
    with torch.device("meta"):
        return objective.random_student(*shape_of(f"random:{shape}"), like)


@pytest.mark.parametrize(("shape", "millions"), [("6/768", 66.96), ("4/312", 14.35), ("3/384", 17.39), ("12/768", 109.5)])
def test_random_students_have_the_papers_sizes(shape, millions):
    model = meta_student(shape)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)
    assert layers.encoder_of(model).config.num_attention_heads == 12


def test_random_students_have_the_papers_speed_ups():
    """Multiplications of 256 tokens against BERT-base: 2.0 and 15.2 in papers.md 4.2, 17 for 4/312 in 1.6."""
    from torch.utils.flop_counter import FlopCounterMode

    def flops(shape):
        model = meta_student(shape).eval()
        model.classifier.set_attn_implementation("eager")
        ids = torch.ones((1, 256), dtype=torch.long, device="meta")
        with FlopCounterMode(display=False) as counter:
            layers.encoder_of(model)(input_ids=ids, attention_mask=torch.zeros((1, 1, 256, 256), device="meta"))
        return counter.get_total_flops()

    base = flops("12/768")
    ratios = {shape: base / flops(shape) for shape in ("6/768", "3/384", "4/312")}
    assert (round(ratios["6/768"], 1), round(ratios["3/384"], 1), round(ratios["4/312"])) == (2.0, 15.2, 17)


def test_the_start_of_a_recipe_is_checked_and_recorded(tmp_path, tokenizer, data, teacher, lm, caplog):
    """The record says if the start is distilled; an unsuitable start is warned about or refused."""

    def trained(recipe, init, **settings):
        caplog.clear()
        settings = {"teacher": teacher, "lm_teacher": lm, "max_steps": 1} | settings
        train(cross(recipe, init, **settings), *data, tmp_path / "out", overwrite=True)
        return json.loads((tmp_path / "out" / "training.json").read_text())["distilled_lm"], "should start from" in caplog.text

    plain = save_cross(tokenizer, tmp_path / "plain", layers=2)
    (distilled := save_cross(tokenizer, tmp_path / "distilled", layers=2)).joinpath("training.json").write_text(
        '{"distilled_lm": true}'
    )
    assert trained("lm+ranker-distill", plain, start_stage=2) == (False, True)
    assert trained("lm+ranker-distill", distilled, start_stage=2) == (True, False)
    assert trained("tinybert", "random:2/16") == (False, True)
    assert trained("ranker-distill", "random:2/16") == (False, False)
    for init in ("minilm", checkpoint_folder.resolve("minilm"), distilled):
        with pytest.raises(InputError, match="must not start from a distilled language model, as "):
            trained("ranker-distill", init)
    with pytest.raises(InputError, match="must not start from a distilled language model, as "):
        trained("ranker-distill", distilled, lm_teacher=str(distilled))  # this recipe does not use it
    named = save_cross(tokenizer, tmp_path / "TinyBERT_General_4L_312D", layers=2)
    with pytest.raises(InputError, match="must not start from a distilled language model, as .*312D is"):
        trained("ranker-distill", named)
    assert trained("standard-kd", named) == (True, False)  # the record keeps its origin
    assert trained("ranker-distill", save_cross(tokenizer, tmp_path / "my-tinybert", layers=2)) == (False, False)
    assert "looks like a distilled language model; recipe ranker-distill must not start from one" in caplog.text


@pytest.mark.parametrize("kind", ["Bert", "RobertaPreLayerNorm", "MegatronBert", "Electra"])  # two of them are pre-norm
def test_scores_are_scaled_by_the_last_norm_of_the_encoder(kind):
    import transformers

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    torch.manual_seed(0)
    encoder = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**shape)).eval()
    ids = torch.randint(5, 50, (3, 7))

    def scores():
        with torch.no_grad():
            vectors = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
        return vectors @ vectors.T

    before = scores()
    objective.scale_scores(SimpleNamespace(encoder=encoder), 4.0)
    torch.testing.assert_close(scores(), 4 * before)


@pytest.mark.parametrize("match_scale", [None, False])
def test_a_student_may_keep_its_own_scale(tmp_path, data, scores, tiny_dot, match_scale):
    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), max_steps=1, precision="fp32", match_scale=match_scale)
    (stage,) = stages_of(train(config, *data, tmp_path / "out", scores=scores))
    assert (stage["match_scale"], stage["start_scale"] == 1.0) == ((True, False) if match_scale is None else (False, True))


def test_a_new_colbert_gets_eight_mask_tokens_and_others_inherit_none(tmp_path, data, tiny_dot):
    made = train(TrainConfig(recipe="ranknet", init=str(tiny_dot), architecture="colbert", max_steps=1), *data, tmp_path / "c")
    assert loading.load(str(made)).settings.masks == 8
    assert loading.load(str(made), architecture="prettr").settings.masks == 0
    again = train(TrainConfig(recipe="ranknet", init=str(made), architecture="prettr", max_steps=1), *data, tmp_path / "p")
    assert loading.load(str(again)).settings.masks == 0


def test_ranker_distill_warns_of_public_distilled_models(tmp_path, tokenizer, data, teacher, caplog):
    init = save_cross(tokenizer, tmp_path / "my-tinybert", layers=2)
    train(cross("ranker-distill", init, teacher=teacher, max_steps=1), *data, tmp_path / "out")
    assert "looks like a distilled language model; recipe ranker-distill must not start from one" in caplog.text
