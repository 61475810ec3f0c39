"""Readers with bad input: malformed, truncated and foreign files, duplicates, and exceptions of ir_datasets."""

import gzip

import pytest

from pyserini_kd.data import formats, sources
from pyserini_kd.data import ids as ids_
from pyserini_kd.data.ids import unique_docs
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.storage.errors import InputError
from tests.data.test_data import docs_of, json_lines, places_in, save

# --------------------------------------------------------------------------------------------------- collections


def test_folder_links_are_followed_once(save, tmp_path):
    save("c/a.jsonl", json_lines({"id": "a", "contents": "a"}))
    save("elsewhere/b.jsonl", json_lines({"id": "b", "contents": "b"}))
    (tmp_path / "c" / "part").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "c" / "round").symlink_to(tmp_path / "c")
    assert [doc.doc_id for doc in formats.read_collection(tmp_path / "c")] == ["a", "b"]


@pytest.mark.parametrize("mark", ["docid", "segments_1"])
def test_our_indexes_in_a_collection_are_ignored(tmp_path, mark):
    (tmp_path / "docs.jsonl").write_text(json_lines({"id": "a", "contents": "a"}))
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "manifest.json").write_text("{}")
    (tmp_path / "index" / mark).touch()
    assert [doc.doc_id for doc in formats.read_collection(tmp_path)] == ["a"]


def test_windows_files(save):
    """Byte order mark, CRLF and blank lines are ignored."""
    assert list(formats.read_collection(save("d.tsv", b"\xef\xbb\xbf1\tone\r\n\r\n2\ttwo\r\n"))) == [
        Doc("1", "", "one"),
        Doc("2", "", "two"),
    ]
    path = save("d.jsonl", b'\xef\xbb\xbf{"id": "1", "contents": "one"}\r\n')
    assert list(formats.read_collection(path)) == [Doc("1", "", "one")]
    assert formats.read_topics(save("t.tsv", b"\xef\xbb\xbf1\tone\r\n")) == [Query("1", "one")]
    assert formats.read_qrels(save("q.txt", b"\xef\xbb\xbf1 0 d 1\r\n")) == {"1": {"d": 1}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", '{"id": "1", "contents": "a"}\n\n{oops\n', r":3: not valid JSON"),
        ("d.json", '{\n  "id": "1",\n', r":1: not valid JSON .*; expected one JSON object per line"),
        ("d.jsonl", f'{{"id": "1", "n": {"9" * 5000}}}\n', r":1: JSON with too many digits"),
        (
            "d.jsonl",
            f'{{"id": "1", "n": {"[" * 100_000}}}\n',
            r":1: JSON with too many digits .* or too many nested brackets",
        ),
        ("d.jsonl", '["id"]\n', r":1: expected one JSON object per line, found str"),
        ("d.jsonl", '{"contents": "a"}\n', r":1: no id; .* found \['contents'\]"),
        ("d.jsonl", '{"id": true, "contents": "a"}\n', r":1: no id"),
        ("d.jsonl", '{"id": "a b", "contents": "a"}\n', r":1: an id must be one word"),
        ("d.jsonl", '{"id": "", "contents": "a"}\n', r":1: an id must be one word"),
        ("d.jsonl", '{"id": "1", "contents": 5}\n', r":1: `contents` must be a string, found int"),
        ("d.jsonl", '{"id": "1", "vector": [1]}\n', r":1: a document needs `contents` or `text`, found \['id', 'vector'\]"),
        ("d.jsonl", '{"id": "1", "contents": "\\ud83d"}\n', r":1: text contains half of a surrogate pair"),
        ("d.tsv", "1\ta\n2\tb\tc\n", r":2: expected .* found 3 columns$"),
        ("d.tsv", "1\ta\n2\n", r":2: expected .* found 1 columns"),
        ("d.tsv", "id\ttitle\ttext\n1\ta\tb\n2\ta\n", r":3: found 2 columns, the header has 3"),
        ("d.csv", 'id,text\n1,"a\nb\n', r":2: wrong quotes"),
        ("d.csv", "key,words\n1,a\n", r":2: no id; .* found \['key', 'words'\]; or say which: `fields` id=NAME"),
        ("d.json", '[{"id": "1", "text": "a"}\n', r":2: not valid JSON \(the array has no end\)"),
        ("d.json", '[\n{"id": "1", "text": "a"},\n{"id": oops}]\n', r":3: not valid JSON"),
        ("d.txt", "1\ta\n", r"expected \.jsonl, \.json, \.tsv, \.csv .* each \.txt or \.md file is a document"),
        ("d.tsv", b"1\ta\n2\t\xff\n", r"not valid UTF-8"),
    ],
)
def test_malformed_collections(save, name, content, message):
    path = save(name, content)
    with pytest.raises(InputError, match=message) as error:
        list(formats.read_collection(path))
    assert str(path) in str(error.value)


def test_whole_surrogate_pairs_are_characters(save):
    assert list(formats.read_collection(save("d.jsonl", '{"id": "1", "contents": "\\ud83d\\ude00"}\n'))) == [Doc("1", "", "😀")]


def test_missing_empty_and_truncated_collections(tmp_path):
    with pytest.raises(InputError, match="collection not found"):
        list(formats.read_collection(tmp_path / "none"))
    with pytest.raises(InputError, match=r"holds no \.jsonl"):
        list(formats.read_collection(tmp_path))
    whole = gzip.compress(b"1\ta\n" * 1000)
    for content in (whole[: len(whole) // 2], b"no gzip at all", whole[:20] + b"\0\0\0" + whole[23:]):
        (tmp_path / "d.tsv.gz").write_bytes(content)
        with pytest.raises(InputError, match=r"d\.tsv\.gz: not a complete gzip file"):
            list(formats.read_collection(tmp_path / "d.tsv.gz"))
    (tmp_path / "d.tsv.gz").write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        list(formats.read_collection(tmp_path / "d.tsv.gz"))


def test_writers_refuse_to_overwrite(tmp_path):
    (tmp_path / "f").write_text("old")
    for write, what in ((formats.write_collection, []), (formats.write_topics, []), (formats.write_qrels, {})):
        with pytest.raises(InputError, match="set `overwrite`"):
            write(what, tmp_path / "f")
    assert (tmp_path / "f").read_text() == "old"


# ---------------------------------------------------------------------------------------------------- duplicates


@pytest.mark.parametrize("block", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 49), (24, 25), (48, 49), (5, 33)])
def test_unique_docs_finds_any_duplicate(block, first, second):
    names = [str(n) for n in range(50)]
    names[second] = names[first]
    docs = docs_of(*names)
    with pytest.raises(InputError, match=f"^place {second}: duplicate document id '{names[first]}', first at place {first}$"):
        list(unique_docs(iter(docs), places_in(docs), block))


@pytest.mark.parametrize("block", [1, 2, 100])
def test_hash_collisions_are_not_duplicates(monkeypatch, block):
    monkeypatch.setattr(ids_, "id_hash", lambda text: len(text) % 2)
    docs = docs_of("a", "bb", "ccc", "dddd", "eeeee")
    assert list(unique_docs(iter(docs), places_in(docs), block)) == docs
    twice = docs_of("a", "bb", "ccc", "bb")
    with pytest.raises(InputError, match="duplicate document id 'bb'"):
        list(unique_docs(iter(twice), places_in(twice), block))


# -------------------------------------------------------------------------------------------------------- topics


def test_only_the_first_line_can_be_a_header(save):
    path = save("t.tsv", "pid\tcontroller\nid\ttext\n")
    assert formats.read_topics(path) == [Query("pid", "controller"), Query("id", "text")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\ta\nno tab\n", r":2: expected `id<TAB>text`"),
        ("qid\tquery\n1\ta\n", r":1: looks like a header \(qid, query\)"),
        ("1\ta\n\n1\tb\n", r":3: duplicate query id '1'"),
        ('{"_id": "1", "text": "a"}\n{"_id": "2"}\n', r":2: a topic needs `text`"),
        ("just words\n", r":1: unknown topics format"),
        ("<top>\n<title> a\n</top>\n", r":1: topic without <num>"),
        ("<top>\n<num> 1\n<title> a\n</top>\n\n<top>\n</top>\n", r":6: topic without <num>"),
        ("\n \n", r":1: unknown topics format"),
        ("", r"topics file is empty"),
    ],
)
def test_malformed_topics(tmp_path, content, message):
    (tmp_path / "topics").write_text(content)
    with pytest.raises(InputError, match=message):
        formats.read_topics(tmp_path / "topics")


# --------------------------------------------------------------------------------------------------------- qrels


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 0 d 1\n1 0 d\n", None),  # three columns as in BEIR
        ("1 0 d 1\n1 0 d 1 x\n", r":2: expected `qid 0 docid relevance`, found 5 columns"),
        ("1 0 d 1\n1 0 e high\n", r":2: relevance must be a whole number, found 'high'"),
        ("1 0 d 1\n1 0 d 2\n", r":2: document d has two different judgements"),
        ("1 0 d 1\n1 0 e 2147483648\n", r":2: relevance must fit into 32 bits, found 2147483648"),
        ("query-id\tcorpus-id\tscore\n", r"no judgements found"),
    ],
)
def test_malformed_qrels(tmp_path, content, message):
    (tmp_path / "q").write_text(content)
    with pytest.raises(InputError, match=message):
        formats.read_qrels(tmp_path / "q")


# --------------------------------------------------------------------------------------------------- ir_datasets


def test_ir_datasets_faults(monkeypatch):
    import ir_datasets

    with pytest.raises(InputError, match="ir_datasets has no dataset 'nope'"):
        sources.collection("ir_datasets:nope")

    class Broken:
        def has_docs(self):
            return True

        def has_qrels(self):
            return False

        def docs_iter(self):
            raise RuntimeError("download failed")
            yield

    monkeypatch.setattr(ir_datasets, "load", lambda _: Broken())
    with pytest.raises(InputError, match="ir_datasets:x has no qrels"):
        sources.qrels("ir_datasets:x")
    with pytest.raises(InputError, match="ir_datasets:x could not be read: download failed"):
        list(sources.collection("ir_datasets:x"))
