"""Layer losses of TinyBERT and MiniLM: a student's hidden states and attention follow those of a deeper teacher.

Jiao et al. 2020 (arXiv 1909.10351), as used by Gao et al. 2020 (arXiv 2007.11088) and Chen et al. 2021 (arXiv 2009.07531).
A student of M layers and a teacher of N = k M: hidden state j follows hidden state jk (0 is the output of the embeddings),
attention layer i follows the last layer of its block, ik + k - 1. The means run over padded positions too, as in the
published code, which pads every batch to one length. BERT-like and DistilBERT encoders.

Wang et al. 2020 (MiniLM, arXiv 2002.10957) compare only the last layers, whose number may differ in any way.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyserini_kd.models.layers import layers_of
from pyserini_kd.storage.errors import InputError

MASKED = -10000.0  # added to the scores of padded keys
CUT = -100.0  # scores at or below it count as masked


class Layers(NamedTuple):
    """What one forward pass of an encoder with M layers computed, for P texts of T tokens."""

    hidden: list[Tensor]  # M + 1, each (P, T, H); the first is the output of the embeddings
    attention: list[Tensor]  # M, each (P, heads, T, T): scaled scores before the softmax, mask added
    values: list[Tensor]  # M, of the same shape: scaled products of values, mask added; none unless asked for


def block_size(student_layers: int, teacher_layers: int) -> int:
    """The number of teacher layers for each student layer; InputError if it is not a whole number."""
    if student_layers < 1 or teacher_layers % student_layers:
        raise InputError(f"a teacher of {teacher_layers} layers cannot be mapped onto a student of {student_layers}: "
                         f"the student's layers must divide the teacher's")  # fmt: skip
    return teacher_layers // student_layers


def hidden_map(student_layers: int, teacher_layers: int) -> list[int]:
    """The teacher's hidden state that each of the student's M + 1 follows.

    >>> hidden_map(4, 12)
    [0, 3, 6, 9, 12]
    """
    k = block_size(student_layers, teacher_layers)
    return [j * k for j in range(student_layers + 1)]


def attention_map(student_layers: int, teacher_layers: int) -> list[int]:
    """The teacher's attention layer (0-based) that each of the student's M follows: the last of its block.

    >>> attention_map(4, 12)
    [2, 5, 8, 11]
    """
    k = block_size(student_layers, teacher_layers)
    return [i * k + k - 1 for i in range(student_layers)]


def hidden_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], projection: nn.Module) -> Tensor:
    """Sum over the student's hidden states of their mean squared distance to the teacher's.

    student M + 1 tensors (P, T, H_s); teacher N + 1 tensors (P, T, H_t); `projection` maps H_s to H_t and is shared by all.

    >>> zeros, ones = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    >>> float(hidden_loss([zeros, zeros], [ones, 9 * ones, 2 * ones], nn.Identity()))  # 1^2 + 2^2; the middle one is skipped
    5.0
    """
    places = hidden_map(len(student) - 1, len(teacher) - 1)
    terms = [F.mse_loss(projection(own.float()), teacher[j].float()) for own, j in zip(student, places, strict=True)]
    return torch.stack(terms).sum()


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], length: int | None = None) -> Tensor:
    """Sum over the student's layers of the mean squared distance of attention scores; masked entries count 0 on both sides.

    student M tensors, teacher N tensors, all (P, heads, T, T). With `length` the mean is taken over as many keys, as if the
    texts were padded to that length. So it does not depend on the other texts of a batch.

    >>> real, masked = torch.zeros(1, 1, 2, 1), torch.full((1, 1, 2, 1), -10000.0)
    >>> three, one = torch.cat([real + 3, masked], -1), torch.cat([real + 1, masked - 7], -1)
    >>> float(attention_loss([three], [one])), float(attention_loss([three], [one], length=8))  # (4 + 0) / 2, 4 / 8
    (2.0, 0.5)
    """
    if student[0].shape[1] != teacher[0].shape[1]:
        raise InputError(f"the student has {student[0].shape[1]} attention heads, the teacher {teacher[0].shape[1]}: "
                         f"the attention loss compares head by head")  # fmt: skip
    places = attention_map(len(student), len(teacher))
    terms = [F.mse_loss(_unmasked(own), _unmasked(teacher[i])) for own, i in zip(student, places, strict=True)]
    tokens = student[0].shape[-1]
    return torch.stack(terms).sum() * (tokens / (length or tokens))


def relation_loss(student: Layers, teacher: Layers) -> Tensor:
    """KL(teacher || student) of the last layer's attention, plus the same of its value relations.

    Both are distributions over keys: softmax(Q K^T / sqrt(d)) and softmax(V V^T / sqrt(d)). The mean runs over heads and over
    the tokens of a text, padding left out, and over texts. Wang et al. 2020, arXiv 2002.10957, equations 2 to 6.
    """
    mask = (teacher.attention[-1][:, 0, 0] > CUT).float()  # (P, T)
    terms = []
    for own, theirs in ((student.attention[-1], teacher.attention[-1]), (student.values[-1], teacher.values[-1])):
        logs = own.float().log_softmax(dim=-1), theirs.float().log_softmax(dim=-1)
        divergence = F.kl_div(*logs, reduction="none", log_target=True).sum(dim=-1).mean(dim=1)  # (P, T)
        terms.append(((divergence * mask).sum(dim=1) / mask.sum(dim=1)).mean())
    return terms[0] + terms[1]


def _unmasked(scores: Tensor) -> Tensor:
    scores = scores.float()
    return scores.masked_fill(scores <= CUT, 0.0)


def attention_scores(queries: Tensor, keys: Tensor, attention_mask: Tensor, heads: int) -> Tensor:
    """Scores before the softmax, Q K^T / sqrt(d) + mask: (P, heads, T, T) of projections (P, T, H) and a mask (P, T)."""
    split = [x.float().view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (queries, keys)]
    scores: Tensor = split[0] @ split[1].transpose(-1, -2) / math.sqrt(split[0].shape[-1])
    return scores + MASKED * (1.0 - attention_mask.float())[:, None, None, :]


@contextlib.contextmanager
def recorded(encoder: PreTrainedModel, every: int = 1, values: bool = False) -> Iterator[Layers]:
    """Collect the layers of the one forward pass inside the block, with gradients; of each `every` layers only the last.

    transformers gives only probabilities, so the query and key projections are hooked and the scores are computed here. With
    `block_size` for `every`, the layers of a teacher are those that the student's layers follow. With `values` the products of
    values are kept too.

    Raises:
        InputError: the encoder is not built like BERT or DistilBERT.
    """
    layers = list(layers_of(encoder))[every - 1 :: every]
    heads = int(encoder.config.num_attention_heads)
    found = Layers([], [], [])
    masks: list[Tensor] = []
    queries: list[Tensor] = []

    def start(module: nn.Module, args: object, kwargs: dict[str, Tensor]) -> None:
        if kwargs.get("attention_mask") is None:
            raise ValueError("the encoder must be called with attention_mask=...")
        masks[:] = [kwargs["attention_mask"]]

    def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found.hidden.append(output[0] if isinstance(output, tuple) else output)

    def query(module: nn.Module, args: object, output: Tensor) -> None:
        queries[:] = [output]

    def key(module: nn.Module, args: object, output: Tensor) -> None:
        with torch.autocast(output.device.type, enabled=False):
            found.attention.append(attention_scores(queries[0], output, masks[0], heads))

    def value(module: nn.Module, args: object, output: Tensor) -> None:
        with torch.autocast(output.device.type, enabled=False):
            found.values.append(attention_scores(output, output, masks[0], heads))

    handles = [encoder.register_forward_pre_hook(start, with_kwargs=True)]
    handles += [module.register_forward_hook(keep) for module in (encoder.get_submodule("embeddings"), *layers)]
    for query_part, key_part, value_part in map(_projections, layers):
        handles += [query_part.register_forward_hook(query), key_part.register_forward_hook(key)]
        handles += [value_part.register_forward_hook(value)] if values else []
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _projections(layer: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The projections of queries, keys and values of a layer of DistilBERT or its like; InputError where it has others."""
    for names in (("q_lin", "k_lin", "v_lin"), ("self.query", "self.key", "self.value")):
        with contextlib.suppress(AttributeError):
            query, key, value = (layer.get_submodule(f"attention.{name}") for name in names)
            return query, key, value
    raise InputError(f"the attention of a {type(layer).__name__} is not BERT's: its layers cannot be distilled")


def check(student: PreTrainedModel, teacher: PreTrainedModel, losses: Sequence[str]) -> None:
    """InputError unless these losses can compare the layers of teacher and student: their number, their heads."""
    for encoder in (student, teacher):
        _projections(layers_of(encoder)[0])
        if getattr(encoder.config, "embedding_size", encoder.config.hidden_size) != encoder.config.hidden_size:
            raise InputError(f"layers of a {type(encoder).__name__} whose embeddings are narrower cannot be distilled")
    if list(losses) != ["relations"]:
        block_size(student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    heads = [int(encoder.config.num_attention_heads) for encoder in (student, teacher)]
    by_head = [name for name in losses if name != "hidden"]
    if by_head and heads[0] != heads[1]:
        raise InputError(f"the student has {heads[0]} attention heads, the teacher {heads[1]}: the {by_head[0]} loss compares "
                         f"head by head; leave it out ({by_head[0]}=0)", "losses")  # fmt: skip
