"""Snippets of unusual texts, and terminal control characters in texts."""

import click
import pytest

from pyserini_kd import search
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc
from pyserini_kd.retrieval import show


def test_snippets_at_the_edges():
    assert show.snippet("short  text\nof two lines", {"x"}, 30) == "short text of two lines"
    assert show.snippet("a " * 50, {"nothing"}, 30) == "a " * 10 + "a ..."
    assert show.snippet("a " * 50, {"nothing"}, 31) == "a " * 11 + "a ..."
    first = show.snippet("goose x " + "a " * 50 + "goose y", {"goos"}, 30)  # of equal windows, the first
    assert first.startswith("goose x a")
    assert show.snippet("goose " + "a " * 50, {"goos"}, 30).startswith("goose a a")
    assert show.snippet("a " * 50 + "goose", {"goos"}, 30).endswith(" a a goose")
    assert show.snippet("x" * 100, {"y"}, 20) == "x" * 12 + " ..."  # no blank to cut at
    assert show.snippet("", {"y"}) == ""


@pytest.mark.parametrize(("columns", "width"), [(80, 80), (20, 60), (500, 160)])
def test_snippets_fit_the_terminal_and_hold_no_control_characters(columns, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    evil = Doc("a", "goose\x1b]0;title\x07", "\x1b[2Jhay " + "goose eats hay " * 40)
    run = Run.from_scores("t", {"1": {"a": 1.0}})
    head, shown = click.unstyle(show.hits("goose", run["1"], lambda ids: [evil], {})).splitlines()
    assert head == "  1     1.0000  a  goose ]0;title" and width - 15 < len(shown) <= width and "\x1b" not in shown


def test_explain_needs_a_query(invoke, bm25_index, files):
    result = invoke(search.main, "--encoder", "bm25", "--index", bm25_index, "--topics", files["topics"], "--explain")
    assert result.exit_code == 2 and "--explain: needs a --query" in result.output
