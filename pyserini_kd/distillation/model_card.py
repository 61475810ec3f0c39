"""The model card (README.md) of a trained checkpoint: what it is, its data, its measures, how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from pyserini_kd.storage.records import Record

if TYPE_CHECKING:
    from pyserini_kd.models.loading import Model

TEMPLATE = Path(__file__).with_name("model_card.md.j2")
WHAT = {
    "bert_dot": "A bi-encoder (BERT_DOT): one vector for a text, compared by dot product.",
    "colbert": "A late-interaction ranker (ColBERT): one vector for a token, compared by MaxSim.",
    "splade": "A learned sparse encoder (SPLADE): one sparse vector over the vocabulary for a text, compared by dot product.",
    "prettr": "A ranker that encodes documents in its lower layers and joins them with the query above (PreTTR).",
    "tk": "A kernel-pooling ranker over contextualised word vectors (TK).",
    "cross_encoder": "A cross-encoder: it reads a query and a document together and gives one logit.",
    "language_model": "A small language model, distilled on plain text.",
}
LIBRARIES = {
    "bert_dot": "sentence-transformers", "cross_encoder": "sentence-transformers", "splade": "sentence-transformers",
    "language_model": "transformers",
}  # fmt: skip


def model_card(name: str, model: Model, record: Record, *, is_ranker: bool = True) -> str:
    """The text of a card in Markdown, with the metadata block of model hubs.

    Args:
        name: the checkpoint's folder or hub id, as users will type it.
        model: the trained model.
        record: its training.json. The text holds no time and no date, so that equal trainings give equal cards.
        is_ranker: False for an encoder that a language model was distilled into.
    """
    architecture = model.architecture if is_ranker else "language_model"
    metric = record["config"]["metric"]
    values = [entry[metric] for stage in record["stages"] for entry in stage["dev"]]
    template = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(TEMPLATE.read_text("utf-8"))
    return template.render(
        name=name, architecture=architecture, what=WHAT[architecture], library=LIBRARIES.get(architecture), record=record,
        parameters=sum(weights.numel() for weights in model.parameters()), layers=_layers(model), lengths=model.reader.lengths,
        width=model.width if architecture in ("bert_dot", "colbert", "splade") else None,
        metric=metric, measured=values, best=max(values, default=0.0),
    ) + "\n"  # fmt: skip


def _layers(model: Model) -> int | None:
    """The number of Transformer layers; None for a model that has no encoder of transformers."""
    network: Any = getattr(model, "classifier", getattr(model, "encoder", None))
    return getattr(getattr(network, "config", None), "num_hidden_layers", None)
