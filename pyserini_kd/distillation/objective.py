"""What one training step computes: scores with gradients, live teachers, loss terms, on one process or many."""

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
from pyserini_kd.models import engine
from pyserini_kd.models.cross_encoder import CrossEncoder
from pyserini_kd.models.layers import encoder_of
from pyserini_kd.storage.errors import InputError

if TYPE_CHECKING:
    from pyserini_kd.models.bert_dot import BertDot
    from pyserini_kd.models.colbert import ColBert
    from pyserini_kd.models.loading import Model

SCALE_BATCHES = 4  # batches whose margins set the student's starting scale


def check_layers(student: Model, teacher: Model, losses: Mapping[str, float]) -> None:
    """InputError unless the teacher's layers can be distilled into the student."""
    for who, model in (("student", student), ("teacher", teacher)):
        if model.architecture != "cross_encoder":
            raise InputError(f"the {who} is a {model.architecture}; layers are distilled between cross-encoders")
    if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise InputError("teacher and student have different vocabularies; layer losses compare token by token")
    layer_losses.check(encoder_of(student), encoder_of(teacher), [name for name in LAYER_LOSSES if name in losses])


def random_student(layers: int, width: int, like: Model | None) -> CrossEncoder:
    """A cross-encoder with random weights, and with the vocabulary, window and heads of a teacher."""
    if like is None or like.architecture != "cross_encoder":
        raise InputError("a random student takes vocabulary and heads from a cross-encoder teacher; there is none", "init")
    theirs = encoder_of(like).config
    heads = int(theirs.num_attention_heads)
    if width % heads:
        raise InputError(f"random:{layers}/{width}: the width must be a multiple of the teacher's {heads} heads", "init")
    config = BertConfig(
        vocab_size=theirs.vocab_size, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=1200 if width == 312 else 4 * width,  # TinyBERT's 4/312 is the exception
        max_position_embeddings=theirs.max_position_embeddings, pad_token_id=theirs.pad_token_id,
    )  # fmt: skip
    config.num_labels = 1
    return CrossEncoder(BertForSequenceClassification(config), like.tokenizer, window_of(like))


def group_scores(model: Model, batch: Batch, who: Literal["student", "live"] = "student") -> Tensor:
    """Scores (B, G) of a whole batch by the student (with gradients) or, with `who="live"`, by a live teacher."""
    return model.pair_scores(batch[who])[batch["rows"]]


def gathered(own: Tensor, count: int, share: Share) -> Tensor:
    """All P values of a batch from the processes' parts; only the own part carries gradients."""
    if share.world == 1:
        return own
    bounds = [Share(rank, share.world).of(count) for rank in range(share.world)]
    longest = max(end - start for start, end in bounds)
    padded = torch.zeros(longest, dtype=own.dtype, device=own.device)
    start, end = share.of(count)
    padded[: end - start] = own.detach()[: end - start]
    parts = [torch.zeros_like(padded) for _ in bounds]
    dist.all_gather(parts, padded)
    pieces = [part[: end - start] for part, (start, end) in zip(parts, bounds, strict=True)]
    pieces[share.rank] = own[: end - start]
    return torch.cat(pieces)


class Learner(nn.Module):
    """The module that Trainer sees: student plus losses; `forward(**batch)` gives the loss and remembers its terms."""

    accepts_loss_kwargs = False  # or Trainer would sum, not average, over accumulated batches

    def __init__(
        self, model: Model, losses: Mapping[str, float], score_scale: float = 1.0, *, teacher: Model | None = None,
        teacher_dropout: bool = False, temperature: float = 1.0, text: bool = False, length: int | None = None,
        share: Share = WHOLE,
    ) -> None:  # fmt: skip
        """A learner: the student `model`, whose scores are multiplied by `score_scale` before the losses (name -> weight).

        A live `teacher` runs without gradients, and is not saved with the module; `teacher_dropout` leaves its dropout on, as
        the published TinyBERT scripts do, which never call eval(). The attention loss is averaged over `length` tokens, to
        which texts or pairs are cut (None: over a batch's). `text`: batches are plain text, so that only encoders run, and only
        layer losses make sense. `share` is the part of each batch that this process works on.
        """
        super().__init__()
        self.student = model
        self.weights, self.score_scale, self.text, self.share = dict(losses), score_scale, text, share
        self.length = length
        self.layers = [name for name in LAYER_LOSSES if name in losses]
        self.functions = {name: loss("listwise_ce" if name == "in_batch" else name, temperature)
                          for name in losses if name not in (*LAYER_LOSSES, *FLOPS_LOSSES)}  # fmt: skip
        self.terms: dict[str, list[float]] = {}
        self.done = 0.0  # share of the steps that are behind
        self.teacher = (teacher,)  # in a tuple, which hides it from torch
        if teacher is not None:
            teacher.train(teacher_dropout).requires_grad_(False)
        if self.layers:
            depths = [int(encoder_of(m).config.num_hidden_layers) for m in (model, teacher)]
            last = self.layers == ["relations"]  # of the last layers alone
            self.every = (depths[0], depths[1]) if last else (1, layer_losses.block_size(*depths))
        if "hidden" in self.layers:
            student_width, teacher_width = (int(encoder_of(m).config.hidden_size) for m in (model, teacher))
            self.projection = nn.Linear(student_width, teacher_width)  # shared by all layers, dropped at export

    def weight_of(self, name: str) -> float:
        """What a loss counts in the sum."""
        return self.weights[name]

    def forward(self, **batch: Unpack[Batch]) -> dict[str, Tensor]:
        """The loss of a batch, as Trainer wants it."""
        terms = self._terms(batch)
        total = sum((self.weight_of(name) * value for name, (value, _) in terms.items()), torch.zeros(()))
        for name, (value, _) in terms.items():
            self.terms.setdefault(name, []).append(float(value.detach()))
        if not torch.isfinite(total):
            raise FloatingPointError("the loss is not finite")
        if self.share.world > 1:  # each process has a part of the sum; their gradients will be averaged
            part = sum((self.weight_of(name) * self.share.world * own for name, (_, own) in terms.items()), torch.zeros(()))
            total = total.detach() + part - part.detach()
        return {"loss": total}

    def _terms(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """For each loss: the term over the whole batch, and what this process contributes to its gradient."""
        count = int(batch["pairs"])
        own, own_layers, live, live_layers = self._run_both(batch)
        terms = {}
        with torch.autocast(own.device.type, enabled=False):
            for name in self.layers:
                if name == "hidden":
                    value = layer_losses.hidden_loss(own_layers.hidden, live_layers.hidden, self.projection)
                elif name == "relations":
                    value = layer_losses.relation_loss(own_layers, live_layers)
                else:
                    value = layer_losses.attention_loss(own_layers.attention, live_layers.attention, self.length)
                terms[name] = self.shared_mean(value, count)
            if self.functions:
                theirs = batch.get("teacher")
                if theirs is None and live is not None:
                    theirs = gathered(live, int(batch["taught"]), self.share)[batch["rows"]]
                scores = gathered(own, count, self.share) * self.score_scale
                terms |= self._score_terms(scores, theirs, batch)
        return terms

    def shared_mean(self, value: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """A mean over this process's part of `count` texts or pairs -> (mean over all, this process's part of that)."""
        start, end = self.share.of(count)
        value = value * ((end - start) / count)
        if self.share.world == 1:
            return value, value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total, value

    def _score_terms(self, scores: Tensor, theirs: Tensor | None, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        mask, terms = batch["mask"], {}
        grouped = scores[batch["rows"]]
        for name, function in self.functions.items():
            if name == "in_batch":
                everything = torch.ones_like(batch["batch_labels"], dtype=torch.bool)
                value = function(scores[batch["batch_rows"]], None, batch["batch_labels"], everything)
            else:
                value = function(grouped, theirs, batch["labels"], mask)
            terms[name] = (value, value)
        for name, figure in zip(("score_mean", "score_std"), spread(grouped.detach(), mask), strict=True):
            self.terms.setdefault(name, []).append(figure)
        return terms

    def _run_both(self, batch: Batch) -> tuple[Tensor, Layers, Tensor | None, Layers]:
        """(student's scores, its layers, the live teacher's scores, its layers) of this process's pairs."""
        (teacher,) = self.teacher
        none = Layers([], [], [])
        if teacher is None:
            return self._run(self.student, batch["student"]), none, None, none
        if not self.layers:
            own = self._run(self.student, batch["student"])
            with torch.no_grad():
                return own, none, self._run(teacher, batch["live"]), none
        values = "relations" in self.layers
        with layer_losses.recorded(encoder_of(self.student), self.every[0], values) as own_layers:
            own = self._run(self.student, batch["student"])
        with torch.no_grad(), layer_losses.recorded(encoder_of(teacher), self.every[1], values) as live_layers:
            live = self._run(teacher, batch["live"])
        return own, own_layers, live, live_layers

    def _run(self, model: Model, tokens: Mapping[str, Tensor]) -> Tensor:
        """Scores of pairs; for plain text the encoder's output, of which only the layers are used."""
        return encoder_of(model)(**tokens).last_hidden_state if self.text else model.pair_scores(tokens)


def spread(scores: Tensor, mask: Tensor) -> tuple[float, float]:
    """Mean of the scores (B, G) of groups, and the standard deviation within groups: what a ranking is made of.

    >>> spread(torch.tensor([[1.0, 3.0], [7.0, 9.0]]), torch.ones(2, 2, dtype=torch.bool))
    (5.0, 1.0)
    """
    centres = (scores * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
    return float(scores[mask].mean()), float((scores - centres)[mask].square().mean().sqrt())


def scale_scores(model: BertDot | ColBert, factor: float) -> None:
    """Multiply all scores of a bert_dot or colbert by `factor`, in place: the last layer before its vectors takes the root."""
    inner = [part for name, part in model.encoder.named_children() if "embeddings" not in name]
    norms = [module for part in inner for module in part.modules() if isinstance(module, nn.LayerNorm)]
    head = getattr(model, "head", None)  # of a ColBERT that compresses
    if head is None and not norms:
        raise InputError(f"a {type(model.encoder).__name__} ends in no LayerNorm, by which its scores could be scaled")
    last = norms[-1] if head is None else head
    with torch.no_grad():
        for parameter in (last.weight, last.bias):
            parameter.mul_(math.sqrt(factor))


def match_scale(
    model: BertDot | ColBert, collator: Collator, batches: Sequence[Sequence[Group]], score_scale: float = 1.0,
    teacher: Model | None = None,
) -> float:  # fmt: skip
    """Scale a student so that its margins' root mean square is the teacher's; returns the factor of its scores.

    Margin-MSE compares margins in the teacher's units. A student that starts a factor off (a ColBERT: a hundred) spends its
    training on that. The mean margin is no measure: it is about 0 for a student that cannot rank yet. Students with a random
    head (cross-encoder, PreTTR, TK) cannot rank at all yet: scaling would only increase their error.
    """
    student_margins, teacher_margins = [], []
    with engine.running(model, "fp32") as device:
        for groups in islice(batches, SCALE_BATCHES):
            batch: Batch = send_to_device(collator([groups]), device)
            scores = group_scores(model, batch) * score_scale
            live = None if teacher is None or "teacher" in batch else teacher.eval()
            theirs = batch["teacher"] if live is None else group_scores(live, batch, "live")
            own, theirs = margins(scores, theirs, batch["labels"], batch["mask"])
            student_margins.append(own.clone())
            teacher_margins.append(theirs)
    factor = float(torch.cat(teacher_margins).square().mean().sqrt() / torch.cat(student_margins).square().mean().sqrt())
    if not math.isfinite(factor) or factor <= 0:
        return 1.0
    scale_scores(model, factor)
    return factor
