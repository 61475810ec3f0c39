"""Teach from files to files: candidates, texts and teachers in; a score store, and perhaps a published file, out."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import model_validator

from pyserini_kd.data import passages, sources
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Qrels, Query
from pyserini_kd.distillation.candidates import Group, pairs, read_candidates
from pyserini_kd.distillation.scaling import ScaleName
from pyserini_kd.distillation.teacher_scores import Known, Scores, ScoreStore, Taught, write_scores
from pyserini_kd.distillation.teaching import Teacher, teach
from pyserini_kd.distillation.text_store import load_texts, write_triples
from pyserini_kd.evaluation import engines
from pyserini_kd.models import checkpoint_folder
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import alone, clear, refuse_existing
from pyserini_kd.storage.settings import Backend, Candidates, Collection, Device, Precision, Segment, Settings, option

logger = logging.getLogger(__name__)

Words = tuple[str, ...]
CHECK_DEPTH = 20  # documents of each check query that the ensemble reranks
CHECK_MEASURES = ("RR@10", "nDCG@10")


class TeachConfig(Settings):
    """What is scored, by which teachers, and where the scores go."""

    candidates: Candidates[Path]
    collection: Collection[str]
    topics: str = option("--topics", help="Topics of the candidates.")
    teachers: Words = option("--teacher", (), "Checkpoint, or CHECKPOINT@WEIGHT; any number.", words=True)
    teacher_runs: Words = option("--teacher-run", (), "Run, or RUN@WEIGHT, as a teacher; absent = 0.", words=True)
    teacher_scores: Words = option(
        "--teacher-scores", (), "Score store or 5-column file, or FILE@WEIGHT, as a teacher.", words=True
    )
    scale: ScaleName = option(
        "--scale", "none", "Bring teachers to one scale before weights: by their spread, or z-scores per query."
    )
    segment: Segment = None
    index: Path | None = option("--index", None, "Dense index of the (one, bert_dot) teacher: vectors reused.")
    reuse: Words = option("--reuse", (), "Score stores whose pairs the same teacher does not score again.", words=True)
    output: Path = option("--output", help="Score store to write (.parquet).")
    triples: Path | None = option("--triples", None, "Also write the published 5-column file.")
    check_run: Path | None = option("--check-run", None, "Dev run that the teachers should beat.")
    check_topics: str | None = option("--check-topics", None, "Its topics.")
    check_qrels: str | None = option("--check-qrels", None, "Its judgements.")
    batch_size: int | None = option("--batch-size --batch", None, "Pairs a batch [default: by token budget].", ge=1)
    precision: Precision = "auto"
    backend: Backend = "auto"
    device: Device = "cpu"
    overwrite: bool = option("--overwrite", False, "Replace outputs that exist.")

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


def teach_files(config: TeachConfig, say: Callable[[str], None] = logger.info) -> None:
    """Score candidates with one teacher or an ensemble and write the scores; `say` hears what was found and written.

    A folder beside the output keeps what is finished. A killed call that is started again goes on from there.
    """
    output, teachers = config.output, config.ensemble()
    if output.is_file() and not config.overwrite:
        cure = "set overwrite to replace it (and reuse it, to keep its scores), or give another name"
        raise InputError(f"{output} exists; {cure}", "output")
    for path in (output, config.triples or output):
        refuse_existing(path, config.overwrite)
    for teacher in teachers:
        if config.scale == "none" and teacher.kind == "checkpoint" and checkpoint_folder.is_bounded(teacher.name):
            teacher.refuse_bounded("cosines")
    groups = read_candidates(config.candidates)
    check = _Check.read(config)
    work = output.with_name(f"{output.name}.partial")
    index = DenseIndex.open(config.index) if config.index else None

    scratch = work / "scratch"

    def score(groups: Sequence[Group], topics: list[Query], known: list[Known], name: str, columns: Path | None) -> Taught:
        texts = load_texts(groups, topics, sources.collection(config.collection, config.segment), scratch / name)
        return teach(
            groups, *texts, teachers, scale=config.scale, index=index, reuse=known, work=work, scratch=columns,
            device=config.device, precision=config.precision, backend=config.backend, batch_size=config.batch_size,
        )  # fmt: skip

    with alone(work, "teach"), contextlib.ExitStack() as at_end:
        clear(work, scratch.name)  # left by a killed call
        at_end.callback(clear, work, scratch.name)
        known = [found for store in config.reuse for found in ScoreStore(store).known(scratch / "known")]
        figures = None
        if check:
            asked = [Group(query_id, hits.doc_ids, [], 0) for query_id, hits in check.run.items()]
            first = score(asked, check.topics, known, "check", None)
            figures = check.compare(first, say)
            known += first.known()
        taught = score(groups, sources.topics(config.topics), known, "texts", scratch / "columns")
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
