"""Stored representations against kills at each stage and against wrong options and checkpoints."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from pyserini_kd import index
from pyserini_kd.data.types import Doc
from pyserini_kd.models import loading, rankers
from pyserini_kd.retrieval import token_index
from pyserini_kd.storage.errors import InputError
from tests.conftest import as_ranker, represent
from tests.retrieval.test_token_store import NAMES, saved

FILES = ("vectors", "offsets", "docid", "docs.jsonl", "docs.offsets")


def same(a, b):
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_and_shared_builds_write_the_same_bytes(saved, name, corpus, tmp_path, interrupted):
    model = token_index.load_scorer(str(saved[name]), name, precision="fp32")

    def build(folder, **settings):
        return token_index.build(
            corpus, as_ranker(model, saved[name], precision="fp32"), tmp_path / folder, block=6, **settings
        )

    assert build("whole") == len(corpus)
    stored = token_index.TokenIndex.open(tmp_path / "whole")
    for doc in corpus:
        (alone,) = represent(model, [doc.contents], "doc", label="", precision="fp32")
        np.testing.assert_allclose(stored.of(doc.doc_id), alone, atol=1e-2)
    calls = interrupted(rankers.TokenScorer, "encode_docs")
    with pytest.raises(KeyboardInterrupt):
        build("cut")
    assert not (tmp_path / "cut").exists()
    assert build("cut") == len(corpus)
    assert calls == [6, 6, 6, 6, 2]  # the two finished blocks are not run again
    assert build("shared", shard=(1, 2)) is None
    assert build("shared", shard=(0, 2)) == len(corpus)
    assert build("shared", shard=(1, 2)) is None  # late: nothing to do
    assert same(tmp_path / "cut", tmp_path / "whole") and same(tmp_path / "shared", tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


# A process that builds an index of 60 documents in 6 blocks with a random model, and kills itself before
# its nth `os.replace`; each file, block and folder appears by one.
SCRIPT = r"""
import dataclasses, os, sys, types
from pathlib import Path
import numpy as np
from pyserini_kd.data.types import Doc
from pyserini_kd.models import rankers
from pyserini_kd.retrieval import token_index

folder, deadly, shard_id, shard_num = Path(sys.argv[1]), *map(int, sys.argv[2:5])
replace, count = os.replace, 0

def replacing(*paths):
    global count
    count += 1
    if count == deadly:
        os.kill(os.getpid(), 9)
    replace(*paths)

class States(np.ndarray):
    def numpy(self):
        return self

class Generator(rankers.TokenScorer):
    architecture, width, max_doc_len, batch_size = "colbert", 4, 8, None

    def __init__(self):
        pass

    def record(self):
        return {"name": "generator", "sha256": "1"}

    def arithmetic(self):
        return {"precision": "fp32"}

    def encode_docs(self, texts, **_):
        return represent(texts)

def represent(texts):
    with open(folder.parent / "run.log", "a") as log:
        log.write(texts[0] + "\n")
    return [np.random.default_rng(int(t)).standard_normal((1 + int(t) % 5, 4)).astype(np.float32).view(States) for t in texts]

os.replace, model = replacing, Generator()
docs = (Doc(f"d{n}", "", str(n)) for n in range(60))
print(token_index.build(docs, model, folder, block=10, shard=(shard_id, shard_num)))
"""


def start(folder, deadly=0, shard=(0, 1)):
    command = [sys.executable, "-c", SCRIPT, *map(str, (folder, deadly, *shard))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_at_every_stage_and_started_again(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"any")
    whole = start(tmp_path / "whole")
    assert whole.communicate(timeout=60)[0] == "60\n"
    (tmp_path / "run.log").unlink()
    # made_from.json comes first, result.json is the first file of each process, then five per block: ids, docs, tokens, lengths, done
    # then manifest.json, `.cut.partial` becomes `.cut.partial.gone`, and what it holds as `final` becomes `cut`
    for deadly, done in ((2 + 5 + 3, 1), (1 + 5 + 5 + 4, 3), (1 + 15 + 1, 6), (1 + 2, 6), (1 + 3, 0)):
        process = start(tmp_path / "cut", deadly)
        _, said = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, said
        assert len(list(tmp_path.glob(".cut.partial/*.done"))) == done
        assert not (tmp_path / "cut").exists()
    assert start(tmp_path / "cut").communicate(timeout=60)[0] == "60\n"
    assert same(tmp_path / "cut", tmp_path / "whole")
    assert (tmp_path / "run.log").read_text().split() == ["0", "10", "10", "20", "30", "30", "40", "50"]  # one block per kill
    running = [start(tmp_path / "shared", shard=(number, 2)) for number in range(2)]
    said = [process.communicate(timeout=60) for process in running]
    assert {out for out, _ in said} <= {"60\n", "None\n"} and same(tmp_path / "shared", tmp_path / "whole"), said


def test_options_that_conflict_with_stored_states(saved, files, invoke, tmp_path):
    words = ["--collection", files["docs"], "--encoder", saved["tk"], "--for", "tk", "--index", tmp_path / "x"]
    for wrong, word in (
        (["--faiss", "SQ8"], "conflicts with --for"),
        (["--precision", "int8"], "a tk does not run in OpenVINO"),
        (["--backend", "openvino"], "a tk does not run in OpenVINO"),
    ):
        result = invoke(index.main, *words, *wrong)
        assert result.exit_code == 2 and word in result.output, (wrong, result.output)
    assert not (tmp_path / "x").exists()


def test_refusals(saved, corpus, tmp_path):
    model = token_index.load_scorer(str(saved["colbert"]), "colbert")
    token_index.build(corpus, as_ranker(model, saved["colbert"]), tmp_path / "i")
    stored = token_index.TokenIndex.open(tmp_path / "i")
    with pytest.raises(InputError, match="sha256 is"):
        stored.check(as_ranker(model, saved["prettr"]))
    shorter = token_index.load_scorer(str(saved["colbert"]), "colbert", max_doc_len=10)
    with pytest.raises(InputError, match="max_doc_len is 10, the index was made with 24"):
        stored.check(shorter)
    with pytest.raises(InputError, match="1 documents are not in the index .* e.g. nope"):
        stored.score(as_ranker(model), ["cat"], ["nope"])
    with pytest.raises(InputError, match="is a colbert; its documents cannot be stored for a prettr"):
        token_index.load_scorer(str(saved["colbert"]), "prettr")
    large = [Doc("d", "", "cat")]
    far = loading.load(str(saved["colbert"]))
    with torch.no_grad():
        far.head.bias[0] = 1e6
    with pytest.raises(InputError, match="'d' has values that fp16 cannot hold; set `dtype` to fp32"):
        token_index.build(large, as_ranker(far, saved["colbert"]), tmp_path / "large")
    with pytest.raises(InputError, match="no documents"):
        token_index.build([], as_ranker(model, saved["colbert"]), tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    (tmp_path / "i" / "docid").write_text("one\n")
    with pytest.raises(InputError, match="is inconsistent"):
        token_index.TokenIndex.open(tmp_path / "i")
