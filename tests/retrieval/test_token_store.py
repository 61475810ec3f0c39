"""Stored representations give the scores of fresh ones, and only with their own checkpoint."""

import shutil
import tracemalloc

import numpy as np
import pytest
import torch

from pyserini_kd import index, rerank
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc
from pyserini_kd.models import rankers, saving
from pyserini_kd.models.colbert import ColBert, ColBertSettings
from pyserini_kd.models.prettr import PreTtr, PreTtrSettings
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.models.tk import Tk, TkSettings
from pyserini_kd.retrieval import dense_build as build_
from pyserini_kd.retrieval import reranking, text_sources, token_index
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import read_json
from tests.conftest import as_ranker, score, tiny_config

LENGTHS = {"max_query_len": 12, "max_doc_len": 24}
NAMES = ["colbert", "prettr", "tk"]


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """A saved checkpoint of each architecture."""
    from transformers import BertModel

    torch.manual_seed(9)
    encoder = BertModel(tiny_config(tokenizer), add_pooling_layer=False)
    models = [
        ColBert(encoder, tokenizer, ColBertSettings(masks=8, width=16, **LENGTHS)),
        PreTtr(encoder, tokenizer, PreTtrSettings(join_layer=1, **LENGTHS)),
        Tk(torch.randn(len(tokenizer), 20), tokenizer, TkSettings(heads=4, feed_forward=24, **LENGTHS)),
    ]
    root = tmp_path_factory.mktemp("students")
    return {model.architecture: saving.save(model, root / model.architecture) for model in models}


@pytest.mark.parametrize(("dtype", "atol"), [("fp32", 1e-4), ("fp16", 5e-2)])
@pytest.mark.parametrize("name", NAMES)
def test_stored_scores_are_fresh_scores(saved, name, dtype, atol, corpus, queries, tmp_path):
    model = token_index.load_scorer(str(saved[name]), name)
    corpus = [*corpus, Doc("short", "", "hay"), Doc("long", "", "the cat eats hay " * 5)]  # to need padding
    assert token_index.build(corpus, as_ranker(model, saved[name], precision="fp32"), tmp_path / "i", dtype=dtype) == len(
        corpus
    )
    stored = token_index.TokenIndex.open(tmp_path / "i")
    pairs = [(query.text, doc) for query in queries[:3] for doc in reversed(corpus)]
    texts = [text for text, _ in pairs]
    fresh = score(model, texts, [doc.contents for _, doc in pairs], precision="fp32")
    found = stored.score(as_ranker(model, precision="fp32"), texts, [doc.doc_id for _, doc in pairs])
    assert np.ptp(fresh) > 10 * 1e-4  # so that the comparison is meaningful
    np.testing.assert_allclose(found, fresh, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_commands(saved, name, files, corpus, queries, invoke, tmp_path):
    folder, run_path = tmp_path / "stored", tmp_path / "run.txt"
    Run.from_scores("bm25", {"q0": {doc.doc_id: 1.0 for doc in corpus}}).write(run_path)
    words = ["--collection", files["docs"], "--encoder", saved[name], "--for", name, "--dtype", "fp32", "--precision", "fp32"]
    result = invoke(index.main, *words, "--index", folder)
    assert result.exit_code == 0, result.output
    common = ["--run", run_path, "--encoder", saved[name], "--topics", files["topics"], "--precision", "fp32"]
    for source, output in ((["--index", folder], "stored.txt"), (["--collection", files["docs"]], "fresh.txt")):
        result = invoke(rerank.main, *common, *source, "--output", tmp_path / output)
        assert result.exit_code == 0, result.output
    a, b = (Run.read(tmp_path / f)["q0"] for f in ("stored.txt", "fresh.txt"))
    scores = dict(zip(b.doc_ids, b.scores, strict=True))
    assert list(a.scores) == pytest.approx([scores[doc_id] for doc_id in a.doc_ids], abs=1e-4)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_collection(saved, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    states = lambda texts: [rng.standard_normal((9, 16)).astype(np.float32) for _ in texts]  # noqa: E731
    scorer = token_index.load_scorer(str(saved["colbert"]), "colbert")
    monkeypatch.setattr(rankers.TokenScorer, "width", 16)
    monkeypatch.setattr(rankers.TokenScorer, "encode_docs", lambda self, texts, **_: states(texts))

    def peak(count):
        docs = (Doc(f"document {n}", "", f"{n} " * 40) for n in range(count))
        tracemalloc.start()
        token_index.build(docs, scorer, tmp_path / str(count), dtype="fp32")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(600)  # warm up imports and caches
    # A document has 800 bytes here as states and text; the number that waits for the writing thread varies
    assert peak(4_000) - peak(1_000) < 3_000 * 40
    assert token_index.TokenIndex.open(tmp_path / "4000").offsets[0][-1] == 4_000 * 9


def test_several_folders_are_read_as_one(saved, corpus, queries, tmp_path):
    model = token_index.load_scorer(str(saved["colbert"]), "colbert", precision="fp32")
    parts = {"one": corpus[:7], "two": corpus[7:], "whole": corpus}
    for name, docs in parts.items():
        token_index.build(docs, as_ranker(model, saved["colbert"], precision="fp32"), tmp_path / name)
    renamed = shutil.copytree(saved["colbert"], tmp_path / "renamed")  # the same weights under another name
    token_index.build(parts["two"], as_ranker(model, renamed, precision="fp32"), tmp_path / "two", overwrite=True)
    joined, whole = (
        token_index.TokenIndex.open(tmp_path / "two", tmp_path / "one"),
        token_index.TokenIndex.open(tmp_path / "whole"),
    )
    for doc in corpus:
        assert np.array_equal(joined.of(doc.doc_id), whole.of(doc.doc_id))
    for stored in (joined, whole):
        with pytest.raises(KeyError, match="nobody"):
            stored.of("nobody")
    with pytest.raises(InputError, match="is stored more than once: .*whole and .*one"):
        token_index.TokenIndex.open(tmp_path / "whole", tmp_path / "one")
    token_index.build(corpus[:7], as_ranker(model, saved["colbert"]), tmp_path / "cut", segment="3:2")
    with pytest.raises(InputError, match=r"whole and .*cut were made with different settings \(segment\)"):
        token_index.TokenIndex.open(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("name", NAMES)
def test_stored_passages_come_back_as_documents(saved, name, files, corpus, queries, invoke, tmp_path):
    """Two folders of passages give the document scores of freshly cut texts."""
    run = Run.from_scores("bm25", {"q0": {doc.doc_id: 1.0 for doc in corpus}, "q3": {"eat-cow": 1.0}})
    lines = (tmp_path / "docs.jsonl").read_text().splitlines(keepends=True)
    folders = [tmp_path / "part0", tmp_path / "part1"]
    for folder, some in zip(folders, (lines[:9], lines[9:]), strict=True):
        (tmp_path / "some.jsonl").write_text("".join(some))
        words = ["--encoder", saved[name], "--for", name, "--dtype", "fp32", "--precision", "fp32", "--segment", "4:2"]
        result = invoke(index.main, "--collection", tmp_path / "some.jsonl", *words, "--index", folder)
        assert result.exit_code == 0, result.output
    model, source = reranking.open_source(str(saved[name]), list(map(str, folders)), segment="4:2", precision="fp32")
    for how in ("maxp", "firstp", "sump", "avgp"):
        settings = {"segment": "4:2", "aggregate": how}
        if (name, how) == ("tk", "sump"):
            with pytest.raises(InputError, match="a tk's scores may be negative"):
                reranking.rerank(run, as_ranker(model), queries, source, **settings)
            continue
        stored = reranking.rerank(run, as_ranker(model), queries, source, **settings)
        fresh = reranking.rerank(run, as_ranker(model), queries, text_sources.fetch_from(corpus), **settings)
        for query_id, hits in fresh.items():
            expected = dict(zip(hits.doc_ids, hits.scores.tolist(), strict=True))
            found = dict(zip(stored[query_id].doc_ids, stored[query_id].scores.tolist(), strict=True))
            assert found == pytest.approx(expected, abs=1e-4)
    run.write(tmp_path / "run.txt")
    common = [
        "--run",
        tmp_path / "run.txt",
        "--encoder",
        saved[name],
        "--topics",
        files["topics"],
        "--index",
        folders[0],
        "--index",
    ]
    result = invoke(rerank.main, *common, folders[1], "--segment", "4:2", "--output", tmp_path / "out.txt")
    assert result.exit_code == 0 and "2 queries, 21 lines" in result.output, result.output
    for wrong, word in ((["--segment", "3:2"], "passages of 4:2, not passages of 3:2"), ([], "set --segment to 4:2")):
        result = invoke(rerank.main, *common, folders[1], *wrong, "--output", tmp_path / "x.txt")
        assert result.exit_code == 2 and word in result.output, result.output


def test_another_checkpoint_reranks_from_the_texts(saved, tiny_cross, files, corpus, invoke, tmp_path):
    folder, run_path = tmp_path / "stored", tmp_path / "run.txt"
    Run.from_scores("bm25", {"q0": {doc.doc_id: 1.0 for doc in corpus}}).write(run_path)
    words = ["--collection", files["docs"], "--encoder", saved["tk"], "--for", "tk"]
    assert invoke(index.main, *words, "--index", folder).exit_code == 0
    assert invoke(index.main, *words, "--index", tmp_path / "bare", "--no-store-docs").exit_code == 0
    common = ["--run", run_path, "--encoder", tiny_cross, "--topics", files["topics"], "--precision", "fp32"]
    for source, output in ((["--index", folder], "a.txt"), (["--collection", files["docs"]], "b.txt")):
        result = invoke(rerank.main, *common, *source, "--output", tmp_path / output)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "b.txt").read_bytes()
    result = invoke(rerank.main, *common, "--index", tmp_path / "bare", "--output", tmp_path / "c.txt")
    assert result.exit_code == 2 and "holds representations of tk, not of" in result.output, result.output


def test_the_api_uses_stored_representations_or_cuts_texts(tmp_path, tiny_dot, corpus, queries, monkeypatch):
    build_.index_dense(corpus, as_ranker(load_encoder(str(tiny_dot)), tiny_dot, precision="fp32"), tmp_path / "i")
    run = Run.from_scores("bm25", {"q0": {doc.doc_id: 1.0 for doc in corpus}})
    opened = reranking.open_source(str(tiny_dot), [str(tmp_path / "i")], segment="3:2", precision="fp32")
    cut = reranking.rerank(run, opened[0], queries, opened[1], segment="3:2", depth=20)
    encoder = load_encoder(str(tiny_dot), precision="fp32")
    fresh = reranking.rerank(run, encoder, queries, text_sources.fetch_from(corpus), segment="3:2", depth=20)
    assert cut["q0"].doc_ids == fresh["q0"].doc_ids and np.array_equal(cut["q0"].scores, fresh["q0"].scores)
    run_side, kinds = rankers.SideScorer.run_side, []
    monkeypatch.setattr(
        rankers.SideScorer,
        "run_side",
        lambda self, texts, kind, *a, **k: kinds.append(kind) or run_side(self, texts, kind, *a, **k),
    )
    scorer, source = reranking.open_source(str(tiny_dot), [str(tmp_path / "i")], precision="fp32")
    reranking.rerank(run, scorer, queries, source, depth=20)
    assert kinds == ["query"]


def test_reranking_uses_the_settings_of_the_index(tiny_dot, files, corpus, invoke, tmp_path):
    folder, run_path = tmp_path / "stored", tmp_path / "run.txt"
    Run.from_scores("bm25", {"q0": {doc.doc_id: 1.0 for doc in corpus}}).write(run_path)
    words = ["--collection", files["docs"], "--encoder", tiny_dot, "--for", "colbert", "--max-length", 6, "--l2-norm"]
    assert invoke(index.main, *words, "--index", folder, "--precision", "fp32", "--dtype", "fp32").exit_code == 0
    made = read_json(folder / "manifest.json", "manifest")
    assert (made["n_docs"], made["encoder"]["max_doc_len"], made["encoder"]["l2_norm"]) == (len(corpus), 6, True)
    common = ["--run", run_path, "--encoder", tiny_dot, "--topics", files["topics"], "--index", folder, "--precision", "fp32"]
    result = invoke(rerank.main, *common, "--output", tmp_path / "a.txt")
    assert result.exit_code == 0, result.output
    model = token_index.load_scorer(str(tiny_dot), "colbert", precision="fp32", max_doc_len=6, l2_norm=True)
    texts = {doc.doc_id: doc.contents for doc in corpus}
    found = Run.read(tmp_path / "a.txt")["q0"]
    fresh = score(model, ["what the cat eats"] * len(corpus), [texts[d] for d in found.doc_ids], precision="fp32")
    assert found.scores == pytest.approx(fresh, abs=1e-4)
    result = invoke(rerank.main, *common, "--max-length", 9, "--output", tmp_path / "b.txt")
    assert result.exit_code == 2 and "max_doc_len is 9, the index was made with 6" in result.output, result.output


@pytest.mark.parametrize("name", NAMES)
def test_search_reranks_from_stored_representations(
    saved, name, corpus, files, invoke, dense_index, tiny_dot, tmp_path, monkeypatch
):
    from pyserini_kd import search

    model = token_index.load_scorer(str(saved[name]), name, precision="fp32")
    token_index.build(
        corpus, as_ranker(model, saved[name], precision="fp32"), tmp_path / "stored", dtype="fp32", store_docs=False
    )
    words = ["--encoder", tiny_dot, "--index", dense_index, "--topics", files["topics"], "--precision", "fp32", "--depth", 6]
    words += ["--rerank", saved[name]]
    texts = invoke(search.main, *words, "--output", tmp_path / "texts.txt")
    assert texts.exit_code == 0, texts.output
    monkeypatch.setattr(rankers.Scorer, "score", lambda *args, **kwargs: pytest.fail("texts were scored"))
    stored = invoke(search.main, *words, "--rerank-index", tmp_path / "stored", "--output", tmp_path / "stored.txt")
    assert stored.exit_code == 0, stored.output
    one, other = Run.read(tmp_path / "texts.txt"), Run.read(tmp_path / "stored.txt")
    assert set(one) == set(other) and all(len(hits.doc_ids) == 6 for hits in other.values())
    for query_id in one:
        by_id = dict(zip(*one[query_id], strict=True))
        assert [by_id[doc_id] for doc_id in other[query_id].doc_ids] == pytest.approx(other[query_id].scores.tolist(), abs=1e-4)
    alone = invoke(search.main, *words[:-2], "--rerank-index", tmp_path / "stored", "--output", tmp_path / "no.txt")
    assert alone.exit_code == 2 and "--rerank-index: is for --rerank" in alone.output
