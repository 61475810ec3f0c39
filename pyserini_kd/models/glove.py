"""Word vectors from a GloVe text file, and the word-level tokenizer that goes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file

SPECIAL = ("[PAD]", "[UNK]")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_glove(path: Path) -> tuple[Tensor, Any]:
    """Vectors float32 (V, H) and a lower-casing word tokenizer; rows 0 and 1 are padding (zeros) and unknown (the mean).

    A first line of two whole numbers, as word2vec and fastText write it, is passed over.

    Raises:
        InputError: a line is not a word and numbers, or has another width than the first.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words: dict[str, int] = {word: row for row, word in enumerate(SPECIAL)}
    rows: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    with open(require_file(path, "GloVe file"), encoding="utf-8") as lines:
        for number, line in enumerate(tqdm(lines, desc="read GloVe", unit=" words", disable=None), start=1):
            parts = line.rstrip().rsplit(" ", len(rows[0])) if rows else line.rstrip().split(" ")  # some words hold blanks
            if number == 1 and len(parts) == 2 and all(map(str.isdecimal, parts)):
                continue
            word = parts[0]
            if " " in word and _is_number(word.rpartition(" ")[2]):
                raise InputError(f"{path}:{number}: more numbers than the {len(rows[0])} of the first word")
            try:
                row = np.array(parts[1:], dtype=np.float32)
            except ValueError:
                raise InputError(f"{path}:{number}: expected a word and numbers, separated by blanks") from None
            if rows and len(row) != len(rows[0]):
                raise InputError(f"{path}:{number}: {len(row)} numbers, the first line has {len(rows[0])}")
            if word not in words:
                words[word] = len(words)
                rows.append(row)
    if not rows:
        raise InputError(f"{path}: no word vectors found")
    vectors = np.stack(rows)
    vectors = np.concatenate([np.zeros((1, vectors.shape[1]), np.float32), vectors.mean(axis=0, keepdims=True), vectors])
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    return torch.from_numpy(vectors), fast
