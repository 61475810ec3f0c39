"""Search impact indexes, as Pyserini's LuceneImpactSearcher does, with the SPLADE that made them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pyserini_kd.data.java import start_jvm
from pyserini_kd.data.runs import Run, Scores
from pyserini_kd.data.types import Query
from pyserini_kd.models import checkpoint_folder, rankers
from pyserini_kd.models.sparse_encoder import SparseEncoder
from pyserini_kd.retrieval import impact_build
from pyserini_kd.retrieval.lucene import JavaObject, in_threads, is_lucene_index, java_class, java_errors, json_mapper
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.manifest import Manifest

SIDES = ("sha256", "strategy", "activation", "doc_prefix")
"""What decides a document's weights, besides its length and rounding."""
STEP = 16  # queries that a thread takes at a time

Weighted = tuple[str, dict[str, int]]
"""The id of a query, and its impacts."""


def is_impact_index(path: str | Path, encoder: str | None = None) -> bool:
    """Whether a folder holds an impact index of ours, or one of another program that a SPLADE `encoder` is to search."""
    folder = Path(path)
    if not is_lucene_index(folder):
        return False
    manifest = Manifest.find(folder)
    if manifest is not None:
        return manifest.kind == impact_build.KIND
    return encoder is not None and checkpoint_folder.architecture_of(checkpoint_folder.resolve(encoder)) == "splade"


@dataclasses.dataclass(frozen=True)
class ImpactIndex:
    """An open impact index and its query encoder. A program keeps it for any number of searches."""

    folder: Path
    encoder: SparseEncoder
    manifest: Manifest | None  # None for a folder of another program
    searcher: JavaObject  # Anserini's SimpleImpactSearcher

    @classmethod
    def open(
        cls, folder: str | Path, encoder: str | None = None, *, ignore_mismatch: bool = False, **settings: Any
    ) -> ImpactIndex:
        """Open a folder with the encoder of this name, by default the one that its manifest names.

        `settings` are those of `models.load`.

        Raises:
            InputError: there is no such index or encoder, or the encoder did not make the index.
        """
        folder = Path(folder)
        if not is_lucene_index(folder):
            raise InputError(f"{folder} is not a Lucene index (no segments file)")
        manifest = Manifest.find(folder)
        name = encoder or _maker(folder, manifest)
        if (saved := checkpoint_folder.architecture_of(checkpoint_folder.resolve(name))) != "splade":
            raise InputError(f"{folder} holds the impacts of a splade; {name} is a {saved}")
        loaded = rankers.load(name, **settings)
        assert isinstance(loaded, SparseEncoder)
        if manifest is not None and not ignore_mismatch:
            manifest.refuse_other(loaded.record(), SIDES)
        start_jvm()
        with java_errors(f"{folder} cannot be opened"):
            searcher = java_class("io.anserini.search.SimpleImpactSearcher")(str(folder.resolve()))
        return cls(folder, loaded, manifest, searcher)

    def search(self, queries: Sequence[Query], *, hits: int = 1000, threads: int = 1, tag: str = "impact") -> Run:
        """The best documents by the sum of products of impacts, at most `hits` a query, none for a blank one.

        As in Pyserini, tokens that every document has are left out (their idf, log N / df, is not positive).
        """
        if hits < 1 or threads < 1:
            raise InputError(f"hits and threads must be at least 1, found {hits} and {threads}")
        asked = [query for query in queries if query.text.strip()]
        found = impact_build.impacts(self.encoder, [query.text for query in asked], "query")
        weighted = [(query.query_id, self._kept(weights)) for query, weights in zip(asked, found, strict=True)]
        json_mapper()  # here, not in the threads
        list(self._find(1, weighted[:1]))  # one thread alone meets the classes of Java first
        chunks = [weighted[start : start + STEP] for start in range(0, len(weighted), STEP)]
        rows: dict[str, list[tuple[str, float]]] = {}
        with tqdm(total=len(weighted), desc="impacts", unit=" queries", disable=None) as bar:
            for part in in_threads(functools.partial(self._find, hits), chunks, threads):
                rows |= part
                bar.update(len(part))
        each = ((query.query_id, rows.get(query.query_id, [])) for query in queries)
        return Run.from_hits(tag, ((query_id, [d for d, _ in own], part_ties([s for _, s in own])) for query_id, own in each))

    def _kept(self, weights: dict[str, int]) -> dict[str, int]:
        """Only the tokens that some documents have and others have not."""
        return {token: weight for token, weight in weights.items() if 0 < self._frequency(token) < self._count}

    @functools.cached_property
    def _count(self) -> int:
        return int(self.searcher.reader.numDocs())

    @functools.cached_property
    def _frequencies(self) -> dict[str, int]:
        return {}

    def _frequency(self, token: str) -> int:
        """Number of documents with a token."""
        if token not in self._frequencies:
            term = java_class("org.apache.lucene.index.Term")("contents", token)
            self._frequencies[token] = int(self.searcher.reader.docFreq(term))
        return self._frequencies[token]

    def _find(self, hits: int, queries: Sequence[Weighted]) -> dict[str, list[tuple[str, float]]]:
        new_map, number, mapper = java_class("java.util.HashMap"), java_class("java.lang.Integer"), json_mapper()
        found = {}
        for query_id, weights in queries:
            asked = new_map()
            for token, weight in weights.items():
                asked.put(token, number(weight))
            found[query_id] = json.loads(mapper.writeValueAsString(self.searcher.search(asked, hits))) if weights else []
        return found


def part_ties(scores: Sequence[float]) -> Scores:
    """Scores float32, best first, of which none are equal, so that a run keeps Lucene's order: equal scores by id.

    Anserini takes 1e-6 off, which impacts, sums of thousands, lose in float32. Here it is the smallest step there is.

    >>> part_ties([3697.0, 3697.0, 12.0]).tolist()
    [3697.0, 3696.999755859375, 12.0]
    """
    parted = np.array(scores, np.float32)
    for row in range(1, len(parted)):
        parted[row] = min(parted[row], np.nextafter(parted[row - 1], np.float32(-np.inf)))
    return parted


def _maker(folder: Path, manifest: Manifest | None) -> str:
    """The checkpoint that a manifest names: where it was, else by its name."""
    if manifest is None or not manifest.made_by:
        raise InputError(f"{folder} does not say which encoder made it; search it with that encoder")
    known = (manifest.model_extra or {}).get("checkpoint")
    return str(known) if known and (Path(known) / "config.json").is_file() else str(manifest.made_by["name"])
