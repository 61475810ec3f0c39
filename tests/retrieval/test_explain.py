"""One query in the terminal: the snippet is the densest window with marked words; --explain; ir_metadata."""

import doctest
import re

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pyserini_kd import search
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Query
from pyserini_kd.retrieval import fusion, show
from pyserini_kd.storage.errors import InputError
from tests.conftest import rerank_by_name, search_by_name

QUERY = [Query("1", "what the goose eats")]


def test_the_window_with_most_distinct_words_wins():
    text = "merge merge merge " + "x " * 40 + "sorted merge " + "y " * 40
    shown = show.snippet(text, show.stems("merge sorted"), 40)
    assert shown.startswith("... x x") and shown.endswith("y y ...") and "sorted merge" in shown and len(shown) <= 40
    before, after = shown.split("sorted merge")
    assert abs(len(before) - len(after)) <= 4  # centred
    text = "sorted x y z " + "x " * 40 + "sorted sorted " + "y " * 40  # equally many distinct words: most words in all win
    assert "sorted sorted" in show.snippet(text, show.stems("sorted"), 40)


WORDS = st.lists(st.sampled_from(["goose", "geese", "hay", "barn", "x", "long" * 9]), max_size=60)


@given(words=WORDS, width=st.integers(20, 80))
def test_a_snippet_is_the_best_part_of_the_text_within_the_width(words, width):
    text = " ".join(words)
    wanted = {"goos", "hai", "barn"}
    shown = show.snippet(text, wanted, width)
    assert len(shown) <= width and shown.removeprefix("... ").removesuffix(" ...") in text
    room = width - 8 if len(text) > width else len(text)

    def distinct(piece):
        return len({show.stem(word) for word in show.WORD.findall(piece)} & wanted)

    spans = [match.span() for match in show.WORD.finditer(text)]
    best = max((distinct(text[a:b]) for a, _ in spans for _, b in spans if 0 < b - a <= room), default=0)
    assert distinct(shown) == best


def test_examples_in_docstrings():
    assert doctest.testmod(show).failed == 0 < doctest.testmod(show).attempted


def test_marks_are_whole_words_by_stem():
    assert (
        show.mark("Sorted sorting unsorted sort_keys", show.stems("sorts"), "<{}>".format)
        == "<Sorted> <sorting> unsorted <sort>_keys"
    )
    assert show.stems("the of") == {"the", "of"}  # only stop words: they count


@pytest.fixture
def hybrid(dense_index, bm25_index, tiny_dot, tiny_cross):
    words = ["--index", dense_index, "--encoder", tiny_dot, "--sparse-index", bm25_index, "--query", QUERY[0].text, "--hits", 3]
    return [str(word) for word in [*words, "--rerank", tiny_cross, "--depth", 4]]


def test_explain_shows_every_stage(invoke, hybrid, dense_index, bm25_index, tiny_dot, tiny_cross):
    result = invoke(search.main, *hybrid, "--explain")
    assert result.exit_code == 0, result.output
    sparse, dense = search_by_name(QUERY, str(bm25_index), "bm25"), search_by_name(QUERY, str(dense_index), str(tiny_dot))
    fused = fusion.rrf([sparse, dense])
    reranked = rerank_by_name(fused, QUERY, str(bm25_index), str(tiny_cross), depth=4)

    def place(run, doc_id):
        hits = run["1"]
        if doc_id not in hits.doc_ids:
            return "-"
        return f"{hits.doc_ids.index(doc_id) + 1} ({hits.scores[hits.doc_ids.index(doc_id)]:.4f})"

    lines = result.output.splitlines()
    assert len(lines) == 3 * 3 + 1
    for rank, doc_id in enumerate(reranked["1"].doc_ids[:3]):
        head, _, explained = lines[3 * rank : 3 * rank + 3]
        assert head.split()[0] == str(rank + 1) and head.split()[2] == doc_id
        runs = {"BM25": sparse, "dense": dense, "fused": fused, "reranked": reranked}
        assert explained.strip() == "  ".join(f"{name} {place(run, doc_id)}" for name, run in runs.items())
    assert "fusion sum of 1 / (60 + rank)" in lines[-1] and "rerank_seconds" in lines[-1]


def test_explain_shows_documents_that_a_stage_did_not_find(invoke, hybrid):
    result = invoke(search.main, *hybrid[:-4], "--hits", 20, "--explain", "--query", "goose")  # BM25 finds two documents only
    assert result.exit_code == 0 and result.output.count("BM25 -") == 18 and "reranked" not in result.output
    result = invoke(search.main, *hybrid[:-4])
    assert "BM25" not in result.output


def test_matched_words_are_bold_on_a_terminal_and_plain_elsewhere(hybrid, bm25_index):
    words = ["--encoder", "bm25", "--index", str(bm25_index), "--query", "what the goose eats", "--hits", "1"]
    terminal = CliRunner().invoke(search.main, words, color=True).output
    plain = CliRunner().invoke(search.main, words).output
    assert "\x1b[1mGoose\x1b[0m" in terminal and "the \x1b[1mgoose\x1b[0m \x1b[1meats\x1b[0m hay" in terminal
    assert "\x1b" not in plain and re.sub(r"\x1b\[\d+m", "", terminal) == plain


def test_ir_metadata_comes_first_and_the_run_stays_the_same(invoke, bm25_index, files, tmp_path):
    words = ["--encoder", "bm25", "--index", bm25_index, "--topics", files["topics"], "--hits", 3, "--output"]
    assert invoke(search.main, *words, tmp_path / "plain.txt").exit_code == 0
    result = invoke(search.main, *words, tmp_path / "run.txt", "--ir-metadata")
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "run.txt").read_text().splitlines(keepends=True)
    end = lines.index("# ir_metadata.end\n")
    assert lines[0] == "# ir_metadata.start\n" and "".join(lines[end + 1 :]) == (tmp_path / "plain.txt").read_text()
    metadata = yaml.safe_load("".join(line[2:] for line in lines[1:end]))
    assert metadata["tag"] == "bm25" and metadata["method"]["retrieval"][0]["index"] == str(bm25_index)
    assert metadata["platform"]["hardware"]["cpu"]["number of cores"] >= 1
    run, plain = Run.read(tmp_path / "run.txt"), Run.read(tmp_path / "plain.txt")
    assert {q: hits.doc_ids for q, hits in run.items()} == {q: hits.doc_ids for q, hits in plain.items()} and run.tag == "bm25"
    (tmp_path / "tabs.txt").write_text("".join(lines).replace(" Q0 ", "\tQ0\t"))  # not for the fast reader
    assert {q: hits.doc_ids for q, hits in Run.read(tmp_path / "tabs.txt").items()} == {
        q: hits.doc_ids for q, hits in plain.items()
    }
    for text, message in (
        ("# ir_metadata.start\n# ir_metadata.end\n", "run file is empty"),
        (lines[0] + lines[-1], "no `# ir_metadata.end`"),
    ):
        (tmp_path / "none.txt").write_text(text)
        with pytest.raises(InputError, match=message):
            Run.read(tmp_path / "none.txt")
    result = invoke(search.main, *words, tmp_path / "other.tsv", "--ir-metadata", "--output-format", "msmarco")
    assert result.exit_code == 2 and "--ir-metadata: is for --output-format trec" in result.output
