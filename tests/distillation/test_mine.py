"""Candidates: contracts of groups, reasons counted, files round trip, memory small."""

import tracemalloc

import pytest

from pyserini_kd import mine
from pyserini_kd.data.formats import read_collection, read_topics
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.distillation import candidates, mining, text_triples
from pyserini_kd.distillation.candidates import read_candidates
from pyserini_kd.storage.errors import InputError

DOCS = [Doc(f"d{n}", "", f"text number {n}") for n in range(8)] + [Doc("twin", "", "text  number 0")]
QUERIES = [Query("a", "x"), Query("b", "y"), Query("c", "z"), Query("none", "w")]
QRELS = {"a": {"d0": 1, "d1": 0}, "b": {"d2": 2}, "c": {"d3": 1, "gone": 1}, "none": {"gone": 1}}
RUN = Run.from_scores("r", {"a": {"twin": 9.0, "d1": 8.0, "d4": 7.0, "d0": 6.0, "d5": 5.0}, "b": {"d6": 1.0}})


def by_query(groups):
    return {group.query_id: group for group in groups}


def test_hard_negatives():
    mined = mining.mine(QUERIES, QRELS, [RUN], DOCS, negatives=2, depth=4, seed=1)
    groups = by_query(mined.groups)
    assert groups["a"].doc_ids[0] == "d0" and groups["a"].labels == [1, 0, 0]
    assert set(groups["a"].doc_ids[1:]) == {"d1", "d4"}  # the twin equals the positive, d5 lies below depth 4
    assert groups["b"].doc_ids == ["d2", "d6"]
    assert (mined.without_positive, mined.without_negative, mined.equal_to_positive) == (1, 1, 1)


def test_shared_negatives_are_the_block_s_other_positives():
    mined = mining.mine(QUERIES, QRELS, [], DOCS, negatives=0, shared=3)
    groups = by_query(mined.groups)
    assert {q: set(g.doc_ids[1:]) for q, g in groups.items()} == {"a": {"d2", "d3"}, "b": {"d0", "d3"}, "c": {"d0", "d2"}}
    assert {g.block for g in mined.groups} == {0}
    pairs = mining.mine(QUERIES, QRELS, [], DOCS, negatives=0, shared=2)
    assert sorted(len(g.doc_ids) for g in pairs.groups) == [2, 2] and pairs.without_negative == 1


def test_same_seed_same_groups():
    first, again = (mining.mine(QUERIES, QRELS, [RUN], DOCS, negatives=1, shared=3, seed=5) for _ in range(2))
    assert first == again


def test_files_round_trip(tmp_path):
    groups = mining.mine(QUERIES, QRELS, [RUN], DOCS, negatives=2, shared=3).groups
    candidates.write_candidates(groups, tmp_path / "c.jsonl")
    read = candidates.read_candidates(tmp_path / "c.jsonl")
    assert list(read) == groups and len(read) == len(groups) and read[2] == groups[2]
    assert candidates.n_docs(read) == candidates.n_docs(groups) == sum(len(group.doc_ids) for group in groups)
    candidates.write_candidates(groups, tmp_path / "c.tsv")
    triples = candidates.read_candidates(tmp_path / "c.tsv")
    candidates.write_candidates(groups, tmp_path / "c.tsv.gz")
    assert list(candidates.read_candidates(tmp_path / "c.tsv.gz")) == list(triples)
    assert [(g.query_id, *g.doc_ids) for g in triples] == [(g.query_id, *p) for g in groups for p in candidates.pairs(g)]


def test_any_group_of_a_large_file_can_be_read(tmp_path):
    lines = [f"q{n}\tp{n}\tn{n}\n" + "\n" * (n % 3) for n in range(71)]
    (tmp_path / "c.tsv").write_text("".join(lines))
    read = candidates.read_candidates(tmp_path / "c.tsv")
    assert [group.query_id for group in read] == [read[n].query_id for n in range(71)] == [f"q{n}" for n in range(71)]
    for wrong in (-1, 71):
        with pytest.raises(IndexError):
            read[wrong]


def test_memory_holds_half_a_byte_per_group(tmp_path):
    held = []
    for count in (500, 5_500):
        (tmp_path / "c.tsv").write_text("".join(f"query{n}\tpositive{n}\tnegative{n}\n" for n in range(count)))
        tracemalloc.start()
        read = candidates.read_candidates(tmp_path / "c.tsv")
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(read) == count
    assert held[1] - held[0] < 5_000  # as objects a group has 500 bytes


def test_command(tmp_path, invoke, files, bm25_index):
    base = [
        "--collection",
        files["docs"],
        "--topics",
        files["topics"],
        "--qrels",
        files["qrels"],
        "--output",
        tmp_path / "c.jsonl",
    ]
    result = invoke(mine.main, *base, "--index", bm25_index, "--negatives", 3)
    assert result.exit_code == 0 and "10 queries, 40 documents" in result.output, result.output
    assert invoke(mine.main, *base, "--index", bm25_index).exit_code == 2
    (tmp_path / "other.qrels").write_text("elsewhere 0 eat-cat 1\n")
    for wrong, word in (
        (["--negatives", 1], "hard negatives need an --index or --runs"),
        (["--index", "x", "--run", "y"], "not both"),
        (["--qrels", tmp_path / "other.qrels", "--index", bm25_index], "share no query"),
        (["--negatives", 0], "; set --negatives or --shared"),
    ):
        result = invoke(mine.main, *base, "--overwrite", *wrong)
        assert result.exit_code == 2 and word in result.output


def test_without_judgements_the_first_hit_is_the_positive(tmp_path, invoke, files, bm25_index, caplog):
    from pyserini_kd.data.formats import read_topics
    from pyserini_kd.retrieval import bm25_search

    base = ["--collection", files["docs"], "--topics", files["topics"], "--output", tmp_path / "c.jsonl", "--negatives", 3]
    result = invoke(mine.main, *base, "--index", bm25_index, "--depth", 10)
    assert result.exit_code == 0 and "10 queries, 40 documents" in result.output, result.output
    assert "labels come from the first stage; train with a loss on teacher scores" in caplog.text
    run = bm25_search.search(str(bm25_index), read_topics(files["topics"]), hits=10)
    for group in candidates.read_candidates(tmp_path / "c.jsonl"):
        hits = run[group.query_id].doc_ids
        assert group.doc_ids[0] == hits[0] and group.labels == [1, 0, 0, 0] and set(group.doc_ids[1:]) <= set(hits[1:])
    result = invoke(mine.main, *base, "--overwrite", "--shared", 4, "--negatives", 0)
    assert result.exit_code == 2 and "without judgements, an --index or --runs must give the documents" in result.output, (
        result.output
    )
    first = Run.from_scores("first", {"a": {"x": 2.0, "y": 1.0}})
    second = Run.from_scores("second", {"a": {"y": 2.0}, "b": {"z": 1.0}})
    assert mining.first_hits([first, second]) == {"a": {"x": 1}, "b": {"z": 1}}


def test_whole_documents_are_refused_as_passage_negatives(tmp_path, invoke, files):
    Run.from_scores("whole", {"q0": {"eat-cat": 2.0, "eat-dog": 1.0}}).write(tmp_path / "run.txt")
    words = [
        "--collection",
        files["docs"],
        "--topics",
        files["topics"],
        "--qrels",
        files["qrels"],
        "--output",
        tmp_path / "c.jsonl",
    ]
    result = invoke(mine.main, *words, "--segment", "4:2", "--runs", tmp_path / "run.txt")
    assert result.exit_code == 2 and "negatives are whole documents, not passages" in result.output


TRIPLES = [
    ("what is a cat", "A cat is an animal.", "Dogs bark."),
    ("what is a cat", "A cat  is an animal.", "Fish swim."),  # the same positive, but for blanks
    ("what is a cat", "Cats purr.", "A cat is an animal."),  # another positive of the query
    ("who barks", "Dogs bark.", "A cat is an animal."),
    ("who barks", "Dogs bark.", "Dogs bark."),  # equal to its positive
]


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize("ending", [".tsv", ".tsv.gz"])
def test_triples_of_texts_become_files_for_training(tmp_path, invoke, monkeypatch, chunk, ending):
    monkeypatch.setattr(text_triples, "CHUNK", chunk)
    (tmp_path / "triples.train.small.tsv").write_text("".join("\t".join(row) + "\n" for row in TRIPLES))
    output = tmp_path / f"ids{ending}"
    result = invoke(mine.main, "--triples", tmp_path / "triples.train.small.tsv", "--output", output)
    assert result.exit_code == 0 and "3 triples" in result.output and "left out: 2 triples" in result.output, result.output
    queries = {q.query_id: q.text for q in read_topics(tmp_path / "ids.topics.tsv")}
    docs = {d.doc_id: d.contents for d in read_collection(tmp_path / "ids.docs.jsonl")}
    again = [(queries[g.query_id], *(docs[d] for d in g.doc_ids)) for g in read_candidates(output)]
    assert again == [tuple(" ".join(text.split()) for text in TRIPLES[row]) for row in (0, 1, 3)]
    assert sorted(queries.values()) == ["what is a cat", "who barks"]
    assert sorted(docs.values()) == ["A cat is an animal.", "Dogs bark.", "Fish swim."]  # each once
    result = invoke(mine.main, "--triples", tmp_path / "triples.train.small.tsv", "--output", output)
    assert result.exit_code == 2 and "exists" in result.output


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("q\tp\n", [], ":1: expected texts"),
        ("a query\tp\t\n", [], ":1: expected texts"),
        ("q1\td1\td2\n", [], ":1: these triples have ids, not texts; `train --candidates` takes them"),
        ("a query\tp\tn\n", ["--topics", "t.tsv"], "--topics: conflicts with --triples"),
        ("a query\tp\tn\n", ["--negatives", "2"], "--negatives: conflicts with --triples"),
    ],
)
def test_malformed_triples_of_texts(tmp_path, invoke, text, words, message):
    (tmp_path / "t").write_text(text)
    result = invoke(mine.main, "--triples", tmp_path / "t", "--output", tmp_path / "o.tsv", *words)
    assert result.exit_code == 2 and message in result.output, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    result = invoke(mine.main, "--output", tmp_path / "o.tsv")
    assert result.exit_code == 2 and "--collection: missing; give it, or --triples" in result.output


def test_candidates_with_texts_are_named(tmp_path):
    (tmp_path / "t.tsv").write_text("what is a cat\tA cat is\tDogs bark\n")
    with pytest.raises(InputError, match="this is triples of texts, which `mine --triples` takes"):
        read_candidates(tmp_path / "t.tsv")
