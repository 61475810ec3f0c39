"""Teach from files to files: candidates, texts and teachers in; a score store, and perhaps a published file, out."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from pyserini_kd.data import passages, sources
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Qrels, Query
from pyserini_kd.distillation.candidates import Group, pairs, read_candidates
from pyserini_kd.distillation.score_store import Known, ScoreStore, Taught, write_scores
from pyserini_kd.distillation.teacher_scores import Scores
from pyserini_kd.distillation.teaching import Teacher, teach
from pyserini_kd.distillation.text_store import load_texts
from pyserini_kd.distillation.triples import write_triples
from pyserini_kd.evaluation import engines
from pyserini_kd.models import checkpoint_folder
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import refuse_existing
from pyserini_kd.storage.locks import alone, clear
from pyserini_kd.storage.settings import Backend, Collection, Device, Precision, Segment, Settings, option

logger = logging.getLogger(__name__)

Words = tuple[str, ...]
Sides = tuple[Mapping[str, str], Mapping[str, str]]
"""Texts of queries and of documents."""

CHECK_DEPTH = 20  # documents of each check query that the ensemble reranks
CHECK_MEASURES = ("RR@10", "nDCG@10")


class TeachConfig(Settings):
    """What is scored, by which teachers, and where the scores go."""

    candidates: Annotated[Path, option("--candidates", help="Groups or triples, from mine.")]
    collection: Collection
    topics: Annotated[str, option("--topics", help="Topics of the candidates.")]
    teachers: Annotated[Words, option("--teacher", words=True, help="Checkpoint, or CHECKPOINT@WEIGHT; any number.")] = ()
    teacher_runs: Annotated[
        Words, option("--teacher-run", words=True, help="Run, or RUN@WEIGHT, as a teacher; absent = 0.")
    ] = ()
    teacher_scores: Annotated[
        Words,
        option("--teacher-scores", words=True, help="Score store or 5-column file, or FILE@WEIGHT, as a teacher."),
    ] = ()
    segment: Segment = None
    index: Annotated[Path | None, option("--index", help="Dense index of the (one, bert_dot) teacher: vectors reused.")] = None
    reuse: Annotated[
        Words,
        option("--reuse", words=True, help="Score stores whose pairs the same teacher does not score again."),
    ] = ()
    output: Annotated[Path, option("--output", help="Score store to write (.parquet).")]
    triples: Annotated[Path | None, option("--triples", help="Also write the published 5-column file.")] = None
    check_run: Annotated[Path | None, option("--check-run", help="Dev run that the teachers should beat.")] = None
    check_topics: Annotated[str | None, option("--check-topics", help="Its topics.")] = None
    check_qrels: Annotated[str | None, option("--check-qrels", help="Its judgements.")] = None
    batch_size: Annotated[
        int | None, Field(ge=1), option("--batch-size", "--batch", help="Pairs a batch [default: by token budget].")
    ] = None
    precision: Precision = "auto"
    backend: Backend = "auto"
    device: Device = "cpu"
    overwrite: Annotated[bool, option("--overwrite", help="Replace outputs that exist.")] = False

    @model_validator(mode="after")
    def rules(self) -> Self:
        """Refuse contradictions, before any data are read."""
        if self.output.suffix != ".parquet":
            raise InputError(f"{self.output} must end in .parquet; triples are what is written as a 5-column file", "output")
        names = [teacher.name for teacher in self.ensemble()]
        if not names:
            raise InputError("no teacher is given: name a checkpoint, a run or a file of scores", "teachers")
        if len(set(names)) != len(names):
            raise InputError("a teacher is named twice", "teachers")
        if self.segment:
            passages.parse(self.segment)
        if self.index and len(self.teachers) != 1:
            raise InputError("an index holds the vectors of one checkpoint; give one as a teacher", "index")
        if self.check_run and self.teacher_scores:
            raise InputError("a teacher that is a score file knows no other pairs than those of the candidates", "check_run")
        check = (self.check_run, self.check_topics, self.check_qrels)
        if any(check) and not all(check):
            raise InputError("the run, the topics and the judgements of a check belong together", "check_run")
        return self

    def ensemble(self) -> list[Teacher]:
        """All teachers: runs, files of scores, checkpoints."""
        runs = [Teacher.parse("run", text) for text in self.teacher_runs]
        files = [Teacher.parse("scores", text) for text in self.teacher_scores]
        return [*runs, *files, *(Teacher.parse("checkpoint", text) for text in self.teachers)]

    def documents(self) -> Iterable[Doc]:
        """The documents of the collection, or its passages."""
        docs = sources.collection(self.collection)
        return passages.segment(docs, self.segment) if self.segment else docs


def teach_files(config: TeachConfig, say: Callable[[str], None] = logger.info) -> None:
    """Score candidates with one teacher or an ensemble and write the scores.

    A folder beside the output keeps what is finished. A killed call that is started again goes on from there.

    Args:
        config: what is scored, by whom, and where the scores go.
        say: hears what was found and written, line by line.
    """
    output, teachers = config.output, config.ensemble()
    if output.is_file() and not config.overwrite:
        cure = "set overwrite to replace it (and reuse it, to keep its scores), or give another name"
        raise InputError(f"{output} exists; {cure}", "output")
    for path in (output, config.triples or output):
        refuse_existing(path, config.overwrite)
    for teacher in teachers:
        if teacher.kind == "checkpoint" and checkpoint_folder.is_bounded(teacher.name):
            teacher.refuse_bounded("cosines")
    groups = read_candidates(config.candidates)
    check = _Check.read(config)
    work = output.with_name(f"{output.name}.partial")
    index = DenseIndex.load(config.index) if config.index else None

    def score(groups: Sequence[Group], texts: Sides, known: list[Known], scratch: Path | None = None) -> Taught:
        return teach(
            groups, *texts, teachers, index=index, reuse=known, work=work, scratch=scratch,
            device=config.device, precision=config.precision, backend=config.backend, batch_size=config.batch_size,
        )  # fmt: skip

    with alone(work, "teach"):
        with _folder(work / "scratch") as scratch:
            known = [found for store in config.reuse for found in ScoreStore(store).known(scratch / "known")]
            texts = load_texts(groups, sources.topics(config.topics), config.documents(), scratch / "texts")
            figures = None
            if check:
                asked = check.groups()
                first = score(asked, load_texts(asked, check.topics, config.documents(), scratch / "check"), known)
                figures = check.compare(first, say)
                known += first.known()
            taught = score(groups, texts, known, scratch / "columns")
            taught.record["candidates_sha256"] = sha256(config.candidates)
            if figures:
                taught.record["check"] = figures
            write_scores(taught, output, overwrite=config.overwrite)
            scores = Scores(taught.pairs, taught.score)
            agreed = agreement(scores.each(groups))
            say(f"{output}: {len(taught.pairs)} pairs, {agreed:.1%} of positives above their negatives")
            if config.triples:
                count = write_triples(scores.each(groups), config.triples, overwrite=config.overwrite)
                say(f"{config.triples}: {count} triples")
        clear(work, "[0-9a-f]" * 64)


def agreement(scored: Iterable[tuple[Group, list[float]]]) -> float:
    """Share of (positive, negative) pairs of groups that their scores order as the labels do."""
    right = total = 0
    for group, own in scored:
        found = dict(zip(group.doc_ids, own, strict=True))
        margins = [found[pos] - found[neg] for pos, neg in pairs(group)]
        right, total = right + sum(margin > 0 for margin in margins), total + len(margins)
    return right / total


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """The path of a folder that does not exist yet; it is removed at the end."""
    shutil.rmtree(path, ignore_errors=True)  # left by a killed call
    try:
        yield path
    finally:
        clear(path.parent, path.name)


class _Check(NamedTuple):
    """A first-stage run that the ensemble should beat, its topics and judgements."""

    run: Run
    topics: list[Query]
    qrels: Qrels
    before: dict[str, dict[str, float]]

    @classmethod
    def read(cls, config: TeachConfig) -> Self | None:
        """The check that was asked for, if any; InputError if run and judgements share no query."""
        if not (config.check_run and config.check_topics and config.check_qrels):
            return None
        run, qrels = Run.read(config.check_run).top(CHECK_DEPTH), sources.qrels(config.check_qrels)
        return cls(run, sources.topics(config.check_topics), qrels, engines.evaluate(run, qrels, CHECK_MEASURES))

    def groups(self) -> list[Group]:
        """The documents of the run as candidates."""
        return [Group(query_id, hits.doc_ids, [], 0) for query_id, hits in self.run.items()]

    def compare(self, taught: Taught, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
        """Say what the run's measures are, and those of its documents in the ensemble's order; warn where it is no better.

        Returns measure -> first_stage, teachers, p.
        """
        scores: dict[str, dict[str, float]] = {query_id: {} for query_id in self.run}
        for place, query_id, doc_id in taught.pairs:
            scores[query_id][doc_id] = float(taught.score[place])
        after = engines.evaluate(Run.from_scores("teachers", scores), self.qrels, CHECK_MEASURES)
        figures = {}
        for measure in CHECK_MEASURES:
            difference, p_value = engines.compare(after[measure], self.before[measure])
            first, second = engines.mean(self.before[measure]), engines.mean(after[measure])
            say(f"check {measure} of the top {CHECK_DEPTH}: {first:.4f} -> {second:.4f} (p = {p_value:.4f})")
            if difference <= 0:
                logger.warning("the teachers do not beat the first stage in %s: a student would learn to be no better", measure)
            figures[measure] = {"first_stage": float(first), "teachers": float(second), "p": float(p_value)}
        return figures
