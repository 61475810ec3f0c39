"""The checkpoint `minilm-3`: three layers that were distilled from MiniLM's six on permissive texts.

The package carries the weights of the three layers only. The embeddings are MiniLM's, which its own package carries. Both are
put together once, in the cache. `minilm_3.md` beside this file says how the layers were made.
"""

import json
import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file

from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.files import atomic_folder, cache

NAME = "minilm-3"
WEIGHTS, CARD = (Path(__file__).with_name(f"minilm_3.{ending}") for ending in ("safetensors", "md"))
OTHERS = ("*.safetensors", "README.md", "data_config.json", ".gitattributes")  # files about MiniLM itself


def folder(minilm: Path) -> Path:
    """The checkpoint's folder; it is made from MiniLM's folder if it is missing."""
    made = cache() / "checkpoints" / sha256(WEIGHTS)[:16] / NAME
    if not made.exists():
        layers = {name: weights.astype("float32") for name, weights in load_file(WEIGHTS).items()}
        embeddings = {name: found for name, found in load_file(minilm / "model.safetensors").items() if "embeddings" in name}
        with atomic_folder(made) as partial:
            shutil.copytree(minilm, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*OTHERS))
            config = json.loads((minilm / "config.json").read_text(encoding="utf-8"))
            depth = 1 + max(int(name.split(".")[2]) for name in layers)
            (partial / "config.json").write_text(json.dumps(config | {"num_hidden_layers": depth}, indent=2), encoding="utf-8")
            shutil.copy(CARD, partial / "README.md")
            save_file(embeddings | layers, partial / "model.safetensors", metadata={"format": "pt"})
    return made
