"""One HTML page to look at runs: table, latency, wins and losses, rankings side by side, recall by depth, training.

All that the page shows is one dictionary, `data`; `report.html` beside this file holds the script that draws it, and
`figures` draws the same for papers. The page asks no network and shows foreign text as text, never as markup.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Qrels, Query
from pyserini_kd.evaluation import caveats, engines, latency, significance
from pyserini_kd.evaluation.measures import Measure
from pyserini_kd.storage.environment import command_line, sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import read_json, record_path

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("report.html")
DEPTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Of recall."""
TOP = 10
"""Documents of each ranking that can be read in the page."""
# What keeps the page below 10 MB, whatever goes in
MAX_QUERIES = 200
"""Queries whose rankings can be read: those whose first measure differs most between the runs."""
MAX_DOCS = 4_000
"""Documents in the page; each is there once."""
MAX_TEXT, MAX_BYTES = 400, 600
"""Characters, and bytes in the page, of a document's text."""
MAX_QUERY_TEXT, MAX_QUERY_TEXTS = 300, 600_000
"""Characters of a query, and of all together."""
MAX_VALUES = 900_000
"""Queries x runs x measures; above it, evenly spaced queries."""
NOT_LOSSES = {"step", "lr", "grad_norm", "score_std"}
"""What else a training log holds."""


Fetch = Callable[[Sequence[str]], Mapping[str, Doc]]
"""From ids to the documents that there are."""


class System(NamedTuple):
    """A run and all that is known of it."""

    path: str
    results: dict[str, engines.PerQuery]
    recall: list[float | None]
    """At DEPTHS; None where the run is not that deep."""
    top: Run
    depth: int
    notes: list[str]


def read_system(path: str, qrels_name: str, qrels: Qrels, measures: Sequence[str], engine: str = "auto") -> System:
    """Read and measure a run; only the top of its rankings is kept."""
    run = Run.read(path)
    recall = {f"R(rel={_level(measures)})@{depth}": depth for depth in DEPTHS}
    try:
        results = engines.evaluate(run, qrels, measures, engine)
        by_depth = engines.evaluate(run, qrels, list(recall), "fast")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    notes = [*caveats.of_run(run, qrels), *caveats.of_training(path, run, qrels_name)]
    values = [engines.mean(by_depth[name]) if depth <= run.depth else None for name, depth in recall.items()]
    return System(path, results, values, run.top(TOP), run.depth, notes)


def _level(measures: Iterable[str]) -> int:
    """Relevance that counts as relevant: the highest that a measure asks for."""
    return max(Measure.parse(name).rel for name in measures)


def short_labels(paths: Sequence[str]) -> list[str]:
    """File names without folder and ending, and without the words that all share; whole paths where that is not unique.

    >>> short_labels(["runs/run.docs.bm25.test.txt", "runs/run.docs.student.v2.test.txt"])
    ['bm25', 'student.v2']
    >>> short_labels(["a/run.txt", "b/run.txt"])
    ['a/run.txt', 'b/run.txt']
    """
    words = [Path(path).stem.split(".") for path in paths]
    if len(words) > 1:
        head = len(os.path.commonprefix(words))
        tail = len(os.path.commonprefix([list(reversed(each[head:])) for each in words]))
        words = [each[head : len(each) - tail] for each in words]
    labels = [".".join(each) for each in words]
    return labels if all(labels) and len(set(labels)) == len(labels) else list(paths)


def pareto_front(points: Mapping[int, tuple[float, float]]) -> list[int]:
    """Keys of the (cost, value) points, cheapest first, for which no other is better at no higher cost, or equal at a lower.

    >>> pareto_front({0: (1.0, 0.3), 1: (2.0, 0.5), 2: (3.0, 0.4), 3: (2.0, 0.4), 4: (9.0, 0.5)})
    [0, 1]
    """
    front: list[int] = []
    for key, (_, value) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1], item[0])):
        if not front or value > points[front[-1]][1]:
            front.append(key)
    return front


def loss_curves(path: str | Path) -> list[dict[str, Any]]:
    """The curves in a `training.json`, one dictionary a stage: each loss term and dev measure as [step, value] pairs."""
    record = read_json(path, "training record")
    name = Path(path).parent.name if Path(path).name == "training.json" else Path(path).stem
    stages = record.get("stages", [record])
    found = []
    for stage in stages if isinstance(stages, list) else [stages]:
        known = isinstance(stage, dict) and isinstance(stage.get("log"), list) and isinstance(stage.get("dev") or [], list)
        if not known or (len(stages) > 1 and "name" not in stage):
            raise InputError(f"{path}: not a record of training; expected the training.json of a checkpoint, with a log")
        label = f"{name}, {stage['name']}" if len(stages) > 1 else name
        found.append({"name": label, "losses": _curves(stage["log"], path), "dev": _curves(stage.get("dev") or [], path)})
    return found


def _curves(log: Sequence[Any], path: str | Path) -> dict[str, list[list[float]]]:
    curves: dict[str, list[list[float]]] = {}
    for entry in log:
        if not isinstance(entry, dict) or type(entry.get("step")) is not int:
            raise InputError(f"{path}: each entry of a log needs a step, a whole number; found {json.dumps(entry)[:60]}")
        for term, value in entry.items():
            if term not in NOT_LOSSES and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(term, []).append([entry["step"], float(f"{value:.5g}")])
    return curves


def collect(
    systems: Sequence[System],
    qrels: Qrels,
    queries: Iterable[Query] = (),
    fetch: Fetch | None = None,
    *,
    baseline: str | None = None,
    training: Sequence[str] = (),
    names: Mapping[str, str | None] | None = None,
    test: str = "t",
    correction: str = "holm",
) -> dict[str, Any]:
    """All that the page and the figures show, as JSON can hold it.

    Args:
        systems: what `read_system` gave.
        qrels: judgements; their order of queries is the page's.
        queries: texts, where known.
        fetch: gives texts; None where nobody knows the texts.
        baseline: path of the run that the others are compared to.
        training: paths of `training.json` files.
        names: what to say at the top: qrels, topics, collection.
        test: one of `significance.TESTS`.
        correction: one of `significance.CORRECTIONS`, over all runs and measures.
    """
    measures = list(systems[0].results)
    results = {system.path: system.results for system in systems}
    compared = significance.compare(results, baseline, test=test, correction=correction) if baseline is not None else {}
    notes = caveats.of_depths({system.path: system.depth for system in systems}, measures)
    labels = short_labels([system.path for system in systems])
    rows = [_row(system, label, compared.get(system.path, {})) for system, label in zip(systems, labels, strict=True)]
    points = {n: float(row["ms"]) for n, row in enumerate(rows) if row["ms"] is not None}
    fronts = [pareto_front({n: (ms, rows[n]["means"][m]) for n, ms in points.items()}) for m in range(len(measures))]
    kept = list(qrels)
    room = max(1, MAX_VALUES // (len(systems) * len(measures)))
    if len(kept) > room:
        kept = [kept[n * len(kept) // room] for n in range(room)]
        notes.append(f"single queries are shown for {room} of {len(qrels)} queries, evenly spaced; all means are over all")
    texts = {query.query_id: query.text for query in queries}
    width = min(MAX_QUERY_TEXT, max(20, MAX_QUERY_TEXTS // len(kept)))
    drill, docs = _rankings(systems, qrels, kept, fetch, notes)
    return {
        "names": {what: name for what, name in (names or {}).items() if name},
        "command": command_line(),
        "count": len(qrels),
        "baseline": None if baseline is None else [system.path for system in systems].index(baseline),
        "tests": sum(map(len, compared.values())),
        "test": significance.TEST_NAMES[test],
        "correction": significance.correction_words(correction, sum(map(len, compared.values()))),
        "measures": measures,
        "systems": rows,
        "fronts": fronts,
        "level": _level(measures),
        "depths": DEPTHS,
        "queries": [[query_id, _cut(texts.get(query_id, ""), width)] for query_id in kept],
        # in units of 1/10,000: half the bytes
        "values": [[[round(1e4 * s.results[m][q]) for q in kept] for m in measures] for s in systems],
        "rankings": drill,
        "docs": docs,
        "training": [stage for path in training for stage in loss_curves(path)],
        "notes": notes,
    }


def _row(system: System, label: str, compared: Mapping[str, significance.Comparison]) -> dict[str, Any]:
    ms, what = latency.ms_per_query(system.path, len(system.top))
    record_file, record = record_path(Path(system.path)), {}
    if record_file.exists() and record_file != Path(system.path):
        with contextlib.suppress(InputError):  # somebody else's file of that name
            record = read_json(record_file, "record")
    return {
        "name": label,
        "about": str(record.get("system", "")),
        "path": system.path,
        "sha256": sha256(system.path),
        "command": str(record.get("command", "")),
        "commit": str(record.get("commit", "")),
        "ms": None if ms is None else float(f"{ms:.4g}"),
        "time": what,
        "means": [round(engines.mean(per_query), 6) for per_query in system.results.values()],
        "compared": [_numbers(compared[measure]) for measure in system.results] if compared else None,
        "recall": [None if value is None else round(value, 5) for value in system.recall],
        "notes": system.notes,
    }


def _numbers(found: significance.Comparison) -> dict[str, float | None]:
    return {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in found._asdict().items()}


def _rankings(
    systems: Sequence[System], qrels: Qrels, kept: Sequence[str], fetch: Fetch | None, notes: list[str]
) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Rankings of the queries that differ most, documents as rows of the second list: [doc_id, title, text]."""
    measures = list(systems[0].results)

    def spread(query_id: str) -> float:
        values = [system.results[measures[0]][query_id] for system in systems]
        return max(values) - min(values)

    chosen: list[str] = []
    rows: dict[str, int] = {}
    for query_id in sorted(kept, key=spread, reverse=True):  # stable: ties stay in the order of the qrels
        more = {d for system in systems if query_id in system.top for d in system.top[query_id].doc_ids} - rows.keys()
        if len(chosen) == MAX_QUERIES or len(rows) + len(more) > MAX_DOCS:
            break
        chosen.append(query_id)
        rows |= {doc_id: len(rows) + n for n, doc_id in enumerate(sorted(more))}
    if len(chosen) < len(kept):
        notes.append(f"rankings can be read for the {len(chosen)} queries (of {len(qrels)}) that differ most in {measures[0]}")
    found = fetch(list(rows)) if fetch is not None else {}
    if fetch is not None and len(found) < len(rows):
        missing = [doc_id for doc_id in rows if doc_id not in found]
        notes.append(f"{len(missing)} of {len(rows)} documents are not in the collection, e.g. {missing[0]}")
    place = {query_id: n for n, query_id in enumerate(kept)}
    drill, level = [], _level(measures)
    for query_id in sorted(chosen, key=place.__getitem__):
        hits = [[rows[d] for d in system.top[query_id].doc_ids] if query_id in system.top else [] for system in systems]
        judged = {row: qrels[query_id][d] for d, row in rows.items() if d in qrels[query_id]}
        relevant = sum(grade >= level for grade in qrels[query_id].values())
        drill.append({"query": place[query_id], "hits": hits, "judged": judged, "relevant": relevant})
    docs = [[d, *((_cut(found[d].title, 160), _cut(found[d].text, MAX_TEXT)) if d in found else ())] for d in rows]
    return drill, docs


def _cut(text: str, characters: int) -> str:
    """The head of a text, on one line, in few characters and few bytes of the page."""
    text = " ".join(text.split())
    short = text[:characters]
    while len(_embedded(short).encode()) > MAX_BYTES:
        short = short[: len(short) * 3 // 4]
    return short if short == text else short.rstrip() + "…"


def page(data: Mapping[str, Any]) -> str:
    """The HTML page. Its only script is named by its checksum, so that a browser runs nothing that came with the data."""
    template = TEMPLATE.read_text(encoding="utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template.replace("@SCRIPT_SHA256@", digest).replace("@DATA@", _embedded(data))


def _embedded(data: Any) -> str:
    r"""JSON that can stand inside a script element: no `</script>` or `<!--` can come up in it.

    >>> _embedded("</script><b>&")
    '"\\u003c/script\\u003e\\u003cb\\u003e\\u0026"'
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair becomes JSON's escape for it
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
