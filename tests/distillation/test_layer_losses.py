"""Layer losses: the papers' layer maps, hand-worked values, masking, and transformers' own attention as the oracle."""

import pytest
import torch
from torch import nn

from pyserini_kd.distillation import layer_losses
from pyserini_kd.storage.errors import InputError


@pytest.mark.parametrize(
    ("layers", "attention", "hidden"),
    [
        (6, [1, 3, 5, 7, 9, 11], [0, 2, 4, 6, 8, 10, 12]),
        (4, [2, 5, 8, 11], [0, 3, 6, 9, 12]),
        (3, [3, 7, 11], [0, 4, 8, 12]),
        (12, list(range(12)), list(range(13))),
        (1, [11], [0, 12]),
    ],
)
def test_layer_maps_onto_a_teacher_of_twelve(layers, attention, hidden):
    assert layer_losses.attention_map(layers, 12) == attention
    assert layer_losses.hidden_map(layers, 12) == hidden


def test_hidden_loss_is_a_sum_of_means_through_one_projection():
    projection = nn.Linear(2, 3, bias=True)
    nn.init.constant_(projection.weight, 1.0)
    nn.init.constant_(projection.bias, 0.5)
    student = [torch.full((2, 4, 2), value) for value in (0.0, 1.0)]  # projected: 0.5 and 2.5 everywhere
    teacher = [torch.full((2, 4, 3), value) for value in (1.0, 77.0, 4.0)]  # the middle layer is skipped
    loss = layer_losses.hidden_loss(student, teacher, projection)
    assert loss.item() == pytest.approx((0.5 - 1) ** 2 + (2.5 - 4) ** 2)
    loss.backward()
    assert bool((projection.weight.grad < 0).all())  # descent raises the outputs, which are too low


def test_attention_loss_maps_to_the_last_layer_of_a_block_and_averages_over_everything():
    student = [torch.full((1, 2, 3, 3), value, requires_grad=True) for value in (1.0, 2.0)]
    teacher = [torch.full((1, 2, 3, 3), value) for value in (50.0, 1.5, 60.0, 5.0)]
    loss = layer_losses.attention_loss(student, teacher)
    assert loss.item() == pytest.approx(0.5**2 + 3**2)
    loss.backward()
    assert bool((student[1].grad < 0).all())
    with pytest.raises(InputError, match="2 attention heads, the teacher 4"):
        layer_losses.attention_loss(student, [torch.zeros(1, 4, 3, 3)] * 4)


def test_padded_keys_do_not_change_the_attention_loss():
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    queries, keys, other = torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    teacher = [layer_losses.attention_scores(torch.randn(2, 5, 8), torch.randn(2, 5, 8), mask, 2)]
    changed = torch.where(mask[:, :, None].bool(), keys, 30 * torch.randn(2, 5, 8))
    scores = [layer_losses.attention_scores(queries, k, mask, 2) for k in (keys, changed, other)]
    losses = [float(layer_losses.attention_loss([s], teacher)) for s in scores]
    assert losses[0] == losses[1] != losses[2]
    # masked entries are 0 on both sides but stay in the mean: 2 texts x 2 heads x 5 x 5
    real = mask[:, None, None, :].expand(2, 2, 5, 5).bool()
    expected = ((scores[0] - teacher[0])[real] ** 2).sum() / 100
    assert losses[0] == pytest.approx(float(expected), rel=1e-5)


def encoders(tokenizer):
    from transformers import BertModel, DistilBertConfig, DistilBertModel

    from tests.conftest import tiny_config

    torch.manual_seed(0)
    yield BertModel(tiny_config(tokenizer))
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64,
                              dropout=0.0, attention_dropout=0.0, initializer_range=0.2)  # fmt: skip
    yield DistilBertModel(config)


def test_recorded_layers_are_those_of_transformers(tokenizer):
    batch = tokenizer(["what the cat eats", "at night the cow sleeps in the barn"], padding=True, return_tensors="pt")
    tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for encoder in encoders(tokenizer):
        with layer_losses.recorded(encoder) as fast:  # with the default attention of transformers
            encoder(**tokens)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules())
        encoder.set_attn_implementation("eager")
        with layer_losses.recorded(encoder) as layers:
            out = encoder(**tokens, output_hidden_states=True, output_attentions=True)
        assert len(layers.hidden) == len(out.hidden_states) == 3 and len(layers.attention) == len(out.attentions) == 2
        assert all(torch.equal(own, theirs) for own, theirs in zip(layers.hidden, out.hidden_states, strict=True))
        for scores, probabilities in zip(layers.attention, out.attentions, strict=True):
            assert torch.allclose(scores.softmax(-1), probabilities, atol=1e-6)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(fast.attention, layers.attention, strict=True))


def test_ids_under_the_padding_reach_no_score_between_real_tokens(tokenizer):
    batch = tokenizer(["what the cat eats", "at night the cow sleeps in the barn"], padding=True, return_tensors="pt")
    mask, found = batch["attention_mask"], []
    encoder = next(encoders(tokenizer))
    for pad in (tokenizer.pad_token_id, tokenizer.mask_token_id):
        ids = torch.where(mask.bool(), batch["input_ids"], pad)
        with layer_losses.recorded(encoder) as layers:
            encoder(input_ids=ids, attention_mask=mask)
        found.append(layers)
    real = mask.bool()
    for a, b in zip(found[0].attention, found[1].attention, strict=True):
        rows = real[:, None, :, None].expand_as(a)
        assert torch.allclose(layer_losses._unmasked(a)[rows], layer_losses._unmasked(b)[rows], atol=1e-5)
    for a, b in zip(found[0].hidden, found[1].hidden, strict=True):
        assert torch.allclose(a[real], b[real], atol=1e-5)


def test_gradients_flow_to_the_student_only(tokenizer):
    student, teacher = encoders(tokenizer)
    tokens = tokenizer(["what the cat eats"], return_tensors="pt")
    with layer_losses.recorded(student) as own:
        student(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    with torch.no_grad(), layer_losses.recorded(teacher) as theirs:
        teacher(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    (layer_losses.attention_loss(own.attention, theirs.attention)
     + layer_losses.hidden_loss(own.hidden, theirs.hidden, nn.Linear(32, 32))).backward()  # fmt: skip
    assert float(student.embeddings.word_embeddings.weight.grad.abs().sum()) > 0
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("count", [6, 4, 3])
def test_a_student_follows_the_mapped_layers_of_twelve(tokenizer, count):
    """The loss is 0 for the states of the mapped layers only."""
    from transformers import BertModel

    from tests.conftest import tiny_config

    torch.manual_seed(1)
    teacher = BertModel(tiny_config(tokenizer, layers=12)).eval()
    with torch.no_grad(), layer_losses.recorded(teacher) as layers:
        teacher(input_ids=torch.tensor([[2, 7, 9, 3]]), attention_mask=torch.ones(1, 4, dtype=torch.long))
    block = 12 // count
    with torch.no_grad(), layer_losses.recorded(teacher, block) as followed:  # as training records a teacher
        teacher(input_ids=torch.tensor([[2, 7, 9, 3]]), attention_mask=torch.ones(1, 4, dtype=torch.long))
    for found, every, places in (
        (followed.hidden, layers.hidden, layer_losses.hidden_map(count, 12)),
        (followed.attention, layers.attention, layer_losses.attention_map(count, 12)),
    ):
        assert len(found) == len(places) and all(map(torch.equal, found, (every[place] for place in places)))
    hidden = [layers.hidden[j * block] for j in range(count + 1)]
    attention = [layers.attention[i * block + block - 1] for i in range(count)]
    assert layer_losses.hidden_loss(hidden, layers.hidden, torch.nn.Identity()) == 0
    assert layer_losses.attention_loss(attention, layers.attention) == 0
    for row in range(count):
        wrong = [*attention[:row], layers.attention[row * block], *attention[row + 1 :]]
        assert layer_losses.attention_loss(wrong, layers.attention) > 1e-6
        wrong = [*hidden[: row + 1], layers.hidden[row * block + 1], *hidden[row + 2 :]]
        assert layer_losses.hidden_loss(wrong, layers.hidden, torch.nn.Identity()) > 1e-6


def test_relation_loss_by_hand():
    """One head and two tokens. The second text has one token. KL of (1/2, 1/2) and (3/4, 1/4), without padding."""
    masked = layer_losses.MASKED

    def layers(attention, values):
        return layer_losses.Layers([], [torch.zeros(2, 1, 2, 2), attention], [torch.zeros(2, 1, 2, 2), values])

    flat = torch.tensor([[[[0.0, 0.0], [0.0, 0.0]]], [[[0.0, masked], [0.0, masked]]]])
    log3 = float(torch.log(torch.tensor(3.0)))
    steep = torch.tensor([[[[log3, 0.0], [0.0, 0.0]]], [[[5.0, masked], [7.0, masked]]]])
    to_student = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()  # KL(teacher 3/4, 1/4 || student 1/2, 1/2)
    loss = layer_losses.relation_loss(layers(flat, flat), layers(steep, flat))
    assert loss.item() == pytest.approx(float(to_student) / 2 / 2)  # one of two tokens differs, in one of two texts
    from_student = 0.5 * torch.tensor(0.5 / 0.75).log() + 0.5 * torch.tensor(0.5 / 0.25).log()
    loss = layer_losses.relation_loss(layers(flat, steep), layers(flat, flat))
    assert loss.item() == pytest.approx(float(from_student) / 4)
    assert layer_losses.relation_loss(layers(steep, flat), layers(steep, flat)).item() == 0.0


def test_relations_use_values_and_ignore_padding(tokenizer):
    student, teacher = (encoder.eval() for encoder in encoders(tokenizer))
    words = ["what the cat eats", "at night the cow sleeps in the barn"]

    def loss_of(texts):
        batch, found = tokenizer(texts, padding=True, return_tensors="pt"), []
        for encoder in (student, teacher):
            with layer_losses.recorded(encoder, 2, True) as layers:
                encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            assert len(layers.attention) == len(layers.values) == 1  # only the last of two layers
            found.append(layers)
        return found, layer_losses.relation_loss(*found).item()

    (of_student, _), together = loss_of(words)
    assert together == pytest.approx((loss_of(words[:1])[1] + loss_of(words[1:])[1]) / 2, rel=1e-4)  # padding has no effect
    batch = tokenizer(words[1:], return_tensors="pt")
    with torch.no_grad():
        states = student(**batch, output_hidden_states=True).hidden_states[1]
        values = student.encoder.layer[1].attention.self.value(states).view(1, -1, 4, 8).transpose(1, 2)
    assert torch.allclose(of_student.values[0][1:], values @ values.transpose(-1, -2) / 8**0.5, atol=1e-5)
