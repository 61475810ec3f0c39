"""The service against wrong requests, too many or too slow clients and too large bodies."""

import concurrent.futures
import contextlib
import http.client
import json
import resource
import socket
import threading
import time

import pytest

from pyserini_kd import serve
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.retrieval import service
from tests.conftest import as_ranker
from tests.retrieval.test_serve import ask, opened, port, running, wait_until


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/search", None, 422, "query: Field required"),
        ("/search?query=", None, 422, "at least 1 character"),
        ("/search?query=%20%20", None, 422, "at least 1 character"),
        ("/search?query=a&hits=0", None, 422, "hits: Input should be greater than or equal to 1"),
        ("/search?query=a&hits=1001", None, 422, "hits: Input should be less than or equal to 1000"),
        ("/search?query=a&hits=many", None, 422, "hits: Input should be a valid integer"),
        ("/search?query=a&depth=3", None, 422, "depth: Extra inputs are not permitted"),
        ("/search", {"query": ["a"] * 1000}, 422, "query: List should have at most 64 items"),
        ("/search", {"query": ["a"] * 64, "hits": 1000}, 422, "at most 10000 hits in all"),
        ("/search", {"query": ["a", "b"], "hits": 501, "docs": True}, 422, "at most 1000 hits with their texts in all"),
        ("/search", {"query": []}, 422, "at least 1 item"),
        ("/search", {"query": ["a", 3]}, 422, "query.1: Input should be a valid string"),
        ("/search", {"query": "a" * 8193}, 422, "query.0: String should have at most 8192 characters"),
        ("/search", {"query": {"a": 1}}, 422, "query: Input should be a valid list"),
        ("/search", '{"query": "\\ud800"}', 422, "query.0"),
        ("/search", '{"query": "a", "hits": NaN}', 422, "hits"),
        ("/search", '{"query": ', 422, "JSON decode error"),
        ("/search", '{"query": "a", "' + "k" * 1_000_000 + '": 1}', 422, "kkk: Extra inputs are not permitted"),
        ("/search", b"\xff\xfe\x00", 400, "parsing the body"),
        ("/search", "[" * 500_000, 400, "parsing the body"),
        ("/search", "[1, 2]", 422, "valid dictionary"),
        ("/search", '{"query": "' + "a" * (1 << 20) + '"}', 413, "more than 1048576 bytes"),
        ("/search", b"x" * (20 << 20), 413, "more than 1048576 bytes"),
        ("/nowhere", None, 404, "Not Found"),
        ("/redoc", None, 404, "Not Found"),
    ],
    ids=range(25),
)
def test_wrong_requests_get_a_clear_4xx(port, path, body, status, word):
    found, answer = ask(port, path, body)
    assert found == status and word in answer["detail"], (found, str(answer)[:300])
    assert len(str(answer)) < 300  # the request is not echoed
    assert ask(port, "/search?query=goose")[0] == 200


def test_other_methods_and_invalid_http(port):
    assert ask(port, "/search", method="DELETE")[0] == 405
    with socket.create_connection(("127.0.0.1", port)) as odd:
        odd.sendall(b"hello\r\n\r\n")
        assert b"400 Bad Request" in odd.recv(1000)
    with socket.create_connection(("127.0.0.1", port)) as endless:
        with contextlib.suppress(OSError):
            endless.sendall(b"GET /search?query=" + b"a" * (1 << 20))
        assert b"400 Bad Request" in endless.recv(1000)
    assert ask(port, "/health")[0] == 200


def test_an_index_without_texts_says_so(tmp_path, corpus, tiny_dot):
    from pyserini_kd.retrieval import dense_build

    dense_build.index_dense(corpus, as_ranker(load_encoder(str(tiny_dot)), tiny_dot), tmp_path / "bare", store_docs=False)
    with running(service.app(opened("--index", tmp_path / "bare", "--encoder", tiny_dot, texts=True))) as port:
        assert ask(port, "/search?query=goose")[0] == 200
        assert ask(port, "/search?query=goose&docs=1") == (422, {"detail": "docs: this index stores no texts"})


def test_a_full_queue_is_429_and_disconnected_clients_are_skipped(dense_index, tiny_dot, monkeypatch):
    system = opened("--index", dense_index, "--encoder", tiny_dot)
    go, begun, original, answered = threading.Event(), threading.Event(), service.answers, []

    def slow(*args):
        begun.set()
        go.wait(30)
        answered.extend(text for asked in args[-1] for text in asked.query)
        return original(*args)

    monkeypatch.setattr(service, "answers", slow)
    monkeypatch.setattr(service, "MAX_WAITING", 4)
    with running(service.app(system)) as port:
        leaving = socket.create_connection(("127.0.0.1", port))
        leaving.sendall(b"GET /search?query=goose HTTP/1.1\r\nHost: x\r\n\r\n")
        half = socket.create_connection(("127.0.0.1", port))
        half.sendall(b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        wait_until(lambda: ask(port, "/health")[1]["waiting"] == 1)
        leaving.close(), half.close()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(ask, port, "/search?query=goose") for _ in range(8)]
            wait_until(lambda: sum(answer.done() for answer in answers) == 5)  # 1 + 3 wait
            assert ask(port, "/health")[1]["waiting"] == 4
            go.set()
            said = sorted(answer.result() for answer in answers)
        assert [status for status, _ in said] == [200] * 3 + [429] * 5
        assert said[-1][1] == {"detail": "4 requests are waiting; try again later"}
        assert ask(port, "/health")[1]["waiting"] == 0 and ask(port, "/search?query=goose")[0] == 200
        go.clear()
        monkeypatch.setattr(service, "MAX_WAITING", 64)
        answered.clear(), begun.clear()
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        for number, client in enumerate(clients):
            client.sendall(b"GET /search?query=goose%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
            assert begun.wait(20)  # the first request is a batch of its own
        wait_until(lambda: ask(port, "/health")[1]["waiting"] == 20)
        for client in clients:
            client.close()
        time.sleep(0.5)  # the service sees that they left
        go.set()
        assert ask(port, "/search?query=horse")[0] == 200
        assert "horse" in answered and len(answered) <= 3  # of the others, only those answered before they left


def test_many_queries_at_once_are_answered_or_refused(port):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    count = 1000 if most == resource.RLIM_INFINITY else min(1000, most // 2 - 300)  # this process may hold both ends
    if count < 100:
        pytest.skip(f"a process may open {most} files only")
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(count)]
    for connection in connections:
        connection.connect()  # open all before the first request
    statuses = []

    def client(some):
        for connection in some:
            connection.request("GET", "/search?query=goose")
        for connection in some:
            response = connection.getresponse()
            said = json.loads(response.read())
            assert (response.status == 200 and said["results"]) or (
                response.status == 429 and "try again later" in said["detail"]
            )
            statuses.append(response.status)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(client, [connections[part::4] for part in range(4)]))
    for connection in connections:
        connection.close()
    assert len(statuses) == count and statuses.count(200) >= 1 and ask(port, "/search?query=goose")[0] == 200


def test_reranking_per_request_is_bounded(dense_index, tiny_dot, tiny_cross, invoke):
    too_deep = ["--index", dense_index, "--encoder", tiny_dot, "--rerank", tiny_cross, "--depth", 10_001, "--port", 0]
    result = invoke(serve.main, *too_deep)
    assert result.exit_code == 2 and "at most 10000 documents are reranked for a request" in result.output
    with running(
        service.app(opened("--index", dense_index, "--encoder", tiny_dot, "--rerank", tiny_cross, "--depth", 1000, texts=True))
    ) as port:
        assert ask(port, "/search", {"query": ["goose"] * 10})[0] == 200
        status, said = ask(port, "/search", {"query": ["goose"] * 11})
        assert (status, said["detail"]) == (422, "11 queries with 1000 reranked documents each; send at most 10 queries")


def test_the_total_size_of_bodies_is_bounded(port, monkeypatch):
    monkeypatch.setattr(service, "MAX_BODIES", 50_000)
    waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
    for client in waiting:
        client.sendall(b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + b" " * 30_000)
    assert any(b"429" in answer for answer in (read_some(client) for client in waiting))
    for client in waiting:
        client.close()
    wait_until(lambda: ask(port, "/search", {"query": "goose"})[0] == 200)


def read_some(client):
    client.settimeout(2)
    try:
        return client.recv(4096)
    except TimeoutError:
        return b""


def test_wrong_options(invoke, dense_index, tiny_dot, tmp_path, monkeypatch):
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path))
    for words, word in (
        (["--index", tmp_path / "nowhere", "--encoder", tiny_dot], "index not found"),
        (["--index", dense_index, "--encoder", tiny_dot, "--fusion", "rrf"], "--sparse-index"),
        (["--port", 70000], "--port"),
        (["--host", "192.0.2.1"], "address 192.0.2.1, port 0: Cannot assign requested address"),
        ([], "run `pyserini-kd demo` first"),
    ):
        result = invoke(serve.main, "--port", 0, *words)
        assert result.exit_code == 2 and word in result.output, result.output
