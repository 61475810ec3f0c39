"""The grammar of measures: what is read; the presets. Values: test_evaluate.py."""

import pytest

from pyserini_kd.evaluation.measures import DEFAULT_MEASURES, KINDS, PRESETS, Measure


@pytest.mark.parametrize(
    ("text", "measure"),
    [
        ("AP(rel=2)", Measure("AP", None, 2)),
        ("nDCG@10", Measure("nDCG", 10, 1)),
        ("RR(rel=3)@10", Measure("RR", 10, 3)),
        ("Rprec", Measure("Rprec", None, 1)),
        ("Bpref(rel=2)", Measure("Bpref", None, 2)),
        ("RBP", Measure("RBP", None, 1, 0.8)),
        ("RBP(p=0.95)", Measure("RBP", None, 1, 0.95)),
        ("RBP(p=.5,rel=2)@20", Measure("RBP", 20, 2, 0.5)),
        ("RBP(rel=2, p=0.5)@20", Measure("RBP", 20, 2, 0.5)),
        ("Judged@10", Measure("Judged", 10, 1)),
        ("Success(rel=2)@5", Measure("Success", 5, 2)),
    ],
)
def test_names(text, measure):
    assert Measure.parse(text) == measure


@pytest.mark.parametrize(
    "name", [*DEFAULT_MEASURES, *(m for p in PRESETS.values() for m in p.measures), *(k.example for k in KINDS.values())]
)
def test_defaults_presets_and_examples_can_be_read(name):
    Measure.parse(name)


def test_presets_count_relevance_as_the_collections_do():
    for name in ("dl19", "dl20"):
        assert PRESETS[name].measures == ("nDCG@10", "RR(rel=2)@10", "AP(rel=2)", "R(rel=2)@100", "R(rel=2)@1000")
    assert PRESETS["msmarco"].measures[0] == "RR@10" and PRESETS["beir"].measures[:2] == ("nDCG@10", "R@100")
    assert all(Measure.parse(m).rel == 1 for name in ("msmarco", "beir") for m in PRESETS[name].measures)
