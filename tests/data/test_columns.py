"""Columns of qrels and runs are recognised by their content. pytrec_eval and pandas give the right values, or they are worked by hand."""

import gzip
import json

import pandas as pd
import pytest
import pytrec_eval

from pyserini_kd.data import formats
from pyserini_kd.data.runs import Run, open_run
from pyserini_kd.storage.errors import InputError

QRELS = {"q1": {"d1": 1, "d2": 0}, "007": {"d3": 2}}
RUN = {"q1": {"d1": 98.0, "d2": 95.0, "d3": 7.5}, "007": {"d2": 3.0, "d1": -1.0}}
ROWS = [(query, doc, value) for query, docs in RUN.items() for doc, value in docs.items()]


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def scores(run):
    return {query: dict(zip(hits.doc_ids, hits.scores.tolist(), strict=True)) for query, hits in run.items()}


# --------------------------------------------------------------------------------------------------------- qrels


@pytest.mark.parametrize("grade", ["{}", "{}.0", "{}.00", "+{}", "{}e0"])
@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("", "{q} 0 {d} {g}"),
        ("", "{q}\t0\t{d}\t{g}"),
        ("", "{q}  Q0   {d} {g}  "),
        ("", "{q}\t{d}\t{g}"),
        ("query-id\tcorpus-id\tscore\n", "{q}\t{d}\t{g}"),
        ("query_id\tdoc_id\trelevance\n", "{q}\t{d}\t{g}"),
        ("qid docid rel\n", "{q} {d} {g}"),
        ("topic iteration document judgment\n", "{q} 0 {d} {g}"),
        ("corpus-id\tquery-id\tscore\n", "{d}\t{q}\t{g}"),
        ("relevance doc_id iter query_id\n", "{g} {d} 0 {q}"),
    ],
)
def test_qrels_of_every_layout(tmp_path, header, line, grade):
    lines = [line.format(q=q, d=d, g=grade.format(g)) + "\n" for q, docs in QRELS.items() for d, g in docs.items()]
    assert formats.read_qrels(written(tmp_path / "q", header + "".join(lines))) == QRELS


def test_qrels_as_pytrec_eval_reads_them(tmp_path):
    path = written(tmp_path / "q", "q1 0 d1 1\nq1\t0\td2 0\n007   0 d3 2\nq1 0 d\u00e9 -2\n")
    with open(path, encoding="utf-8") as lines:
        assert formats.read_qrels(path) == pytrec_eval.parse_qrel(lines)
    (tmp_path / "q.json").write_text(json.dumps(QRELS))
    assert formats.read_qrels(tmp_path / "q.json") == QRELS
    (tmp_path / "q.json.gz").write_bytes(gzip.compress(json.dumps(QRELS, indent=1).encode()))
    assert formats.read_qrels(tmp_path / "q.json.gz") == QRELS


@pytest.mark.parametrize("blank", ["\u00a0", "\u3000", "\u2003", "\u2028", "\x1c", "\x85"])
def test_only_ascii_blanks_separate(tmp_path, blank):
    doc = f"d{blank}1"
    assert formats.read_qrels(written(tmp_path / "q", f"q 0 {doc} 1\n")) == {"q": {doc: 1}}
    for text in (f"q Q0 {doc} 1 2.5 t\n", f"q  Q0 {doc} 1 2.5 t\n", f"q\t{doc}\t2.5\n", f"q {doc} 1 2.5\n"):
        assert scores(Run.read(written(tmp_path / "r", text))) == {"q": {doc: 2.5}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q 0 d 0.5\n", r":1: relevance must be a whole number, found '0\.5'"),
        ("q 0 d nan\n", r":1: relevance must be a whole number, found 'nan'"),
        ("q 0 d inf\n", r":1: relevance must be a whole number, found 'inf'"),
        ("q 0 d 1_0\n", r":1: relevance must be a whole number"),
        ("id\ttext\ttitle\n", r":1: .*; this is TSV with a header \(id, text, title\)"),
        (
            "qid\tdocid\tsplit\nq\td\ttrain\n",
            r":1: the header \(qid, docid, split\) must name a query, a document, and a score",
        ),
        ("qid docid rel\nq d\n", r":2: expected `qid 0 docid relevance`, found 2 columns"),
        ("q1,d1,1\n", r":1: expected .*; this is CSV; separate its columns by tabs"),
        ('{"q": {"d": "high"}}', r"expected a number for document d of query q, found 'high'"),
        ('{"q": 1}', r"expected JSON of the form \{query_id: \{doc_id: number\}\}"),
        ('{"query_id": "q", "doc_id": "d"}\n{}\n', r"expected JSON of the form"),
    ],
)
def test_malformed_qrels(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        formats.read_qrels(written(tmp_path / "q", text))


# ---------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{q} Q0 {d} 9 {s} tag\n" for q, d, s in ROWS),
        "".join(f"{q}\t{d}\t{s}\n" for q, d, s in ROWS),
        "".join(f"{q}\t{d}\t{n}\t{s}\n" for n, (q, d, s) in enumerate(ROWS, start=1)),
        "qid\tdocid\tscore\n" + "".join(f"{q}\t{d}\t{s}\n" for q, d, s in ROWS),
        "doc_id score query_id\n" + "".join(f"{d} {s} {q}\n" for q, d, s in ROWS),
        "query_id q0 doc_id rank score tag\n" + "".join(f"{q} Q0 {d} 9 {s} t\n" for q, d, s in ROWS),
        json.dumps(RUN),
        json.dumps(RUN, indent=2),
    ],
)
def test_runs_of_every_layout(tmp_path, text):
    assert scores(Run.read(written(tmp_path / "r", text))) == RUN
    opened = open_run(tmp_path / "r")
    assert scores({query: opened.get(query) for query in opened}) == RUN


def test_runs_as_pytrec_eval_reads_them(tmp_path):
    path = written(tmp_path / "r", "q1 Q0 d1 1 98 t\nq1\tQ0\td2 2 95.5e0 t\n007  Q0 d\u00e9 1 -1 t\n")
    with open(path, encoding="utf-8") as lines:
        assert scores(Run.read(path)) == pytrec_eval.parse_run(lines)


def test_pandas_layouts(tmp_path):
    frame = pd.DataFrame(ROWS, columns=["query_id", "doc_id", "score"])
    for separator in "\t ":
        frame.to_csv(tmp_path / "r", sep=separator, index=False)
        assert scores(Run.read(tmp_path / "r")) == RUN
    frame.to_csv(tmp_path / "r", index=False)
    with pytest.raises(InputError, match="this is CSV; separate its columns by tabs|CSV with a header"):
        Run.read(tmp_path / "r")


@pytest.mark.parametrize(
    ("columns", "best"),
    [
        ([("q", "a", 1), ("q", "b", 2), ("q", "c", 3)], "abc"),  # ranks
        ([("q", "c", 3), ("q", "a", 1), ("q", "b", 2)], "abc"),  # ranks, shuffled
        ([("q", "a", "1.0"), ("q", "b", "2.0")], "ab"),
        ([("q", "a", 98), ("q", "b", 95)], "ab"),
        ([("q", "a", 95), ("q", "b", 98)], "ba"),
        ([("q", "a", 3), ("q", "b", 2), ("q", "c", 1)], "abc"),  # best first, so these are scores
        ([("q", "a", 3), ("q", "b", 3), ("q", "c", 1)], "bac"),
        ([("q", "a", 0), ("q", "b", -1)], "ab"),
        ([("q", "a", 0)], "a"),
        ([("q", "a", 1), ("q", "b", 1)], "ba"),
        ([("q", "a", 1), ("q", "b", 4), ("r", "a", 5), ("r", "b", 4)], "ba"),
        ([("q", "a", "0.25"), ("q", "b", "0.5")], "ba"),
        ([("q", "a", 7), ("r", "b", 1)], "a"),
    ],
)
def test_a_third_column_is_ranks_only_if_it_is_1_to_n(tmp_path, columns, best):
    text = "".join(f"{query}\t{doc}\t{value}\n" for query, doc, value in columns)
    run = Run.read(written(tmp_path / "r", text))
    assert "".join(run["q"].doc_ids) == best


@pytest.mark.parametrize("ranks", [(3, 1), (2, 1), (1, 7)])
def test_a_header_says_that_a_column_is_ranks(tmp_path, ranks):
    run = Run.read(written(tmp_path / "r", f"qid docid rank\nq a {ranks[0]}\nq b {ranks[1]}\n"))
    assert scores(run)["q"] == pytest.approx({"a": 1 / ranks[0], "b": 1 / ranks[1]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q a 1\nq b 3\n", r"column 3 ascends, but not from 1 to n: ranks or scores\?"),
        ("q a 0\nq b 1\nr c 0\n", r"column 3 ascends, but not from 1 to n"),
        ("q1 0 d1 1\nq1 0 d2 0\n", r":1: expected a rank in column 3, found 'd1'; are these judgements\?"),
        ("1 0 23 1\n2 0 24 1\n", r"these are judgements"),
        ("qid docid\nq a\n", r":1: expected `qid Q0 docid rank score tag`, found 2 columns"),
        ("qid docid score\n", r"no line after the header"),
        ("qid docid rank\nq a 0\n", r"ranks begin at 1, found 0"),
        ("qid docid rank\nq a first\n", r":2: expected a score, found 'first'"),
        ("1\t2\twhat is it\tA passage of text\n", r"; this is a top1000 file, which `rerank --run` takes"),
        ("what is it\tA passage\tAnother passage\n", r"; this is triples of texts, which `mine --triples` takes"),
        ('{"q": {"d": true}}', r"expected a number for document d of query q, found True"),
        ('{"q": {"d": Infinity}}', r"score inf is not finite"),
        ('[{"q": 1}]', r"; this is a JSON array"),
        ("<top>\n", r"; this is SGML or XML; `topics` takes"),
    ],
)
def test_malformed_runs(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        Run.read(written(tmp_path / "r", text))
