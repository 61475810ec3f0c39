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
    asked = teach.read_scores(tmp_path / "s.tsv", [mine.Group("q3", ["eat-cow", "eat-hen"], [1, 0], 0)])
    assert asked == {"q3": {"eat-cow": again["q3"]["eat-cow"]} | ({"eat-hen": s} if (s := again["q3"].get("eat-hen")) else {})}


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


def test_a_killed_teach_goes_on_and_gives_the_same_bytes(tmp_path, monkeypatch, groups, texts, tiny_cross):
    monkeypatch.setattr(teach, "BLOCK", 12)
    score, sizes = inference.score, []

    def counted(model, queries, docs, **settings):
        if len(sizes) == 2:
            raise KeyboardInterrupt
        sizes.append(len(queries))
        return score(model, queries, docs, **settings)

    unbroken, _ = teach.teach(groups, *texts, [str(tiny_cross)], precision="fp32")
    monkeypatch.setattr(inference, "score", counted)
    settings = {"precision": "fp32", "work": tmp_path / "work"}
    with pytest.raises(KeyboardInterrupt):
        teach.teach(groups, *texts, [str(tiny_cross)], **settings)
    sizes[:] = [0] * 5  # no more kills
    resumed, _ = teach.teach(groups, *texts, [str(tiny_cross)], **settings)
    assert sizes[5:] == [12, 12, 2]  # 50 pairs, of which two blocks of 12 were kept
    assert resumed.score.tobytes() == unbroken.score.tobytes()
    sizes[:] = [0] * 5
    teach.teach(groups, *texts, [str(tiny_cross)], **{**settings, "precision": "auto", "batch_size": 3})
    assert sum(sizes[5:]) == 50  # other settings, other scores


def counting(monkeypatch):
    score, sizes = inference.score, []

    def counted(model, queries, docs, **settings):
        sizes.append(len(queries))
        return score(model, queries, docs, **settings)

    monkeypatch.setattr(inference, "score", counted)
    return sizes


def test_pairs_that_a_store_holds_are_not_scored_again(tmp_path, invoke, monkeypatch, files, groups, tiny_cross, tiny_dot):
    mine.write_candidates(groups[:4], tmp_path / "few.jsonl")
    mine.write_candidates(groups, tmp_path / "all.jsonl")
    sizes = counting(monkeypatch)

    def taught(candidates, output, *more, collection=files["docs"], teachers=(tiny_cross,)):
        sizes.clear()
        words = ["--candidates", tmp_path / candidates, "--collection", collection, "--topics", files["topics"], "--precision", "fp32"]
        words += [word for teacher in teachers for word in ("--teacher", teacher)]
        result = invoke(teach.main, *words, "--output", tmp_path / output, *more)
        assert result.exit_code == 0, result.output
        return sum(sizes)

    assert taught("few.jsonl", "few.parquet", teachers=(f"{tiny_cross}@3",)) == 20
    assert taught("all.jsonl", "all.parquet", "--reuse", tmp_path / "few.parquet") == 30  # another weight is the same teacher
    assert taught("all.jsonl", "fresh.parquet") == 50
    reused, fresh = (teach.read_scores(tmp_path / f"{name}.parquet") for name in ("all", "fresh"))
    assert reused.keys() == fresh.keys()
    assert all(reused[q] == pytest.approx(docs, abs=1e-4) for q, docs in fresh.items())
    assert taught("all.jsonl", "again.parquet", "--reuse", tmp_path / "all.parquet", tmp_path / "few.parquet") == 0
    assert taught("all.jsonl", "two.parquet", "--reuse", tmp_path / "all.parquet", teachers=(tiny_dot, tiny_cross)) == 50  # the dot's
    other = tmp_path / "other.jsonl"  # same ids, another text
    other.write_text(open(files["docs"]).read().replace("the cat eats hay", "the cat eats fish"))
    asked = sum("eat-cat" in group.doc_ids for group in groups)
    assert taught("all.jsonl", "other.parquet", "--reuse", tmp_path / "all.parquet", collection=other) == asked
    (tmp_path / "foreign.tsv").write_text("1\t0\tq0\ta\tb\n")
    result = invoke(teach.main, "--candidates", tmp_path / "all.jsonl", "--collection", files["docs"], "--topics", files["topics"],
                    "--teacher", tiny_cross, "--output", tmp_path / "x.parquet", "--reuse", tmp_path / "foreign.tsv")  # fmt: skip
    assert result.exit_code == 2 and "is not a score store of teach" in result.output


def test_kept_blocks_go_only_when_the_store_is_there_and_nothing_foreign_goes(tmp_path, invoke, monkeypatch, files, groups, tiny_cross):
    mine.write_candidates(groups, tmp_path / "c.jsonl")
    words = ["--candidates", tmp_path / "c.jsonl", "--collection", files["docs"], "--topics", files["topics"]]
    words += ["--teacher", tiny_cross, "--output", tmp_path / "s.parquet"]
    work = tmp_path / "s.parquet.partial"
    with monkeypatch.context() as patch:
        patch.setattr(teach, "write_scores", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert invoke(teach.main, *words).exit_code == 2
    assert len(list(work.glob("*/000000.npy"))) == 1
    (work / "mine.txt").write_text("not ours")
    sizes = counting(monkeypatch)
    assert invoke(teach.main, *words).exit_code == 0
    assert sum(sizes) == 0 and [path.name for path in work.iterdir()] == ["mine.txt"]


def test_bounded_teachers_are_refused_or_scaled(tmp_path, invoke, files, groups):
    mine.write_candidates(groups, tmp_path / "c.jsonl")
    Run.from_scores("cosine", {"q0": {"eat-cat": 0.9, "eat-dog": -0.25}}).write(tmp_path / "cosine.txt")
    words = ["--candidates", tmp_path / "c.jsonl", "--collection", files["docs"], "--topics", files["topics"]]
    words += ["--output", tmp_path / "s.parquet"]
    refused = invoke(teach.main, *words, "--teacher-run", tmp_path / "cosine.txt")
    assert refused.exit_code == 2 and "gives scores in [-1, 1]; margins that small teach little: give it a weight, e.g. " in refused.output
    scaled = invoke(teach.main, *words, "--teacher-run", f"{tmp_path / 'cosine.txt'}@20")
    assert scaled.exit_code == 0, scaled.output
    assert teach.read_scores(tmp_path / "s.parquet")["q0"]["eat-cat"] == pytest.approx(18.0)


def test_a_cross_encoder_with_a_sigmoid_in_its_config_gives_raw_logits(tmp_path, groups, texts, tiny_cross):
    import json
    import shutil

    bounded = shutil.copytree(tiny_cross, tmp_path / "bounded")
    config = json.loads((bounded / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    (bounded / "config.json").write_text(json.dumps(config))
    raw, _ = teach.teach(groups, *texts, [str(tiny_cross)], precision="fp32")
    found, _ = teach.teach(groups, *texts, [str(bounded)], precision="fp32")
    assert found.score.tobytes() == raw.score.tobytes()
    assert (raw.score < 0).any() or (raw.score > 1).any()


def test_mined_and_taught_passages(tmp_path, invoke, files, tiny_dot):
    base = ["--collection", files["docs"], "--topics", files["topics"], "--segment", "4:2"]
    mined = ["--qrels", files["qrels"], "--negatives", 0, "--shared", 5, "--output", tmp_path / "c.jsonl"]
    result = invoke(mine.main, *base, *mined)
    assert result.exit_code == 0, result.output
    groups = {g.query_id: g for g in mine.read_candidates(tmp_path / "c.jsonl")}
    assert [d for d, label in zip(groups["q0"].doc_ids, groups["q0"].labels, strict=True) if label] == [
        "eat-cat#0", "eat-cat#1", "eat-cat#2"]  # fmt: skip
    taught = ["--candidates", tmp_path / "c.jsonl", "--output", tmp_path / "s.parquet", "--teacher", tiny_dot]
    result = invoke(teach.main, *base, *taught)
    assert result.exit_code == 0 and "150 pairs" in result.output, result.output
    assert not (tmp_path / "s.parquet.partial").exists()
    result = invoke(teach.main, *base, *taught, "--overwrite", "--segment", "4")
    assert result.exit_code == 2 and "WORDS:STRIDE" in result.output


def test_a_teacher_that_does_not_beat_the_first_stage_is_not_distilled_in_silence(tmp_path, invoke, files, groups, caplog):
    mine.write_candidates(groups, tmp_path / "c.jsonl")
    good = Run.from_scores("good", {f"q{n}": {g: 2.0, "sleep-pig": 1.0} for n, g in enumerate(EATS)})
    bad = Run.from_scores("bad", {f"q{n}": {g: 1.0, "sleep-pig": 2.0} for n, g in enumerate(EATS)})
    good.write(tmp_path / "good.txt")
    bad.write(tmp_path / "bad.txt")
    base = ["--candidates", tmp_path / "c.jsonl", "--collection", files["docs"], "--topics", files["topics"], "--overwrite"]
    base += ["--output", tmp_path / "s.parquet", "--check-topics", files["topics"], "--check-qrels", files["qrels"]]
    result = invoke(teach.main, *base, "--teacher-run", tmp_path / "good.txt", "--check-run", tmp_path / "bad.txt")
    assert "check RR@10 of the top 20: 0.5000 -> 1.0000 (p = 0.0000)" in result.output, result.output
    assert "do not beat" not in caplog.text
    result = invoke(teach.main, *base, "--teacher-run", tmp_path / "bad.txt", "--check-run", tmp_path / "good.txt")
    assert result.exit_code == 0 and "1.0000 -> 0.5000" in result.output, result.output
    assert "do not beat the first stage in RR@10" in caplog.text and "in nDCG@10" in caplog.text
    result = invoke(teach.main, *base, "--teacher-run", tmp_path / "bad.txt")
    assert result.exit_code == 2 and "belong together" in result.output


def test_check_figures_stand_in_the_record(tmp_path, invoke, files, groups):
    import json

    import pyarrow.parquet as pq

    mine.write_candidates(groups, tmp_path / "c.jsonl")
    for name, right in (("good", 2.0), ("bad", 1.0)):
        scores = {f"q{n}": {g: right, "sleep-pig": 3.0 - right} for n, g in enumerate(EATS)}
        Run.from_scores(name, scores).write(tmp_path / f"{name}.txt")
    base = ["--candidates", tmp_path / "c.jsonl", "--collection", files["docs"], "--topics", files["topics"]]
    base += ["--output", tmp_path / "s.parquet", "--check-topics", files["topics"], "--check-qrels", files["qrels"]]
    result = invoke(teach.main, *base, "--teacher-run", tmp_path / "good.txt", "--check-run", tmp_path / "bad.txt")
    assert result.exit_code == 0, result.output
    record = json.loads(pq.read_schema(tmp_path / "s.parquet").metadata[b"pyserini_kd"])
    assert record["check"]["RR@10"] == {"first_stage": 0.5, "teachers": 1.0, "p": pytest.approx(0.0, abs=1e-9)}


EATS = [f"eat-{name}" for name in ["cat", "dog", "horse", "cow", "sheep", "goat", "duck", "goose", "hen", "pig"]]
