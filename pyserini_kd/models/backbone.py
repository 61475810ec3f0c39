"""Load the tokenizer and the network of a checkpoint folder by transformers. A missing weight is an error."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pyserini_kd.models import checkpoint_folder, sentence_folder
from pyserini_kd.models.tokens import lower_case
from pyserini_kd.storage.errors import InputError

if TYPE_CHECKING:
    from pyserini_kd.models.tokens import Tokenizer

COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "roberta-prelayernorm", "xlm-roberta-xl")


def tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a folder. It lower-cases texts if the settings of sentence-transformers say so.

    Raises:
        InputError: it is written in Python only, or cuts the beginning of long texts.
    """
    from transformers import AutoTokenizer

    found: Any = AutoTokenizer.from_pretrained(sentence_folder.root(folder))
    if getattr(found, "backend_tokenizer", None) is None:
        raise sentence_folder.unsupported(folder, f"tokenizer {type(found).__name__}, which exists in Python only,")
    if found.truncation_side != "right":
        raise sentence_folder.unsupported(folder, "a tokenizer that cuts the beginning of long texts (`truncation_side`)")
    if checkpoint_folder.lower_cases(folder):
        lower_case(found.backend_tokenizer)
    return cast("Tokenizer", found)


def network(folder: Path, architecture: str, *, new_head: bool = False, **extra: bool | int) -> Any:
    """The encoder, or a cross-encoder's classifier, in float32. With `new_head` the classifier's head may be random."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    classifies, files = architecture == "cross_encoder", sentence_folder.root(folder)
    kind = AutoConfig.from_pretrained(files).model_type
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # a generative model: its first token attends to no other
        raise InputError(f"{folder} is a {kind}; a ranker needs an encoder like BERT")
    if not classifies and kind in ("bert", "roberta", "mpnet"):
        extra["add_pooling_layer"] = False
    auto = AutoModelForSequenceClassification if classifies else AutoModel
    found, info = auto.from_pretrained(files, dtype=torch.float32, output_loading_info=True, **extra)
    check_complete(folder, found, info["missing_keys"], new_head=new_head)
    return found


def check_complete(folder: Path, found: Any, missing: Iterable[str], *, new_head: bool = False) -> None:
    """Raise an InputError that names the missing weights of a network. An encoder may lack its pooler, which is not used."""
    body = "" if found.base_model is found else f"{found.base_model_prefix}."
    lacking = sorted(name for name in missing if name.startswith(body) or not new_head)
    if not body or new_head:
        lacking = [name for name in lacking if not name.startswith(f"{body}pooler.")]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise InputError(
            f"{folder} lacks weights that a {type(found).__name__} needs: {', '.join(lacking[:3])}{more}; "
            "get the whole checkpoint, or one whose weights have the names of transformers"
        )


def window_of(network: Any) -> int:
    """Maximum tokens of a network. RoBERTa-like models start positions after the padding position."""
    config = network.config
    first = config.pad_token_id + 1 if config.model_type in COUNT_FROM_PADDING else 0
    return int(config.max_position_embeddings) - first
