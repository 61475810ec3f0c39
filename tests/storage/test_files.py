"""files.py: a final name holds a complete result; permissions, links, records, locks and manifests."""

import errno
import gzip
import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from pyserini_kd.storage import environment, files
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, atomic_folder
from pyserini_kd.storage.manifest import Manifest
from pyserini_kd.storage.records import read_json, record_path, stamp, write_json

INTERRUPTIONS = [RuntimeError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]


def names(folder):
    return sorted(os.listdir(folder))


def test_file_is_not_visible_before_it_is_complete(tmp_path):
    with atomic_file(tmp_path / "deep" / "er" / "run.txt") as out:
        out.write("ä\n")
        assert not (tmp_path / "deep" / "er" / "run.txt").exists()
    assert (tmp_path / "deep" / "er" / "run.txt").read_bytes() == "ä\n".encode()
    assert names(tmp_path / "deep" / "er") == ["run.txt"]


@pytest.mark.parametrize("error", INTERRUPTIONS)
def test_text_named_gz_is_compressed_to_the_same_bytes(tmp_path, error):
    for name in ("a.txt.gz", "b.txt.gz"):
        with atomic_file(tmp_path / name) as out:
            out.writelines(f"{n} für\n" for n in range(1000))
    assert (tmp_path / "a.txt.gz").read_bytes() == (tmp_path / "b.txt.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.txt.gz").read_bytes()).decode().splitlines()[999] == "999 für"
    with pytest.raises(type(error)), atomic_file(tmp_path / "c.gz") as out:
        out.write("half")
        raise error
    assert names(tmp_path) == ["a.txt.gz", "b.txt.gz"]


def test_every_output_has_a_record_of_its_own(tmp_path):
    outputs = [
        "run.txt",
        "run",
        "run.bm25",
        "run.bm25.txt",
        "run.trec",
        "run.k0.9",
        "run.k0.8",
        "run.txt.gz",
        "t.csv",
        "x.json",
    ]
    records = {name: record_path(tmp_path / name).name for name in outputs}
    assert len({*records.values(), *outputs}) == 2 * len(outputs)
    assert records["run.txt"] == "run.json" and records["t.csv"] == "t.csv.json" and records["x.json"] == "x.json.record.json"


def test_file_has_the_usual_permissions(tmp_path):
    with atomic_file(tmp_path / "a") as out:
        out.write("x")
    (tmp_path / "b").write_text("x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


def test_folder_is_replaced_as_a_whole(tmp_path):
    for content, overwrite in (("docid", False), ("config.json", True)):
        with atomic_folder(tmp_path / "index", overwrite=overwrite) as partial:
            (partial / content).write_text(content)
    assert names(tmp_path) == ["index"] and names(tmp_path / "index") == ["config.json"]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "docid").write_text("old")
    (tmp_path / "index").symlink_to("big")
    with atomic_folder(tmp_path / "index", overwrite=True) as partial:
        (partial / "docid").write_text("new")
    assert names(tmp_path) == ["big", "index"]
    assert (tmp_path / "index" / "docid").read_text() == "new" and (tmp_path / "big" / "docid").read_text() == "old"


def test_existing_folder_is_refused_but_an_empty_one_is_filled(tmp_path):
    (tmp_path / "index").mkdir()
    with atomic_folder(tmp_path / "index") as partial:
        (partial / "a").write_text("a")
    with pytest.raises(InputError, match="index exists; set `overwrite`"):
        with atomic_folder(tmp_path / "index"):
            pytest.fail("the block must not run")
    assert names(tmp_path / "index") == ["a"]


def test_json_round_trip_and_faults(tmp_path):
    record = {"b": 1, "a": ["ä", None]}
    write_json(tmp_path / "r.json", record)
    assert read_json(tmp_path / "r.json", "record") == record
    assert list(json.loads((tmp_path / "r.json").read_text())) == ["b", "a"]
    (tmp_path / "bad.json").write_text('{"a": 1,\n oops}\n')
    with pytest.raises(InputError, match=r"bad\.json:2: not valid JSON"):
        read_json(tmp_path / "bad.json", "record")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InputError, match=r"list\.json:1: expected a JSON object, found list"):
        read_json(tmp_path / "list.json", "record")


def test_sha256_is_over_the_contents_in_order(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    assert environment.sha256(tmp_path / "a", tmp_path / "b") == hashlib.sha256(b"onetwo").hexdigest()


def test_home_follows_the_environment(monkeypatch):
    monkeypatch.delenv("PYSERINI_KD_HOME", raising=False)
    assert str(files.home()) == "."
    monkeypatch.setenv("PYSERINI_KD_HOME", "elsewhere")
    assert str(files.home()) == "elsewhere"
    monkeypatch.setenv("HOME", "/people/me")
    monkeypatch.setenv("PYSERINI_KD_HOME", "~/kd")  # as a settings file that no shell reads has it
    assert str(files.home()) == "/people/me/kd"


def test_a_locked_folder_is_another_s_turn(tmp_path):
    (tmp_path / "work").mkdir()
    with files.locked(tmp_path / "work"):
        with pytest.raises(BlockingIOError), files.locked(tmp_path / "work", wait=False):
            pass
    with files.locked(tmp_path / "work", wait=False):
        pass


def test_a_stamp_changes_with_names_sizes_and_times(tmp_path):
    path = tmp_path / "a"
    path.write_text("one")
    os.utime(path, ns=(1, 1))
    before = stamp([path])
    assert before == stamp([path]) and len(before) == 64
    os.utime(path, ns=(1, 2))
    assert stamp([path]) != before
    path.write_text("three")
    os.utime(path, ns=(1, 1))
    assert stamp([path]) != before
    assert stamp([]) != before


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    encoder = {"name": "student", "sha256": "ab", "pooling": "cls", "max_len": 3}
    Manifest(folder=tmp_path, kind="dense", segment=None, encoder=encoder, n_docs=2, width=4).write()
    entries = {"kind": "dense", "encoder": encoder, "segment": None, "n_docs": 2, "width": 4}
    assert read_json(tmp_path / "manifest.json", "manifest") == entries
    read = Manifest.read(tmp_path)
    assert (read.kind, read.segment, read.n_docs, read.collection, read.made_by) == ("dense", None, 2, None, encoder)
    assert read.says({"n_docs": 2, "encoder": encoder | {"name": "other"}}) and not read.says({"n_docs": 3})
    assert Manifest.find(tmp_path / "none") is None
    write_json(tmp_path / "manifest.json", {"encoder": "student"})
    with pytest.raises(InputError, match=r"manifest.json: `encoder` must be a record, not 'student'"):
        Manifest.find(tmp_path)


def test_a_manifest_refuses_another_encoder(tmp_path):
    encoder = {"name": "student", "sha256": "ab", "pooling": "cls"}
    made = Manifest(folder=tmp_path, encoder=encoder)
    made.refuse_other(encoder | {"name": "moved"}, ("sha256", "pooling"))
    with pytest.raises(InputError, match="encoder does not match index .*: pooling is mean, the index was made with cls"):
        made.refuse_other(encoder | {"pooling": "mean"}, ("sha256", "pooling"))
    made.refuse_other(encoder | {"pooling": "mean"}, ("sha256",))
    made.refuse_other(encoder | {"prefix": "query: "}, ("sha256", "prefix"))  # of an older index, which does not say
    Manifest(folder=tmp_path, encoder={"name": "elsewhere"}).refuse_other(encoder, ("sha256",))


def test_a_path_under_the_home_folder_is_hinted_at(tmp_path, monkeypatch):
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "indexes" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"index not found: indexes/x \(.*/indexes/x\); there is one in PYSERINI_KD_HOME: .*/home/"
    ):
        files.require_path("indexes/x", "index")
    with pytest.raises(InputError, match=r"index not found: indexes/y \([^;]*$"):
        files.require_path("indexes/y", "index")
    assert files.require_path("home", "index") == Path("home")
