"""Settings of the command `distill`."""

from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import model_validator

from pyserini_kd.data import passages
from pyserini_kd.distillation.config import RANDOM
from pyserini_kd.models import minilm_3
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.settings import Collection, Device, Fields, Precision, Segment, Settings, option

StudentName = Literal["dense", "colbert", "reranker", "sparse"]
STUDENTS: dict[str, str] = dict(zip(get_args(StudentName), ("bert_dot", "colbert", "cross_encoder", "splade"), strict=True))
"""Name of a student -> its architecture."""
MINILM, LAYERS = "minilm", "0,3,5"
DEFAULT: tuple[StudentName, ...] = ("dense", "colbert")


class DistillConfig(Settings):
    """A collection, and how much work to spend on it."""

    collection: Collection[str]
    output: Path = option("--output", help="Folder of the system: models, indexes, search.yaml, report.html.")
    minutes: float = option("--minutes", 15.0, "Time budget in minutes. It sizes the training.", gt=0)
    topics: str | None = option("--topics", None, "Queries of your users, e.g. a query log [default: made from the documents].")
    qrels: str | None = option("--qrels", None, "Judgements of --topics; a part of these topics is then held out.")
    students: tuple[StudentName, ...] = option(
        "--student", (), "Students to train; may be repeated [default: dense and colbert].", words=True
    )
    init: str = option("--init", MINILM, "Bi-encoder that teaches, and from whose layers the students start.")
    layers: str | None = option(
        "--layers",
        None,
        "Layers of --init that students start from [default: 0,3,5; for minilm, students start as minilm-3].",
    )
    teachers: tuple[str, ...] = option(
        "--teacher", (), "More teachers (checkpoints) for the ensemble of --init and BM25: NAME or NAME@WEIGHT.", words=True
    )
    query_generator: str | None = option(
        "--query-generator", None, "Also generate questions with this seq2seq checkpoint (doc2query, GPL's models)."
    )
    fields: Fields = None
    segment: Segment = None
    update: bool = option("--update", False, "Only add the documents that are new in the collection to the indexes.")
    dry_run: bool = option("--dry-run", False, "Read the collection, print the plan with its minutes, and stop.")
    precision: Precision = "auto"
    device: Device = "cpu"
    seed: int = option("--seed", 42, "Random seed.", ge=0)

    @model_validator(mode="after")
    def rules(self) -> Self:
        """InputError if settings conflict."""
        self.only("qrels", self.topics, "judges the topics of `topics`")
        names = "minutes topics qrels students init layers teachers query_generator fields segment dry_run seed"
        self.only(names, not self.update, "does not go with `update`, which keeps the settings of the system")
        why = "teaches students that learn scores: colbert with `topics`, reranker, sparse"
        self.only("teachers", self.scored, why)
        if len(set(self.students)) < len(self.students):
            raise InputError("a student is named twice; name it once", "students")
        if self.init.startswith(RANDOM):
            raise InputError("must be a bi-encoder: it teaches, and students start from its layers", "init")
        if self.precision in ("fp16", "int8"):
            raise InputError(f"students are trained in fp32 or bf16, not in {self.precision}", "precision")
        if self.segment:
            passages.parse(self.segment)
        return self

    @property
    def start(self) -> dict[str, str]:
        """Where the students start: a checkpoint, and which of its layers."""
        if self.layers is None and self.init == MINILM:
            return {"init": minilm_3.NAME}
        return {"init": self.init, "layers": self.layers or LAYERS}

    @property
    def wanted(self) -> tuple[StudentName, ...]:
        """The students of the system."""
        return self.students or DEFAULT

    @property
    def scored(self) -> tuple[StudentName, ...]:
        """The students that learn scores by Margin-MSE."""
        return tuple(name for name in self.wanted if name in ("reranker", "sparse") or (self.topics and name == "colbert"))
