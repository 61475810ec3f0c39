"""Layer losses against students and teachers whose layers do not fit."""

import pytest

from pyserini_kd.distillation import layer_losses
from pyserini_kd.storage.errors import InputError


@pytest.mark.parametrize(("student", "teacher"), [(5, 12), (12, 6), (4, 6), (0, 12)])
def test_layers_that_do_not_divide_are_refused(student, teacher):
    for layer_map in (layer_losses.attention_map, layer_losses.hidden_map):
        with pytest.raises(InputError, match=f"{teacher} layers cannot be mapped onto a student of {student}"):
            layer_map(student, teacher)


def test_layers_of_narrow_embeddings_are_refused(tokenizer):
    from transformers import ElectraConfig, ElectraModel

    shape = ElectraConfig(vocab_size=len(tokenizer), embedding_size=4, hidden_size=8, num_hidden_layers=2, num_attention_heads=1,
                          intermediate_size=8)  # fmt: skip
    with pytest.raises(InputError, match="ElectraModel whose embeddings are narrower cannot be distilled"):
        layer_losses.check(ElectraModel(shape), ElectraModel(shape), ["hidden"])


def test_check_names_what_does_not_fit(tokenizer):
    from transformers import BertModel, GPT2Config, GPT2Model

    from tests.conftest import tiny_config

    teacher = BertModel(tiny_config(tokenizer, layers=4))
    layer_losses.check(BertModel(tiny_config(tokenizer, layers=2)), teacher, ["hidden", "attention"])
    with pytest.raises(InputError, match="4 layers cannot be mapped onto a student of 3"):
        layer_losses.check(BertModel(tiny_config(tokenizer, layers=3)), teacher, ["hidden", "attention"])
    config = tiny_config(tokenizer)
    config.num_attention_heads = 2
    layer_losses.check(BertModel(config), teacher, ["hidden"])
    with pytest.raises(InputError, match="student has 2 attention heads, the teacher 4"):
        layer_losses.check(BertModel(config), teacher, ["hidden", "attention"])
    from transformers import DebertaV2Config, DebertaV2Model, MPNetConfig, MPNetModel

    shape = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    for other in (MPNetModel(MPNetConfig(**shape)), DebertaV2Model(DebertaV2Config(**shape))):
        with pytest.raises(InputError, match="is not BERT's: its layers cannot be distilled"):
            layer_losses.check(other, other, ["hidden"])
    with pytest.raises(InputError, match="a GPT2Model is no stack of layers like BERT's"):
        layer_losses.check(GPT2Model(GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=9)), teacher, ["hidden", "attention"])
