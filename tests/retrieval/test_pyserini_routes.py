"""Pyserini's REST routes on our service, compared with Pyserini's own server where its version has one with these routes."""

import concurrent.futures
import json
from urllib.parse import quote, urlencode

import pytest

from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.retrieval import dense_build, service
from tests.conftest import as_ranker
from tests.retrieval.test_serve import ask, opened, running, wait_until


@pytest.fixture(scope="module")
def name(dense_index):
    return dense_index.name


@pytest.fixture(scope="module")
def port(dense_index, tiny_dot):
    with running(service.app(opened("--index", dense_index, "--encoder", tiny_dot, texts=True))) as number:
        yield number


@pytest.fixture(scope="module")
def bm25_port(bm25_index):
    with running(service.app(opened("--index", bm25_index, "--encoder", "bm25", texts=True))) as number:
        yield number


def test_search_has_pyserinis_form_and_our_hits(port, name, corpus):
    by_id = {doc.doc_id: doc for doc in corpus}
    status, found = ask(port, f"/v1/{name}/search?query=the%20%20goose&hits=4")
    _, ours = ask(port, "/search?query=the+goose&hits=4")
    assert status == 200 and list(found) == ["api", "index", "query", "candidates"]
    assert (found["api"], found["index"], found["query"]) == ("v1", name, {"text": "the goose"})
    assert found["candidates"] == [
        {
            "docid": hit["doc_id"],
            "score": round(hit["score"], 6),
            "rank": hit["rank"],
            "doc": {"contents": by_id[hit["doc_id"]].contents, "title": by_id[hit["doc_id"]].title},
        }
        for hit in ours["results"][0]["hits"]
    ]
    assert len(ask(port, f"/v1/{name}/search?query=goose")[1]["candidates"]) == 10


def test_documents(port, name, corpus):
    doc = corpus[3]
    status, found = ask(port, f"/v1/{name}/doc/{quote(doc.doc_id, safe='')}")
    shown = {"contents": doc.contents, "title": doc.title}
    assert status == 200 and found == {"api": "v1", "index": name, "docid": doc.doc_id, "doc": shown}
    _, short = ask(port, f"/v1/{name}/doc/{doc.doc_id}?max_doc_length=5")
    assert short["doc"] == shown | {"contents": doc.contents[:5]}
    _, raw = ask(port, f"/v1/{name}/doc/{doc.doc_id}?parse=false")
    assert json.loads(raw["doc"]) == {"id": doc.doc_id, **shown}


def test_bm25s_parameters_are_those_of_the_request(bm25_port, bm25_index, queries):
    """Requests of different kinds wait in one queue, and each gets its own answer."""
    text, where = queries[0].text, f"/v1/{bm25_index.name}/search?"
    plain = ask(bm25_port, where + urlencode({"query": text}))[1]["candidates"]
    assert ask(bm25_port, where + urlencode({"query": text, "k1": 0.9, "b": 0.4}))[1]["candidates"] == plain
    with running(service.app(opened("--index", bm25_index, "--encoder", "bm25", "--k1", 2, "--b", 0.1, texts=True))) as other:
        expected = ask(other, where + urlencode({"query": text}))[1]["candidates"]
    assert ask(bm25_port, where + urlencode({"query": text, "k1": 2, "b": 0.1}))[1]["candidates"] == expected != plain


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [
        ("search", 400, "query: Field required"),
        ("search?query=%20", 400, "at least 1 character"),
        ("search?query=" + "a" * 8193, 400, "at most 8192 characters"),
        ("search?query=a&hits=0", 400, "hits: Input should be greater than or equal to 1"),
        ("search?query=a&hits=1001", 400, "hits: Input should be less than or equal to 1000"),
        ("search?query=a&parse=perhaps", 400, "parse: Input should be a valid boolean"),
        ("search?query=a&k1=1", 400, "k1 and b must be given together"),
        ("search?query=a&k1=nan&b=0.4", 400, "k1: Input should be"),
        ("search?query=a&k1=1&b=2", 400, "b: Input should be less than or equal to 1"),
        ("search?query=a&k1=1&b=0.4", 400, "k1 and b are for BM25 alone"),
        ("search?query=a&max_doc_length=0", 400, "max_doc_length: Input should be greater"),
        ("search?query=a&max_doc_length=5&parse=false", 400, "max_doc_length needs parse=true"),
        ("search?query=a&ef_search=5", 400, "ef_search: Extra inputs are not permitted"),
        ("doc/nobody", 404, "document 'nobody' is not in"),
        ("doc/" + "x" * 5000, 404, "is not in"),
        ("doc/%FF%00%0A", 404, "is not in"),
        ("doc/..%2F..%2Fetc%2Fpasswd", 404, "document '../../etc/passwd' is not in"),
        ("other", 404, "Not Found"),
    ],
    ids=range(18),
)
def test_wrong_requests_have_one_line_under_both_names(port, name, path, status, word):
    found, said = ask(port, f"/v1/{name}/{path}")
    assert found == status and set(said) == {"detail", "error"} and said["detail"] == said["error"]
    assert word in said["error"] and len(said["error"]) < 200 and "\n" not in said["error"]


@pytest.mark.parametrize("index", ["other", "..", "%2Fetc", "%2e%2e", "."])
def test_an_index_is_a_name_and_never_a_path(port, dense_index, index):
    for wrong in (index, quote(str(dense_index), safe=""), f"{index}%2F{dense_index.name}"):
        status, said = ask(port, f"/v1/{wrong}/search?query=goose")
        assert status == 404 and ("is not served here" in said["error"] or said["error"] == "Not Found")
    assert ask(port, f"/v1/{dense_index}/search?query=goose")[0] == 404


def test_only_get(port, name):
    status, said = ask(port, f"/v1/{name}/search", {"query": "goose"})
    assert status == 405 and said["error"] == said["detail"] == "Method Not Allowed"


def test_without_texts_documents_are_null(tmp_path, corpus, tiny_dot):
    dense_build.index_dense(corpus, as_ranker(load_encoder(str(tiny_dot)), tiny_dot), tmp_path / "bare", store_docs=False)
    with running(service.app(opened("--index", tmp_path / "bare", "--encoder", tiny_dot, texts=True))) as port:
        status, found = ask(port, "/v1/bare/search?query=goose")
        assert status == 200 and {hit["doc"] for hit in found["candidates"]} == {None}
        assert ask(port, "/v1/bare/doc/d1")[1]["error"] == "bare stores no texts"


def test_these_requests_wait_in_the_same_queue(port, dense_index, tiny_dot, monkeypatch, held):
    (sizes, go), system = held, opened("--index", dense_index, "--encoder", tiny_dot, texts=True)
    monkeypatch.setattr(service, "MAX_WAITING", 5)
    where = f"/v1/{dense_index.name}"
    paths = ["/search?query=goose", f"{where}/search?query=hen", f"{where}/doc/nobody", f"{where}/search?query=goose&hits=2"]
    with running(service.app(system)) as port, concurrent.futures.ThreadPoolExecutor(8) as pool:
        first = pool.submit(ask, port, f"{where}/search?query=cow")
        wait_until(lambda: sizes == [1])
        later = [pool.submit(ask, port, path) for path in paths]
        wait_until(lambda: ask(port, "/health")[1]["waiting"] == 5)
        status, said = ask(port, f"{where}/search?query=pig")
        assert status == 429 and said["error"] == "5 requests are waiting; try again later"
        go.set()
        assert first.result()[0] == 200
        assert [answer.result()[0] for answer in later] == [200, 200, 404, 200]  # a missing document fails alone
        assert len(later[3].result()[1]["candidates"]) == 2
    assert sizes == [1, 4]


def test_answers_equal_those_of_pyserinis_own_server(bm25_port, bm25_index, queries, corpus, tmp_path):
    """This needs Pyserini 2.4 or later: Pyserini 1.6 has other routes."""
    from pyserini_kd.data.java import start_jvm

    start_jvm()
    pytest.importorskip("pyserini.server.rest.routes.v1", reason="this Pyserini has other routes", exc_type=ImportError)
    from pyserini.server.rest.app import create_app

    (tmp_path / "config.yaml").write_text(json.dumps({"indexes": {bm25_index.name: str(bm25_index)}}))
    doc_id = corpus[0].doc_id
    with running(create_app(str(tmp_path / "config.yaml"), no_prebuilt_indexes=True)) as theirs:
        for path in [
            *("search?" + urlencode({"query": query.text, "hits": 6}) for query in queries),
            "search?" + urlencode({"query": queries[0].text, "k1": 1.2, "b": 0.7}),
            "search?" + urlencode({"query": queries[1].text, "max_doc_length": 9}),
            f"doc/{doc_id}",
            f"doc/{doc_id}?max_doc_length=3",
        ]:
            expected = ask(theirs, f"/v1/{bm25_index.name}/{path}")
            assert expected[0] == 200 and ask(bm25_port, f"/v1/{bm25_index.name}/{path}") == expected
        raw = [ask(port, f"/v1/{bm25_index.name}/doc/{doc_id}?parse=false")[1]["doc"] for port in (theirs, bm25_port)]
        assert json.loads(raw[0]) == json.loads(raw[1])  # Lucene keeps line breaks between the fields
        for path in ("search", "search?query=a&hits=0", "search?query=a&k1=1", "doc/nobody"):
            expected, found = (ask(port, f"/v1/{bm25_index.name}/{path}") for port in (theirs, bm25_port))
            assert found[0] == expected[0] and set(expected[1]) == {"error"}
