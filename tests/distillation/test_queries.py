"""Made-up queries: sentences, titles and key terms by hand, no copy left in the document, splits by document, wrong input."""

import json

import numpy as np
import pytest

from pyserini_kd.data import formats, sources
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.distillation import made_queries
from pyserini_kd.distillation.made_queries import Found, MadeQuery, make, sample, sentences
from pyserini_kd.distillation.query_files import QueryConfig, QueryFiles, make_files
from pyserini_kd.storage.errors import InputError

SUBJECTS = [
    "engine",
    "printer",
    "garden",
    "violin",
    "rocket",
    "harbour",
    "kitchen",
    "library",
    "mountain",
    "river",
    "camera",
    "bridge",
]
PARTS = ["valve", "cable", "handle", "battery", "surface", "window", "lever", "bottom"]


def doc_of(number):
    """A document whose first sentence names its two subjects, with filler around it."""
    subject, part = SUBJECTS[number % len(SUBJECTS)], PARTS[number // len(SUBJECTS) % len(PARTS)]
    text = (
        f"The {part} of the {subject} number{number} is broken and the {subject} stops. "
        f"It has been number{number} for a long while and nobody was able to say why it is so. "
        f"We would like to have the {part} of the {subject} back in the way that it was before."
    )
    return Doc(f"d{number}", f"How to mend the {part} of a {subject} number{number}", text)


DOCS = [doc_of(number) for number in range(60)]


def test_sentences_are_split_at_capitals_and_have_a_length_that_suits_a_query():
    text = "See Fig. 3. The cat sat on the mat, e.g. at noon. Why did it sit there so long? Too short! (It liked the warm sun.)"
    assert sentences(text) == [
        "The cat sat on the mat, e.g. at noon.",
        "Why did it sit there so long?",
        "(It liked the warm sun.)",
    ]
    assert sentences(" ".join(["word"] * 41)) == []


def test_a_sentence_and_a_title_leave_their_document():
    cut, made = make(sample(DOCS, 100))
    by_kind = {kind: {query.doc_id: query.text for query in made if query.kind == kind} for kind in made_queries.KINDS}
    assert by_kind["title"]["d7"] == "How to mend the valve of a library number7"
    assert by_kind["sentence"]["d7"] == "The valve of the library number7 is broken and the library stops."
    contents = {doc.doc_id: doc.contents for doc in cut}
    for query in made:
        if query.kind in ("title", "sentence"):
            assert query.text not in contents[query.doc_id]
    assert contents["d7"].strip() == DOCS[7].text.split(". ", 1)[1]


def test_key_terms_are_the_words_with_the_largest_tf_idf():
    docs = [
        Doc("a", "", "blue whale blue whale sea"),
        Doc("b", "", "green tree sea"),
        Doc("c", "", "red stone sea sand dust moon"),
    ]
    _, made = make(Found(docs, 3, 0, 0, 4.0, 1.0))
    assert MadeQuery("a", "phrase", "blue whale") in made
    keywords = next(query.text for query in made if query.doc_id == "c" and query.kind == "keywords")
    assert keywords == "red stone dust moon" or set(keywords.split()) <= {"red", "stone", "sand", "dust", "moon"}
    assert "sea" not in keywords.split()  # it occurs in every document


def test_short_documents_keep_their_text():
    cut, made = make(sample([Doc("a", "A short title here", "Only a few words stand here.")] * 1 + DOCS[:5], 100))
    assert cut[0] == Doc("a", "A short title here", "Only a few words stand here.")
    assert not [query for query in made if query.doc_id == "a" and query.kind in ("title", "sentence")]


def test_sample_counts_and_leaves_out_duplicates_and_empty_documents():
    docs = [*DOCS, Doc("twin", DOCS[0].title, DOCS[0].text), Doc("nothing", "", " \n")]
    found = sample(docs, 100)
    assert (found.n_docs, found.n_duplicates, found.n_empty) == (62, 1, 1)
    assert found.docs == DOCS
    part = sample(docs, 10, seed=1, always={"d59", "twin"})
    assert len(part.docs) == 12 and {"d59", "twin"} <= {doc.doc_id for doc in part.docs}
    assert part == sample(docs, 10, seed=1, always={"d59", "twin"})
    assert part.docs != sample(docs, 10, seed=2, always={"d59", "twin"}).docs


def test_every_document_is_sampled_equally_often():
    counts = np.zeros(20)
    docs = [Doc(str(number), "", f"text number {number}") for number in range(20)]
    for seed in range(400):
        for doc in sample(docs, 5, seed).docs:
            counts[int(doc.doc_id)] += 1
    assert abs(counts - 100).max() < 40  # 400 x 5 / 20, standard deviation 8.7


@pytest.mark.parametrize(
    ("text", "is_english"),
    [
        ("The quick brown fox jumps over the lazy dog and it is not afraid of what may come to it in the night.", True),
        ("Der schnelle braune Fuchs springt über den faulen Hund und hat keine Angst vor dem, was in der Nacht kommt.", False),
        ("Le renard brun rapide saute par-dessus le chien paresseux et ne craint pas ce qui peut venir dans la nuit.", False),
    ],
)
def test_english_is_recognised_by_its_function_words(text, is_english):
    assert sample([Doc("a", "", text)], 10).is_english is is_english


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queries")
    formats.write_collection(DOCS, folder / "docs.jsonl")
    record = make_files(QueryConfig(collection=str(folder / "docs.jsonl"), output=folder / "made", dev=8))
    return QueryFiles(folder / "made"), record


def test_dev_queries_come_from_documents_that_no_training_query_comes_from(made):
    files, record = made
    train, dev = sources.qrels(str(files.qrels("train"))), sources.qrels(str(files.qrels("dev")))
    docs_of = {
        split: {doc_id for grades in found.values() for doc_id in grades} for split, found in {"t": train, "d": dev}.items()
    }
    assert len(docs_of["d"]) == 8 and not docs_of["t"] & docs_of["d"]
    assert {query_id.split(".")[0] for query_id in dev} == {"title", "sentence"}
    assert sum(record["kept"]["dev"].values()) == len(dev) == len(sources.topics(str(files.topics("dev"))))


def test_queries_find_their_document_again(made):
    files, _ = made
    for split in ("train", "dev"):
        run, qrels = Run.read(files.run(split)), sources.qrels(str(files.qrels(split)))
        for query_id, grades in qrels.items():
            assert set(grades) & set(run[query_id].doc_ids[:20])


def test_given_topics_without_judgements_train_on_the_first_hit_and_none_is_held_out(made, tmp_path):
    files, _ = made
    (tmp_path / "log.tsv").write_text("1\tbroken violin handle\n2\tzzz unknown\n")
    config = QueryConfig(
        collection=str(files.folder.parent / "docs.jsonl"), topics=str(tmp_path / "log.tsv"), output=tmp_path / "q", train=5
    )
    make_files(config)
    found = QueryFiles(tmp_path / "q")
    topics = sources.topics(str(found.topics("train")))
    assert Query("given.1", "broken violin handle") in topics and len(topics) == 5
    assert "given.2" not in {query.query_id for query in topics}  # BM25 finds nothing
    first = Run.read(found.run("train"))["given.1"].doc_ids[0]
    assert sources.qrels(str(found.qrels("train")))["given.1"] == {first: 1}
    assert all(not query.query_id.startswith("given") for query in sources.topics(str(found.topics("dev"))))


def test_judged_topics_are_split_and_the_documents_stay_whole(made, tmp_path):
    files, _ = made
    topics = [Query(str(number), f"violin number{number}") for number in range(20)]
    formats.write_topics(topics, tmp_path / "t.tsv")
    formats.write_qrels({str(number): {f"d{number}": 1} for number in range(20)}, tmp_path / "q.txt")
    collection = files.folder.parent / "docs.jsonl"
    make_files(QueryConfig(collection=str(collection), topics=str(tmp_path / "t.tsv"), qrels=str(tmp_path / "q.txt"),
                           docs=30, output=tmp_path / "q"))  # fmt: skip
    found = QueryFiles(tmp_path / "q")
    dev, train = (sources.topics(str(found.topics(split))) for split in ("dev", "train"))
    assert len(dev) == 4 and all(query.query_id.startswith("given.") for query in dev)
    assert not {query.query_id for query in dev} & {query.query_id for query in train}
    assert {query.query_id for query in train} >= {f"given.{n}" for n in range(20)} - {query.query_id for query in dev}
    docs = {doc.doc_id: doc for doc in sources.collection(str(found.docs))}
    assert all(docs[f"d{number}"] == DOCS[number] for number in range(20))


def test_judgements_of_documents_hold_for_their_passages(made, tmp_path):
    files, _ = made
    formats.write_topics([Query(str(number), f"violin number{number}") for number in range(20)], tmp_path / "t.tsv")
    formats.write_qrels({str(number): {f"d{number}": 1} for number in range(20)}, tmp_path / "q.txt")
    make_files(QueryConfig(collection=str(files.folder.parent / "docs.jsonl"), segment="20:10", topics=str(tmp_path / "t.tsv"),
                           qrels=str(tmp_path / "q.txt"), output=tmp_path / "q"))  # fmt: skip
    for grades in sources.qrels(str(QueryFiles(tmp_path / "q").qrels("dev"))).values():
        assert len(grades) > 1 and all("#" in doc_id and grade == 1 for doc_id, grade in grades.items())


def test_the_same_seed_writes_the_same_bytes(made, tmp_path):
    files, _ = made
    make_files(QueryConfig(collection=str(files.folder.parent / "docs.jsonl"), output=tmp_path / "again", dev=8))
    for name in ("docs.jsonl", "train.tsv", "dev.qrels.txt", "train.bm25.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (files.folder / name).read_bytes()


def test_a_seq2seq_checkpoint_generates_questions(tmp_path, tokenizer):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
                      pad_token_id=0, eos_token_id=3)  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    from pyserini_kd.distillation.query_generator import generate

    docs = [Doc("a", "", "the cat eats hay"), Doc("b", "", "the dog drinks water")]
    found = generate(str(tmp_path / "t5"), docs, 3, seed=5)
    assert found == generate(str(tmp_path / "t5"), docs, 3, seed=5)
    assert {query.doc_id for query in found} == {"a", "b"} and {query.kind for query in found} == {"generated"}
    assert len(found) == len(set(found)) <= 6


def test_wrong_input_is_one_line(tmp_path, tiny_dot, invoke):
    (tmp_path / "empty.jsonl").write_text(json.dumps({"id": "1", "contents": ""}) + "\n")
    with pytest.raises(InputError, match="has no document with text"):
        make_files(QueryConfig(collection=str(tmp_path / "empty.jsonl"), output=tmp_path / "q"))
    with pytest.raises(InputError, match="judges the topics"):
        QueryConfig(collection="docs.jsonl", qrels="q.txt", output=tmp_path / "q")
    from pyserini_kd.distillation.query_generator import generate

    with pytest.raises(InputError, match="is not a seq2seq checkpoint"):
        generate(str(tiny_dot), DOCS[:1], 1)
