"""tune.py: the chosen weight is the one that the topics agree on, not the luck of one grid point."""

import json

import numpy as np
import pytest

from pyserini_kd.data.runs import Run
from pyserini_kd.evaluation.tuning import best_alpha, tune
from pyserini_kd.tune import main

QRELS = {f"q{n}": {"good": 1} for n in range(20)}


def runs(good_in_a, good_in_b):
    """Two runs of `good` and `bad`; the margin of `good` in each."""
    a = Run.from_scores("a", {q: {"good": 1.0 + good_in_a, "bad": 1.0} for q in QRELS})
    b = Run.from_scores("b", {q: {"good": 1.0 + good_in_b, "bad": 1.0} for q in QRELS})
    return a, b


def test_the_side_that_is_right_wins():
    # alpha * 1 - (1 - alpha) * 2 > 0 from alpha = 2/3 on; .7 is the smallest such alpha of the grid
    assert best_alpha(*runs(1.0, -2.0), QRELS, (0.1, 0.3, 0.5, 0.7, 0.9)) == 0.7


def test_of_equally_good_alphas_the_smallest():
    assert best_alpha(*runs(1.0, 1.0), QRELS, (0.5, 0.2, 0.9)) == 0.2


def test_same_seed_same_alpha():
    a, b = runs(1.0, -1.0)
    assert len({best_alpha(a, b, QRELS, (0.2, 0.4, 0.6), seed=7) for _ in range(2)}) == 1


# ------------------------------------------------------------------------------------------------ cross-validated


def noisy(seed=0, n_topics=40):
    """`a` is right on the first half of the topics, `b` on the second; `a`'s scores are ten times larger."""
    rng = np.random.default_rng(seed)
    found = {"a": {}, "b": {}}
    for n in range(n_topics):
        for name, right, scale in (("a", n < n_topics // 2, 10.0), ("b", n >= n_topics // 2, 1.0)):
            scores = rng.random(6) * scale * 0.3
            scores[0] = scale if right else 0.0
            found[name][f"q{n}"] = {("good" if d == 0 else f"d{d}"): float(s) for d, s in enumerate(scores)}
    qrels = {f"q{n}": {"good": 1} for n in range(n_topics)}
    return [Run.from_scores(name, scores) for name, scores in found.items()], qrels


def test_tuned_alpha_evens_the_scales_out():
    runs, qrels = noisy()
    found = tune(runs, qrels, measure="RR@10")
    assert 0.02 <= found.setting[0] <= 0.2  # 10 alpha = 1 - alpha at .09
    assert found.unseen.mean() > found.default.mean()
    assert len(found.per_fold) == 5 and len(found.unseen) == 40


def test_unseen_values_are_those_of_the_setting_chosen_without_the_topic():
    from pyserini_kd.evaluation.engines import evaluate
    from pyserini_kd.retrieval.fusion import interpolation

    runs, qrels = noisy(3)
    found = tune(runs, qrels, measure="RR@10", folds=4, seed=9, grid=(0.05, 0.5, 0.95))
    fold_of = np.random.default_rng(9).permutation(40) % 4
    for topic, query_id in enumerate(qrels):
        run = interpolation(*runs, alpha=found.per_fold[fold_of[topic]][0])
        assert found.unseen[topic] == evaluate(run, qrels, ["RR@10"])["RR@10"][query_id]


def test_weights_by_coordinate_search():
    runs, qrels = noisy()
    useless = Run.from_scores("c", {q: {"d1": 5.0, "good": 1.0} for q in qrels})
    found = tune([*runs, useless], qrels, "wsum", measure="RR@10", grid=(0, 0.5, 1))
    assert found.setting[2] == 0 and found.setting[0] > 0 and found.setting[1] > 0


def test_rrf_constant():
    runs, qrels = noisy()
    found = tune(runs, qrels, "rrf", grid=(1, 60))
    assert found.setting in ((1,), (60,)) and found.seen.mean() >= min(found.default.mean(), 1.0)


def test_same_seed_same_result():
    runs, qrels = noisy()
    one, two = (tune(runs, qrels, seed=5) for _ in range(2))
    assert one.setting == two.setting and (one.unseen == two.unseen).all()


@pytest.fixture
def files(tmp_path):
    runs, qrels = noisy()
    for run in runs:
        run.write(tmp_path / f"{run.tag}.txt")
    (tmp_path / "qrels").write_text("".join(f"{q} 0 good 1\n" for q in qrels))
    return tmp_path


def test_command(files, invoke):
    words = ["--runs", files / "a.txt", files / "b.txt", "--qrels", files / "qrels", "--measure", "RR@10"]
    result = invoke(main, *words, "--output", files / "tuned.json")
    assert result.exit_code == 0, result.output
    assert "gain on unseen folds over fused, default: +" in result.output
    record = json.loads((files / "tuned.json").read_text())
    assert set(record["sha256"]) == {str(files / name) for name in ("a.txt", "b.txt", "qrels")} and record["seed"] == 42
    assert len(record["per_fold"]) == 5 and 0.02 <= record["alpha"][0] <= 0.2
    assert record["means"]["fused, tuned (unseen folds)"] <= record["means"]["fused, tuned (seen)"] and "norm" not in record
    result = invoke(main, *words, "--method", "wsum", "--norm", "zscore", "--output", files / "weights.json")
    assert ", with norm zscore" in result.output  # of which `fuse` has to know
    assert json.loads((files / "weights.json").read_text())["norm"] == "zscore"
