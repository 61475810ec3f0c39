"""The service: the command's results over HTTP."""

import concurrent.futures
import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest

from pyserini_kd import cli, search, serve
from pyserini_kd.data.runs import Run
from pyserini_kd.retrieval import service
from pyserini_kd.retrieval.system import System
from pyserini_kd.storage.errors import InputError


def opened(*words, texts=False):
    """The system that the command opens for these arguments."""
    with serve.main.make_context("serve", [str(word) for word in words]) as context:
        given = {name: value for name, value in context.params.items() if cli.typed(name)}
    return System.open(serve.ServeSettings(**given), texts=texts)


@contextlib.contextmanager
def running(app):
    """The port of a uvicorn in a thread of this process."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(service.config(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def ask(port, path, body=None, method=None):
    """(status, JSON) of a GET, or of a POST where there is a body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps(body) if isinstance(body, dict) else body
    connection.request(
        method or ("GET" if body is None else "POST"), path, body, {"Content-Type": "application/json"} if body else {}
    )
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text)


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def hits_of(result):
    return [hit["doc_id"] for hit in result["hits"]], [hit["score"] for hit in result["hits"]]


@pytest.fixture(scope="module")
def port(dense_index, tiny_dot):
    with running(service.app(opened("--index", dense_index, "--encoder", tiny_dot, texts=True))) as number:
        yield number


def test_answers_equal_those_of_the_command(port, invoke, files, queries, dense_index, tiny_dot, tmp_path):
    words = ["--index", dense_index, "--encoder", tiny_dot, "--topics", files["topics"], "--output", tmp_path / "run.txt"]
    assert invoke(search.main, *words, "--hits", 7).exit_code == 0
    run = Run.read(tmp_path / "run.txt")
    status, together = ask(port, "/search", {"query": [query.text for query in queries], "hits": 7})
    assert status == 200 and [result["query"] for result in together["results"]] == [query.text for query in queries]
    for query, result in zip(queries, together["results"], strict=True):
        assert [hit["rank"] for hit in result["hits"]] == list(range(1, 8))
        status, alone = ask(port, "/search?" + urlencode({"query": query.text, "hits": 7}))
        assert status == 200
        for found in (result, alone["results"][0]):
            doc_ids, scores = hits_of(found)
            assert doc_ids == run[query.query_id].doc_ids
            assert np.allclose(scores, run[query.query_id].scores, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bm25", "hybrid", "reranked"])
def test_every_stage_is_served(kind, invoke, files, queries, dense_index, bm25_index, tiny_dot, tiny_cross, tmp_path):
    dense = ["--index", dense_index, "--encoder", tiny_dot]
    words = {
        "bm25": ["--index", bm25_index, "--encoder", "bm25"],
        "hybrid": [*dense, "--sparse-index", bm25_index],
        "reranked": [*dense, "--rerank", tiny_cross, "--depth", 5],
    }[kind]
    asked = ["--topics", files["topics"], "--output", tmp_path / "run.txt", "--hits", 8]
    assert invoke(search.main, *words, *asked).exit_code == 0
    run = Run.read(tmp_path / "run.txt")
    with running(service.app(opened(*words, texts=True))) as port:
        status, found = ask(port, "/search", {"query": [query.text for query in queries], "hits": 8, "docs": True})
    assert status == 200
    for query, result in zip(queries, found["results"], strict=True):
        doc_ids, scores = hits_of(result)
        assert doc_ids == run[query.query_id].doc_ids and np.allclose(scores, run[query.query_id].scores, rtol=1e-5)
        assert all(hit["text"] for hit in result["hits"])


def test_texts_on_request_and_health(port, corpus, dense_index):
    by_id = {doc.doc_id: doc for doc in corpus}
    _, plain = ask(port, "/search?query=goose")
    assert len(plain["results"][0]["hits"]) == 10 and set(plain["results"][0]["hits"][0]) == {"rank", "doc_id", "score"}
    _, full = ask(port, "/search?query=goose&docs=true&hits=20")
    for hit in full["results"][0]["hits"]:
        assert (hit["title"], hit["text"]) == by_id[hit["doc_id"]][1:]
    status, health = ask(port, "/health")
    assert status == 200 and health["status"] == "ok" and health["index"] == str(dense_index) and health["waiting"] == 0
    _, one = ask(port, "/search?query=goose&query=hen")
    assert [result["query"] for result in one["results"]] == ["goose", "hen"]


def test_threads_bound_the_service_too(dense_index, tiny_dot, monkeypatch):
    import faiss

    system = opened("--index", dense_index, "--encoder", tiny_dot, "--threads", 1)
    answer, counts = service.answers, []
    monkeypatch.setattr(service, "answers", lambda *args: counts.append(faiss.omp_get_max_threads()) or answer(*args))
    with running(service.app(system)) as port:
        assert ask(port, "/search?query=goose")[0] == 200
    assert counts == [1]


def test_many_clients_get_equal_answers(port, queries):
    """Requests are answered in batches, but each gets the hits of its own queries, and its own number of hits."""
    expected = {query.text: ask(port, "/search?" + urlencode({"query": query.text}))[1]["results"][0] for query in queries}

    def same(text, hits):
        status, found = ask(port, "/search?" + urlencode({"query": text, "hits": hits}))
        (ids, scores), (wanted, close) = hits_of(found["results"][0]), hits_of(expected[text])
        return status == 200 and ids == wanted[:hits] and np.allclose(scores, close[:hits], rtol=1e-5)

    def client(number):
        return all(same(queries[(number + step) % len(queries)].text, 3 + (number + step) % 8) for step in range(20))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(client, range(8)))


def test_waiting_requests_are_searched_together(dense_index, tiny_dot, queries, monkeypatch, held):
    (sizes, go), system = held, opened("--index", dense_index, "--encoder", tiny_dot)
    monkeypatch.setattr(service, "BATCH", 5)
    with running(service.app(system)) as port, concurrent.futures.ThreadPoolExecutor(8) as pool:
        paths = ["/search?" + urlencode({"query": query.text}) for query in queries[:8]]
        found = [pool.submit(ask, port, paths[0])]
        wait_until(lambda: sizes == [1])  # a batch of its own; the others come later
        found += [pool.submit(ask, port, path) for path in paths[1:]]
        wait_until(lambda: ask(port, "/health")[1]["waiting"] == 8)
        go.set()
        assert [future.result()[1]["results"][0]["query"] for future in found] == [query.text for query in queries[:8]]
    assert sizes == [1, 5, 2]


def test_a_search_that_fails_fails_its_batch_only(dense_index, tiny_dot, monkeypatch):
    system, original = opened("--index", dense_index, "--encoder", tiny_dot), service.answers

    def fails(system, requests):
        if any("goose" in asked.query for asked in requests):
            raise InputError("the goose is out")
        return original(system, requests)

    monkeypatch.setattr(service, "answers", fails)
    with running(service.app(system)) as port:
        assert ask(port, "/search?query=goose") == (422, {"detail": "the goose is out"})
        assert ask(port, "/search?query=hen")[0] == 200


def test_the_interface_is_described(port):
    with urlopen(f"http://127.0.0.1:{port}/docs") as answer:
        page = answer.read().decode()
    for part in (
        "GET /search",
        "POST /search",
        "GET /health",
        "<code>hits</code><td>integer<td>10<td>at least 1, at most 1000",
    ):
        assert part in page
    assert "<script" not in page and "https:" not in page
    assert set(ask(port, "/openapi.json")[1]["paths"]) == {
        "/search", "/health", "/v1/{index}/search", "/v1/{index}/doc/{docid}",
    }  # fmt: skip


@pytest.mark.slow
def test_the_command_serves_on_loopback_until_ctrl_c(dense_index, tiny_dot):
    words = [sys.executable, "-m", "pyserini_kd.serve", "--index", dense_index, "--encoder", tiny_dot, "--port", 0]
    with subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the suite itself runs in the background
    ) as server:
        address = server.stdout.readline()
        port = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/search\?query=\n", address).group(1)
        assert ask(int(port), "/search?query=goose")[0] == 200
        taken = subprocess.run([str(word) for word in [*words[:-1], port]], capture_output=True, text=True)
        assert taken.returncode == 2 and f"port {port}: Address already in use" in taken.stderr
        server.send_signal(signal.SIGINT)
        _, log = server.communicate(timeout=20)
        assert server.returncode == 130 and "Traceback" not in log and "goose" not in log, log


def test_answers_do_not_wait_for_nagle():
    """asyncio turns Nagle's delay (40 ms per answer) off only for explicit TCP sockets."""
    with service.bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
