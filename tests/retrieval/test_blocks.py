"""Work in blocks: several processes and shards, kinds, estimates; the bytes always equal those of one process."""

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from pyserini_kd.data.types import Doc
from pyserini_kd.retrieval import faiss_build, faiss_kinds, index_folder, vector_store
from pyserini_kd.retrieval.dense_build import build_from
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.retrieval.indexing import IndexSettings
from pyserini_kd.storage.errors import InputError

FILES = ("index", "docid", "docs.jsonl", "docs.offsets")
N, WIDTH = 230, 8

# A process that builds an index of N documents with random vectors, slowly enough to be killed.
SCRIPT = r"""
import sys, time
import numpy as np
from pyserini_kd.data.types import Doc
from pyserini_kd.retrieval import dense_build, faiss_build

folder, kind, pause, shard_id, shard_num = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])

def encode(texts):
    with open(sys.argv[6], "a") as log:
        log.write(f"{texts[0]}\n")
    time.sleep(pause)
    return np.array([np.random.default_rng(int(text)).standard_normal(8) for text in texts], np.float32)

loaded = faiss_build._loaded
faiss_build._loaded = lambda *args: (time.sleep(pause) or block for block in loaded(*args))
faiss_build.SAVE_INTERVAL = 0.05  # seconds
docs = (Doc(f"d{n}", "", str(n)) for n in range(230))
print("ready", flush=True)
count = dense_build.build_from(docs, encode, 8, folder, {}, block=10, kind=kind, overwrite=False,
                         shard=(shard_id, shard_num), collection="")
print(count)
"""


def start(folder, kind="Flat", pause=0.0, shard=(0, 1)):
    words = [folder, kind, pause, *shard, folder.parent / "encoded.log"]
    command = [sys.executable, "-c", SCRIPT, *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def vector(n):
    return np.random.default_rng(n).standard_normal(WIDTH).astype(np.float32)


def build(docs, folder, kind="Flat", **settings):
    def encode(texts):
        return np.array([vector(int(text)) for text in texts])

    base = {"kind": kind, "overwrite": False, "shard": (0, 1), "collection": ""}
    return build_from(docs, encode, WIDTH, folder, {}, block=10, **base | settings)


def docs(n=N):
    return [Doc(f"d{n}", "", str(n)) for n in range(n)]


def same(a, b):
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in FILES)


def test_processes_share_the_work(tmp_path):
    build(docs(), tmp_path / "whole")
    running = [start(tmp_path / "x", pause=0.05) for _ in range(3)]
    said = [process.communicate(timeout=60) for process in running]
    assert all(process.returncode == 0 for process in running), said
    assert [out.split() for out, _ in said] == [["ready", str(N)]] * 3
    assert same(tmp_path / "x", tmp_path / "whole")
    assert len((tmp_path / "encoded.log").read_text().split()) == N // 10  # no block twice


def test_shards_one_after_the_other_and_at_once(tmp_path):
    build(docs(), tmp_path / "whole")
    assert build(docs(), tmp_path / "a", shard=(2, 3)) is None
    assert sorted(p.name for p in (tmp_path / ".a.partial").glob("*.npy"))[:2] == ["000002.npy", "000005.npy"]
    assert build(docs(), tmp_path / "a", shard=(0, 3)) is None
    assert build(docs(), tmp_path / "a", shard=(1, 3)) == N
    assert same(tmp_path / "a", tmp_path / "whole")
    assert build(docs(), tmp_path / "a", shard=(0, 3)) is None  # late: nothing to do


def test_shards_at_once(tmp_path):
    build(docs(), tmp_path / "whole")
    running = [start(tmp_path / "b", pause=0.02, shard=(i, 2)) for i in range(2)]
    said = [process.communicate(timeout=60) for process in running]
    assert all(process.returncode == 0 for process in running), said
    assert same(tmp_path / "b", tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_torchrun_tells_each_process_its_shard(monkeypatch):
    def settings(**more):
        return IndexSettings(collection="docs.jsonl", encoder="minilm", index=Path("x"), **more)

    assert settings(overwrite=True).shard == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert settings().shard == (2, 4)
    assert settings(shard_id=0, shard_num=3).shard == (0, 3)
    for wrong in ({"shard_id": 3, "shard_num": 3}, {"shard_num": 3}, {"shard_id": 1}):
        with pytest.raises(InputError, match="go together"):
            settings(**wrong)
    with pytest.raises(InputError, match="overwrite: does not go with several"):
        settings(overwrite=True)


@pytest.mark.slow
def test_torchrun_writes_the_index_of_one_process(tmp_path, files, tiny_dot):
    words = [
        "-m",
        "pyserini_kd.index",
        "--collection",
        files["docs"],
        "--encoder",
        tiny_dot,
        "--block",
        3,
        "--precision",
        "fp32",
    ]
    words += ["--threads", 1, "--index"]
    whole = [sys.executable, *words, tmp_path / "whole"]
    shared = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *words, tmp_path / "shared"]
    for command in (whole, shared):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    assert same(tmp_path / "shared", tmp_path / "whole")


def clustered(n, width=16, seed=0):
    """Vectors around 50 centres, of different lengths: inner product and distance rank them differently."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((50, width))
    found = centres[rng.integers(50, size=n)] + 0.4 * rng.standard_normal((n, width))
    return (found * rng.uniform(0.7, 1.3, (n, 1))).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "nprobe", "recall"),
    [
        ("Flat", None, 1.0),
        ("SQ8", None, 0.9),
        ("HNSW32", None, 0.9),
        ("IVF16,Flat", 16, 1.0),
        ("IVF16,PQ8x4", 16, 0.75),
        ("OPQ4,IVF16,PQ4x4", 16, 0.6),
    ],
)
def test_each_kind_finds_what_brute_force_finds(tmp_path, kind, nprobe, recall):
    vectors, queries = clustered(800), clustered(100, seed=0)
    for number, block in enumerate(np.split(vectors, [300, 550])):
        np.save(tmp_path / f"{number}.npy", block)
    paths = sorted(tmp_path.glob("*.npy"))
    (tmp_path / "again").mkdir()
    faiss_build.write(paths, 16, kind, tmp_path)
    faiss_build.write(paths, 16, kind, tmp_path / "again")
    assert (tmp_path / "index").read_bytes() == (tmp_path / "again" / "index").read_bytes()
    (tmp_path / "docid").write_text("".join(f"d{n}\n" for n in range(800)))
    opened = DenseIndex.open(tmp_path)
    scores, rows = opened.search(queries, 10, nprobe=nprobe)
    exact = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :10]
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, rows, strict=True)])
    assert found >= recall, found
    nearest = np.argsort(((queries[:, None] - vectors) ** 2).sum(2), axis=1)[:, :10]  # neighbours by another metric
    assert found > 0.1 + np.mean([len(set(a) & set(b)) / 10 for a, b in zip(nearest, rows, strict=True)])
    if recall == 1:
        assert np.allclose(scores, np.take_along_axis(queries @ vectors.T, exact, 1), atol=1e-4)
    mapped = DenseIndex.open(tmp_path, mmap=True)
    assert np.array_equal(mapped.search(queries, 10, nprobe=nprobe)[1], rows)


@pytest.mark.parametrize(
    ("kind", "depth"),
    [
        ("HNSW8", {"efSearch": 3}),
        ("IVF16,Flat", {"nprobe": 3}),
        ("OPQ4,IVF16,PQ4x4", {"nprobe": 3}),
        ("IVF16_HNSW8,Flat", {"efSearch": 2, "nprobe": 4}),
        ("RR8,HNSW8,RFlat", {"efSearch": 3}),
        ("IVF4,PQ8x4fs", {"nprobe": 2}),
    ],
)
def test_search_parameters_equal_faiss_and_last_one_search(tmp_path, kind, depth):
    vectors, queries = clustered(800), clustered(100, seed=1)
    np.save(tmp_path / "0.npy", vectors)
    faiss_build.write([tmp_path / "0.npy"], 16, kind, tmp_path)
    store, theirs = vector_store.open_store(tmp_path), faiss.read_index(str(tmp_path / "index"))
    before = store.search(queries, 10)[1]
    for name, value in depth.items():
        faiss.ParameterSpace().set_index_parameter(theirs, name, value)
    found = store.search(queries, 10, ef_search=depth.get("efSearch"), nprobe=depth.get("nprobe"))
    for mine, other in zip(found, theirs.search(queries, 10), strict=True):
        assert np.array_equal(mine, other)
    assert np.array_equal(store.search(queries, 10)[1], before) and not np.array_equal(found[1], before)


STREAMED = ["Flat", "SQ8", "SQ4", "SQfp16", "IVF8,Flat", "IVF299,Flat", "IVF8,SQ8", "IVF4_HNSW4,Flat", "IVF8,PQ4x4",
            "OPQ4,IVF4,PQ4x4", "RR8,IVF8,Flat"]  # fmt: skip


@pytest.mark.parametrize("kind", STREAMED)
def test_streamed_files_equal_faiss_files(tmp_path, kind):
    vectors = clustered(300)
    np.save(tmp_path / "0.npy", vectors[:200])
    np.save(tmp_path / "1.npy", vectors[200:])
    assert faiss_build.streams(faiss_kinds.new(16, kind))
    faiss_build.write([tmp_path / "0.npy", tmp_path / "1.npy"], 16, kind, tmp_path)
    held = faiss_kinds.new(16, kind)
    held.train(vectors)
    held.add(vectors)
    faiss.write_index(held, str(tmp_path / "held"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.npy", "1.npy", "held", "index"]
    written, whole = ((tmp_path / name).read_bytes() for name in ("index", "held"))
    if not kind.startswith("RR"):
        assert written == whole
        return
    # On some processors, a product's last bits depend on the number of vectors multiplied at once
    ours, theirs = (faiss.read_index(str(tmp_path / name)) for name in ("index", "held"))
    assert len(written) == len(whole)
    for found, known in zip(ours.search(vectors[:50], 300), theirs.search(vectors[:50], 300), strict=True):
        assert np.allclose(found, known, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["IVF8,FlatPanorama2", "IVF8,FlatDedup"])
def test_subclasses_of_streamed_kinds_are_written_by_faiss(tmp_path, kind):
    vectors = clustered(300)
    vectors[7] = vectors[3]
    np.save(tmp_path / "0.npy", vectors)
    (tmp_path / "docid").write_text("".join(f"d{n}\n" for n in range(300)))
    assert not faiss_build.streams(faiss_kinds.new(16, kind))
    faiss_build.write([tmp_path / "0.npy"], 16, kind, tmp_path)
    assert vector_store.open_store(tmp_path).count == 300


def test_opq_needs_enough_documents_for_its_rotation(tmp_path):
    assert (
        faiss_kinds.needed(faiss_kinds.new(16, "OPQ4,IVF4,PQ4x4"))[0]
        == 256
        > faiss_kinds.needed(faiss_kinds.new(16, "IVF4,PQ4x4"))[0]
        == 16
    )
    np.save(tmp_path / "0.npy", clustered(255))
    with pytest.raises(InputError, match="needs at least 256 documents .OPQ, trained with 256"):
        faiss_build.write([tmp_path / "0.npy"], 16, "OPQ4,IVF4,PQ4x4", tmp_path)


def test_fast_scan_codes_can_be_searched_but_not_read_back(tmp_path):
    vectors = clustered(300)
    np.save(tmp_path / "0.npy", vectors)
    (tmp_path / "docid").write_text("".join(f"d{n}\n" for n in range(300)))
    faiss_build.write([tmp_path / "0.npy"], 16, "IVF4,PQ8x4fs", tmp_path)
    opened = DenseIndex.open(tmp_path)
    assert opened.search(vectors[:3], 5)[1].shape == (3, 5)
    with pytest.raises(InputError, match="vectors cannot be read back"):
        opened.vectors(["d1"])


def test_the_sample_is_of_rows_in_order_and_of_every_block(tmp_path):
    sizes = [50, 7, 43]
    rows = np.arange(100, dtype=np.float32)[:, None]
    for number, block in enumerate(np.split(rows, np.cumsum(sizes)[:-1])):
        np.save(tmp_path / f"{number}.npy", block)
    paths = sorted(tmp_path.glob("*.npy"))
    assert faiss_build._sample(paths, 200).ravel().tolist() == list(range(100))
    some = faiss_build._sample(paths, 40).ravel().tolist()
    assert some == sorted(random.Random(0).sample(range(100), 40))


def test_the_first_block_gives_an_estimate_for_a_million_documents(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    clock = [0.0]
    monkeypatch.setattr(index_folder, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def encode(texts):
        clock[0] += 0.9
        return np.zeros((len(texts), WIDTH), np.float32)

    build_from(
        (Doc(f"d{n}", "", "x" * 10_000) for n in range(250)), encode, WIDTH, tmp_path / "x", {}, block=100,
        kind="Flat", overwrite=False, shard=(0, 1), collection="",
    )  # fmt: skip
    (told,) = [record.message for record in caplog.records if record.message.startswith("a million")]
    found = re.fullmatch(
        "a million documents like the first 100 take (.*) hours here and 10.1 GB .twice that during assembly.", told
    )
    assert found and found[1] == "2.5"  # 0.9 s per hundred


@pytest.mark.parametrize("kind", ["Flat", "HNSW8", "IVF4,Flat", "lucene-flat"])
def test_the_size_of_an_index_is_logged_first(tmp_path, caplog, monkeypatch, kind):
    caplog.set_level("INFO")
    monkeypatch.setattr(faiss_build, "free_memory", lambda: 100)
    monkeypatch.setattr(faiss_build.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 0, 100))
    np.save(tmp_path / "0.npy", clustered(300))
    (tmp_path / "docid").write_text("".join(f"d{n}\n" for n in range(300)))
    faiss_build.write([tmp_path / "0.npy"], 16, kind, tmp_path)
    where = "in memory" if kind == "HNSW8" else "on disk"
    assert f"{kind} of 300 vectors takes about 0.00 GB {where}" in caplog.text
    assert f"only 0.00 GB are free {where}" in caplog.text


@pytest.mark.parametrize(("kind", "enough"), [("Flat", 20_000), ("IVF4,Flat", 44_000)])
def test_lists_need_twice_their_space_while_they_are_sorted(tmp_path, caplog, monkeypatch, kind, enough):
    caplog.set_level("INFO")
    np.save(tmp_path / "0.npy", clustered(300))  # 64 bytes each, 8 more in a list
    for free in (enough, enough - 1000):
        caplog.clear()
        monkeypatch.setattr(faiss_build.shutil, "disk_usage", lambda folder, free=free: shutil._ntuple_diskusage(free, 0, free))
        faiss_build.write([tmp_path / "0.npy"], 16, kind, tmp_path)
        assert ("are free" in caplog.text) == (free < enough)
    assert ("twice that while its lists" in caplog.text) == kind.startswith("IVF")


def test_time_is_estimated_by_a_trial(monkeypatch):
    """Twice the documents take twice the comparisons; a graph takes a little more."""
    sample = clustered(200)
    graph, lists = faiss_kinds.new(16, "HNSW8"), faiss_kinds.new(16, "IVF64,PQ4x4")
    assert min(faiss_kinds.forecast(graph, sample, 10), faiss_kinds.forecast(lists, sample, 10**6)) > 0
    clock = iter(range(100))
    monkeypatch.setattr(faiss_kinds, "time", SimpleNamespace(perf_counter=lambda: next(clock)))  # each trial takes a second
    assert faiss_kinds.forecast(graph, sample, 200) == pytest.approx(1)
    assert faiss_kinds.forecast(graph, sample, 400) == pytest.approx(2 * np.log(401) / np.log(201))
    trial = 8 * 200 * 200  # comparisons per second
    work = 64 * (10 * 100_000 + 10**6)  # 10 rounds with the training sample, then each vector once
    codes = 4 * 16 * (25 * 256 * 16 + 10**6)  # 4 parts of 16 centroids, trained with at most 256 vectors each
    assert faiss_kinds.forecast(lists, sample, 10**6) == pytest.approx((work + codes) / trial)
    rotated = faiss_kinds.new(16, "OPQ4,IVF64,PQ4x4")
    more = 4 * 256 * (40 + 49 * 4) * 65536  # FAISS: 50 rotations, the first from 40 rounds, the others from 4
    assert faiss_kinds.forecast(rotated, sample, 10**6) == pytest.approx((work + codes + more) / trial)
    rotated = faiss_kinds.new(16, "OPQ4,HNSW8")
    assert faiss_kinds.forecast(rotated, sample, 10**6) == pytest.approx(
        faiss_kinds.forecast(graph, sample, 10**6) + more / trial
    )


@pytest.mark.parametrize(("kind", "size"), [("Flat", 64), ("SQ8", 16), ("IVF4,Flat", 72), ("IVF4,PQ8", 16), ("HNSW8", 160)])
def test_memory_is_estimated(kind, size):
    """Width 16. HNSW8: 64 for the vector, 16 links of 4 bytes on the lowest level, 8 on the next."""
    assert faiss_kinds.vector_bytes(faiss_kinds.new(16, kind)) == size
