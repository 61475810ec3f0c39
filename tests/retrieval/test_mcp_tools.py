"""Pyserini's MCP tools on our service, asked by an MCP client; compared with Pyserini's own tools where its version has them."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyserini_kd import serve
from pyserini_kd.evaluation import engines
from pyserini_kd.retrieval import mcp_tools, service
from pyserini_kd.storage.errors import InputError
from tests.retrieval.test_serve import opened

fastmcp = pytest.importorskip("fastmcp", reason="Pyserini brings this package, but an installation may lack it")


def asked(server, *calls):
    """The results of tools, called one after the other by a client in this process."""

    async def run():
        async with fastmcp.Client(server) as client:
            return [await client.call_tool(name, given, raise_on_error=False) for name, given in calls]

    return asyncio.run(run())


def said(result):
    return [content.text for content in result.content]


def listed(result):
    """The list that search and get_document return, as one JSON text."""
    (text,) = said(result)
    return json.loads(text)


@pytest.fixture(scope="module")
def system(bm25_index):
    return opened("--index", bm25_index, "--encoder", "bm25", texts=True)


@pytest.fixture(scope="module")
def server(system):
    qrels = {"q1": {"eat-cat": 2, "eat-dog": 0, "eat-cow": 1}, "q2": {"eat-cat": 0}}
    return mcp_tools.server(system, mcp_tools.Judgements(qrels, engines.evaluate))


def test_search_and_documents_are_those_of_the_service(server, system, corpus):
    name = system.settings.index[0].rpartition("/")[2]
    given = {"query": "the cat", "index": name, "hits": 3}
    by_text, by_object, short, doc, raw = asked(
        server,
        ("search", given),
        ("search", given | {"query": {"qid": "7", "query_txt": "the cat"}}),
        ("search", {"query": "the cat", "hits": 1, "ef_search": 100, "encoder": "", "k1": 2, "b": 0.1}),
        ("get_document", {"docid": corpus[0].doc_id, "index": name}),
        ("get_document", {"docid": corpus[0].doc_id, "parse": False}),
    )
    (body,) = service.answers(system, [service.Asked(query="the cat", hits=3, docs=True)])
    hits = json.loads(body)["results"][0]["hits"]
    lines = listed(by_text)
    assert lines == listed(by_object) and lines[0] == "Query Results for: the cat" and len(lines) == 1 + 2 * len(hits) > 3
    for hit, line, shown in zip(hits, lines[1::2], lines[2::2], strict=True):
        contents = f"{hit['title']} {hit['text']}".strip()
        assert line == f"DocID: {hit['doc_id']} | Score: {round(hit['score'], 6)}"
        assert shown == {"contents": contents, "title": hit["title"]}
    assert listed(short)[1] != lines[1] and len(listed(short)) == 3
    shown = {"contents": corpus[0].contents, "title": corpus[0].title}
    assert listed(doc) == [shown]
    assert json.loads(listed(raw)[0]) == {"id": corpus[0].doc_id, **shown}


def test_indexes(server, system, dense_index, tiny_dot):
    name = system.settings.index[0].rpartition("/")[2]
    every, of_type, other, one = asked(
        server,
        ("list_indexes", {}),
        ("list_indexes", {"index_type": "tf"}),
        ("list_indexes", {"index_type": "faiss"}),
        ("get_index", {"index_name": name}),
    )
    assert every.data == of_type.data == [name] and other.data == []
    assert one.data["index_type"] == "tf" and one.data["downloaded"] is True and one.data["encoder"] == "bm25"
    dense = mcp_tools.server(opened("--index", dense_index, "--encoder", tiny_dot, texts=True))
    assert asked(dense, ("list_indexes", {"index_type": "faiss"}))[0].data == [dense_index.name]


def test_fusion_by_hand(server):
    """Scores 4, 2, 0 become 1, .5, 0, and 30, 10 become 1, 0; Pyserini's are 0.5 less for each list."""
    first = [{"docid": doc_id, "score": score} for doc_id, score in (("a", 4), ("b", 2), ("c", 0))]
    second = [{"docid": doc_id, "score": score} for doc_id, score in (("b", 30), ("d", 10))]
    found, top, empty = asked(
        server,
        ("fuse_search_results", {"results1": first, "results2": second}),
        ("fuse_search_results", {"results1": first, "results2": second, "hits": 1}),
        ("fuse_search_results", {"results1": [], "results2": []}),
    )
    fused = found.structured_content["result"]
    assert [(hit["docid"], hit["score"]) for hit in fused] == [("b", 0.5), ("a", 0), ("d", -1), ("c", -1)]
    assert top.structured_content["result"] == fused[:1] and empty.structured_content["result"] == []


def test_judgements_and_measures(server, system):
    name, hits = system.settings.index[0].rpartition("/")[2], {"eat-dog": 3.0, "eat-cow": 2.0, "eat-cat": 1.0}
    of = {"index_name": name, "query_id": "q1"}
    known, unknown, *values = asked(
        server,
        ("get_qrels", of),
        ("get_qrels", of | {"query_id": "q3"}),
        *(("eval_hits", of | {"metric": metric, "hits": hits}) for metric in ("recip_rank", "map", "recall", "ndcg")),
        ("eval_hits", of | {"metric": "recall", "hits": hits, "cutoff": 2}),
        ("eval_hits", of | {"metric": "recip_rank", "hits": hits, "cutoff": 1}),
        ("eval_hits", of | {"metric": "map", "hits": hits, "query_id": "q2"}),
    )
    assert known.data == {"eat-cat": "2", "eat-dog": "0", "eat-cow": "1"} and unknown.data == {}
    ndcg = (1 / 1.584963 + 2 / 2) / (2 + 1 / 1.584963)
    assert [value.data for value in values] == pytest.approx([1 / 2, (1 / 2 + 2 / 3) / 2, 1, ndcg, 1 / 2, 0, 0])


@pytest.mark.parametrize(
    ("tool", "given", "word"),
    [
        ("search", {"query": " "}, "query: String should have at least 1 character"),
        ("search", {"query": "a" * 8193}, "query: String should have at most 8192 characters"),
        ("search", {"query": {}}, "query: Input should be a valid string"),
        ("search", {"query": {"query_img_path": "/etc/passwd"}}, "query: images are not searched"),
        ("search", {"query": "secret", "hits": 1001}, "hits: Input should be less than or equal to 1000"),
        ("search", {"query": "secret", "hits": "many"}, "hits: Input should be a valid integer"),
        ("search", {}, "query: Missing required argument"),
        ("search", {"query": "secret", "first": 1, "second": 2}, "first: Unexpected keyword argument"),
        ("search", {"query": "secret", "index": "/etc"}, "index '/etc' is not served here; served: "),
        ("search", {"query": "secret", "ef_search": 7}, "ef_search: is fixed when the service starts"),
        ("search", {"query": "secret", "query_generator": "dismax"}, "query_generator: is fixed"),
        ("search", {"query": "secret", "k1": 1}, "k1 and b must be given together"),
        ("get_document", {"docid": "../../etc/passwd"}, "document '../../etc/passwd' is not in"),
        ("list_indexes", {"index_type": "any"}, "index_type: must be one of tf, "),
        ("get_index", {"index_name": "other"}, "index 'other' is not served here"),
        ("fuse_search_results", {"results1": [{"docid": "a", "score": 1}] * 10_001, "results2": []}, "at most 10000"),
        ("eval_hits", {"index_name": "", "metric": "mrr", "query_id": "q1", "hits": {"a": 1}}, "metric: must be one of ndcg"),
        ("get_qrels", {"index_name": "NAME", "query_id": "q1"}, "start it with --qrels"),
    ],
    ids=range(18),
)
def test_wrong_requests_are_one_line_and_not_logged(system, tool, given, word, caplog, capfd):
    name = system.settings.index[0].rpartition("/")[2]
    given = {key: name if value == "NAME" else value for key, value in given.items()}
    (result,) = asked(mcp_tools.server(system), (tool, given))
    assert result.is_error and len(said(result)) == 1
    assert word in said(result)[0] and "\n" not in said(result)[0] and len(said(result)[0]) < 200
    assert "secret" not in caplog.text + "".join(capfd.readouterr()) + said(result)[0]


def test_calls_wait_in_the_queue_of_the_service(system, monkeypatch):
    go, sizes, original = threading.Event(), [], service.answers

    def counted(system, requests):
        sizes.append(len(requests))
        go.wait(30)
        return original(system, requests)

    async def run():
        async with fastmcp.Client(mcp_tools.server(system)) as client:
            calls = [asyncio.create_task(client.call_tool("search", {"query": "cat"}, raise_on_error=False)) for _ in range(6)]
            while sum(call.done() for call in calls) < 2:
                await asyncio.sleep(0.01)
            go.set()
            return [await call for call in calls]

    monkeypatch.setattr(service, "answers", counted)
    monkeypatch.setattr(service, "MAX_WAITING", 4)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(asyncio.run, run()).result()
    assert sorted(said(one)[0] for one in found if one.is_error) == ["4 requests are waiting; try again later"] * 2
    assert sum(sizes) == 4


def test_tools_equal_those_of_pyserini(system, server, bm25_index, tmp_path):
    """This needs Pyserini 2.4 or later: Pyserini 1.6 has other tools."""
    from pyserini_kd.data.java import start_jvm

    start_jvm()
    pytest.importorskip("pyserini.server.backend", reason="this Pyserini has other tools", exc_type=ImportError)
    from pyserini.server.backend import SharedSearchBackend
    from pyserini.server.mcp.tools import register_tools

    (tmp_path / "config.yaml").write_text(json.dumps({"indexes": {bm25_index.name: str(bm25_index)}}))
    theirs = fastmcp.FastMCP("theirs")
    register_tools(theirs, SharedSearchBackend(str(tmp_path / "config.yaml"), no_prebuilt_indexes=True))

    async def tools(some):
        async with fastmcp.Client(some) as client:
            return {
                tool.name: set(tool.model_dump(by_alias=True)["inputSchema"]["properties"])
                for tool in await client.list_tools()
            }

    assert asyncio.run(tools(server)) == asyncio.run(tools(theirs))
    first = [{"docid": doc_id, "score": score} for doc_id, score in (("a", 4.5), ("b", 2.25), ("c", 0))]
    calls = [
        ("search", {"query": "the cat eats", "index": bm25_index.name}),
        ("search", {"query": {"query_txt": "goose"}, "index": bm25_index.name, "hits": 2, "k1": 1.5, "b": 0.3}),
        ("get_document", {"docid": "eat-cat", "index": bm25_index.name}),
        ("list_indexes", {"index_type": "tf"}),
        ("list_indexes", {"index_type": "impact"}),
        ("fuse_search_results", {"results1": first, "results2": [{"docid": "b", "score": 3}, {"docid": "a", "score": 1}]}),
    ]
    for ours, expected in zip(asked(server, *calls), asked(theirs, *calls), strict=True):
        assert not expected.is_error and said(ours) == said(expected)
        assert ours.structured_content == expected.structured_content


@pytest.mark.slow
def test_the_command_serves_a_client_on_stdio(bm25_index, tmp_path):
    (tmp_path / "qrels.txt").write_text("q1 0 eat-cat 1\n")
    words = [
        "-m",
        "pyserini_kd.serve",
        "--mcp",
        "--encoder",
        "bm25",
        "--index",
        str(bm25_index),
        "--qrels",
        str(tmp_path / "qrels.txt"),
    ]
    transport = fastmcp.client.transports.StdioTransport(sys.executable, words, keep_alive=False)
    found, qrels = asked(
        transport,
        ("search", {"query": "cat", "hits": 1}),
        ("get_qrels", {"index_name": bm25_index.name, "query_id": "q1"}),
    )
    assert listed(found)[0] == "Query Results for: cat" and len(listed(found)) == 3
    assert qrels.data == {"eat-cat": "1"}
    done = subprocess.run([sys.executable, *words], input="", capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0 and done.stdout == "" and done.stderr == f"{bm25_index.name}: MCP tools on stdin and stdout\n"
    with subprocess.Popen([sys.executable, *words], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr.readline().endswith("stdin and stdout\n")
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(20) == 130


def test_wrong_options(invoke, bm25_index, monkeypatch):
    for words, word in (
        (["--mcp", "--port", 80], "--port: is for HTTP; with --mcp the tools are on stdin and stdout"),
        (["--qrels", "some"], "--qrels: is for --mcp"),
        (["--mcp", "--qrels", "nowhere"], "nowhere"),
    ):
        result = invoke(serve.main, "--index", bm25_index, "--encoder", "bm25", *words)
        assert result.exit_code == 2 and word in result.output, result.output
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'pyserini-kd\[mcp\]'"):
        mcp_tools.serve(serve.ServeSettings(index=(str(bm25_index),), encoder="bm25", mcp=True), None, print)
