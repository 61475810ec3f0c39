"""Score losses: pure functions of student scores, teacher scores and labels.

Every loss takes a batch of B groups: one query and up to G documents each. Scores are float (B, G). Labels are int (B, G): 1
relevant, 0 not. The mask is bool (B, G): False for padding. A triple (query, positive, negative) is a group of two. Pairwise
losses run over all (positive, negative) pairs of a group. Everything is computed in float32, whatever the model's precision.

A cross-encoder has one logit z. A head with two classes and logits z0, z1 is the same ranker with z = z1 - z0: its softmax is
(1 - sigmoid(z), sigmoid(z)).
"""

import functools
import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]


def margins(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return margins (positive minus negative) of all pairs of each group: student (P,), teacher (P,), float32."""
    if student.shape != labels.shape or student.shape != mask.shape or student.numel() == 0:
        raise ValueError(f"scores {tuple(student.shape)}, labels {tuple(labels.shape)} and mask must be (B, G), B > 0")
    positive, negative = (labels > 0) & mask, (labels <= 0) & mask
    pair = positive[:, :, None] & negative[:, None, :]
    if not pair.any():
        raise ValueError("no (positive, negative) pair in the batch")
    student = student.float()
    student_margin = (student[:, :, None] - student[:, None, :])[pair]
    if teacher is None:
        return student_margin, torch.zeros_like(student_margin)
    teacher = _needed(teacher, student).float()
    return student_margin, (teacher[:, :, None] - teacher[:, None, :])[pair]


def _needed(teacher: Tensor | None, student: Tensor) -> Tensor:
    if teacher is None:
        raise ValueError("this loss needs teacher scores")
    if teacher.shape != student.shape:
        raise ValueError(f"teacher scores {tuple(teacher.shape)} must have the student's shape {tuple(student.shape)}")
    return teacher


def margin_mse(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of student and teacher margins.

    Scores may be unbounded. A constant per query on either side changes nothing. Negative teacher margins are kept.
    Hofstätter et al. 2020, arXiv 2010.02666.

    >>> s, t = torch.tensor([[3.0, 1.0]]), torch.tensor([[9.0, 4.0]])
    >>> float(margin_mse(s, t, torch.tensor([[1, 0]]), torch.ones(1, 2, dtype=torch.bool)))  # (2 - 5)^2
    9.0
    """
    student_margin, teacher_margin = margins(student, _needed(teacher, student), labels, mask)
    return F.mse_loss(student_margin, teacher_margin)


def ranknet(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """Logistic loss of the student's margins, softplus(-margin). No teacher. Burges et al. 2005.

    >>> s = torch.tensor([[1.0, 1.0]])
    >>> round(float(ranknet(s, None, torch.tensor([[1, 0]]), torch.ones(1, 2, dtype=torch.bool))), 4)  # log 2
    0.6931
    """
    student_margin, _ = margins(student, None, labels, mask)
    return F.softplus(-student_margin).mean()


def hinge(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """Hinge loss of the student's margins, max(0, 1 - margin). No teacher.

    >>> s = torch.tensor([[1.5, 1.0]])
    >>> float(hinge(s, None, torch.tensor([[1, 0]]), torch.ones(1, 2, dtype=torch.bool)))  # 1 - 0.5
    0.5
    """
    student_margin, _ = margins(student, None, labels, mask)
    return F.relu(1.0 - student_margin).mean()


def bce(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of each document's label. No teacher.

    Equal to the cross-entropy of a two-class head: the hard-label term of Chen et al. 2021, arXiv 2009.07531.

    >>> s = torch.tensor([[0.0, 0.0]])
    >>> round(float(bce(s, None, torch.tensor([[1, 0]]), torch.ones(1, 2, dtype=torch.bool))), 4)  # log 2
    0.6931
    """
    return F.binary_cross_entropy_with_logits(student.float()[mask], (labels > 0).float()[mask])


def weighted_ranknet(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """RankNet weighted by the teacher's margin. Weights are not clamped: negative where the teacher disagrees with the label.

    Hofstätter et al. 2020, loss ablation.
    """
    student_margin, teacher_margin = margins(student, _needed(teacher, student), labels, mask)
    return (teacher_margin * F.softplus(-student_margin)).mean()


def soft_ranknet(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """RankNet on the teacher's preferences: cross-entropy of sigmoid(student margin) and sigmoid(teacher margin / temperature).

    >>> s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[9.0, 4.0]])
    >>> round(float(soft_ranknet(s, t, torch.tensor([[1, 0]]), torch.ones(1, 2, dtype=torch.bool))), 4)  # log 2
    0.6931
    """
    student_margin, teacher_margin = margins(student, _needed(teacher, student), labels, mask)
    return F.binary_cross_entropy_with_logits(student_margin, torch.sigmoid(teacher_margin / temperature))


def pointwise_mse(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of raw scores, over all documents of all groups. Hofstätter et al. 2020, loss ablation."""
    teacher = _needed(teacher, student)
    return F.mse_loss(student.float()[mask], teacher.float()[mask])


def soft_ce(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Soft cross-entropy of two classes, TinyBERT's prediction-layer loss: half of BCE against the teacher's probability.

    Both sides are divided by the temperature. There is no factor temperature squared. The half comes from the published code,
    which averages over the two classes. Jiao et al. 2020, arXiv 1909.10351; Chen et al. 2021, arXiv 2009.07531.

    >>> s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[9.0, -4.0]])
    >>> round(float(soft_ce(s, t, torch.tensor([[1, 0]]), torch.ones(1, 2, dtype=torch.bool))), 4)  # log 2 / 2
    0.3466
    """
    teacher = _needed(teacher, student)
    target = torch.sigmoid(teacher.float()[mask] / temperature)
    return F.binary_cross_entropy_with_logits(student.float()[mask] / temperature, target) / 2


def soft_kl(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence of the student's two-class distribution from the teacher's, both at the temperature; mean over documents.

    Equals twice `soft_ce` minus the teacher's entropy: same gradient direction, twice as large.

    >>> s, t = torch.tensor([[0.0, 0.0]]), torch.log(torch.tensor([[3.0, 1.0]]))
    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> round(float(soft_kl(s, t, torch.tensor([[1, 0]]), mask)), 4)  # (3/4 ln 3/2 + 1/4 ln 1/2 + 0) / 2
    0.0654
    """
    teacher = _needed(teacher, student)
    student_logits, teacher_logits = student.float()[mask] / temperature, teacher.float()[mask] / temperature
    relevant = torch.sigmoid(teacher_logits) * (F.logsigmoid(teacher_logits) - F.logsigmoid(student_logits))
    return (relevant + torch.sigmoid(-teacher_logits) * (F.logsigmoid(-teacher_logits) - F.logsigmoid(-student_logits))).mean()


def listwise_ce(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """Softmax cross-entropy of each positive against the negatives of its group (no other positives). No teacher.

    With documents of the other queries as negatives, this is the in-batch contrastive loss.
    """
    scores = student.float()
    positive, negative = (labels > 0) & mask, (labels <= 0) & mask
    rest = torch.logsumexp(scores.masked_fill(~negative, float("-inf")), dim=1, keepdim=True)
    return (torch.logaddexp(scores, rest) - scores)[positive].mean()


def listnet(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """ListNet, top one: cross-entropy of the softmax of labels and the student's softmax over a group. No teacher.

    Mean over groups. Cao et al. 2007. `listwise_kl` does the same with teacher scores for labels, up to a constant.

    >>> s = torch.tensor([[0.0, 0.0]])
    >>> round(float(listnet(s, None, torch.tensor([[1, 0]]), torch.ones(1, 2, dtype=torch.bool))), 4)  # log 2
    0.6931
    """
    log_p = F.log_softmax(student.float().masked_fill(~mask, -1e9), dim=1)
    target = F.softmax(labels.float().masked_fill(~mask, -1e9), dim=1)
    return -(target * log_p).sum(dim=1).mean()


def listwise_kl(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence of the student's softmax over a group from the teacher's, both at the temperature; mean over groups."""
    teacher = _needed(teacher, student)
    log_p = F.log_softmax((student.float() / temperature).masked_fill(~mask, -1e9), dim=1)
    log_t = F.log_softmax((teacher.float() / temperature).masked_fill(~mask, -1e9), dim=1)
    return F.kl_div(log_p, log_t, reduction="batchmean", log_target=True)


def lambda_loss(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """RankNet with pairs weighted by the nDCG change of a swap. No teacher. Sum over pairs, mean over groups.

    The weight of a pair is |gain_i - gain_j| |1/log2(1 + rank_i) - 1/log2(1 + rank_j)| / ideal DCG, with gain 2^label - 1.
    Ranks follow the student's current scores (no gradient; ties keep the input order). Burges et al. 2006 (LambdaRank); Wang et
    al. 2018 show that it bounds nDCG.

    >>> s = torch.tensor([[1.0, 1.0]])
    >>> round(float(lambda_loss(s, None, torch.tensor([[1, 0]]), torch.ones(1, 2, dtype=torch.bool))), 4)  # ln 2 x .369
    0.2558
    """
    margins(student, None, labels, mask)  # for its input checks
    scores = student.float()
    order = scores.detach().masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    discount = 1.0 / torch.log2(order.argsort(dim=1) + 2.0)
    gain = (2.0 ** labels.float() - 1.0) * mask
    places = torch.log2(torch.arange(gain.shape[1], device=gain.device) + 2.0)
    ideal = (gain.sort(dim=1, descending=True).values / places).sum(dim=1)
    better = (labels[:, :, None] > labels[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    weight = (gain[:, :, None] - gain[:, None, :]) * (discount[:, :, None] - discount[:, None, :]).abs() * better
    weight = weight / ideal.clamp(min=1e-9)[:, None, None]
    return (weight * F.softplus(scores[:, None, :] - scores[:, :, None])).sum(dim=(1, 2)).mean()


LOSSES: dict[str, Loss] = {
    "ranknet": ranknet,
    "hinge": hinge,
    "bce": bce,
    "listwise_ce": listwise_ce,
    "listnet": listnet,
    "lambda": lambda_loss,
    "margin_mse": margin_mse,
    "weighted_ranknet": weighted_ranknet,
    "soft_ranknet": soft_ranknet,
    "pointwise_mse": pointwise_mse,
    "soft_ce": soft_ce,
    "soft_kl": soft_kl,
    "listwise_kl": listwise_kl,
}


def loss(name: str, temperature: float = 1.0) -> Loss:
    """Return the loss of a name, with the temperature if it takes one."""
    found: Callable[..., Tensor] = LOSSES[name]
    takes_one = "temperature" in inspect.signature(found).parameters
    return functools.partial(found, temperature=temperature) if takes_one else found
