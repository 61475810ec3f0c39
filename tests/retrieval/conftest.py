"""Fixtures of the tests of the service."""

import threading

import pytest

from pyserini_kd.retrieval import service


@pytest.fixture
def held(monkeypatch):
    """The sizes of the batches so far, and the event that lets them be answered."""
    sizes, go, original = [], threading.Event(), service.answers

    def counted(system, requests):
        sizes.append(len(requests))
        go.wait(30)
        return original(system, requests)

    monkeypatch.setattr(service, "answers", counted)
    return sizes, go
