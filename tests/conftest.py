"""Shared fixtures: a corpus a reader can rank by eye, a tiny random BERT, and the real collections where they exist."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real collections (../shared/data) are not on this machine")
    return folder
