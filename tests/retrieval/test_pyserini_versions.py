"""Pyserini 1.6 and 2.x: indexes of one in the other, no import of Pyserini for BM25, its network, its cache, the JVM."""

import subprocess
import sys
import tarfile
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from pyserini_kd.data import pyserini_versions, sources
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.retrieval import bm25_build, bm25_search
from pyserini_kd.retrieval.bm25_search import BM25Index
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.storage.errors import InputError

HERE = Path(__file__).parent
VERSION = tuple(map(int, pyserini_versions.version().split(".")[:2]))
WORDS = ["apple", "pear", "plum", "fig", "date"]
DOCS = [Doc(f"d{n}", "", " ".join(WORDS[n % 5 :] + WORDS[: n % 3])) for n in range(12)]
VECTORS = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)


def make_indexes(folder: Path) -> None:
    """Write the folders of `indexes_of_both.tar.gz`: `lucene9` was written with Pyserini 1.6.0, `lucene10` with 2.4.0."""
    from tests.retrieval.test_lucene_vectors import folder_of

    bm25_build.index_bm25(DOCS, folder / "bm25")
    for kind in ("lucene-hnsw", "lucene-flat"):
        folder_of(folder / kind, VECTORS, kind, cuts=(), ids=[doc.doc_id for doc in DOCS])


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    with tarfile.open(HERE / "indexes_of_both.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


readable = pytest.mark.parametrize("written_by", ["lucene9", *(["lucene10"] if VERSION >= (2, 4) else [])])


@readable
@pytest.mark.parametrize("rm3", [False, True], ids=["bm25", "rm3"])
def test_bm25_indexes_of_both_give_equal_runs(indexes, written_by, rm3, tmp_path):
    bm25_build.index_bm25(DOCS, tmp_path / "now")
    query = [Query("q", "plum fig")]
    old, now = (bm25_search.search(folder, query, rm3=rm3)["q"] for folder in (indexes / written_by / "bm25", tmp_path / "now"))
    assert old.doc_ids == now.doc_ids and old.scores.tolist() == now.scores.tolist() and len(now.doc_ids) >= 7
    assert list(BM25Index.open(indexes / written_by / "bm25").fetch_docs(["d7"])) == [DOCS[7]]


@readable
@pytest.mark.parametrize("kind", ["lucene-hnsw", "lucene-flat"])
def test_vector_indexes_of_both_give_numpys_products(indexes, written_by, kind):
    opened = DenseIndex.open(indexes / written_by / kind)
    scores, rows = opened.search(VECTORS[:3], 12)
    products = VECTORS[:3] @ VECTORS.T
    assert np.array_equal(rows, np.argsort(-products, axis=1))
    assert np.allclose(scores, -np.sort(-products, axis=1), atol=1e-5)
    assert np.array_equal(opened.vectors(["d9", "d2", "d9"]), VECTORS[[9, 2, 9]])


@pytest.mark.skipif(VERSION >= (2, 4), reason="this Pyserini reads the indexes of Pyserini 2.4")
@pytest.mark.parametrize("kind", ["bm25", "lucene-hnsw", "lucene-flat"])
def test_older_versions_say_that_a_newer_one_wrote_the_index(indexes, kind):
    """Lucene 10.4 of Pyserini 2.0 to 2.3 does not read all of Lucene 10.5."""
    folder = indexes / "lucene10" / kind
    with pytest.raises(InputError) as error:
        (BM25Index if kind == "bm25" else DenseIndex).open(folder)
    newer = (
        f"written by a newer Lucene than that of Pyserini {pyserini_versions.version()}; build it again or use a newer Pyserini"
    )
    reason = newer if VERSION >= (2, 0) else "written by Pyserini 2 (Lucene 10); build it again or use Pyserini 2"
    assert str(error.value) == f"{folder} cannot be opened: {reason}"


def test_too_old_and_other_messages_of_lucene():
    old = "Format version is not supported (resource x): This index was initially created with Lucene 8.x while the current"
    assert pyserini_versions.explained(old) == "written by Lucene 8; build it again or use an older Pyserini"
    new = "Format version is not supported (resource x): 2 (needs to be between 0 and 0)"
    assert "written by a newer Lucene than that of Pyserini" in pyserini_versions.explained(new)
    for other in ("codec footer mismatch", new.replace(": 2", ": -1")):
        assert pyserini_versions.explained(other) == other


# ------------------------------------------------------------------------------------------------- no import, no network

WITHOUT_PYSERINI = """
import sys
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.retrieval import bm25_build
from pyserini_kd.retrieval.bm25_search import BM25Index
bm25_build.index_bm25([Doc("1", "", "an apple"), Doc("2", "", "a pear")], "index")
opened = BM25Index.open("index")
for rm3 in (False, True):
    assert opened.search([Query("q", "pear")], rm3=rm3)["q"].doc_ids == ["2"]
assert list(opened.fetch_docs(["1"])) == [Doc("1", "", "an apple")]
assert "jnius" in sys.modules and not [name for name in sys.modules if name.split(".")[0] == "pyserini"]
"""


def test_bm25_does_not_import_pyserini(tmp_path):
    done = subprocess.run([sys.executable, "-c", WITHOUT_PYSERINI], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_names_say_that_they_need_the_network(monkeypatch):
    def unreachable(_):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(pyserini_versions, "prebuilt_indexes", unreachable)
    monkeypatch.setattr(pyserini_versions, "topic_set", unreachable)
    end = f"and Pyserini {pyserini_versions.version()} needs the network for its list of %s: Name or service not known"
    for call, problem, names in (
        (BM25Index.open, "index not found: robust is not a folder", "prebuilt indexes"),
        (sources.topics, "topics not found: robust is no file", "topic sets"),
    ):
        with pytest.raises(InputError) as error:
            call("robust")
        assert str(error.value) == f"{problem}, {end % names}"
    with pytest.raises(InputError, match="^index not found: runs/robust does not exist$"):  # a path is no name
        BM25Index.open("runs/robust")


@pytest.mark.skipif(VERSION < (2, 4), reason="only Pyserini 2.4 and newer ask the network for names")
@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--encoder", "bm25", "--index", "msmarco-v1-passage", "--query", "apple"], "prebuilt indexes"),
        (["--encoder", "minilm", "--index", "msmarco-v1-passage.tct", "--query", "apple"], "prebuilt indexes"),
        (["--encoder", "bm25", "--index", ".", "--topics", "dl19-passage"], "topic sets"),
    ],
)
def test_pyserini_2_4_offline(tmp_path, words, names):
    """A proxy that does not answer simulates a machine without a network."""
    script = "import os; os.environ['https_proxy'] = 'http://127.0.0.1:9'; from pyserini_kd.search import main; main()"
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert f"needs the network for its list of {names}" in line


# --------------------------------------------------------------------------------------------------------- cache, JVM


@pytest.mark.parametrize(
    ("version", "folder", "named", "expected"),
    [
        ("1.6.0", True, "", "home/.cache/pyserini"),
        ("2.3.0", True, "", "home/.cache/pyserini"),
        ("2.4.0", True, "", "work/.cache/pyserini"),
        ("2.4.0", False, "", "home/.cache/pyserini"),
        ("2.4.0", True, "own", "own"),
    ],
)
def test_the_cache_is_pyserinis(version, folder, named, expected, tmp_path, monkeypatch):
    for name in ("home", "work"):
        (tmp_path / name / ".cache").mkdir(parents=True)
    if not folder:
        (tmp_path / "work" / ".cache").rmdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYSERINI_CACHE", named and str(tmp_path / named))
    monkeypatch.setattr(pyserini_versions, "version", lambda: version)
    assert pyserini_versions.cache_home() == tmp_path / expected


def test_the_installed_pyserini_has_this_cache(tmp_path, monkeypatch):
    from pyserini.util import get_cache_home

    monkeypatch.delenv("PYSERINI_CACHE", raising=False)
    for folder in (tmp_path, tmp_path / ".cache"):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path)
        assert str(pyserini_versions.cache_home()) == get_cache_home()


NESTED = """
import json, threading
from pyserini_kd.data.java import start_jvm
start_jvm()
def read():
    try:
        json.loads("[" * 200_000)
    except RecursionError:
        print("refused")
read()
thread = threading.Thread(target=read)
thread.start()
thread.join()
from jnius import JavaException, autoclass
try:
    autoclass("java.util.regex.Pattern").compile("(x|y)*").matcher("x" * 1_000_000).matches()
except JavaException as error:
    print(str(error).split("\\n")[1])
"""


def test_deep_recursion_is_an_exception_while_java_runs():
    """With Java's default stack size, the first input causes a segmentation fault in Python 3.13."""
    done = subprocess.run([sys.executable, "-c", NESTED], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.splitlines() == ["refused", "refused", "java.lang.StackOverflowError"], done


def test_constraints_differ_in_pyserini_only():
    """Each file pins the tested versions. Some packages are needed with one version of Pyserini only."""
    root = HERE.parents[1]
    one, two = (
        dict(line.split("==") for line in (root / name).read_text().split())
        for name in ("constraints.txt", "constraints-pyserini2.txt")
    )
    assert {name for name in one.keys() & two.keys() if one[name] != two[name]} == {"pyserini"}
    assert one["pyserini"].startswith("1.6") and two["pyserini"].startswith("2.")
    assert len(one.keys() ^ two.keys()) < 10
