"""Names of measures that are wrong: the message names the near one."""

import pytest

from pyserini_kd.evaluation.measures import Measure
from pyserini_kd.storage.errors import InputError


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nDGC@10", "did you mean nDCG@10?"),
        ("ndcg@20", "did you mean nDCG@20?"),
        ("ndcg_cut.10", "did you mean nDCG@10?"),
        ("ndcg_cut_5", "did you mean nDCG@5?"),
        ("recip_rank", "did you mean RR@10?"),
        ("MRR@10", "did you mean RR@10?"),
        ("map", "did you mean AP?"),
        ("recall.1000", "did you mean R@1000?"),
        ("P.30", "did you mean P@30?"),
        ("RR@0", "did you mean RR@"),
        ("bpref", "did you mean Bpref?"),
        ("bpref@10", "did you mean Bpref?"),
        ("R-Precision", "did you mean Rprec?"),
        ("rbp(p=0.9)", "did you mean RBP(p=0.8)?"),
        ("hit@5", "did you mean Success@5?"),
        ("success.1", "did you mean Success@1?"),
        ("judged.20", "did you mean Judged@20?"),
        ("zzzz", "measures are nDCG@10, RR@10, AP, P@10, R@1000, Rprec, Bpref, RBP(p=0.8), Judged@10, Success@5;"),
        ("", "measures are nDCG@10"),
        ("AP()", "AP takes (rel=...), not ''"),
        ("AP(rel=0)", "rel must be a whole number from 1, not '0'"),
        ("AP(rel=two)", "rel must be a whole number from 1, not 'two'"),
        ("AP(p=0.8)", "AP takes (rel=...), not 'p=0.8'"),
        ("RBP(p=1)", "p must lie between 0 and 1, such as 0.8, not '1'"),
        ("RBP(p=0)", "p must lie between 0 and 1"),
        ("RBP(p=0.99999999999999999999)", "p must lie between 0 and 1"),  # 1 as a float
        ("P@10000000000", "10000000000 is more than 999999999"),
        ("RR(rel=10000000000)", "10000000000 is more than 999999999"),
        ("RBP(q=0.5)", "RBP takes (p=...) and (rel=...), not 'q=0.5'"),
        ("P", "for example P@10"),
        ("R(rel=2)", "measure R(rel=2) needs a cut-off, for example R(rel=2)@1000"),
        ("Success", "for example Success@5"),
        ("Judged", "for example Judged@10"),
        ("Rprec@10", "Rprec takes no cut-off"),
        ("Bpref@100", "Bpref takes no cut-off"),
        ("nDCG(rel=2)@10", "nDCG takes no parameter"),
        ("Judged(rel=2)@10", "Judged takes no parameter"),
    ],
)
def test_wrong_measures_are_refused_with_the_near_one(name, message):
    with pytest.raises(InputError) as error:
        Measure.parse(name)
    assert message in str(error.value)
