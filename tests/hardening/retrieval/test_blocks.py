"""Work in blocks against kills at any moment, full disks, other settings and changed collections: the bytes stay the same."""

import contextlib
import errno
import fcntl
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import faiss
import numpy as np
import pytest

from pyserini_kd import index
from pyserini_kd.data.types import Doc
from pyserini_kd.retrieval import dense_build as build_
from pyserini_kd.retrieval import faiss_build, faiss_kinds, index_folder
from pyserini_kd.retrieval.dense_build import build_from
from pyserini_kd.retrieval.dense_index import DenseIndex
from pyserini_kd.storage import arrays, job
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.job import SharedJob, open_shared
from tests.retrieval.test_blocks import WIDTH, N, build, clustered, docs, same, start, vector


@pytest.fixture
def one_thread():
    """FAISS with one thread."""
    faiss.omp_set_num_threads(1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Flat", "SQ8", "IVF8,Flat", "HNSW8"])
def test_killed_at_any_moment_and_started_again(tmp_path, kind, one_thread):
    assert build(docs(), tmp_path / "whole", kind) == N
    cut, seed = tmp_path / "cut", random.randrange(1 << 30)
    rng = random.Random(seed)
    (tmp_path / "encoded.log").touch()
    for part in (".cut.partial", ".cut.partial/final"):  # during encoding, during assembly
        process = start(cut, kind, pause=0.04)  # 23 blocks: .9 s for either part
        assert process.stdout.readline() == "ready\n"
        while not (tmp_path / part).exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.35))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not cut.exists(), f"seed {seed}"
    out, err = start(cut, kind).communicate(timeout=60)
    assert out.split() == ["ready", str(N)], err
    assert same(cut, tmp_path / "whole"), f"seed {seed}"
    encoded = (tmp_path / "encoded.log").read_text().split()
    assert set(encoded) == {str(n) for n in range(0, N, 10)}
    assert len(encoded) <= N // 10 + 2  # each kill costs one block at most


@pytest.mark.parametrize("kind", ["Flat", "SQ8", "IVF8,Flat", "IVF8,PQ4x4", "PQ4x4", "HNSW8", "HNSW8_SQ8", "RR8,HNSW8,RFlat"])
@pytest.mark.parametrize("after", [0, 3])
def test_killed_during_assembly(tmp_path, monkeypatch, kind, after, one_thread):
    build(docs(), tmp_path / "whole", kind)
    loaded, begun = faiss_build._loaded, []

    def dying(paths, first=0):
        begun.append(first)
        for number, block in enumerate(loaded(paths, first)):
            if number == after and len(begun) < 3:
                raise SystemExit
            yield block

    monkeypatch.setattr(faiss_build, "SAVE_INTERVAL", -1)  # save as often as allowed
    monkeypatch.setattr(faiss_build, "_loaded", dying)
    for _ in range(2):
        with pytest.raises(SystemExit):
            build(docs(), tmp_path / "cut", kind)
    assert not (tmp_path / "cut").exists()
    is_trained, sampled, sample = kind not in ("Flat", "HNSW8"), [], faiss_build._sample
    in_memory = kind.startswith(("HNSW", "PQ", "RR8")) and after > 0
    assert len(list(tmp_path.glob(".cut.partial/*.unfinished"))) == (is_trained or in_memory)
    monkeypatch.setattr(faiss_build, "_sample", lambda *args: sampled.append(args[-1]) or sample(*args))
    monkeypatch.setattr(build_, "np", None)  # no block is made again
    assert build(docs(), tmp_path / "cut", kind) == N and same(tmp_path / "cut", tmp_path / "whole")
    assert sampled == [faiss_build.TRIAL]  # for the time estimate; it is not trained again
    assert begun == sorted(begun) and all(begun[1:]) == in_memory
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_does_not_stop_the_build_of_a_graph(tmp_path, monkeypatch, caplog, one_thread):
    def full(*args):
        raise OSError(28, "No space left on device")

    build(docs(), tmp_path / "whole", "HNSW8")
    monkeypatch.setattr(faiss_build, "SAVE_INTERVAL", -1)
    monkeypatch.setattr(faiss_build, "_keep", full)
    assert build(docs(), tmp_path / "cut", "HNSW8") == N and same(tmp_path / "cut", tmp_path / "whole")
    assert "could not be saved; a kill would lose it: [Errno 28] No space left on device" in caplog.text


@pytest.mark.parametrize("segment", [None, "4:2"])
def test_a_late_shard_checks_more_than_the_name_of_the_collection(tmp_path, segment):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "docs.jsonl").write_text("one")
    given = {"collection": str(folder), "segment": segment}
    assert build(docs(), folder / "index", **given) == N  # inside the collection's own folder
    assert build(docs(), folder / "index", **given, shard=(0, 3)) is None
    other = given | {"segment": "9:9"}
    with pytest.raises(InputError, match="exists; set `overwrite`"):
        build(docs(7), folder / "index", **other, shard=(0, 3))
    (folder / "docs.jsonl").write_text("another")
    with pytest.raises(InputError, match="exists; set `overwrite`"):
        build(docs(7), folder / "index", **given, shard=(0, 3))


def test_processes_with_other_settings_are_refused(tmp_path):
    folder = tmp_path / "x"
    with open_shared(folder, {"precision": "fp32"}, {"faiss": "Flat"}):
        for settings, other, word in (
            ({"precision": "bf16"}, "Flat", "precision fp32 instead of bf16"),
            ({"precision": "fp32"}, "SQ8", "faiss Flat instead of SQ8"),
        ):
            with pytest.raises(InputError, match=f"another process is writing .* with {word}"):
                with open_shared(folder, settings, {"faiss": other}):
                    pass
    with open_shared(folder, {"precision": "bf16"}, {"faiss": "Flat"}) as work:  # no other process is left
        assert work.job.parts() == []


def test_blocks_of_other_settings_are_refused_and_kept(tmp_path):
    folder, settings = tmp_path / "x", {"block": 10, "store_docs": True, "encoder": {"name": "a", "sha256": "1"}}
    with pytest.raises(KeyboardInterrupt), open_shared(folder, settings, {}) as work:
        (work.job.folder / "000000.done").write_text("0")
        raise KeyboardInterrupt
    for change, word in (
        ({"store_docs": False}, "store_docs True instead of False"),
        ({"encoder": {"name": "a", "sha256": "2"}}, "sha256 1 instead of 2"),
    ):
        with pytest.raises(
            InputError, match=f"holds 1 finished parts made with {word}; use the same settings, or set `overwrite`"
        ):
            with open_shared(folder, settings | change, {}):
                pass
    with open_shared(folder, settings, {}) as work:
        assert (work.job.folder / "000000.done").exists()
    with open_shared(folder, settings | {"store_docs": False}, {}, overwrite=True) as work:
        assert not (work.job.folder / "000000.done").exists()


def test_an_error_in_one_process_leaves_the_folder_to_the_others(tmp_path):
    folder, settings = tmp_path / "x", {"block": 10, "store_docs": True}

    def broken():
        yield Doc("d0", "", "0")
        raise InputError("docs.jsonl:2: no")

    with open_shared(
        folder, settings, {"index": "Flat", "collection": "", "segment": None, "fields": None, "collection_stamp": ""}
    ) as other:
        with pytest.raises(InputError, match="jsonl:2"):
            build(broken(), folder)
        assert other.is_there()
    with pytest.raises(InputError, match="jsonl:2"):
        build(broken(), folder)
    assert not list(tmp_path.iterdir())


def test_an_error_after_another_process_has_finished_makes_no_new_folder(tmp_path):
    with open_shared(tmp_path / "x", {}, {}) as late:
        late.job.folder.rename(tmp_path / "gone")
        late.remove_if_alone()
        with late.lock(0, wait=True):
            assert not late.is_there()
    assert [path.name for path in tmp_path.iterdir()] == ["gone"]


def test_a_file_system_without_locks_lets_shared_jobs_work(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
    with open_shared(tmp_path / "x", {"a": 1}, {}) as one, open_shared(tmp_path / "x", {"a": 1}, {}) as other:
        with one.lock(0, wait=False) as ours, other.lock(0, wait=False) as theirs:
            assert ours and theirs and one.is_there() and other.is_there()
    assert build(docs(), tmp_path / "whole") == N and not list(tmp_path.glob(".whole*"))


def test_a_full_disk_is_noticed_at_the_end_of_a_file(tmp_path):
    made = faiss_kinds.new(WIDTH, "HNSW8")
    made.add(np.stack([vector(n) for n in range(20)]))
    with open(tmp_path / "index", "wb") as out:
        faiss_build._write_index(made, out)
    faiss.write_index(made, str(tmp_path / "faiss"))
    assert (tmp_path / "index").read_bytes() == (tmp_path / "faiss").read_bytes()
    array = np.arange(12, dtype="f4").reshape(3, 4)
    with open(tmp_path / "a.npy", "wb") as out:
        arrays.save(out, array.T)
        arrays.save(out, array[:0])
    with open(tmp_path / "a.npy", "rb") as saved:
        assert np.array_equal(np.load(saved), array.T) and np.load(saved).shape == (0, 4)
    for write in (lambda out: faiss_build._write_index(made, out), lambda out: (arrays.save(out, array), out.flush())):
        out = open("/dev/full", "wb")  # noqa: SIM115 - closing it fails too
        with pytest.raises(OSError, match="No space left"):
            write(out)
        with contextlib.suppress(OSError):
            out.close()


def test_leftovers_of_a_late_kill_are_removed_by_the_next_run(tmp_path, invoke, tiny_dot, files):
    words = ["--collection", files["docs"], "--encoder", tiny_dot, "--index", tmp_path / "x"]
    assert invoke(index.main, *words).exit_code == 0
    gone = tmp_path / ".x.partial.gone"
    gone.mkdir()
    (gone / "lock").touch()
    (gone / "000000.npy").write_bytes(b"x")
    result = invoke(index.main, *words)
    assert result.exit_code == 2 and "exists; set --overwrite" in result.output
    assert not gone.exists()


def test_a_collection_that_changes_meanwhile_is_noticed(tmp_path):
    changed = docs()
    changed[5] = Doc("d5", "", "500")

    def reader():
        yield from docs()
        (tmp_path / ".x.partial" / "000000.done").write_text("another process read other documents")

    with pytest.raises(InputError, match="collection has changed"):
        build(reader(), tmp_path / "x")
    assert build(docs(), tmp_path / "x") == N


@pytest.mark.parametrize("kind", ["PCA8,Flat", "PCAR8,Flat", "L2norm,Flat", "ITQ8,LSH", "OPQ4,L2norm,Flat", "PCA8,Flat,RFlat"])
def test_kinds_that_change_inner_products_are_refused(kind):
    with pytest.raises(InputError, match="changes inner products|is not a FAISS factory string|no such index for inner"):
        faiss_kinds.new(16, kind)


@pytest.mark.parametrize("kind", ["OPQ4,IVF4,PQ4x4", "OPQ4,IVF4,PQ4,RFlat", "IVF8,Flat"])
def test_few_training_vectors_give_one_warning(tmp_path, capfd, caplog, kind):
    """FAISS would warn for each part in each round, thousands of times for OPQ."""
    np.save(tmp_path / "0.npy", clustered(300))
    faiss_build.write([tmp_path / "0.npy"], 16, kind, tmp_path)
    assert "clustering" not in "".join(capfd.readouterr())
    few = [record.getMessage() for record in caplog.records if "are few for" in record.getMessage()]
    what = "8 inverted lists); use 312" if kind.startswith("IVF") else "256 centroids); use 9984"
    assert len(few) == 1 and few[0].startswith(f"300 documents are few for training {kind} (") and f"{what} or more" in few[0]


def test_a_late_kill_is_repaired_by_the_next_run(tmp_path, monkeypatch):
    build(docs(), tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(job, "replace_folder", lambda *_: (_ for _ in ()).throw(SystemExit))
        build(docs(), tmp_path / "x")
    assert sorted(p.name for p in tmp_path.glob(".*")) == [".x.partial.gone"]
    assert build(docs(), tmp_path / "x") == N and same(tmp_path / "x", tmp_path / "whole") and not list(tmp_path.glob(".*"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before the blocks were removed
        build(docs(), tmp_path / "y")
    (tmp_path / ".y.partial.gone" / "lock").unlink()
    with pytest.raises(InputError, match="exists; set `overwrite`"):
        build(docs(), tmp_path / "y")
    assert same(tmp_path / "y", tmp_path / "whole") and not list(tmp_path.glob(".*"))


def test_waiting_for_a_process_that_is_killed_late_is_no_success(tmp_path, monkeypatch):
    waiting, gone = threading.Event(), threading.Event()
    lock = SharedJob.lock

    @contextlib.contextmanager
    def late(self, byte, wait):
        if byte == index_folder.ASSEMBLY and threading.current_thread().name == "second":
            waiting.set()
            gone.wait(20)
        with lock(self, byte, wait) as ours:
            yield ours

    said = []

    def second():
        try:
            said.append(build(docs(), tmp_path / "x"))
        except InputError as error:
            said.append(str(error))

    monkeypatch.setattr(SharedJob, "lock", late)
    thread = threading.Thread(target=second, name="second")
    thread.start()
    assert waiting.wait(20)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(job, "replace_folder", lambda *_: (_ for _ in ()).throw(SystemExit))
        build(docs(), tmp_path / "x")
    gone.set()
    thread.join()
    assert said == [f"the process that assembled {tmp_path / 'x'} was killed; start again"]
    assert build(docs(), tmp_path / "x") == N and not list(tmp_path.glob(".*"))


def test_a_kill_during_removal_of_old_blocks_leaves_no_seemingly_complete_work(tmp_path, monkeypatch):
    folder = tmp_path / "x"
    build(docs(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        build((doc if n < 45 else (_ for _ in ()).throw(KeyboardInterrupt) for n, doc in enumerate(docs())), folder)
    remove, removed = Path.unlink, []

    def dying(path, *args, **kwargs):
        removed.append(path)
        if len(removed) == 4:
            raise KeyboardInterrupt
        remove(path, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", dying)
        with open_shared(folder, {"other": 1}, {}, overwrite=True):
            pass
    assert build(docs(), folder) == N and same(folder, tmp_path / "whole")


@pytest.mark.parametrize(
    ("kind", "message"),
    [("IVF300,Flat", "at least 300 documents \(300 inverted lists"), ("IVF4,PQ4", "at least 256 .*256 centroids")],
)
def test_too_few_documents_for_a_kind(tmp_path, kind, message):
    with pytest.raises(InputError, match=message):
        build(docs(), tmp_path / "x", kind)
    assert not (tmp_path / "x").exists()
    calls = []
    build_from(
        docs(), calls.append, WIDTH, tmp_path / "x", {}, block=10,
        kind="Flat", overwrite=False, shard=(0, 1), collection="",
    )  # fmt: skip
    assert calls == []  # the vectors existed


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("HNSW32,PQ4", "no such index for inner products"),
        ("HNSW1", "2 links"),
        ("IVF0,Flat", "one inverted list"),
        ("NSG16", "cannot fill an NSG in blocks"),
        ("IDMap,Flat", "leave IDMap out"),
        ("IVF4,SQ8_direct", "whole numbers from 0 to 255"),
        ("RQ2x8", "cannot be trained on 50 documents: .*"),
        ("Flt", "not a FAISS factory string"),
    ],
)
def test_an_impossible_kind_loses_no_vectors(tmp_path, kind, message):
    with pytest.raises(InputError, match=message):
        build(list(docs())[:50], tmp_path / "x", kind)
    assert not (tmp_path / "x").exists()
    if kind.startswith("RQ"):
        assert len(list((tmp_path / ".x.partial").glob("*.npy"))) == 5


def test_a_folder_written_meanwhile_is_kept(tmp_path):
    def slowly():
        yield from docs()
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "precious").write_text("mine")

    with pytest.raises(InputError, match="exists"):
        build(slowly(), tmp_path / "x")
    assert (tmp_path / "x" / "precious").read_text() == "mine"
    (tmp_path / "x").rename(tmp_path / "y")
    build(docs(), tmp_path / "x")  # from existing vectors
    assert DenseIndex.open(tmp_path / "x").store.count == N


def test_a_shard_of_another_index_is_refused(tmp_path):
    build(docs(), tmp_path / "x", collection="a")
    assert build(docs(), tmp_path / "x", collection="a", shard=(1, 2)) is None
    for other in ({"collection": "b"}, {"collection": "a", "kind": "SQ8"}):
        with pytest.raises(InputError, match="exists"):
            build(docs(), tmp_path / "x", shard=(1, 2), **other)


def test_vectors_that_are_not_finite_are_refused(tmp_path):
    def encode(texts):
        return np.array([vector(int(text)) / (text != "7") for text in texts])

    with np.errstate(all="ignore"), pytest.raises(InputError, match="the vector of document 'd7' is not finite"):
        build_from(
            docs(), encode, WIDTH, tmp_path / "x", {}, block=10,
            kind="Flat", overwrite=False, shard=(0, 1), collection="",
        )  # fmt: skip
    assert not (tmp_path / "x").exists()
