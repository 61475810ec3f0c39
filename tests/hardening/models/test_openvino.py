"""OpenVINO's files: damage, other weights, wrong outputs, a missing package, and models that cannot be converted."""

import copy
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pyserini_kd.models import hardware, loading, openvino_export, openvino_files, rankers, saving
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import read_json, write_json
from tests.conftest import encode
from tests.models.test_openvino import checkpoints, int8_folders, vnni

TEXTS = ["the cat eats hay", "a dog"]


def vectors(folder, **how):
    return rankers.load(str(folder), **{"precision": "fp32"} | how).encode_docs(TEXTS)


def test_refusals(int8_folders, tiny_dot, vnni):
    folder = int8_folders["bert_dot"]
    with pytest.raises(InputError, match=r"no int8 file openvino/.*; make it: pyserini-kd export .* --int8 --collection"):
        rankers.load(str(tiny_dot), precision="int8")
    with pytest.raises(InputError, match="int8 needs OpenVINO on a CPU"):
        rankers.load(str(folder), precision="int8", backend="torch")
    with pytest.raises(InputError, match="backend: must be one of"):
        rankers.load(str(folder), backend="tvm")
    with pytest.raises(InputError, match="torch does not compute in int8"):
        encode(loading.load(str(folder)), ["cat"], "doc", precision="int8")
    with pytest.raises(InputError, match="`layers` changes the network"):
        rankers.load(str(tiny_dot), backend="openvino", layers=(0,))
    with pytest.raises(InputError, match="a tk does not run in OpenVINO"):
        rankers.load(str(tiny_dot), backend="openvino", architecture="tk")
    with pytest.raises(InputError, match="is a bert_dot; as a prettr it needs training first"):
        rankers.load(str(tiny_dot), backend="openvino", architecture="prettr")
    assert rankers.load(str(tiny_dot), architecture="prettr").backend == "torch"


def test_lengths_beyond_the_window_are_refused_as_by_torch(tiny_dot, tiny_cross):
    for folder in (tiny_dot, tiny_cross):
        with pytest.raises(InputError, match="reads at most 64 tokens, not 90"):
            rankers.load(str(folder), max_doc_len=90)


def test_int8_weights_that_would_overflow_are_refused(int8_folders, tmp_path, monkeypatch):
    folder = shutil.copytree(int8_folders["bert_dot"], tmp_path / "moved")
    record = read_json(folder / "openvino" / "pyserini_kd.json", "record")
    monkeypatch.setattr(hardware, "cpu_flags", lambda: {"avx2"})
    write_json(folder / "openvino" / "pyserini_kd.json", record | {"vnni": True})
    with pytest.raises(InputError, match="needs VNNI, which this CPU lacks"):
        rankers.load(str(folder), precision="int8")
    write_json(folder / "openvino" / "pyserini_kd.json", record | {"vnni": False})
    assert rankers.load(str(folder), precision="int8").precision == "int8"


def test_weights_that_changed_afterwards_are_not_run_by_old_files(int8_folders, tiny_dot, tmp_path):
    folder = shutil.copytree(int8_folders["bert_dot"], tmp_path / "mixed")
    model = loading.load(str(tiny_dot))
    with torch.no_grad():
        model.encoder.embeddings.word_embeddings.weight.mul_(2)
    model.encoder.save_pretrained(folder)
    with pytest.raises(InputError, match="made from other weights"):
        rankers.load(str(folder), precision="int8")
    assert np.allclose(vectors(folder), encode(model, TEXTS, "doc", precision="fp32"), atol=1e-5)  # made again, in the cache


@pytest.mark.parametrize("damage", ["cut", "flipped", "no record", "broken record", "no tokenizer"])
def test_damaged_files_in_the_cache_are_made_again(tiny_dot, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("PYSERINI_KD_CACHE", str(tmp_path))
    before = vectors(tiny_dot)
    (folder,) = (path for path in (tmp_path / "openvino").iterdir() if path.is_dir() and (path / "pyserini_kd.json").exists())
    weights, record = folder / "openvino_model.bin", folder / "pyserini_kd.json"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[:1000])
    elif damage == "flipped":
        weights.write_bytes(content[:1000] + bytes(255 - byte for byte in content[1000:1100]) + content[1100:])
    elif damage == "no record":
        record.unlink()
    elif damage == "broken record":
        record.write_text("{}")
    else:
        (folder / "tokenizer.json").unlink()
    assert np.array_equal(vectors(tiny_dot), before)
    assert weights.read_bytes() == content


def test_a_cache_that_cannot_be_written_leaves_the_work_to_torch(tiny_dot, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("PYSERINI_KD_CACHE", str(tmp_path / "file"))
    loaded = rankers.load(str(tiny_dot), precision="fp32")
    assert loaded.backend == "torch" and "WARNING: OpenVINO cannot run" in caplog.text
    with pytest.raises(InputError, match="OpenVINO cannot run"):
        rankers.load(str(tiny_dot), backend="openvino")


@pytest.mark.openvino_files
def test_files_that_do_not_give_the_outputs_are_not_used(tiny_dot, tmp_path, monkeypatch, caplog):
    converted = openvino_export._converted

    def scaled(network, given, outputs):
        with torch.no_grad():
            twice = copy.deepcopy(network.inner)
            twice.embeddings.word_embeddings.weight.mul_(2)
        return converted(type(network)(twice, network.names, lambda batch: twice(**batch).last_hidden_state), given, outputs)

    monkeypatch.setattr(openvino_export, "_converted", scaled)
    monkeypatch.setenv("PYSERINI_KD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="outputs differ from torch's"):
        openvino_export.export(str(tiny_dot), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    expected = encode(loading.load(str(tiny_dot)), TEXTS, "doc", precision="fp32")
    assert np.allclose(vectors(tiny_dot), expected, atol=1e-6) and "so torch does" in caplog.text
    saved = saving.save(loading.load(str(tiny_dot)), tmp_path / "saved", openvino=True)
    assert not (saved / openvino_files.FOLDER).exists() and "has no OpenVINO files" in caplog.text


def test_an_operation_that_cannot_be_converted_leaves_the_work_to_torch(tiny_dot, tmp_path, monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("no conversion rule for aten::novel\nand a trace")

    monkeypatch.setattr(openvino_export, "_converted", fails)
    monkeypatch.setenv("PYSERINI_KD_CACHE", str(tmp_path / "cache"))
    assert rankers.load(str(tiny_dot)).backend == "torch"
    assert "OpenVINO cannot convert this bert_dot: no conversion rule for aten::novel" in caplog.text


def test_a_checkpoint_that_cannot_be_loaded_is_no_fault_of_openvino(tiny_dot, tmp_path, monkeypatch, caplog):
    folder = shutil.copytree(tiny_dot, tmp_path / "cut")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: one for name, one in weights.items() if "layer.1" not in name}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match="lacks weights that a BertModel needs"):
        rankers.load(str(folder))
    assert "OpenVINO cannot run" not in caplog.text


def test_without_openvino_torch_does_the_work(tiny_dot, monkeypatch):
    found = openvino_files.importlib.util.find_spec
    monkeypatch.setattr(openvino_files.importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    assert rankers.load(str(tiny_dot)).backend == "torch"
    with pytest.raises(InputError, match="OpenVINO is not installed: pip install openvino"):
        rankers.load(str(tiny_dot), backend="openvino")


def test_missing_package_is_named(tiny_dot, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(InputError, match=r"pip install 'pyserini-kd\[int8\]'"):
        openvino_export.export(str(tiny_dot), tmp_path / "x", calibration=[("cat", "the cat")])


def test_what_has_no_file_is_refused(tiny_dot, tmp_path):
    late = saving.save(loading.load(str(tiny_dot), architecture="tk"), tmp_path / "tk")
    with pytest.raises(InputError, match="is a tk; only bert_dot, colbert, cross_encoder, prettr can be exported"):
        openvino_export.export(str(late), tmp_path / "x")
    assert not (tmp_path / "x").exists()
