"""Readers and writers of all formats; ids stay strings."""

import gzip
import json
import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pyserini_kd.data import formats, lines
from pyserini_kd.data.ids import id_hash, unique_docs
from pyserini_kd.data.types import Doc, Query


@pytest.fixture(params=["plain", "gz"])
def save(request, tmp_path):
    """Write bytes or text as a file, plain or gzipped; returns its path."""

    def write(name, content):
        content = content if isinstance(content, bytes) else content.encode()
        path = tmp_path / (name if request.param == "plain" else f"{name}.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if request.param == "plain" else gzip.compress(content))
        return path

    return write


def json_lines(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


# --------------------------------------------------------------------------------------------------- collections


def test_pyserini_jsonl(save):
    path = save(
        "docs.jsonl",
        json_lines(
            {"id": "007", "contents": "Title here\nText, line 1.\nLine 2."},  # the first line is the title
            {"id": "NA", "contents": "no title"},
            {"id": "3", "title": "T", "contents": "a\nb"},  # with a title, `contents` is only text
            {"id": "4", "contents": ""},
            {"id": 5, "contents": "a number as id"},
            {"id": "6", "contents": "before\u2028after"},  # U+2028 does not end a line
        ),
    )
    assert list(formats.read_collection(path)) == [
        Doc("007", "Title here", "Text, line 1.\nLine 2."),
        Doc("NA", "", "no title"),
        Doc("3", "T", "a\nb"),
        Doc("4", "", ""),
        Doc("5", "", "a number as id"),
        Doc("6", "", "before\u2028after"),
    ]


def test_beir_folder_reads_only_the_corpus(save, tmp_path):
    path = save("corpus.jsonl", json_lines({"_id": "1", "title": "T", "text": " x "}, {"_id": "2", "title": None, "text": "y"}))
    (tmp_path / "queries.jsonl").write_text(json_lines({"_id": "q", "text": "not a document"}))
    (tmp_path / "more.jsonl").write_text(json_lines({"_id": "m", "text": "nor this"}))
    assert list(formats.read_collection(path.parent)) == [Doc("1", "T", "x"), Doc("2", "", "y")]


def test_folder_files_are_read_in_name_order(save, tmp_path):
    save("b/2.jsonl", json_lines({"id": "b", "contents": "b"}))
    save("a/1.json", json_lines({"id": "a", "contents": "a"}))
    save("c.tsv", "c\tc\n")
    (tmp_path / "readme.txt").write_text("no documents")
    (tmp_path / "queries.dev.tsv").write_text("q\tno document\n")
    (tmp_path / "qrels.tsv").write_text("q\tno document\n")
    (tmp_path / ".hidden.jsonl").write_text("{}\n")
    assert [doc.doc_id for doc in formats.read_collection(tmp_path)] == ["a", "b", "c"]


def test_ms_marco_tsv_with_two_and_four_columns(save):
    assert list(formats.read_collection(save("c.tsv", "0\tfirst passage\n1\ta lone \r return\n"))) == [
        Doc("0", "", "first passage"),
        Doc("1", "", "a lone \r return"),
    ]
    assert list(formats.read_collection(save("docs.tsv", "D1\thttp://x\tThe title\tThe body\nD2\thttp://y\t\t\n"))) == [
        Doc("D1", "The title", "The body"),
        Doc("D2", "", ""),
    ]


def test_collections_are_streamed(tmp_path):
    """A reader yields documents before it reaches a malformed line."""
    (tmp_path / "d.tsv").write_text("1\ta\n2\tb\nbad\n")
    docs = formats.read_collection(tmp_path / "d.tsv")
    assert [next(docs).doc_id, next(docs).doc_id] == ["1", "2"]


def test_contents_join_title_and_text():
    assert Doc("1", "T", "x").contents == "T x"
    assert Doc("1", "", "x").contents == "x"


ids = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=8).filter(
    lambda t: t.split() == [t]
)
texts = st.text(st.characters(codec="utf-8"), max_size=40)
once = {"max_examples": 60, "deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(**once)
@given(
    st.lists(st.builds(Doc, ids, texts.map(lambda t: " ".join(t.split())), texts.map(str.strip)), unique_by=lambda d: d.doc_id)
)
def test_collection_round_trip(tmp_path, docs):
    assert formats.write_collection(docs, tmp_path / "d.jsonl", overwrite=True) == len(docs)
    if docs:
        assert list(formats.read_collection(tmp_path / "d.jsonl")) == docs


@settings(**once)
@given(st.lists(st.builds(Query, ids, texts.map(lambda t: " ".join(t.split()))), min_size=1, unique_by=lambda q: q.query_id))
def test_topics_round_trip(tmp_path, queries):
    first = queries[0].query_id
    if not first.startswith(("{", "<")) and first.lower() not in lines.ID_COLUMNS:  # these mark other formats and headers
        formats.write_topics(queries, tmp_path / "t.tsv", overwrite=True)
        assert formats.read_topics(tmp_path / "t.tsv") == queries


@settings(**once)
@example({"query-id": {"score": 0, "corpus-id": 1}})  # as in BEIR's header
@given(st.dictionaries(ids, st.dictionaries(ids, st.integers(-2, 3), min_size=1), min_size=1))
def test_qrels_round_trip(tmp_path, qrels):
    formats.write_qrels(qrels, tmp_path / "q.txt", overwrite=True)
    assert formats.read_qrels(tmp_path / "q.txt") == qrels


# ---------------------------------------------------------------------------------------------------- duplicates


def docs_of(*doc_ids):
    return [Doc(doc_id, "", f"text {row}") for row, doc_id in enumerate(doc_ids)]


def places_in(docs):
    return lambda doc_id: [f"place {number}" for number, doc in enumerate(docs) if doc.doc_id == doc_id]


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_unique_docs_keeps_all_in_order(block):
    docs = docs_of(*(str(n) for n in range(50)))
    assert list(unique_docs(iter(docs), places_in(docs), block)) == docs
    assert list(unique_docs(iter([]), places_in([]), block)) == []


def test_id_hash_is_stable():
    assert id_hash("007") == 0x492A8021FCEC81BD  # printf 007 | b2sum -l 64


# -------------------------------------------------------------------------------------------------------- topics


def test_tsv_topics(save):
    path = save("t.tsv", "007\tfirst query\nNA\t  two  blanks \n3\t\n")
    assert formats.read_topics(path) == [Query("007", "first query"), Query("NA", "two blanks"), Query("3", "")]


def test_json_topics(save):
    path = save("t.jsonl", json_lines({"_id": "007", "text": "a\nb"}, {"qid": "NA", "title": "c"}, {"id": 3, "query": "d"}))
    assert formats.read_topics(path) == [Query("007", "a b"), Query("NA", "c"), Query("3", "d")]


TREC = """
<top>

<num> Number: 303
<title> Hubble Telescope
  Achievements &amp; costs, a < b

<desc> Description:
Identify positive accomplishments.
</top>

<top>
<num>007</num>
<title>Topic: closed tags</title>
<desc>no</desc>
</top>
<top><num> Number:  NA <title> without an end tag
<narr> no
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "windows"])
def test_trec_topics(save, newline):
    path = save("topics.trec", TREC.replace("\n", newline).encode())
    assert formats.read_topics(path) == [
        Query("303", "Hubble Telescope Achievements & costs, a < b"),
        Query("7", "closed tags"),
        Query("NA", "without an end tag"),
    ]
    path = save("t.trec", "<top><num> 1 <title> C++ <vector> resize <desc> no </top>")
    assert formats.read_topics(path) == [Query("1", "C++ <vector> resize")]


def test_cacm_topics(save, shared_data):
    path = save("t.txt", "<DOC>\n<DOCNO> 1 </DOCNO>\n\n What about 1 < 2,\nand &lt;x&gt;?\n\n</DOC>\n")
    assert formats.read_topics(path) == [Query("1", "What about 1 < 2, and <x>?")]
    topics = formats.read_topics(shared_data / "cacm" / "topics.cacm.txt")
    assert len(topics) == 64 and [q.query_id for q in topics] == [str(n) for n in range(1, 65)]
    assert topics[1].text == "I am interested in articles written either by Prieve or Udo Pooch Prieve, B. Pooch, U."


# --------------------------------------------------------------------------------------------------------- qrels


def test_trec_qrels(save):
    path = save("q.txt", "007 0 NA 2\n007\t0\tb\t0\nq2 Q0 a -1\n\n007 0 NA 2\n")
    assert formats.read_qrels(path) == {"007": {"NA": 2, "b": 0}, "q2": {"a": -1}}


def test_beir_qrels(save, shared_data):
    path = save("test.tsv", "query-id\tcorpus-id\tscore\n1\t007\t1\n")
    assert formats.read_qrels(path) == {"1": {"007": 1}}
    qrels = formats.read_qrels(shared_data / "beir" / "scifact" / "qrels" / "test.tsv")
    assert len(qrels) == 300 and sum(map(len, qrels.values())) == 339 and qrels["1"] == {"31715818": 1}


# --------------------------------------------------------------------------------------------------- ir_datasets

CRANFIELD = """
import json, sys
from pyserini_kd.data import sources
docs = list(sources.collection("ir_datasets:cranfield"))
queries = sources.topics("ir_datasets:cranfield")
qrels = sources.qrels("ir_datasets:cranfield")
rows = [(q, d, g) for q, judged in qrels.items() for d, g in judged.items()]
pick = lambda records: [len(records), records[0], records[9], records[-1]]
json.dump([pick(docs), pick(queries), pick(rows)], sys.stdout)
"""


def test_ir_datasets_offline(shared_data, tmp_path):
    shutil.copytree(shared_data / "ir_datasets_home" / "cranfield", tmp_path / "cranfield", copy_function=shutil.copyfile)
    os.chmod(tmp_path / "cranfield", 0o755)
    env = {**os.environ, "IR_DATASETS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CRANFIELD], env=env, capture_output=True, text=True, check=True)
    docs, queries, qrels = json.loads(done.stdout)
    assert docs[0] == 1400
    assert [doc[:2] for doc in docs[1:]] == [
        ["1", "experimental investigation of the aerodynamics of a wing in a slipstream ."],
        ["10", "the theory of the impact tube at low pressure ."],
        ["1400", "the buckling shear stress of simply-supported infinitely long plates with transverse stiffeners ."],
    ]
    assert [len(doc[2]) for doc in docs[1:]] == [910, 331, 666]
    assert docs[1][2].endswith("ecific configuration of the experiment .")
    assert queries == [
        225,
        ["1", "what similarity laws must be obeyed when constructing aeroelastic models of heated high speed aircraft ."],
        ["10", "are real-gas transport properties for air available over a wide range of enthalpies and densities ."],
        ["225", "what design factors can be used to control lift-drag ratios at mach numbers above 5 ."],
    ]
    assert qrels == [1837, ["1", "184", 2], ["1", "57", 2], ["225", "1188", -1]]
