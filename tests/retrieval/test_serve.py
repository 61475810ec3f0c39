"""The service: the command's results over HTTP; whatever is wrong, too large or too much gets a clear 4xx and harms nobody."""

import concurrent.futures
import contextlib
import http.client
import json
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlencode

import numpy as np
import pytest
from conftest import as_ranker

from pyserini_kd import cli, search, serve
from pyserini_kd.data.runs import Run
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.retrieval import service
from pyserini_kd.retrieval.system import System


def opened(*words, texts=False):
    """The system that the command serves for these words."""
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


def test_answers_are_the_commands(port, invoke, files, queries, dense_index, tiny_dot, tmp_path):
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
        ("/docs", None, 404, "Not Found"),
    ],
    ids=range(25),
)
def test_wrong_requests_get_a_clear_4xx(port, path, body, status, word):
    found, answer = ask(port, path, body)
    assert found == status and word in answer["detail"], (found, str(answer)[:300])
    assert len(str(answer)) < 300  # the request is not echoed
    assert ask(port, "/search?query=goose")[0] == 200


def test_other_methods_and_what_is_no_http(port):
    assert ask(port, "/search", method="DELETE")[0] == 405
    with socket.create_connection(("127.0.0.1", port)) as odd:
        odd.sendall(b"hello\r\n\r\n")
        assert b"400 Bad Request" in odd.recv(1000)
    with socket.create_connection(("127.0.0.1", port)) as endless:
        with contextlib.suppress(OSError):
            endless.sendall(b"GET /search?query=" + b"a" * (1 << 20))
        assert b"400 Bad Request" in endless.recv(1000)
    assert ask(port, "/health")[0] == 200


def test_threads_bound_the_service_too(dense_index, tiny_dot, monkeypatch):
    import faiss

    system = opened("--index", dense_index, "--encoder", tiny_dot, "--threads", 1)
    answer, counts = service.answer, []
    monkeypatch.setattr(service, "answer", lambda *args: counts.append(faiss.omp_get_max_threads()) or answer(*args))
    with running(service.app(system)) as port:
        assert ask(port, "/search?query=goose")[0] == 200
    assert counts == [1]


def test_an_index_without_texts_says_so(tmp_path, corpus, tiny_dot):
    from pyserini_kd.retrieval import build

    build.build(corpus, as_ranker(load_encoder(str(tiny_dot)), tiny_dot), tmp_path / "bare", store_docs=False)
    with running(service.app(opened("--index", tmp_path / "bare", "--encoder", tiny_dot, texts=True))) as port:
        assert ask(port, "/search?query=goose")[0] == 200
        assert ask(port, "/search?query=goose&docs=1") == (422, {"detail": "docs: this index stores no texts"})


def test_a_full_queue_is_429_and_clients_that_leave_are_passed_over(dense_index, tiny_dot, monkeypatch):
    system = opened("--index", dense_index, "--encoder", tiny_dot)
    go, original, answered = threading.Event(), service.answer, []

    def slow(*args):
        go.wait(30)
        answered.extend(args[-1].query)
        return original(*args)

    monkeypatch.setattr(service, "answer", slow)
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
        assert said[-1][1] == {"detail": "4 requests are waiting; come again"}
        assert ask(port, "/health")[1]["waiting"] == 0 and ask(port, "/search?query=goose")[0] == 200
        go.clear()
        monkeypatch.setattr(service, "MAX_WAITING", 64)
        answered.clear()
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        for number, client in enumerate(clients):
            client.sendall(b"GET /search?query=goose%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
        wait_until(lambda: ask(port, "/health")[1]["waiting"] == 20)
        for client in clients:
            client.close()
        go.set()
        assert ask(port, "/search?query=horse")[0] == 200
        assert "horse" in answered and len(answered) <= 3  # of the others only who had his turn before he left


def test_many_queries_at_once_are_answered_or_told_to_come_again(port):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    count = 1000 if most == resource.RLIM_INFINITY else min(1000, most // 2 - 300)  # both ends may be of this process
    if count < 100:
        pytest.skip(f"a process may open {most} files only")
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(count)]
    for connection in connections:
        connection.connect()  # all open before one asks
    statuses = []

    def client(some):
        for connection in some:
            connection.request("GET", "/search?query=goose")
        for connection in some:
            response = connection.getresponse()
            said = json.loads(response.read())
            assert (response.status == 200 and said["results"]) or (response.status == 429 and "come again" in said["detail"])
            statuses.append(response.status)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(client, [connections[part::4] for part in range(4)]))
    for connection in connections:
        connection.close()
    assert len(statuses) == count and statuses.count(200) >= 1 and ask(port, "/search?query=goose")[0] == 200


def test_what_a_request_may_have_reranked_is_bounded(dense_index, tiny_dot, tiny_cross, invoke):
    too_deep = ["--index", dense_index, "--encoder", tiny_dot, "--rerank", tiny_cross, "--depth", 10_001, "--port", 0]
    result = invoke(serve.main, *too_deep)
    assert result.exit_code == 2 and "at most 10000 documents are reranked for a request" in result.output
    with running(
        service.app(opened("--index", dense_index, "--encoder", tiny_dot, "--rerank", tiny_cross, "--depth", 1000, texts=True))
    ) as port:
        assert ask(port, "/search", {"query": ["goose"] * 10})[0] == 200
        status, said = ask(port, "/search", {"query": ["goose"] * 11})
        assert (status, said["detail"]) == (422, "11 queries; 1000 documents are reranked for each: ask for 10")


def test_bodies_are_bounded_all_together(port, monkeypatch):
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


def test_many_clients_get_equal_answers(port, queries):
    expected = {query.text: ask(port, "/search?" + urlencode({"query": query.text}))[1] for query in queries}

    def client(number):
        texts = [queries[(number + step) % len(queries)].text for step in range(20)]
        return all(ask(port, "/search?" + urlencode({"query": text})) == (200, expected[text]) for text in texts)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(client, range(8)))


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
    """asyncio turns Nagle's delay (40 ms an answer) off only where the socket says it is TCP."""
    with service.bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_wrong_options(invoke, dense_index, tiny_dot, tmp_path, monkeypatch):
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path))
    for words, word in (
        (["--index", tmp_path / "nowhere", "--encoder", tiny_dot], "index not found"),
        (["--index", dense_index, "--encoder", tiny_dot, "--fusion", "rrf"], "--sparse-index"),
        (["--port", 70000], "--port"),
        (["--host", "192.0.2.1"], "address 192.0.2.1, port 0: Cannot assign requested address"),
        ([], "python -m pyserini_kd.search --encoder student"),
    ):
        result = invoke(serve.main, "--port", 0, *words)
        assert result.exit_code == 2 and word in result.output, result.output
