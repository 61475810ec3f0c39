"""The command `teach`."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from pyserini_kd.cli import Runs, command
from pyserini_kd.data import passages, sources
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Qrels, Query
from pyserini_kd.distillation.candidates import Group, read_candidates
from pyserini_kd.distillation.score_store import (
    Taught,
    known_of,
    read_known,
    write_scores,
    write_triples,
)
from pyserini_kd.distillation.teaching import CHECK_DEPTH, CHECK_MEASURES, agreement, refuse_bounded, teach, weighted
from pyserini_kd.distillation.text_store import load_texts
from pyserini_kd.evaluation import engines
from pyserini_kd.models import checkpoint_settings, hardware
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import refuse_existing
from pyserini_kd.storage.locks import alone, clear

logger = logging.getLogger(__name__)


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
@click.option("--teacher-scores", cls=Runs, multiple=True, help="Score store or 5-column file, or FILE@WEIGHT, as a teacher.")
@click.option("--segment", metavar="WORDS:STRIDE", help="The candidates are passages cut like this, as in mine.")
@click.option("--index", type=click.Path(path_type=Path), help="Dense index of the (one, bert_dot) teacher: vectors reused.")
@click.option("--reuse", cls=Runs, multiple=True, help="Score stores whose pairs the same teacher does not score again.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Score store to write (.parquet).")
@click.option("--triples", type=click.Path(path_type=Path), help="Also write the published 5-column file.")
@click.option("--check-run", type=click.Path(path_type=Path), help="Dev run that the teachers should beat.")
@click.option("--check-topics", help="Its topics.")
@click.option("--check-qrels", help="Its judgements.")
@click.option("--batch-size", "--batch", type=click.IntRange(1), help="[default: by token budget]")
@click.option("--precision", default="auto", type=click.Choice(list(hardware.PRECISIONS)), help="Arithmetic.")
@click.option("--backend", default="auto", type=click.Choice(list(hardware.BACKENDS)), help="What computes.")
@click.option("--device", default="cpu", help="cpu, cuda or cuda:N.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
def main(
    candidates: Path,
    collection: str,
    topics: str,
    teachers: tuple[str, ...],
    teacher_runs: tuple[str, ...],
    teacher_scores: tuple[str, ...],
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
    if output.is_file() and not overwrite:
        raise InputError(f"{output} exists; give --overwrite to replace it, with --reuse {output} to keep what it has scored, "
                         "or another name")  # fmt: skip
    for path in (output, triples):
        if path is not None:
            refuse_existing(path, overwrite)
    _refuse_contradictions(output, teachers, [*teacher_runs, *teacher_scores], segment, index)
    if check_run and teacher_scores:
        raise InputError("--check-run: a score file knows no other pairs than those of the candidates")
    groups = read_candidates(candidates)
    first = _read_check(check_run, check_topics, check_qrels)

    def documents() -> Iterator[Doc]:
        found = sources.collection(collection)
        return passages.segment(found, segment) if segment else found

    work = output.with_name(f"{output.name}.partial")
    settings: dict[str, Any] = {"precision": precision, "backend": backend, "batch_size": batch_size, "device": device}
    settings["work"] = work
    settings["index"] = DenseIndex.load(index) if index else None
    with alone(work, "teach"):
        with _folder(work / "scratch") as scratch:
            known = [found for store in reuse for found in read_known(store, scratch / "known")]
            texts = load_texts(groups, sources.topics(topics), documents(), scratch / "texts")
            checked = None
            if first:
                run, queries, judged = first
                asked = [Group(query_id, hits.doc_ids, [], 0) for query_id, hits in run.items()]
                check_texts = load_texts(asked, queries, documents(), scratch / "check")
                reranked, by = teach(asked, *check_texts, teachers, teacher_runs, reuse=known, **settings)
                checked = check(run, reranked, judged)
                known += known_of(reranked, by)
            taught, record = teach(
                groups, *texts, teachers, teacher_runs, teacher_scores, reuse=known, scratch=scratch / "columns", **settings
            )
            record["candidates_sha256"] = sha256(candidates)
            if checked:
                record["check"] = checked
            write_scores(taught, output, record, overwrite=overwrite)
            agreed = agreement(taught.pairs.each(taught.score))
            click.echo(f"{output}: {len(taught.pairs)} pairs, {agreed:.1%} of positives above their negatives")
            if triples:
                count = write_triples(taught.pairs.each(taught.score), triples, overwrite=overwrite)
                click.echo(f"{triples}: {count} triples")
        clear(work, "[0-9a-f]" * 64)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A folder, empty at first, that is there while it is worked with."""
    shutil.rmtree(path, ignore_errors=True)  # of a run that was killed
    try:
        yield path
    finally:
        clear(path.parent, path.name)


def _refuse_contradictions(
    output: Path, teachers: Sequence[str], files: Sequence[str], segment: str | None, index: Path | None
) -> None:
    if output.suffix != ".parquet":
        raise InputError(f"--output {output} must end in .parquet; the 5-column file is --triples")
    names = [weighted(teacher)[0] for teacher in (*teachers, *files)]
    if len(set(names)) != len(names):
        raise InputError("a teacher is named twice")
    if not names:
        raise InputError("give a --teacher, a --teacher-run or --teacher-scores")
    if segment:
        passages.parse(segment)
    if index and len(teachers) != 1:
        raise InputError("--index holds the vectors of one --teacher")
    for teacher in teachers:
        name, weight = weighted(teacher)
        if weight is None and checkpoint_settings.is_bounded(name):
            refuse_bounded(name, "cosines")


def _read_check(run: Path | None, topics: str | None, qrels: str | None) -> tuple[Run, list[Query], Qrels] | None:
    """The first-stage run that the ensemble is to beat, its topics and judgements; None if none is asked for."""
    if run and topics and qrels:
        first, judged = Run.read(run).top(CHECK_DEPTH), sources.qrels(qrels)
        engines.evaluate(first, judged, CHECK_MEASURES)  # they must share queries: say so before the work
        return first, sources.topics(topics), judged
    if run or topics or qrels:
        raise InputError("--check-run, --check-topics and --check-qrels belong together")
    return None


def check(first: Run, taught: Taught, qrels: Qrels) -> dict[str, dict[str, float]]:
    """Print the measures of a first-stage run and of the same documents in the ensemble's order; warn where it is no better.

    Returns them: measure -> first_stage, teachers, p.
    """
    scores: dict[str, dict[str, float]] = {query_id: {} for query_id in first}
    for (query_id, doc_id), score in zip(taught.pairs, taught.score.tolist(), strict=True):
        scores[query_id][doc_id] = score
    before = engines.evaluate(first, qrels, CHECK_MEASURES)
    after = engines.evaluate(Run.from_scores("teachers", scores), qrels, CHECK_MEASURES)
    figures = {}
    for measure in CHECK_MEASURES:
        difference, p_value = engines.compare(after[measure], before[measure])
        own = figures[measure] = {"first_stage": engines.mean(before[measure]), "teachers": engines.mean(after[measure])}
        own["p"] = p_value
        means = f"{own['first_stage']:.4f} -> {own['teachers']:.4f}"
        click.echo(f"check {measure} of the top {CHECK_DEPTH}: {means} (p = {p_value:.4f})")
        if difference <= 0:
            logger.warning("the teachers do not beat the first stage in %s: a student would learn to be no better", measure)
    return {name: {key: float(value) for key, value in own.items()} for name, own in figures.items()}


if __name__ == "__main__":
    main()
