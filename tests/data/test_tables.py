"""Collections of other programs: tables, datasets, JSON arrays, text files. pandas, datasets and json give the right values."""

import csv
import gzip
import json
import zipfile

import pandas as pd
import pytest

from pyserini_kd.data import formats, sources, tables
from pyserini_kd.data.types import Doc
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.settings import named_fields

ROWS = [
    ("T-1", "Printer, offline", 'It says "offline",\nthen\u2028nothing.'),
    ("007", "NA", "nan"),
    ("3", "", "é; | x"),
]
DOCS = [Doc(*row) for row in ROWS]
FIELDS = "id=ticket no,title=subject,text=body"


def frame(*names):
    return pd.DataFrame(ROWS, columns=list(names), dtype=str)


@pytest.fixture(params=["csv", "semicolons", "tsv", "csv.gz", "windows", "bom", "parquet", "dataset"])
def table(request, tmp_path):
    """Write a table in one of many forms, by pandas or datasets; returns its path."""

    def write(names, kind=request.param):
        data = frame(*names)
        if kind == "dataset":
            datasets = pytest.importorskip("datasets")
            datasets.Dataset.from_pandas(data).save_to_disk(tmp_path / "set")
            return tmp_path / "set"
        path = tmp_path / {"semicolons": "t.csv", "windows": "t.csv", "bom": "t.csv"}.get(kind, f"t.{kind}")
        if kind == "parquet":
            data.assign(vector=[[0.1]] * 3).to_parquet(path)
            return path
        separator = {"tsv": "\t", "semicolons": ";"}.get(kind, ",")
        end, encoding = "\r\n" if kind == "windows" else "\n", "utf-8-sig" if kind == "bom" else "utf-8"
        data.to_csv(path, index=False, sep=separator, lineterminator=end, encoding=encoding, quoting=csv.QUOTE_ALL)
        again = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding=encoding)
        assert [tuple(row) for row in again.itertuples(index=False)] == ROWS  # pandas agrees on the values
        return path

    return write


@pytest.mark.parametrize(
    "names", [("id", "title", "text"), ("docid", "Title", "Body"), ("ticket", "subject", "body"), ("_id", "title", "contents")]
)
def test_columns_are_found_by_name(table, names):
    path = table(names)
    assert list(formats.read_collection(path)) == DOCS
    assert list(sources.collection(str(path))) == DOCS


def test_fields_name_the_columns(table):
    path = table(("ticket no", "subject", "body"))
    assert list(sources.collection(str(path), fields=FIELDS)) == DOCS
    with pytest.raises(InputError, match=r"; or say which: `fields` id=NAME"):
        list(formats.read_collection(path))
    with pytest.raises(InputError, match=r"fields: .*no 'nr' among ticket no, subject, body"):
        list(formats.read_collection(path, "id=nr"))
    for row, doc in zip(ROWS, formats.read_collection(path, "id=ticket no,text=subject"), strict=True):
        assert doc == Doc(row[0], "", row[1])


@pytest.mark.parametrize("text", ["", "id", "id=", "key=x", "id=a,id=b", "id=a,,text=b", "=x"])
def test_malformed_fields(text):
    with pytest.raises(InputError, match="such as id=ticket,title=subject,text=body"):
        named_fields(text)


def test_fields_need_columns(tmp_path):
    (tmp_path / "n.md").write_text("x")
    with pytest.raises(InputError, match="has none"):
        list(formats.read_collection(tmp_path, FIELDS))
    with pytest.raises(InputError, match="pydocs is no file"):
        sources.collection("pydocs", fields=FIELDS)


def test_the_index_of_pandas_is_no_title(tmp_path):
    frame("id", "note", "text").to_csv(tmp_path / "t.csv")
    assert list(formats.read_collection(tmp_path / "t.csv")) == [Doc(doc_id, "", text) for doc_id, _, text in ROWS]


def test_the_first_of_two_columns_with_one_name_counts(tmp_path):
    (tmp_path / "t.csv").write_text("id,text,text,Comment,Comment\n1,a,b,c,d\n")
    theirs = pd.read_csv(tmp_path / "t.csv", dtype=str)
    assert list(formats.read_collection(tmp_path / "t.csv")) == [Doc(theirs["id"][0], "", theirs["text"][0])]


def test_passages_of_wikipedia(tmp_path):
    """psgs_w100.tsv of DPR: a header, the title in the last column, quotes doubled."""
    path = tmp_path / "psgs_w100.tsv"
    path.write_text('id\ttext\ttitle\n1\t"Aaron ( or ; ""Ahärôn"") is"\tAaron\n2\tplain\t"A ""B"""\n')
    theirs = pd.read_csv(path, sep="\t", dtype=str)
    ours = list(formats.read_collection(path))
    assert ours == [Doc(*row) for row in theirs[["id", "title", "text"]].itertuples(index=False)]


@pytest.mark.parametrize("indent", [None, 2, "\t"])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_json_arrays(tmp_path, monkeypatch, indent, chunk):
    monkeypatch.setattr(tables, "CHUNK", chunk)
    records = [{"id": row[0], "title": row[1], "text": row[2], "more": {"a": [1, "]},{"]}} for row in ROWS]
    for name in ("a.json", "a.jsonl", "b.json.gz"):
        text = json.dumps(records, indent=indent, ensure_ascii=name == "a.json").encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else b"\xef\xbb\xbf" + text)
        assert list(formats.read_collection(tmp_path / name)) == DOCS
    (tmp_path / "one.json").write_text("\n".join(json.dumps(record, indent=indent) for record in records))
    assert list(formats.read_collection(tmp_path / "one.json")) == DOCS
    (tmp_path / "one.json").write_text("\n" + json.dumps([*records, {"id": "4"}], indent=1))
    with pytest.raises(InputError, match=r"one\.json:36: a document needs"):
        list(formats.read_collection(tmp_path / "one.json"))


def test_a_malformed_array_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "CHUNK", 64)
    with open(tmp_path / "a.json", "w") as out:
        out.write('[{"id": "1", "text": oops}')
        out.write(', {"id": "1", "text": "a"}' * 100_000)
    with pytest.raises(InputError, match=r":1: not valid JSON"):
        list(formats.read_collection(tmp_path / "a.json"))


def test_text_files_of_a_folder(tmp_path):
    (tmp_path / "it").mkdir()
    (tmp_path / "how to.md").write_text("\n## Reset it ##\n\nHold the\nbutton.\n")
    (tmp_path / "it" / "a.txt").write_text("# no heading\nin text files")
    (tmp_path / "it" / "b.md").write_text("#hash tag")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    assert list(formats.read_collection(tmp_path)) == [
        Doc("how%20to.md", "Reset it ##", "Hold the\nbutton."),
        Doc("it/a.txt", "", "# no heading\nin text files"),
        Doc("it/b.md", "", "#hash tag"),
    ]
    (tmp_path / "docs.jsonl").write_text('{"id": "1", "text": "x"}')  # now the text files only accompany it
    assert list(formats.read_collection(tmp_path)) == [Doc("1", "", "x")]


@pytest.mark.parametrize(
    "other",
    ["topics/test.tsv", "qrels/test.tsv", "queries/q.jsonl", "a.queries.tsv", "msmarco-test2019-queries.tsv", "x/Topics.tsv"],
)
def test_files_beside_the_documents_are_left_out(tmp_path, other):
    for name in ("docs/part-0.jsonl", "docs/hot-topics.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"id": name[5:], "text": "x"}))
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_text("q1\tno document\n")
    assert [doc.doc_id for doc in formats.read_collection(tmp_path)] == ["hot-topics.jsonl", "part-0.jsonl"]


def test_splits_of_a_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"id": [1, 2, 3], "text": ["a", None, "c"]})
    part.select([2, 1]).save_to_disk(tmp_path / "chosen", num_shards=2)
    assert list(formats.read_collection(tmp_path / "chosen")) == [Doc("3", "", "c"), Doc("2", "", "")]
    datasets.DatasetDict({"train": part}).save_to_disk(tmp_path / "one")
    assert len(list(formats.read_collection(tmp_path / "one"))) == 3
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "two")
    with pytest.raises(InputError, match="splits train, test; name the folder of one"):
        list(formats.read_collection(tmp_path / "two"))
    part.to_parquet(tmp_path / "hub" / "data" / "train-0.parquet")  # as a hub's folder
    (tmp_path / "hub" / "README.md").write_text("x")
    (tmp_path / "hub" / "dataset_infos.json").write_text("{}")
    assert len(list(formats.read_collection(tmp_path / "hub"))) == 3


@pytest.mark.parametrize(
    ("record", "doc_id"),
    [
        ({"pid": "msmarco_passage_00_0", "passage": "x", "docid": "msmarco_doc_00_0"}, "msmarco_passage_00_0"),
        ({"docid": "msmarco_doc_00_0", "title": "", "headings": "h", "body": "x"}, "msmarco_doc_00_0"),
        ({"docid": "d#3", "segment": "x", "start_char": 1}, "d#3"),
        ({"docno": "FT-1", "text": "x"}, "FT-1"),
        ({"id": "1", "pid": "2", "docid": "3", "text": "x"}, "1"),
    ],
)
def test_ids_of_passages_come_before_those_of_their_documents(tmp_path, record, doc_id):
    (tmp_path / "d.jsonl").write_text(json.dumps(record))
    assert list(formats.read_collection(tmp_path / "d.jsonl")) == [Doc(doc_id, "", "x")]


def foreign(tmp_path, kind):
    path = tmp_path / f"file.{kind}"
    data = frame("ticket", "subject", "body")
    if kind == "parquet":
        data.to_parquet(path)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as out:
            out.writestr("a.tsv", "1\tx\n")
    elif kind == "tar.gz":
        import tarfile

        (tmp_path / "a").write_text("x")
        with tarfile.open(path, "w:gz") as out:
            out.add(tmp_path / "a", "a")
    elif kind == "tar":
        import tarfile

        (tmp_path / "a").write_text("x")
        with tarfile.open(path, "w") as out:
            out.add(tmp_path / "a", "a")
    elif kind == "json":
        data.to_json(path, orient="records", indent=1)
    elif kind == "sgml":
        path.write_text("<DOC>\n<DOCNO>1</DOCNO>\n<TEXT>\nx\n</TEXT>\n</DOC>\n")
    elif kind == "csv":
        data.to_csv(path, index=False)
    elif kind == "utf16":
        path.write_text("1\tx\n", encoding="utf-16")
    else:
        path.write_bytes(gzip.compress(b"1\tx\n"))
    return path


NAMES = {
    "parquet": "a Parquet file, which `collection` takes", "zip": "a zip archive", "tar.gz": "a tar archive; unpack it",
    "tar": "a tar archive; unpack it", "json": "a JSON array, which `collection` takes", "sgml": "TREC",
    "csv": r"CSV with a header \(ticket,subject,body\); `collection` takes it", "utf16": "UTF-16 text",
    "packed": r"its name must end in \.gz",
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("what", ["topics", "qrels", "run", "candidates"])
def test_a_message_names_what_a_file_is(tmp_path, kind, what):
    from pyserini_kd.data.runs import Run, open_run
    from pyserini_kd.distillation.candidates import read_candidates

    readers = {"topics": [formats.read_topics], "qrels": [formats.read_qrels], "run": [Run.read, open_run]}
    path = foreign(tmp_path, kind)
    for read in readers.get(what, [read_candidates]):
        with pytest.raises(InputError, match=NAMES[kind]) as error:
            read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar", "utf16"])
def test_a_collection_that_is_an_archive(tmp_path, kind):
    path = foreign(tmp_path, kind)
    with pytest.raises(InputError, match=NAMES[kind]):
        list(formats.read_collection(path))
    path.rename(tmp_path / "file.tsv")
    with pytest.raises(InputError, match="unpack it|archive|UTF|gzip"):
        list(formats.read_collection(tmp_path / "file.tsv"))


def test_a_damaged_table(tmp_path):
    frame("id", "title", "text").to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"b\.parquet: not a complete Parquet file"):
        list(formats.read_collection(tmp_path / "b.parquet"))
    (tmp_path / "a.tsv").write_bytes((tmp_path / "a.parquet").read_bytes())
    assert list(formats.read_collection(tmp_path / "a.tsv")) == DOCS  # the bytes count, not the name
    (tmp_path / "c.csv").write_text('id,text\n1,"a"b\n')
    with pytest.raises(InputError, match=r"c\.csv:2: wrong quotes"):
        list(formats.read_collection(tmp_path / "c.csv"))
