"""report: the numbers it shows are those of evaluate, and a real browser sorts and drills down."""

import base64
import functools
import hashlib
import html
import json
import re
import shutil
import subprocess
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyserini_kd import report
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.evaluation import figures, significance
from pyserini_kd.evaluation import page as page_
from pyserini_kd.evaluation.measures import DEFAULT_MEASURES
from pyserini_kd.evaluation.page import DEPTHS, MAX_BYTES, MAX_DOCS, TEMPLATE, System, _cut, _embedded, collect, pareto_front
from pyserini_kd.models.rankers import load_encoder
from pyserini_kd.retrieval import dense_build
from pyserini_kd.storage.errors import InputError
from tests.conftest import as_ranker

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
QRELS = {"q1": {"a": 1, "b": 0}, "q2": {"b": 2}, "q3": {"c": 1}}
# RR: weak 1/2, 1/1, 0; strong 1/1, 1/1, 1/2; slow 1/3, 0, 1/1
RUNS = {
    "weak": {"q1": {"b": 3, "a": 2, "c": 1}, "q2": {"b": 1}},
    "strong": {"q1": {"a": 3, "b": 2}, "q2": {"b": 3, "a": 2}, "q3": {"d": 5, "c": 4}},
    "slow": {"q1": {"c": 3, "b": 2, "a": 1}, "q2": {"c": 1}, "q3": {"c": 9}},
}
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><!-- & \u2028"


@pytest.fixture
def given_files(tmp_path):
    """Three runs, two of them with a record of 3 and 0.3 seconds (1000 and 100 ms a query), qrels, topics, documents."""
    for name, scores in RUNS.items():
        Run.from_scores(name, scores).write(tmp_path / f"run.x.{name}.txt")
    (tmp_path / "run.x.slow.json").write_text('{"command": "search it", "seconds": 3.0, "system": "the slow one"}')
    (tmp_path / "run.x.strong.json").write_text('{"seconds": 0.3}')
    (tmp_path / "qrels.txt").write_text("".join(f"{q} 0 {d} {g}\n" for q, docs in QRELS.items() for d, g in docs.items()))
    (tmp_path / "topics.tsv").write_text(f"q1\twhat the cat eats\nq2\tdogs {EVIL.replace(chr(0x2028), ' ')}\nq3\tthree\n")
    docs = [("a", "Cats", "The cat eats fish"), ("b", "", EVIL), ("c", EVIL, "x"), ("d", "D", "long " * 300)]
    lines = (json.dumps({"id": d, "title": title, "text": text}) for d, title, text in docs)
    (tmp_path / "docs.jsonl").write_text("\n".join(lines) + "\n")
    stage = {
        "name": "one",
        "log": [{"step": 1, "lr": 0.1, "kl": 2.0}, {"step": 2, "lr": 0.1, "kl": 1.5}],
        "dev": [{"step": 2, "RR@10": 0.5}],
    }
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "training.json").write_text(json.dumps({"stages": [stage]}))
    return tmp_path


@pytest.fixture
def made(given_files, invoke):
    """Make a page by the command: made('flags') -> path of the page; made.data of what is in it."""

    def make(*words, runs=("weak", "strong", "slow"), output="page.html"):
        paths = [given_files / f"run.x.{name}.txt" for name in runs]
        result = invoke(report.main, "--qrels", given_files / "qrels.txt", *words, "--output", given_files / output, *paths)
        assert result.exit_code == 0, result.output
        return given_files / output

    return make


FULL = (
    "--topics",
    "topics.tsv",
    "--collection",
    "docs.jsonl",
    "--baseline",
    "run.x.weak.txt",
    "--measures",
    "RR",
    "P@1",
    "--training",
    "model/training.json",
)


def test_documents_that_an_index_lacks_are_left_out(given_files, tiny_dot):
    docs = [Doc("a", "Cats", "The cat eats fish"), Doc("z", "", "other")]
    dense_build.index_dense(docs, as_ranker(load_encoder(str(tiny_dot)), tiny_dot), given_files / "index")
    assert page_.fetch_texts(["a", "b"], None, str(given_files / "index")) == {"a": docs[0]}
    with pytest.raises(InputError, match="'b' is not in the index"):
        page_.fetch_texts(["b"], None, str(given_files / "index"))


@pytest.fixture
def full_page(made, given_files, monkeypatch):
    monkeypatch.chdir(given_files)
    return made(*FULL)


def data_of(page):
    text = page.read_text()
    return json.loads(text.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])


# -------------------------------------------------------------------------------------------------------- numbers


def test_the_page_holds_what_evaluate_says(full_page):
    data = data_of(full_page)
    assert [system["name"] for system in data["systems"]] == ["weak", "strong", "slow"]
    assert data["measures"] == ["RR", "P@1"] and data["baseline"] == 0 and data["count"] == 3
    rr = [[1 / 2, 1, 0], [1, 1, 1 / 2], [1 / 3, 0, 1]]
    assert [system["means"][0] for system in data["systems"]] == pytest.approx([sum(row) / 3 for row in rr], abs=1e-6)
    assert [[value / 1e4 for value in values[0]] for values in data["values"]] == [pytest.approx(row, abs=5e-5) for row in rr]
    by_query = [dict(zip(QRELS, row, strict=True)) for row in rr]
    results = {
        name: {"RR": values, "P@1": {q: float(value == 1) for q, value in values.items()}}
        for name, values in zip(RUNS, by_query, strict=True)
    }
    expected = significance.compare(results, "weak")["strong"]["RR"]._asdict()
    assert data["systems"][1]["compared"][0] == pytest.approx(expected, rel=1e-5)
    assert data["systems"][0]["compared"] is None and data["tests"] == 4
    assert [system["ms"] for system in data["systems"]] == [None, 100.0, 1000.0]
    assert data["fronts"] == [[1], [1]]
    assert data["systems"][1]["recall"] == [pytest.approx(2 / 3, abs=1e-5), 1.0] + [None] * 8  # found at ranks 1, 1, 2
    assert data["training"] == [{"name": "model", "losses": {"kl": [[1, 2.0], [2, 1.5]]}, "dev": {"RR@10": [[2, 0.5]]}}]


@pytest.mark.parametrize(("test", "correction"), [("randomisation", "bonferroni"), ("wilcoxon", "none")])
def test_the_page_compares_as_evaluate_does(test, correction, made, given_files, monkeypatch):
    monkeypatch.chdir(given_files)
    data = data_of(made("--baseline", "run.x.weak.txt", "--measures", "RR", "--test", test, "--correction", correction))
    rr = {"weak": [1 / 2, 1, 0], "strong": [1, 1, 1 / 2], "slow": [1 / 3, 0, 1]}
    results = {name: {"RR": dict(zip(QRELS, row, strict=True))} for name, row in rr.items()}
    expected = significance.compare(results, "weak", test=test, correction=correction)["slow"]["RR"]._asdict()
    assert data["systems"][2]["compared"][0] == pytest.approx(expected, rel=1e-5)
    assert data["test"] == significance.TEST_NAMES[test]
    assert data["correction"] == ("not corrected" if correction == "none" else "Bonferroni's correction for all 2 comparisons")


def test_rankings_hold_each_document_once(full_page):
    data = data_of(full_page)
    ids = [doc[0] for doc in data["docs"]]
    assert sorted(ids) == ["a", "b", "c", "d"]
    q3 = data["rankings"][2]
    assert [[ids[d] for d in hits] for hits in q3["hits"]] == [[], ["d", "c"], ["c"]]
    assert data["queries"][q3["query"]] == ["q3", "three"]
    q1 = data["rankings"][0]
    assert {ids[int(d)]: grade for d, grade in q1["judged"].items()} == {"a": 1, "b": 0} and q1["relevant"] == 1
    assert data["docs"][ids.index("d")][2] == ("long " * 300)[:400].rstrip() + "…"


def test_relevance_levels_of_measures_reach_recall_and_rankings(made):
    data = data_of(made("--measures", "RR(rel=2)"))
    assert data["level"] == 2
    assert [row["relevant"] for row in data["rankings"]] == [0, 1, 0]
    assert data["systems"][1]["recall"][0] == pytest.approx(1 / 3, abs=1e-5)  # q2 alone has a relevance of 2


def test_the_same_input_gives_the_same_bytes(made, given_files):
    words = ("--baseline", given_files / "run.x.weak.txt", "--figures", given_files / "figures", "--overwrite")
    found = []
    for _ in range(2):
        page = made(*words).read_bytes()
        found.append({"page": page} | {path.name: path.read_bytes() for path in (given_files / "figures").iterdir()})
    assert found[0] == found[1]
    assert set(found[0]) == {"page", "pareto.pdf", "recall.pdf", "wins.1.strong.pdf", "wins.2.slow.pdf"}


def test_names_stand_beside_their_points_or_all_in_a_legend():
    def pareto(n_systems):
        points = [{"name": f"system {n}", "ms": 10.0 + 40 * (n % 5), "means": [0.4 + n / 100]} for n in range(n_systems)]
        return figures._pareto({"systems": points, "fronts": [[0]], "measures": ["RR"]})

    few, many = pareto(5), pareto(60)
    boxes = [note.get_window_extent() for note in few.axes[0].texts]
    assert [note.get_text() for note in few.axes[0].texts] == [f"system {n}" for n in range(5)] and not few.legends
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])
    assert not many.axes[0].texts and len(many.legends[0].get_texts()) == 60
    assert few.axes[0].get_xscale() == "log"


def test_looks_differ_in_black_and_white():
    assert len({(figures._look(n)["marker"], figures._look(n)["linestyle"]) for n in range(8)}) == 8
    assert len({tuple(figures._look(n).values()) for n in range(56)}) == 56
    page = TEMPLATE.with_name("report.js").read_text()
    assert f"const COLOURS = {json.dumps(figures.COLOURS)};" in page  # the page has them in the same order


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), max_size=8))
def test_pareto_front_is_what_nothing_dominates(points):
    def beaten(i):
        (cost, value) = points[i]
        return any(c <= cost and v >= value and ((c, v) != (cost, value) or j < i) for j, (c, v) in enumerate(points) if j != i)

    front = pareto_front(dict(enumerate(points)))
    assert sorted(front) == [i for i in range(len(points)) if not beaten(i)]
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


# --------------------------------------------------------------------------------------------------------- bounds


def big(n_systems, n_queries, n_docs, text):
    """Systems with random values whose rankings share no document; only the first 400 queries, which differ most, have any."""
    import numpy as np

    rng = np.random.default_rng(0)
    ids = [str(100_000 + n) for n in range(n_queries)]
    scale = np.where(np.arange(n_queries) < 400, 1.0, 0.1)
    systems = []
    for s in range(n_systems):
        results = {m: dict(zip(ids, (scale * rng.random(n_queries)).round(4).tolist(), strict=True)) for m in DEFAULT_MEASURES}
        top = Run("r", {q: Run.from_scores("r", {q: {f"doc-{s}-{q}-{d}": -d for d in range(n_docs)}})[q] for q in ids[:400]})
        systems.append(System(f"/nowhere/run.{s}.txt", results, [0.5] * len(DEPTHS), top, 1000, []))
    qrels = {q: {f"doc-0-{q}-0": 1} for q in ids}
    return systems, qrels, [Query(q, text) for q in ids], lambda wanted: {d: Doc(d, text, text) for d in wanted}


@pytest.fixture(scope="session")
def big_page(tmp_path_factory):
    """Twenty systems by five measures and 6,980 queries, texts at their worst (three bytes a character, or escapes)."""
    path = tmp_path_factory.mktemp("big") / "big.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_, "sha256", lambda path: "0" * 64)
        patch.setattr(significance, "compare", functools.partial(significance.compare, samples=10))  # of the bootstrap
        data = collect(*big(20, 6980, 10, "検索" * 500), baseline="/nowhere/run.0.txt")
        path.write_text(page_.page(data), encoding="utf-8")
    return path


def test_the_page_stays_below_ten_megabytes(big_page):
    assert 5e6 < big_page.stat().st_size < 10e6
    data = data_of(big_page)
    assert len(data["queries"]) == 6980 and MAX_DOCS - 200 < len(data["docs"]) <= MAX_DOCS
    assert any(
        re.match(r"rankings can be read for the \d+ queries \(of 6980\) that differ most in nDCG@10", note)
        for note in data["notes"]
    )


def test_what_is_cut_is_said(monkeypatch):
    monkeypatch.setattr(page_, "sha256", lambda path: "")
    monkeypatch.setattr(page_, "MAX_VALUES", 2 * 5 * 10)
    monkeypatch.setattr(page_, "MAX_QUERIES", 4)
    systems, qrels, queries, fetch = big(2, 20, 1, "short")
    data = collect(systems, qrels, queries, lambda wanted: {d: Doc(d, "", "x") for d in wanted[1:]})
    assert [q for q, _ in data["queries"]] == [str(100_000 + n) for n in range(0, 20, 2)]
    assert data["notes"][0] == "single queries are shown for 10 of 20 queries, evenly spaced; all means are over all"
    spread = {q: abs(systems[0].results["nDCG@10"][q] - systems[1].results["nDCG@10"][q]) for q, _ in data["queries"]}
    shown = [data["queries"][row["query"]][0] for row in data["rankings"]]
    assert sorted(shown) == sorted(sorted(spread, key=spread.get)[-4:]) == shown
    assert data["notes"][-1].startswith("1 of 8 documents are not in the collection, e.g. doc-")
    assert len(data["docs"][0]) == 1 and len(data["docs"][1]) == 3


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=900), st.sampled_from(["", "<", "検", "\ud800"]))
def test_cut_texts_are_small_in_the_page(text, more):
    short = _cut(text + more * 400, 400)
    assert len(_embedded(short).encode()) <= MAX_BYTES + 3
    assert short.endswith("…") or short == " ".join((text + more * 400).split())


# --------------------------------------------------------------------------------------------------------- safety


def test_the_page_is_sealed(full_page):
    text = full_page.read_text()
    assert len(re.findall("<script", text)) == text.count("</script>") == 2 and EVIL not in text
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    assert set(re.findall(r"\w+://[^\s\"']*", text)) <= {"http://www.w3.org/2000/svg"}  # a namespace, never fetched
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|@import|url\(", text)
    assert data_of(full_page)["docs"][1][2] == " ".join(EVIL.split())


# -------------------------------------------------------------------------------------------------------- browser


@pytest.fixture
def browse(tmp_path):
    """Open a page in headless Chromium; gives the DOM as text. A script is run at the end, in a copy that allows it.

    Ticks keep the browser's virtual clock from running ahead of what a script has set going.
    """
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")

    def dump(page, fragment="", script="", wait=True):
        if script:
            text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
            page = tmp_path / "copy.html"
            script += "; setInterval(() => 0, 5)" * wait
            page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        words = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
            "--window-size=1280,900",
            *["--virtual-time-budget=20000"] * wait,
        ]
        words += [f"--user-data-dir={tempfile.mkdtemp(dir=tmp_path)}", "--dump-dom", f"{page.as_uri()}#{fragment}"]
        done = subprocess.run([CHROMIUM, *words], capture_output=True, text=True, timeout=120, check=True)
        dom = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.S)
        assert 'id="wait"' not in dom, "the page did not draw itself"
        return dom

    return dump


def order(dom):
    return [int(n) for n in re.findall(r'<tr data-system="(\d)"', dom)]


def sides(dom):
    """Document ids, and the text after them, of the two rankings."""
    inside = dom.partition('id="sides"')[2].partition("</section")[0]
    found = [re.findall(r'<li data-doc="([^"]*)">(.*?)</li>', half, flags=re.S) for half in inside.split("<h3>")[1:3]]
    return [[(d, html.unescape(re.sub("<[^>]*>", "|", body))) for d, body in half] for half in found]


@pytest.mark.slow
def test_sorting(full_page, browse):
    down = browse(full_page, "sort=0")  # RR: strong 5/6, weak 1/2, slow 4/9
    assert order(down) == [1, 0, 2] and 'aria-sort="descending"><button id="sort0"' in down
    assert "<h1>3 runs on qrels, 3 queries</h1>" in down
    assert (
        "<td>2 / 1 / 0</td><td>0 / 1</td>" in down and "<td>1 / 0 / 2</td><td>1 / 1</td>" in down
    )  # wins, ties, losses; zeros
    assert order(browse(full_page, "sort=2&dir=up")) == [1, 2, 0]  # time; the unknown one last
    assert order(browse(full_page, "sort=2&dir=down")) == [2, 1, 0]
    assert order(browse(full_page, "sort=-1&dir=up")) == [2, 1, 0]  # names


@pytest.mark.slow
def test_sorting_by_clicks(full_page, browse):
    # each click waits for what the one before it changed
    clicks = """let left = {}; const go = () => left-- > 0 && document.getElementById('sort0').click();
    addEventListener('hashchange', () => setTimeout(go, 10)); setTimeout(go, 10);"""
    assert order(browse(full_page, script=clicks.format(1))) == [1, 0, 2]
    up = browse(full_page, script=clicks.format(2))
    assert order(up) == [2, 0, 1] and 'aria-sort="ascending"><button id="sort0"' in up
    assert order(browse(full_page, script=clicks.format(3))) == [0, 1, 2]


@pytest.mark.slow
def test_drill_down(full_page, browse):
    left, right = sides(browse(full_page, "q=0&a=0&b=1"))
    assert [d for d, _ in left] == ["b", "a", "c"] and [d for d, _ in right] == ["a", "b"]
    assert "relevance 0" in left[0][1] and "✓ relevance 1" in left[1][1] and "not judged" in left[2][1]
    assert "The |cat| |eats| fish" in left[1][1] and "strong: rank 1" in left[1][1] and "not in its top 2" in left[2][1]
    chosen = "setTimeout(() => { const s = document.getElementById('query'); s.value = 2; s.dispatchEvent(new Event('change')); }, 10);"
    dom = browse(full_page, "a=2&b=1", script=chosen)
    left, right = sides(dom)
    assert [d for d, _ in left] == ["c"] and [d for d, _ in right] == ["d", "c"] and "q3 · three" in dom
    assert "This run has no documents for the query." in browse(full_page, "q=2&a=0")


@pytest.mark.slow
def test_a_bar_leads_to_its_rankings(full_page, browse):
    script = """setTimeout(() => { const s = document.getElementById('slider'); s.value = 2; s.dispatchEvent(new Event('input')); }, 10);
    setTimeout(() => { document.title = document.getElementById('bar').textContent; document.querySelector('#bar button').click(); }, 100);"""
    dom = browse(full_page, "s=2", script=script)  # slow against weak: q3 +1, q1 -1/6, q2 -1
    assert "<title>−1.0000 (1.0000 → 0.0000) on query q2" in dom and "1 wins (blue, up), 0 ties, 2 losses" in dom
    assert [[d for d, _ in half] for half in sides(dom)] == [["b"], ["c"]]


@pytest.mark.slow
def test_twenty_systems_open_in_two_seconds(big_page, browse):
    dom = browse(big_page, script="document.title = performance.now()", wait=False)  # a clock that runs in earnest
    assert float(re.search(r"<title>([\d.]+)", dom)[1]) < 2000
