"""Layer losses of TinyBERT and MiniLM: a student imitates the hidden states and the attention of a deeper teacher.

Source: Jiao et al. 2020 (arXiv 1909.10351), as used by Gao et al. 2020 (arXiv 2007.11088) and Chen et al. 2021 (arXiv
2009.07531). The student has M layers, the teacher N = k M. Student hidden state j follows teacher hidden state jk (0: output
of the embeddings). Student attention layer i follows teacher layer ik + k - 1, the last of its block. Means include padding,
as in the published code, which pads every batch to one length. For BERT-like and DistilBERT encoders.

The relation loss of Wang et al. 2020 (MiniLM, arXiv 2002.10957) compares only the last layers. M and N may be any numbers.
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
CUT = -100.0  # scores at or below this count as masked


class Layers(NamedTuple):
    """Layer outputs of one forward pass of an encoder with M layers, for P texts of T tokens."""

    hidden: list[Tensor]  # M + 1, each (P, T, H); the first is the output of the embeddings
    attention: list[Tensor]  # M, each (P, heads, T, T): scaled scores before the softmax, mask added
    values: list[Tensor]  # M, same shape: value relations before the softmax, mask added; empty if not recorded


def block_size(student_layers: int, teacher_layers: int) -> int:
    """Return the number of teacher layers per student layer; InputError if it is not a whole number."""
    if student_layers < 1 or teacher_layers % student_layers:
        raise InputError(f"a teacher of {teacher_layers} layers cannot be mapped onto a student of {student_layers}: "
                         f"the teacher's layers must be a multiple of the student's")  # fmt: skip
    return teacher_layers // student_layers


def hidden_map(student_layers: int, teacher_layers: int) -> list[int]:
    """Return the teacher's hidden state for each of the student's M + 1 hidden states.

    >>> hidden_map(4, 12)
    [0, 3, 6, 9, 12]
    """
    k = block_size(student_layers, teacher_layers)
    return [j * k for j in range(student_layers + 1)]


def attention_map(student_layers: int, teacher_layers: int) -> list[int]:
    """Return the teacher's attention layer (0-based) for each of the student's M layers: the last of its block.

    >>> attention_map(4, 12)
    [2, 5, 8, 11]
    """
    k = block_size(student_layers, teacher_layers)
    return [i * k + k - 1 for i in range(student_layers)]


def hidden_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], projection: nn.Module) -> Tensor:
    """Sum of the mean squared errors between the hidden states of student and teacher.

    student: M + 1 tensors (P, T, H_s). teacher: N + 1 tensors (P, T, H_t). `projection` maps H_s to H_t for all layers.

    >>> zeros, ones = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    >>> float(hidden_loss([zeros, zeros], [ones, 9 * ones, 2 * ones], nn.Identity()))  # 1^2 + 2^2; skips the middle one
    5.0
    """
    targets = hidden_map(len(student) - 1, len(teacher) - 1)
    terms = [F.mse_loss(projection(x.float()), teacher[j].float()) for x, j in zip(student, targets, strict=True)]
    return torch.stack(terms).sum()


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], length: int | None = None) -> Tensor:
    """Sum of the mean squared errors between the attention scores of student and teacher. Masked entries count as 0.

    student: M tensors, teacher: N tensors, all (P, heads, T, T). With `length` the mean is over `length` keys, as if texts were
    padded to it. The loss then does not depend on the other texts of the batch.

    >>> real, masked = torch.zeros(1, 1, 2, 1), torch.full((1, 1, 2, 1), -10000.0)
    >>> three, one = torch.cat([real + 3, masked], -1), torch.cat([real + 1, masked - 7], -1)
    >>> float(attention_loss([three], [one])), float(attention_loss([three], [one], length=8))  # (4 + 0) / 2, 4 / 8
    (2.0, 0.5)
    """
    if student[0].shape[1] != teacher[0].shape[1]:
        raise InputError(f"the student has {student[0].shape[1]} attention heads, the teacher {teacher[0].shape[1]}: "
                         f"the attention loss needs equal numbers")  # fmt: skip
    targets = attention_map(len(student), len(teacher))
    terms = [F.mse_loss(_unmasked(x), _unmasked(teacher[i])) for x, i in zip(student, targets, strict=True)]
    tokens = student[0].shape[-1]
    return torch.stack(terms).sum() * (tokens / (length or tokens))


def relation_loss(student: Layers, teacher: Layers) -> Tensor:
    """KL(teacher || student) of the last layer's attention plus KL(teacher || student) of its value relations.

    The attention is softmax(Q K^T / sqrt(d)). The value relations are softmax(V V^T / sqrt(d)). Each KL is averaged over the
    heads, over the real tokens of a text, and over the texts. Source: Wang et al. 2020, arXiv 2002.10957, equations 2 to 6.
    """
    mask = (teacher.attention[-1][:, 0, 0] > CUT).float()  # (P, T)
    terms = []
    for scores, targets in ((student.attention[-1], teacher.attention[-1]), (student.values[-1], teacher.values[-1])):
        logs = scores.float().log_softmax(dim=-1), targets.float().log_softmax(dim=-1)
        divergence = F.kl_div(*logs, reduction="none", log_target=True).sum(dim=-1).mean(dim=1)  # (P, T)
        terms.append(((divergence * mask).sum(dim=1) / mask.sum(dim=1)).mean())
    return terms[0] + terms[1]


def _unmasked(scores: Tensor) -> Tensor:
    scores = scores.float()
    return scores.masked_fill(scores <= CUT, 0.0)


def attention_scores(queries: Tensor, keys: Tensor, attention_mask: Tensor, heads: int) -> Tensor:
    """Return attention scores before the softmax, Q K^T / sqrt(d) + mask: (P, heads, T, T) from (P, T, H) and mask (P, T)."""
    split = [x.float().view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (queries, keys)]
    scores: Tensor = split[0] @ split[1].transpose(-1, -2) / math.sqrt(split[0].shape[-1])
    return scores + MASKED * (1.0 - attention_mask.float())[:, None, None, :]


@contextlib.contextmanager
def recorded(encoder: PreTrainedModel, every: int = 1, values: bool = False) -> Iterator[Layers]:
    """Collect layer outputs of one forward pass inside the block, with gradients. Keeps the last of each `every` layers.

    transformers returns only probabilities, so hooks on the query and key projections compute the scores here. With
    `every=block_size(...)`, the layers of a teacher match those of the student. `values` also collects the value relations.

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
    """Return the query, key and value projections of a DistilBERT or BERT-like layer; InputError for other layers."""
    for names in (("q_lin", "k_lin", "v_lin"), ("self.query", "self.key", "self.value")):
        with contextlib.suppress(AttributeError):
            query, key, value = (layer.get_submodule(f"attention.{name}") for name in names)
            return query, key, value
    raise InputError(f"the attention of a {type(layer).__name__} is not BERT's; its layers cannot be distilled")


def check(student: PreTrainedModel, teacher: PreTrainedModel, losses: Sequence[str]) -> None:
    """Raise InputError if these layer losses cannot compare the teacher with the student: numbers of layers and of heads."""
    for encoder in (student, teacher):
        _projections(layers_of(encoder)[0])
        if getattr(encoder.config, "embedding_size", encoder.config.hidden_size) != encoder.config.hidden_size:
            raise InputError(f"a {type(encoder).__name__} with narrower embeddings cannot be distilled by layers")
    if list(losses) != ["relations"]:
        block_size(student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    heads = [int(encoder.config.num_attention_heads) for encoder in (student, teacher)]
    by_head = [name for name in losses if name != "hidden"]
    if by_head and heads[0] != heads[1]:
        raise InputError(f"the student has {heads[0]} attention heads, the teacher {heads[1]}: the {by_head[0]} loss needs "
                         f"equal numbers; drop the loss ({by_head[0]}=0)", "losses")  # fmt: skip
