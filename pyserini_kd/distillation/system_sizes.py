"""How much work `distill` does: sizes from a time budget, estimates of time and disk space."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Self

from pyserini_kd.distillation.made_queries import Found
from pyserini_kd.distillation.system_config import DistillConfig
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import Record

MAX_SAMPLE = 20_000  # documents for training
PROBE = 64  # documents encoded to measure the speed
WINDOW = 190  # words that a model of 256 tokens reads
TRAIN_WORDS = 95  # words of a document read in training
QUERY_WORDS = 8
BLOCK = 32  # queries that share documents in training
NEGATIVES = 1  # hard negatives per query; the documents of the block come on top
VECTOR_TOKENS = 6144  # tokens in a step of the recipe `vectors`
TOKENS = 1.35  # tokens of a word
# Measured beside the encoding by a teacher of 6 layers (docs/results/distill.md)
STUDENT_SPEED = 1.9  # encoding by 3 layers
TRAINING_SPEED = 0.5  # training 3 layers
START = 3.0  # seconds to load models and texts for a step
VECTOR_SHARE = 0.5  # share of the training time for vectors, if students learn scores too
LEAST_SHARE = 0.4  # of the budget, for training
MAX_VECTOR_EPOCHS, MAX_SCORE_EPOCHS = 4.0, 2.0
MIN_STEPS = 10
QUERIES_PER_DOC = 3.0  # texts made from a document, on average


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much work the steps do. `distill` keeps them, so that a second call makes the same steps.

    Attributes:
        made_for: the settings that they depend on.
        words_a_second: measured speed of the teacher.
        n_docs: documents in the collection.
        words: words of a document that a model reads, on average.
        sample: documents used for training.
        train_queries: queries with teacher scores.
        vector_steps: steps of the recipe `vectors`.
        score_steps: steps of Margin-MSE, for each student.
    """

    made_for: Record
    words_a_second: float
    n_docs: int
    words: float
    sample: int
    train_queries: int
    vector_steps: int
    score_steps: int

    @classmethod
    def choose(cls, config: DistillConfig, found: Found) -> Self:
        """Measure the teacher's speed, and fit the training into the time that indexing leaves of the budget.

        Training gets at least 40 % of the budget, also if the indexing of all documents needs more than the rest.
        """
        speed = measure(config, found)
        words = min(found.words, WINDOW)
        sample = min(found.n_docs, MAX_SAMPLE, max(1000, round(0.15 * config.minutes * 60 * speed / words)))
        n_scored = len(config.scored)
        fixed = (2.5 * sample + len(config.wanted) * found.n_docs / STUDENT_SPEED) * words / speed + 12 * START
        left = max(config.minutes * 60 - fixed, LEAST_SHARE * config.minutes * 60) * speed * TRAINING_SPEED  # in words
        texts = sample * (words + QUERIES_PER_DOC * QUERY_WORDS)
        vector_step, score_step = VECTOR_TOKENS / TOKENS, _score_words(words)
        share = VECTOR_SHARE if n_scored else 1.0
        vector_steps = min(share * left, MAX_VECTOR_EPOCHS * texts) / vector_step
        queries = 0.8 * sample * QUERIES_PER_DOC
        score_steps = min((1 - share) * left / max(1, n_scored) / score_step, MAX_SCORE_EPOCHS * queries / BLOCK)
        train_queries = max(BLOCK, min(round(queries), BLOCK * round(score_steps)))
        return cls(made_for(config), round(speed, 1), found.n_docs, round(words, 1), sample, train_queries,
                   max(MIN_STEPS, round(vector_steps)), max(MIN_STEPS, round(score_steps)))  # fmt: skip

    def encoding(self, docs: int, speed: float = 1.0) -> float:
        """Seconds to encode documents by a model with this speed relative to the teacher."""
        return docs * self.words / self.words_a_second / speed + START

    def vectors(self) -> float:
        """Seconds of the recipe `vectors`, the teacher's work included."""
        texts = self.sample * (self.words + QUERIES_PER_DOC * QUERY_WORDS)
        training = self.vector_steps * VECTOR_TOKENS / TOKENS / TRAINING_SPEED
        return (texts + training) / self.words_a_second + 2 * START

    def scores(self) -> float:
        """Seconds of Margin-MSE for one student."""
        return self.score_steps * _score_words(self.words) / (self.words_a_second * TRAINING_SPEED) + 2 * START


def made_for(config: DistillConfig) -> Record:
    """The settings that sizes depend on."""
    return {"minutes": config.minutes, "init": config.init, "students": list(config.wanted), "scored": list(config.scored)}


def _score_words(words: float) -> float:
    """Words in a step of Margin-MSE."""
    return BLOCK * (QUERY_WORDS + (1 + NEGATIVES) * min(words, TRAIN_WORDS))


def measure(config: DistillConfig, found: Found) -> float:
    """Words that the teacher encodes in a second."""
    encoder = load_encoder(config.init, device=config.device, precision=config.precision)
    texts = [doc.contents for doc in found.docs[:: max(1, len(found.docs) // PROBE)][:PROBE]]
    encoder.encode_docs(texts[:8], cut=[])  # the first batch is slow
    begun = time.monotonic()
    encoder.encode_docs(texts, cut=[], label="measure speed")
    return sum(min(len(text.split()), WINDOW) for text in texts) / max(1e-3, time.monotonic() - begun)


def disk_bytes(config: DistillConfig, found: Found) -> float:
    """Estimated size of the folder: vectors, token vectors, texts in two indexes, and checkpoints."""
    words, n_docs = min(found.words, WINDOW), found.n_docs
    width = 0 if "colbert" not in config.wanted else 128 if "colbert" in config.scored else 384
    tokens = 2 * width * words * TOKENS
    return n_docs * (384 * 4 + tokens + 3 * 6 * found.words) + 200e6 * (1 + len(config.wanted))


def refuse_full_disk(config: DistillConfig, found: Found) -> None:
    """InputError if the disk has too little free space."""
    needed = disk_bytes(config, found)
    parent = next(path for path in (config.output, *Path(config.output).resolve().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise InputError(f"the system needs about {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free", "output")
