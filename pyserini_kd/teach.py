"""Teacher scores: score candidates once, keep the raw scores and who gave them; the published 5-column file.

A teacher is a checkpoint or a run (BM25's, for one); an ensemble's score is the mean of its teachers' weighted raw scores.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt

from pyserini_kd import evaluate, inference, passages, sources
from pyserini_kd.cli import Runs, command
from pyserini_kd.data import Doc, Qrels, Query, id_hash
from pyserini_kd.files import InputError, atomic_file, command_line, environment, refuse_existing, require_file, sha256
from pyserini_kd.index import DenseIndex, check_encoder
from pyserini_kd.mine import Group, pairs, read_candidates
from pyserini_kd.models import checkpoints
from pyserini_kd.runs import Run
from pyserini_kd.triples import Triples, five_columns

logger = logging.getLogger(__name__)

CHECK_DEPTH = 20  # documents of each check query that the ensemble reranks
CHECK_MEASURES = ("RR@10", "nDCG@10")
BLOCK = 1 << 16  # pairs scored, and kept against a kill, at a time

Floats = npt.NDArray[np.float32]
TeacherScores = dict[str, dict[str, float]]
"""query_id -> {doc_id: score}: raw, of the ensemble."""


class Taught(NamedTuple):
    """Scores of (query, document) pairs: one column a teacher, and their ensemble."""

    query_ids: list[str]
    doc_ids: list[str]
    texts: npt.NDArray[np.uint64]  # hash of the two texts that were scored
    raw: dict[str, Floats]
    score: Floats


class Known(NamedTuple):
    """What a checkpoint has scored before: its record in an older store, and its scores by the hash of the texts."""

    teacher: dict[str, Any]
    scores: dict[int, float]


def weighted(name: str) -> tuple[str, float | None]:
    """Split `NAME@WEIGHT`; no weight is None."""
    name, at, weight = name.rpartition("@") if "@" in name else (name, "", "")
    if not at:
        return name, None
    try:
        value = float(weight)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise InputError(f"teacher {name}@{weight}: the weight after @ must be a number")
    return name, value


def score_run(run: Run, query_ids: Sequence[str], doc_ids: Sequence[str]) -> tuple[Floats, int]:
    """A run as a teacher: its scores, 0 for documents it did not return; and how many those are."""
    by_query = {q: dict(zip(hits.doc_ids, hits.scores.tolist(), strict=True)) for q, hits in run.items()}
    found = [by_query.get(q, {}).get(d) for q, d in zip(query_ids, doc_ids, strict=True)]
    return np.array([0.0 if s is None else s for s in found], dtype=np.float32), sum(s is None for s in found)


def score_checkpoint(
    name: str,
    query_ids: Sequence[str],
    doc_ids: Sequence[str],
    queries: Mapping[str, str],
    docs: Mapping[str, str],
    *,
    index: DenseIndex | None = None,
    precision: str = "auto",
    backend: str = "auto",
    batch_size: int | None = None,
    device: str = "cpu",
    work: Path | None = None,
    reuse: Sequence[Known] = (),
) -> tuple[Floats, dict[str, Any]]:
    """A checkpoint as a teacher: raw scores of pairs and a record of who gave them.

    Pairs of texts that the same teacher, so set, scored before (`reuse`) are not scored again. Scores are written under `work`
    a block of pairs at a time; a later call for the same texts and settings goes on there.

    `index` holds the document vectors of this very checkpoint (BERT_DOT only), so that documents are not encoded again.
    """
    model = inference.load(name, device=device, precision=precision, backend=backend)
    folder = checkpoints.resolve(name)
    record: dict[str, Any] = {"name": folder.name, "sha256": checkpoints.fingerprint(folder), "dtype": "float32"}
    record |= {"architecture": model.architecture, "precision": inference.precision_of(model, precision)}
    record |= {"settings": vars(model.settings)} if model.architecture != "cross_encoder" else {"max_len": model.max_len}
    if index is not None:
        if model.architecture != "bert_dot":
            raise InputError(f"--index holds vectors of a bert_dot; teacher {name} is a {model.architecture}")
        check_encoder(index, model, folder)  # type: ignore[arg-type]
        record["index"] = (index.manifest or {}).get("encoder")  # the lengths and precision its vectors were made with
    same: dict[int, float] = {}
    for known in reuse:
        if known.teacher == _plain(record):
            same |= known.scores
    if same:
        hashes = text_hashes(query_ids, doc_ids, queries, docs).tolist()
        scores = np.array([same.get(key, np.nan) for key in hashes], np.float32)
        fresh = np.flatnonzero(np.isnan(scores)).tolist()
        logger.info("%s: %d of %d pairs were scored before", name, len(hashes) - len(fresh), len(hashes))
        asked = [query_ids[row] for row in fresh], [doc_ids[row] for row in fresh]
        scores[fresh], record = score_checkpoint(
            name, *asked, queries, docs, index=index, precision=precision, backend=backend, batch_size=batch_size,
            device=device, work=work,
        )
        return scores, record
    if not query_ids:
        return np.empty(0, np.float32), record
    texts = [queries[q] for q in query_ids]
    if index is None:
        contents = [docs[d] for d in doc_ids]

        def score(some: slice) -> Floats:
            return inference.score(model, texts[some], contents[some], precision=precision, batch_size=batch_size)

        key = _digest([record, batch_size, device], itertools.chain(texts, contents))
        return _in_blocks(score, len(texts), work / key if work else None), record
    query_vecs = inference.encode(model, texts, "query", precision=precision, label="encode queries")  # type: ignore[arg-type]
    distinct, rows = np.unique(np.array(doc_ids, dtype=object), return_inverse=True)
    doc_vecs = index.vectors(distinct.tolist())
    return inference.dot_rows(query_vecs, np.arange(len(texts)), doc_vecs, rows), record


def _digest(settings: Any, texts: Iterable[str]) -> str:
    """SHA-256 of settings and texts, one text at a time in memory."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _in_blocks(score: Callable[[slice], Floats], count: int, work: Path | None) -> Floats:
    """Scores of `count` pairs, block by block; a block that lies under `work` already is read, not scored again."""
    blocks = []
    for number, start in enumerate(range(0, count, BLOCK)):
        path = work / f"{number:06d}.npy" if work else None
        if path is not None and path.exists():
            blocks.append(np.load(path))
            continue
        blocks.append(score(slice(start, start + BLOCK)))
        if path is not None:
            with atomic_file(path, binary=True) as out:
                np.save(out, blocks[-1])
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


def text_hashes(
    query_ids: Sequence[str], doc_ids: Sequence[str], queries: Mapping[str, str], docs: Mapping[str, str]
) -> npt.NDArray[np.uint64]:
    """A stable 64-bit hash of the texts of each pair: ids may mean another text in another collection."""
    keys = (id_hash(f"{queries[q]}\0{docs[d]}") for q, d in zip(query_ids, doc_ids, strict=True))
    return np.fromiter(keys, dtype=np.uint64, count=len(query_ids))


def is_bounded(name: str) -> bool:
    """Whether a checkpoint's scores lie in [-1, 1]: margins that small teach an unbounded student nothing."""
    folder = checkpoints.resolve(name)
    return checkpoints.architecture_of(folder) == "bert_dot" and checkpoints.settings_of(folder).l2_norm


def is_bounded_scores(scores: TeacherScores | Triples) -> bool:
    """Whether all scores lie in [-1, 1], as cosines and probabilities do and logits do not."""
    if isinstance(scores, Triples):
        return scores.largest() <= 1
    return all(-1 <= score <= 1 for docs in scores.values() for score in docs.values())


def refuse_bounded(name: str, what: str) -> None:
    """The InputError for a teacher whose scores lie in [-1, 1] and that has no weight."""
    raise InputError(
        f"teacher {name} gives {what} in [-1, 1]; margins that small teach little: give it a weight, e.g. {name}@20"
    )


def ensemble(raw: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    """Mean over teachers of weight x raw score. With weights of 1, Hofstätter et al.'s T2.

    >>> ensemble({"a": np.float32([1, 2]), "b": np.float32([3, 6])}, {"a": 1.0, "b": 1.0})
    array([2., 4.], dtype=float32)
    """
    scores = np.stack([weights[name] * scores.astype(np.float64) for name, scores in raw.items()])
    return scores.mean(axis=0).astype(np.float32)


# --------------------------------------------------------------------------------------------------------- files


def write_scores(taught: Taught, path: str | Path, record: dict[str, Any], *, overwrite: bool = False) -> None:
    """Write the score store: parquet with query_id, doc_id, texts (a hash), score, `raw:NAME` a teacher, and the record."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "query_id": pa.array(taught.query_ids).dictionary_encode(),
        "doc_id": pa.array(taught.doc_ids).dictionary_encode(),
        "texts": taught.texts,
        "score": taught.score,
    }
    columns |= {f"raw:{name}": scores for name, scores in taught.raw.items()}
    table = pa.table(columns).replace_schema_metadata({"pyserini_kd": json.dumps(record)})
    with atomic_file(path, overwrite=overwrite, binary=True) as out:
        pq.write_table(table, out)


def write_triples(groups: Iterable[Group], scores: TeacherScores, path: str | Path, *, overwrite: bool = False) -> int:
    """Write the published format, no header: `pos_score neg_score query_id pos_id neg_id`, tab-separated."""
    count = 0
    with atomic_file(path, overwrite=overwrite) as out:
        for group in groups:
            found = scores[group.query_id]
            for pos, neg in pairs(group):
                out.write(f"{found[pos]:.9g}\t{found[neg]:.9g}\t{group.query_id}\t{pos}\t{neg}\n")
                count += 1
    return count


def read_scores(path: str | Path, groups: Sequence[Group] | None = None) -> TeacherScores:
    """Read a score store (parquet) or the published 5-column file (anything else), as it streams by.

    With `groups`, only their pairs are kept. Of a pair that is scored more than once the last score counts.
    """
    path = require_file(path, "score file")
    wanted: dict[str, set[str]] = collections.defaultdict(set)
    for group in groups or ():
        wanted[group.query_id].update(group.doc_ids)
    scores: TeacherScores = {}
    for query_id, doc_id, score in _parquet_pairs(path) if path.suffix == ".parquet" else _triple_pairs(path):
        if groups is None or (query_id in wanted and doc_id in wanted[query_id]):
            scores.setdefault(query_id, {})[doc_id] = score
    return scores


def read_known(path: str | Path) -> list[Known]:
    """What the checkpoints of a score store have scored."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(require_file(path, "score store"))
        record = json.loads(table.schema.metadata[b"pyserini_kd"])
        keys = table["texts"].to_pylist()
    except (pa.ArrowException, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a score store of teach: {str(error).splitlines()[0]}") from error
    columns = [name for name in table.column_names if name.startswith("raw:")]
    found = []
    for teacher, name in zip(record["teachers"], columns, strict=True):
        if "architecture" in teacher:  # a run's scores cost nothing
            found.append(Known(_plain(teacher), dict(zip(keys, table[name].to_pylist(), strict=True))))
    return found


def known_of(taught: Taught, record: Mapping[str, Any]) -> list[Known]:
    """The same of scores that are not in a file yet."""
    keys = taught.texts.tolist()
    return [
        Known(_plain(teacher), dict(zip(keys, raw.tolist(), strict=True)))
        for teacher, raw in zip(record["teachers"], taught.raw.values(), strict=True)
        if "architecture" in teacher
    ]


def _plain(teacher: Mapping[str, Any]) -> dict[str, Any]:
    """A teacher's record as a store holds it, without its weight: what decides its raw scores."""
    plain: dict[str, Any] = json.loads(json.dumps({name: value for name, value in teacher.items() if name != "weight"}))
    return plain


def _triple_pairs(path: Path) -> Iterator[tuple[str, str, float]]:
    for pos_score, neg_score, query_id, pos, neg in five_columns(path):
        yield query_id, pos, pos_score
        yield query_id, neg, neg_score


def _parquet_pairs(path: Path) -> Iterator[tuple[str, str, float]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["query_id", "doc_id", "score"]):
                yield from zip(*(batch[name].to_pylist() for name in ("query_id", "doc_id", "score")), strict=True)
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"{path} is not a score store: {str(error).splitlines()[0]}") from error


# ------------------------------------------------------------------------------------------------------- command


def load_texts(
    groups: Sequence[Group], queries: Iterable[Query], docs: Iterable[Doc]
) -> tuple[dict[str, str], dict[str, str]]:
    """Texts of the queries and documents of groups; InputError counts the ids that are missing."""
    query_texts = {query.query_id: query.text for query in queries}
    missing = sorted({group.query_id for group in groups} - query_texts.keys())
    if missing:
        raise InputError(f"{len(missing)} queries of the candidates are not among the topics, e.g. {missing[0]}")
    wanted = {doc_id for group in groups for doc_id in group.doc_ids}
    doc_texts = {doc.doc_id: doc.contents for doc in docs if doc.doc_id in wanted}
    missing = sorted(wanted - doc_texts.keys())
    if missing:
        raise InputError(f"{len(missing)} documents of the candidates are not in the collection, e.g. {missing[0]}")
    return query_texts, doc_texts


@command(
    name="teach",
    example="pyserini-kd teach --candidates candidates.jsonl --collection docs.jsonl --topics train.tsv "
    "--teacher models/teacher --output scores.parquet",
    epilog="A weight follows @: `--teacher models/bi-encoder@40 --teacher-run runs/bm25.txt@0.4`. The ensemble's score is the "
    "mean of weight x raw score. A teacher with scores in [-1, 1] (cosine) needs a weight. A killed `teach` that is started "
    "again goes on where it was.",
)
@click.option("--candidates", required=True, type=click.Path(path_type=Path), help="Groups or triples, from mine.")
@click.option("--collection", required=True, help="Collection: a path, ir_datasets:<id> or pydocs.")
@click.option("--topics", required=True, help="Topics of the candidates.")
@click.option("--teacher", "teachers", cls=Runs, multiple=True, help="Checkpoint, or CHECKPOINT@WEIGHT; any number.")
@click.option("--teacher-run", "teacher_runs", cls=Runs, multiple=True, help="Run, or RUN@WEIGHT, as a teacher; absent = 0.")
@click.option("--segment", metavar="WORDS:STRIDE", help="The candidates are passages cut like this, as in mine.")
@click.option("--index", type=click.Path(path_type=Path), help="Dense index of the (one, bert_dot) teacher: vectors reused.")
@click.option("--reuse", cls=Runs, multiple=True, help="Score stores whose pairs the same teacher does not score again.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Score store to write (.parquet).")
@click.option("--triples", type=click.Path(path_type=Path), help="Also write the published 5-column file.")
@click.option("--check-run", type=click.Path(path_type=Path), help="Dev run that the teachers should beat.")
@click.option("--check-topics", help="Its topics.")
@click.option("--check-qrels", help="Its judgements.")
@click.option("--batch-size", "--batch", type=click.IntRange(1), help="[default: by token budget]")
@click.option("--precision", default="auto", type=click.Choice(list(inference.PRECISIONS)), help="Arithmetic.")
@click.option("--backend", default="auto", type=click.Choice(list(inference.BACKENDS)), help="What computes.")
@click.option("--device", default="cpu", help="cpu, cuda or cuda:N.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
def main(
    candidates: Path,
    collection: str,
    topics: str,
    teachers: tuple[str, ...],
    teacher_runs: tuple[str, ...],
    segment: str | None,
    index: Path | None,
    reuse: tuple[str, ...],
    output: Path,
    triples: Path | None,
    check_run: Path | None,
    check_topics: str | None,
    check_qrels: str | None,
    batch_size: int | None,
    precision: str,
    backend: str,
    device: str,
    overwrite: bool,
) -> None:
    """Score candidates with one teacher or an ensemble."""
    for path in (output, triples):
        if path is not None:
            refuse_existing(path, overwrite)
    _refuse_contradictions(output, teachers, teacher_runs, segment, index)
    groups = read_candidates(candidates)
    checked = _read_check(check_run, check_topics, check_qrels)

    def documents() -> Iterator[Doc]:
        found = sources.collection(collection)
        return passages.segment(found, segment) if segment else found

    texts, docs = load_texts(groups, sources.topics(topics), documents())
    work = output.with_name(f"{output.name}.partial")
    settings: dict[str, Any] = {"precision": precision, "backend": backend, "batch_size": batch_size, "device": device}
    settings["work"] = work
    settings["index"] = DenseIndex.load(index) if index else None
    known = [found for store in reuse for found in read_known(store)]
    taught, record = teach(groups, texts, docs, teachers, teacher_runs, reuse=known, **settings)
    record["candidates_sha256"] = sha256(candidates)
    click.echo(f"{output}: {len(taught.score)} pairs, {agreement(groups, taught):.1%} of positives above their negatives")
    if checked:
        first, queries, judged = checked
        asked = [Group(query_id, hits.doc_ids, [], 0) for query_id, hits in first.items()]
        found = load_texts(asked, queries, documents())
        reranked, _ = teach(asked, *found, teachers, teacher_runs, reuse=[*known, *known_of(taught, record)], **settings)
        record["check"] = check(first, reranked, judged)
    write_scores(taught, output, record, overwrite=overwrite)
    if triples:
        count = write_triples(groups, read_scores(output, groups), triples, overwrite=overwrite)
        click.echo(f"{triples}: {count} triples")
    _clear(work)


def _clear(work: Path) -> None:
    """Remove the blocks of pairs that a finished `teach` kept; nothing else that may lie there."""
    for folder in work.glob("[0-9a-f]" * 64):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not there, or holds something that is not ours
        work.rmdir()


def _refuse_contradictions(
    output: Path, teachers: Sequence[str], teacher_runs: Sequence[str], segment: str | None, index: Path | None
) -> None:
    if output.suffix != ".parquet":
        raise InputError(f"--output {output} must end in .parquet; the 5-column file is --triples")
    names = [weighted(teacher)[0] for teacher in (*teachers, *teacher_runs)]
    if len(set(names)) != len(names):
        raise InputError("a teacher is named twice")
    if not teachers and not teacher_runs:
        raise InputError("give a --teacher or a --teacher-run")
    if segment:
        passages.parse(segment)
    if index and len(teachers) != 1:
        raise InputError("--index holds the vectors of one --teacher")
    for teacher in teachers:
        name, weight = weighted(teacher)
        if weight is None and is_bounded(name):
            refuse_bounded(name, "cosines")


def _read_check(run: Path | None, topics: str | None, qrels: str | None) -> tuple[Run, list[Query], Qrels] | None:
    """The first-stage run that the ensemble is to beat, its topics and judgements; None if none is asked for."""
    if run and topics and qrels:
        first, judged = Run.read(run).top(CHECK_DEPTH), sources.qrels(qrels)
        evaluate.evaluate(first, judged, CHECK_MEASURES)  # they must share queries: say so before the work
        return first, sources.topics(topics), judged
    if run or topics or qrels:
        raise InputError("--check-run, --check-topics and --check-qrels belong together")
    return None


def check(first: Run, taught: Taught, qrels: Qrels) -> dict[str, dict[str, float]]:
    """Print the measures of a first-stage run and of the same documents in the ensemble's order; warn where it is no better.

    Returns them: measure -> first_stage, teachers, p.
    """
    scores: dict[str, dict[str, float]] = {query_id: {} for query_id in first}
    for query_id, doc_id, score in zip(taught.query_ids, taught.doc_ids, taught.score.tolist(), strict=True):
        scores[query_id][doc_id] = score
    before = evaluate.evaluate(first, qrels, CHECK_MEASURES)
    after = evaluate.evaluate(Run.from_scores("teachers", scores), qrels, CHECK_MEASURES)
    figures = {}
    for measure in CHECK_MEASURES:
        difference, p_value = evaluate.compare(after[measure], before[measure])
        own = figures[measure] = {"first_stage": evaluate.mean(before[measure]), "teachers": evaluate.mean(after[measure])}
        own["p"] = p_value
        means = f"{own['first_stage']:.4f} -> {own['teachers']:.4f}"
        click.echo(f"check {measure} of the top {CHECK_DEPTH}: {means} (p = {p_value:.4f})")
        if difference <= 0:
            logger.warning("the teachers do not beat the first stage in %s: a student would learn to be no better", measure)
    return {name: {key: float(value) for key, value in own.items()} for name, own in figures.items()}


def teach(
    groups: Sequence[Group],
    queries: Mapping[str, str],
    docs: Mapping[str, str],
    teachers: Sequence[str],
    teacher_runs: Sequence[str] = (),
    **settings: Any,
) -> tuple[Taught, dict[str, Any]]:
    """Score every (query, document) pair of the groups once with each teacher."""
    started = time.monotonic()
    distinct = dict.fromkeys((group.query_id, doc_id) for group in groups for doc_id in group.doc_ids)
    query_ids, doc_ids = [q for q, _ in distinct], [d for _, d in distinct]
    raw: dict[str, Floats] = {}
    weights: dict[str, float] = {}
    who = []
    for teacher in teacher_runs:
        name, weight = weighted(teacher)
        run = Run.read(name)
        if weight is None and all(np.abs(hits.scores).max(initial=0.0) <= 1 for hits in run.values()):
            refuse_bounded(name, "scores")
        raw[name], absent = score_run(run, query_ids, doc_ids)
        weights[name] = 1.0 if weight is None else weight
        logger.info("%s: %d of %d pairs are not in the run and score 0", name, absent, len(query_ids))
        who.append({"name": name, "sha256": sha256(name), "weight": weights[name], "absent": absent})
    for teacher in teachers:
        name, weight = weighted(teacher)
        raw[name], record = score_checkpoint(name, query_ids, doc_ids, queries, docs, **settings)
        weights[name] = 1.0 if weight is None else weight
        who.append({**record, "weight": weights[name]})
    taught = Taught(query_ids, doc_ids, text_hashes(query_ids, doc_ids, queries, docs), raw, ensemble(raw, weights))
    seconds = round(time.monotonic() - started, 1)
    return taught, {"teachers": who, "n_pairs": len(query_ids), "seconds": seconds, "command": command_line(), **environment()}


def agreement(groups: Sequence[Group], taught: Taught) -> float:
    """Share of (positive, negative) pairs that the ensemble orders as the labels do."""
    scores = dict(zip(zip(taught.query_ids, taught.doc_ids, strict=True), taught.score.tolist(), strict=True))
    right = [scores[g.query_id, pos] > scores[g.query_id, neg] for g in groups for pos, neg in pairs(g)]
    return sum(right) / len(right)


if __name__ == "__main__":
    main()
