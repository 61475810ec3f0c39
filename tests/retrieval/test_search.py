"""The search command: sparse, dense, hybrid, reranked; records."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pyserini_kd import search
from pyserini_kd.data import sources
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Query
from pyserini_kd.evaluation import engines
from pyserini_kd.retrieval import fusion
from pyserini_kd.storage.errors import InputError
from tests.conftest import as_ranker, rerank_by_name, search_by_name


@pytest.fixture
def dense(files, dense_index, tiny_dot, tmp_path):
    return ["--index", dense_index, "--encoder", tiny_dot, "--topics", files["topics"], "--output", tmp_path / "run.txt"]


def test_dense_run_record_and_measures(invoke, dense, files, tmp_path, queries, dense_index, tiny_dot):
    result = invoke(search.main, *dense, "--qrels", files["qrels"], "--hits", 5, "--runtag", "mine")
    assert result.exit_code == 0, result.output
    run = Run.read(tmp_path / "run.txt")
    assert run.tag == "mine" and run.n_hits == 50
    expected = search_by_name(queries, str(dense_index), str(tiny_dot), hits=5)
    assert all(run[q].doc_ids == expected[q].doc_ids for q in expected)
    record = json.loads((tmp_path / "run.json").read_text())
    assert (
        record["write_seconds"] >= 0
        and record["config"]["hits"] == 5
        and record["measures"]["RR@10"]
        == pytest.approx(engines.mean(engines.evaluate(run, {f"q{n}": {r: 1} for n, r in enumerate(EATS)}, ["RR@10"])["RR@10"]))
    )
    assert "RR@10" in result.output and f"{record['measures']['RR@10']:.4f}" in result.output


EATS = [f"eat-{name}" for name in ["cat", "dog", "horse", "cow", "sheep", "goat", "duck", "goose", "hen", "pig"]]


def test_sparse(invoke, files, bm25_index, tmp_path, queries):
    words = ["--encoder", "bm25", "--index", bm25_index, "--topics", files["topics"], "--output", tmp_path / "b.txt"]
    result = invoke(search.main, *words, "--qrels", files["qrels"])
    assert result.exit_code == 0, result.output
    run = Run.read(tmp_path / "b.txt")
    assert [run[f"q{n}"].doc_ids[0] for n in range(10)] == EATS  # one such document has the animal's name
    assert invoke(search.main, *words, "--overwrite", "--rm3", "--k1", 1.2, "--b", 0.75).exit_code == 0


@pytest.mark.parametrize("method", ["rrf", "interpolation"])
def test_hybrid_is_the_fusion_of_both(invoke, dense, bm25_index, dense_index, tiny_dot, tmp_path, queries, method):
    own, others = [("--rrf.k", 20), ("--alpha", 0.3)][:: 1 if method == "rrf" else -1]
    for words in (("--sparse-index", bm25_index, "--fusion", method, *own, *others), own, ("--depth", 5)):
        wrong = invoke(search.main, *dense, *words)
        assert wrong.exit_code == 2 and any(f"{option}: is for" in wrong.output for option in ("--alpha", "--rrf.k", "--depth"))
    result = invoke(search.main, *dense, "--sparse-index", bm25_index, "--fusion", method, *own)
    assert result.exit_code == 0, result.output
    both = search_by_name(queries, str(bm25_index), "bm25"), search_by_name(queries, str(dense_index), str(tiny_dot))
    expected = fusion.rrf(both, rrf_k=20) if method == "rrf" else fusion.interpolation(*both, alpha=0.3)
    run = Run.read(tmp_path / "run.txt")
    for query_id in expected:
        assert run[query_id].doc_ids == expected[query_id].doc_ids
        assert np.allclose(run[query_id].scores, expected[query_id].scores, rtol=1e-6)
    assert "0.3 * sparse" in (tmp_path / "run.json").read_text() or method == "rrf"


def test_a_single_query_does_not_load_trectools(invoke, dense_index, bm25_index, tiny_dot, tmp_path, monkeypatch):
    words = ["--index", dense_index, "--encoder", tiny_dot, "--sparse-index", bm25_index, "--hits", 5]
    (tmp_path / "one.tsv").write_text("1\twhat the cat eats\n")
    assert invoke(search.main, *words, "--topics", tmp_path / "one.tsv", "--output", tmp_path / "topics.txt").exit_code == 0
    monkeypatch.setattr(fusion, "_rrf_by_trectools", None)
    result = invoke(search.main, *words, "--query", "what the cat eats", "--output", tmp_path / "query.txt")
    assert result.exit_code == 0, result.output
    one, other = (Run.read(tmp_path / f"{name}.txt")["1"] for name in ("topics", "query"))
    assert one.doc_ids == other.doc_ids and np.allclose(one.scores, other.scores, rtol=1e-6)


def test_rerank_in_the_same_command(invoke, dense, tiny_cross, tmp_path, queries, dense_index, tiny_dot):
    result = invoke(search.main, *dense, "--rerank", tiny_cross, "--depth", 4)
    assert result.exit_code == 0, result.output
    expected = rerank_by_name(
        search_by_name(queries, str(dense_index), str(tiny_dot)), queries, str(dense_index), str(tiny_cross), depth=4
    )
    run = Run.read(tmp_path / "run.txt")
    assert run.tag == tiny_cross.name and {q: run[q].doc_ids for q in run} == {q: expected[q].doc_ids for q in expected}


def test_one_query_shows_titles_and_snippets(invoke, dense_index, tiny_dot, bm25_index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(search.main, "--index", bm25_index, "--encoder", "bm25", "--query", "what the goose eats", "--hits", 2)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split()[0] == "1" and lines[0].split()[2:] == ["eat-goose", "Goose"]
    assert "the goose eats hay and drinks water" in lines[1]
    assert len(lines) == 4 and not list(tmp_path.iterdir())  # shows, writes nothing
    result = invoke(search.main, "--index", dense_index, "--encoder", tiny_dot, "--query", "goose")
    assert result.exit_code == 0 and len(result.output.splitlines()) == 20


def test_msmarco_format_remove_query_and_blank_queries(invoke, dense_index, tiny_dot, tmp_path, caplog):
    (tmp_path / "t.tsv").write_text("eat-cat\tthe cat eats\nblank\t \n")
    words = ["--index", dense_index, "--encoder", tiny_dot, "--topics", tmp_path / "t.tsv", "--output", tmp_path / "r.tsv"]
    result = invoke(search.main, *words, "--output-format", "msmarco", "--remove-query")
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "r.tsv").read_text().splitlines()
    assert len(lines) == 19 and lines[0].split("\t")[0::2] == ["eat-cat", "1"]
    assert not any(line.split("\t")[1] == "eat-cat" for line in lines)
    assert "blank queries" in caplog.text


def test_default_output_name(invoke, dense, tmp_path, monkeypatch):
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path / "home"))
    words = dense[:-2]
    assert invoke(search.main, *words).exit_code == 0
    assert invoke(search.main, *words).exit_code == 0  # a default-named run is replaced
    assert [p.name for p in sorted((tmp_path / "home" / "runs").iterdir())] == [
        "run.corpus.tiny.tiny-dot.topics.json", "run.corpus.tiny.tiny-dot.topics.txt",
    ]  # fmt: skip


def test_deliberate_mismatch_is_allowed(invoke, dense):
    assert invoke(search.main, *dense, "--pooling", "cls", "--ignore-encoder-mismatch").exit_code == 0


@pytest.mark.slow
def test_an_existing_embedded_default_needs_no_arguments(tmp_path, tiny_dot, monkeypatch):
    """`python -m pyserini_kd.search --encoder student` with a small replacement for the demo's models."""
    from pyserini_kd.data import docstrings
    from pyserini_kd.models.rankers import load_encoder
    from pyserini_kd.retrieval import dense_build

    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path))
    shutil.copytree(tiny_dot, tmp_path / "models" / "student")
    docs = [doc for doc in docstrings.docs() if docstrings.split_of(doc.doc_id.rsplit(".", 1)[0]) == "test"][:50]
    dense_build.index_dense(
        docs, as_ranker(load_encoder(str(tiny_dot)), tiny_dot), tmp_path / "indexes" / "pydocs.student", collection="pydocs"
    )
    (tmp_path / "indexes" / "pydocs.bm25").mkdir()
    done = subprocess.run([sys.executable, "-m", "pyserini_kd.search", "--encoder", "student"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = Run.read(tmp_path / "runs" / "run.pydocs.student.test.txt")
    assert set(run) == {query.query_id for query in docstrings.topics("test")}
    assert "RR@10" in done.stdout


def test_the_current_folder_has_a_name_in_run_names(dense_index, tiny_dot, files, invoke, monkeypatch, tmp_path):
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path))
    shutil.copytree(tiny_dot, tmp_path / "my student")
    monkeypatch.chdir(tmp_path / "my student")
    result = invoke(search.main, "--index", dense_index, "--encoder", ".", "--topics", files["topics"])
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "runs").glob("*.txt")
    assert ".my_student." in path.name and Run.read(path).tag == "my_student"


def test_names_of_pyserini_topic_sets_may_have_dots(tmp_path, monkeypatch):
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path))
    asked = []
    monkeypatch.setattr(sources, "read_topic_set", lambda name: asked.append(name) or [Query("1", "what is this")])
    for name in ("msmarco-v1-passage.dev", "beir-v1.0.0-scifact-test"):
        assert sources.topics(name) == sources.topics(name) == [Query("1", "what is this")]  # once from Java, then from disk
    assert asked == ["msmarco-v1-passage.dev", "beir-v1.0.0-scifact-test"]
    with pytest.raises(InputError, match="topics not found: topics.dev.tsv"):  # a missing file needs no Java
        sources.topics("topics.dev.tsv")
    assert len(asked) == 2


def test_dense_search_starts_no_java(dense, tmp_path):
    code = f"""
import sys
from click.testing import CliRunner
from pyserini_kd import search
words = {[str(word) for word in dense]!r}
result = CliRunner().invoke(search.main, words)
assert result.exit_code == 0, result.output
result = CliRunner().invoke(search.main, [*words[:4], "--query", "what the goose eats"])  # with titles, from our own folder
assert result.exit_code == 0 and "the goose eats hay" in result.output, result.output
assert "jnius" not in sys.modules and "pyserini" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_api_takes_queries_or_names(files, dense_index, tiny_dot, queries):
    by_name = search_by_name(files["topics"], str(dense_index), str(tiny_dot), hits=3)
    assert dict(by_name).keys() == {q.query_id for q in queries}
    one = search_by_name([Query("x", "the cat")], str(dense_index), str(tiny_dot), hits=3)
    assert len(one["x"].doc_ids) == 3


@pytest.mark.parametrize("encoder", ["dense", "bm25"])
def test_passages_are_indexed_and_come_back_as_documents(invoke, files, tiny_dot, tmp_path, encoder):
    from pyserini_kd import index

    name = tiny_dot if encoder == "dense" else "bm25"
    words = ["--collection", files["docs"], "--encoder", name, "--index", tmp_path / "cut"]
    result = invoke(index.main, *words, "--segment", "4:2")
    assert result.exit_code == 0, result.output
    base = ["--index", tmp_path / "cut", "--encoder", name, "--topics", files["topics"], "--hits", 12]
    assert invoke(search.main, *base, "--output", tmp_path / "passages.txt").exit_code == 0
    if encoder == "dense":
        assert (
            invoke(index.main, "--collection", files["docs"], "--encoder", "bm25", "--index", tmp_path / "words").exit_code == 0
        )
        result = invoke(search.main, *base, "--sparse-index", tmp_path / "words", "--output", tmp_path / "no.txt")
        assert (
            result.exit_code == 2
            and "cut holds passages (4:2), " in result.output
            and "words holds whole documents" in result.output
        )
    options = ["--max-passage", "--max-passage-hits", 3]
    assert invoke(search.main, *base, *options, "--output", tmp_path / "documents.txt").exit_code == 0
    cut, whole = Run.read(tmp_path / "passages.txt"), Run.read(tmp_path / "documents.txt")
    for query_id in cut:
        best: dict = {}
        for doc_id, score in zip(*cut[query_id], strict=True):
            best[doc_id.partition("#")[0]] = max(score, best.get(doc_id.partition("#")[0], score))
        expected = sorted(best.items(), key=lambda item: (item[1], item[0]), reverse=True)[:3]
        assert list(zip(*whole[query_id], strict=True)) == expected
    for wrong, word in (
        (["--max-passage-hits", 3], "needs --max-passage"),
        (["--max-passage", "--max-passage-delimiter", ""], "is empty"),
        (["--max-passage-hits", 0, "--max-passage"], "--max-passage-hits"),
    ):
        result = invoke(search.main, *base, *wrong, "--output", tmp_path / "no.txt")
        assert result.exit_code == 2 and word in result.output, result.output
    assert invoke(index.main, *words, "--overwrite", "--segment", "2:4").exit_code == 2
