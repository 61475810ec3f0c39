"""Score candidates from files: write a score store, and optionally a 5-column file."""

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
from pyserini_kd.storage.settings import Backend, Candidates, Collection, Device, Fields, Precision, Segment, Settings, option

logger = logging.getLogger(__name__)

Words = tuple[str, ...]
CHECK_DEPTH = 20  # documents reranked per check query
CHECK_MEASURES = ("RR@10", "nDCG@10")


class TeachConfig(Settings):
    """Candidates, teachers and outputs of `teach`."""

    candidates: Candidates[Path]
    collection: Collection[str]
    fields: Fields = None
    topics: str = option("--topics", help="Topics of the candidates.")
    teachers: Words = option("--teacher", (), "Checkpoints as teachers: CHECKPOINT or CHECKPOINT@WEIGHT.", words=True)
    teacher_runs: Words = option("--teacher-run", (), "Runs as teachers: RUN or RUN@WEIGHT; absent = 0.", words=True)
    teacher_scores: Words = option(
        "--teacher-scores", (), "Score stores or 5-column files as teachers: FILE or FILE@WEIGHT.", words=True
    )
    scale: ScaleName = option(
        "--scale", "none", "Scale teachers before weighting: by the spread of the scores, or to z-scores per query."
    )
    segment: Segment = None
    index: Path | None = option("--index", None, "Dense index of the teacher (one bert_dot), to reuse vectors.")
    reuse: Words = option("--reuse", (), "Score stores; scores of the same teacher are reused.", words=True)
    output: Path = option("--output", help="Score store to write (.parquet).")
    triples: Path | None = option("--triples", None, "Also write a 5-column file of triples.")
    check_run: Path | None = option("--check-run", None, "Dev run that the teachers should beat.")
    check_topics: str | None = option("--check-topics", None, "Topics of --check-run.")
    check_qrels: str | None = option("--check-qrels", None, "Judgements of --check-run.")
    batch_size: int | None = option("--batch-size --batch", None, "Pairs in a batch [default: by token budget].", ge=1)
    precision: Precision = "auto"
    backend: Backend = "auto"
    device: Device = "cpu"
    overwrite: bool = option("--overwrite", False, "Replace existing outputs.")

    @model_validator(mode="after")
    def rules(self) -> Self:
        """Raise InputError for contradictory settings, before any data are read."""
        if self.output.suffix != ".parquet":
            raise InputError(f"{self.output} must end in .parquet; use `triples` for a 5-column file", "output")
        names = [teacher.name for teacher in self.ensemble()]
        if not names:
            raise InputError("no teacher is given; name a checkpoint, a run or a score file", "teachers")
        if len(set(names)) != len(names):
            raise InputError("a teacher is named twice; name it once", "teachers")
        if self.segment:
            passages.parse(self.segment)
        if self.index and len(self.teachers) != 1:
            raise InputError("needs exactly one checkpoint in `teachers`", "index")
        if self.check_run and self.teacher_scores:
            raise InputError("needs checkpoints or runs as teachers; `teacher_scores` has no scores for its pairs", "check_run")
        check = (self.check_run, self.check_topics, self.check_qrels)
        if any(check) and not all(check):
            raise InputError("needs `check_topics` and `check_qrels`; give all three or none", "check_run")
        return self

    def ensemble(self) -> list[Teacher]:
        """Return all teachers: runs, score files, checkpoints."""
        runs = [Teacher.parse("run", text) for text in self.teacher_runs]
        files = [Teacher.parse("scores", text) for text in self.teacher_scores]
        return [*runs, *files, *(Teacher.parse("checkpoint", text) for text in self.teachers)]


def teach_files(config: TeachConfig, say: Callable[[str], None] = logger.info) -> None:
    """Score candidates with one teacher or an ensemble and write the scores. `say` gets lines of progress and results.

    Finished blocks lie in a folder beside the output. The same call resumes from them after a crash.
    """
    output, teachers = config.output, config.ensemble()
    if output.is_file() and not config.overwrite:
        cure = "set `overwrite` to replace it (with `reuse` to keep its scores) or give another name"
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
        texts = load_texts(groups, topics, sources.collection(config.collection, config.segment, config.fields), scratch / name)
        return teach(
            groups, *texts, teachers, scale=config.scale, index=index, reuse=known, work=work, scratch=columns,
            device=config.device, precision=config.precision, backend=config.backend, batch_size=config.batch_size,
        )  # fmt: skip

    with alone(work, "teach"), contextlib.ExitStack() as at_end:
        clear(work, scratch.name)  # left by a crash
        at_end.callback(clear, work, scratch.name)
        known = [found for store in config.reuse for found in ScoreStore(store).known(scratch / "known")]
        figures = None
        if check:
            wanted = [Group(query_id, hits.doc_ids, [], 0) for query_id, hits in check.run.items()]
            first = score(wanted, check.topics, known, "check", None)
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
    """Return the share of (positive, negative) pairs that the scores order as the labels do."""
    right = total = 0
    for group, scores in scored:
        found = dict(zip(group.doc_ids, scores, strict=True))
        margins = [found[pos] - found[neg] for pos, neg in pairs(group)]
        right, total = right + sum(margin > 0 for margin in margins), total + len(margins)
    return right / total


class _Check(NamedTuple):
    """A first-stage run that the ensemble should beat, with its topics and judgements."""

    run: Run
    topics: list[Query]
    qrels: Qrels
    before: dict[str, dict[str, float]]

    @classmethod
    def read(cls, config: TeachConfig) -> Self | None:
        """Read the check of the settings, if any; InputError if run and judgements share no query."""
        if not (config.check_run and config.check_topics and config.check_qrels):
            return None
        run, qrels = Run.read(config.check_run).top(CHECK_DEPTH), sources.qrels(config.check_qrels)
        return cls(run, sources.topics(config.check_topics), qrels, engines.evaluate(run, qrels, CHECK_MEASURES))

    def compare(self, taught: Taught, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
        """Report the measures of the run before and after reranking by the ensemble; warn if they do not improve.

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
                logger.warning("the teachers do not beat the first stage in %s; a student will not either: use others", measure)
            figures[measure] = {"first_stage": float(first), "teachers": float(second), "p": float(p_value)}
        return figures
