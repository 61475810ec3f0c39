"""Bring the scores of several teachers to one scale. The weights of an ensemble then set the influence of each teacher.

`spread` divides all scores of a teacher by its spread. The spread is the standard deviation of the scores of a query, averaged
over the queries. Ratios between margins do not change. `zscore` subtracts the mean of the query from each score and divides by
the standard deviation of the query. All queries then have the same scale. Standard deviations are those of a population
(divided by n). The spread does not include queries with one candidate.
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
"""A slice of pairs -> their scaled scores."""
Doubles = npt.NDArray[np.float64]

BLOCK = 1 << 14  # pairs read at a time


def query_rows(pairs: Pairs) -> Ints:
    """Return the query number of each pair. Queries are numbered from 0, in the order of the pairs."""
    numbers: dict[str, int] = {}
    rows = column(pairs.folder, len(pairs), np.int32)
    for block in pairs.blocks(BLOCK):
        rows[block.places] = [numbers.setdefault(query_id, len(numbers)) for query_id in block.query_ids]
        let_go(rows)
    return rows


def moments(rows: Ints, scores: Floats) -> tuple[Rows, Doubles, Doubles]:
    """Return (number of scores, mean, standard deviation) of each query. `rows` are the query numbers of the scores.

    >>> [values.tolist() for values in moments(np.int32([0, 1, 0]), np.float32([1, 5, 3]))]
    [[2, 1], [2.0, 5.0], [1.0, 0.0]]
    """
    size = 1 + int(max((rows[part].max() for part in spans(len(rows))), default=-1))

    def sums(value: Callable[[slice], npt.ArrayLike]) -> Doubles:
        total = np.zeros(size)
        for part in spans(len(rows)):
            total += np.bincount(rows[part], value(part), size)
            let_go(rows, scores)
        return total

    counts = sums(lambda part: np.ones(len(rows[part])))
    means = sums(lambda part: scores[part].astype(np.float64)) / counts
    squares = sums(lambda part: (scores[part] - means[rows[part]]) ** 2) / counts
    return counts.astype(np.int64), means, np.sqrt(squares)


def scaled(method: ScaleName, rows: Ints, scores: Floats, name: str) -> tuple[Scaled, float | None]:
    """Return a function that scales the scores of the teacher `name`, and its spread (None for the method `none`).

    Raises:
        InputError: for every query, all candidates have the same score.
    """
    if method == "none":
        return lambda part: scores[part], None
    counts, means, deviations = moments(rows, scores)
    several = counts > 1
    spread = float(deviations[several].mean()) if several.any() else 0.0
    if not spread > 0:
        raise InputError(f"teacher {name} gives all candidates of a query the same score and cannot teach; drop it", "scale")
    if method == "spread":
        return lambda part: (scores[part] / spread).astype(np.float32), spread
    safe = np.where(deviations > 0, deviations, 1.0)
    return lambda part: ((scores[part] - means[rows[part]]) / safe[rows[part]]).astype(np.float32), spread
