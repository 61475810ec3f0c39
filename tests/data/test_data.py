"""data.py: every format gives the records it holds, ids stay strings, and a bad line is named by file and number."""

import gzip
import json
import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pyserini_kd.data import formats, lines, sources
from pyserini_kd.data import ids as ids_
from pyserini_kd.data.ids import id_hash, unique_docs
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.storage.errors import InputError


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
            {"id": "3", "title": "T", "contents": "a\nb"},  # a title of its own: contents are all text
            {"id": "4", "contents": ""},
            {"id": 5, "contents": "a number as id"},
            {"id": "6", "contents": "before\u2028after"},  # U+2028 ends no line
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


def test_beir_folder_reads_the_corpus_alone(save, tmp_path):
    path = save("corpus.jsonl", json_lines({"_id": "1", "title": "T", "text": " x "}, {"_id": "2", "title": None, "text": "y"}))
    (tmp_path / "queries.jsonl").write_text(json_lines({"_id": "q", "text": "not a document"}))
    (tmp_path / "more.jsonl").write_text(json_lines({"_id": "m", "text": "nor this"}))
    assert list(formats.read_collection(path.parent)) == [Doc("1", "T", "x"), Doc("2", "", "y")]


def test_folder_of_files_in_order_of_name(save, tmp_path):
    save("b/2.jsonl", json_lines({"id": "b", "contents": "b"}))
    save("a/1.json", json_lines({"id": "a", "contents": "a"}))
    save("c.tsv", "c\tc\n")
    (tmp_path / "readme.txt").write_text("no documents")
    (tmp_path / "queries.dev.tsv").write_text("q\tno document\n")
    (tmp_path / "qrels.tsv").write_text("q\tno document\n")
    (tmp_path / ".hidden.jsonl").write_text("{}\n")
    assert [doc.doc_id for doc in formats.read_collection(tmp_path)] == ["a", "b", "c"]


def test_links_to_folders_are_followed_each_folder_once(save, tmp_path):
    save("c/a.jsonl", json_lines({"id": "a", "contents": "a"}))
    save("elsewhere/b.jsonl", json_lines({"id": "b", "contents": "b"}))
    (tmp_path / "c" / "part").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "c" / "round").symlink_to(tmp_path / "c")
    assert [doc.doc_id for doc in formats.read_collection(tmp_path / "c")] == ["a", "b"]


@pytest.mark.parametrize("mark", ["docid", "segments_1"])
def test_our_indexes_in_a_collection_hold_no_documents(tmp_path, mark):
    (tmp_path / "docs.jsonl").write_text(json_lines({"id": "a", "contents": "a"}))
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "manifest.json").write_text("{}")
    (tmp_path / "index" / mark).touch()
    assert [doc.doc_id for doc in formats.read_collection(tmp_path)] == ["a"]


def test_ms_marco_tsv_with_two_and_four_columns(save):
    assert list(formats.read_collection(save("c.tsv", "0\tfirst passage\n1\ta lone \r return\n"))) == [
        Doc("0", "", "first passage"),
        Doc("1", "", "a lone \r return"),
    ]
    assert list(formats.read_collection(save("docs.tsv", "D1\thttp://x\tThe title\tThe body\nD2\thttp://y\t\t\n"))) == [
        Doc("D1", "The title", "The body"),
        Doc("D2", "", ""),
    ]


def test_windows_files(save):
    """A byte order mark and CRLF are no text; blank lines are no records."""
    assert list(formats.read_collection(save("d.tsv", b"\xef\xbb\xbf1\tone\r\n\r\n2\ttwo\r\n"))) == [
        Doc("1", "", "one"),
        Doc("2", "", "two"),
    ]
    path = save("d.jsonl", b'\xef\xbb\xbf{"id": "1", "contents": "one"}\r\n')
    assert list(formats.read_collection(path)) == [Doc("1", "", "one")]
    assert formats.read_topics(save("t.tsv", b"\xef\xbb\xbf1\tone\r\n")) == [Query("1", "one")]
    assert formats.read_qrels(save("q.txt", b"\xef\xbb\xbf1 0 d 1\r\n")) == {"1": {"d": 1}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", '{"id": "1", "contents": "a"}\n\n{oops\n', r":3: not valid JSON"),
        ("d.json", '{\n  "id": "1",\n', r":1: not valid JSON .*; expected one JSON object a line"),
        ("d.jsonl", f'{{"id": "1", "n": {"9" * 5000}}}\n', r":1: JSON with thousands of digits"),
        (
            "d.jsonl",
            f'{{"id": "1", "n": {"[" * 100_000}}}\n',
            r":1: JSON with thousands of digits .* or of brackets in brackets",
        ),
        ("d.jsonl", '["id"]\n', r":1: expected one JSON object a line, found list"),
        ("d.jsonl", '{"contents": "a"}\n', r":1: no id; .* found \['contents'\]"),
        ("d.jsonl", '{"id": true, "contents": "a"}\n', r":1: no id"),
        ("d.jsonl", '{"id": "a b", "contents": "a"}\n', r":1: an id must be one word"),
        ("d.jsonl", '{"id": "", "contents": "a"}\n', r":1: an id must be one word"),
        ("d.jsonl", '{"id": "1", "contents": 5}\n', r":1: `contents` must be a string, found int"),
        ("d.jsonl", '{"id": "1", "vector": [1]}\n', r":1: a document needs `contents` or `text`, found \['id', 'vector'\]"),
        ("d.jsonl", '{"id": "1", "contents": "\\ud83d"}\n', r":1: text with half of a surrogate pair"),
        ("d.tsv", "1\ta\n2\tb\tc\n", r":2: expected .* found 3 columns"),
        ("d.tsv", "1\ta\n2\n", r":2: expected .* found 1 columns"),
        ("d.tsv", "id\ttitle\ttext\n1\ta\tb\n", r":1: looks like a header \(id, title, text\)"),
        ("d.tsv", "DocNo\tText\n1\ta\n", r":1: looks like a header \(docno, text\)"),
        ("d.csv", "id,text\n1,a\n", r"expected \.jsonl, \.json or \.tsv"),
        ("d.txt", "1\ta\n", r"expected \.jsonl, \.json or \.tsv"),
        ("d.tsv", b"1\ta\n2\t\xff\n", r"not valid UTF-8"),
    ],
)
def test_malformed_collections(save, name, content, message):
    path = save(name, content)
    with pytest.raises(InputError, match=message) as error:
        list(formats.read_collection(path))
    assert str(path) in str(error.value)


def test_whole_surrogate_pairs_are_characters(save):
    assert list(formats.read_collection(save("d.jsonl", '{"id": "1", "contents": "\\ud83d\\ude00"}\n'))) == [Doc("1", "", "😀")]


def test_missing_empty_and_truncated_collections(tmp_path):
    with pytest.raises(InputError, match="collection not found"):
        list(formats.read_collection(tmp_path / "none"))
    with pytest.raises(InputError, match=r"holds no \.jsonl"):
        list(formats.read_collection(tmp_path))
    whole = gzip.compress(b"1\ta\n" * 1000)
    for content in (whole[: len(whole) // 2], b"no gzip at all", whole[:20] + b"\0\0\0" + whole[23:]):
        (tmp_path / "d.tsv.gz").write_bytes(content)
        with pytest.raises(InputError, match=r"d\.tsv\.gz: not a complete gzip file"):
            list(formats.read_collection(tmp_path / "d.tsv.gz"))
    (tmp_path / "d.tsv.gz").write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        list(formats.read_collection(tmp_path / "d.tsv.gz"))


def test_collections_are_streamed(tmp_path):
    """The first documents come before a bad line further on is read."""
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
    if not first.startswith(("{", "<")) and first.lower() not in lines.ID_COLUMNS:  # these begin other formats, and headers
        formats.write_topics(queries, tmp_path / "t.tsv", overwrite=True)
        assert formats.read_topics(tmp_path / "t.tsv") == queries


@settings(**once)
@example({"query-id": {"score": 0, "corpus-id": 1}})  # as BEIR's header begins
@given(st.dictionaries(ids, st.dictionaries(ids, st.integers(-2, 3), min_size=1), min_size=1))
def test_qrels_round_trip(tmp_path, qrels):
    formats.write_qrels(qrels, tmp_path / "q.txt", overwrite=True)
    assert formats.read_qrels(tmp_path / "q.txt") == qrels


def test_writers_refuse_to_overwrite(tmp_path):
    (tmp_path / "f").write_text("old")
    for write, what in ((formats.write_collection, []), (formats.write_topics, []), (formats.write_qrels, {})):
        with pytest.raises(InputError, match="give --overwrite"):
            write(what, tmp_path / "f")
    assert (tmp_path / "f").read_text() == "old"


# ---------------------------------------------------------------------------------------------------- duplicates


def docs_of(*doc_ids):
    return [Doc(doc_id, "", f"text {row}") for row, doc_id in enumerate(doc_ids)]


def places_in(docs):
    return lambda doc_id: [f"place {number}" for number, doc in enumerate(docs) if doc.doc_id == doc_id]


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_unique_docs_passes_all_on_in_order(block):
    docs = docs_of(*(str(n) for n in range(50)))
    assert list(unique_docs(iter(docs), places_in(docs), block)) == docs
    assert list(unique_docs(iter([]), places_in([]), block)) == []


@pytest.mark.parametrize("block", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 49), (24, 25), (48, 49), (5, 33)])
def test_unique_docs_finds_any_duplicate(block, first, second):
    names = [str(n) for n in range(50)]
    names[second] = names[first]
    docs = docs_of(*names)
    with pytest.raises(InputError, match=f"^place {second}: duplicate document id '{names[first]}', first at place {first}$"):
        list(unique_docs(iter(docs), places_in(docs), block))


@pytest.mark.parametrize("block", [1, 2, 100])
def test_colliding_hashes_are_no_duplicates(monkeypatch, block):
    monkeypatch.setattr(ids_, "id_hash", lambda text: len(text) % 2)
    docs = docs_of("a", "bb", "ccc", "dddd", "eeeee")
    assert list(unique_docs(iter(docs), places_in(docs), block)) == docs
    twice = docs_of("a", "bb", "ccc", "bb")
    with pytest.raises(InputError, match="duplicate document id 'bb'"):
        list(unique_docs(iter(twice), places_in(twice), block))


def test_id_hash_is_stable():
    assert id_hash("007") == 0x492A8021FCEC81BD  # printf 007 | b2sum -l 64


# -------------------------------------------------------------------------------------------------------- topics


def test_tsv_topics(save):
    path = save("t.tsv", "007\tfirst query\nNA\t  two  blanks \n3\t\n")
    assert formats.read_topics(path) == [Query("007", "first query"), Query("NA", "two blanks"), Query("3", "")]


def test_a_header_is_one_only_in_the_first_line(save):
    path = save("t.tsv", "pid\tcontroller\nid\ttext\n")
    assert formats.read_topics(path) == [Query("pid", "controller"), Query("id", "text")]


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
        Query("007", "closed tags"),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\ta\nno tab\n", r":2: expected `id<TAB>text`"),
        ("qid\tquery\n1\ta\n", r":1: looks like a header \(qid, query\)"),
        ("1\ta\n\n1\tb\n", r":3: duplicate query id '1'"),
        ('{"_id": "1", "text": "a"}\n{"_id": "2"}\n', r":2: a topic needs `text`"),
        ("just words\n", r":1: topics format unknown"),
        ("<top>\n<title> a\n</top>\n", r":1: topic without <num>"),
        ("<top>\n<num> 1\n<title> a\n</top>\n\n<top>\n</top>\n", r":6: topic without <num>"),
        ("\n \n", r":1: topics format unknown"),
        ("", r"topics file is empty"),
    ],
)
def test_malformed_topics(tmp_path, content, message):
    (tmp_path / "topics").write_text(content)
    with pytest.raises(InputError, match=message):
        formats.read_topics(tmp_path / "topics")


# --------------------------------------------------------------------------------------------------------- qrels


def test_trec_qrels(save):
    path = save("q.txt", "007 0 NA 2\n007\t0\tb\t0\nq2 Q0 a -1\n\n007 0 NA 2\n")
    assert formats.read_qrels(path) == {"007": {"NA": 2, "b": 0}, "q2": {"a": -1}}


def test_beir_qrels(save, shared_data):
    path = save("test.tsv", "query-id\tcorpus-id\tscore\n1\t007\t1\n")
    assert formats.read_qrels(path) == {"1": {"007": 1}}
    qrels = formats.read_qrels(shared_data / "beir" / "scifact" / "qrels" / "test.tsv")
    assert len(qrels) == 300 and sum(map(len, qrels.values())) == 339 and qrels["1"] == {"31715818": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 0 d 1\n1 0 d\n", None),  # three columns are BEIR's
        ("1 0 d 1\n1 0 d 1 x\n", r":2: expected `qid 0 docid relevance`, found 5 columns"),
        ("1 0 d 1\n1 0 e high\n", r":2: relevance must be a whole number, found 'high'"),
        ("1 0 d 1\n1 0 d 2\n", r":2: document d is judged twice, differently"),
        ("1 0 d 1\n1 0 e 2147483648\n", r":2: relevance must fit into 32 bits, found 2147483648"),
        ("query-id\tcorpus-id\tscore\n", r"no judgements found"),
    ],
)
def test_malformed_qrels(tmp_path, content, message):
    (tmp_path / "q").write_text(content)
    with pytest.raises(InputError, match=message):
        formats.read_qrels(tmp_path / "q")


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


def test_ir_datasets_faults(monkeypatch):
    import ir_datasets

    with pytest.raises(InputError, match="ir_datasets has no dataset 'nope'"):
        sources.collection("ir_datasets:nope")

    class Broken:
        def has_docs(self):
            return True

        def has_qrels(self):
            return False

        def docs_iter(self):
            raise RuntimeError("download failed")
            yield

    monkeypatch.setattr(ir_datasets, "load", lambda _: Broken())
    with pytest.raises(InputError, match="ir_datasets:x has no qrels"):
        sources.qrels("ir_datasets:x")
    with pytest.raises(InputError, match="ir_datasets:x could not be read: download failed"):
        list(sources.collection("ir_datasets:x"))
