"""ColBERT, PreTTR and TK against word vectors, checkpoints and sizes that do not fit."""

import pytest
import torch

from pyserini_kd.models import loading, saving
from pyserini_kd.models.prettr import PreTtr, PreTtrSettings
from pyserini_kd.models.tk import Tk, TkSettings, read_glove
from pyserini_kd.storage.errors import InputError
from tests.models.test_students import LENGTHS, distil, encoder, published, students

# --------------------------------------------------------------------------------------------------------- PreTTR


def test_prettr_must_fit_into_the_window(encoder, tokenizer):
    with pytest.raises(ValueError, match="do not fit into the encoder's 64 positions"):
        PreTtr(encoder, tokenizer, PreTtrSettings(join_layer=1, max_query_len=30, max_doc_len=40))
    with pytest.raises(InputError, match="join_layer must lie between 0 and 1, not 2"):  # never joined
        PreTtr(encoder, tokenizer, PreTtrSettings(join_layer=2, **LENGTHS))


def test_a_prettr_of_foreign_positions_is_refused(tokenizer):
    from transformers import RobertaConfig, RobertaModel

    shape = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=2, num_attention_heads=1, intermediate_size=8
    )
    with pytest.raises(InputError, match="prettr needs a bert or distilbert encoder, not roberta"):
        PreTtr(RobertaModel(shape), tokenizer, PreTtrSettings(join_layer=1, **LENGTHS))


# ------------------------------------------------------------------------------------------------------------- TK


@pytest.mark.parametrize(
    ("line", "message"), [("cat 1 2", ":2: 2 numbers; the first word has 3"), ("cat x y z", ":2: expected a word")]
)
def test_bad_glove(tmp_path, line, message):
    (tmp_path / "glove.txt").write_text(f"the 1 0 0\n{line}\n")
    with pytest.raises(InputError, match=message):
        read_glove(tmp_path / "glove.txt")


def test_words_with_blanks_in_them(tmp_path):
    (tmp_path / "glove.txt").write_text("the 1 0\n. . . 0.5 0.25\n")
    vectors, tokenizer = read_glove(tmp_path / "glove.txt")
    assert vectors[2:].tolist() == [[1, 0], [0.5, 0.25]] and ". . ." in tokenizer.get_vocab()


def test_a_text_without_words_is_no_nan(students):
    model = students["tk"]
    ids, mask = torch.tensor([[5, 6], [0, 0]]), torch.tensor([[1, 1], [0, 0]])
    with torch.no_grad():
        states = model(ids, mask)
        assert torch.allclose(states[0], model(ids[:1], mask[:1])[0], atol=1e-6) and not states[1].any()
        assert torch.isfinite(model.late_scores(states, mask, states, mask)).all()


def test_heads_must_divide_the_word_vectors(tokenizer):
    with pytest.raises(ValueError, match=r"heads \(10\) must divide the width of word vectors \(32\)"):
        Tk(torch.zeros(9, 32), tokenizer, TkSettings())


# ----------------------------------------------------------------------------------------------- published layouts


def test_what_cannot_be_read_as_a_ranker_is_refused(tmp_path, students, tokenizer):
    from transformers import GPT2Config, GPT2Model

    tk = str(saving.save(students["tk"], tmp_path / "tk"))
    with pytest.raises(InputError, match="is a tk and cannot be read as a cross_encoder"):
        loading.load(tk, architecture="cross_encoder")
    GPT2Model(GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=len(tokenizer))).save_pretrained(tmp_path / "gpt")
    tokenizer.save_pretrained(tmp_path / "gpt")
    for architecture in ("bert_dot", "cross_encoder"):
        with pytest.raises(InputError, match="is a gpt2; a ranker needs an encoder like BERT"):
            loading.load(str(tmp_path / "gpt"), architecture=architecture, lean=True)
    narrow = str(saving.save(students["colbert"], tmp_path / "narrow"))
    with pytest.raises(InputError, match="size mismatch for weight"):  # what torch says, not only where
        loading.load(narrow, settings={"width": 8})


def test_a_published_layout_that_does_not_fit(tmp_path, distil, tokenizer):
    folder = published(tmp_path / "c", "ColBERT", distil, tokenizer, prefix="other.")
    with pytest.raises(InputError, match="contains no DistilBERT"):
        loading.load(folder)
