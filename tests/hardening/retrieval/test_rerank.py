"""Reranking against missing texts and interruptions."""

import json

import pytest

from pyserini_kd import rerank, search
from pyserini_kd.data.runs import Run
from pyserini_kd.evaluation import run_records
from pyserini_kd.models import engine, loading
from pyserini_kd.retrieval import reranking, text_sources
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import alone
from tests.conftest import as_ranker
from tests.retrieval.test_rerank import first


def test_missing_documents_and_queries(first, queries, corpus, tiny_dot):
    model = loading.load(str(tiny_dot))
    with pytest.raises(InputError, match="1 documents are not in the collection"):
        reranking.rerank(first, as_ranker(model), queries, text_sources.fetch_from(corpus[1:]), depth=5)
    with pytest.raises(InputError, match="1 queries of the run are not among the topics, e.g. q0"):
        reranking.rerank(first, as_ranker(model), queries[1:], text_sources.fetch_from(corpus))
    with pytest.raises(InputError, match="not found"):
        reranking.rerank(first, as_ranker(model), queries, text_sources.fetch_from("no-such-index"))


def test_a_killed_reranking_resumes(tmp_path, invoke, first, files, tiny_cross, monkeypatch, caplog):
    """Chunks of 7 of the 100 pairs; the sixth batch fails; other settings or pairs start from the beginning."""
    first.write(tmp_path / "first.txt")
    base = [
        "--run",
        tmp_path / "first.txt",
        "--encoder",
        tiny_cross,
        "--topics",
        files["topics"],
        "--collection",
        files["docs"],
    ]
    words, work = [*base, "--depth", 10, "--output", tmp_path / "out.txt"], tmp_path / "out.txt.partial"
    monkeypatch.setattr(engine, "CHUNK", 7)
    assert invoke(rerank.main, *base, "--depth", 10, "--output", tmp_path / "whole.txt").exit_code == 0
    computed, pad = [], engine.pad_arrays

    def counted(records, *more):
        if len(computed) == stop:
            raise MemoryError
        computed.append(len(records))
        return pad(records, *more)

    monkeypatch.setattr(engine, "pad_arrays", counted)
    stop = 12  # two batches in each of six chunks
    assert isinstance(invoke(rerank.main, *words).exception, MemoryError)
    kept = sum(computed)
    assert not (tmp_path / "out.txt").exists() and len(list(work.glob("*/*/*.npy"))) == 6 and kept < 100
    with alone(work, "rerank"):
        result = invoke(rerank.main, *words)
        assert result.exit_code == 2 and f"another rerank is at work in {work}" in result.output
    for other in (["--batch-size", 7], ["--depth", 9]):
        computed.clear()
        assert isinstance(invoke(rerank.main, *words, *other).exception, MemoryError) and len(computed) == 12
    assert len(list(work.glob("*"))) == 2 and len(list(work.glob("*/*"))) == 3
    computed.clear()
    stop = None
    caplog.set_level("INFO")
    assert invoke(rerank.main, *words).exit_code == 0
    assert sum(computed) == 100 - kept and f"resuming: {kept} of 100 pairs are already scored" in caplog.text
    assert (tmp_path / "out.txt").read_bytes() == (tmp_path / "whole.txt").read_bytes()
    assert not list(tmp_path.glob("*.partial"))
    first.write(tmp_path / "first.txt", overwrite=True)
    for name in ("whole", "out"):  # the time of the killed process is unknown
        assert json.loads((tmp_path / f"{name}.json").read_text()).get("resumed", False) == (name == "out")
    (tmp_path / "first.json").write_text('{"seconds": 1}')
    assert run_records.seconds_of(tmp_path / "whole.txt")[0] > 1
    assert run_records.seconds_of(tmp_path / "out.txt")[1].endswith("since its reranking resumed")


def test_a_search_killed_during_reranking_resumes(tmp_path, invoke, files, bm25_index, tiny_cross, monkeypatch, caplog):
    words = ["--encoder", "bm25", "--index", bm25_index, "--topics", files["topics"], "--rerank", tiny_cross, "--output"]
    monkeypatch.setattr(engine, "CHUNK", 7)
    assert invoke(search.main, *words, tmp_path / "whole.txt").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Run, "write", lambda *_, **__: 1 / 0)  # fails last: everything is scored
        assert isinstance(invoke(search.main, *words, tmp_path / "out.txt").exception, ZeroDivisionError)
    assert list(tmp_path.glob("out.txt.partial/*/*/*.npy"))
    monkeypatch.setattr(engine, "pad_arrays", lambda *_: 1 / 0)  # nothing is left to compute
    caplog.set_level("INFO")
    assert invoke(search.main, *words, tmp_path / "out.txt").exit_code == 0 and "pairs are already scored" in caplog.text
    assert json.loads((tmp_path / "out.json").read_text())["resumed"] is True
    assert (tmp_path / "out.txt").read_bytes() == (tmp_path / "whole.txt").read_bytes()
    assert not list(tmp_path.glob("*.partial"))
