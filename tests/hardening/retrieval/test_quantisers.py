"""Training of FAISS indexes against too few vectors."""

import pytest

from tests.retrieval.test_quantisers import one_thread, sample, trained


def test_too_few_vectors(sample):
    with pytest.raises(RuntimeError, match="should be at least as large as number of clusters"):
        trained("IVF64,Flat", sample[:50])
