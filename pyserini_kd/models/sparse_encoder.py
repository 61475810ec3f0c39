"""A loaded SPLADE: it computes sparse vectors of texts and scores of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyserini_kd.models.engine import SideScorer, unique
from pyserini_kd.storage.arrays import Floats, Rows

if TYPE_CHECKING:
    from scipy.sparse import csr_array

STEP = 1 << 16  # pairs scored at a time


class SparseEncoder(SideScorer):
    """A SPLADE with device, precision and batch size. Each text gets one sparse vector over the vocabulary."""

    def encode_queries(self, texts: Sequence[str], *, cut: list[int] | None = None, label: str = "encode queries") -> csr_array:
        """Vectors float32 (N, V) of queries. Column n belongs to token n. `cut` is an argument of `count_cut`."""
        return self._encode(texts, "query", cut, label)

    def encode_docs(self, texts: Sequence[str], *, cut: list[int] | None = None, label: str = "encode documents") -> csr_array:
        """Vectors float32 (N, V) of documents, like those of queries."""
        return self._encode(texts, "doc", cut, label)

    def tokens(self) -> list[str]:
        """The token of each column; "" for a column without a token."""
        names = [""] * self.width
        for token, column in self.reader.tokenizer.get_vocab().items():
            names[column] = token
        return names

    def _encode(self, texts: Sequence[str], kind: str, cut: list[int] | None, label: str) -> csr_array:
        from scipy.sparse import csr_array

        distinct, places = unique(texts)
        columns, weights = [np.empty(0, np.int32)] * len(distinct), [np.empty(0, np.float32)] * len(distinct)

        def use(rows: list[int], output: Floats, _: Rows) -> None:
            for row, vector in zip(rows, output, strict=True):
                columns[row] = np.flatnonzero(vector).astype(np.int32)
                weights[row] = vector[columns[row]]

        self.run_side(distinct, kind, use, label, cut)
        if not distinct:
            return csr_array((0, self.width), dtype=np.float32)
        ends, shape = np.cumsum([0, *map(len, columns)]), (len(distinct), self.width)
        return csr_array((np.concatenate(weights), np.concatenate(columns), ends), shape=shape)[places]

    def _score(self, queries: Sequence[str], docs: Sequence[str], work: Path | None) -> Floats:
        (texts, query_rows), (distinct, doc_rows) = unique(queries), unique(docs)
        query_vecs, doc_vecs = self.encode_queries(texts), self.encode_docs(distinct)
        scores = np.empty(len(queries), np.float32)
        for start in range(0, len(queries), STEP):
            pairs = slice(start, start + STEP)
            scores[pairs] = query_vecs[query_rows[pairs]].multiply(doc_vecs[doc_rows[pairs]]).sum(axis=1)
        return scores
