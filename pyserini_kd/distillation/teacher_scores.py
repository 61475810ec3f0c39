"""What training asks of teacher scores, and the scores of any groups, held by pair."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn, Protocol

import numpy as np

from pyserini_kd.distillation.candidates import Group
from pyserini_kd.distillation.hashing import Table, distinct, hashes_of_pairs, look_up
from pyserini_kd.distillation.pairs import Pairs, group_hashes, pair_ids
from pyserini_kd.storage.arrays import Floats, Hashes, chunks
from pyserini_kd.storage.errors import InputError

BLOCK = 1 << 16  # scores taken at a time
AT_ONCE = 1 << 12  # groups whose scores are read together


class TeacherScores(Protocol):
    """Teacher scores of the documents of groups. `Scores` and `triples.Triples` are such."""

    def of(self, group: Group) -> list[float]:
        """The scores of a group's documents; NaN where there is none."""

    def missing(self) -> int:
        """Number of (query, document) pairs without a score."""

    def largest(self) -> float:
        """The largest absolute score."""


class Scores:
    """Teacher scores of the (query, document) pairs of some groups: 12 bytes a pair."""

    def __init__(self, groups: Sequence[Group] | Pairs, scores: Floats | None = None) -> None:
        """The scores of all pairs, in the order of their keys; without them there is none at first."""
        keys = groups.keys if isinstance(groups, Pairs) else distinct(group_hashes(groups))
        self._table = Table(keys, np.full(len(keys), np.nan, np.float32) if scores is None else scores)

    def fill(self, scored: Iterable[tuple[str, str, float]]) -> Scores:
        """Take (query_id, doc_id, score) as they stream by. Other pairs are skipped; the last score of a pair counts."""
        keys, scores = self._table
        for some in chunks(scored, BLOCK):
            found, places = look_up(keys, hashes_of_pairs((query_id, doc_id) for query_id, doc_id, _ in some))
            scores[places[found]] = np.array([score for *_, score in some], np.float32)[found]
        return self

    def find(self, hashes: Hashes) -> Floats:
        """The score of each pair, of whose ids this is the hash; NaN where there is none."""
        return self._table.find(hashes)

    def each(self, groups: Iterable[Group]) -> Iterator[tuple[Group, list[float]]]:
        """Groups with the scores of their documents; NaN where there is none."""
        for some in chunks(groups, AT_ONCE):
            scores = iter(self.find(hashes_of_pairs(pair_ids(some))).tolist())
            yield from ((group, list(itertools.islice(scores, len(group.doc_ids)))) for group in some)

    def of(self, group: Group) -> list[float]:
        """The scores of a group's documents; NaN where there is none."""
        ((_, scores),) = self.each([group])
        return scores

    def missing(self) -> int:
        """Number of pairs without a score."""
        return int(np.isnan(self._table.scores).sum())

    def largest(self) -> float:
        """The largest absolute score."""
        return float(np.nanmax(np.abs(self._table.scores), initial=0.0))

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._table.keys)


def is_bounded(largest: float) -> bool:
    """Whether scores of which this is the largest absolute one lie in [-1, 1], as cosines and probabilities do."""
    return largest <= 1


def refuse_bounded(who: str, cure: str) -> NoReturn:
    """The InputError for scores in [-1, 1]; `who` gives them, and `cure` says what to do.

    >>> refuse_bounded("teacher a gives cosines", "give it a weight")
    Traceback (most recent call last):
    pyserini_kd.storage.errors.InputError: teacher a gives cosines in [-1, 1]; margins that small teach little: give it a weight
    """
    raise InputError(f"{who} in [-1, 1]; margins that small teach little: {cure}")
