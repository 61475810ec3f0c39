"""Teacher scores against kills, two commands at once, damaged stores, faulty files and values that are not finite."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyserini_kd import teach
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc
from pyserini_kd.distillation import teacher_scores, teaching, teaching_files, text_store
from pyserini_kd.distillation.candidates import write_candidates
from pyserini_kd.models import rankers
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.retrieval import dense_build
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import alone
from tests.conftest import as_ranker, training_data
from tests.distillation.test_teach import checkpoints, counting, groups, scored, texts


@pytest.mark.parametrize("wrong", [np.inf, np.nan])
def test_scores_that_are_not_finite_are_not_kept(tmp_path, groups, texts, tiny_dot, monkeypatch, wrong):
    score = rankers.Scorer.score
    monkeypatch.setattr(
        rankers.Scorer, "score", lambda *given, **more: np.append(score(*given, **more)[:-1], np.float32(wrong))
    )
    last = groups[-1].query_id
    with pytest.raises(InputError, match=f"1 scores are not finite, e.g. query {last}, document .*; try precision fp32"):
        teaching.teach(groups, *texts, checkpoints(tiny_dot), precision="fp32", work=tmp_path / "work")
    assert not any((tmp_path / "work").iterdir())


def test_inexact_vectors_are_refused_as_a_teacher(tmp_path, groups, texts, tiny_dot, corpus):
    dense_build.index_dense(corpus, as_ranker(load_encoder(str(tiny_dot)), tiny_dot), tmp_path / "x", kind="SQ8")
    with pytest.raises(InputError, match="has no exact vectors; give a Flat index"):
        teaching.teach(groups, *texts, checkpoints(tiny_dot), index=DenseIndex.open(tmp_path / "x"))
    dense_build.index_dense([Doc("more", "", "the hen")], as_ranker(load_encoder(str(tiny_dot)), tiny_dot), tmp_path / "y")
    (tmp_path / "x" / "manifest.json").unlink()  # its type is unknown
    for folders in ((tmp_path / "x",), (tmp_path / "y", tmp_path / "x")):
        with pytest.raises(InputError, match="has no exact vectors"):
            teaching.teach(groups, *texts, checkpoints(tiny_dot), index=DenseIndex.open(*folders))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\t2\t3\n", ":1: expected .* found 3"),
        ("a\t2\tq\tp\tn\n", ":1: .* must be scores"),
        ("nan\t2\tq\tp\tn\n", ":1: .* finite"),
    ],
)
def test_bad_score_files(tmp_path, line, message):
    (tmp_path / "s.tsv").write_text(line)
    with pytest.raises(InputError, match=message):
        teacher_scores.read_scores(tmp_path / "s.tsv", [])
    (tmp_path / "s.parquet").write_text("no parquet")
    with pytest.raises(InputError, match="not a score store"):
        teacher_scores.read_scores(tmp_path / "s.parquet", [])
    table = {"query_id": ["q", "q"], "doc_id": ["a", "b"], "score": pa.array([1.0, None], pa.float32())}
    pq.write_table(pa.table(table), tmp_path / "s.parquet")
    with pytest.raises(InputError, match="must be finite"):
        teacher_scores.read_scores(tmp_path / "s.parquet", [])


def test_missing_texts_are_counted(groups, queries, corpus):
    with pytest.raises(InputError, match="1 documents of the candidates are not in the collection, e.g. eat-cat"):
        text_store.load_texts(groups, queries, corpus[1:])
    with pytest.raises(InputError, match="1 queries of the candidates are not among the topics, e.g. q0"):
        text_store.load_texts(groups, queries[1:], corpus)


def test_a_killed_teach_resumes_and_gives_the_same_bytes(tmp_path, monkeypatch, groups, texts, tiny_cross):
    monkeypatch.setattr(teaching, "BLOCK", 12)
    score, sizes = rankers.Scorer.score, []

    def counted(model, queries, docs, **settings):
        if len(sizes) == 2:
            raise KeyboardInterrupt
        sizes.append(len(queries))
        return score(model, queries, docs, **settings)

    unbroken = teaching.teach(groups, *texts, checkpoints(tiny_cross), precision="fp32")
    monkeypatch.setattr(rankers.Scorer, "score", counted)
    settings = {"precision": "fp32", "work": tmp_path / "work"}
    with pytest.raises(KeyboardInterrupt):
        teaching.teach(groups, *texts, checkpoints(tiny_cross), **settings)
    sizes[:] = [0] * 5  # no more kills
    resumed = teaching.teach(groups, *texts, checkpoints(tiny_cross), **settings)
    assert sizes[5:] == [12, 12, 2]  # 50 pairs; two blocks of 12 were kept
    assert resumed.score.tobytes() == unbroken.score.tobytes()
    sizes[:] = [0] * 5
    teaching.teach(groups, *texts, checkpoints(tiny_cross), **{**settings, "precision": "auto", "batch_size": 3})
    assert sum(sizes[5:]) == 50  # other settings, other scores


def test_kept_blocks_are_removed_after_the_store_and_foreign_files_stay(
    tmp_path, invoke, monkeypatch, files, groups, tiny_cross
):
    write_candidates(groups, tmp_path / "c.jsonl")
    words = ["--candidates", tmp_path / "c.jsonl", "--collection", files["docs"], "--topics", files["topics"]]
    words += ["--teacher", tiny_cross, "--output", tmp_path / "s.parquet"]
    work = tmp_path / "s.parquet.partial"
    with monkeypatch.context() as patch:
        patch.setattr(
            teaching_files, "write_scores", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        assert invoke(teach.main, *words).exit_code == 2
    assert len(list(work.glob("*/000000.npy"))) == 1
    (work / "mine.txt").write_text("not ours")
    sizes = counting(monkeypatch)
    assert invoke(teach.main, *words).exit_code == 0
    assert sum(sizes) == 0 and [path.name for path in work.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("where", ["score_checkpoint", "write_scores", "write_triples"])
def test_an_interrupted_teach_leaves_nothing_half_written(tmp_path, invoke, monkeypatch, files, groups, tiny_dot, where):
    write_candidates(groups, tmp_path / "c.jsonl")
    words = [
        "--candidates",
        tmp_path / "c.jsonl",
        "--collection",
        files["docs"],
        "--topics",
        files["topics"],
        "--teacher",
        tiny_dot,
    ]
    words += ["--output", tmp_path / "s.parquet", "--triples", tmp_path / "s.tsv"]
    before = {path.name for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        if where == "write_triples":  # after its first lines
            patch.setattr(text_store, "pairs", lambda group, real=text_store.pairs: (_ for _ in ()).throw(KeyboardInterrupt)
                          if group == groups[3] else real(group))  # fmt: skip
        elif where == "write_scores":
            patch.setattr(teacher_scores, "WRITTEN", 7)
            import pyarrow.parquet as pq

            written, write = [], pq.ParquetWriter.write_table

            def broken(self, table):
                written.append(1)
                if len(written) == 3:
                    raise KeyboardInterrupt
                return write(self, table)

            patch.setattr(pq.ParquetWriter, "write_table", broken)
        else:
            patch.setattr(rankers.Scorer, "score", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        result = invoke(teach.main, *words)
    assert result.exit_code == 130 and "Interrupted" in result.output, result.output
    left = {path.name for path in tmp_path.iterdir()} - before
    assert left <= {"s.parquet.partial", *(["s.parquet"] if where == "write_triples" else [])}
    assert not list(tmp_path.glob("s.parquet.partial/scratch"))
    result = invoke(teach.main, *words, *(["--overwrite"] if where == "write_triples" else []))
    assert result.exit_code == 0 and "40 triples" in result.output, result.output
    assert {path.name for path in tmp_path.iterdir()} - before == {"s.parquet", "s.tsv"}


def test_scores_of_other_texts_and_damaged_stores_are_refused_as_teachers(tmp_path, invoke, files, groups, tiny_cross):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_candidates(groups, tmp_path / "c.jsonl")
    words = ["--candidates", tmp_path / "c.jsonl", "--topics", files["topics"]]
    made = invoke(
        teach.main, *words, "--collection", files["docs"], "--teacher", tiny_cross, "--output", tmp_path / "s.parquet"
    )
    assert made.exit_code == 0, made.output
    other = tmp_path / "other.jsonl"  # the same ids, another text
    other.write_text(open(files["docs"]).read().replace("the cat eats hay", "the cat eats fish"))
    taught = [*words, "--collection", other, "--output", tmp_path / "x.parquet"]
    asked = sum("eat-cat" in group.doc_ids for group in groups)
    result = invoke(teach.main, *taught, "--teacher-scores", tmp_path / "s.parquet")
    assert result.exit_code == 2 and f"lacks {asked} of 50 candidate pairs or has other texts" in result.output
    table = {"query_id": ["q0"], "doc_id": ["eat-cat"]}
    pq.write_table(pa.table(table | {"score": ["high"]}), tmp_path / "text.parquet")
    pq.write_table(pa.table(table | {"score": [float("inf")]}), tmp_path / "inf.parquet")
    pq.write_table(
        pa.table({"texts": pa.array([1], pa.uint64())}).replace_schema_metadata({"pyserini_kd": "no"}), tmp_path / "no.parquet"
    )
    for name, message in (("text", "not a score store"), ("inf", "scores must be finite")):
        with pytest.raises(InputError, match=message):
            teacher_scores.read_scores(tmp_path / f"{name}.parquet", groups)
    for name in ("text", "no"):
        with pytest.raises(InputError, match="not a score store"):
            teacher_scores.ScoreStore(tmp_path / f"{name}.parquet").known()


def test_two_teach_commands_at_once_are_refused(tmp_path, invoke, files, groups, tiny_cross):
    write_candidates(groups, tmp_path / "c.jsonl")
    words = ["--candidates", tmp_path / "c.jsonl", *training_data(files), "--teacher", tiny_cross]
    with alone(tmp_path / "s.parquet.partial", "teach"):
        result = invoke(teach.main, *words, "--output", tmp_path / "s.parquet")
        assert result.exit_code == 2 and "another teach is at work in" in result.output
    assert invoke(teach.main, *words, "--output", tmp_path / "s.parquet").exit_code == 0
    assert not (tmp_path / "s.parquet.partial").exists()


def test_an_error_inside_the_lock_is_not_reported_as_another_teach(tmp_path):
    with pytest.raises(BlockingIOError), alone(tmp_path / "s.parquet.partial", "teach"):
        raise BlockingIOError  # e.g. from a non-blocking standard output
    assert not (tmp_path / "s.parquet.partial").exists()


def test_bounded_teachers_are_refused_or_scaled(tmp_path, invoke, files, groups):
    write_candidates(groups, tmp_path / "c.jsonl")
    Run.from_scores("cosine", {"q0": {"eat-cat": 0.9, "eat-dog": -0.25}}).write(tmp_path / "cosine.txt")
    words = ["--candidates", tmp_path / "c.jsonl", "--collection", files["docs"], "--topics", files["topics"]]
    words += ["--output", tmp_path / "s.parquet"]
    refused = invoke(teach.main, *words, "--teacher-run", tmp_path / "cosine.txt")
    assert refused.exit_code == 2 and "gives scores in [-1, 1], too small to teach; add a weight, e.g. " in refused.output
    scaled = invoke(teach.main, *words, "--teacher-run", f"{tmp_path / 'cosine.txt'}@20")
    assert scaled.exit_code == 0, scaled.output
    assert scored(teacher_scores.read_scores(tmp_path / "s.parquet", groups), groups)["q0", "eat-cat"] == pytest.approx(18.0)
