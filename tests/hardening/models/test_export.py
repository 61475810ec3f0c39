"""Export to ONNX against weights that overflow, files of other weights, wrong outputs and a missing package."""

import shutil

import pytest
import torch

from pyserini_kd.models import hardware, loading, onnx_export, rankers, saving
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import read_json, write_json
from tests.conftest import encode, precision_of
from tests.models.test_export import folders, vnni


def test_refusals(folders, tiny_dot, tmp_path, vnni):
    _, folder = folders["bert_dot"]
    with pytest.raises(InputError, match=r"no exported onnx/model_int8.onnx; make it: pyserini-kd export .* --int8"):
        rankers.load(str(tiny_dot), precision="int8")
    with pytest.raises(InputError, match=r"no exported onnx/model.onnx; make it: pyserini-kd export"):
        rankers.load(str(tiny_dot), backend="onnx")
    for clash in ({"precision": "int8", "backend": "torch"}, {"precision": "bf16", "backend": "onnx"}):
        with pytest.raises(InputError, match="clash"):
            rankers.load(str(folder), **clash)
    with pytest.raises(InputError, match="backend: must be one of"):
        rankers.load(str(folder), backend="tvm")
    with pytest.raises(InputError, match="was not loaded for int8"):
        encode(loading.load(str(folder)), ["cat"], "doc", precision="int8")
    with pytest.raises(InputError, match="loaded for int8 in ONNX Runtime, not for bf16"):
        encode(rankers.load(str(folder), precision="int8"), ["cat"], "doc", precision="bf16")
    late = saving.save(loading.load(str(tiny_dot), architecture="colbert"), tmp_path / "late")
    for refused in (lambda: onnx_export.export(str(late), tmp_path / "x"), lambda: rankers.load(str(late), precision="int8")):
        with pytest.raises(InputError, match="is a colbert; only bert_dot and cross_encoder"):
            refused()
    assert not (tmp_path / "x").exists()


def test_int8_weights_that_would_overflow_are_refused(folders, tmp_path, monkeypatch):
    folder = tmp_path / "moved"
    shutil.copytree(folders["bert_dot"][1], folder)
    record = read_json(folder / "onnx" / "export.json", "record")
    monkeypatch.setattr(hardware, "cpu_flags", lambda: {"avx2"})
    for narrow in (False, True):
        write_json(folder / "onnx" / "export.json", record | {"reduce_range": narrow})
        if narrow:
            assert precision_of(rankers.load(str(folder), precision="int8")) == "int8"
        else:
            with pytest.raises(InputError, match="needs VNNI, which this CPU lacks"):
                rankers.load(str(folder), precision="int8")


def test_files_of_other_weights_are_refused(folders, tiny_dot, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(folders["bert_dot"][1], folder)
    model = loading.load(str(tiny_dot))
    with torch.no_grad():
        model.encoder.embeddings.word_embeddings.weight.mul_(2)
    model.encoder.save_pretrained(folder)
    with pytest.raises(InputError, match="made from other weights"):
        rankers.load(str(folder), precision="int8")


def test_a_file_that_does_not_give_the_outputs_is_not_written(tiny_dot, tmp_path, monkeypatch):
    written = onnx_export._write_fp32

    def scaled(model, path):
        with torch.no_grad():
            model.encoder.embeddings.word_embeddings.weight.mul_(2)
        written(model, path)
        with torch.no_grad():
            model.encoder.embeddings.word_embeddings.weight.div_(2)

    monkeypatch.setattr(onnx_export, "_write_fp32", scaled)
    with pytest.raises(InputError, match="outputs differ from torch's"):
        onnx_export.export(str(tiny_dot), tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_missing_package_is_named(tiny_dot, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(InputError, match=r"pip install 'pyserini-kd\[onnx\]'"):
        onnx_export.export(str(tiny_dot), tmp_path / "x")
