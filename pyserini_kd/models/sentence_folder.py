"""Read what the files of a sentence-transformers folder say about its model. Parts that cannot be computed here are refused.

The reference is version 6: vectors must equal those of `encode_query` and `encode_document` of a SentenceTransformer.
"""

from __future__ import annotations

import json
from pathlib import Path

from pyserini_kd.models.pooling import ACTIVATIONS, POOLINGS
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import Record, read_json

MODULES, ABOUT = "modules.json", "config_sentence_transformers.json"
FIRST = ("Transformer", "MLMTransformer")
OLD_POOLINGS = dict(
    zip(
        ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"),
        POOLINGS,
        strict=True,
    )
)
"""Old key of Pooling without `pooling_mode_` -> name, in the order in which vectors are joined."""
TEXT_CONFIGS = tuple(
    f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
FOREIGN = ("query_expansion", "processing_kwargs", "model_args", "model_kwargs", "config_args", "config_kwargs")
TOKENIZER_SETTINGS = ("tokenizer_args", "processor_kwargs")  # of these only `model_max_length` is read


def unsupported(folder: Path, part: str) -> InputError:
    """The error for a part of a folder that this package does not compute."""
    return InputError(f"{folder}: {part} is not supported; use a checkpoint without it")


def modules(folder: Path) -> list[tuple[str, Path]]:
    """Modules of a folder, as (class name, folder of its settings); none if it has no modules.json.

    Raises:
        InputError: a module's code comes from elsewhere, or the first module does not read text by a Transformer.
    """
    if not (folder / MODULES).is_file():
        return []
    try:
        listed = [(str(one["type"]), folder / str(one["path"])) for one in json.loads((folder / MODULES).read_text("utf-8"))]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{folder / MODULES} is not a list of modules with type and path; restore the file") from None
    for kind, _ in listed:
        if not kind.startswith("sentence_transformers."):
            raise unsupported(folder, f"module {kind}, whose code is not in sentence-transformers,")
    found = [(kind.rsplit(".", 1)[-1], path) for kind, path in listed]
    if found and found[0][0] in ("Router", "Asym"):
        parts = sorted(path.parent for path in folder.glob("*/config.json") if "Transformer" in path.parent.name)
        hint = f"name one of its parts instead: {', '.join(map(str, parts))}" if parts else "use another checkpoint"
        raise InputError(f"{folder}: its first module is a Router, which is not supported; {hint}")
    if not found or found[0][0] not in FIRST:
        raise unsupported(folder, f"first module {found[0][0]}" if found else "an empty list of modules")
    return found


def root(folder: Path) -> Path:
    """The folder of configuration, weights and tokenizer: the given one, or that of its first module, such as `0_Transformer`.

    Raises:
        InputError: the weights are only part of a network's (an adapter).
    """
    listed = modules(folder)
    found = listed[0][1] if listed else folder
    if (found / "adapter_config.json").is_file():
        raise unsupported(folder, "a PEFT adapter that is not merged into its model")
    return found


def kind(folder: Path) -> str:
    """The class of sentence-transformers that saved a folder: SentenceTransformer, CrossEncoder or SparseEncoder.

    Raises:
        InputError: another class.
    """
    found = str(_about(folder).get("model_type") or "SentenceTransformer")
    if found not in ("SentenceTransformer", "CrossEncoder", "SparseEncoder"):
        raise unsupported(folder, f"a {found} of sentence-transformers")
    return found


def _about(folder: Path) -> Record:
    return read_json(folder / ABOUT, "config") if (folder / ABOUT).is_file() else {}


def text_config(folder: Path) -> Record:
    """Settings of the first module for reading texts, from `sentence_bert_config.json` or a file of an older name."""
    listed = modules(folder)
    paths = [listed[0][1] / name for name in TEXT_CONFIGS] if listed else []
    found = next((read_json(path, "config") for path in paths if path.is_file()), {})
    for name in FOREIGN:
        if found.get(name):
            raise unsupported(folder, f"`{name}` of {TEXT_CONFIGS[0]}")
    for name in TOKENIZER_SETTINGS:
        if set(found.get(name) or {}) - {"model_max_length"}:
            raise unsupported(folder, f"`{name}` of {TEXT_CONFIGS[0]} (apart from model_max_length)")
    methods = found.get("modality_config", {"text": {}})
    if methods.get("text", {}).get("method", "forward") != "forward" or "text" not in methods:
        raise unsupported(folder, f"`modality_config` of {TEXT_CONFIGS[0]}")
    return found


def lengths(folder: Path, window: int) -> tuple[int, int]:
    """Maximum tokens of a query and a document: from the configuration, else from the tokenizer, but at most `window`."""
    config, path = text_config(folder), root(folder) / "tokenizer_config.json"
    tokenizer = read_json(path, "tokenizer config") if path.is_file() else {}
    given = [config.get("max_seq_length"), *((config.get(name) or {}).get("model_max_length") for name in TOKENIZER_SETTINGS)]
    most = next((length for length in [*given, tokenizer.get("model_max_length")] if length), window)
    query, doc = (int(min(config.get(name) or most, window)) for name in ("query_length", "document_length"))
    return query, doc


def prompts(folder: Path) -> Record:
    """The prefixes of queries and documents. As in sentence-transformers, `default_prompt_name` does not change them."""
    about = _about(folder)
    found, default = about.get("prompts") or {}, about.get("default_prompt_name")
    if default is not None and default not in {"query", "document", *found}:
        raise InputError(f"{folder / ABOUT}: default_prompt_name {default!r} is not among the prompts; correct the file")
    return {"query_prefix": found.get("query") or "", "doc_prefix": found.get("document") or ""}


def check_pairs(folder: Path) -> None:
    """InputError if a cross-encoder has modules or a prompt that this package does not apply."""
    if others := [kind for kind, _ in modules(folder)[1:]]:
        raise unsupported(folder, f"module {others[0]} of a cross-encoder")
    about = _about(folder)
    if (about.get("prompts") or {}).get(about.get("default_prompt_name")):
        raise unsupported(folder, "a default prompt of a cross-encoder")


def by_cosine(folder: Path) -> bool:
    """Whether a folder says that its vectors are compared by cosine."""
    return bool(modules(folder)) and _about(folder).get("similarity_fn_name") == "cosine"


def encoder_settings(folder: Path, window: int) -> Record:
    """Settings of a bi-encoder or a SPLADE, named as in EncoderSettings."""
    about = _about(folder)
    if about.get("truncate_dim") is not None:
        raise unsupported(folder, f"`truncate_dim` of {ABOUT}")
    if (similarity := about.get("similarity_fn_name") or "cosine") not in ("cosine", "dot", "dot_product"):
        raise unsupported(folder, f"similarity {similarity}")
    query_len, doc_len = lengths(folder, window)
    found: Record = {"max_query_len": query_len, "max_doc_len": doc_len, **prompts(folder)}
    steps = [(kind, path) for kind, path in modules(folder)[1:] if kind != "Dropout"]  # which does nothing after training
    kinds = [kind for kind, _ in steps]
    if kinds == ["SpladePooling"]:
        return found
    if foreign := [kind for kind in kinds if kind not in ("Pooling", "Dense", "Normalize")]:
        raise unsupported(folder, f"module {foreign[0]}")
    l2_norm = kinds[-1:] == ["Normalize"]
    if kinds[:1] != ["Pooling"] or set(kinds[1 : len(kinds) - l2_norm]) - {"Dense"}:
        raise unsupported(folder, f"the order of modules Transformer, {', '.join(kinds)} (not Pooling, Dense, Normalize)")
    for kind, path in steps[1:]:
        _check_step(folder, kind, path)
    return {**found, "pooling": _pooling(folder, steps[0][1]), "l2_norm": l2_norm}


def _pooling(folder: Path, path: Path) -> str:
    """The modes of a Pooling module, joined by +."""
    config = read_json(path / "config.json", "pooling config")
    if not config.get("include_prompt", True):
        raise unsupported(folder, "pooling without the prompt (`include_prompt`)")
    modes = config.get("pooling_mode") or [new for old, new in OLD_POOLINGS.items() if config.get(f"pooling_mode_{old}")]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    for mode in modes:
        if mode not in POOLINGS:
            raise unsupported(folder, f"pooling {mode}")
    return "+".join(modes)


def _check_step(folder: Path, kind: str, path: Path) -> None:
    """InputError if a Dense or Normalize module is not a plain layer behind pooling."""
    config = read_json(path / "config.json", "config") if (path / "config.json").is_file() else {}
    places = {config.get(name) or "sentence_embedding" for name in ("module_input_name", "module_output_name")}
    if places != {"sentence_embedding"} or config.get("use_residual"):
        raise unsupported(folder, f"a {kind} module on {', '.join(sorted(places))}, or with a residual connection,")
    if kind == "Dense":
        activation_of(folder, path)


def dense_folders(folder: Path) -> list[Path]:
    """The folders of the Dense modules, in their order."""
    return [path for kind, path in modules(folder)[1:] if kind == "Dense"]


def activation_of(folder: Path, path: Path) -> str:
    """The activation of a Dense module: a class name of torch that ACTIVATIONS has."""
    name = str(read_json(path / "config.json", "config").get("activation_function", "torch.nn.modules.activation.Tanh"))
    if not name.startswith("torch.") or (short := name.rsplit(".", 1)[-1]) not in ACTIVATIONS:
        raise unsupported(folder, f"activation {name} of module Dense")
    return short
