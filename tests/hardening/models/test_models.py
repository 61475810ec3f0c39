"""Checkpoints that are broken, changed or already there."""

import shutil

import pytest

from pyserini_kd.models import checkpoint_folder, loading, saving
from pyserini_kd.storage.errors import InputError


def test_a_changed_package_checkpoint_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"not the published one")
    with pytest.raises(InputError, match="SHA-256"):
        checkpoint_folder._checked(tmp_path, checkpoint_folder.KNOWN["minilm"])


def test_broken_checkpoints_are_one_line(tmp_path, tiny_dot):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_dot, broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        loading.load(str(broken))
    with pytest.raises(InputError, match="no weights"):
        checkpoint_folder.fingerprint(broken)
    (broken / "pyserini_kd.json").write_text('{"architecture": "magic"}')
    with pytest.raises(InputError, match="magic"):
        checkpoint_folder.architecture_of(broken)


def test_saving_refuses_to_overwrite(tiny_dot):
    with pytest.raises(InputError, match="exists"):
        saving.save(loading.load(str(tiny_dot)), tiny_dot)
