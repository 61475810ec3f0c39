"""Reranking: only the top, in the model's order; texts from wherever they are."""

import csv
import math

import numpy as np
import pytest

from pyserini_kd import rerank
from pyserini_kd.data import formats
from pyserini_kd.data.runs import Run
from pyserini_kd.data.texts import Top1000
from pyserini_kd.data.types import Doc
from pyserini_kd.models import hardware, loading, rankers
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.retrieval import dense_build, reranking, text_sources
from pyserini_kd.storage.errors import InputError
from tests.conftest import as_ranker, score


@pytest.fixture(scope="module")
def first(queries, corpus):
    scores = {q.query_id: {doc.doc_id: float(20 - n) for n, doc in enumerate(corpus)} for q in queries}
    return Run.from_scores("first", scores)


@pytest.mark.parametrize("kind", ["bert_dot", "colbert", "cross_encoder"])
def test_top_is_rescored_and_the_rest_dropped(first, queries, corpus, tiny_dot, tiny_cross, kind):
    model = loading.load(str(tiny_cross if kind == "cross_encoder" else tiny_dot), architecture=kind)
    run = reranking.rerank(
        first, as_ranker(model, precision="fp32"), queries, text_sources.fetch_from(corpus), depth=5, tag="t"
    )
    assert run.tag == "t" and list(run) == list(first)
    texts = {doc.doc_id: doc.contents for doc in corpus}
    for query in queries:
        top = first[query.query_id].doc_ids[:5]
        expected = score(model, [query.text] * 5, [texts[d] for d in top], precision="fp32")
        assert run[query.query_id].doc_ids == [top[i] for i in np.argsort(-expected, kind="stable")]
        assert np.allclose(run[query.query_id].scores, np.sort(expected)[::-1], atol=1e-4)


def test_every_source_gives_the_same_texts(first, queries, corpus, tiny_dot, dense_index, bm25_index, files):
    model = loading.load(str(tiny_dot))
    runs = [
        reranking.rerank(first, as_ranker(model, precision="fp32"), queries, text_sources.fetch_from(source), depth=20)
        for source in (corpus, str(dense_index), str(bm25_index), files["docs"])
    ]
    for run in runs[1:]:
        for query_id in run:
            assert run[query_id].doc_ids == runs[0][query_id].doc_ids
            assert np.allclose(run[query_id].scores, runs[0][query_id].scores, atol=1e-5)


def test_vectors_of_a_flat_index_are_reused(tmp_path, invoke, first, files, tiny_dot, corpus, monkeypatch):
    """Stored vectors give the same run as encoding the documents again; only queries are encoded."""
    monkeypatch.setattr(hardware, "cpu_flags", lambda: set())  # fp32
    first.write(tmp_path / "first.txt")
    parts = []
    for number, docs in enumerate((corpus[:9], corpus[9:])):
        parts += ["--index", tmp_path / f"part{number}"]
        dense_build.index_dense(docs, as_ranker(load_encoder(str(tiny_dot)), tiny_dot), parts[-1], store_docs=False)
    dense_build.index_dense(corpus, as_ranker(load_encoder(str(tiny_dot)), tiny_dot), tmp_path / "sq8", kind="SQ8")
    encoded, run_side = [], rankers.SideScorer.run_side
    monkeypatch.setattr(
        rankers.SideScorer,
        "run_side",
        lambda self, texts, kind, *a, **k: encoded.append(kind) or run_side(self, texts, kind, *a, **k),
    )
    base = ["--run", tmp_path / "first.txt", "--encoder", tiny_dot, "--topics", files["topics"], "--depth", 12]
    sources = {"stored": parts, "rough": ["--index", tmp_path / "sq8"], "fresh": ["--collection", files["docs"]]}
    runs = {}
    for name, source in sources.items():
        encoded.clear()
        result = invoke(rerank.main, *base, *source, "--output", tmp_path / f"{name}.txt")
        assert result.exit_code == 0, result.output
        assert encoded == (["query"] if name == "stored" else ["query", "doc"])  # SQ8 is not exact: texts are encoded
        runs[name] = Run.read(tmp_path / f"{name}.txt")
    for query_id in runs["fresh"]:
        for name in ("stored", "rough"):
            assert runs[name][query_id].doc_ids == runs["fresh"][query_id].doc_ids
            assert np.allclose(runs[name][query_id].scores, runs["fresh"][query_id].scores, atol=1e-5)
    result = invoke(rerank.main, *base, *parts, "--precision", "bf16", "--output", tmp_path / "x.txt")
    assert result.exit_code == 2 and "stores no text" in result.output  # the stored ones are fp32


def test_command(tmp_path, invoke, first, files, tiny_dot, dense_index):
    first.write(tmp_path / "first.txt")
    base = [
        "--run",
        tmp_path / "first.txt",
        "--encoder",
        tiny_dot,
        "--topics",
        files["topics"],
        "--output",
        tmp_path / "out.txt",
    ]
    result = invoke(rerank.main, *base, "--index", dense_index, "--depth", 3)
    assert result.exit_code == 0 and "10 queries, 30 lines" in result.output, result.output
    assert Run.read(tmp_path / "out.txt").tag == tiny_dot.name
    plain = (tmp_path / "out.txt").read_text()
    result = invoke(rerank.main, *base, "--index", dense_index, "--depth", 3, "--ir-metadata", "--overwrite")
    head, end, lines = (tmp_path / "out.txt").read_text().partition("# ir_metadata.end\n")
    assert result.exit_code == 0 and end and lines == plain and f"name: {tiny_dot.name}" in head
    for wrong, word in (
        (["--index", dense_index], "exists"),
        (["--overwrite"], "--collection or --index"),
        (["--overwrite", "--index", dense_index, "--run", tmp_path / "no.txt"], "not found"),
        (["--overwrite", "--index", dense_index, "--device", "tpu0"], "--device"),
        (["--overwrite", "--index", dense_index, "--ir-metadata", "--output-format", "msmarco"], "--ir-metadata: is for"),
        (["--overwrite", "--index", dense_index, "--runtag", "two words"], "one word without blanks"),
        (["--overwrite", "--index", dense_index, "--index", "elsewhere"], "several indexes must be folders from"),
    ):
        result = invoke(rerank.main, *base, *wrong)
        assert result.exit_code == 2 and word in result.output, result.output


@pytest.mark.parametrize("architecture", ["cross_encoder", "prettr"])
def test_long_documents_are_scored_by_passage(first, queries, corpus, tiny_cross, tiny_dot, architecture):
    model = loading.load(str(tiny_cross if architecture == "cross_encoder" else tiny_dot), architecture=architecture)
    fetch = text_sources.fetch_from(corpus)
    for how, merge in (("maxp", max), ("firstp", lambda s: s[0]), ("sump", sum), ("avgp", lambda s: sum(s) / len(s))):
        run = reranking.rerank(
            first, as_ranker(model, precision="fp32"), queries, fetch, depth=4, segment="3:2", aggregate=how, tag="t"
        )
        query = queries[3]
        expected, added = {}, how in ("sump", "avgp")
        for doc in corpus[:4]:
            cut = [f"{doc.title} {part}" for part in windows(doc.text.split(), 3, 2)]
            scores = score(model, [query.text] * len(cut), cut, precision="fp32").tolist()
            expected[doc.doc_id] = merge([1 / (1 + math.exp(-s)) for s in scores] if added else scores)
        found = dict(zip(run["q3"].doc_ids, run["q3"].scores.tolist(), strict=True))
        assert found == pytest.approx(expected, abs=1e-4) and run.tag == "t"
    whole = reranking.rerank(first, as_ranker(model, precision="fp32"), queries, fetch, depth=4)
    cut = reranking.rerank(first, as_ranker(model, precision="fp32"), queries, fetch, depth=4, segment="999:999")
    assert all(cut[q].doc_ids == whole[q].doc_ids for q in whole)  # one passage per document


def windows(words, size, stride):
    """The oracle: windows until one holds the last word."""
    start = 0
    while True:
        yield " ".join(words[start : start + size])
        if start + size >= len(words):
            return
        start += stride


def test_segment_options(tmp_path, invoke, first, files, tiny_dot, dense_index):
    first.write(tmp_path / "first.txt")
    base = [
        "--run",
        tmp_path / "first.txt",
        "--encoder",
        tiny_dot,
        "--topics",
        files["topics"],
        "--output",
        tmp_path / "out.txt",
    ]
    base += ["--index", dense_index, "--depth", 3]
    for wrong, word in ((["--segment", "3:4"], "WORDS:STRIDE"), (["--aggregate", "sump"], "requires --segment")):
        result = invoke(rerank.main, *base, *wrong)
        assert result.exit_code == 2 and word in result.output, result.output
    result = invoke(rerank.main, *base, "--segment", "3:2", "--aggregate", "avgp")
    assert result.exit_code == 0 and "10 queries, 30 lines" in result.output, result.output
    record = (tmp_path / "out.json").read_text()
    assert '"aggregate": "avgp"' in record
    assert all(f'"{stage}_seconds": ' in record for stage in ("open", "fetch", "score", "write"))


# ---------------------------------------------------------------------------------- a top1000 file has its own texts


def test_a_top1000_file_needs_no_collection(tmp_path, invoke, queries, corpus, tiny_cross):
    """The lines have no order, so all are rescored. The result equals that of the same run with a collection."""
    pairs = [(query, doc) for doc in corpus for query in queries[:3]]
    (tmp_path / "top1000.tsv").write_text("".join(f"{q.query_id}\t{d.doc_id}\t{q.text}\t{d.contents}\n" for q, d in pairs))
    formats.write_collection((Doc(doc.doc_id, "", doc.contents) for doc in corpus), tmp_path / "docs.jsonl")
    formats.write_topics(queries, tmp_path / "topics.tsv")
    Run.from_scores("t", {q.query_id: {d.doc_id: 1.0 for d in corpus} for q in queries[:3]}).write(tmp_path / "run.txt")
    how = ["--encoder", tiny_cross, "--precision", "fp32"]
    result = invoke(rerank.main, "--run", tmp_path / "top1000.tsv", *how, "--output", tmp_path / "a.txt")
    assert result.exit_code == 0 and f"3 queries, {3 * len(corpus)} lines" in result.output, result.output
    named = ["--collection", tmp_path / "docs.jsonl", "--topics", tmp_path / "topics.tsv", "--depth", len(corpus)]
    assert invoke(rerank.main, "--run", tmp_path / "run.txt", *how, *named, "--output", tmp_path / "b.txt").exit_code == 0
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "b.txt").read_text()
    for wrong in (["--depth", 5], ["--topics", tmp_path / "topics.tsv"], ["--collection", tmp_path / "docs.jsonl"]):
        result = invoke(rerank.main, "--run", tmp_path / "top1000.tsv", *how, *wrong, "--output", tmp_path / "c.txt")
        assert result.exit_code == 2 and f"{wrong[0]}: does not go with a top1000 file" in result.output
    result = invoke(rerank.main, "--run", tmp_path / "run.txt", *how, *named[:2], "--output", tmp_path / "c.txt")
    assert result.exit_code == 2 and "--topics: missing" in result.output


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("q\td\ta query\ta text\nq\te\ta text\n", r":2: expected `qid<TAB>pid<TAB>query<TAB>passage`, found 3 columns"),
        ("q\td\ta query\ta text\nq\td\ta query\ta text\n", "duplicate document d"),
        ("q\td\ta query\ta text\nq x\td\ta query\ta text\n", ":2: an id must be one word"),
    ],
)
def test_malformed_top1000_files(tmp_path, lines, message):
    (tmp_path / "t.tsv").write_text(lines)
    with pytest.raises(InputError, match=message):
        Top1000(tmp_path / "t.tsv").read()


@pytest.mark.parametrize("line", ["q Q0 d 1 2.5 t", "q\tQ0\td\t1\t2.5\tt", "q\td\t1", "q\td\t1\t2.5", "q\t0\td\t1"])
def test_runs_are_no_top1000_files(tmp_path, line):
    (tmp_path / "run").write_text(line + "\n")
    assert not Top1000.is_at(tmp_path / "run")


def test_columns_of_a_table_are_named(tmp_path, invoke, first, files, corpus, tiny_dot):
    first.write(tmp_path / "first.txt")
    with open(tmp_path / "docs.csv", "w", newline="") as out:
        csv.writer(out).writerows([("nr", "subject", "inhalt"), *((doc.doc_id, doc.title, doc.text) for doc in corpus)])
    outputs = []
    for name, more in (("docs.jsonl", []), ("docs.csv", ["--fields", "id=nr,title=subject,text=inhalt"])):
        base = ["--run", tmp_path / "first.txt", "--encoder", tiny_dot, "--topics", files["topics"], "--depth", 3]
        output = tmp_path / f"{name}.txt"
        result = invoke(rerank.main, *base, "--collection", tmp_path / name, *more, "--output", output)
        assert result.exit_code == 0, result.output
        outputs.append(output.read_text())
    assert outputs[0] == outputs[1]
    result = invoke(rerank.main, *base, "--collection", tmp_path / "docs.csv", "--fields", "nr", "--output", tmp_path / "x")
    assert result.exit_code == 2 and "--fields: expected names of columns" in result.output
