"""Query vectors on disk against damaged files, kills, other searches and folders that cannot be written."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from pyserini_kd import search
from pyserini_kd.retrieval.query_cache import QueryCache
from pyserini_kd.storage.errors import InputError
from tests.retrieval.test_query_cache import words


def test_a_damaged_file_is_named(invoke, words, tmp_path):
    assert invoke(search.main, *words, "--output", tmp_path / "a").exit_code == 0
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    for text, message in (
        (whole[:100], "damaged or not ours"),
        (b"", "damaged or not ours"),
        (whole.replace(b"mean", b"last"), "not ours"),
    ):
        path.write_bytes(text)
        result = invoke(search.main, *words, "--output", tmp_path / "b")
        assert result.exit_code == 2 and message in result.output and path.name in result.output, result.output
    result = invoke(search.main, "--bm25", "--index", "x", "--topics", "y", "--query-cache", "z")
    assert result.exit_code == 2 and "--query-cache: is for a dense" in result.output
    with pytest.raises(InputError, match="not ours"):
        QueryCache(path, "else").encode(["a"], lambda texts: pytest.fail("asked"))


def vectors(texts):
    return np.array([[len(text), 0.1] for text in texts], np.float32).reshape(-1, 2)


def test_many_searches_at_once_keep_all_their_queries(tmp_path):
    faults = []

    def search_often(own):
        for number in range(20):
            texts = ["shared", f"{own} " + "x" * number]
            try:
                assert np.array_equal(QueryCache(tmp_path / "c" / "x.sqlite", "us").encode(texts, vectors), vectors(texts))
            except BaseException as error:
                faults.append(error)

    threads = [threading.Thread(target=search_often, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = [f"{own} " + "x" * number for own in range(4) for number in range(20)]
    cache = QueryCache(tmp_path / "c" / "x.sqlite", "us")
    assert not faults and len(cache.encode(known, lambda texts: pytest.fail("known"))) == 80


def test_a_folder_that_cannot_be_written_is_said_and_known_queries_are_found(tmp_path, monkeypatch):
    cache = QueryCache(tmp_path / "x.sqlite", "us")
    cache.encode(["a"], vectors)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root
    assert cache.encode(["a"], lambda texts: pytest.fail("known")).tolist() == vectors(["a"]).tolist()
    with pytest.raises(InputError, match="x.sqlite cannot be written: no permission to write in"):
        cache.encode(["a", "b"], vectors)


def test_a_kill_while_vectors_are_written_leaves_those_of_before(tmp_path):
    path = tmp_path / "x.sqlite"
    QueryCache(path, "us").encode(["a"], vectors)
    code = f"""
import os, sqlite3
database = sqlite3.connect({str(path)!r})
database.execute("PRAGMA cache_spill = 1")
database.executemany("INSERT INTO vectors VALUES (?, ?)", ((bytes([n % 256, n // 256]) * 16, b"x" * 5000) for n in range(2000)))
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert (tmp_path / "x.sqlite-journal").exists()
    assert QueryCache(path, "us").encode(["a"], lambda texts: pytest.fail("known")).tolist() == vectors(["a"]).tolist()
    QueryCache(path, "us").encode(["b"], vectors)
    assert [found.name for found in tmp_path.iterdir()] == ["x.sqlite"]
