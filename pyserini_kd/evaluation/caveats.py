"""Caveats: reasons why correct measures of a run may mislead. A caveat is one line with counts, not an error."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, takewhile
from pathlib import Path

from pyserini_kd.data import sources
from pyserini_kd.data.lines import WORD, numbered_lines
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Qrels
from pyserini_kd.evaluation.measures import KINDS, PRESETS, Measure
from pyserini_kd.evaluation.run_records import config_of, made_from, record_of
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import home
from pyserini_kd.storage.records import Record, read_json

TOP = 10
TIED_SHARE = 0.1  # ties are reported if a larger share of queries has ties at the top
JUDGED_SHARE = 0.8  # expected share of judged documents at the top, for pooled judgements


def of_run(run: Run, qrels: Qrels) -> list[str]:
    """Ties and unjudged documents at the top, no judged document at all, and judged queries that the run lacks."""
    judged = [query_id for query_id in qrels if query_id in run]
    missing = [query_id for query_id in qrels if query_id not in run]
    found = []
    tied = sum(any(a == b for a, b in pairwise(run[query_id].scores[: TOP + 1].tolist())) for query_id in judged)
    if tied > TIED_SHARE * len(judged):
        found.append(f"{tied} of {len(judged)} queries have tied scores in the top {TOP}; document ids decide their order")
    # qrels with relevant documents only, such as MS MARCO's, leave most documents unjudged
    if any(grade <= 0 for docs in qrels.values() for grade in docs.values()):
        hits = [doc_id in qrels[query_id] for query_id in judged for doc_id in run[query_id].doc_ids[:TOP]]
        if sum(hits) < JUDGED_SHARE * len(hits):
            found.append(
                f"only {sum(hits)} of {len(hits)} documents in the top {TOP} are judged; the others count as irrelevant"
            )
    if all(qrels[query_id].keys().isdisjoint(run[query_id].doc_ids) for query_id in judged):
        doc_id = next(iter(qrels[judged[0]]), "") if judged else ""
        found.append(f"holds no judged document, e.g. not {doc_id}: are the judgements of another collection?")
    if missing:
        found.append(f"lacks {len(missing)} of {len(qrels)} judged queries, e.g. {missing[0]}; they count as 0")
    return found


def of_ranks(path: str | Path) -> list[str]:
    """Ranks that contradict the scores, as in a file with distances. Only the first query is checked."""
    lines = (WORD.findall(line) for _, line in numbered_lines(Path(path), "run file") if not line.startswith("#"))
    first = next((words for words in lines if len(words) == 6), None)
    if first is None:
        return []
    query = [first, *takewhile(lambda words: words[0] == first[0], lines)]
    try:
        scores = [float(words[4]) for words in sorted(query, key=lambda words: int(words[3]))]
    except (ValueError, IndexError):
        return []
    if scores[0] < scores[-1] and scores == sorted(scores):
        return ["better ranks have lower scores (first query); the measures use the scores, not the ranks"]
    return []


def of_depths(depths: Mapping[str, int], measures: Sequence[str]) -> list[str]:
    """Measures with a cut-off deeper than some or all runs (`depths`: run -> longest ranking)."""
    cuts = {name: Measure.parse(name).k for name in measures if not name.startswith("Judged")}
    least, most = min(depths.values()), max(depths.values())
    found = []
    unequal = [name for name, k in cuts.items() if k > least]
    if least < most and unequal:
        shallow, deep = (next(name for name, depth in depths.items() if depth == wanted) for wanted in (least, most))
        text = f"runs differ in depth, from {least} hits per query ({shallow}) to {most} ({deep})"
        found.append(f"{text}; deeper runs have an advantage in {', '.join(unequal)}")
    beyond = [name for name, k in cuts.items() if most < k < math.inf]
    if beyond:
        found.append(f"no run has more than {most} hits per query, but {', '.join(beyond)} would use more")
    return found


def of_levels(qrels: Qrels, measures: Sequence[str], preset: str | None = None) -> list[str]:
    """Grades that the preset does not expect, and measures whose relevance level no judgement reaches."""
    counts = Counter(grade for docs in qrels.values() for grade in docs.values())
    highest = max(counts)
    found = []
    expected = PRESETS[preset].grades if preset else None
    if expected is not None:
        strange = ", ".join(f"{n} of grade {grade}" for grade, n in sorted(counts.items()) if grade not in expected)
        if strange or highest < expected[-1]:
            text = f"the judgements do not fit preset {preset} with grades 0 to {expected[-1]}"
            found.append(f"{text}: {strange or f'the highest grade is {highest}'}")
    parsed = {name: Measure.parse(name) for name in measures}
    beyond = [name for name, measure in parsed.items() if "rel" in KINDS[measure.name].takes and measure.rel > highest]
    if beyond:
        found.append(f"no judgement reaches the level of {', '.join(beyond)}: the highest grade is {highest}")
    return found


def of_training(path: str | Path, run: Run, qrels_name: str) -> list[str]:
    """Models of this run that were trained on its topics, according to the records of the run and the checkpoints.

    Topics in files and embedded topics are compared by id, and by text if the run's texts are known; others by name.
    """
    found = []
    configs = [config_of(record) for record in _records(Path(path), set())]
    topics_name = next((str(config["topics"]) for config in configs if config.get("topics")), None)
    models = {str(config[key]) for config in configs for key in ("encoder", "rerank") if config.get(key)}
    for model in sorted(models):
        trained_on = _trained_on(model)
        training = _texts(trained_on)
        if training is not None:
            ours = _texts(topics_name) or {}
            shared = sum(q in training and ours.get(q, training[q]) == training[q] for q in run)
            if shared:
                found.append(f"holds {shared} training topics of {model} ({trained_on})")
        elif trained_on and trained_on in (topics_name, qrels_name):
            found.append(f"its topics are the training topics of {model} ({trained_on})")
    return found


def _records(path: Path, seen: set[Path]) -> Iterator[Record]:
    """The record of a run, then those of its source runs."""
    record = None if path in seen else record_of(path)
    if record is not None:
        seen.add(path)
        yield record
        for run in made_from(record):
            yield from _records(Path(run), seen)


def _trained_on(model: str) -> str | None:
    """The training topics of a checkpoint, by its training.json."""
    for folder in (Path(model), home() / "models" / model):
        if (folder / "training.json").is_file():
            data = read_json(folder / "training.json", "record").get("data")
            return str(data["topics"]) if isinstance(data, dict) and data.get("topics") else None
    return None


def _texts(name: str | None) -> dict[str, str] | None:
    """query_id -> text of topics in a file or embedded topics; None for others and for unreadable topics."""
    if name is None or not (os.path.isfile(name) or name.partition(":")[0] == "pydocs"):
        return None
    try:
        return {query.query_id: query.text for query in sources.topics(name)}
    except InputError:
        return None
