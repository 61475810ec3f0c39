"""Writing against interruptions, kills, full disks, other commands at the same place and odd file systems."""

import contextlib
import errno
import fcntl
import functools
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from pyserini_kd.storage import files
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, atomic_folder, refuse_existing
from pyserini_kd.storage.records import refuse_existing_run, write_json
from tests.storage.test_files import INTERRUPTIONS, names


@pytest.mark.parametrize("error", INTERRUPTIONS, ids=["error", "ctrl-c", "disk full"])
def test_interrupted_file_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        with atomic_file(tmp_path / "run.txt") as out:
            out.write("half")
            raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", INTERRUPTIONS, ids=["error", "ctrl-c", "disk full"])
def test_interrupted_overwrite_keeps_the_old_file(tmp_path, error):
    (tmp_path / "run.txt").write_text("old")
    with pytest.raises(type(error)):
        with atomic_file(tmp_path / "run.txt", overwrite=True) as out:
            out.write("half")
            raise error
    assert names(tmp_path) == ["run.txt"] and (tmp_path / "run.txt").read_text() == "old"


def test_disk_full_at_the_last_moment(tmp_path, monkeypatch):
    """The write itself seems to work; the disk is full when the data are forced out."""

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: '.*/run.txt'"):
        with atomic_file(tmp_path / "run.txt") as out:
            out.write("all of it")
    assert names(tmp_path) == []


def test_a_name_that_is_no_text_stands_in_a_record(tmp_path):
    write_json(tmp_path / "r.json", {"query": b"caf\xe9".decode("utf-8", "surrogateescape"), "für": 1})
    assert json.loads((tmp_path / "r.json").read_text()) == {"query": "caf\udce9", "für": 1}


def test_existing_file_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "run.txt").write_text("old")
    with pytest.raises(InputError, match="run.txt exists; set `overwrite`"):
        with atomic_file(tmp_path / "run.txt", overwrite=False):
            pytest.fail("the block must not run")
    assert (tmp_path / "run.txt").read_text() == "old"


@pytest.mark.parametrize("error", INTERRUPTIONS, ids=["error", "ctrl-c", "disk full"])
def test_interrupted_folder_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        with atomic_folder(tmp_path / "index") as partial:
            (partial / "half").write_text("half")
            raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", INTERRUPTIONS, ids=["error", "ctrl-c", "disk full"])
def test_interrupted_folder_keeps_the_old_one(tmp_path, error):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "docid").write_text("old")
    with pytest.raises(type(error)):
        with atomic_folder(tmp_path / "index", overwrite=True) as partial:
            (partial / "new").write_text("new")
            raise error
    assert names(tmp_path) == ["index"] and names(tmp_path / "index") == ["docid"]


def test_failed_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "docid").write_text("old")
    rename, calls = os.replace, []

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OSError, match="Input/output"):
        with atomic_folder(tmp_path / "index", overwrite=True) as partial:
            (partial / "new").write_text("new")
    assert len(calls) == 3
    assert names(tmp_path) == ["index"] and names(tmp_path / "index") == ["docid"]


@pytest.mark.parametrize("deadly", [1, 2, 3])
def test_a_kill_while_a_folder_is_replaced_leaves_the_old_or_the_new(tmp_path, monkeypatch, deadly):
    """Before the old folder is moved away, before the new one takes its place, before the old one goes."""
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "docid").write_text("old")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "docid").write_text("new")
    calls = []

    def deadly_call(real):
        def call(*args, **kwargs):
            calls.append(real)
            if len(calls) >= deadly:
                raise SystemExit  # and nothing after it does anything, as after a kill
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(os, "replace", deadly_call(os.replace))
        patch.setattr(shutil, "rmtree", deadly_call(shutil.rmtree))
        files.replace_folder(tmp_path / "new", tmp_path / "index")
    files.put_back(tmp_path / "index")
    assert (tmp_path / "index" / "docid").read_text() == ("new" if deadly == 3 else "old")
    assert names(tmp_path) == ["index"] if deadly == 3 else ["index", "new"]


def test_what_another_command_wrote_meanwhile_stays(tmp_path):
    with pytest.raises(InputError, match="run.txt exists; set `overwrite`"):
        with atomic_file(tmp_path / "run.txt", overwrite=False) as out:
            out.write("ours")
            (tmp_path / "run.txt").write_text("theirs")
    with pytest.raises(InputError, match="index exists; set `overwrite`"):
        with atomic_folder(tmp_path / "index"):
            (tmp_path / "index").mkdir()
            (tmp_path / "index" / "docid").write_text("theirs")
    assert names(tmp_path) == ["index", "run.txt"] and names(tmp_path / "index") == ["docid"]
    assert (tmp_path / "run.txt").read_text() == "theirs"


def test_folders_that_cannot_be_replaced_are_refused(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with pytest.raises(InputError, match="is a link to an empty folder; name that folder itself"):
        refuse_existing(tmp_path / "link", False, folder=True)
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match="cannot be replaced by the result"):
        refuse_existing(Path("."), False, folder=True)
    monkeypatch.setattr("os.path.ismount", lambda path: True)
    with pytest.raises(InputError, match="empty cannot be replaced by the result; name a folder inside it"):
        refuse_existing(tmp_path / "empty", False, folder=True)
    refuse_existing(tmp_path / "file", False)


def test_require_file(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "full").write_text("x")
    assert files.require_file(tmp_path / "full", "run file") == tmp_path / "full"
    for name, message in (("none", "run file not found"), ("empty", "run file is empty"), (".", "is a folder")):
        with pytest.raises(InputError, match=message):
            files.require_file(tmp_path / name, "run file")
    os.mkfifo(tmp_path / "pipe")  # as `<(zcat topics.gz)` makes
    with pytest.raises(InputError, match="run file must be a file, but .*pipe is a pipe"):
        files.require_file(tmp_path / "pipe", "run file")


def test_devices_and_folders_are_never_replaced_by_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("folder", "is a folder; the name of a file was expected"), ("pipe", "is a pipe or a device")):
        with pytest.raises(InputError, match=message):
            with atomic_file(tmp_path / name, overwrite=True):
                pytest.fail("the block must not run")
        with pytest.raises(InputError, match=message):
            refuse_existing_run(tmp_path / name, True)
    assert names(tmp_path) == ["folder", "pipe"]


def test_where_nothing_can_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file/new/run.txt cannot be written: .*file is a file"):
        files.refuse_existing(tmp_path / "file" / "new" / "run.txt", False)
    files.refuse_existing(tmp_path / "new" / "er" / "run.txt", False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root
    with pytest.raises(InputError, match=f"run.txt cannot be written: no permission to write in {tmp_path}$"):
        files.refuse_existing(tmp_path / "new" / "er" / "run.txt", False)


def test_overwrite_spares_folders_that_are_not_ours(tmp_path):
    mine = tmp_path / "models"
    (mine / "student").mkdir(parents=True)
    (mine / "student" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="neither an index nor a checkpoint"):
        with atomic_folder(mine, overwrite=True):
            pass
    assert (mine / "student" / "config.json").exists()
    with atomic_folder(mine / "student", overwrite=True) as new:
        (new / "config.json").write_text("new")
    assert (mine / "student" / "config.json").read_text() == "new"


@pytest.mark.parametrize("name", ["work", "work/lock"])
def test_who_waits_for_a_lock_that_is_removed_gets_the_new_one(tmp_path, name):
    order, path = [], tmp_path / name
    (tmp_path / "work").mkdir()

    def second():
        with files.locked(path):
            assert path.exists()
            order.append("second")

    waiting = threading.Thread(target=second)
    with files.locked(path):
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        shutil.rmtree(tmp_path / "work")
        order.append("first")
    waiting.join()
    assert order == ["first", "second"] and path.exists()


def test_many_that_remove_their_lock_never_hold_it_together(tmp_path):
    path, inside, most, faults = tmp_path / "work" / "lock", [], [], []

    def often():
        try:
            for _ in range(300):
                with files.locked(path):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                    path.unlink()
                    with contextlib.suppress(OSError):
                        path.parent.rmdir()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=often) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and len(most) == 900 and max(most) == 1


def test_a_link_to_nothing_on_the_way_is_said(tmp_path):
    (tmp_path / "models").symlink_to(tmp_path / "unmounted")
    for path, folder in (("models/a/b.txt", False), ("models/x", True), ("models", True)):
        with pytest.raises(InputError, match="models is a broken link"):
            refuse_existing(tmp_path / path, False, folder=folder)
    with pytest.raises(OSError), files.locked(tmp_path / "models" / "a" / "lock"):  # and is waited for by nobody
        pass
    with pytest.raises(OSError), files.locked(Path("/proc/a/lock")):
        pass


def test_a_file_where_the_folder_of_a_lock_was_to_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), files.locked(tmp_path / "file" / "lock"):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError), files.locked(tmp_path / "link" / "lock"):
        pass


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_command_left_goes_and_what_another_writes_stays(tmp_path, kind):
    atomic = atomic_file if kind == "file" else functools.partial(atomic_folder, overwrite=True)
    left, foreign = tmp_path / ".out.abcd_123.partial", [".out.more.abcd_123.partial", ".out.short.partial", "out.partial"]
    if kind == "file":
        left.write_text("half")
    else:
        left.mkdir()
        (left / "half").write_text("half")
    for name in foreign:
        (tmp_path / name).touch()
    with atomic(tmp_path / "out"):
        assert not left.exists()
        (held,) = set(names(tmp_path)) - set(foreign)
        with atomic(tmp_path / "out"):  # another command, as far as locks know
            assert len(names(tmp_path)) == len(foreign) + 2 and held in names(tmp_path)
    assert names(tmp_path) == sorted([*foreign, "out"])


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_many_that_write_the_same_do_not_take_each_other_for_killed(tmp_path, kind):
    atomic = atomic_file if kind == "file" else functools.partial(atomic_folder, overwrite=True)
    faults = []

    def often():
        for _ in range(100):
            try:
                with atomic(tmp_path / "out") as made:
                    if kind == "folder":
                        (made / "config.json").touch()
            except InputError:  # said in the moment between two folders of that name
                assert kind == "folder"
            except BaseException as error:
                faults.append(error)

    threads = [threading.Thread(target=often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and names(tmp_path) == ["out"]


def test_a_file_system_without_locks_lets_all_work(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
    with files.locked(tmp_path), files.locked(tmp_path, wait=False):
        pass
    (tmp_path / ".out.abcd_123.partial").touch()  # of a killed command, or of another that is at work
    with atomic_file(tmp_path / "out"):
        pass
    assert names(tmp_path) == [".out.abcd_123.partial", "out"]
