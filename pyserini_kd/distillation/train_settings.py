"""The settings of the command `train`: a training configuration, the data that it reads, and where the result goes."""

from pathlib import Path
from typing import Self

from pydantic import model_validator

from pyserini_kd.data import passages
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.settings import Candidates, CheckpointFolder, Collection, Overwrite, Settings, TrainingTopics, option


class Given(Settings):
    """What a training run reads: candidates with their texts and scores, and dev topics."""

    collection: Collection[str]
    topics: TrainingTopics[str | None] = None
    candidates: Candidates[Path | None] = None
    scores: Path | None = option("--scores", None, "Teacher scores: a store from teach, or a 5-column file.")
    qrels: str | None = option(
        "--qrels", None, "Without --candidates: their positives, with the other queries of a batch as negatives."
    )
    segment: str | None = option(
        "--segment", None, "Candidates, and plain texts, are passages cut like this, as in mine.", metavar="WORDS:STRIDE"
    )
    dev_topics: str | None = option("--dev-topics", None, "Dev topics: the best checkpoint on them is kept.")
    dev_qrels: str | None = option("--dev-qrels", None, "Their judgements.")
    dev_run: Path | None = option("--dev-run", None, "First-stage run of them; its top is reranked.")
    dev_depth: int = option("--dev-depth", 20, "Documents a dev query taken of --dev-run.", ge=1)
    dev_retrieval: bool = option(
        "--dev-retrieval",
        False,
        "A bert_dot searches those of all dev queries and the judged ones, instead; without a run, the collection.",
    )

    def for_training(self) -> dict[str, str | Path | None]:
        """What was given besides dev topics: name -> value."""
        return {name: value for name, value in self.model_dump(include=set(Given.model_fields)).items() if "dev_" not in name}

    @model_validator(mode="after")
    def data_rules(self) -> Self:
        """InputError for data that contradict each other."""
        if self.candidates and self.qrels:
            raise InputError("make candidates where none are given; these candidates have their labels", "qrels")
        dev = (self.dev_topics, self.dev_qrels, self.dev_run or self.dev_retrieval or None)
        if any(value is not None for value in dev) and None in dev:
            raise InputError("goes together with dev_qrels and with dev_run (or dev_retrieval)", "dev_topics")
        if self.segment:
            passages.parse(self.segment)
        return self


class TrainSettings(TrainConfig, Given):
    """The settings of the command `train`."""

    output: CheckpointFolder
    overwrite: Overwrite = False

    @model_validator(mode="after")
    def rules_together(self) -> Self:
        """InputError where the recipe needs other data."""
        stages = [stage for _, stage in self.stages()]
        if self.candidates and self.scores and not any(stage.needs_scores for stage in stages):
            raise InputError(f"recipe {self.recipe}, as asked for, learns nothing from a ranker", "scores")
        if all(stage.needs_vectors for stage in stages):
            self.only(
                "candidates scores qrels", False, f"recipe {self.recipe} learns from plain texts alone: collection and topics"
            )
        if all(stage.text for stage in stages):
            return self
        if self.topics is None:
            raise InputError(f"recipe {self.recipe} learns from queries: name their topics", "topics")
        if self.segment and not self.candidates:
            raise InputError("says how the passages of the candidates were cut; there are no candidates", "segment")
        if not (self.candidates or self.qrels or (self.scores and self.scores.suffix != ".parquet")):
            raise InputError("are needed (or qrels, or a 5-column score file, which has triples of its own)", "candidates")
        return self
