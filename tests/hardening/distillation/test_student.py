"""Students against starts, scores, scales and tokenizers that do not fit."""

import pytest

from pyserini_kd import train as command
from pyserini_kd.distillation import batches
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.teacher_scores import Scores
from pyserini_kd.distillation.training import train
from pyserini_kd.models import loading, saving
from pyserini_kd.storage.errors import InputError


def test_layers_of_a_random_start_are_refused():
    with pytest.raises(InputError, match="random:2/32 sets the number of layers"):
        TrainConfig(recipe="ranker-distill", init="random:2/32", architecture="cross_encoder", layers=(0,), teacher="x")


def test_bounded_scores_are_refused_or_scaled(tmp_path, invoke, files, data, liked, tiny_dot):
    bounded = Scores(data[0]).fill((q, d, s / 10) for q, d, s in liked)
    config = TrainConfig(recipe="margin-mse", init=str(tiny_dot), max_steps=1, batch_size=5, precision="fp32")
    with pytest.raises(InputError, match=r"all teacher scores lie in \[-1, 1\]"):
        train(config, *data, tmp_path / "x", scores=bounded)
    train(config.but(score_scale=0.05), *data, tmp_path / "scaled", scores=bounded)
    (tmp_path / "s.tsv").write_text("0.75\t-1\tq0\teat-cat\teat-dog\n")
    words = ["--recipe", "margin-mse", "--init", tiny_dot, "--collection", files["docs"], "--topics", files["topics"]]
    result = invoke(command.main, *words, "--scores", tmp_path / "s.tsv", "--max-steps", 1, "--output", tmp_path / "y")
    assert result.exit_code == 2 and "all teacher scores lie in [-1, 1]" in result.output and not list(tmp_path.glob("y*"))
    cosine = loading.load(str(tiny_dot), l2_norm=True)
    saving.save(cosine, tmp_path / "cosine")
    live = config.but(teacher=str(tmp_path / "cosine"))
    with pytest.raises(InputError, match=r"gives cosines in \[-1, 1\]: set `score_scale`"):
        train(live, *data, tmp_path / "z")
    with pytest.raises(InputError, match="temperature: is for soft_ranknet, .*; recipe margin-mse has none of them"):
        train(live.but(temperature=0.1), *data, tmp_path / "z")
    mixed = live.but(losses=("soft_ranknet=1",), temperature=0.1)  # margin-mse ignores it
    with pytest.raises(InputError, match=r"gives cosines in \[-1, 1\]: set `score_scale`"):
        train(mixed, *data, tmp_path / "z")
    train(live.but(score_scale=0.05), *data, tmp_path / "z")
    soft = live.but(recipe="uniform", losses=("margin_mse=none", "soft_ranknet=1"), temperature=0.1)
    train(soft, *data, tmp_path / "soft")


def test_tokenizers_that_cut_words_differently_are_refused(data, tokenizer, tiny_cross, teacher):
    from transformers import BertTokenizer

    groups, queries, docs = data
    student, other = loading.load(str(tiny_cross)), loading.load(teacher)
    other.tokenizer = BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=False)  # same vocabulary
    with pytest.raises(InputError, match="do not see the same tokens"):
        batches.Collator(student, queries, docs, teacher=other, same_inputs=True)([groups[:5]])


def test_match_scale_is_refused_without_scores_to_match(tmp_path, data, tiny_dot, tiny_cross):
    with pytest.raises(InputError, match="match_scale: is for losses on teacher scores; recipe ranknet"):  # nothing to match
        train(TrainConfig(recipe="ranknet", init=str(tiny_dot), max_steps=1, match_scale=True), *data, tmp_path / "out")
    with pytest.raises(InputError, match="match_scale: is for a bert_dot or a colbert whose vectors"):
        TrainConfig(recipe="margin-mse", init=str(tiny_cross), architecture="cross_encoder", match_scale=True)
    with pytest.raises(InputError, match="match_scale: is for"):
        TrainConfig(recipe="margin-mse", init=str(tiny_dot), match_scale=True, l2_norm=True)
