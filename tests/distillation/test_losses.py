"""Losses: hand-worked values, a slow loop over pairs, and the properties the papers rely on."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyserini_kd.distillation import losses, recipes


def group(student, teacher, labels, mask=None):
    s, t, y = torch.tensor(student), torch.tensor(teacher), torch.tensor(labels)
    return s, t, y, torch.ones_like(y, dtype=torch.bool) if mask is None else torch.tensor(mask)


def test_hand_worked_triple():
    s, t, y, m = group([[3.0, 1.0]], [[9.0, 4.0]], [[1, 0]])
    assert float(losses.margin_mse(s, t, y, m)) == pytest.approx((2 - 5) ** 2)
    assert float(losses.pointwise_mse(s, t, y, m)) == pytest.approx(0.5 * ((3 - 9) ** 2 + (1 - 4) ** 2))
    assert float(losses.ranknet(s, None, y, m)) == pytest.approx(math.log(1 + math.exp(-2)))
    assert float(losses.weighted_ranknet(s, t, y, m)) == pytest.approx(5 * math.log(1 + math.exp(-2)))
    assert float(losses.listwise_ce(s, None, y, m)) == pytest.approx(math.log(1 + math.exp(1 - 3)))


def test_hand_worked_lambda_loss():
    s, _, y, m = group([[1.0, 3.0, 2.0]], [[0.0, 0.0, 0.0]], [[1, 0, 0]])  # ranks 3, 1, 2; one relevant: ideal DCG 1
    softplus = [math.log(1 + math.exp(x)) for x in (2, 1)]
    expected = (1 - 1 / 2) * softplus[0] + (1 / math.log2(3) - 1 / 2) * softplus[1]
    assert float(losses.lambda_loss(s, None, y, m)) == pytest.approx(expected, rel=1e-6)
    s, _, y, m = group(
        [[0.0, 1.0, 5.0], [9.0, 0.0, 0.0]], [[0.0] * 3] * 2, [[1, 2, 0], [1, 0, 0]], [[True] * 3, [True, True, False]]
    )
    ideal = 3 + 1 / math.log2(3)  # gains 3 and 1; ranks 3, 2, 1
    d = [1 / 2, 1 / math.log2(3), 1.0]
    pairs = [(1, 0, 2), (1, 2, 3), (0, 2, 1)]  # better, worse, difference of gains
    first = sum(gap * abs(d[i] - d[j]) * math.log(1 + math.exp(float(s[0, j] - s[0, i]))) for i, j, gap in pairs) / ideal
    second = (1 - 1 / math.log2(3)) * math.log(1 + math.exp(-9))
    assert float(losses.lambda_loss(s, None, y, m)) == pytest.approx((first + second) / 2, rel=1e-5)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_hand_worked_hard_losses():
    s, _, y, m = group([[0.5, 1.0, -2.0]], [[0.0, 0.0, 0.0]], [[1, 0, 0]])
    assert float(losses.hinge(s, None, y, m)) == pytest.approx((1.5 + 0) / 2)  # margins -0.5 and 2.5
    expected = -(math.log(sigmoid(0.5)) + math.log(1 - sigmoid(1.0)) + math.log(1 - sigmoid(-2.0))) / 3
    assert float(losses.bce(s, None, y, m)) == pytest.approx(expected, rel=1e-6)
    weights = [math.e, 1.0, 1.0]
    log_z = math.log(sum(math.exp(x) for x in (0.5, 1.0, -2.0)))
    expected = -sum(w / sum(weights) * (x - log_z) for w, x in zip(weights, (0.5, 1.0, -2.0), strict=True))
    assert float(losses.listnet(s, None, y, m)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_hand_worked_soft_losses(temperature):
    s, t, y, m = group([[3.0, 1.0]], [[-1.0, 4.0]], [[1, 0]])
    p = sigmoid(-5 / temperature)
    expected = -p * math.log(sigmoid(2)) - (1 - p) * math.log(1 - sigmoid(2))
    assert float(losses.soft_ranknet(s, t, y, m, temperature)) == pytest.approx(expected, rel=1e-6)
    # the published code: softmax of two classes on both sides, -sum over classes, mean over examples and classes
    two = [torch.stack([torch.zeros_like(x), x], dim=-1)[m] / temperature for x in (s, t)]
    published = -(two[1].softmax(-1) * two[0].log_softmax(-1)).mean()
    assert float(losses.soft_ce(s, t, y, m, temperature)) == pytest.approx(float(published), rel=1e-6)
    kl = torch.nn.functional.kl_div(two[0].log_softmax(-1), two[1].softmax(-1), reduction="batchmean")
    assert float(losses.soft_kl(s, t, y, m, temperature)) == pytest.approx(float(kl), rel=1e-5)
    halves = losses.listwise_kl(s / temperature, t / temperature, y, m)
    assert float(losses.loss("listwise_kl", temperature)(s, t, y, m)) == pytest.approx(float(halves), rel=1e-6)


def test_soft_ranknet_of_a_certain_teacher_is_ranknet():
    s, t, y, m = group([[0.3, 1.0]], [[50.0, -50.0]], [[1, 0]])
    assert torch.allclose(losses.soft_ranknet(s, t, y, m), losses.ranknet(s, None, y, m))
    assert torch.allclose(losses.soft_ce(s, t, y, m), losses.bce(s, None, y, m) / 2)


def test_negative_teacher_margin_is_kept():
    s, t, y, m = group([[0.0, 0.0]], [[1.0, 4.0]], [[1, 0]])
    assert float(losses.margin_mse(s, t, y, m)) == pytest.approx(9)
    assert float(losses.weighted_ranknet(s, t, y, m)) == pytest.approx(-3 * math.log(2))


def test_kl_of_equal_scores_is_zero_and_known_otherwise():
    s, t, y, m = group([[0.0, 0.0]], [[math.log(3.0), 0.0]], [[1, 0]])
    assert float(losses.listwise_kl(s, t, y, m)) == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert float(losses.listwise_kl(t, t, y, m)) == pytest.approx(0, abs=1e-7)


scores = st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4)


@given(st.lists(scores, min_size=1, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_group_loss_is_the_mean_over_pairs(rows, random):
    student = torch.tensor(rows)
    teacher = torch.tensor([[random.uniform(-9, 9) for _ in row] for row in rows])
    labels = torch.tensor([[1, 0, random.randint(0, 1), 0] for _ in rows])
    mask = torch.tensor([[True, True, random.random() < 0.5, random.random() < 0.5] for _ in rows])
    expected = []
    for b in range(len(rows)):
        for i in range(4):
            for j in range(4):
                if mask[b, i] and mask[b, j] and labels[b, i] > 0 and labels[b, j] == 0:
                    margin = student[b, i] - student[b, j]
                    expected.append(float((margin - (teacher[b, i] - teacher[b, j])) ** 2))
    got = float(losses.margin_mse(student, teacher, labels, mask))
    assert got == pytest.approx(sum(expected) / len(expected), rel=1e-4, abs=1e-4)


def test_margin_mse_ignores_a_constant_per_query():  # papers.md P3-C1
    s, t, y, m = group([[3.0, 1.0, 0.5], [2.0, 2.5, 9.0]], [[9.0, 4.0, 1.0], [1.0, 2.0, 3.0]], [[1, 0, 0], [1, 0, 0]])
    base = losses.margin_mse(s, t, y, m)
    shift = torch.tensor([[100.0], [-7.0]])
    assert torch.allclose(losses.margin_mse(s + shift, t, y, m), base, rtol=1e-4)
    assert torch.allclose(losses.margin_mse(s, t - shift, y, m), base, rtol=1e-4)
    assert not torch.allclose(losses.pointwise_mse(s + shift, t, y, m), losses.pointwise_mse(s, t, y, m))


def test_margin_mse_is_zero_where_margins_are_equal():
    s, t, y, m = group([[3.0, 1.0, -4.0]], [[-7.0, -9.0, -14.0]], [[1, 0, 0]])
    assert float(losses.margin_mse(s, t, y, m)) == 0.0


def test_margin_mse_is_twice_pointwise_mse_per_pair_when_negatives_agree():
    s, t, y, m = group([[3.0, 1.0]], [[9.0, 1.0]], [[1, 0]])
    assert float(losses.margin_mse(s, t, y, m)) == pytest.approx(2 * float(losses.pointwise_mse(s, t, y, m)))


@pytest.mark.parametrize("name", [name for name in recipes.SOFT_LOSSES if name != "weighted_ranknet"])
def test_soft_losses_ignore_which_document_is_the_positive(name):  # they need no judgements
    s, t, y, m = group([[0.3, 1.5], [2.0, -1.0]], [[5.0, -5.0], [1.0, 2.0]], [[1, 0], [0, 1]])
    assert torch.allclose(losses.LOSSES[name](s, t, y, m), losses.LOSSES[name](s, t, 1 - y, m))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_gradient_signs(name):
    s, t, y, m = group([[0.0, 0.0]], [[5.0, -5.0]], [[1, 0]])
    s.requires_grad_()
    losses.LOSSES[name](s, t, y, m).backward()
    assert s.grad[0, 0] < 0 < s.grad[0, 1]  # descent raises the positive, lowers the negative


@pytest.mark.parametrize("name", [name for name in recipes.SOFT_LOSSES])
def test_a_teacher_that_disagrees_with_the_labels_is_followed(name):
    s, t, y, m = group([[0.0, 0.0]], [[-5.0, 5.0]], [[1, 0]])
    s.requires_grad_()
    losses.LOSSES[name](s, t, y, m).backward()
    assert s.grad[0, 0] > 0 > s.grad[0, 1]


def test_masked_documents_do_not_count():
    s, t, y, m = group([[3.0, 1.0, 50.0]], [[9.0, 4.0, -80.0]], [[1, 0, 0]], [[True, True, False]])
    for loss in losses.LOSSES.values():
        assert torch.allclose(loss(s, t, y, m), loss(s[:, :2], t[:, :2], y[:, :2], m[:, :2]), atol=1e-5)


def test_losses_with_a_temperature_match_those_of_recipes():
    taking = {name for name in losses.LOSSES if isinstance(losses.loss(name, 2.0), functools.partial)}
    assert taking == set(recipes.TEMPERED)
