"""TREC topics and documents are read as Anserini's own readers read them, or as ir_datasets does where Anserini has no reader."""

import gzip

import ir_datasets
import pytest
from ir_datasets.datasets.medline import TrecPm2017Query
from ir_datasets.datasets.pmc import TrecCdsQuery
from ir_datasets.formats import TrecXmlQueries

from pyserini_kd.data import formats
from pyserini_kd.data.java import start_jvm
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.storage.errors import InputError


def anserini(path, reader):
    """Map ids to texts, read by a reader of Anserini."""
    start_jvm()
    from jnius import autoclass

    read = autoclass("io.anserini.search.topicreader.TopicReader").getTopicsWithStringIdsFromFileWithTopicReaderClass
    topics = read(f"io.anserini.search.topicreader.{reader}", str(path))
    fields = {str(key): topics.get(key) for key in topics.keySet().toArray()}
    return {key: " ".join((found.get("title") or found.get("query")).split()) for key, found in fields.items()}


TOP = "<top>\n<num> Number:  {id}\n<title> Topic:  {title}\n\n<desc> Description:\nd\n\n<narr> Narrative:\nn\n</top>\n\n"
CLOSED = "<top lang='{lang}'>\n<num>{id}</num>\n<title>{title}</title>\n<desc>d</desc>\n<narr>n</narr>\n</top>\n"
TWEETS = "<top>\n<num> Number: MB{id} </num>\n<{tag}> {title} </{tag}>\n<querytime> Tue Feb 08 2011 </querytime>\n</top>\n\n"
LINKS = "<top>\n<num> Number: {id} </num>\n<docid>{doc}</docid>\n<url>https://x.org/{doc}</url>\n</top>\n\n"
WEB = (
    '<?xml version="1.0"?>\n<!DOCTYPE webtrack [\n <!ELEMENT topic (query)*>\n]>\n<webtrack2012>\n<!-- <topic number="9"> -->\n'
    '<topic number="151" type="faceted">\n  <query>403b</query>\n  <description>\n What is a 403b plan?\n </description>\n'
    '  <subtopic number="1" type="inf">What is it?</subtopic>\n</topic>\n'
    '<topic number="152" type="x">\n  <query>angular cheilitis</query>\n</topic>\n</webtrack2012>\n'
)
COVID = (
    '<?xml version="1.0"?>\n<topics>\n<topic number="1">\n<query>virus &amp; origin</query>\n<question>what is it</question>\n'
    '<narrative>n</narrative></topic>\n<topic number="02"><query>\nweather\n</query><question>q</question></topic></topics>'
)
NTCIR = (
    "<queries>\n  <query>\n    <qid>0001</qid>\n    <content>Halloween picture</content>\n    <description>d</description>\n"
    "  </query>\n  <query>\n<qid>0080</qid>\n<content>women's clothing</content>\n</query>\n</queries>\n"
)


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(
    ("reader", "content"),
    [
        ("TrecTopicReader", TOP.format(id="051", title="Airbus Subsidies") + TOP.format(id="100", title="a\n two lines")),
        ("TrecTopicReader", TOP.format(id="AR26", title="مجلس المقاومة")),
        ("TrecTopicReader", CLOSED.format(lang="en", id="176", title="YSR") + CLOSED.format(lang="bn", id="7", title="রেড্ডি")),
        ("MicroblogTopicReader", TWEETS.format(id="001", tag="title", title="BBC World Service")),
        ("MicroblogTopicReader", TWEETS.format(id="051", tag="query", title="cuts") * 1),
        ("BackgroundLinkingTopicReader", LINKS.format(id="321", doc="9171debc") + LINKS.format(id="886", doc="HPTOC-1")),
        ("WebxmlTopicReader", WEB),
        ("CovidTopicReader", COVID),
        ("NtcirTopicReader", NTCIR),
        ("WebTopicReader", "1:pierson s twin lakes\n20:hsn\n"),
        ("PrioritizedWebTopicReader", "20001:1:obama family tree\n20002:4:french lick\n"),
        ("CacmTopicReader", "<DOC>\n<DOCNO> 1 </DOCNO>\n What about it?\n</DOC>\n<DOC>\n<DOCNO> 02 </DOCNO>\nb\n</DOC>\n"),
        ("TsvStringTopicReader", "007\tfirst\n010\tsecond\twith a third column\n"),
        ("JsonStringTopicReader", '{"id": "007", "title": "first"}\n{"id": "MB051", "title": "second"}\n'),
    ],
)
def test_topics_are_anserinis(tmp_path, reader, content, pack):
    (tmp_path / "topics").write_text(content)
    (tmp_path / "topics.gz").write_bytes(gzip.compress(content.encode()))
    ours = formats.read_topics(tmp_path / ("topics.gz" if pack else "topics"))
    assert {query.query_id: query.text for query in ours} == anserini(tmp_path / "topics", reader)


CLINICAL = [
    (
        TrecCdsQuery,
        '<topics><topic number="1" type="diagnosis">\n<description>A 58-year-old &lt;woman&gt;</description>\n'
        "<summary>58, woman</summary></topic></topics>",
    ),
    (
        TrecPm2017Query,
        '<topics task="PM"><topic number="1"><disease>Liposarcoma</disease><gene>CDK4</gene>'
        "<demographic>38-year-old male</demographic><other>GERD</other></topic></topics>",
    ),
]


@pytest.mark.parametrize(("kind", "content"), CLINICAL, ids=["decision support", "precision medicine"])
def test_clinical_topics_are_those_of_ir_datasets(tmp_path, kind, content):
    (tmp_path / "t.xml").write_text(content)

    class Here:
        def stream(self):
            return open(tmp_path / "t.xml", "rb")

    fields = {name: name for name in kind._fields if name != "query_id"}
    theirs = [Query(q.query_id, q.default_text()) for q in TrecXmlQueries(Here(), kind, fields).queries_iter()]
    assert formats.read_topics(tmp_path / "t.xml") == theirs
    assert ir_datasets.__name__  # the values come from this package


def test_topics_by_hand(tmp_path):
    def read(text):
        (tmp_path / "t").write_text(text)
        return formats.read_topics(tmp_path / "t")

    trials = '<topics task="2021 TREC Clinical Trials">\n<topic number="1">\nA man\n of 45.\n</topic>\n</topics>'
    assert read(trials) == [Query("1", "A man of 45.")]
    assert read("<topics><topic><num>3</num><title><![CDATA[a <b> c]]></title></topic></topics>") == [Query("3", "a <b> c")]
    assert read("<top>\n<num> Number: 201\n<desc> Description:\nWhat is it?\n</top>") == [Query("201", "What is it?")]
    assert read("<top>\n<num> C041 </num>\n<EN-title> Pesticides </EN-title>\n<EN-desc> d </EN-desc>\n</top>") == [
        Query("41", "Pesticides")
    ]
    indri = "<parameters>\n<query>\n<number>701</number>\n<text>us oil</text>\n</query>\n</parameters>"
    assert read(indri) == [Query("701", "us oil")]
    assert read("<topics><topic id='T-01'><title>a</title></topic></topics>") == [Query("T-01", "a")]


DOCS = (
    "<DOC>\n<DOCNO> FR-1 </DOCNO>\n<TITLE>Hello</TITLE>\n<DATE>not now</DATE>\n<IGNORED>x</IGNORED>\n"
    "<TEXT>\nFirst <b>line</b>,\nsecond.\n</TEXT>\n</DOC>\n<DOC>\n<DOCNO>FR-2</DOCNO>\n<TEXT>\nz\n</TEXT>\n</DOC>\n"
)


def test_trec_documents_are_anserinis(tmp_path):
    start_jvm()
    from jnius import autoclass

    folder = tmp_path / "docs"
    (folder / "fr").mkdir(parents=True)
    (folder / "fr" / "FR94").write_text(DOCS)
    (folder / "fr" / "more.gz").write_bytes(gzip.compress(DOCS.replace("FR-", "GZ-").encode()))
    (folder / "readme.txt").write_text("not a document")
    collection = autoclass("io.anserini.collection.TrecCollection")(autoclass("java.nio.file.Paths").get(str(folder)))
    segments, theirs = collection.iterator(), []
    while segments.hasNext():
        docs = segments.next().iterator()
        while docs.hasNext():
            doc = docs.next()
            theirs.append(Doc(doc.id(), "", doc.contents()))
    ours = list(formats.read_collection(folder))
    assert sorted(ours) == sorted(doc for doc in theirs if doc.doc_id) and len(ours) == 4
    assert list(formats.read_collection(folder / "fr" / "FR94")) == ours[:2]
    with pytest.raises(InputError, match="these are TREC documents, not topics; `collection` takes them"):
        formats.read_topics(folder / "fr" / "FR94")
