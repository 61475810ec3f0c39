"""Write the layers of the trained start into the package: `python experiments/start/export.py WORK/minilm-3`."""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from pyserini_kd.models import checkpoint_folder, minilm_3


def main(trained: Path) -> None:
    weights = load_file(trained / "model.safetensors")
    minilm = load_file(checkpoint_folder.resolve("minilm") / "model.safetensors")
    for name in (name for name in weights if "embeddings" in name):
        np.testing.assert_array_equal(weights[name], minilm[name])  # frozen, so the package need not carry them
    layers = {name: found.astype(np.float16) for name, found in weights.items() if name.startswith("encoder.layer.")}
    save_file(layers, minilm_3.WEIGHTS)
    print(minilm_3.WEIGHTS, f"{minilm_3.WEIGHTS.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
