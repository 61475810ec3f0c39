"""Bring the scores of several teachers to one scale, so that the weights of an ensemble say what each teacher counts.

`spread` divides a teacher's scores by its spread: the mean over queries of the standard deviation of a query's scores. Margins
keep their sizes relative to each other. `zscore` takes the mean of its query from each score, and divides by the standard
deviation of its query: every query then counts alike. Standard deviations are those of a population (divided by n); queries
with one candidate have none.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from pyserini_kd.distillation.teacher_scores import Pairs
from pyserini_kd.storage.arrays import Floats, Ints, Rows, column, let_go, spans
from pyserini_kd.storage.errors import InputError

ScaleName = Literal["none", "spread", "zscore"]
Scaled = Callable[[slice], Floats]
"""A slice of places of pairs -> the scaled scores there."""
Doubles = npt.NDArray[np.float64]

BLOCK = 1 << 14  # pairs whose queries are looked up at a time


def query_rows(pairs: Pairs) -> Ints:
    """The number of its query (from 0, in the order of the pairs) at the place of each pair."""
    numbers: dict[str, int] = {}
    rows = column(pairs.folder, len(pairs), np.int32)
    for block in pairs.blocks(BLOCK):
        rows[block.places] = [numbers.setdefault(query_id, len(numbers)) for query_id in block.query_ids]
        let_go(rows)
    return rows


def moments(rows: Ints, scores: Floats) -> tuple[Rows, Doubles, Doubles]:
    """(number of scores, mean, standard deviation) of each query; `rows` are the queries of the scores.

    >>> [own.tolist() for own in moments(np.int32([0, 1, 0]), np.float32([1, 5, 3]))]
    [[2, 1], [2.0, 5.0], [1.0, 0.0]]
    """
    size = 1 + int(max((rows[some].max() for some in spans(len(rows))), default=-1))

    def sums(value: Callable[[slice], npt.ArrayLike]) -> Doubles:
        total = np.zeros(size)
        for some in spans(len(rows)):
            total += np.bincount(rows[some], value(some), size)
            let_go(rows, scores)
        return total

    counts = sums(lambda some: np.ones(len(rows[some])))
    means = sums(lambda some: scores[some].astype(np.float64)) / counts
    squares = sums(lambda some: (scores[some] - means[rows[some]]) ** 2) / counts
    return counts.astype(np.int64), means, np.sqrt(squares)


def scaled(method: ScaleName, rows: Ints, scores: Floats, name: str) -> tuple[Scaled, float | None]:
    """What gives the scaled scores of the teacher of this name, and its spread (None where nothing is scaled).

    Raises:
        InputError: the teacher gives all candidates of a query the same score, for every query.
    """
    if method == "none":
        return lambda some: scores[some], None
    counts, means, deviations = moments(rows, scores)
    several = counts > 1
    spread = float(deviations[several].mean()) if several.any() else 0.0
    if not spread > 0:
        raise InputError(f"teacher {name} gives all candidates of a query the same score: it has no scale", "scale")
    if method == "spread":
        return lambda some: (scores[some] / spread).astype(np.float32), spread
    safe = np.where(deviations > 0, deviations, 1.0)
    return lambda some: ((scores[some] - means[rows[some]]) / safe[rows[some]]).astype(np.float32), spread
