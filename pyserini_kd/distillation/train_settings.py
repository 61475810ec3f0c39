"""Settings of the command `train`: training configuration, data and output."""

from pathlib import Path
from typing import Self

from pydantic import model_validator

from pyserini_kd.data import passages
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.settings import (
    Candidates,
    CheckpointFolder,
    Collection,
    Fields,
    Overwrite,
    Settings,
    TrainingTopics,
    option,
)


class Given(Settings):
    """Data of a training run: candidates with texts and scores, and dev topics."""

    collection: Collection[str]
    fields: Fields = None
    topics: TrainingTopics[str | None] = None
    candidates: Candidates[Path | None] = None
    scores: Path | None = option("--scores", None, "Teacher scores: a score store from teach or a 5-column file.")
    qrels: str | None = option(
        "--qrels", None, "Instead of --candidates: judgements for positives; negatives come from other queries of the batch."
    )
    segment: str | None = option(
        "--segment", None, "Candidates and plain texts are passages of this size, as in mine.", metavar="WORDS:STRIDE"
    )
    dev_topics: str | None = option("--dev-topics", None, "Dev topics; the best checkpoint on them is kept.")
    dev_qrels: str | None = option("--dev-qrels", None, "Judgements of the dev topics.")
    dev_run: Path | None = option("--dev-run", None, "First-stage run of the dev topics, to rerank.")
    dev_depth: int = option("--dev-depth", 20, "Documents per query from --dev-run.", ge=1)
    dev_retrieval: bool = option(
        "--dev-retrieval",
        False,
        "A bert_dot searches instead: documents of --dev-run plus judged ones; without a run, the whole collection.",
    )

    def for_training(self) -> dict[str, str | Path | None]:
        """Return the data settings except dev topics: name -> value."""
        return {name: value for name, value in self.model_dump(include=set(Given.model_fields)).items() if "dev_" not in name}

    @model_validator(mode="after")
    def data_rules(self) -> Self:
        """Raise InputError for contradictory data settings."""
        if self.candidates and self.qrels:
            raise InputError("give `candidates` or judgements, not both; candidates have labels", "qrels")
        dev = (self.dev_topics, self.dev_qrels, self.dev_run or self.dev_retrieval or None)
        if any(value is not None for value in dev) and None in dev:
            raise InputError("needs `dev_qrels` and `dev_run` (or `dev_retrieval`); give all or none", "dev_topics")
        if self.segment:
            passages.parse(self.segment)
        return self


class TrainSettings(TrainConfig, Given):
    """Settings of the command `train`."""

    output: CheckpointFolder
    overwrite: Overwrite = False

    @model_validator(mode="after")
    def rules_together(self) -> Self:
        """Raise InputError if the recipe needs other data."""
        stages = [stage for _, stage in self.stages()]
        if self.candidates and self.scores and not any(stage.needs_scores for stage in stages):
            raise InputError(f"recipe {self.recipe} with these settings does not use teacher scores", "scores")
        if all(stage.needs_vectors for stage in stages):
            self.only("candidates scores qrels", False, f"recipe {self.recipe} does not use it; remove it")
        if all(stage.text for stage in stages):
            return self
        if self.topics is None:
            raise InputError(f"recipe {self.recipe} needs training topics", "topics")
        if self.segment and not self.candidates:
            raise InputError("needs `candidates`, which are cut into these passages", "segment")
        if not (self.candidates or self.qrels or (self.scores and self.scores.suffix != ".parquet")):
            raise InputError("missing; give them, `qrels`, or a 5-column file in `scores`", "candidates")
        return self
