"""Computation of a training step: scores with gradients, live teachers and loss terms, on one or many processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Literal, Unpack

import torch
import torch.distributed as dist
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from pyserini_kd.distillation import layer_losses
from pyserini_kd.distillation.batches import WHOLE, Batch, Collator, Share, window_of
from pyserini_kd.distillation.candidates import Group
from pyserini_kd.distillation.layer_losses import Layers
from pyserini_kd.distillation.losses import loss, margins
from pyserini_kd.distillation.recipes import FLOPS_LOSSES, LAYER_LOSSES
from pyserini_kd.models import torch_network
from pyserini_kd.models.cross_encoder import CrossEncoder
from pyserini_kd.models.layers import encoder_of
from pyserini_kd.storage.errors import InputError

if TYPE_CHECKING:
    from pyserini_kd.models.bert_dot import BertDot
    from pyserini_kd.models.colbert import ColBert
    from pyserini_kd.models.loading import Model

SCALE_BATCHES = 4  # number of batches that match_scale measures


def check_layers(student: Model, teacher: Model, losses: Mapping[str, float]) -> None:
    """Raise InputError if the teacher's layers cannot be distilled into the student."""
    for who, model in (("student", student), ("teacher", teacher)):
        if model.architecture != "cross_encoder":
            raise InputError(f"the {who} is a {model.architecture}; layer losses need two cross-encoders")
    if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise InputError("teacher and student have different vocabularies, but layer losses compare token by token")
    layer_losses.check(encoder_of(student), encoder_of(teacher), [name for name in LAYER_LOSSES if name in losses])


def random_student(layers: int, width: int, like: Model | None) -> CrossEncoder:
    """Make a cross-encoder with random weights and the vocabulary, maximum length and number of heads of a teacher."""
    if like is None or like.architecture != "cross_encoder":
        raise InputError("a random student copies vocabulary and heads of a cross-encoder; name that teacher", "init")
    teacher_config = encoder_of(like).config
    heads = int(teacher_config.num_attention_heads)
    if width % heads:
        raise InputError(f"random:{layers}/{width}: the width must be a multiple of the teacher's {heads} heads", "init")
    config = BertConfig(
        vocab_size=teacher_config.vocab_size, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=1200 if width == 312 else 4 * width,  # 1200 as in TinyBERT 4/312
        max_position_embeddings=teacher_config.max_position_embeddings, pad_token_id=teacher_config.pad_token_id,
    )  # fmt: skip
    config.num_labels = 1
    return CrossEncoder(BertForSequenceClassification(config), like.tokenizer, window_of(like))


def group_scores(model: Model, batch: Batch, who: Literal["student", "live"] = "student") -> Tensor:
    """Return scores (B, G) of a whole batch, by the student (with gradients) or with `who="live"` by a live teacher."""
    return model.pair_scores(batch[who])[batch["rows"]]


def gathered(values: Tensor, count: int, share: Share) -> Tensor:
    """Gather all P values of a batch from all processes. Only this process's share carries gradients."""
    if share.world == 1:
        return values
    bounds = [Share(rank, share.world).of(count) for rank in range(share.world)]
    longest = max(end - start for start, end in bounds)
    padded = torch.zeros(longest, dtype=values.dtype, device=values.device)
    start, end = share.of(count)
    padded[: end - start] = values.detach()[: end - start]
    parts = [torch.zeros_like(padded) for _ in bounds]
    dist.all_gather(parts, padded)
    pieces = [part[: end - start] for part, (start, end) in zip(parts, bounds, strict=True)]
    pieces[share.rank] = values[: end - start]
    return torch.cat(pieces)


class Learner(nn.Module):
    """The module that Trainer trains: student and losses. `forward(**batch)` returns the loss and keeps its terms."""

    accepts_loss_kwargs = False  # else Trainer sums accumulated batches instead of averaging

    def __init__(
        self, model: Model, losses: Mapping[str, float], score_scale: float = 1.0, *, teacher: Model | None = None,
        teacher_dropout: bool = False, temperature: float = 1.0, text: bool = False, length: int | None = None,
        share: Share = WHOLE,
    ) -> None:  # fmt: skip
        """Train the student `model` by `losses` (name -> weight). Its scores are first multiplied by `score_scale`.

        A live `teacher` runs without gradients and is not saved. `teacher_dropout` keeps its dropout on, as TinyBERT does.
        `length` is the maximum length, over which the attention loss averages (None: the length of the batch). `text` means
        batches of plain text: only encoders run, and only layer losses apply. `share` is the share of each batch that this
        process works on.
        """
        super().__init__()
        self.student = model
        self.weights, self.score_scale, self.text, self.share = dict(losses), score_scale, text, share
        self.length = length
        self.layers = [name for name in LAYER_LOSSES if name in losses]
        self.functions = {name: loss("listwise_ce" if name == "in_batch" else name, temperature)
                          for name in losses if name not in (*LAYER_LOSSES, *FLOPS_LOSSES)}  # fmt: skip
        self.terms: dict[str, list[float]] = {}
        self.done = 0.0  # share of the finished steps
        self.teacher = (teacher,)  # a tuple hides it from torch
        if teacher is not None:
            teacher.train(teacher_dropout).requires_grad_(False)
        if self.layers:
            depths = [int(encoder_of(m).config.num_hidden_layers) for m in (model, teacher)]
            last_only = self.layers == ["relations"]
            self.every = (depths[0], depths[1]) if last_only else (1, layer_losses.block_size(*depths))
        if "hidden" in self.layers:
            student_width, teacher_width = (int(encoder_of(m).config.hidden_size) for m in (model, teacher))
            self.projection = nn.Linear(student_width, teacher_width)  # shared by all layers, not exported

    def weight_of(self, name: str) -> float:
        """Current weight of a loss in the sum."""
        return self.weights[name]

    def forward(self, **batch: Unpack[Batch]) -> dict[str, Tensor]:
        """Return {"loss": loss of the batch}."""
        terms = self._terms(batch)
        total = sum((self.weight_of(name) * value for name, (value, _) in terms.items()), torch.zeros(()))
        for name, (value, _) in terms.items():
            self.terms.setdefault(name, []).append(float(value.detach()))
        if not torch.isfinite(total):
            raise FloatingPointError("the loss is not finite")
        if self.share.world > 1:  # gradients are averaged later
            part = sum((self.weight_of(name) * self.share.world * own for name, (_, own) in terms.items()), torch.zeros(()))
            total = total.detach() + part - part.detach()
        return {"loss": total}

    def _terms(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Return for each loss: its value over the whole batch, and the part with this process's gradients."""
        count = int(batch["pairs"])
        student_scores, own_layers, live, live_layers = self._run_both(batch)
        terms = {}
        with torch.autocast(student_scores.device.type, enabled=False):
            for name in self.layers:
                if name == "hidden":
                    value = layer_losses.hidden_loss(own_layers.hidden, live_layers.hidden, self.projection)
                elif name == "relations":
                    value = layer_losses.relation_loss(own_layers, live_layers)
                else:
                    value = layer_losses.attention_loss(own_layers.attention, live_layers.attention, self.length)
                terms[name] = self.shared_mean(value, count)
            if self.functions:
                teacher_scores = batch.get("teacher")
                if teacher_scores is None and live is not None:
                    teacher_scores = gathered(live, int(batch["taught"]), self.share)[batch["rows"]]
                scores = gathered(student_scores, count, self.share) * self.score_scale
                terms |= self._score_terms(scores, teacher_scores, batch)
        return terms

    def shared_mean(self, value: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Turn the mean over this process's share of `count` texts or pairs into (mean over all, part of this process).

        The part of this process carries its gradients. The parts of all processes add up to the mean.
        """
        start, end = self.share.of(count)
        value = value * ((end - start) / count)
        if self.share.world == 1:
            return value, value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total, value

    def _score_terms(self, scores: Tensor, teacher_scores: Tensor | None, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        mask, terms = batch["mask"], {}
        grouped = scores[batch["rows"]]
        for name, function in self.functions.items():
            if name == "in_batch":
                everything = torch.ones_like(batch["batch_labels"], dtype=torch.bool)
                value = function(scores[batch["batch_rows"]], None, batch["batch_labels"], everything)
            else:
                value = function(grouped, teacher_scores, batch["labels"], mask)
            terms[name] = (value, value)
        for name, figure in zip(("score_mean", "score_std"), spread(grouped.detach(), mask), strict=True):
            self.terms.setdefault(name, []).append(figure)
        return terms

    def _run_both(self, batch: Batch) -> tuple[Tensor, Layers, Tensor | None, Layers]:
        """Return (student scores, student layers, teacher scores, teacher layers) of this process's pairs."""
        (teacher,) = self.teacher
        none = Layers([], [], [])
        if teacher is None:
            return self._run(self.student, batch["student"]), none, None, none
        if not self.layers:
            scores = self._run(self.student, batch["student"])
            with torch.no_grad():
                return scores, none, self._run(teacher, batch["live"]), none
        values = "relations" in self.layers
        with layer_losses.recorded(encoder_of(self.student), self.every[0], values) as own_layers:
            scores = self._run(self.student, batch["student"])
        with torch.no_grad(), layer_losses.recorded(encoder_of(teacher), self.every[1], values) as live_layers:
            live = self._run(teacher, batch["live"])
        return scores, own_layers, live, live_layers

    def _run(self, model: Model, tokens: Mapping[str, Tensor]) -> Tensor:
        """Return scores of pairs. For plain text return the encoder output; only its layers are used."""
        return encoder_of(model)(**tokens).last_hidden_state if self.text else model.pair_scores(tokens)


def spread(scores: Tensor, mask: Tensor) -> tuple[float, float]:
    """Return the mean of scores (B, G) and their standard deviation within groups.

    >>> spread(torch.tensor([[1.0, 3.0], [7.0, 9.0]]), torch.ones(2, 2, dtype=torch.bool))
    (5.0, 1.0)
    """
    centres = (scores * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
    return float(scores[mask].mean()), float((scores - centres)[mask].square().mean().sqrt())


def scale_scores(model: BertDot | ColBert, factor: float) -> None:
    """Multiply all scores of a bert_dot or colbert by `factor`, in place: scales its last layer by sqrt(factor)."""
    inner = [part for name, part in model.encoder.named_children() if "embeddings" not in name]
    norms = [module for part in inner for module in part.modules() if isinstance(module, nn.LayerNorm)]
    head = getattr(model, "head", None)  # a compressing ColBERT has one
    if head is None and not norms:
        raise InputError(f"scores of a {type(model.encoder).__name__} cannot be scaled: it has no final LayerNorm")
    last = norms[-1] if head is None else head
    with torch.no_grad():
        for parameter in (last.weight, last.bias):
            parameter.mul_(math.sqrt(factor))


def match_scale(
    model: BertDot | ColBert, collator: Collator, batches: Sequence[Sequence[Group]], score_scale: float = 1.0,
    teacher: Model | None = None,
) -> float:  # fmt: skip
    """Scale a student so that the root mean square of its margins equals the teacher's; return the factor of its scores.

    Margin-MSE compares margins in the teacher's units. A student on another scale (a ColBERT: a hundredfold) spends training on
    the scale. The mean margin is no measure: it is about 0 for a student that cannot rank yet. Students with a random head
    (cross-encoder, PreTTR, TK) cannot rank yet, so scaling would only increase their error.
    """
    student_margins, teacher_margins = [], []
    with torch_network.running(model, "fp32") as device:
        for groups in islice(batches, SCALE_BATCHES):
            batch: Batch = send_to_device(collator([groups]), device)
            scores = group_scores(model, batch) * score_scale
            live = None if teacher is None or "teacher" in batch else teacher.eval()
            teacher_scores = batch["teacher"] if live is None else group_scores(live, batch, "live")
            student_margin, teacher_margin = margins(scores, teacher_scores, batch["labels"], batch["mask"])
            student_margins.append(student_margin.clone())
            teacher_margins.append(teacher_margin)
    factor = float(torch.cat(teacher_margins).square().mean().sqrt() / torch.cat(student_margins).square().mean().sqrt())
    if not math.isfinite(factor) or factor <= 0:
        return 1.0
    scale_scores(model, factor)
    return factor
