"""Passages: invalid windows and ids."""

import pytest

from pyserini_kd.data import passages
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc
from pyserini_kd.storage.errors import InputError
from tests.data.test_passages import RUN


@pytest.mark.parametrize("windows", ["150", "75:150", "0:0", "10:0", "a:b", "-3:1", "3:", "1.5:1"])
def test_bad_windows(windows):
    with pytest.raises(InputError, match="WORDS:STRIDE"):
        list(passages.segment([Doc("d", "", "a")], windows))


def test_other_ids_are_refused():
    with pytest.raises(InputError, match="'plain' is not a passage id"):
        passages.aggregate(Run.from_scores("t", {"q": {"plain": 1.0}}))
    with pytest.raises(InputError, match="one of maxp, firstp, sump, avgp, not 'best'"):
        passages.aggregate(RUN, "best")
