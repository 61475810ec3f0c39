"""Teacher scores: the mean of weighted raw scores, the store, the published file."""

import json
import shutil

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyserini_kd import mine, teach
from pyserini_kd.data.runs import Run
from pyserini_kd.distillation import mining, teacher_scores, teaching, text_store
from pyserini_kd.distillation.candidates import Group, read_candidates, write_candidates
from pyserini_kd.distillation.teacher_scores import Pairs, Scores
from pyserini_kd.distillation.teaching import Teacher
from pyserini_kd.models import checkpoint_folder, loading, rankers
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.storage import arrays
from pyserini_kd.storage.errors import InputError
from tests.conftest import score


@pytest.fixture
def groups(queries, qrels, corpus):
    return mining.mine(queries, qrels, [], corpus, negatives=0, shared=5).groups


@pytest.fixture
def texts(groups, queries, corpus):
    return text_store.load_texts(groups, queries, corpus)


@pytest.fixture
def run_file(tmp_path):
    Run.from_scores("bm25", {"q0": {"eat-cat": 7.5, "eat-dog": 2.5}}).write(tmp_path / "run.txt")
    return f"{tmp_path / 'run.txt'}"


def listed(pairs):
    """Positions of pairs, and the pairs."""
    return [place for place, *_ in pairs], [(query_id, doc_id) for _, query_id, doc_id in pairs]


def by_pair(taught):
    return {(query_id, doc_id): taught.score[place] for place, query_id, doc_id in taught.pairs}


def checkpoints(*names):
    return [Teacher.parse("checkpoint", str(name)) for name in names]


def test_ensemble_is_the_mean_of_weighted_raw_scores(groups, texts, tiny_dot, tiny_cross, run_file):
    teachers = [f"{tiny_dot}@2", tiny_cross]
    taught = teaching.teach(groups, *texts, [Teacher("run", run_file, 0.5), *checkpoints(*teachers)], precision="fp32")
    queries, docs = texts
    places, pairs = listed(taught.pairs)
    asked = [queries[q] for q, _ in pairs], [docs[d] for _, d in pairs]
    dot, cross = (score(loading.load(str(t)), *asked, precision="fp32") for t in (tiny_dot, tiny_cross))
    known = {("q0", "eat-cat"): 7.5, ("q0", "eat-dog"): 2.5}
    run = np.array([known.get(pair, 0.0) for pair in pairs])
    assert np.allclose(taught.score[places], (2 * dot + cross + 0.5 * run) / 3, rtol=1e-5, atol=1e-5)
    assert pairs == list(dict.fromkeys((g.query_id, d) for g in groups for d in g.doc_ids)) and len(taught.score) == 50
    assert taught.record["teachers"][0]["absent"] >= 48
    assert taught.record["teachers"][1]["sha256"] == checkpoint_folder.fingerprint(tiny_dot)


def test_a_weight_follows_the_last_at_sign():
    assert Teacher.parse("run", "a@b@2.5") == Teacher("run", "a@b", 2.5)
    assert Teacher.parse("checkpoint", "models/a") == Teacher("checkpoint", "models/a", None)
    for wrong in ("a@", "a@b", "a@nan"):
        with pytest.raises(InputError, match=f"teacher {wrong}: the weight after @ must be a number"):
            Teacher.parse("run", wrong)


def test_vectors_of_an_index_give_the_same_scores(groups, texts, tiny_dot, dense_index):
    fresh = teaching.teach(groups, *texts, checkpoints(tiny_dot), precision="fp32")
    stored = teaching.teach(groups, *texts, checkpoints(tiny_dot), precision="fp32", index=DenseIndex.open(dense_index))
    assert np.allclose(fresh.score, stored.score, atol=1e-4)


def test_store_and_published_file(tmp_path, groups, texts, tiny_dot):
    taught = teaching.teach(groups, *texts, checkpoints(tiny_dot))
    teacher_scores.write_scores(taught, tmp_path / "s.parquet")
    scores = teacher_scores.read_scores(tmp_path / "s.parquet", groups)
    assert scored(scores, groups) == by_pair(taught)
    count = text_store.write_triples(scores.each(groups), tmp_path / "s.tsv")
    lines = (tmp_path / "s.tsv").read_text().splitlines()
    assert count == len(lines) == 40
    pos_score, neg_score, query_id, pos, neg = lines[0].split("\t")
    known = scored(scores, groups)
    assert [np.float32(pos_score), np.float32(neg_score)] == [known[query_id, pos], known[query_id, neg]]
    assert scored(teacher_scores.read_scores(tmp_path / "s.tsv", groups), groups) == known
    asked = [Group("q3", ["eat-cow", "eat-none", "eat-hen"], [1, 0, 0], 0)]
    few = teacher_scores.read_scores(tmp_path / "s.tsv", asked)
    assert len(few) == 3 and few.of(asked[0])[0] == known["q3", "eat-cow"]
    assert [*map(np.isnan, few.of(asked[0]))] == [False, True, ("q3", "eat-hen") not in known]


def scored(scores, groups):
    return {(g.query_id, d): score for g in groups for d, score in zip(g.doc_ids, scores.of(g), strict=True)}


def test_pairs_are_those_of_groups_each_once_in_order(groups, monkeypatch):
    again = [*groups, groups[0]._replace(doc_ids=[groups[0].doc_ids[2], "new", groups[0].doc_ids[0]])]
    expected = list(dict.fromkeys((g.query_id, d) for g in again for d in g.doc_ids))
    pairs = Pairs(again)
    places, found = listed(pairs)
    assert found == expected and len(pairs) == len(expected) == 51 and sorted(places) == list(range(51))
    blocks = list(pairs.blocks(20))
    assert [len(block.places) for block in blocks] == [20, 20, 11]
    assert [place for block in blocks for place in block.places] == places
    assert [pair for block in blocks for pair in zip(block.query_ids, block.doc_ids, strict=True)] == expected
    assert list(Pairs([])) == [] and not list(Pairs([]).blocks(5))
    scores = Scores(pairs, np.arange(51, dtype=np.float32)).each(again)
    numbers = [expected[places.index(int(number))] for _, own in scores for number in own]
    assert numbers == [(g.query_id, d) for g in again for d in g.doc_ids]


@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=5, unique=True), max_size=30))
@settings(max_examples=40, deadline=None)
def test_pairs_in_files_are_those_in_memory(tmp_path_factory, drawn):
    groups = [Group(f"q{min(own)}", [f"d{n}" for n in own], [], -1) for own in drawn]
    expected = list(dict.fromkeys((g.query_id, d) for g in groups for d in g.doc_ids))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "SPAN", 7)
        patch.setattr("pyserini_kd.distillation.teacher_scores.GROUPS", 3)
        pairs = Pairs(groups, tmp_path_factory.mktemp("columns"))
        places, found = listed(pairs)
        assert found == expected and len(pairs) == len(expected)
        scores = Scores(pairs, np.arange(len(pairs), dtype=np.float32))
        assert [(g, [(g.query_id, d) for d in g.doc_ids]) for g in groups] == [
            (group, [expected[places.index(int(n))] for n in own]) for group, own in scores.each(groups)
        ]


def test_columns_keep_their_values_and_use_no_memory(tmp_path):
    kept = arrays.column(tmp_path / "new", 3_000_000, np.int64)
    assert not list((tmp_path / "new").iterdir())  # the file has no name
    assert not kept.any() and kept.base.size() == 24_000_000
    kept[:] = np.arange(3_000_000)
    before = resident()
    arrays.let_go(kept)
    assert resident() < before - 20_000_000
    assert (kept == np.arange(3_000_000)).all()
    held = arrays.column(None, 3, np.float32)
    held[1] = 2
    arrays.let_go(held)
    assert held.tolist() == [0, 2, 0]


def resident():
    return psutil.Process().memory_info().rss


def test_block_size_does_not_change_scores(tmp_path, groups, queries, corpus, tiny_dot, dense_index, run_file, monkeypatch):
    texts = text_store.load_texts(groups, queries, corpus)
    on_disk = text_store.load_texts(groups, queries, corpus, tmp_path / "texts")
    assert [dict(some) for some in on_disk] == [{q: texts[0][q] for q in on_disk[0]}, texts[1]]
    stored = {"index": DenseIndex.open(dense_index)}
    teachers = [Teacher("run", run_file), *checkpoints(tiny_dot)]
    whole = [teaching.teach(groups, *texts, teachers, precision="fp32", **more) for more in ({}, stored)]
    monkeypatch.setattr(teaching, "BLOCK", 7)
    monkeypatch.setattr(teacher_scores, "WRITTEN", 11)
    for one, more in zip(whole, ({}, stored), strict=True):
        cut = teaching.teach(groups, *on_disk, teachers, precision="fp32", **more)
        assert cut.texts.tolist() == one.texts.tolist() and np.allclose(cut.score, one.score, atol=1e-4)
        teacher_scores.write_scores(cut, tmp_path / "s.parquet", overwrite=True)
        known = scored(teacher_scores.read_scores(tmp_path / "s.parquet", groups), groups)
        assert known == by_pair(cut)


def test_negative_margins_are_kept_and_the_last_score_of_a_pair_counts(tmp_path):
    (tmp_path / "s.tsv").write_text("-1.5\t2.25\t007\tNA\t0010\n9\t9\t7\tNA\t0010\n-1.75\t3\t007\tNA\t11\n")
    group = Group("007", ["NA", "0010"], [1, 0], 0)
    scores = teacher_scores.read_scores(tmp_path / "s.tsv", [group])
    assert scores.of(group) == [-1.75, 2.25] and scores.largest() == 2.25 and scores.missing() == 0


def test_command(tmp_path, invoke, files, groups, tiny_dot):
    write_candidates(groups, tmp_path / "c.jsonl")
    base = ["--candidates", tmp_path / "c.jsonl", "--collection", files["docs"], "--topics", files["topics"]]
    out = ["--output", tmp_path / "s.parquet", "--triples", tmp_path / "s.tsv"]
    Run.from_scores("other", {"elsewhere": {"eat-cat": 9.0}}).write(tmp_path / "other.txt")
    result = invoke(teach.main, *base, *out, "--teacher", tiny_dot)
    assert result.exit_code == 0 and "50 pairs" in result.output and "40 triples" in result.output, result.output
    for wrong, word in (
        (["--teacher", tiny_dot], "exists"),
        (["--overwrite"], "--teacher"),
        (["--overwrite", "--teacher", "minilm"], "[-1, 1]"),
        (["--overwrite", "--teacher", f"{tiny_dot}@much"], "must be a number"),
        (["--overwrite", "--teacher-run", tmp_path / "no.txt"], "not found"),
        (
            ["--overwrite", "--teacher-run", tmp_path / "other.txt"],
            "none of the 50 candidate pairs; use a run of the same topics",
        ),
        (["--overwrite", "--teacher", tiny_dot, "--reuse", tmp_path / "no.parquet"], "Error: score store not found: "),
    ):
        result = invoke(teach.main, *base, *out, *wrong)
        assert result.exit_code == 2 and word in result.output, result.output


def counting(monkeypatch):
    score, sizes = rankers.Scorer.score, []

    def counted(model, queries, docs, **settings):
        sizes.append(len(queries))
        return score(model, queries, docs, **settings)

    monkeypatch.setattr(rankers.Scorer, "score", counted)
    return sizes


def test_pairs_that_a_store_holds_are_not_scored_again(tmp_path, invoke, monkeypatch, files, groups, tiny_cross, tiny_dot):
    write_candidates(groups[:4], tmp_path / "few.jsonl")
    write_candidates(groups, tmp_path / "all.jsonl")
    sizes = counting(monkeypatch)

    def taught(candidates, output, *more, collection=files["docs"], teachers=(tiny_cross,)):
        sizes.clear()
        words = [
            "--candidates",
            tmp_path / candidates,
            "--collection",
            collection,
            "--topics",
            files["topics"],
            "--precision",
            "fp32",
        ]
        words += [word for teacher in teachers for word in ("--teacher", teacher)]
        result = invoke(teach.main, *words, "--output", tmp_path / output, *more)
        assert result.exit_code == 0, result.output
        return sum(sizes)

    assert taught("few.jsonl", "few.parquet", teachers=(f"{tiny_cross}@3",)) == 20
    assert taught("all.jsonl", "all.parquet", "--reuse", tmp_path / "few.parquet") == 30  # same teacher with another weight
    assert taught("all.jsonl", "fresh.parquet") == 50
    reused, fresh = (
        scored(teacher_scores.read_scores(tmp_path / f"{name}.parquet", groups), groups) for name in ("all", "fresh")
    )
    assert len(fresh) == 50 and reused == pytest.approx(fresh, abs=1e-4)
    assert taught("all.jsonl", "again.parquet", "--reuse", tmp_path / "all.parquet", tmp_path / "few.parquet") == 0
    renamed = shutil.copytree(tiny_cross, tmp_path / "renamed")  # the same weights by another name
    assert taught("all.jsonl", "renamed.parquet", "--reuse", tmp_path / "all.parquet", teachers=(renamed,)) == 0
    assert (
        taught("all.jsonl", "two.parquet", "--reuse", tmp_path / "all.parquet", teachers=(tiny_dot, tiny_cross)) == 50
    )  # pairs of the bert_dot
    other = tmp_path / "other.jsonl"  # same ids, another text
    other.write_text(open(files["docs"]).read().replace("the cat eats hay", "the cat eats fish"))
    asked = sum("eat-cat" in group.doc_ids for group in groups)
    assert taught("all.jsonl", "other.parquet", "--reuse", tmp_path / "all.parquet", collection=other) == asked
    (tmp_path / "foreign.tsv").write_text("1\t0\tq0\ta\tb\n")
    result = invoke(teach.main, "--candidates", tmp_path / "all.jsonl", "--collection", files["docs"], "--topics", files["topics"],
                    "--teacher", tiny_cross, "--output", tmp_path / "x.parquet", "--reuse", tmp_path / "foreign.tsv")  # fmt: skip
    assert result.exit_code == 2 and "is not a score store of teach" in result.output


def test_a_file_of_scores_is_a_teacher(tmp_path, invoke, files, groups, tiny_cross, tiny_dot):
    write_candidates(groups, tmp_path / "c.jsonl")
    words = ["--candidates", tmp_path / "c.jsonl", "--collection", files["docs"], "--topics", files["topics"]]
    for name, teachers in (("cross", [tiny_cross]), ("dot", [tiny_dot]), ("both", [tiny_cross, f"{tiny_dot}@0.5"])):
        asked = [word for teacher in teachers for word in ("--teacher", teacher)]
        out = ["--output", tmp_path / f"{name}.parquet", "--triples", tmp_path / f"{name}.tsv"]
        assert invoke(teach.main, *words, *asked, *out).exit_code == 0
    expected = scored(teacher_scores.read_scores(tmp_path / "both.parquet", groups), groups)
    for name in ("cross.parquet", "cross.tsv"):
        more = [
            "--teacher-scores",
            tmp_path / name,
            "--teacher",
            f"{tiny_dot}@0.5",
            "--output",
            tmp_path / f"of.{name}.parquet",
        ]
        result = invoke(teach.main, *words, *more)
        assert result.exit_code == 0, result.output
        found = teacher_scores.read_scores(tmp_path / f"of.{name}.parquet", groups)
        assert scored(found, groups) == pytest.approx(expected, abs=1e-5)
    (tmp_path / "few.tsv").write_text("".join((tmp_path / "cross.tsv").read_text().splitlines(keepends=True)[:3]))
    (tmp_path / "small.tsv").write_text(
        "".join(f"0.5\t-0.5\t{line.split(chr(9), 2)[2]}" for line in open(tmp_path / "cross.tsv"))
    )
    for file, message in (("few.tsv", "lacks 46 of 50 candidate pairs"), ("small.tsv", "[-1, 1]")):
        result = invoke(teach.main, *words, "--teacher-scores", tmp_path / file, "--output", tmp_path / "x.parquet")
        assert result.exit_code == 2 and message in result.output, result.output


def test_known_scores_lie_in_files_if_a_folder_is_given(tmp_path, monkeypatch):
    """The scores of 1,000 pairs, in order of their hashes: NumPy's own sort is the oracle."""
    rng = np.random.default_rng(0)
    texts, score = rng.integers(0, 2**63, 1000).astype(np.uint64), rng.normal(size=1000).astype(np.float32)
    record = json.dumps({"teachers": [{"name": "run"}, {"name": "a", "architecture": "bert_dot", "weight": 2.0}]})
    table = pa.table({"texts": texts, "score": score, "raw:run": -score, "raw:a": 2 * score})
    pq.write_table(table.replace_schema_metadata({"pyserini_kd": record}), tmp_path / "s.parquet")
    monkeypatch.setattr(teacher_scores, "WRITTEN", 300)
    monkeypatch.setattr(arrays, "SPAN", 70)
    order = np.argsort(texts)
    for scratch in (None, tmp_path / "scratch"):
        store = teacher_scores.ScoreStore(tmp_path / "s.parquet")
        (known,) = store.known(scratch)  # scores of runs are not kept
        keys, scores = known.scores
        assert known.teacher == {"architecture": "bert_dot"} and isinstance(keys, np.memmap) == bool(scratch)
        assert np.array_equal(keys, texts[order]) and np.array_equal(scores, 2 * score[order])
        found = store.ensemble(scratch).find(np.append(texts[:500], np.uint64(2**63 + 1)))
        assert np.array_equal(found[:500], score[:500]) and np.isnan(found[500])


def test_a_cross_encoder_with_a_sigmoid_in_its_config_gives_raw_logits(tmp_path, groups, texts, tiny_cross):
    import json
    import shutil

    bounded = shutil.copytree(tiny_cross, tmp_path / "bounded")
    config = json.loads((bounded / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    (bounded / "config.json").write_text(json.dumps(config))
    raw = teaching.teach(groups, *texts, checkpoints(tiny_cross), precision="fp32")
    found = teaching.teach(groups, *texts, checkpoints(bounded), precision="fp32")
    assert found.score.tobytes() == raw.score.tobytes()
    assert (raw.score < 0).any() or (raw.score > 1).any()


def test_mined_and_taught_passages(tmp_path, invoke, files, tiny_dot):
    base = ["--collection", files["docs"], "--topics", files["topics"], "--segment", "4:2"]
    mined = ["--qrels", files["qrels"], "--negatives", 0, "--shared", 5, "--output", tmp_path / "c.jsonl"]
    result = invoke(mine.main, *base, *mined)
    assert result.exit_code == 0, result.output
    groups = {g.query_id: g for g in read_candidates(tmp_path / "c.jsonl")}
    assert [d for d, label in zip(groups["q0"].doc_ids, groups["q0"].labels, strict=True) if label] == [
        "eat-cat#0", "eat-cat#1", "eat-cat#2"]  # fmt: skip
    taught = ["--candidates", tmp_path / "c.jsonl", "--output", tmp_path / "s.parquet", "--teacher", tiny_dot]
    result = invoke(teach.main, *base, *taught)
    assert result.exit_code == 0 and "150 pairs" in result.output, result.output
    assert not (tmp_path / "s.parquet.partial").exists()
    result = invoke(teach.main, *base, *taught, "--overwrite", "--segment", "4")
    assert result.exit_code == 2 and "WORDS:STRIDE" in result.output


def test_a_teacher_that_does_not_beat_the_first_stage_causes_a_warning(tmp_path, invoke, files, groups, caplog):
    write_candidates(groups, tmp_path / "c.jsonl")
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
    assert result.exit_code == 2 and "give all three or none" in result.output


def test_check_figures_are_in_the_record(tmp_path, invoke, files, groups):
    import json

    import pyarrow.parquet as pq

    write_candidates(groups, tmp_path / "c.jsonl")
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
