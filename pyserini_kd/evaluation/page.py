"""One HTML page about runs: table, latency, wins and losses, rankings side by side, recall by depth, training.

`collect` puts all that the page shows into one dictionary. `report.html` beside this file is the page, and `report.js` is its
script, which draws the dictionary. The page needs no network. It shows foreign text as text, never as markup.
"""

import base64
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import model_validator

from pyserini_kd.data import sources
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Qrels, Query
from pyserini_kd.evaluation import caveats, engines, figures, run_records, significance
from pyserini_kd.evaluation.figures import Json
from pyserini_kd.evaluation.measures import Measure
from pyserini_kd.evaluation.run_files import Measured, RunFiles, measure_files
from pyserini_kd.retrieval import text_sources
from pyserini_kd.storage.environment import command_line, sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, refuse_existing
from pyserini_kd.storage.records import read_json
from pyserini_kd.storage.settings import option

TEMPLATE = Path(__file__).with_name("report.html")
DEPTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # recall is shown at these depths
TOP = 10  # documents of each ranking that can be read in the page
# Limits that keep the page below 10 MB
MAX_QUERIES = 200  # queries whose rankings can be read: the runs differ most on these, by the first measure
MAX_DOCS = 4_000  # documents in the page; each is stored once
MAX_TEXT, MAX_BYTES = 400, 600  # characters, and bytes in the page, of a document's text
MAX_QUERY_TEXT, MAX_QUERY_TEXTS = 300, 600_000  # characters of a query, and of all queries together
MAX_VALUES = 900_000  # queries x runs x measures; above it, evenly spaced queries are shown
NOT_LOSSES = {"step", "lr", "grad_norm", "score_std"}  # other entries of a training log

Fetch = Callable[[Sequence[str]], Mapping[str, Doc]]
"""Takes document ids and gives the documents of those ids that exist."""


class ReportConfig(RunFiles):
    """A report page about run files."""

    topics: str | None = option("--topics", None, "Query texts: a file, ir_datasets:<id>, pydocs:test, or a Pyserini set.")
    collection: str | None = option("--collection", None, "Document texts: a path, ir_datasets:<id> or pydocs.")
    index: str | None = option(
        "--index", None, "Document texts from an index instead (Lucene, prebuilt name, or a dense index of ours)."
    )
    training: tuple[str, ...] = option(
        "--training", (), "A training.json, for its loss curves; may be repeated.", metavar="FILE"
    )
    notes: tuple[str, ...] = option("--note", (), "A sentence to show with the results; may be repeated.", metavar="TEXT")
    output: Path = option("--output", Path("report.html"), "Page to write.")
    figures_folder: Path | None = option("--figures", None, "Also write figures for a paper here.")
    figure_format: Literal["pdf", "svg", "png"] = option("--figure-format", "pdf", "Format of the figures.")
    overwrite: bool = option("--overwrite", False, "Replace the page and the figures if they exist.")

    @model_validator(mode="after")
    def outputs_are_free(self) -> Self:
        """Check that the page can be written and that texts have one source."""
        refuse_existing(self.output, self.overwrite)
        if self.collection and self.index:
            raise InputError("texts come from a collection or from an index, not from both", "index")
        return self


def build(config: ReportConfig) -> list[str]:
    """Measure runs, write the page about them, and figures; returns one line about each written file."""
    stages = [stage for path in config.training for stage in loss_curves(path)]
    qrels, names = sources.qrels(config.qrels), config.names()
    queries = sources.topics(config.topics) if config.topics else []
    systems = [read_system(one, qrels) for one in measure_files(config, qrels)]
    documents = config.collection or config.index
    fetch = functools.partial(fetch_texts, collection=config.collection, index=config.index) if documents else None
    said = {"qrels": config.qrels, "topics": config.topics, "collection": documents}
    tests: significance.CompareSettings = {"test": config.test, "correction": config.correction}
    data = collect(systems, qrels, queries, fetch, baseline=config.baseline, training=stages, names=said, tests=tests)
    data["notes"] = [*config.notes, *data["notes"]]
    data["notes"] += [f"{config.qrels}: {line}" for line in caveats.of_levels(qrels, names, config.preset)]
    text, folder, overwrite = page(data), config.figures_folder, config.overwrite
    drawn = figures.draw(data, folder, config.figure_format, overwrite=overwrite) if folder is not None else []
    with atomic_file(config.output, overwrite=overwrite) as out:
        out.write(text)
    size = len(text.encode()) / 1e6
    return [f"{config.output}: {len(systems)} runs, {len(qrels)} queries, {size:.2f} MB", *map(str, drawn)]


def fetch_texts(doc_ids: Sequence[str], collection: str | None, index: str | None) -> dict[str, Doc]:
    """The documents with these ids, from an index or a collection. InputError if an index has none of them."""
    if not index:
        wanted = set(doc_ids)
        return {doc.doc_id: doc for doc in sources.collection(str(collection)) if doc.doc_id in wanted}
    fetch, found, missing = text_sources.fetch_from(index), {}, None
    for doc_id in doc_ids:
        try:
            found[doc_id] = next(iter(fetch([doc_id])))
        except InputError as error:
            missing = error
    if missing and not found:
        raise missing
    return found


class System(NamedTuple):
    """A run and its measures."""

    path: str
    results: dict[str, engines.PerQuery]
    recall: list[float | None]
    """Recall at each of DEPTHS; None if the run is not that deep."""
    top: Run
    depth: int
    notes: list[str]


def read_system(measured: Measured, qrels: Qrels) -> System:
    """What the page shows of a run. Only the top of its rankings is kept."""
    path, run, results, _, notes = measured
    recall = {f"R(rel={_level(results)})@{depth}": depth for depth in DEPTHS}
    by_depth = engines.evaluate(run, qrels, list(recall), "fast")
    values = [engines.mean(by_depth[name]) if depth <= run.depth else None for name, depth in recall.items()]
    return System(path, results, values, run.top(TOP), run.depth, notes)


def _level(measures: Iterable[str]) -> int:
    """The lowest grade that all measures count as relevant."""
    return max(Measure.parse(name).rel for name in measures)


def short_labels(paths: Sequence[str]) -> list[str]:
    """File names without folder and ending, and without the words that all names share; whole paths if those are not unique.

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
    """Keys of the (cost, value) points that no other point beats in both numbers, the cheapest first.

    >>> pareto_front({0: (1.0, 0.3), 1: (2.0, 0.5), 2: (3.0, 0.4), 3: (2.0, 0.4), 4: (9.0, 0.5)})
    [0, 1]
    """
    front: list[int] = []
    for key, (_, value) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1], item[0])):
        if not front or value > points[front[-1]][1]:
            front.append(key)
    return front


def loss_curves(path: str | Path) -> list[Json]:
    """The curves of a `training.json`, one entry per stage."""
    record = read_json(path, "training record")
    name = Path(path).parent.name if Path(path).name == "training.json" else Path(path).stem
    stages = record.get("stages", [record])
    found: list[Json] = []
    for stage in stages if isinstance(stages, list) else [stages]:
        known = isinstance(stage, dict) and isinstance(stage.get("log"), list) and isinstance(stage.get("dev") or [], list)
        if not known or (len(stages) > 1 and "name" not in stage):
            raise InputError(f"{path}: not a record of training; expected the training.json of a checkpoint, with a log")
        label = f"{name}, {stage['name']}" if len(stages) > 1 else name
        found.append({"name": label, "losses": _curves(stage["log"], path), "dev": _curves(stage.get("dev") or [], path)})
    return found


def _curves(log: Sequence[object], path: str | Path) -> dict[str, list[list[float]]]:
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
    training: Sequence[Json] = (),
    names: Mapping[str, str | None] | None = None,
    tests: significance.CompareSettings | None = None,
) -> Json:
    """All that the page and the figures show of systems (`read_system`) and training stages (`loss_curves`).

    `baseline` is the path of the run that the others are compared to. `names` are those of qrels, topics and collection, which
    the page shows at the top. Queries are in the order of the qrels.
    """
    measures = list(systems[0].results)
    paths = [system.path for system in systems]
    results = {system.path: system.results for system in systems}
    tests = {"test": "t", "correction": "holm"} | (tests or {})
    compared = significance.compare(results, baseline, **tests) if baseline is not None else {}
    count = sum(map(len, compared.values()))
    notes = caveats.of_depths({system.path: system.depth for system in systems}, measures)
    rows = [_row(s, label, compared.get(s.path, {})) for s, label in zip(systems, short_labels(paths), strict=True)]
    ms = {n: row["ms"] for n, row in enumerate(rows) if row["ms"] is not None}
    kept = list(qrels)
    room = max(1, MAX_VALUES // (len(systems) * len(measures)))
    if len(kept) > room:
        kept = [kept[n * len(kept) // room] for n in range(room)]
        notes.append(f"single queries are shown for {room} of {len(qrels)} queries, evenly spaced; all means are over all")
    texts = {query.query_id: query.text for query in queries}
    width = min(MAX_QUERY_TEXT, max(20, MAX_QUERY_TEXTS // len(kept)))
    rankings, docs = _rankings(systems, qrels, kept, fetch, notes)
    return {
        "names": {what: name for what, name in (names or {}).items() if name},
        "command": command_line(),
        "count": len(qrels),
        "baseline": None if baseline is None else paths.index(baseline),
        "tests": count,
        "test": significance.TEST_NAMES[tests["test"]],
        "correction": significance.correction_words(tests["correction"], count),
        "measures": measures,
        "systems": rows,
        "fronts": [pareto_front({n: (ms[n], rows[n]["means"][m]) for n in ms}) for m in range(len(measures))],
        "level": _level(measures),
        "depths": DEPTHS,
        "queries": [[query_id, _cut(texts.get(query_id, ""), width)] for query_id in kept],
        # in units of 1/10,000: that saves bytes
        "values": [[[round(1e4 * s.results[m][q]) for q in kept] for m in measures] for s in systems],
        "rankings": rankings,
        "docs": docs,
        "training": list(training),
        "notes": notes,
    }


def _row(system: System, label: str, compared: Mapping[str, significance.Comparison]) -> Json:
    ms, what = run_records.ms_per_query(system.path, len(system.top))
    record = run_records.record_of(system.path) or {}
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
) -> tuple[list[Json], list[list[str]]]:
    """Rankings of the queries on which the runs differ most. They name documents by their row in the second list."""
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
    missing = [doc_id for doc_id in rows if doc_id not in found]
    if fetch is not None and missing:
        notes.append(f"{len(missing)} of {len(rows)} documents are not in the collection, e.g. {missing[0]}")
    level, rankings = _level(measures), list[Json]()
    for number, query_id in enumerate(kept):
        if query_id in chosen:
            hits = [[rows[d] for d in s.top[query_id].doc_ids] if query_id in s.top else [] for s in systems]
            judged = {row: qrels[query_id][d] for d, row in rows.items() if d in qrels[query_id]}
            relevant = sum(grade >= level for grade in qrels[query_id].values())
            rankings.append({"query": number, "hits": hits, "judged": judged, "relevant": relevant})
    docs = [[d, *((_cut(found[d].title, 160), _cut(found[d].text, MAX_TEXT)) if d in found else ())] for d in rows]
    return rankings, docs


def _cut(text: str, characters: int) -> str:
    """The beginning of a text on one line, with few characters and few bytes in the page."""
    text = " ".join(text.split())
    short = text[:characters]
    while len(_embedded(short).encode()) > MAX_BYTES:
        short = short[: len(short) * 3 // 4]
    return short if short == text else short.rstrip() + "…"


def page(data: Json) -> str:
    """The HTML page. It allows its script by checksum, so that a browser runs no script that came with the data."""
    from jinja2 import Environment, FileSystemLoader

    pages = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, keep_trailing_newline=True)
    pages.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return pages.get_template(TEMPLATE.name).render(data=_embedded(data))


def _embedded(data: object) -> str:
    r"""JSON for the inside of a script element: it contains no `</script>` and no `<!--`.

    >>> _embedded("</script><b>&")
    '"\\u003c/script\\u003e\\u003cb\\u003e\\u0026"'
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair is escaped
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
