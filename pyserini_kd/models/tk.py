"""TK: word vectors, a small Transformer, and kernels over the cosine matrix of query and document.

Hofstätter et al., ECAI 2020, as in Hofstätter et al. 2020 (arXiv 2010.02666): natural logarithm, one branch.
"""

import math
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from pyserini_kd.models.checkpoint_folder import TkSettings
from pyserini_kd.models.tokens import Tokenizer
from pyserini_kd.models.two_sides import LateInteraction
from pyserini_kd.storage.arrays import Floats
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import require_file

__all__ = ["MU", "SIGMA", "Tk", "TkSettings", "positions", "read_glove"]

MU = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, -0.1, -0.3, -0.5, -0.7, -0.9)
SIGMA = 0.1
SPECIAL = ("[PAD]", "[UNK]")
DOC_POSITION = 500  # first position of a document; queries start at 0


class Tk(LateInteraction):
    """Contextualised word vectors, compared by 11 kernels."""

    architecture = "tk"
    settings: TkSettings
    head: nn.Linear

    def __init__(self, embeddings: Tensor, tokenizer: Tokenizer, settings: TkSettings) -> None:
        """Start from word vectors float (V, H); training updates them too."""
        super().__init__(None, tokenizer, settings)
        width = embeddings.shape[1]
        if width % settings.heads:
            raise ValueError(f"heads ({settings.heads}) must divide the width of word vectors ({width})")
        self.embeddings = nn.Embedding.from_pretrained(embeddings.clone(), freeze=False)
        layer = nn.TransformerEncoderLayer(width, settings.heads, settings.feed_forward, dropout=0.0, batch_first=True)
        self.context = nn.TransformerEncoder(layer, settings.layers, enable_nested_tensor=False)
        self.mix = nn.Parameter(torch.tensor(0.5))
        self.gamma = nn.Parameter(torch.ones(len(MU)))
        self.head = nn.Linear(len(MU), 1, bias=False)
        nn.init.uniform_(self.head.weight, -0.014, 0.014)

    @property
    def width(self) -> int:
        """H: length of a word vector."""
        return int(self.embeddings.embedding_dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, kind: str = "query") -> Tensor:
        """Contextualised vectors float32 (N, T, H): mix x word + (1 - mix) x context."""
        words = self.embeddings(input_ids)
        first = DOC_POSITION if kind == "doc" else 0
        states = words + positions(words.shape[1], self.width, first).to(words)
        absent = (attention_mask == 0) & attention_mask.any(dim=1, keepdim=True)  # masking all of an empty text gives NaN
        states = self.context(states, src_key_padding_mask=absent)
        mixed: Tensor = (self.mix * words + (1 - self.mix) * states).float()
        return mixed * attention_mask.unsqueeze(-1)

    def late_scores(self, query_vecs: Tensor, query_mask: Tensor, doc_vecs: Tensor, doc_mask: Tensor) -> Tensor:
        """Scores float32 (Q, N) of word vectors (Q, T, H) and (N, D, H) with masks (Q, T) and (N, D)."""
        queries, docs = F.normalize(query_vecs, dim=-1), F.normalize(doc_vecs, dim=-1)
        rows = [self._kernel_scores(query, mask, docs, doc_mask) for query, mask in zip(queries, query_mask, strict=True)]
        return torch.stack(rows)

    def _kernel_scores(self, query: Tensor, query_mask: Tensor, docs: Tensor, doc_mask: Tensor) -> Tensor:
        """Scores (N,) of one query (T, H) with documents (N, D, H); all vectors have unit length."""
        cosines = torch.einsum("th,ndh->ntd", query, docs)
        kernels = torch.exp(-((cosines.unsqueeze(-1) - cosines.new_tensor(MU)) ** 2) / (2 * SIGMA**2))  # (N, T, D, 11)
        summed = (kernels * doc_mask[:, None, :, None]).sum(dim=2) * self.gamma
        logs = torch.log(summed.clamp(min=1e-10)) * query_mask[None, :, None]
        scores: Tensor = self.head(logs.sum(dim=1))[:, 0]
        return scores


def positions(length: int, width: int, first: int = 0) -> Tensor:
    """Sinusoidal position vectors float32 (T, H): sines in the first half, cosines in the second, timescales 1 to 10,000.

    >>> positions(2, 4)[0].tolist(), round(float(positions(2, 4)[1, 0]), 4)  # sin(0), cos(0); sin(1)
    ([0.0, 0.0, 1.0, 1.0], 0.8415)
    """
    half = width // 2
    timescales = torch.exp(-math.log(10_000.0) * torch.arange(half) / max(half - 1, 1))
    angles = torch.arange(first, first + length)[:, None] * timescales[None]
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


def read_glove(path: Path) -> tuple[Tensor, Tokenizer]:
    """Read vectors float32 (V, H) from a GloVe text file, and make a lower-casing word tokenizer.

    Row 0 is padding (zeros), row 1 unknown words (the mean). A first line of two whole numbers (word2vec, fastText) is skipped.

    Raises:
        InputError: a line is not a word and numbers, or its width differs from the first line's.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words: dict[str, int] = {word: row for row, word in enumerate(SPECIAL)}
    rows: list[Floats] = []
    with open(require_file(path, "GloVe file"), encoding="utf-8") as lines:
        for number, line in enumerate(tqdm(lines, desc="read GloVe", unit=" words", disable=None), start=1):
            parts = line.rstrip().rsplit(" ", len(rows[0])) if rows else line.rstrip().split(" ")  # some words contain spaces
            if number == 1 and len(parts) == 2 and all(map(str.isdecimal, parts)):
                continue
            word = parts[0]
            if " " in word and _is_number(word.rpartition(" ")[2]):
                raise InputError(f"{path}:{number}: more than {len(rows[0])} numbers; the first word has {len(rows[0])}")
            try:
                row = np.array(parts[1:], dtype=np.float32)
            except ValueError:
                raise InputError(f"{path}:{number}: expected a word and numbers, separated by spaces") from None
            if rows and len(row) != len(rows[0]):
                raise InputError(f"{path}:{number}: {len(row)} numbers; the first word has {len(rows[0])}")
            if word not in words:
                words[word] = len(words)
                rows.append(row)
    if not rows:
        raise InputError(f"{path}: no word vectors found")
    vectors = np.stack(rows)
    vectors = np.concatenate([np.zeros((1, vectors.shape[1]), np.float32), vectors.mean(axis=0, keepdims=True), vectors])
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    return torch.from_numpy(vectors), cast("Tokenizer", fast)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
