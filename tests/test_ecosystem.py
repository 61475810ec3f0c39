"""With the real counterparts: Pyserini reads what we write, and we read what Pyserini writes."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pyserini_kd.data import formats, java
from pyserini_kd.data.runs import Run
from pyserini_kd.models import QueryEncoder
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.retrieval import bm25_search, searching
from pyserini_kd.retrieval.dense_index import DenseIndex
from tests.conftest import EMPTY_LISTS, as_ranker

LAUNCH = """
import runpy, sys
from pyserini_kd.data.java import start_jvm
start_jvm()
sys.argv = {argv!r}
runpy.run_module({module!r}, run_name="__main__")
"""


def pyserini(module, *words):
    """Run one of Pyserini's own commands, started so that it works with the Java of the wheel."""
    argv = [module, *map(str, words)]
    script = EMPTY_LISTS + LAUNCH.format(argv=argv, module=module)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def same(run, other, tolerance=1e-4):
    """Equal scores at every rank, and the same document there unless its neighbours' scores are closer than 1e-4."""
    assert set(run) == set(other)
    for query_id in run:
        a, b = run[query_id], other[query_id]
        assert np.allclose(a.scores, b.scores, atol=tolerance, rtol=1e-5)
        scores = dict(zip(a.doc_ids, a.scores, strict=True))
        last = a.scores[-1]
        for position, doc_id in enumerate(b.doc_ids):
            assert abs(scores.get(doc_id, last) - a.scores[position]) < 1e-4
        assert all(b.scores[b.doc_ids.index(d)] - last < 1e-4 for d in set(b.doc_ids) - set(a.doc_ids))


@pytest.fixture(scope="module")
def ours(dense_index, tiny_dot, queries):
    return searching.dense(
        DenseIndex.open(dense_index), as_ranker(load_encoder(str(tiny_dot)), precision="fp32"), queries, hits=10
    )


@pytest.mark.parametrize("encoder", ["ours", "AutoQueryEncoder"])
def test_faiss_searcher_opens_our_index(dense_index, tiny_dot, queries, ours, encoder):
    java.start_jvm()
    from pyserini.encode import AutoQueryEncoder
    from pyserini.search.faiss import FaissSearcher

    if encoder == "ours":
        query_encoder = QueryEncoder(str(tiny_dot), precision="fp32")
    else:
        query_encoder = AutoQueryEncoder(encoder_dir=str(tiny_dot), pooling="mean", l2_norm=False)
    searcher = FaissSearcher(str(dense_index), query_encoder)
    found = searcher.batch_search([q.text for q in queries], [q.query_id for q in queries], k=10)
    theirs = Run.from_hits("p", ((q, [h.docid for h in hits], [h.score for h in hits]) for q, hits in found.items()))
    same(ours, theirs)


def test_we_open_an_index_that_pyserini_encoded(tmp_path, corpus, queries, tiny_dot):
    (tmp_path / "corpus").mkdir()
    with open(tmp_path / "corpus" / "docs.jsonl", "w") as out:
        out.writelines(json.dumps({"id": doc.doc_id, "text": doc.contents}) + "\n" for doc in corpus)
    pyserini(
        "pyserini.encode", "input", "--corpus", tmp_path / "corpus", "--fields", "text",
        "output", "--embeddings", tmp_path / "faiss", "--to-faiss",
        "encoder", "--encoder", tiny_dot, "--encoder-class", "auto", "--fields", "text", "--pooling", "mean",
        "--dimension", "32", "--device", "cpu", "--batch-size", "1", "--max-length", "24",
    )  # fmt: skip
    formats.write_topics(queries, tmp_path / "topics.tsv")
    opened = DenseIndex.open(tmp_path / "faiss")
    assert opened.manifest is None
    run = searching.dense(opened, as_ranker(load_encoder(str(tiny_dot)), precision="fp32"), queries, hits=10)
    pyserini(
        "pyserini.search.faiss", "--index", tmp_path / "faiss", "--topics", tmp_path / "topics.tsv", "--encoder", tiny_dot,
        "--encoder-class", "auto", "--pooling", "mean", "--output", tmp_path / "run.txt", "--hits", "10", "--device", "cpu",
    )  # fmt: skip
    same(run, Run.read(tmp_path / "run.txt"))


def test_bm25_is_pyserini_s(tmp_path, bm25_index, queries):
    formats.write_topics(queries, tmp_path / "topics.tsv")
    pyserini("pyserini.search.lucene", "--index", bm25_index, "--topics", tmp_path / "topics.tsv", "--output", tmp_path / "run.txt",
             "--bm25", "--hits", "10")  # fmt: skip
    same(bm25_search.search(str(bm25_index), queries, hits=10), Run.read(tmp_path / "run.txt"))


def test_our_runs_go_through_pyserini_fusion_and_trec_eval(tmp_path, ours, bm25_index, queries, qrels):
    from pyserini_kd.evaluation import engines
    from pyserini_kd.retrieval import fusion

    sparse = bm25_search.search(str(bm25_index), queries, hits=10)
    ours.write(tmp_path / "a.txt")
    sparse.write(tmp_path / "b.txt")
    formats.write_qrels(qrels, tmp_path / "qrels.txt")
    pyserini("pyserini.fusion", "--runs", tmp_path / "a.txt", tmp_path / "b.txt", "--output", tmp_path / "f.txt",
             "--method", "interpolation", "--alpha", "0.3")  # fmt: skip
    same(fusion.interpolation(ours, sparse, alpha=0.3), Run.read(tmp_path / "f.txt"))
    printed = pyserini("pyserini.eval.trec_eval", "-c", "-m", "map", tmp_path / "qrels.txt", tmp_path / "a.txt")
    theirs = float(next(line for line in printed.splitlines() if line.startswith("map")).split()[-1])
    assert theirs == pytest.approx(engines.mean(engines.evaluate(ours, qrels, ["AP"])["AP"]), abs=5e-5)


def test_folders_named_to_mislead_pyserini_are_fine(tmp_path, tiny_dot, dense_index, queries, ours):
    """Pyserini picks an encoder class by substrings of the path ('ance' in 'balanced'); we do not."""
    import shutil

    folder = tmp_path / "balanced-dpr-student"
    shutil.copytree(tiny_dot, folder)
    run = searching.dense(
        DenseIndex.open(dense_index), as_ranker(load_encoder(str(folder)), precision="fp32"), queries, hits=10
    )
    same(ours, run)
