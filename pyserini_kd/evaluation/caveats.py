"""Where numbers mislead: what to know of a run, or of the judgements, before its measures are believed.

Each caveat is one line with counts. None is an error: the numbers are right, but may not mean what they seem to.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from pyserini_kd.data import sources
from pyserini_kd.data.lines import numbered_lines
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Qrels
from pyserini_kd.evaluation.measures import PRESETS, Measure
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import home
from pyserini_kd.storage.records import read_json, record_path

TOP = 10
TIED_SHARE = 0.1
"""Share of queries with a tie among the top documents from which ties are worth a word."""
JUDGED_SHARE = 0.8
"""Share of the top documents that pooled judgements should cover."""


def of_run(run: Run, qrels: Qrels) -> list[str]:
    """Ties at the top, holes in the judgements at the top, judgements of other documents, judged queries that the run lacks."""
    judged = [query_id for query_id in qrels if query_id in run]
    missing = [query_id for query_id in qrels if query_id not in run]
    found = []
    tied = sum(_is_tied(run[query_id].scores[: TOP + 1].tolist()) for query_id in judged)
    if tied > TIED_SHARE * len(judged):
        found.append(f"{tied} of {len(judged)} queries have tied scores in the top {TOP}; document ids decide their order")
    if _are_pooled(qrels):
        tops = [(qrels[query_id], run[query_id].doc_ids[:TOP]) for query_id in judged]
        n_judged = sum(doc_id in docs for docs, doc_ids in tops for doc_id in doc_ids)
        n_hits = sum(len(doc_ids) for _, doc_ids in tops)
        if n_judged < JUDGED_SHARE * n_hits:
            found.append(f"only {n_judged} of {n_hits} documents in the top {TOP} are judged; the others count as irrelevant")
    if all(qrels[query_id].keys().isdisjoint(run[query_id].doc_ids) for query_id in judged):
        doc_id = next(iter(qrels[judged[0]]), "") if judged else ""
        found.append(f"holds no judged document at all, e.g. not {doc_id}: are the judgements of another collection?")
    if missing:
        found.append(f"lacks {len(missing)} of {len(qrels)} judged queries, e.g. {missing[0]}; they count 0")
    return found


def of_ranks(path: str | Path) -> list[str]:
    """Ranks that run against the scores, as of a file with distances; the first query's lines tell."""
    lines = (line.split() for _, line in numbered_lines(Path(path), "run file") if not line.startswith("#"))
    first = next((words for words in lines if len(words) == 6), None)
    if first is None:
        return []
    query = [first, *takewhile(lambda words: words[0] == first[0], lines)]
    try:
        scores = [float(words[4]) for words in sorted(query, key=lambda words: int(words[3]))]
    except (ValueError, IndexError):
        return []
    if scores[0] < scores[-1] and scores == sorted(scores):
        return ["the better its rank the lower a document's score (first query): the scores decide, not the ranks"]
    return []


def _is_tied(scores: Sequence[float]) -> bool:
    return any(one == other for one, other in pairwise(scores))


def _are_pooled(qrels: Qrels) -> bool:
    """Were irrelevant documents judged too? Where only answers are listed (MS MARCO), most documents are never judged."""
    return any(grade <= 0 for docs in qrels.values() for grade in docs.values())


def of_depths(depths: Mapping[str, int], measures: Sequence[str]) -> list[str]:
    """Measures that look deeper than the runs go (run -> longest ranking): than some of them, or than all."""
    cuts = {name: measure.k for name, measure in zip(measures, map(Measure.parse, measures), strict=True)}
    cuts = {name: k for name, k in cuts.items() if not name.startswith("Judged")}
    least, most = min(depths.values()), max(depths.values())
    found = []
    unequal = [name for name, k in cuts.items() if k > least]
    if least < most and unequal:
        shallow, deep = (next(name for name, depth in depths.items() if depth == wanted) for wanted in (least, most))
        text = f"runs differ in depth, from {least} hits a query ({shallow}) to {most} ({deep})"
        found.append(f"{text}; the deeper ones gain by {', '.join(unequal)}")
    beyond = [name for name, k in cuts.items() if most < k < math.inf]
    if beyond:
        found.append(f"no run is deeper than {most} hits a query, but {', '.join(beyond)} would look further")
    return found


def of_levels(qrels: Qrels, measures: Sequence[str], preset: str | None = None) -> list[str]:
    """Relevance grades that the preset does not expect, or levels of measures that no judgement reaches."""
    counts: dict[int, int] = {}
    for docs in qrels.values():
        for grade in docs.values():
            counts[grade] = counts.get(grade, 0) + 1
    highest = max(counts)
    found = []
    expected = PRESETS[preset].grades if preset else None
    if expected is not None:
        strange = ", ".join(f"{n} of grade {grade}" for grade, n in sorted(counts.items()) if grade not in expected)
        if strange or highest < expected[-1]:
            text = f"the judgements do not fit preset {preset}, whose grades are 0 to {expected[-1]}"
            found.append(f"{text}: {strange or f'the highest grade is {highest}'}")
    parsed = {name: Measure.parse(name) for name in measures}
    beyond = [name for name, measure in parsed.items() if measure.has_level and measure.rel > highest]
    if beyond:
        found.append(f"no judgement reaches the level of {', '.join(beyond)}: the highest grade is {highest}")
    return found


def of_training(path: str | Path, run: Run, qrels_name: str) -> list[str]:
    """Was a model that made this run trained on its topics? Known where records lie beside the run and the checkpoint.

    Topics that cost no network are compared one by one; others by name alone.
    """
    found = []
    records = list(_records(Path(path), set()))
    topics_name = next((str(record["topics"]) for record in records if record.get("topics")), None)
    models = {str(record[key]) for record in records for key in ("encoder", "rerank") if record.get(key)}
    for model in sorted(models):
        trained_on = _trained_on(model)
        if trained_on is None:
            continue
        n_shared = _n_shared(run, trained_on, topics_name)
        if n_shared:
            found.append(f"holds {n_shared} of the topics that {model} was trained on ({trained_on})")
        elif n_shared is None and trained_on in (topics_name, qrels_name):
            found.append(f"its topics are those that {model} was trained on ({trained_on})")
    return found


def _records(path: Path, seen: set[Path]) -> Iterator[dict[str, Any]]:
    """The settings in the record beside a run, then those beside the runs that it was made from."""
    record = record_path(path)
    if path in seen or not record.is_file():
        return
    seen.add(path)
    try:
        config = read_json(record, "record").get("config")
    except InputError:  # somebody else's file of that name
        return
    if isinstance(config, dict):
        yield config
        runs = config.get("runs")
        for made_from in [config.get("run"), *(runs if isinstance(runs, list) else [])]:
            if isinstance(made_from, str):
                yield from _records(Path(made_from), seen)


def _trained_on(model: str) -> str | None:
    """The name of the topics that a checkpoint of ours was trained on."""
    for folder in (Path(model), home() / "models" / model):
        if (folder / "training.json").is_file():
            data = read_json(folder / "training.json", "record").get("data")
            return str(data["topics"]) if isinstance(data, dict) and data.get("topics") else None
    return None


def _n_shared(run: Run, trained_on: str, topics_name: str | None) -> int | None:
    """How many topics of the run are training topics; by id and text where the run's texts are known. None: unknown."""
    training = _texts(trained_on)
    if training is None:
        return None
    ours = _texts(topics_name) or {}
    shared = [query_id for query_id in run if query_id in training]
    return sum(ours.get(query_id, training[query_id]) == training[query_id] for query_id in shared)


def _texts(name: str | None) -> dict[str, str] | None:
    """query_id -> text of topics that are a file or embedded here; None for others, and where they cannot be read."""
    if name is None or not (os.path.isfile(name) or name.partition(":")[0] == "pydocs"):
        return None
    try:
        return {query.query_id: query.text for query in sources.topics(name)}
    except InputError:
        return None
