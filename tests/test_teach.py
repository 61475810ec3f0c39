"""Teacher scores: the mean of weighted raw scores, the store, the published file, refusals."""

import numpy as np
import pytest

from pyserini_kd import index, inference, mine, teach
from pyserini_kd.files import InputError
from pyserini_kd.models import checkpoints
from pyserini_kd.runs import Run


@pytest.fixture
def groups(queries, qrels, corpus):
    return mine.mine(queries, qrels, [], corpus, negatives=0, shared=5).groups


@pytest.fixture
def texts(groups, queries, corpus):
    return teach.load_texts(groups, queries, corpus)


@pytest.fixture
def run_file(tmp_path):
    Run.from_scores("bm25", {"q0": {"eat-cat": 7.5, "eat-dog": 2.5}}).write(tmp_path / "run.txt")
    return f"{tmp_path / 'run.txt'}"


def test_ensemble_is_the_mean_of_weighted_raw_scores(groups, texts, tiny_dot, tiny_cross, run_file):
    teachers = [f"{tiny_dot}@2", str(tiny_cross)]
    taught, record = teach.teach(groups, *texts, teachers, [f"{run_file}@0.5"], precision="fp32")
    queries, docs = texts
    asked = [queries[q] for q in taught.query_ids], [docs[d] for d in taught.doc_ids]
    dot, cross = (inference.score(checkpoints.load(str(t)), *asked, precision="fp32") for t in (tiny_dot, tiny_cross))
    known = {("q0", "eat-cat"): 7.5, ("q0", "eat-dog"): 2.5}
    run = np.array([known.get(pair, 0.0) for pair in zip(taught.query_ids, taught.doc_ids, strict=True)])
    assert np.allclose(taught.score, (2 * dot + cross + 0.5 * run) / 3, rtol=1e-5, atol=1e-5)
    assert len(taught.score) == len(set(zip(taught.query_ids, taught.doc_ids, strict=True))) == 50
    assert record["teachers"][0]["absent"] >= 48
    assert record["teachers"][1]["sha256"] == checkpoints.fingerprint(tiny_dot)


def test_vectors_of_an_index_give_the_same_scores(groups, texts, tiny_dot, dense_index):
    fresh, _ = teach.teach(groups, *texts, [str(tiny_dot)], precision="fp32")
    stored, _ = teach.teach(groups, *texts, [str(tiny_dot)], precision="fp32", index=index.DenseIndex.load(dense_index))
    assert np.allclose(fresh.score, stored.score, atol=1e-4)


def test_store_and_published_file(tmp_path, groups, texts, tiny_dot):
    taught, record = teach.teach(groups, *texts, [str(tiny_dot)])
    teach.write_scores(taught, tmp_path / "s.parquet", record)
    scores = teach.read_scores(tmp_path / "s.parquet")
    assert scores[taught.query_ids[3]][taught.doc_ids[3]] == taught.score[3]
    count = teach.write_triples(groups, scores, tmp_path / "s.tsv")
    lines = (tmp_path / "s.tsv").read_text().splitlines()
    assert count == len(lines) == 40
    pos_score, neg_score, query_id, pos, neg = lines[0].split("\t")
    assert np.float32(pos_score) == np.float32(scores[query_id][pos])
    assert np.float32(neg_score) == np.float32(scores[query_id][neg])
    again = teach.read_scores(tmp_path / "s.tsv")
    assert {q: {d: np.float32(s) for d, s in docs.items()} for q, docs in again.items()} == scores
    assert [(g.query_id, *g.doc_ids) for g in teach.groups_of_triples(tmp_path / "s.tsv")][0] == (query_id, pos, neg)


def test_negative_margins_are_kept(tmp_path):
    (tmp_path / "s.tsv").write_text("-1.5\t2.25\t007\tNA\t0010\n")
    assert teach.read_scores(tmp_path / "s.tsv") == {"007": {"NA": -1.5, "0010": 2.25}}


@pytest.mark.parametrize(
    ("line", "message"),
    [("1\t2\t3\n", ":1: expected .* found 3"), ("a\t2\tq\tp\tn\n", ":1: .* must be scores"), ("nan\t2\tq\tp\tn\n", ":1: .* finite")],
)
def test_bad_score_files(tmp_path, line, message):
    (tmp_path / "s.tsv").write_text(line)
    with pytest.raises(InputError, match=message):
        teach.read_scores(tmp_path / "s.tsv")
    (tmp_path / "s.parquet").write_text("no parquet")
    with pytest.raises(InputError, match="not a score store"):
        teach.read_scores(tmp_path / "s.parquet")


def test_missing_texts_are_counted(groups, queries, corpus):
    with pytest.raises(InputError, match="1 documents of the candidates are not in the collection, e.g. eat-cat"):
        teach.load_texts(groups, queries, corpus[1:])
    with pytest.raises(InputError, match="1 queries of the candidates are not among the topics, e.g. q0"):
        teach.load_texts(groups, queries[1:], corpus)


def test_command(tmp_path, invoke, files, groups, tiny_dot):
    mine.write_candidates(groups, tmp_path / "c.jsonl")
    base = ["--candidates", tmp_path / "c.jsonl", "--collection", files["docs"], "--topics", files["topics"]]
    out = ["--output", tmp_path / "s.parquet", "--triples", tmp_path / "s.tsv"]
    result = invoke(teach.main, *base, *out, "--teacher", tiny_dot)
    assert result.exit_code == 0 and "50 pairs" in result.output and "40 triples" in result.output, result.output
    for wrong, word in (
        (["--teacher", tiny_dot], "exists"),
        (["--overwrite"], "--teacher"),
        (["--overwrite", "--teacher", "minilm"], "[-1, 1]"),
        (["--overwrite", "--teacher", f"{tiny_dot}@much"], "must be a number"),
        (["--overwrite", "--teacher-run", tmp_path / "no.txt"], "not found"),
    ):
        result = invoke(teach.main, *base, *out, *wrong)
        assert result.exit_code == 2 and word in result.output, result.output
