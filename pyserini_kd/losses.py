"""Score losses: pure functions of student scores, teacher scores and labels.

Every loss sees groups: one query and G documents. B groups in a batch; scores float (B, G); labels int (B, G), 1 for
relevant and 0 for not; mask bool (B, G), false where a group is shorter than the longest one. A triple (query, positive,
negative) is a group of two. Pairwise losses run over all (positive, negative) pairs of a group, so that n-way groups and
triples are the same code. Everything is computed in float32, whatever the model's precision.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]


def margins(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Margins (positive minus negative) of all pairs of each group: student (P,), teacher (P,), float32."""
    if student.shape != labels.shape or student.shape != mask.shape or student.numel() == 0:
        raise ValueError(f"scores {tuple(student.shape)}, labels {tuple(labels.shape)} and mask must be (B, G), B > 0")
    if teacher is not None and teacher.shape != student.shape:
        raise ValueError(f"teacher scores {tuple(teacher.shape)} must have the student's shape {tuple(student.shape)}")
    positive, negative = (labels > 0) & mask, (labels <= 0) & mask
    pair = positive[:, :, None] & negative[:, None, :]
    if not pair.any():
        raise ValueError("no (positive, negative) pair in the batch")
    student = student.float()
    student_margin = (student[:, :, None] - student[:, None, :])[pair]
    if teacher is None:
        return student_margin, torch.zeros_like(student_margin)
    teacher = teacher.float()
    return student_margin, (teacher[:, :, None] - teacher[:, None, :])[pair]


def _needs_teacher(teacher: Tensor | None) -> Tensor:
    if teacher is None:
        raise ValueError("this loss needs teacher scores")
    return teacher


def margin_mse(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of student and teacher margins.

    Unbounded scores allowed; adding a per-query constant to either side changes nothing; negative teacher margins are
    kept. Hofstätter et al. 2020, arXiv 2010.02666.

    >>> s, t = torch.tensor([[3.0, 1.0]]), torch.tensor([[9.0, 4.0]])
    >>> float(margin_mse(s, t, torch.tensor([[1, 0]]), torch.ones(1, 2, dtype=torch.bool)))  # (2 - 5)^2
    9.0
    """
    student_margin, teacher_margin = margins(student, _needs_teacher(teacher), labels, mask)
    return F.mse_loss(student_margin, teacher_margin)


def ranknet(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """Logistic loss of the student's margins, softplus(-margin); no teacher. Burges et al. 2005.

    >>> s = torch.tensor([[1.0, 1.0]])
    >>> round(float(ranknet(s, None, torch.tensor([[1, 0]]), torch.ones(1, 2, dtype=torch.bool))), 4)  # log 2
    0.6931
    """
    student_margin, _ = margins(student, None, labels, mask)
    return F.softplus(-student_margin).mean()


def weighted_ranknet(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """RankNet weighted by the teacher's margin, which is not clamped: negative where the teacher disagrees with the label.

    Hofstätter et al. 2020, the loss ablation.
    """
    student_margin, teacher_margin = margins(student, _needs_teacher(teacher), labels, mask)
    return (teacher_margin * F.softplus(-student_margin)).mean()


def pointwise_mse(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of raw scores, over all documents of all groups. Hofstätter et al. 2020, the loss ablation."""
    teacher = _needs_teacher(teacher)
    if teacher.shape != student.shape:
        raise ValueError(f"teacher scores {tuple(teacher.shape)} must have the student's shape {tuple(student.shape)}")
    return F.mse_loss(student.float()[mask], teacher.float()[mask])


def listwise_ce(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """Softmax cross-entropy of each positive against the negatives of its group (other positives left out); no teacher.

    With the other queries' documents as negatives this is the in-batch contrastive loss.
    """
    scores = student.float()
    positive, negative = (labels > 0) & mask, (labels <= 0) & mask
    rest = torch.logsumexp(scores.masked_fill(~negative, float("-inf")), dim=1, keepdim=True)
    return (torch.logaddexp(scores, rest) - scores)[positive].mean()


def listwise_kl(student: Tensor, teacher: Tensor | None, labels: Tensor, mask: Tensor) -> Tensor:
    """KL divergence of the student's softmax over a group from the teacher's; mean over groups."""
    teacher = _needs_teacher(teacher)
    log_p = F.log_softmax(student.float().masked_fill(~mask, -1e9), dim=1)
    log_t = F.log_softmax(teacher.float().masked_fill(~mask, -1e9), dim=1)
    return F.kl_div(log_p, log_t, reduction="batchmean", log_target=True)


LOSSES: dict[str, Loss] = {
    "margin_mse": margin_mse,
    "ranknet": ranknet,
    "weighted_ranknet": weighted_ranknet,
    "pointwise_mse": pointwise_mse,
    "listwise_ce": listwise_ce,
    "listwise_kl": listwise_kl,
}
