"""Uploading a checkpoint, against a stand-in for the hub's client: no hub is reachable in tests."""

import inspect
import shutil

import huggingface_hub
import pytest

from pyserini_kd.export import main as export
from pyserini_kd.models.hub import push
from pyserini_kd.storage.errors import InputError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A folder in place of the hub; the client's two calls with the arguments that the real client has."""

    class Client:
        endpoint = "https://hub.example"

        def create_repo(self, repo_id, *, private=None, exist_ok=False):
            if (tmp_path / "hub" / repo_id).exists() and not exist_ok:
                raise OSError("it exists")
            if repo_id.startswith("forbidden/"):
                raise OSError("403 Forbidden: no right to create\nmore")
            (tmp_path / "hub" / repo_id).mkdir(parents=True, exist_ok=True)
            (tmp_path / "hub" / repo_id / "private").write_text(str(private))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id, dirs_exist_ok=True)

    for name in ("create_repo", "upload_folder"):  # the real client takes all arguments of the stand-in
        asked = inspect.signature(getattr(Client, name)).parameters
        assert asked.keys() <= inspect.signature(getattr(huggingface_hub.HfApi, name)).parameters.keys()
    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    return tmp_path / "hub"


def test_all_files_arrive_and_a_second_push_replaces_them(hub, tiny_dot):
    assert push(tiny_dot, "me/student") == "https://hub.example/me/student"
    assert push(tiny_dot, "me/student", private=True) == "https://hub.example/me/student"
    sent = {path.relative_to(tiny_dot) for path in tiny_dot.rglob("*") if path.is_file()}
    arrived = {path.relative_to(hub / "me" / "student") for path in (hub / "me" / "student").rglob("*") if path.is_file()}
    assert sent < arrived and (hub / "me" / "student" / "private").read_text() == "True"


@pytest.mark.parametrize("repo", ["student", "a/b/c", "/student", "me/"])
def test_a_repository_has_an_owner_and_a_name(hub, tiny_dot, repo):
    with pytest.raises(InputError, match=f"expected owner/name, found '{repo}'"):
        push(tiny_dot, repo)
    assert not hub.exists()


def test_what_the_hub_refuses_is_one_line(hub, tiny_dot):
    with pytest.raises(
        InputError, match=r"forbidden/student: the hub did not take the upload \(403 Forbidden: no right to create\)"
    ):
        push(tiny_dot, "forbidden/student")


def test_a_folder_without_weights_is_not_uploaded(hub, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no weights"):
        push(tmp_path / "empty", "me/student")
    assert not hub.exists()


def test_export_pushes_the_checkpoint(hub, invoke, tiny_dot):
    result = invoke(export, "--encoder", tiny_dot, "--push", "me/student")
    assert result.exit_code == 0 and result.stdout.strip() == "https://hub.example/me/student"
    assert (hub / "me" / "student" / "model.safetensors").read_bytes() == (tiny_dot / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--output or --push is needed"),
        (["--push", "me/x", "--int8"], "--int8: requires --output"),
        (["--output", "out", "--private"], "--private: requires --push"),
        (["--push", "nobody"], "--push: expected owner/name, found 'nobody'"),
    ],
)
def test_export_says_what_goes_together(hub, invoke, tiny_dot, words, message):
    result = invoke(export, "--encoder", tiny_dot, *words)
    assert result.exit_code == 2 and message in result.stderr
