"""Dense indexes against kills, changed collections, inconsistent folders, and replacement of open folders."""

import json
import shutil

import faiss
import numpy as np
import pytest

from pyserini_kd.data.doc_ids import DocIds
from pyserini_kd.data.types import Doc
from pyserini_kd.retrieval import dense_build, index_folder
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.open_index import check_encoder, load_encoder
from pyserini_kd.retrieval.text_sources import stored_docs
from pyserini_kd.storage.errors import InputError
from tests.conftest import as_ranker
from tests.retrieval.test_index import encoder, halves, vectors


def test_an_unfinished_build_resumes(tmp_path, encoder, tiny_dot, corpus, monkeypatch, interrupted):
    monkeypatch.setattr(dense_build, "BLOCK", 6)
    dense_build.index_dense(corpus, as_ranker(encoder, tiny_dot, precision="fp32"), tmp_path / "whole")
    from pyserini_kd.models import rankers

    calls = interrupted(rankers.Encoder, "encode_docs")
    with pytest.raises(KeyboardInterrupt):
        dense_build.index_dense(corpus, as_ranker(encoder, tiny_dot, precision="fp32"), tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    renamed = shutil.copytree(tiny_dot, tmp_path / "renamed")  # the same weights under another name
    dense_build.index_dense(corpus, as_ranker(encoder, renamed, precision="fp32"), tmp_path / "cut")
    assert calls == [6, 6, 6, 6, 2]  # the two finished blocks are not encoded again
    for name in ("index", "docid", "docs.jsonl", "docs.offsets"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_changed_collection_is_encoded_again(tmp_path, encoder, tiny_dot, corpus, monkeypatch):
    monkeypatch.setattr(dense_build, "BLOCK", 6)
    merge = index_folder._merge_docs
    monkeypatch.setattr(index_folder, "_merge_docs", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        dense_build.index_dense(corpus, as_ranker(encoder, tiny_dot, precision="fp32"), tmp_path / "x")
    monkeypatch.setattr(index_folder, "_merge_docs", merge)
    changed = [corpus[0]._replace(text="the pig sleeps"), *corpus[1:8]]
    assert dense_build.index_dense(changed, as_ranker(encoder, tiny_dot, precision="fp32"), tmp_path / "x") == 8
    opened = DenseIndex.open(tmp_path / "x")
    assert opened.store.count == 8
    assert np.allclose(opened.store.reconstruct(np.arange(8)), vectors(encoder, changed), atol=1e-5)


def test_inconsistent_folders(tmp_path, dense_index, caplog):
    with pytest.raises(InputError, match="not found"):
        DenseIndex.open(tmp_path / "nothing")
    broken = tmp_path / "broken"
    shutil.copytree(dense_index, broken)
    (broken / "docid").unlink()
    with pytest.raises(InputError, match="incomplete: no file docid"):
        DenseIndex.open(broken)
    (broken / "docid").write_text("a\nb\n")
    with pytest.raises(InputError, match="20 vectors but 2 document ids"):
        DenseIndex.open(broken)
    (broken / "index").write_bytes(b"no index at all")
    with pytest.raises(InputError, match="not a FAISS index"):
        DenseIndex.open(broken)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    other = faiss.IndexFlatL2(4)
    other.add(np.ones((1, 4), np.float32))
    faiss.write_index(other, str(foreign / "index"))
    (foreign / "docid").write_text("a\n")
    with pytest.raises(InputError, match="L2 distance"):
        DenseIndex.open(foreign)
    other = faiss.IndexFlatIP(4)
    other.add(np.ones((2, 4), np.float32))
    faiss.write_index(other, str(foreign / "index"))
    (foreign / "docid").write_text("a\na\n")
    with pytest.raises(InputError, match="names a document twice"):
        DenseIndex.open(foreign)
    (foreign / "docid").write_text("a\nticket 265\n")
    with pytest.raises(InputError, match="names 'ticket 265', an id is one word"):
        DenseIndex.open(foreign)
    (foreign / "docid").write_text("a\nb\n")
    named = faiss.IndexIDMap(faiss.IndexFlatIP(4))
    named.add_with_ids(np.ones((2, 4), np.float32), np.array([7, 9]))
    lists = faiss.index_factory(4, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
    lists.train(np.random.default_rng(0).standard_normal((80, 4)).astype(np.float32))
    lists.add_with_ids(np.ones((2, 4), np.float32), np.array([0, 2]))
    for wrong in (named, lists):
        faiss.write_index(wrong, str(foreign / "index"))
        for mmap in (False, True):
            with pytest.raises(InputError, match="has its own ids"):
                DenseIndex.open(foreign, mmap=mmap)
    faiss.write_index(other, str(foreign / "index"))
    assert DenseIndex.open(foreign).search(np.ones((1, 4), np.float32), 1)[1].tolist() == [[1]]  # b before a


def foreign_index(folder, index):
    """A folder as Pyserini writes it, of 300 vectors with the ids d0 to d299."""
    folder.mkdir()
    faiss.write_index(index, str(folder / "index"))
    (folder / "docid").write_text("".join(f"d{row}\n" for row in range(300)))
    return folder


@pytest.mark.parametrize(
    "kind", ["IDMap,Flat", "PCA16,IDMap,Flat", "IDMap2,PCA16,Flat", "RR16,IDMap,Flat", "L2norm,IDMap,HNSW8"]
)
@pytest.mark.parametrize("add", [0, 10_000], ids=["small ids", "large ids"])
def test_id_maps_below_transforms_are_refused(tmp_path, kind, add):
    vectors = np.random.default_rng(0).standard_normal((300, 32)).astype(np.float32)
    index = faiss.index_factory(32, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add_with_ids(vectors, np.arange(300)[::-1] + add)
    folder = foreign_index(tmp_path / "x", index)
    for mmap in (False, True):
        with pytest.raises(InputError, match="has its own ids"):
            DenseIndex.open(folder, mmap=mmap)


@pytest.mark.parametrize("kind", ["Flat", "HNSW8", "IVF4,Flat", "RR32,Flat", "OPQ4,IVF4,Flat", "SQfp16"])
def test_vectors_of_an_l2_index_make_an_inner_product_index(tmp_path, kind):
    rng = np.random.default_rng(0)
    vectors, queries = (rng.standard_normal((n, 32)).astype(np.float32) for n in (300, 5))
    index = faiss.index_factory(32, kind, faiss.METRIC_L2)
    index.train(vectors)
    index.add(vectors)
    folder = foreign_index(tmp_path / "x", index)
    with pytest.raises(InputError, match=f"uses L2 distance.*`pyserini-kd index --vectors {folder} --index NEW`"):
        DenseIndex.open(folder)
    assert dense_build.build_from_vectors(folder, None, tmp_path / "new") == 300  # the command that the message names
    found = DenseIndex.open(tmp_path / "new").search(queries, 10)[1]
    assert np.array_equal(found, np.argsort(-(queries @ vectors.T), axis=1)[:, :10])  # numpy's brute force


def test_a_graph_over_l2_codes_is_refused(tmp_path):
    """Pyserini's `--hnsw --pq` builds an L2 index and then changes its metric only."""
    vectors = np.random.default_rng(0).standard_normal((300, 32)).astype(np.float32)
    index = faiss.IndexHNSWPQ(32, 4, 8, 4)
    index.train(vectors)
    index.add(vectors)
    index.metric_type = faiss.METRIC_INNER_PRODUCT
    with pytest.raises(InputError, match="uses L2 distance"):
        DenseIndex.open(foreign_index(tmp_path / "x", index))


def test_a_file_is_never_replaced_by_a_folder(tmp_path, encoder, tiny_dot, corpus):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        dense_build.index_dense(corpus, as_ranker(encoder, tiny_dot), tmp_path / "x", overwrite=True)
    assert (tmp_path / "x").read_text() == "mine"


def test_an_index_replaced_while_it_is_opened_is_noticed(halves, tmp_path, monkeypatch, encoder, tiny_dot):
    """Another folder with as many, but different, documents takes its name."""
    many, _, (a, *_) = halves
    dense_build.index_dense(many[1:31], as_ranker(encoder, tiny_dot, precision="fp32"), tmp_path / "new")
    read = DocIds.read

    def late(folder):
        a.rename(tmp_path / "old")
        (tmp_path / "new").rename(a)
        return read(folder)

    fetch = stored_docs(a, known=DocIds.read(tmp_path / "new"))  # ids of the new one, texts of the old one
    with pytest.raises(InputError, match="was replaced after it was opened"):
        list(fetch([many[3].doc_id]))
    monkeypatch.setattr(DocIds, "read", late)
    with pytest.raises(InputError, match="was replaced while it was opened"):
        DenseIndex.open(a)


def test_incompatible_folders(halves, tmp_path, tiny_dot, corpus):
    _, whole, (a, b, _) = halves
    with pytest.raises(InputError, match="document 'eat-cat-0' is in more than one index: .*a and .*whole"):
        DenseIndex.open(a, whole)
    dense_build.index_dense(
        [Doc("z#0", "", "cat")], as_ranker(load_encoder(str(tiny_dot)), tiny_dot), tmp_path / "cut", segment="5:5"
    )
    with pytest.raises(
        InputError, match=r"a holds whole documents, .*cut holds passages \(5:5\): their results cannot be merged"
    ):
        DenseIndex.open(a, tmp_path / "cut")
    renamed = shutil.copytree(tiny_dot, tmp_path / "renamed")  # the same weights under another name are compatible
    dense_build.index_dense([Doc("y", "", "the hen")], as_ranker(load_encoder(str(renamed)), renamed), tmp_path / "y")
    assert "y" in DenseIndex.open(a, tmp_path / "y").doc_ids
    dense_build.index_dense(
        [Doc("x", "", "the hen")], as_ranker(load_encoder(str(tiny_dot), pooling="cls"), tiny_dot), tmp_path / "cls"
    )
    foreign = shutil.copytree(whole, tmp_path / "foreign")  # without a manifest
    (foreign / "docid").write_text("".join(f"f{n}\n" for n in range(80)))
    (foreign / "manifest.json").write_text(json.dumps({"encoder": {"name": "unknown"}}))
    for folders in ((a, tmp_path / "cls"), (foreign, a, tmp_path / "cls"), (a, foreign, tmp_path / "cls")):
        with pytest.raises(InputError, match="made with different encoders"):
            DenseIndex.open(*folders)
    joined = DenseIndex.open(foreign, tmp_path / "cls")
    with pytest.raises(InputError, match="pooling is mean, the index was made with cls"):
        check_encoder(joined, as_ranker(load_encoder(str(tiny_dot)), tiny_dot))


def test_an_open_index_keeps_its_documents_after_a_replacement(tmp_path, encoder, tiny_dot, corpus):
    dense_build.index_dense(corpus, as_ranker(encoder, tiny_dot), tmp_path / "x")
    fetch = stored_docs(tmp_path / "x")
    dense_build.index_dense(
        [Doc(doc.doc_id, "", "longer " * 9) for doc in reversed(corpus)],
        as_ranker(encoder, tiny_dot),
        tmp_path / "x",
        overwrite=True,
    )
    assert list(fetch([corpus[3].doc_id, corpus[0].doc_id])) == [corpus[3], corpus[0]]
    for name, data, message in (
        ("docs.offsets", b"", "offsets is empty"),
        ("docs.offsets", bytes(16), "docid and docs.offsets do not belong to one collection"),
    ):
        (tmp_path / "x" / name).write_bytes(data)
        with pytest.raises(InputError, match=message):
            stored_docs(tmp_path / "x")
    dense_build.index_dense(corpus, as_ranker(encoder, tiny_dot), tmp_path / "y")
    with open(tmp_path / "y" / "docs.jsonl", "r+b") as out:
        out.truncate(100)
    with pytest.raises(InputError, match="docs.jsonl is damaged: no document at byte"):
        list(stored_docs(tmp_path / "y")([corpus[-1].doc_id]))
    (tmp_path / "y" / "manifest.json").write_text('{"encoder": "minilm"}')
    with pytest.raises(InputError, match="`encoder` must be a record, not 'minilm'"):
        DenseIndex.open(tmp_path / "y")
