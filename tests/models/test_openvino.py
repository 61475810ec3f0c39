"""OpenVINO runs checkpoints without torch. It gives torch's outputs in fp32 and near ones in bf16 and int8, with any number of workers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from pyserini_kd import export
from pyserini_kd.data.runs import Run
from pyserini_kd.evaluation import int8_loss
from pyserini_kd.models import checkpoint_folder, hardware, loading, openvino_export, openvino_files, rankers, saving
from pyserini_kd.models.cross_encoder import CrossEncoder
from pyserini_kd.storage.records import read_json
from tests.conftest import encode, score

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, tiny_dot, tiny_cross):
    """Architecture -> a checkpoint folder of ours."""
    out, made = tmp_path_factory.mktemp("checkpoints"), {"bert_dot": tiny_dot, "cross_encoder": tiny_cross}
    for name, settings in (("colbert", {"width": 16, "masks": 3}), ("prettr", {"join_layer": 1, "masks": 2})):
        torch.manual_seed(1)
        made[name] = saving.save(loading.load(str(tiny_dot), architecture=name, settings=settings), out / name)
    return made


@pytest.fixture(scope="module")
def int8_folders(checkpoints, corpus, queries, tmp_path_factory):
    """Architecture -> a copy with an int8 file."""
    out = tmp_path_factory.mktemp("int8")
    pairs = [(query.text, doc.contents) for query in queries for doc in corpus[:3]]
    names = ("bert_dot", "cross_encoder", "colbert")
    return {name: openvino_export.export(str(checkpoints[name]), out / name, calibration=pairs) for name in names}


@pytest.fixture
def vnni(monkeypatch):
    monkeypatch.setattr(hardware, "cpu_flags", lambda: {"avx512_vnni"})


def outputs(model, corpus, queries, **settings):
    """Vectors if the model is a bi-encoder, else scores."""
    texts = [doc.contents for doc in corpus]
    if model.architecture == "bert_dot":
        return np.concatenate([encode(model, texts, "doc", **settings), encode(model, texts, "query", **settings)])
    pairs = [(query.text, text) for query in queries[:3] for text in texts]
    return score(model, [q for q, _ in pairs], [d for _, d in pairs], **settings)


@pytest.mark.parametrize("architecture", ["bert_dot", "colbert", "prettr", "cross_encoder"])
def test_fp32_gives_the_outputs_of_torch_and_bf16_is_near(checkpoints, corpus, queries, architecture):
    folder = str(checkpoints[architecture])
    expected = outputs(loading.load(folder), corpus, queries, precision="fp32")
    fp32, bf16 = (rankers.load(folder, precision=precision, backend="openvino") for precision in ("fp32", "bf16"))
    assert fp32.backend == "openvino"
    assert np.allclose(outputs(fp32, corpus, queries), expected, atol=2e-5, rtol=1e-5)
    rough = outputs(bf16, corpus, queries)
    assert np.corrcoef(rough.ravel(), expected.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(("pooling", "l2_norm"), [("cls", True), ("mean", False), ("mean", True)])
def test_settings_may_differ_from_the_checkpoints(tiny_dot, corpus, pooling, l2_norm):
    given = {"pooling": pooling, "l2_norm": l2_norm, "query_prefix": "the ", "max_doc_len": 7, "max_query_len": 5}
    texts = [doc.contents for doc in corpus]
    ours, torchs = rankers.load(str(tiny_dot), precision="fp32", **given), loading.load(str(tiny_dot), **given)
    for side in ("query", "doc"):
        assert np.allclose(encode(ours, texts, side), encode(torchs, texts, side, precision="fp32"), atol=1e-5)
    assert ours.reader.described() == torchs.reader.described()


def test_a_bi_encoder_is_a_colbert_by_its_token_states(tiny_dot, corpus, queries):
    ours = rankers.load(str(tiny_dot), architecture="colbert", precision="fp32", backend="openvino")
    expected = outputs(loading.load(str(tiny_dot), architecture="colbert"), corpus, queries, precision="fp32")
    assert np.allclose(outputs(ours, corpus, queries), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["DistilBert", "Roberta", "Electra", "MPNet", "Albert", "DebertaV2"])
def test_other_families_run_too(tmp_path, tokenizer, corpus, kind):
    import transformers

    own = {"DistilBert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "initializer_range": 0.2},
           "Electra": TINY | {"embedding_size": 32}, "Albert": TINY | {"embedding_size": 32}}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), pad_token_id=0, **own.get(kind, TINY))
    torch.manual_seed(0)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = [doc.contents for doc in corpus]
    ours = rankers.load(str(tmp_path), precision="fp32", backend="openvino", pooling="mean")
    expected = encode(loading.load(str(tmp_path), pooling="mean"), texts, "doc", precision="fp32")
    assert np.allclose(encode(ours, texts, "doc"), expected, atol=1e-4)


def test_a_classifier_with_two_labels_scores_by_their_difference(tiny_cross, tokenizer, tmp_path, corpus):
    from transformers import BertForSequenceClassification

    two = BertForSequenceClassification.from_pretrained(tiny_cross, num_labels=2, ignore_mismatched_sizes=True).eval()
    two.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    docs = [doc.contents for doc in corpus]
    with torch.inference_mode():
        logits = two(**tokenizer(["cat"] * len(docs), docs, padding=True, return_tensors="pt")).logits.numpy()
    found = rankers.load(str(tmp_path), precision="fp32", backend="openvino").score(["cat"] * len(docs), docs)
    assert np.allclose(found, logits[:, 1] - logits[:, 0], atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "prettr"])
def test_scores_far_from_zero_do_not_tie_in_bf16(tmp_path, tokenizer, tiny_dot, corpus, kind):
    import transformers

    torch.manual_seed(0)
    if kind == "prettr":
        model = loading.load(str(tiny_dot), architecture="prettr", settings={"join_layer": 1})
        model.head.weight.data *= 20
    else:
        name = {"bert": "Bert", "distilbert": "DistilBert", "roberta": "Roberta"}[kind]
        own = {"dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 4} if kind == "distilbert" else TINY
        config = getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), num_labels=1, pad_token_id=0, **own)
        classifier = getattr(transformers, f"{name}ForSequenceClassification")(config)
        last = classifier.classifier.out_proj if kind == "roberta" else classifier.classifier
        last.bias.data += 9
        model = CrossEncoder(classifier.eval(), tokenizer, 48)
    folder, docs = saving.save(model, tmp_path / "far"), [doc.contents for doc in corpus]
    asked = ["what the cat eats"] * len(docs), docs
    fp32 = score(loading.load(str(folder)), *asked, precision="fp32")
    for backend in ("openvino", "torch"):
        scores = rankers.load(str(folder), precision="bf16", backend=backend).score(*asked)
        assert not np.array_equal(torch.from_numpy(scores).bfloat16().float().numpy(), scores)
        assert np.allclose(scores, fp32, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_number_of_workers_changes_no_byte(checkpoints, corpus, queries, precision, monkeypatch):
    found = []
    for count in (1, 2, 3):
        monkeypatch.setattr(hardware, "threads", lambda count=count: count)
        loaded = [rankers.load(str(folder), precision=precision, batch_size=3) for folder in checkpoints.values()]
        found.append([outputs(one, corpus, queries).tobytes() for one in loaded])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("architecture", ["bert_dot", "cross_encoder", "colbert"])
def test_int8_is_near_and_does_not_depend_on_the_batch(int8_folders, checkpoints, corpus, queries, architecture):
    exact = outputs(loading.load(str(checkpoints[architecture])), corpus, queries, precision="fp32")
    int8 = rankers.load(str(int8_folders[architecture]), precision="int8")
    rough = outputs(int8, corpus, queries)
    assert not np.allclose(rough, exact, atol=1e-5)  # it is another arithmetic
    assert np.corrcoef(rough.ravel(), exact.ravel())[0, 1] > 0.7  # random weights suffer more than trained ones
    int8.batch_size = 1
    assert np.corrcoef(outputs(int8, corpus, queries).ravel(), rough.ravel())[0, 1] > 0.999


def test_the_folder_stays_the_checkpoint(int8_folders, checkpoints):
    for architecture, folder in int8_folders.items():
        source = checkpoints[architecture]
        for path in source.rglob("*"):
            if path.is_file():
                assert (folder / path.relative_to(source)).read_bytes() == path.read_bytes()
        assert checkpoint_folder.fingerprint(folder) == checkpoint_folder.fingerprint(source)


def test_sentence_transformers_still_loads_it(int8_folders, corpus):
    from sentence_transformers import SentenceTransformer

    texts = [doc.contents for doc in corpus]
    theirs = SentenceTransformer(str(int8_folders["bert_dot"]), device="cpu").encode(texts, show_progress_bar=False)
    ours = encode(rankers.load(str(int8_folders["bert_dot"]), precision="fp32"), texts, "doc")
    assert np.allclose(theirs, ours, atol=1e-5)


def test_the_same_files_twice(checkpoints, int8_folders, corpus, queries, tmp_path):
    pairs = [(query.text, doc.contents) for query in queries for doc in corpus[:3]]
    again = openvino_export.export(str(checkpoints["bert_dot"]), tmp_path / "again", calibration=pairs)
    for name in (openvino_files.MODEL, openvino_files.INT8, openvino_files.TOKENIZER):
        for path in (again / "openvino" / name, (again / "openvino" / name).with_suffix(".bin")):
            if path.exists():
                assert path.read_bytes() == (int8_folders["bert_dot"] / "openvino" / path.name).read_bytes()


def test_auto_takes_int8_only_where_it_was_exported_and_the_processor_has_it(int8_folders, vnni, monkeypatch, caplog):
    folder = int8_folders["bert_dot"]
    caplog.set_level("INFO")
    assert hardware.choose_precision("auto", "cpu", has_int8=False) == "fp32"
    assert hardware.choose_precision("auto", "cpu", has_int8=openvino_files.has_int8(folder)) == "int8"
    assert rankers.load(str(folder)).precision == "int8" and "runs in int8 by OpenVINO" in caplog.text
    assert rankers.load(str(folder), backend="torch").precision == "fp32"
    assert rankers.load(str(folder), precision="fp32").precision == "fp32"
    for flags, expected in (({"avx512_vnni", "amx_bf16"}, "bf16"), ({"avx2"}, "fp32"), (set(), "fp32")):
        monkeypatch.setattr(hardware, "cpu_flags", lambda flags=flags: flags)
        assert hardware.choose_precision("auto", "cpu", has_int8=openvino_files.has_int8(folder)) == expected


def test_search_rerank_and_index_never_import_torch(checkpoints, files, tmp_path):
    """This includes the first query. OpenVINO and the library tokenizers do the work."""
    for folder in checkpoints.values():
        rankers.load(str(folder))  # makes the files, by torch
    dot, cross, late = (checkpoints[name] for name in ("bert_dot", "cross_encoder", "colbert"))
    code = f"""
import sys
from pyserini_kd.__main__ import main
def run(*words):
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        assert not stop.code, words
run("index", "--collection", {str(files["docs"])!r}, "--encoder", {str(dot)!r}, "--index", "dense")
run("index", "--collection", {str(files["docs"])!r}, "--encoder", {str(late)!r}, "--for", "colbert", "--index", "tokens")
run("search", "--index", "dense", "--encoder", {str(dot)!r}, "--topics", {str(files["topics"])!r}, "--output", "run.txt")
run("search", "--index", "dense", "--encoder", {str(dot)!r}, "--query", "what the cat eats")
run("rerank", "--run", "run.txt", "--collection", {str(files["docs"])!r}, "--topics", {str(files["topics"])!r},
    "--encoder", {str(cross)!r}, "--output", "run.cross.txt")
run("rerank", "--run", "run.txt", "--index", "tokens", "--topics", {str(files["topics"])!r},
    "--encoder", {str(late)!r}, "--output", "run.late.txt")
found = [name for name in ("torch", "transformers") if name in sys.modules] + ["telemetry"] * bool(sys.modules["openvino_telemetry"])
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-2000:]


def test_no_usage_statistics_are_sent(tiny_dot, tmp_path):
    """Importing OpenVINO sends a message by the package openvino_telemetry, and NNCF another. Neither gets the package."""
    code = f"""
import sys
from pyserini_kd.models import openvino_export
pairs = [("the cat", "the cat eats hay")] * 3
openvino_export.export({str(tiny_dot)!r}, {str(tmp_path / "out")!r}, calibration=pairs)
assert "nncf" in sys.modules and "openvino" in sys.modules
assert sys.modules["openvino_telemetry"] is None and not [name for name in sys.modules if name.startswith("openvino_telemetry.")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-2000:]


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
    assert "openvino/openvino_model_qint8_quantized.bin" in result.output and "pairs                    200" in result.output
    kept = json.loads((out / "openvino" / "quality.json").read_text())
    assert f"{kept['pearson']:.4f}" in result.output and kept["pearson"] > 0.7
    assert "exists" in invoke(export.main, "--encoder", tiny_cross, "--output", out).output
    assert invoke(export.main, "--encoder", tiny_cross, "--output", out, "--overwrite").exit_code == 0
    assert not (out / "openvino" / openvino_files.INT8).exists()
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


def test_int8_searches_an_fp32_index(invoke, dense_index, int8_folders, files, tmp_path):
    from pyserini_kd import search

    runs = []
    for precision in ("fp32", "int8"):
        run = tmp_path / f"run.{precision}.txt"
        result = invoke(search.main, "--index", dense_index, "--encoder", int8_folders["bert_dot"], "--topics", files["topics"],
                        "--precision", precision, "--output", run)  # fmt: skip
        assert result.exit_code == 0, result.output
        assert read_json(run.with_suffix(".json"), "record")["precision"] == precision
        runs.append(Run.read(run))
    assert runs[0].keys() == runs[1].keys()
