"""Query vectors on disk against damaged files."""

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
