"""The plan of `distill`: the single commands that turn a collection into a system.

Each step has the settings of one command and makes one file or folder. Later steps read the outputs of earlier ones.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pyserini_kd.distillation.mining import MineConfig
from pyserini_kd.distillation.query_files import QueryConfig, QueryFiles
from pyserini_kd.distillation.system_config import STUDENTS, DistillConfig, StudentName
from pyserini_kd.distillation.system_sizes import BLOCK, NEGATIVES, STUDENT_SPEED, Sizes
from pyserini_kd.distillation.teaching_files import TeachConfig
from pyserini_kd.distillation.train_settings import TrainSettings
from pyserini_kd.evaluation import tables
from pyserini_kd.retrieval.indexing import IndexSettings
from pyserini_kd.retrieval.search_settings import SearchSettings
from pyserini_kd.storage.records import Record
from pyserini_kd.storage.settings import Settings

TRAIN_LENGTH = 128  # tokens read in training; students read more in use
TEACHER_SEARCHED = "teacher-dev"  # the step after which the teacher can be checked
HITS = 100  # hits per query that are compared and mined
DEPTH = 20  # documents reranked per query
SCORES: dict[str, Record] = {  # settings that suit teacher scores with a spread near 1
    "colbert": {"settings": ("width=128",), "lr": 5e-5},
    "cross_encoder": {"lr": 5e-5},
    "splade": {"lr": 5e-5},
}


class Step(NamedTuple):
    """One command of the plan.

    Attributes:
        name: short name, unique in the plan.
        what: what it does, for the user.
        settings: settings of the command.
        output: the file or folder that it makes.
        needs: names of the steps whose outputs it reads.
        seconds: estimated time.
    """

    name: str
    what: str
    settings: Settings
    output: Path
    needs: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Folder:
    """The folder of a system and its files."""

    path: Path

    @property
    def queries(self) -> QueryFiles:
        """Queries and documents for training and measuring."""
        return QueryFiles(self.path / "queries")

    def index(self, name: str) -> Path:
        """An index of the whole collection."""
        return self.path / "indexes" / name

    def model(self, name: str) -> Path:
        """A student."""
        return self.path / "models" / name

    def work(self, name: str) -> Path:
        """A file or folder that only training and measuring need."""
        return self.path / "training" / name

    def dev_run(self, name: str) -> Path:
        """A run of the held-out queries over the documents for training."""
        return self.path / "runs" / f"dev.{name}.txt"


def steps(config: DistillConfig, sizes: Sizes) -> list[Step]:
    """The plan in order, with estimates of time.

    The dense student learns the teacher's vectors. Margin-MSE made it worse, and a ColBERT too with made-up queries
    (docs/results/distill.md). So a ColBERT learns scores from real queries only, and students without vectors from any.
    """
    at = Folder(config.output)
    found = [*_data(config, sizes, at), *_teacher(config, at)]
    if config.scored:
        found += _scores(config, at)
    found.append(_vectors(config, sizes, at))
    found += [_student(config, sizes, at, name) for name in config.scored]
    found += _indexes(config, at)
    return [step._replace(seconds=_seconds(step, sizes)) for step in found]


def colbert_folder(config: DistillConfig, at: Folder) -> Path:
    """The checkpoint whose token vectors rerank: a trained ColBERT, or the dense student."""
    return at.model("colbert" if "colbert" in config.scored else "dense")


def token_index(config: DistillConfig, at: Folder, sizes: Sizes) -> Step:
    """The step that stores token vectors of all documents, for reranking."""
    model, index = str(colbert_folder(config, at)), at.index("colbert")
    step = Step("colbert-index", "store the token vectors of all documents", IndexSettings(**only_set(**how(
        config, **_collection(config), encoder=model, index=index, architecture="colbert"
    ))), index, ("colbert" if "colbert" in config.scored else "vectors",))  # fmt: skip
    return step._replace(seconds=_seconds(step, sizes))


def _collection(config: DistillConfig) -> Record:
    return {"collection": config.collection, "fields": config.fields, "segment": config.segment}


def untrained(config: DistillConfig) -> list[Step]:
    """The plan for a collection that is too small to learn from: BM25 and the teacher's vectors."""
    at = Folder(config.output)
    return [
        Step(name, f"index the documents with {encoder}", IndexSettings(**only_set(
            **_collection(config), encoder=encoder, index=at.index(name)
        )), at.index(name))
        for name, encoder in (("bm25", "bm25"), ("dense", config.init))
    ]  # fmt: skip


def table(plan: Sequence[Step]) -> str:
    """The plan with estimated minutes."""
    numbered = enumerate(plan, start=1)
    rows = [[str(number), step.what, f"{step.seconds / 60:.1f}", str(step.output)] for number, step in numbered]
    rows.append(["", "together", f"{sum(step.seconds for step in plan) / 60:.1f}", ""])
    return tables.table(["step", "what", "minutes", "result"], rows)


def _seconds(step: Step, sizes: Sizes) -> float:
    """Estimated seconds of a step."""
    settings = step.settings
    if isinstance(settings, TrainSettings):
        return sizes.vectors() if settings.recipe == "vectors" else sizes.scores()
    if isinstance(settings, IndexSettings):
        if settings.encoder == "bm25":
            return 3.0 + sizes.n_docs / 5000
        whole, by_student = step.output.parent.name == "indexes", step.name != "teacher"
        return sizes.encoding(sizes.n_docs if whole else sizes.sample, STUDENT_SPEED if by_student else 1.0)
    return 5.0 + sizes.sample / 2000


def _data(config: DistillConfig, sizes: Sizes, at: Folder) -> Iterator[Step]:
    given = {"topics": config.topics, "qrels": config.qrels, "generator": config.query_generator}
    yield Step("queries", "make queries, and hold some out", QueryConfig(**only_set(
        **_collection(config), **given, docs=sizes.sample, train=sizes.train_queries, seed=config.seed, output=at.queries.folder
    )), at.queries.folder)  # fmt: skip
    yield Step("bm25", "index the documents with BM25", IndexSettings(**only_set(
        **_collection(config), encoder="bm25", index=at.index("bm25")
    )), at.index("bm25"))  # fmt: skip


def _teacher(config: DistillConfig, at: Folder) -> Iterator[Step]:
    queries, index = at.queries, at.work("teacher")
    yield Step("teacher", "encode the documents for training with the teacher", IndexSettings(**how(
        config, collection=str(queries.docs), encoder=config.init, index=index
    )), index, ("queries",))  # fmt: skip
    runs = {"dev": at.dev_run("teacher")} | ({"train": at.work("teacher.train.txt")} if config.scored else {})
    for split, run in runs.items():
        yield Step(f"teacher-{split}", f"search the {split} queries with the teacher", SearchSettings(**how(
            config, encoder=config.init, index=(str(index),), topics=str(queries.topics(split)), hits=HITS, output=run
        )), run, ("queries", "teacher"))  # fmt: skip


def _scores(config: DistillConfig, at: Folder) -> Iterator[Step]:
    queries, candidates, scores = at.queries, at.work("candidates.jsonl"), at.work("scores.parquet")
    topics = str(queries.topics("train"))
    yield Step("candidates", "choose documents to compare", MineConfig(
        collection=str(queries.docs), topics=topics, qrels=str(queries.qrels("train")), seed=config.seed, output=candidates,
        runs=(str(queries.run("train")), str(at.work("teacher.train.txt"))), negatives=NEGATIVES, depth=30, shared=BLOCK,
    ), candidates, ("queries", "teacher-train"))  # fmt: skip
    more = {"index": at.work("teacher")} if not config.teachers else {}  # its vectors serve one teacher alone
    yield Step("scores", "score them with the teachers", TeachConfig(**how(
        config, candidates=candidates, collection=str(queries.docs), topics=topics, teachers=(config.init, *config.teachers),
        teacher_runs=(str(queries.run("train")),), scale="spread", output=scores, **more,
    )), scores, ("queries", "teacher", "candidates"))  # fmt: skip


def _vectors(config: DistillConfig, sizes: Sizes, at: Folder) -> Step:
    output = at.model("dense")
    return Step("vectors", "train the student to give the teacher's vectors", TrainSettings(**_training(
        config, recipe="vectors", teacher=config.init, **config.start, output=output,
        collection=str(at.queries.docs), topics=str(at.queries.texts), max_steps=sizes.vector_steps,
    )), output, ("queries",))  # fmt: skip


def _student(config: DistillConfig, sizes: Sizes, at: Folder, name: StudentName) -> Step:
    queries, architecture, output = at.queries, STUDENTS[name], at.model(name)
    return Step(name, f"train the student {name} ({architecture}) by Margin-MSE", TrainSettings(**_training(
        config, recipe="margin-mse", architecture=architecture, init=str(at.model("dense")), **SCORES[architecture],
        collection=str(queries.docs), topics=str(queries.topics("train")), candidates=at.work("candidates.jsonl"),
        scores=at.work("scores.parquet"), max_steps=sizes.score_steps, train_len=TRAIN_LENGTH, output=output,
    )), output, ("queries", "candidates", "scores", "vectors"))  # fmt: skip


def _indexes(config: DistillConfig, at: Folder) -> Iterator[Step]:
    """For the dense and the sparse student: search the held-out queries in the documents for training, index all documents."""
    queries = at.queries
    for name, trained in (("dense", "vectors"), ("sparse", "sparse")):
        if name not in config.wanted:
            continue
        model, index, run = str(at.model(name)), at.work(name), at.dev_run(name)
        yield Step(f"{name}-dev", f"index the documents for training with the student {name}", IndexSettings(**how(
            config, collection=str(queries.docs), encoder=model, index=index
        )), index, ("queries", trained))  # fmt: skip
        yield Step(f"{name}-search", f"search the held-out queries with the student {name}", SearchSettings(**how(
            config, encoder=model, index=(str(index),), topics=str(queries.topics("dev")), hits=HITS, output=run
        )), run, ("queries", trained, f"{name}-dev"))  # fmt: skip
        yield Step(f"{name}-index", f"index all documents with the student {name}", IndexSettings(**only_set(**how(
            config, **_collection(config), encoder=model, index=at.index(name)
        ))), at.index(name), (trained,))  # fmt: skip


def only_set(**values: object) -> Record:
    """The values that are not None, so that the command line shows only what is set."""
    return {name: value for name, value in values.items() if value is not None}


def how(config: DistillConfig, **values: object) -> Record:
    """Add precision and device if the user set them."""
    return values | {name: getattr(config, name) for name in ("precision", "device") if config.given(name)}


def _training(config: DistillConfig, **values: object) -> Record:
    """Add what all trainings share."""
    shared = {"dropout": 0.0, "seed": config.seed}
    return how(config, **(shared | only_set(**values)))
