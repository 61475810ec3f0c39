"""Search impact indexes with the SPLADE that made them. The results equal those of Pyserini's LuceneImpactSearcher."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pyserini_kd.data.java import JavaObject, start_jvm
from pyserini_kd.data.runs import Run, Scores
from pyserini_kd.data.types import Query
from pyserini_kd.models import checkpoint_folder, rankers
from pyserini_kd.models.sparse_encoder import SparseEncoder
from pyserini_kd.retrieval import impact_build
from pyserini_kd.retrieval.lucene import in_threads, is_lucene_index, java_class, java_errors, json_mapper
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.manifest import Manifest

SIDES = ("sha256", "strategy", "activation", "doc_prefix")
"""Encoder settings of an index and a search must agree in these fields."""
STEP = 16  # queries per task of a thread

Weighted = tuple[str, dict[str, int]]
"""(query id, {token: impact})."""


def is_impact_index(path: str | Path, encoder: str | None = None) -> bool:
    """Whether a folder holds an impact index. Without a manifest: whether it is a Lucene index and `encoder` is a SPLADE."""
    folder = Path(path)
    if not is_lucene_index(folder):
        return False
    manifest = Manifest.find(folder)
    if manifest is not None:
        return manifest.kind == impact_build.KIND
    return encoder is not None and checkpoint_folder.architecture_of(checkpoint_folder.resolve(encoder)) == "splade"


@dataclasses.dataclass(frozen=True)
class ImpactIndex:
    """An open impact index and its query encoder. It can be used for any number of searches."""

    folder: Path
    encoder: SparseEncoder
    manifest: Manifest | None  # None: another program wrote the index
    searcher: JavaObject  # Anserini's SimpleImpactSearcher

    @classmethod
    def open(
        cls, folder: str | Path, encoder: str | None = None, *, ignore_mismatch: bool = False, **settings: Any
    ) -> ImpactIndex:
        """Open an index folder with an encoder; None: the encoder in the manifest. `settings` are those of `models.load`.

        Raises:
            InputError: the index or the encoder does not exist, or another encoder made the index.
        """
        folder = Path(folder)
        if not is_lucene_index(folder):
            raise InputError(f"{folder} is not a Lucene index (no segments file)")
        manifest = Manifest.find(folder)
        name = encoder or _maker(folder, manifest)
        if (saved := checkpoint_folder.architecture_of(checkpoint_folder.resolve(name))) != "splade":
            raise InputError(f"{folder} holds the impacts of a splade, but {name} is a {saved}; name the encoder of the index")
        loaded = rankers.load(name, **settings)
        assert isinstance(loaded, SparseEncoder)
        if manifest is not None and not ignore_mismatch:
            try:
                manifest.refuse_other(loaded.record(), SIDES)
            except InputError as error:
                raise InputError(f"{error}; to search anyway, set `ignore_encoder_mismatch`") from None
        start_jvm()
        with java_errors(f"{folder} cannot be opened"):
            searcher = java_class("io.anserini.search.SimpleImpactSearcher")(str(folder.resolve()))
        return cls(folder, loaded, manifest, searcher)

    def search(self, queries: Sequence[Query], *, hits: int = 1000, threads: int = 1, tag: str = "impact") -> Run:
        """Return at most `hits` documents per query, ordered by the sum of products of impacts; none for a blank query.

        A token that is in every document is ignored, as in Pyserini: its idf, log(N / df), is 0.
        """
        if hits < 1 or threads < 1:
            raise InputError(f"hits and threads must be at least 1, found {hits} and {threads}")
        with_text = [query for query in queries if query.text.strip()]
        found = impact_build.impacts(self.encoder, [query.text for query in with_text], "query")
        weighted = [(query.query_id, self._selective(weights)) for query, weights in zip(with_text, found, strict=True)]
        json_mapper()  # create it before the threads start
        self._find(1, weighted[:1])  # one thread loads the Java classes before the others start
        chunks = [weighted[start : start + STEP] for start in range(0, len(weighted), STEP)]
        rows: dict[str, list[tuple[str, float]]] = {}
        with tqdm(total=len(weighted), desc="impacts", unit=" queries", disable=None) as bar:
            for part in in_threads(functools.partial(self._find, hits), chunks, threads):
                rows |= part
                bar.update(len(part))
        each = ((query.query_id, rows.get(query.query_id, [])) for query in queries)
        return Run.from_hits(tag, ((query_id, [d for d, _ in row], break_ties([s for _, s in row])) for query_id, row in each))

    def _selective(self, weights: dict[str, int]) -> dict[str, int]:
        """The tokens that are in at least one document, but not in all."""
        return {token: weight for token, weight in weights.items() if 0 < self._frequency(token) < self._count}

    @functools.cached_property
    def _count(self) -> int:
        return int(self.searcher.reader.numDocs())

    @functools.cached_property
    def _frequencies(self) -> dict[str, int]:
        return {}

    def _frequency(self, token: str) -> int:
        """Number of documents that contain a token."""
        if token not in self._frequencies:
            term = java_class("org.apache.lucene.index.Term")("contents", token)
            self._frequencies[token] = int(self.searcher.reader.docFreq(term))
        return self._frequencies[token]

    def _find(self, hits: int, queries: Sequence[Weighted]) -> dict[str, list[tuple[str, float]]]:
        mapper, found = json_mapper(), {}
        for query_id, weights in queries:
            # one Java call makes the map: `put` of jnius is not thread-safe, it can write into the map of another thread
            query = mapper.readValue(json.dumps(weights), self._map_type)
            found[query_id] = json.loads(mapper.writeValueAsString(self.searcher.search(query, hits))) if weights else []
        return found

    @functools.cached_property
    def _map_type(self) -> JavaObject:
        return java_class("java.lang.Class").forName("java.util.HashMap")


def break_ties(scores: Sequence[float]) -> Scores:
    """Strictly decreasing scores float32, in descending order of input. A run then keeps the order of Lucene.

    Anserini subtracts 1e-6 from a tied score. Scores of impact indexes are in the thousands, where float32 cannot represent
    this difference. This function subtracts the smallest step of float32 instead.

    >>> break_ties([3697.0, 3697.0, 12.0]).tolist()
    [3697.0, 3696.999755859375, 12.0]
    """
    distinct = np.array(scores, np.float32)
    for row in range(1, len(distinct)):
        distinct[row] = min(distinct[row], np.nextafter(distinct[row - 1], np.float32(-np.inf)))
    return distinct


def _maker(folder: Path, manifest: Manifest | None) -> str:
    """The checkpoint in a manifest: its folder if it exists, else its name."""
    if manifest is None or not manifest.made_by:
        raise InputError(f"{folder} names no encoder; name the encoder that made the index")
    known = (manifest.model_extra or {}).get("checkpoint")
    return str(known) if known and (Path(known) / "config.json").is_file() else str(manifest.made_by["name"])
