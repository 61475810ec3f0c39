"""Dropout and attention of training on a CPU: the same as in PyTorch, with other random numbers."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyserini_kd.distillation import cpu_training
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.student import Teachers, load_student
from pyserini_kd.distillation.training import train
from pyserini_kd.models import loading
from tests.conftest import tiny_config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_dropout_keeps_the_rate_and_the_mean(rate, dtype):
    torch.manual_seed(0)
    kept = cpu_training.kept((100, 1001), rate, dtype)
    threshold = round(rate * 65536)
    assert kept.shape == (100, 1001) and kept.dtype is dtype
    assert set(kept.unique().tolist()) == ({0.0} if rate else set()) | {
        torch.tensor(65536 / (65536 - threshold), dtype=dtype).item()
    }
    assert float((kept == 0).float().mean()) == pytest.approx(rate, abs=0.005)
    assert [float((part == 0).float().mean()) for part in (kept[:10], kept[:, :100])] == pytest.approx([rate, rate], abs=0.02)


def test_a_rate_close_to_one_drops_nearly_all():
    assert float((cpu_training.kept((1000,), 1 - 1e-9, torch.float32) == 0).float().mean()) > 0.98


def test_masks_follow_torch_s_seed():
    def draw():
        return cpu_training.kept((3, 5, 7), 0.5, torch.float32)

    torch.manual_seed(1)
    first, second = draw(), draw()
    torch.manual_seed(1)
    assert torch.equal(first, draw()) and not torch.equal(first, second)


def test_dropout_masks_gradients_like_states():
    states = torch.ones(64, 64, requires_grad=True)
    layer = cpu_training.Dropout(0.25)
    out = layer(states)
    out.sum().backward()
    assert torch.equal(states.grad, out.detach()) and 0 < int((out == 0).sum()) < out.numel()
    assert layer.eval()(states) is states and cpu_training.Dropout(0.0)(states) is states


def keep_all(shape, rate, dtype):
    return torch.ones(shape, dtype=dtype)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_the_attention_of_torch(monkeypatch, masked):
    monkeypatch.setattr(cpu_training, "kept", keep_all)
    torch.manual_seed(0)
    states = torch.randn(3, 2, 4, 5, 8, dtype=torch.float64).float().requires_grad_()  # three of (P, heads, T, d)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()[:, None, None].expand(2, 1, 5, 5) if masked else None
    expected = F.scaled_dot_product_attention(*states, attn_mask=mask).transpose(1, 2)
    (theirs,) = torch.autograd.grad(expected.square().sum(), states)
    got, nothing = cpu_training.attention(nn.Module(), *states, mask, dropout=0.5)
    (ours,) = torch.autograd.grad(got.square().sum(), states)
    assert nothing is None and torch.allclose(got, expected, atol=1e-6) and torch.allclose(ours, theirs, atol=1e-5)


def test_attention_drops_weights(monkeypatch):
    monkeypatch.setattr(cpu_training, "kept", lambda shape, rate, dtype: torch.eye(shape[-1], dtype=dtype).expand(shape))
    states = torch.zeros(3, 1, 1, 4, 2).requires_grad_()  # four equal weights
    value = torch.arange(8.0).view(1, 1, 4, 2)
    got, _ = cpu_training.attention(nn.Module(), states[0], states[1], value, None, dropout=0.5)
    assert torch.equal(got[0, :, 0], value[0, 0] / 4)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_encoders_compute_the_same_as_before(monkeypatch, tokenizer, kind, precision):
    from transformers import BertModel, DistilBertConfig, DistilBertModel

    monkeypatch.setattr(cpu_training, "kept", keep_all)
    torch.manual_seed(0)
    small = DistilBertConfig(vocab_size=len(tokenizer), dim=32, hidden_dim=64, n_layers=2, n_heads=4)
    encoder = BertModel(tiny_config(tokenizer, 2)) if kind == "bert" else DistilBertModel(small)
    batch = tokenizer(["the cat sat on the mat", "a dog"], padding=True, return_tensors="pt")
    encoder.eval()
    expected = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    model = nn.Module()
    model.architecture, model.encoder = "bert_dot", encoder
    cpu_training.fit(model)
    assert encoder.config._attn_implementation == cpu_training.NAME
    assert all(type(module) is not nn.Dropout and not module.training for module in encoder.modules())  # still in eval mode
    kept = batch["attention_mask"].bool()
    for training in (True, False):
        encoder.train(training)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            got = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        assert torch.allclose(got.float()[kept], expected[kept], atol=1e-5 if precision == "fp32" else 0.1)


def test_attention_with_other_masks_is_not_replaced(tokenizer):
    from transformers import BertModel, MPNetConfig, MPNetModel

    model = nn.Module()
    config = MPNetConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    decoder = tiny_config(tokenizer, 1)
    decoder.is_decoder = True
    for encoder in (MPNetModel(config), BertModel(decoder)):
        model.architecture, model.encoder = "bert_dot", encoder
        before = encoder.config._attn_implementation
        cpu_training.fit(model)
        assert encoder.config._attn_implementation == before


@pytest.mark.parametrize("architecture", ["bert_dot", "cross_encoder", "colbert", "prettr", "tk"])
def test_students_train_with_it_and_their_checkpoints_do_not_contain_it(tmp_path, data, tiny_dot, architecture):
    own = {"settings": ("join_layer=1",)} if architecture == "prettr" else {}
    config = TrainConfig(
        recipe="ranknet",
        init=str(tiny_dot),
        architecture=architecture,
        max_steps=2,
        batch_size=5,
        precision="bf16",
        dropout=0.1,
        **own,
    )
    student = load_student(config, Teachers())
    layers = [module for module in student.modules() if isinstance(module, nn.Dropout)]
    assert layers and all(type(layer) is cpu_training.Dropout and layer.p == 0.1 for layer in layers)
    out = train(config, *data, tmp_path / "out")
    assert cpu_training.NAME not in (out / "config.json").read_text()
    assert json.loads((out / "training.json").read_text())["stages"][0]["log"]
    assert not [module for module in loading.load(str(out)).modules() if isinstance(module, cpu_training.Dropout)]
