"""Build the embedded default (BM25, teacher, teacher scores, student, indexes, reranker) and measure its systems.

A step with an existing result is skipped. An interrupted step restarts or resumes.
experiments/demo/page.md explains the choices below.
"""

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pyserini_kd.data import docstrings
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Query
from pyserini_kd.distillation import mining
from pyserini_kd.distillation.candidates import read_candidates, write_candidates
from pyserini_kd.distillation.config import TrainConfig
from pyserini_kd.distillation.teacher_scores import read_scores, write_scores
from pyserini_kd.distillation.teaching import Teacher, teach
from pyserini_kd.distillation.text_store import load_texts
from pyserini_kd.distillation.training import train
from pyserini_kd.evaluation import engines, run_records, tuning
from pyserini_kd.evaluation.engines import PerQuery
from pyserini_kd.models import checkpoint_folder, hardware, loading, rankers, saving
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.retrieval import bm25_build, bm25_search, dense_build, fusion, reranking, searching
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.open_index import open_with_encoder
from pyserini_kd.retrieval.text_sources import stored_docs
from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import home
from pyserini_kd.storage.records import Record, read_json, record_path, write_json, write_record

logger = logging.getLogger(__name__)

BLOCK = 32  # queries that share documents; each gets the positives of the 31 others as negatives
# Training reads 64 tokens, retrieval 128. Dropout slows training without gain on dev topics (experiments/demo/page.md)
TRAINING: Record = {"max_query_len": 32, "max_doc_len": 128, "train_len": 64, "dropout": 0.0}
TEACHER_WEIGHT, BM25_WEIGHT = 40.0, 0.4  # ensemble score: 20 x cosine + 0.2 x BM25
# Unit vectors, scores x 20 in the loss: without, this short training goes into vector lengths
STUDENT: Record = {"l2_norm": True, "score_scale": 20.0, "lr": 5e-5}
ALPHAS = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.07)  # BM25 is around 15, the student below 1
RERANK_DEPTH = 20
WEIGHTS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)  # of hybrid scores (below 1); MaxSim scores are around 10

MEASURES = ("RR@10", "nDCG@10", "R@100")
BOTH = ("bm25", "student")
PAIRS = (("hybrid", "bm25"), ("hybrid", "student"), ("reranked", "hybrid"))
"""Compared systems: (expected better, worse)."""


@dataclasses.dataclass(frozen=True)
class Paths:
    """Folders of the embedded default."""

    bm25: Path
    teacher_index: Path
    index: Path
    training: Path
    teacher: Path
    student: Path
    reranker: Path


def paths() -> Paths:
    """Return the default folders, under PYSERINI_KD_HOME or the current directory."""
    indexes = (home() / "indexes" / f"pydocs.{name}" for name in ("bm25", "teacher", "student", "training"))
    return Paths(*indexes, *(home() / "models" / name for name in ("teacher", "student", "reranker")))


def prepare() -> Paths:
    """Make missing parts of the embedded default, without the reranker; return its folders."""
    at = paths()
    _step("collection: docstrings of the installed packages", at.bm25, _make_bm25)
    if not at.student.exists():
        _step("training candidates", at.training / "candidates.jsonl", _make_candidates)
        _step("teacher: MiniLM fine-tuned as a bi-encoder", at.teacher, _make_teacher)
        _step("teacher's index", at.teacher_index, lambda at: _make_index(at.teacher, at.teacher_index), made_from=at.teacher)
        _step("teacher scores", at.training / "scores.parquet", _make_scores)
        _step("student: BERT_DOT by Margin-MSE", at.student, _make_student)
    _step("student's index", at.index, lambda at: _make_index(at.student, at.index), made_from=at.student)
    return at


def prepare_reranker(at: Paths) -> tuple[float, float]:
    """Make the reranker if missing; return the weights of BM25 in the hybrid and of the hybrid in reranking."""
    _step("reranker: the teacher's token vectors", at.reranker, _make_reranker, made_from=at.teacher)
    _step("weights of the hybrid and of the reranker, on dev topics", at.training / "weights.json", choose_weights)
    return choose_weights(at)


def _step(what: str, result: Path, make: Callable[[Paths], object], *, made_from: Path | None = None) -> None:
    """Make `result` if it is missing or stale."""
    if result.exists():
        if not (why := _stale(result, made_from)):
            return
        logger.info("%s was made %s; making it again", result, why)
        shutil.rmtree(result) if result.is_dir() else result.unlink()
    started = time.monotonic()
    logger.info("[%s] ...", what)
    make(paths())
    logger.info("[%s] %.0f s", what, time.monotonic() - started)


def _stale(result: Path, made_from: Path | None) -> str:
    """Return why a result is stale, or ""; InputError if a foreign checkpoint lies in its place."""
    manifest = result / "manifest.json" if result.is_dir() else record_path(result)
    if manifest.exists():
        record = read_json(manifest, "record")
        if record.get("collection_stamp") != docstrings.stamp():
            return "for other versions of the packages"
        maker = record.get("encoder", {}).get("sha256")
    elif (result / "training.json").exists():
        record = read_json(result / "training.json", "record")
        maker = record.get("from_sha256")
        if record.get("data", {}).get("collection", "pydocs") != "pydocs" or (made_from and not maker):
            raise InputError(f"{result} is in the way: it is not the checkpoint for pydocs; move it elsewhere")
    else:
        return ""
    known = made_from is None or not made_from.exists() or maker == checkpoint_folder.fingerprint(made_from)
    return "" if known else "with another checkpoint"


def _make_bm25(at: Paths) -> None:
    count = bm25_build.index_bm25(docstrings.docs(), at.bm25, threads=hardware.threads(), collection_stamp=docstrings.stamp())
    logger.info("%d documents, %d / %d / %d topics", count, *(len(docstrings.topics(split)) for split in docstrings.SPLITS))


def _make_candidates(at: Paths) -> None:
    mined = mining.mine(docstrings.topics("train"), docstrings.qrels("train"), [], docstrings.docs(), negatives=0, shared=BLOCK)
    _stamp(at.training / "candidates.jsonl")
    write_candidates(mined.groups, at.training / "candidates.jsonl")


def _stamp(file: Path) -> None:
    """Record the version of the documents beside a file, before the file is written."""
    write_json(record_path(file), {"collection_stamp": docstrings.stamp()})


def _make_teacher(at: Paths) -> None:
    _train(TrainConfig(recipe="contrastive", init="minilm", batch_size=BLOCK, **TRAINING), at, at.teacher)


def _make_scores(at: Paths) -> None:
    _check_teacher(at)
    bm25 = at.training / "run.bm25.train.txt"
    run = bm25_search.search(str(at.bm25), docstrings.topics("train"), hits=50, threads=hardware.threads())
    run.write(bm25, overwrite=True)
    groups = read_candidates(at.training / "candidates.jsonl")
    queries, docs = load_texts(groups, docstrings.topics("train"), docstrings.docs())
    teachers = [Teacher("run", str(bm25), BM25_WEIGHT), Teacher("checkpoint", str(at.teacher), TEACHER_WEIGHT)]
    taught = teach(groups, queries, docs, teachers, index=DenseIndex.open(at.teacher_index))
    _stamp(at.training / "scores.parquet")
    write_scores(taught, at.training / "scores.parquet")


def _check_teacher(at: Paths) -> None:
    """Measure the teacher ensemble on dev topics; warn if it does not beat BM25."""
    queries, qrels = docstrings.topics("dev"), docstrings.qrels("dev")
    sparse = bm25_search.search(str(at.bm25), queries, hits=200, threads=hardware.threads())
    dense = searching.dense(*open_with_encoder(at.teacher_index, str(at.teacher)), queries, hits=200)
    together = fusion.interpolation(sparse, dense, alpha=BM25_WEIGHT / (BM25_WEIGHT + TEACHER_WEIGHT))
    measured = {"BM25": sparse, "teacher": dense, "ensemble": together}
    worth = {name: engines.mean(engines.evaluate(run, qrels, ["RR@10"])["RR@10"]) for name, run in measured.items()}
    logger.info("on dev topics, RR@10: %s", ", ".join(f"{name} {value:.4f}" for name, value in worth.items()))
    write_json(at.training / "teacher.json", worth)
    if worth["ensemble"] <= worth["BM25"]:
        logger.warning("WARNING: the teacher does not beat BM25 (%.4f <= %.4f)", worth["ensemble"], worth["BM25"])


def _make_student(at: Paths) -> None:
    config = TrainConfig(recipe="margin-mse", init=str(at.teacher), batch_size=BLOCK, **STUDENT, **TRAINING)
    _train(config, at, at.student, at.training / "scores.parquet")


def _train(config: TrainConfig, at: Paths, output: Path, scores: Path | None = None) -> None:
    candidates = at.training / "candidates.jsonl"
    groups = read_candidates(candidates)
    queries, docs = load_texts(groups, docstrings.topics("train"), docstrings.docs())
    data = {"collection": "pydocs", "topics": "pydocs:train", "candidates_sha256": sha256(candidates)}
    if scores:
        data["scores_sha256"] = sha256(scores)
    known = read_scores(scores, groups) if scores else None
    # overwrite: a saved state from other candidates is useless
    train(config, groups, queries, docs, output, scores=known, data=data, overwrite=True)


def _make_index(encoder: Path, index: Path) -> None:
    dense_build.index_dense(docstrings.docs(), load_encoder(str(encoder)), index, collection="pydocs")


def _make_reranker(at: Paths) -> None:
    """Load the teacher as a ColBERT, which compares its L2-normalised token vectors. No further training."""
    model = loading.load(str(at.teacher), architecture="colbert")
    what = "models/teacher, read as a ColBERT; not trained further"
    saving.save(model, at.reranker, record={"from": what, "from_sha256": checkpoint_folder.fingerprint(at.teacher)})


def late_interaction(at: Paths, run: Run, queries: list[Query]) -> Run:
    """Rerank the top of a run with the reranker."""
    fetch = stored_docs(at.index)
    return reranking.rerank(run, rankers.load(str(at.reranker)), queries, fetch, depth=RERANK_DEPTH, tag="maxsim")


def choose_weights(at: Paths) -> tuple[float, float]:
    """Return the best weights on dev topics: of BM25 in the hybrid and of the hybrid in reranking."""
    chosen = at.training / "weights.json"
    made_from = checkpoint_folder.fingerprint(at.student) + checkpoint_folder.fingerprint(at.reranker)
    if chosen.exists() and (record := read_json(chosen, "weights"))["made_from"] == made_from:
        return float(record["alpha"]), float(record["weight"])
    queries, qrels = docstrings.topics("dev"), docstrings.qrels("dev")
    sparse = bm25_search.search(str(at.bm25), queries, threads=hardware.threads())
    dense = searching.dense(*open_with_encoder(at.index, str(at.student)), queries)
    alpha = tuning.best_alpha(sparse, dense, qrels, ALPHAS, "RR@10")
    hybrid = fusion.interpolation(sparse, dense, alpha=alpha).top(RERANK_DEPTH)
    weight = tuning.best_alpha(hybrid, late_interaction(at, hybrid, queries), qrels, WEIGHTS, "RR@10")
    write_json(chosen, {"made_from": made_from, "topics": "pydocs:dev", "alpha": alpha, "weight": weight})
    return alpha, weight


class Comparison(NamedTuple):
    """Difference of two systems in RR@10, with the p value of a paired t-test."""

    better: str
    worse: str
    difference: float
    p_value: float


class Results(NamedTuple):
    """Results of `demo`: a row per system (name, measures, ms per query, run path) and comparisons."""

    topics: int
    docs: int
    rows: list[list[str | float]]
    comparisons: list[Comparison]


class _Systems:
    """Runs systems on the test topics, writes their runs and keeps their measures."""

    def __init__(self) -> None:
        self.queries, self.qrels = docstrings.topics("test"), docstrings.qrels("test")
        self.rows: list[list[str | float]] = []
        self.values: dict[str, PerQuery] = {}

    @staticmethod
    def path_of(system: str) -> Path:
        return home() / "runs" / f"run.pydocs.{system}.test.txt"

    def measure(self, name: str, system: str, work: Callable[[], Run], made_of: Sequence[str] = ()) -> Run:
        """Run and measure a system. `made_of` names the systems whose runs it uses; their time counts too."""
        begun = time.monotonic()
        run = work()
        seconds = time.monotonic() - begun
        path = self.path_of(system)
        run.write(path, overwrite=True)
        results = engines.evaluate(run, self.qrels, MEASURES)
        means = {measure: engines.mean(values) for measure, values in results.items()}
        config = {"runs": [str(self.path_of(other)) for other in made_of]}
        engine = engines.choose_engine(run)
        write_record(path, config=config, system=name, measures=means, engine=engine, seconds=round(seconds, 2))
        self.values[system] = results["RR@10"]
        milliseconds = run_records.ms_per_query(path, len(self.queries))[0]
        self.rows.append([name, *means.values(), f"{milliseconds:.1f}", str(path)])
        return run


def run_all() -> Results:
    """Make missing parts of the embedded default, run its systems, write their runs and measure them."""
    at = prepare()
    alpha, weight = prepare_reranker(at)
    systems = _Systems()
    queries = systems.queries

    def dense() -> Run:
        return searching.dense(*open_with_encoder(at.index, str(at.student)), queries, tag="student")

    bm25 = systems.measure("BM25", "bm25", lambda: bm25_search.search(str(at.bm25), queries, threads=hardware.threads()))
    student = systems.measure("student, dense", "student", dense)
    systems.measure("hybrid, RRF", "hybrid-rrf", lambda: fusion.rrf([bm25, student], tag="hybrid-rrf"), BOTH)
    name = f"hybrid, {alpha:g} BM25 + {1 - alpha:g} student"
    hybrid = systems.measure(name, "hybrid", lambda: fusion.interpolation(bm25, student, alpha=alpha, tag="hybrid"), BOTH)

    def reranked() -> Run:
        late = late_interaction(at, hybrid, queries)
        return fusion.interpolation(hybrid.top(RERANK_DEPTH), late, alpha=weight, tag="reranked")

    systems.measure(f"reranked, {weight:g} hybrid + {1 - weight:g} MaxSim", "reranked", reranked, ("hybrid",))
    compared = [Comparison(a, b, *engines.compare(systems.values[a], systems.values[b])) for a, b in PAIRS]
    return Results(len(queries), sum(1 for _ in docstrings.docs()), systems.rows, compared)
