"""Fusion: formulas by hand, pyserini.fusion as oracle, independence of the order of runs."""

import json
import math

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pyserini_kd.data.runs import Run, RunStream, open_run
from pyserini_kd.data.trectools_adapter import from_trectools, to_trectools
from pyserini_kd.fuse import main
from pyserini_kd.retrieval import fusion, fusion_files, fusion_methods
from pyserini_kd.retrieval.fusion import interpolation, rrf
from pyserini_kd.storage.errors import InputError

A = Run.from_scores("a", {"q1": {"x": 9.0, "y": 8.0, "z": 4.0}, "only_a": {"x": 1.0}})
B = Run.from_scores("b", {"q1": {"y": 0.75, "w": 0.5}, "only_b": {"v": 0.5, "u": 0.25}})

DOCS = st.dictionaries(st.sampled_from([f"d{i}" for i in range(12)]), st.integers(-4, 4).map(float), max_size=10)
RUN = st.dictionaries(st.sampled_from(["q1", "q2", "007"]), DOCS, max_size=3).map(lambda scores: Run.from_scores("r", scores))
RUNS = st.lists(RUN, min_size=2, max_size=5)


def scores(run, query_id):
    hits = run[query_id]
    return dict(zip(hits.doc_ids, hits.scores.tolist(), strict=True))


def content(run):
    return {query_id: scores(run, query_id) for query_id in run}


# -------------------------------------------------------------------------------------------------- worked by hand


@pytest.mark.parametrize("engine", ["trectools", "fast", "auto"])
def test_rrf_by_hand(engine):
    fused = rrf([A, B], engine=engine, tag="hybrid")
    assert fused.tag == "hybrid"
    assert fused["q1"].doc_ids == ["y", "x", "w", "z"]
    assert scores(fused, "q1") == pytest.approx({"y": 1 / 62 + 1 / 61, "x": 1 / 61, "w": 1 / 62, "z": 1 / 63})
    assert scores(fused, "only_a") == pytest.approx({"x": 1 / 61})
    assert scores(fused, "only_b") == pytest.approx({"v": 1 / 61, "u": 1 / 62})
    assert list(fused) == ["q1", "only_a", "only_b"]


@pytest.mark.parametrize("engine", ["trectools", "fast"])
def test_rrf_constant_depth_and_k(engine):
    assert scores(rrf([A, B], rrf_k=0, engine=engine), "q1")["y"] == pytest.approx(1 / 2 + 1)
    assert scores(rrf([A, B], depth=1, engine=engine), "q1") == pytest.approx({"x": 1 / 61, "y": 1 / 61})
    assert rrf([A, B], depth=1, engine=engine)["q1"].doc_ids == ["y", "x"]  # a tie: doc_id descending
    assert rrf([A, B], k=2, engine=engine)["q1"].doc_ids == ["y", "x"]


@pytest.mark.parametrize("engine", ["trectools", "fast"])
def test_k_cuts_ties_in_our_order(engine):
    a, b = Run.from_scores("a", {"q": {"d1": 1.0}}), Run.from_scores("b", {"q": {"d2": 1.0}})
    assert rrf([a, b], k=1, engine=engine)["q"].doc_ids == ["d2"]


@pytest.mark.parametrize("engine", ["trectools", "fast"])
def test_tied_inputs_are_ranked_by_doc_id_descending(engine):
    tied = Run.from_scores("a", {"q": {"d1": 1.0, "d2": 1.0}})
    assert scores(rrf([tied, tied], engine=engine), "q") == pytest.approx({"d2": 2 / 61, "d1": 2 / 62})


def test_interpolation_by_hand():
    fused = interpolation(A, B, alpha=0.25)
    expected = {"x": 0.25 * 9, "y": 0.25 * 8 + 0.75 * 0.75, "z": 0.25 * 4, "w": 0.75 * 0.5}
    assert scores(fused, "q1") == pytest.approx(expected)
    assert scores(fused, "only_b") == pytest.approx({"v": 0.75 * 0.5, "u": 0.75 * 0.25})
    assert scores(interpolation(A, B, alpha=1.0), "q1")["y"] == 8.0


def test_average_and_normalize_by_hand():
    assert scores(fusion.combine([A, B, A], "average"), "q1")["y"] == pytest.approx((8 + 0.75 + 8) / 3)
    assert scores(fusion.combine([A, B], "normalize"), "q1") == pytest.approx(
        {"x": 1, "y": (8 - 4) / (9 - 4) + 1, "z": 0, "w": 0}
    )
    assert scores(fusion.combine([A, B], "normalize"), "only_a") == {"x": 1.0}  # all scores equal


# --------------------------------------------------------------------------------------------------------- oracles


def tie_free(seed, n_queries=5, n_docs=40):
    rng = np.random.default_rng(seed)
    docs = np.array([f"d{i}" for i in range(60)])
    return Run.from_scores(
        f"r{seed}",
        {
            f"q{number}": dict(zip(rng.permutation(docs)[:n_docs].tolist(), rng.normal(size=n_docs).tolist(), strict=True))
            for number in range(n_queries)
            if number != seed % n_queries  # each run lacks a query
        },
    )


@pytest.mark.parametrize("depth", [None, 15])
@pytest.mark.parametrize("method", ["rrf", "interpolation", "average", "normalize"])
def test_equals_pyserini_fusion(method, depth, tmp_path):
    import pyserini.fusion
    from pyserini.trectools import TrecRun

    ours = [tie_free(seed) for seed in (1, 2, 3)][: 2 if method == "interpolation" else 3]
    for number, run in enumerate(ours):
        run.write(tmp_path / str(number))
    theirs = [TrecRun(str(tmp_path / str(number))) for number in range(len(ours))]
    if method == "rrf":
        fused, oracle = rrf(ours, 20, depth), pyserini.fusion.reciprocal_rank_fusion(theirs, 20, depth)
    elif method == "interpolation":
        fused, oracle = interpolation(*ours, 0.3, depth), pyserini.fusion.interpolation(theirs, 0.3, depth)
    else:
        fused = fusion.combine(ours, method, depth=depth)
        oracle = getattr(pyserini.fusion._base, method)(theirs, depth)
    expected = {q: dict(zip(group["docid"], group["score"], strict=True)) for q, group in oracle.run_data.groupby("topic")}
    assert fused.keys() == expected.keys() and len(expected) == 5
    for query_id, docs in expected.items():
        assert scores(fused, query_id) == pytest.approx(docs, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(RUNS, st.sampled_from([0, 1, 60]), st.sampled_from([None, 1, 4]), st.sampled_from([None, 1, 5]))
def test_trectools_equals_the_kernel(runs, rrf_k, depth, k):
    one, other = (rrf(runs, rrf_k, depth, k, engine=engine) for engine in ("trectools", "fast"))
    assert content(one) == content(other)
    assert [hits.doc_ids for hits in one.values()] == [hits.doc_ids for hits in other.values()]
    assert list(one) == list(other)


@settings(max_examples=60, deadline=None)
@given(RUNS, st.randoms(use_true_random=False))
def test_the_order_of_the_runs_changes_nothing(runs, random):
    shuffled = random.sample(runs, len(runs))
    for method in (
        lambda runs: rrf(runs, engine="fast"), lambda runs: rrf(runs, engine="trectools"),
        lambda runs: fusion.combine(runs, "average"), lambda runs: fusion.combine(runs, "normalize"),
    ):  # fmt: skip
        assert content(method(shuffled)) == content(method(runs))
    one, other = interpolation(runs[0], runs[1], 0.25), interpolation(runs[1], runs[0], 0.75)
    assert content(one) == content(other)


# ---------------------------------------------------------------------------------------------------- engine's choice


def test_trectools_is_not_used_beyond_its_depth():
    deep = Run.from_scores("deep", {"q": {f"d{i}": -float(i) for i in range(1, 1201)}})
    fused = rrf([deep, A], k=None)
    assert scores(fused, "q")["d1200"] == pytest.approx(1 / 1260)
    with pytest.raises(InputError, match="at most 1000 hits per query, but a run has 1200"):
        rrf([deep, A], engine="trectools")
    assert content(rrf([deep, A], depth=1000, engine="trectools")) == content(rrf([deep, A], depth=1000, engine="fast"))


def test_large_runs_use_the_kernel(monkeypatch):
    monkeypatch.setattr(fusion, "_rrf_by_trectools", lambda *_: "trectools")
    assert rrf([A, B]) == "trectools"
    monkeypatch.setattr(fusion, "TRECTOOLS_WORK", 3 * 8 - 1)  # three queries, eight rows
    assert rrf([A, B])["q1"].doc_ids == ["y", "x", "w", "z"]


# --------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    A.write("a.txt")
    B.write("b.txt")
    return tmp_path


def run_command(*args):
    return CliRunner().invoke(main, [*args])


def test_command_writes_the_fused_run(files):
    result = run_command("--runs", "a.txt", "b.txt", "--output", "c.txt", "--rrf.k", "10", "--k", "2", "--runtag", "hybrid")
    assert result.exit_code == 0, result.output
    assert (files / "c.txt").read_text().splitlines()[:2] == [
        f"q1 Q0 y 1 {np.float32(1 / 12 + 1 / 11):.9g} hybrid",
        f"q1 Q0 x 2 {np.float32(1 / 11):.9g} hybrid",
    ]
    assert list(Run.read("c.txt")) == ["q1", "only_a", "only_b"]


@pytest.mark.parametrize(
    ("method", "value"),
    [("rrf", 1 / 61 + 1 / 62), ("interpolation", 8 * 0.9 + 0.75 * 0.1), ("average", 4.375), ("normalize", 1.8)],
)
def test_command_knows_every_method(files, method, value):
    more = ["--alpha", "0.9"] if method == "interpolation" else []
    result = run_command("--method", method, *more, "--output", "c.txt", "--runs", "a.txt", "b.txt")
    assert result.exit_code == 0, result.output
    assert scores(Run.read("c.txt"), "q1")["y"] == pytest.approx(value)


# ------------------------------------------------------------------------------------------------- other methods

FIRST = Run.from_scores("a", {"q": {"x": 3.0, "y": 1.0}})
SECOND = Run.from_scores("b", {"q": {"y": 9.0, "z": 5.0}})
THIRD = Run.from_scores("c", {"q": {"y": 2.0}, "r": {"w": 1.0}})


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("isr", {"x": 1 * 1 / 1, "y": 3 * (1 / 4 + 1 + 1), "z": 1 * 1 / 4}),
        ("combsum", {"x": 3, "y": 1 + 9 + 2, "z": 5}),
        ("combmnz", {"x": 3, "y": 3 * (1 + 9 + 2), "z": 5}),
        ("combanz", {"x": 3, "y": (1 + 9 + 2) / 3, "z": 5}),
        ("combmax", {"x": 3, "y": 9, "z": 5}),
        ("combmin", {"x": 3, "y": 1, "z": 5}),
        ("combmed", {"x": 3, "y": 2, "z": 5}),
        ("rbp", {"x": 0.2, "y": 0.2 * 0.8 + 0.2 + 0.2, "z": 0.2 * 0.8}),
        # three documents: 3, 2, 1 points; missing documents share the rest: a gives z 1, b gives x 1, c gives x and z 1.5
        ("borda", {"x": 3 + 1 + 1.5, "y": 2 + 3 + 3, "z": 1 + 2 + 1.5}),
        # y beats x (b, c against a) and z (all); x and z: a against b, a tie
        ("condorcet", {"x": 0.5, "y": 2, "z": 0.5}),
    ],
)
def test_methods_by_hand(method, expected):
    fused = fusion.combine([FIRST, SECOND, THIRD], method)
    assert scores(fused, "q") == pytest.approx(expected)
    assert list(fused) == ["q", "r"] and fused["r"].doc_ids == ["w"]  # topics of one run only are kept


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("minmax", {"x": 1.0, "y": 0.0 + 1.0, "z": 0.0}),
        ("sum", {"x": 1.0, "y": 0.0 + 1.0, "z": 0.0}),
        ("zscore", {"x": 1.0, "y": -1.0 + 1.0, "z": -1.0}),
        ("rank", {"x": 1.0, "y": 0.5 + 1.0, "z": 0.5}),
    ],
)
def test_normalised_sums_by_hand(norm, expected):
    assert scores(fusion.combine([FIRST, SECOND], "combsum", norm=norm), "q") == pytest.approx(expected)


@pytest.mark.parametrize("norm", ["minmax", "sum", "zscore"])
@pytest.mark.parametrize("flat", [{"x": 7.0, "y": 7.0}, {"x": -7.0}])
def test_equal_scores_normalise_to_zero(norm, flat):
    flat = Run.from_scores("flat", {"q": flat})
    assert scores(fusion.combine([flat, flat], "combsum", norm=norm), "q") == dict.fromkeys(flat["q"].doc_ids, 0.0)


def test_negative_scores_normalise_as_others_do():
    below = Run.from_scores("below", {"q": {"x": -1.0, "y": -2.0, "z": -5.0}})
    expected = {"minmax": (1, 3 / 4, 0), "sum": (4 / 7, 3 / 7, 0), "rank": (1, 2 / 3, 1 / 3)}
    expected["zscore"] = tuple((s + 8 / 3) / math.sqrt(26 / 9) for s in (-1, -2, -5))  # mean -8/3, variance 30/3 - 64/9
    for norm, values in expected.items():
        found = scores(fusion.combine([below, THIRD], "combmax", norm=norm), "q")
        assert [found["x"], found["z"]] == pytest.approx([values[0], values[2]])


@settings(max_examples=100, deadline=None)
@given(RUNS, st.sampled_from(sorted(fusion_methods.METHODS)), st.sampled_from(sorted(fusion_methods.NORMS)))
def test_every_fused_document_gets_a_finite_score(runs, method, norm):
    """Topics missing in a run, empty rankings, one document, equal scores, scores below 0."""
    by_rank = fusion_methods.METHODS[method].by_rank is not None
    fused = fusion.combine(runs, method, norm=None if by_rank else norm, k=None)
    assert set(fused) == set().union(*runs)
    for query_id, hits in fused.items():
        assert set(hits.doc_ids) == {d for run in runs if query_id in run for d in run[query_id].doc_ids}
        assert np.isfinite(hits.scores).all()


def test_raw_scores_below_zero_give_a_warning(caplog):
    below = Run.from_scores("below", {"q": {"x": -1.0}, "r": {"x": -2.0}})
    warning = (
        "query q: some scores are below 0 and count less than missing documents (0); method wsum with norm minmax avoids this"
    )
    for fused in (
        lambda: interpolation(below, A), lambda: fusion.combine([below, A], "average"), lambda: fusion.combine([A, below], "combsum"),
        lambda: fusion.combine([A, below], "wsum", norm="none"), lambda: fusion.combine([A, below], "combmnz"),
    ):  # fmt: skip
        caplog.clear()
        fused()
        assert caplog.messages == [warning]
    caplog.clear()
    (
        rrf([below, A]),
        fusion.combine([below, A], "normalize"),
        fusion.combine([below, A], "combmax"),
        fusion.combine([below, A], "combsum", norm="minmax"),
    )
    fusion.combine([A, B], "average")
    assert caplog.messages == []


def test_weighted_sum():
    assert scores(fusion.combine([FIRST, SECOND, THIRD], "wsum", weights=[1.0, 0.5, -1.0]), "q") == pytest.approx(
        {"x": 3.0, "y": 1 + 4.5 - 2, "z": 2.5}
    )
    assert content(fusion.combine([FIRST, SECOND], "wsum", weights=[0.3, 0.7])) == content(
        interpolation(FIRST, SECOND, alpha=0.3)
    )


def overlapping(n_runs, n_queries=3, n_docs=40):
    """Tie-free runs that each list some of the documents."""
    rng = np.random.default_rng(n_runs)
    docs = [f"d{n}" for n in range(n_docs)]
    return [
        Run.from_scores(
            t, {f"q{q}": {d: float(rng.random() + 1) for d in rng.permutation(docs)[:25]} for q in range(n_queries)}
        )
        for t in "abcde"[:n_runs]
    ]


def same(ours, theirs, tolerance=1e-6):
    """Equal rankings and scores; the other side may order ties differently."""
    assert set(ours) == set(theirs)
    for query_id in ours:
        assert scores(ours, query_id) == pytest.approx(scores(theirs, query_id), rel=tolerance)


@pytest.mark.parametrize("method", ["sum", "max", "min", "anz", "mnz", "med"])
def test_equals_trectools(method):
    """Two runs only: trectools' combos fail on three."""
    import trectools.fusion

    runs = overlapping(2)
    theirs = trectools.fusion.combos([to_trectools(run) for run in runs], strategy=method)
    same(fusion.combine(runs, f"comb{method}"), from_trectools(theirs, "t"))


def test_equals_trectools_rbp():
    import trectools.fusion

    runs = overlapping(4)
    theirs = trectools.fusion.rank_biased_precision_fusion([to_trectools(run) for run in runs], p=0.7)
    same(fusion.combine(runs, "rbp", rbp_p=0.7), from_trectools(theirs, "t"))


RANX = [(name, name, None, None) for name in ("rrf", "isr", "wsum")] + [
    ("rbp", "rbc", None, None),
    ("borda", "bordafuse", None, None),
]
RANX += [(f"comb{m}", m, None, None) for m in ("sum", "mnz", "anz", "max", "min", "med")]
NORMS = [("minmax", "min-max"), ("sum", "sum"), ("zscore", "zmuv"), ("rank", "rank")]
RANX += [
    (ours, theirs, *norms) for ours, theirs in (("combsum", "sum"), ("combmed", "med"), ("wsum", "wsum")) for norms in NORMS
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "theirs", "norm", "their_norm"), RANX)
def test_equals_ranx(method, theirs, norm, their_norm):
    import ranx  # slow import: it compiles

    runs = overlapping(3)
    inputs = [
        ranx.Run({q: dict(zip(*(h.doc_ids, h.scores.astype(float)), strict=True)) for q, h in run.items()}) for run in runs
    ]
    params = {"wsum": {"weights": (0.2, 0.3, 0.5)}, "rbp": {"phi": 0.7}}.get(method, {})
    fused = Run.from_scores("ranx", ranx.fuse(inputs, norm=their_norm, method=theirs, params=params).to_dict())
    mine = {"wsum": {"weights": [0.2, 0.3, 0.5]}, "rbp": {"rbp_p": 0.7}}.get(method, {})
    ours = rrf(runs) if method == "rrf" else fusion.combine(runs, method, norm=norm, **mine)
    same(ours, fused, 1e-5)


def agreeing(n_docs=20):
    """Three rankings, each with one pair of neighbours swapped: the majorities form one order."""
    found = []
    for swapped in (3, 8, 15):
        docs = [f"d{n}" for n in range(n_docs)]
        docs[swapped], docs[swapped + 1] = docs[swapped + 1], docs[swapped]
        found.append(Run.from_scores(f"r{swapped}", {"q": {d: float(-n) for n, d in enumerate(docs)}}))
    return found


def test_condorcet_finds_the_order_of_the_majorities():
    fused = fusion.combine(agreeing(), "condorcet")
    assert fused["q"].doc_ids == [f"d{n}" for n in range(20)]
    assert fused["q"].scores.tolist() == list(range(19, -1, -1))  # documents beaten


@pytest.mark.slow
def test_condorcet_equals_ranx_without_cycles():
    """ranx sorts by the majority relation; with cycles, its result depends on the sort."""
    import ranx  # slow import: it compiles

    inputs = [ranx.Run({"q": dict(zip(*(run["q"].doc_ids, run["q"].scores.astype(float)), strict=True))}) for run in agreeing()]
    theirs = Run.from_scores("ranx", ranx.fuse(inputs, norm=None, method="condorcet").to_dict())
    assert theirs["q"].doc_ids == fusion.combine(agreeing(), "condorcet")["q"].doc_ids


@pytest.mark.parametrize("method", sorted(fusion_methods.METHODS))
@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_no_method_depends_on_the_order_of_the_runs(method, seed):
    rng = np.random.default_rng(seed)
    runs = [
        Run.from_scores(t, {"q": {f"d{d}": float(rng.normal()) for d in rng.permutation(12)[: rng.integers(1, 12)]}})
        for t in "abcd"
    ]
    assert content(fusion.combine(runs, method)) == content(fusion.combine(runs[::-1], method))


def test_the_command_takes_weights(files):
    words = ("--runs", "a.txt", "b.txt", "--method", "wsum", "--weights", "1", "0.5", "--output", "c.txt")
    result = run_command(*words)
    assert result.exit_code == 0, result.output
    bad = run_command("--runs", "a.txt", "b.txt", "--method", "wsum", "--weights", "1", "x", "--output", "d.txt")
    assert bad.exit_code == 2 and "'--weights': 'x' is not a valid float" in bad.output


@pytest.mark.parametrize("method", ["rrf", "combsum"])
def test_ir_metadata_on_request(files, method):
    words = ("--runs", "a.txt", "b.txt", "--method", method, "--output")
    assert run_command(*words, "plain.txt").exit_code == run_command(*words, "told.txt", "--ir-metadata").exit_code == 0
    told, end = (files / "told.txt").read_text(), "# ir_metadata.end\n"
    assert told.startswith("# ir_metadata.start\n") and told.partition(end)[2] == (files / "plain.txt").read_text()
    metadata = yaml.safe_load("\n".join(line[2:] for line in told.partition(end)[0].splitlines()[1:]))
    assert metadata["method"]["retrieval"] == [{"name": fusion.TAG, "method": method, "runs": ["a.txt", "b.txt"]}]


# ------------------------------------------------------------------------------------------------- topic by topic


@pytest.mark.parametrize("method", [*fusion_methods.OWN_METHODS, *fusion_methods.METHODS])
def test_files_fuse_topic_by_topic_as_runs_do(method, files, tmp_path, monkeypatch):
    paths = ["a.txt", "b.txt"]
    monkeypatch.setattr(fusion, "TRECTOOLS_WORK", 0)
    opened = []
    monkeypatch.setattr(fusion_files, "open_run", lambda path: opened.append(open_run(path)) or opened[-1])
    result = CliRunner().invoke(
        main, ["--runs", *paths, "--method", method, "--depth", "2", "--output", str(tmp_path / "o.txt")]
    )
    assert result.exit_code == 0, result.output
    assert [type(run) for run in opened] == [RunStream] * 2
    way = {"interpolation": lambda r: interpolation(*r, depth=2), "average": lambda r: fusion.combine(r, "average", depth=2)}
    way |= {"normalize": lambda r: fusion.combine(r, "normalize", depth=2), "rrf": lambda r: rrf(r, depth=2, engine="fast")}
    inputs = [Run.read(path) for path in paths]
    expected = way[method](inputs) if method in way else fusion.combine(inputs, method, depth=2)
    assert content(Run.read(tmp_path / "o.txt")) == content(expected)
    record = json.loads((tmp_path / "o.json").read_text())
    stages = [record[f"{stage}_seconds"] for stage in ("read", "fuse", "write")]
    assert min(stages) >= 0 and sum(stages) == pytest.approx(record["seconds"], abs=0.01)
    assert set(record["sha256"]) == {"a.txt", "b.txt", str(tmp_path / "o.txt")} and record["command"] and record["hardware"]


def test_runs_in_the_same_order_are_not_held_in_memory(tmp_path):
    topics = [f"q{n}" for n in range(50)]
    for name, lacking in (("a", "q7"), ("b", "q30")):
        Run.from_scores(name, {q: {"x": 1.0, name: 2.0} for q in topics if q != lacking}).write(tmp_path / name)
    opened = [open_run(tmp_path / name) for name in "ab"]
    held = [
        sum(len(run._skipped) for run in opened) for _ in fusion.read_topics_of(opened, fusion.make_way("rrf", 2), None, None)
    ]
    assert len(held) == 50 and max(held) == 1  # q7 is missing in the first run
