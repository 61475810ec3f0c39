"""Files with texts instead of ids: MS MARCO's `top1000` (a run with its texts) and triples of texts."""

from collections.abc import Iterator
from pathlib import Path

from pyserini_kd.data.lines import numbered_lines, one_line, one_word, unique_queries
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.storage.errors import InputError


class Top1000:
    """A `top1000` file: query id, passage id, query and passage, in any order. Its passages are read at each iteration."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether the first line of a file has two ids and two texts, separated by tabs."""
        if not path.is_file():
            return False
        columns = next(numbered_lines(path, "run file"), ("", ""))[1].split("\t")
        return len(columns) == 4 and not any(column.strip().replace(".", "", 1).lstrip("-").isdigit() for column in columns[2:])

    def __str__(self) -> str:
        return str(self.path)

    def __iter__(self) -> Iterator[Doc]:
        """The passage of each line."""
        return (Doc(pid, "", passage.strip()) for _, _, pid, _, passage in self._lines())

    def read(self) -> tuple[Run, list[Query]]:
        """The passages of each query as a run, scored 1/place in the file, and the queries."""
        hits: dict[str, list[str]] = {}
        queries: dict[str, tuple[str, Query]] = {}
        for where, query_id, pid, query, _ in self._lines():
            hits.setdefault(query_id, []).append(pid)
            queries.setdefault(query_id, (where, Query(query_id, one_line(query))))
        run = Run.from_hits(self.path.stem, ((q, pids, [1 / n for n in range(1, len(pids) + 1)]) for q, pids in hits.items()))
        return run, unique_queries(queries.values(), str(self.path))

    def _lines(self) -> Iterator[tuple[str, str, str, str, str]]:
        for where, line in numbered_lines(self.path, "run file"):
            columns = line.split("\t")
            if len(columns) != 4:
                raise InputError(f"{where}: expected `qid<TAB>pid<TAB>query<TAB>passage`, found {len(columns)} columns")
            yield where, one_word(columns[0], where), one_word(columns[1], where), columns[2], columns[3]


def text_triples(path: Path) -> Iterator[tuple[str, str, str]]:
    """Stream (query, positive, negative) of a file such as `triples.train.small.tsv`, each text on one line."""
    for where, line in numbered_lines(path, "triples"):
        columns = [one_line(column) for column in line.split("\t")]
        if len(columns) != 3 or not all(columns):
            raise InputError(
                f"{where}: expected texts `query<TAB>positive<TAB>negative`, found {len(list(filter(None, columns)))}"
            )
        if where.endswith(":1") and " " not in line.strip():
            raise InputError(f"{where}: these triples have ids, not texts; `train --candidates` takes them")
        yield columns[0], columns[1], columns[2]
