"""Each caveat speaks up where a number misleads, with the right counts, and is silent elsewhere."""

import pytest

from pyserini_kd.data import docstrings, formats
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Query
from pyserini_kd.evaluation.caveats import of_depths, of_levels, of_ranks, of_run, of_training
from pyserini_kd.storage.records import write_json


def run_of(scores, n_queries=10):
    return Run.from_scores("t", {f"q{n}": {f"d{i}": s for i, s in enumerate(scores)} for n in range(n_queries)})


def qrels_of(judged, n_queries=10):
    return {f"q{n}": dict(judged) for n in range(n_queries)}


DISTINCT = [float(-i) for i in range(20)]
POOLED = {f"d{i}": i % 2 for i in range(10)}


# ------------------------------------------------------------------------------------------------------ of a run


def test_a_clean_run_has_none():
    assert of_run(run_of(DISTINCT), qrels_of(POOLED)) == []


def test_ties_at_the_top():
    tied = run_of([1.0, 1.0, *DISTINCT])
    assert of_run(tied, qrels_of(POOLED | {"d10": 0, "d11": 0})) == [
        "10 of 10 queries have tied scores in the top 10; document ids decide their order"
    ]


def test_a_tie_across_the_cut_counts_and_one_below_does_not():
    across = [*DISTINCT[:9], -9.0, -9.0]
    assert "10 of 10 queries have tied scores" in of_run(run_of(across), qrels_of(POOLED))[0]
    below = [*DISTINCT[:11], -11.0, -11.0]
    assert of_run(run_of(below), qrels_of(POOLED)) == []


def test_few_ties_are_no_matter():
    scores = {f"q{n}": {"a": 2.0, "b": 2.0 if n < 2 else 1.0} for n in range(20)}
    judged = qrels_of({"a": 1, "b": 0}, 20)
    assert of_run(Run.from_scores("t", scores), judged) == []  # 2 of 20 is the limit
    scores["q2"]["b"] = 2.0
    assert of_run(Run.from_scores("t", scores), judged) == [
        "3 of 20 queries have tied scores in the top 10; document ids decide their order"
    ]


def test_scores_equal_as_float32_are_ties():
    assert "tied" in of_run(run_of([1.0, 1.0 - 1e-9, *DISTINCT]), qrels_of(POOLED | {"d10": 0, "d11": 0}))[0]


def test_holes_in_the_judgements():
    holes = qrels_of({f"d{i}": i % 2 for i in range(7)})
    assert of_run(run_of(DISTINCT), holes) == [
        "only 70 of 100 documents in the top 10 are judged; the others count as irrelevant"
    ]
    assert of_run(run_of(DISTINCT), qrels_of({f"d{i}": i % 2 for i in range(8)})) == []
    assert of_run(run_of(DISTINCT[:5]), holes) == []  # 5 of 5


def test_judgements_of_answers_only_have_no_holes():
    assert of_run(run_of(DISTINCT), qrels_of({"d3": 1})) == []


def test_missing_queries():
    assert of_run(run_of(DISTINCT, 7), qrels_of(POOLED)) == ["lacks 3 of 10 judged queries, e.g. q7; they count as 0"]
    assert of_run(run_of(DISTINCT, 12), qrels_of(POOLED)) == []  # unjudged ones are no matter


def test_judgements_of_other_documents():
    other = qrels_of({"x3": 1})
    assert of_run(run_of(DISTINCT), other) == [
        "holds no judged document, e.g. not x3: are the judgements of another collection?"
    ]
    assert of_run(run_of(DISTINCT), other | {"q1": {"d19": 1}}) == []


def test_ranks_against_scores(tmp_path):
    def said(*scores):
        lines = (f"{q} Q0 d{n} {n} {score} t\n" for q in ("q1", "q2") for n, score in enumerate(scores, start=1))
        (tmp_path / "run.txt").write_text("# a comment\n" + "".join(lines))
        return of_ranks(tmp_path / "run.txt")

    assert said(0.1, 0.2, 0.2, 0.5) == [
        "better ranks have lower scores (first query); the measures use the scores, not the ranks"
    ]
    assert said(0.5, 0.2, 0.1) == said(0.5, 0.6, 0.1) == said(1, 1) == said(1.5) == []


# --------------------------------------------------------------------------------------------------- of the depth


def test_runs_of_different_depth():
    depths = {"a.txt": 100, "b.txt": 1000, "c.txt": 1000}
    assert of_depths(depths, ["nDCG@10", "AP", "R@100", "R@1000", "Judged@200"]) == [
        "runs differ in depth, from 100 hits per query (a.txt) to 1000 (b.txt); deeper runs have an advantage in AP, R@1000"
    ]
    assert of_depths(depths, ["nDCG@10", "R@100"]) == []
    assert of_depths({"a.txt": 1000, "b.txt": 1000}, ["AP", "R@1000", "Rprec"]) == []


def test_measures_deeper_than_every_run():
    assert of_depths({"a.txt": 100}, ["AP", "R@100", "R@1000"]) == [
        "no run has more than 100 hits per query, but R@1000 would use more"
    ]


# --------------------------------------------------------------------------------------------------- of the levels

DL = {"q1": {"a": 0, "b": 3, "c": 2}, "q2": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    ("qrels", "measures", "preset", "expected"),
    [
        (DL, ["AP(rel=2)"], "dl19", []),
        (DL, ["AP"], None, []),
        (DL, ["RR@10"], "beir", []),
        ({"q1": {"a": 1}}, ["RR@10"], "msmarco", []),
        ({"q1": {"a": 1, "b": 0}}, ["RR@10"], "msmarco", []),
        (DL, [], "msmarco", ["the judgements do not fit preset msmarco with grades 0 to 1: 2 of grade 2, 1 of grade 3"]),
        ({"q": {"a": -2, "b": 3, "c": 4}}, [], "dl20", ["the judgements do not fit preset dl20 with grades 0 to 3: 1 of grade -2, 1 of grade 4"]),
        ({"q1": {"a": 1}}, ["nDCG@10"], "dl20", ["the judgements do not fit preset dl20 with grades 0 to 3: the highest grade is 1"]),
        (DL, ["AP(rel=4)", "nDCG@10", "P(rel=3)@5", "Judged@10", "RBP(rel=5)"], None, ["no judgement reaches the level of AP(rel=4), RBP(rel=5): the highest grade is 3"]),
        ({"q": {"a": 0}}, ["AP", "nDCG@10"], None, ["no judgement reaches the level of AP: the highest grade is 0"]),
    ],
)  # fmt: skip
def test_levels(qrels, measures, preset, expected):
    assert of_levels(qrels, measures, preset) == expected


# ---------------------------------------------------------------------------------------------- of training topics


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A student trained on train.tsv, and two runs by it: of the training topics, and of others with the same ids."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYSERINI_KD_HOME", raising=False)
    formats.write_topics([Query("1", "what cats eat"), Query("2", "what dogs eat")], tmp_path / "train.tsv")
    formats.write_topics(
        [Query("1", "where cats sleep"), Query("2", "what dogs eat"), Query("3", "hens")], tmp_path / "test.tsv"
    )
    trained("student", "train.tsv")
    return tmp_path


def trained(name, topics):
    write_json(f"models/{name}/training.json", {"recipe": "margin-mse", "data": {"collection": "docs.jsonl", "topics": topics}})


def written(name, query_ids, **config):
    run = Run.from_scores("t", {query_id: {"a": 1.0} for query_id in query_ids})
    run.write(name, overwrite=True)
    write_json(name.replace(".txt", ".json"), {"command": "pyserini-kd search", "config": config})
    return run


def test_training_topics_are_found_by_id_and_text(here):
    run = written("run.txt", ["1", "2"], encoder="student", topics="train.tsv", rerank=None)
    assert of_training("run.txt", run, "qrels.txt") == ["holds 2 training topics of student (train.tsv)"]
    run = written("run.txt", ["1", "2", "3"], encoder="models/student", topics="test.tsv")
    assert of_training("run.txt", run, "qrels.txt") == ["holds 1 training topics of models/student (train.tsv)"]
    run = written("run.txt", ["1", "3"], encoder="student", topics="test.tsv")
    assert of_training("run.txt", run, "qrels.txt") == []


def test_without_their_texts_ids_decide(here):
    run = written("run.txt", ["2", "3"], encoder="student", topics="ir_datasets:else/where")
    assert of_training("run.txt", run, "qrels.txt") == ["holds 1 training topics of student (train.tsv)"]


def test_the_runs_and_models_behind_a_run_count_too(here):
    trained("reranker", "train.tsv")
    written("first.txt", ["2"], encoder="student", topics="train.tsv")
    written("reranked.txt", ["2"], encoder="bm25", rerank="reranker", run="first.txt")
    run = written("fused.txt", ["2"], runs=["reranked.txt", "none.txt", "fused.txt"], method="rrf")
    assert of_training("fused.txt", run, "qrels.txt") == [
        "holds 1 training topics of reranker (train.tsv)",
        "holds 1 training topics of student (train.tsv)",
    ]


def test_embedded_topics(here, monkeypatch):
    monkeypatch.setattr(docstrings, "topics", lambda split: [Query("numpy.sort", f"{split} topic")])
    trained("student", "pydocs:train")
    run = written("run.txt", ["numpy.sort"], encoder="student", topics="pydocs:train")
    assert of_training("run.txt", run, "pydocs:train") == ["holds 1 training topics of student (pydocs:train)"]
    run = written("run.txt", ["numpy.sort"], encoder="student", topics="pydocs:test")
    assert of_training("run.txt", run, "pydocs:test") == []
