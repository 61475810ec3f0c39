"""Distillation of layers against kills between and in stages, and against settings that do not fit."""

import pytest

from pyserini_kd import train
from pyserini_kd.distillation import candidates, text_store, training
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.models import checkpoint_folder, loading, saving
from pyserini_kd.storage.errors import InputError
from tests.conftest import cross, save_cross, stages_of


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


def made_dot(recipe, init, **settings):
    return TrainConfig(recipe=recipe, init=str(init), architecture="bert_dot", **settings)


def test_refusals_of_layer_distillation(tmp_path, data, tokenizer, tiny_dot, tiny_cross, teacher, lm):
    def refused(match, recipe, init, make=cross, **settings):
        with pytest.raises(InputError, match=match):
            training.train(make(recipe, init, **settings), *data, tmp_path / "x")
        assert not (tmp_path / "x").exists()

    refused("teacher: recipe tinybert distils layers: name a cross-encoder", "tinybert", tiny_cross)
    refused("lm_teacher: .*: name the teacher, or set `start_stage` 2", "lm-distill+ft", tiny_cross)
    refused("lm-distill needs plain text to distil a language model", "lm-distill", tiny_cross, lm_teacher=lm)
    refused("has 2 stage", "tinybert", tiny_cross, teacher=teacher, start_stage=3)
    refused("for a cross_encoder student, not a bert_dot", "tinybert", tiny_dot, made_dot, teacher=teacher)
    refused("is a bert_dot; layer losses need a cross-encoder", "tinybert", tiny_cross, teacher=str(tiny_dot))
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
    refused("train_len: .* reads 20 tokens, the student 48; .* set 20", "tinybert", tiny_cross, teacher=str(short))
    training.train(cross("tinybert", tiny_cross, teacher=str(short), train_len=20, max_steps=1), *data, tmp_path / "cut")
    refused("random:LAYERS/WIDTH", "ranker-distill", "random:4", teacher=teacher)
    refused("multiple of the teacher's 4 heads", "ranker-distill", "random:2/30", teacher=teacher)
    refused("random:2/16 reads at most .* tokens, not 1000", "ranker-distill", "random:2/16", teacher=teacher, max_doc_len=1000)
    refused("copies vocabulary and heads", "ranknet", "random:2/16")
    for number, like in enumerate(({"teacher": teacher}, {"lm_teacher": lm})):  # they teach nothing here
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
        (["--recipe", "ranknet", "--student", "gpt"], "unknown student 'gpt'; expected one of"),
        (["--recipe", "tinybert", "--init", heads, "--teacher", teacher], "the student has 8 attention heads, the teacher 4"),
        (["--recipe", "tinybert", "--init", three, "--teacher", teacher], "4 layers cannot be mapped onto a student of 3"),
        (
            ["--recipe", "tinybert", "--init", tiny_cross, "--teacher", tiny_dot],
            "is a bert_dot; layer losses need a cross-encoder",
        ),
        (["--recipe", "margin-mse", "--init", tiny_dot, "--scores", tmp_path / "s.tsv"], "the loss is not finite"),
    ):
        result = invoke(train.main, *base, *words)
        assert result.exit_code == 2 and message in result.output, (words, result.output)
        assert not (tmp_path / "m").exists()


def test_a_ranker_that_reads_less_is_refused_before_the_language_model_is_distilled(tmp_path, data, tokenizer, lm):
    (short := loading.load(str(save_cross(tokenizer, tmp_path / "short", layers=2)))).max_len = 20
    saving.save(short, tmp_path / "ranker")
    config = cross("lm+ranker-distill", "random:2/16", lm_teacher=lm, teacher=str(tmp_path / "ranker"), max_steps=1)
    with pytest.raises(InputError, match=r"the teacher reads 20 tokens, the student \d+; .* set 20"):
        training.train(config, *data, tmp_path / "out", texts=list(data[2].values()))
    assert not list(tmp_path.glob("out*"))
    training.train(config.but(train_len=20), *data, tmp_path / "out", texts=list(data[2].values()))


def test_settings_without_effect_are_refused(tmp_path, data, tiny_dot, tiny_cross):
    for settings, message in (
        ({"patience": 2}, "patience: needs dev topics"),
        ({"temperature": 5.0}, "temperature: is for soft_ranknet"),
        ({"teacher": str(tiny_cross)}, "teacher: recipe ranknet with these settings does not use a ranker teacher"),
    ):
        with pytest.raises(InputError, match=message):
            training.train(cross("ranknet", tiny_cross).but(**settings), *data, tmp_path / "x")
    for architecture, setting, message in (
        ("tk", "layers=0", "must be at least 1"),
        ("tk", "heads=0", "must be at least 1"),
        ("tk", "feed_forward=0", "must be at least 1"),
        ("colbert", "width=0", "must be at least 1"),
        ("colbert", "masks=600", "reads at most 64 tokens, not 616"),
    ):
        with pytest.raises(InputError, match=message):
            training.train(
                TrainConfig(recipe="ranknet", init=str(tiny_dot), architecture=architecture, settings=(setting,), max_steps=1),
                *data,
                tmp_path / "x",
            )
    assert not list(tmp_path.glob("x*"))
