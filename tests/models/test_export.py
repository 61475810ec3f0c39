"""ONNX files beside the weights: the outputs of torch in fp32, near them in int8, taken by the engine where they fit."""

import json

import numpy as np
import pytest

from pyserini_kd import export
from pyserini_kd.data.runs import Run
from pyserini_kd.evaluation import int8_loss
from pyserini_kd.models import checkpoint_folder, hardware, loading, onnx_export, onnx_runtime, rankers
from pyserini_kd.models.bert_dot import BertDot
from pyserini_kd.storage.records import read_json
from tests.conftest import encode, precision_of, score


@pytest.fixture(scope="module")
def folders(tiny_dot, tiny_cross, tmp_path_factory):
    """Architecture -> (source, exported with int8)."""
    out = tmp_path_factory.mktemp("exported")
    pairs = {"bert_dot": tiny_dot, "cross_encoder": tiny_cross}
    return {name: (source, onnx_export.export(str(source), out / name, int8=True)) for name, source in pairs.items()}


@pytest.fixture
def vnni(monkeypatch):
    monkeypatch.setattr(hardware, "cpu_flags", lambda: {"avx512_vnni"})


def outputs(model, corpus, queries, **settings):
    texts = [doc.contents for doc in corpus]
    if model.architecture == "bert_dot":
        return encode(model, texts, "doc", **settings)
    pairs = [(query.text, text) for query in queries[:3] for text in texts]
    return score(model, [q for q, _ in pairs], [d for _, d in pairs], **settings)


@pytest.mark.parametrize("architecture", ["bert_dot", "cross_encoder"])
def test_onnx_gives_torch_outputs_and_int8_is_near(folders, corpus, queries, architecture):
    source, folder = folders[architecture]
    expected = outputs(loading.load(str(source)), corpus, queries, precision="fp32")
    fp32 = rankers.load(str(folder), backend="onnx", precision="fp32")
    assert np.allclose(outputs(fp32, corpus, queries), expected, atol=1e-5)
    int8 = rankers.load(str(folder), precision="int8")
    rough = outputs(int8, corpus, queries)
    assert not np.allclose(rough, expected, atol=1e-5)  # it is another arithmetic
    assert np.corrcoef(rough.ravel(), expected.ravel())[0, 1] > 0.98
    assert (
        not list(int8.module.state_dict()) or sum(p.numel() for p in int8.module.parameters()) == 0
    )  # no torch weights are loaded


def test_batching_and_masks_change_nothing_in_fp32(folders, corpus):
    model = rankers.load(str(folders["bert_dot"][1]), backend="onnx", precision="fp32")
    texts = [doc.contents for doc in corpus] + ["cat"]
    alone = np.concatenate([encode(model, [text], "doc") for text in texts])
    for batch_size in (None, 4, 100):
        assert np.allclose(encode(model, texts, "doc", batch_size=batch_size), alone, atol=1e-5)


def test_int8_scores_a_pair_that_is_asked_twice_once(folders, monkeypatch):
    encoder = rankers.load(str(folders["bert_dot"][1]), precision="int8")
    once = score(encoder, ["cat"] * 2 + ["dog"], ["a goose", "a hen", "a hen"])
    seen, records = [], BertDot.side_records
    monkeypatch.setattr(BertDot, "side_records", lambda model, texts, kind: seen.extend(texts) or records(model, texts, kind))
    again = score(encoder, ["cat"] * 4 + ["dog"] * 2, ["a goose", "a hen", "a goose", "a hen", "a hen", "a hen"])
    assert sorted(seen) == ["a goose", "a hen", "a hen", "cat", "dog"]
    assert np.array_equal(again, once[[0, 1, 0, 1, 2, 2]])


def test_of_a_query_int8_gives_the_same_alone_and_beside_others(folders, corpus, queries):
    """Or `serve` would not answer what `search` finds."""
    texts = [query.text for query in queries]
    encoder, ranker = (rankers.load(str(folders[name][1]), precision="int8") for name in ("bert_dot", "cross_encoder"))
    together = encode(encoder, texts, "query")
    assert np.array_equal(together, np.concatenate([encode(encoder, [text], "query") for text in texts]))
    docs = [doc.contents for doc in corpus]
    pairs = [(query, doc) for n, query in enumerate(texts) for doc in docs[n % 3 :: 2]]
    for model in (ranker, encoder):
        together = score(model, [query for query, _ in pairs], [doc for _, doc in pairs], batch_size=3)
        alone = [score(model, [q for q, _ in own], [doc for _, doc in own], batch_size=3)
                 for query in texts if (own := [pair for pair in reversed(pairs) if pair[0] == query])]  # fmt: skip
        assert np.array_equal(together, np.concatenate([scores[::-1] for scores in alone]))


@pytest.mark.parametrize("architecture", ["bert_dot", "cross_encoder"])
def test_the_folder_stays_the_checkpoint(folders, architecture):
    source, folder = folders[architecture]
    for path in source.rglob("*"):
        if path.is_file():
            assert (folder / path.relative_to(source)).read_bytes() == path.read_bytes()
    assert checkpoint_folder.fingerprint(folder) == checkpoint_folder.fingerprint(source)
    record = read_json(folder / "onnx" / "export.json", "record")
    assert record["encoder"]["sha256"] == checkpoint_folder.fingerprint(source)
    assert set(record["sha256"]) == {"model.onnx", "model_int8.onnx"} == {p.name for p in (folder / "onnx").glob("*.onnx")}


def test_sentence_transformers_still_loads_it(folders, corpus):
    from sentence_transformers import SentenceTransformer

    texts = [doc.contents for doc in corpus]
    theirs = SentenceTransformer(str(folders["bert_dot"][1]), device="cpu").encode(texts, show_progress_bar=False)
    ours = encode(loading.load(str(folders["bert_dot"][0])), texts, "doc", precision="fp32")
    assert np.allclose(theirs, ours, atol=1e-5)


def test_the_same_bytes_twice(folders, tmp_path):
    again = onnx_export.export(str(folders["bert_dot"][0]), tmp_path / "again", int8=True)
    for name in onnx_runtime.FILES.values():
        assert (again / "onnx" / name).read_bytes() == (folders["bert_dot"][1] / "onnx" / name).read_bytes()


def test_auto_takes_int8_only_where_it_was_exported_and_the_processor_has_it(folders, vnni, monkeypatch, caplog):
    source, folder = folders["bert_dot"]
    caplog.set_level("INFO")
    assert hardware.choose_precision("auto", "cpu", source) == "fp32"
    assert hardware.choose_precision("auto", "cpu", folder) == "int8"
    model = rankers.load(str(folder))
    assert precision_of(model) == "int8" and "runs in int8 by ONNX Runtime" in caplog.text
    assert precision_of(rankers.load(str(folder), backend="torch")) == "fp32"
    assert precision_of(rankers.load(str(folder), precision="fp32")) == "fp32"
    for flags, expected in (({"avx512_vnni", "amx_bf16"}, "bf16"), ({"avx2"}, "fp32"), (set(), "fp32")):
        monkeypatch.setattr(hardware, "cpu_flags", lambda flags=flags: flags)
        assert hardware.choose_precision("auto", "cpu", folder) == expected


def test_a_bi_encoder_read_as_a_colbert_is_not_run_in_int8(folders, vnni):
    model = rankers.load(str(folders["bert_dot"][1]), architecture="colbert")
    assert precision_of(model) == "fp32"


def test_report_is_the_definition(caplog):
    before = Run.from_scores("fp32", {"q1": {"a": 3.0, "b": 2.0, "c": 1.0}, "q2": {"a": 2.0, "b": 1.0}})
    after = Run.from_scores("int8", {"q1": {"a": 3.0, "b": 1.0, "c": 1.5}, "q2": {"a": 2.0, "b": 1.0}})
    found = int8_loss.compare(before, after, {"q1": {"b": 1}, "q2": {"a": 1}})
    assert found["pairs"] == 5
    assert found["largest difference"] == 1.0
    assert found["mean difference"] == pytest.approx((0 + 1 + 0.5 + 0 + 0) / 5)
    assert found["pearson"] == pytest.approx(np.corrcoef([3, 2, 1, 2, 1], [3, 1, 1.5, 2, 1])[0, 1])
    assert found["kendall"] == pytest.approx(((3 - 2 * 1) / 3 + 1) / 2)  # q1: one of three pairs is swapped
    assert found["nDCG@10 fp32"] == pytest.approx((1 / np.log2(3) + 1) / 2)
    assert found["nDCG@10 int8"] == pytest.approx((1 / np.log2(4) + 1) / 2)


def test_command(invoke, tiny_cross, tiny_dot, files, tmp_path, corpus, queries):
    run = tmp_path / "run.txt"
    Run.from_scores("x", {q.query_id: {d.doc_id: float(i) for i, d in enumerate(corpus)} for q in queries}).write(run)
    given = ["--encoder", tiny_cross, "--int8", "--run", run, "--collection", files["docs"], "--topics", files["topics"]]
    out = tmp_path / "out"
    result = invoke(export.main, *given, "--qrels", files["qrels"], "--output", out)
    assert result.exit_code == 0, result.output
    assert "onnx/model_int8.onnx" in result.output and "pairs                    200" in result.output
    kept = json.loads((out / "onnx" / "quality.json").read_text())
    assert f"{kept['pearson']:.4f}" in result.output and kept["pearson"] > 0.9
    assert "exists" in invoke(export.main, "--encoder", tiny_cross, "--output", out).output
    assert invoke(export.main, "--encoder", tiny_cross, "--output", out, "--overwrite").exit_code == 0
    assert not (out / "onnx" / "model_int8.onnx").exists()
    partly = invoke(export.main, *given, "--output", tmp_path / "y")
    assert partly.exit_code == 2 and "--qrels" in partly.output


def test_an_int8_that_ruins_the_order_is_said_loudly(invoke, tiny_cross, files, tmp_path, corpus, queries, monkeypatch, caplog):
    run = tmp_path / "run.txt"
    Run.from_scores("x", {q.query_id: {d.doc_id: float(i) for i, d in enumerate(corpus)} for q in queries}).write(run)
    found = {"pairs": 1, "pearson": 0.999, "nDCG@10 fp32": 0.5, "nDCG@10 int8": 0.49}
    monkeypatch.setattr(int8_loss, "compare", lambda *_: found)
    invoke(export.main, "--encoder", tiny_cross, "--int8", "--run", run, "--collection", files["docs"], "--topics",
           files["topics"], "--qrels", files["qrels"], "--output", tmp_path / "out")  # fmt: skip
    assert "WARNING: int8 loses too much" in caplog.text


def test_int8_searches_an_fp32_index(invoke, dense_index, folders, files, tmp_path):
    from pyserini_kd import search

    runs = []
    for precision in ("fp32", "int8"):
        run = tmp_path / f"run.{precision}.txt"
        result = invoke(search.main, "--index", dense_index, "--encoder", folders["bert_dot"][1], "--topics", files["topics"],
                        "--precision", precision, "--output", run)  # fmt: skip
        assert result.exit_code == 0, result.output
        assert read_json(run.with_suffix(".json"), "record")["precision"] == precision
        runs.append(Run.read(run))
    assert runs[0].keys() == runs[1].keys()
