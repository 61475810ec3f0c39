"""`distill`: the whole way from documents to a system, what it skips and makes again, its choices, updates, wrong input."""

import dataclasses
import json
import logging
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pyserini_kd import distillation
from pyserini_kd.__main__ import main as program
from pyserini_kd.data import formats, sources
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Query
from pyserini_kd.distill import main
from pyserini_kd.distillation import distilling, system_choice, system_plan, system_sizes, system_steps
from pyserini_kd.distillation.made_queries import sample
from pyserini_kd.distillation.system_config import DistillConfig
from pyserini_kd.distillation.system_sizes import Sizes
from pyserini_kd.evaluation import engines
from pyserini_kd.retrieval import fusion, system_file
from pyserini_kd.retrieval.search_settings import SystemSettings
from pyserini_kd.retrieval.system import System
from pyserini_kd.search import main as search
from pyserini_kd.storage.errors import InputError
from tests.distillation.test_queries import doc_of
from tests.distillation.test_vectors import dot

N_DOCS = 230
DOCS = [doc_of(number) for number in range(N_DOCS)]


@pytest.fixture(scope="module")
def bi_encoder(tmp_path_factory):
    """A random bi-encoder of 4 layers that knows the words of the documents."""
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("models")
    words = sorted({word for doc in DOCS for word in doc.contents.lower().replace(".", " . ").split()})
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    tokenizer = BertTokenizer(vocab={word: row for row, word in enumerate(vocab)}, do_lower_case=True)
    return dot(tokenizer, folder / "dot", layers=4, max_doc_len=60, max_query_len=24)


def sizes_of(config, vector_steps=4):
    """Trainings of a few steps, without a measurement of speed."""
    return Sizes(system_sizes.made_for(config), 1000.0, N_DOCS, 50.0, N_DOCS, 96, vector_steps, 3)


@pytest.fixture
def few_steps(monkeypatch):
    """Trainings of a few steps, without a measurement of speed."""
    monkeypatch.setattr(Sizes, "choose", classmethod(lambda cls, config, found: sizes_of(config)))


@pytest.fixture(scope="module")
def system(bi_encoder, tmp_path_factory):
    """A finished system; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("systems")
    formats.write_collection(DOCS, folder / "docs.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sizes, "choose", classmethod(lambda cls, config, found: sizes_of(config)))
        said = []
        distilling.run(config_of(folder, bi_encoder), said.append)
    return folder, said


def config_of(folder, init, **settings):
    return DistillConfig(
        collection=str(folder / "docs.jsonl"), output=folder / "sys", init=str(init), layers="0,2", precision="fp32", **settings
    )


def test_one_command_makes_a_system_that_searches(system):
    folder, said = system
    out = folder / "sys"
    assert {path.name for path in out.iterdir()} >= {
        "models",
        "indexes",
        "search.yaml",
        "report.html",
        "commands.sh",
        "distill.json",
    }
    opened = System.open(SystemSettings(system=str(out)), texts=True)
    run, _ = opened.search([Query("1", "mend the valve of a library number7")])
    assert run["1"].doc_ids[0] == "d7"
    assert any("230 documents" in line for line in said) and any("dense" in line and "R@100" in line for line in said)
    assert "made-up queries" in (out / "report.html").read_text()
    record = json.loads((out / "distill.json").read_text())
    assert record["chosen"]["settings"] == system_file.yaml.safe_load((out / "search.yaml").read_text())


def test_the_commands_in_the_folder_make_the_same_files(system, tmp_path):
    folder, _ = system
    lines = [line for line in (folder / "sys" / "commands.sh").read_text().splitlines() if line.startswith("pyserini-kd")]
    record = json.loads((folder / "sys" / "distill.json").read_text())
    assert lines == [step["command"] for step in record["steps"].values()]
    words = shlex.split(next(line for line in lines if " train " in line))[1:]
    words[words.index("--output") + 1] = str(tmp_path / "again")
    program.main(words, standalone_mode=False)
    weights = [path / "model.safetensors" for path in (tmp_path / "again", folder / "sys" / "models" / "dense")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.fixture
def ran(monkeypatch):
    """The names of the commands whose work was done."""
    names = []

    def note(command):
        def noted(settings):
            names.append(getattr(settings, "recipe", None) or command.name)
            return command.work(settings)

        return command._replace(work=noted)

    monkeypatch.setattr(system_steps, "COMMANDS", {kind: note(command) for kind, command in system_steps.COMMANDS.items()})
    return names


@pytest.fixture
def copy(system, tmp_path):
    """A copy of the system, whose collection is the same file."""
    shutil.copytree(system[0] / "sys", tmp_path / "sys")
    return tmp_path / "sys"


def again(system, bi_encoder, output, **settings):
    said = []
    distilling.run(config_of(system[0], bi_encoder, **settings).but(output=output), said.append)
    return said


def test_a_second_call_makes_nothing_again_also_in_a_moved_folder(system, bi_encoder, copy, few_steps, ran):
    before = (copy / "search.yaml").read_bytes()
    again(system, bi_encoder, copy)
    assert ran == [] and (copy / "search.yaml").read_bytes() == before


def test_what_is_missing_is_made_again_with_the_same_bytes(system, bi_encoder, copy, few_steps, ran):
    shutil.rmtree(copy / "models" / "dense")
    again(system, bi_encoder, copy)
    assert ran == ["vectors"]
    weights = [(folder / "models" / "dense" / "model.safetensors").read_bytes() for folder in (system[0] / "sys", copy)]
    assert weights[0] == weights[1]


def test_an_output_replaced_by_hand_is_used_and_what_depends_on_it_is_made_again(
    system, bi_encoder, copy, few_steps, ran, caplog
):
    caplog.set_level(logging.INFO)
    shutil.rmtree(copy / "models" / "dense")
    shutil.copytree(bi_encoder, copy / "models" / "dense")
    again(system, bi_encoder, copy)
    assert "models/dense was not made by this command; it is used as it is" in caplog.text
    assert ran[:3] == ["index", "search", "index"]
    ran.clear()
    again(system, bi_encoder, copy)
    assert ran == []


@pytest.mark.slow
def test_another_budget_trains_again(system, bi_encoder, copy, monkeypatch, ran):
    monkeypatch.setattr(Sizes, "choose", classmethod(lambda cls, config, found: sizes_of(config, vector_steps=5)))
    again(system, bi_encoder, copy, minutes=30)
    assert ran[:4] == ["vectors", "index", "search", "index"]


def test_a_changed_collection_is_refused_unless_it_is_an_update(bi_encoder, system, tmp_path, few_steps, ran):
    folder = tmp_path / "other"
    shutil.copytree(system[0], folder)
    record = folder / "sys" / "distill.json"
    record.write_text(record.read_text().replace(str(system[0]), str(folder)))
    formats.write_collection([*DOCS, doc_of(5000), doc_of(5001)], folder / "docs.jsonl", overwrite=True)
    with pytest.raises(InputError, match="changed since .* was made"):
        distilling.run(config_of(folder, bi_encoder), print)
    said = []
    config = DistillConfig(collection=str(folder / "docs.jsonl"), output=folder / "sys", update=True)
    distilling.run(config, said.append)
    assert said[0].endswith("2 new documents, 232 in all") and len(said) == 1
    assert set(ran) == {"index"}  # the new documents, and BM25
    opened = System.open(SystemSettings(system=str(folder / "sys")), texts=True)
    assert "d5001" in opened.search([Query("1", "number5001")])[0]["1"].doc_ids[:3]
    whole = System.open(SystemSettings(system=str(system[0] / "sys")))
    assert len(opened.index.doc_ids) == len(whole.index.doc_ids) + 2
    distilling.run(config, said.append)
    assert said[1].endswith("has no new documents")
    formats.write_collection(
        [*DOCS[1:], doc_of(5000)._replace(text="changed"), doc_of(5001)], folder / "docs.jsonl", overwrite=True
    )
    with pytest.raises(InputError, match="1 documents of the system changed and 1 are gone"):
        distilling.run(config, print)


def test_real_queries_train_students_on_scores_and_judged_ones_measure(bi_encoder, tmp_path, few_steps, ran):
    formats.write_collection(DOCS, tmp_path / "docs.jsonl")
    topics = [Query(str(number), f"number{number} stops") for number in range(60)]
    formats.write_topics(topics, tmp_path / "topics.tsv")
    formats.write_qrels({str(number): {f"d{number}": 1} for number in range(60)}, tmp_path / "qrels.txt")
    given = {"topics": str(tmp_path / "topics.tsv"), "qrels": str(tmp_path / "qrels.txt")}
    distilling.run(config_of(tmp_path, bi_encoder, **given), print)
    assert [name for name in ran if name in ("vectors", "mine", "teach", "margin-mse")] == [
        "mine", "teach", "vectors", "margin-mse"
    ]  # fmt: skip
    assert {path.name for path in (tmp_path / "sys" / "models").iterdir()} == {"dense", "colbert"}
    dev = sources.topics(str(tmp_path / "sys" / "queries" / "dev.tsv"))
    assert len(dev) == 12 and all(query.query_id.startswith("given.") for query in dev)
    assert "made-up queries" not in (tmp_path / "sys" / "report.html").read_text()


@pytest.mark.slow
def test_a_cross_encoder_and_a_splade_learn_from_made_up_queries(bi_encoder, tmp_path, few_steps, ran):
    formats.write_collection(DOCS, tmp_path / "docs.jsonl")
    distilling.run(config_of(tmp_path, bi_encoder, students=("dense", "reranker")), print)
    assert ran.count("margin-mse") == 1 and (tmp_path / "sys" / "models" / "reranker").exists()


@pytest.mark.slow
def test_an_update_cuts_new_documents_into_the_same_passages(bi_encoder, tmp_path, few_steps):
    formats.write_collection(DOCS, tmp_path / "docs.jsonl")
    distilling.run(config_of(tmp_path, bi_encoder, segment="20:10"), print)
    formats.write_collection([*DOCS, doc_of(5000)], tmp_path / "docs.jsonl", overwrite=True)
    said = []
    distilling.run(DistillConfig(collection=str(tmp_path / "docs.jsonl"), output=tmp_path / "sys", update=True), said.append)
    assert "1 new documents" in said[0]
    run, _ = System.open(SystemSettings(system=str(tmp_path / "sys"))).search([Query("1", "number5000")])
    assert run["1"].doc_ids[0].startswith("d5000#")


def test_search_yaml_changed_by_hand_stays_in_a_second_call_and_in_an_update(bi_encoder, tmp_path, few_steps):
    folder, names, said = tmp_path, set(SystemSettings.model_fields), []
    formats.write_collection(DOCS, folder / "docs.jsonl")
    distilling.run(config_of(folder, bi_encoder), print)
    system_file.write(folder / "sys", system_file.raw(folder / "sys", names) | {"alpha": 0.125})
    distilling.run(config_of(folder, bi_encoder), said.append)
    assert system_file.raw(folder / "sys", names)["alpha"] == 0.125 and any("chosen before" in line for line in said)
    formats.write_collection([*DOCS, doc_of(5000)], folder / "docs.jsonl", overwrite=True)
    distilling.run(DistillConfig(collection=str(folder / "docs.jsonl"), output=folder / "sys", update=True), said.append)
    found = system_file.raw(folder / "sys", names)
    assert found["alpha"] == 0.125 and found["index"] == ["indexes/dense.json"]


def test_a_changed_query_log_makes_the_queries_again(bi_encoder, tmp_path, few_steps, ran):
    formats.write_collection(DOCS, tmp_path / "docs.jsonl")
    (tmp_path / "log.tsv").write_text("1\tbroken violin handle\n")
    config = config_of(tmp_path, bi_encoder, topics=str(tmp_path / "log.tsv"), students=("dense",))
    distilling.run(config, print)
    ran.clear()
    distilling.run(config, print)
    assert ran == []
    (tmp_path / "log.tsv").write_text("1\tbroken garden window\n")
    distilling.run(config, print)
    assert ran[0] == "queries" and "vectors" in ran


def test_sizes_of_an_earlier_run_serve_only_the_same_students(system, bi_encoder, copy):
    steps = system_steps.Steps(copy / "distill.json")
    config = config_of(system[0], bi_encoder)
    assert distilling._sizes(config, None, steps) == sizes_of(config)
    for other in ({"minutes": 20}, {"students": ("reranker",)}, {"topics": "log.tsv"}):
        made_for = system_sizes.made_for(config_of(system[0], bi_encoder, **other))
        assert made_for != steps.known["sizes"]["made_for"], other


def test_a_splade_that_beats_bm25_takes_its_place(bi_encoder, tmp_path, few_steps):
    formats.write_collection(DOCS, tmp_path / "docs.jsonl")
    said = []
    config = config_of(tmp_path, bi_encoder, students=("dense", "sparse"))
    distilling.run(config, said.append)
    out, at = tmp_path / "sys", system_plan.Folder(tmp_path / "sys")
    assert any("sparse instead of BM25" in line and "bm25 is used" in line for line in said)  # three steps are too few
    assert system_file.raw(out, set(SystemSettings.model_fields))["sparse_index"] == "indexes/bm25"
    held_out = system_choice.HeldOut.open(config, at)
    held_out.runs["sparse"], held_out.runs["bm25"] = held_out.runs["bm25"], held_out.runs["sparse"]  # BM25 is the better one
    chosen = system_choice.choose(config, held_out, said.append).settings
    assert chosen["sparse_index"] == "indexes/sparse" and chosen["encoder"] == "models/dense"
    system_file.write(out, chosen)
    run, _ = System.open(SystemSettings(system=str(out))).search([Query("1", "violin number3")], 10)
    assert len(run["1"].doc_ids) == 10
    only = system_choice.choose(config.but(students=("sparse",)), dataclasses.replace(
        held_out, runs={name: path for name, path in held_out.runs.items() if name in ("bm25", "sparse", "teacher")}
    ), said.append).settings  # fmt: skip
    assert only == {"encoder": "models/sparse", "index": ["indexes/sparse"]}


def test_few_documents_give_an_untrained_system_and_say_so(bi_encoder, tmp_path, caplog):
    formats.write_collection(DOCS[:50], tmp_path / "docs.jsonl")
    distilling.run(config_of(tmp_path, bi_encoder), print)
    assert "50 different documents are too few to learn from" in caplog.text
    run, _ = System.open(SystemSettings(system=str(tmp_path / "sys"))).search([Query("1", "violin number3")], 5)
    assert run["1"].doc_ids[0] == "d3"


def test_documents_all_alike_are_few(bi_encoder, tmp_path, caplog):
    formats.write_collection([doc_of(1)._replace(doc_id=str(number)) for number in range(300)], tmp_path / "docs.jsonl")
    said = []
    distilling.run(config_of(tmp_path, bi_encoder), said.append)
    assert "299 duplicates" in said[0] and "1 different documents are too few" in caplog.text


def test_dry_run_prints_the_plan_and_writes_nothing(bi_encoder, tmp_path, few_steps):
    formats.write_collection(DOCS, tmp_path / "docs.jsonl")
    said = []
    distilling.run(config_of(tmp_path, bi_encoder, dry_run=True), said.append)
    assert "give the teacher's vectors" in said[-1] and "together" in said[-1]
    assert not (tmp_path / "sys").exists()


def test_another_language_is_named(tmp_path, few_steps, bi_encoder, caplog):
    text = "Der Motor läuft nicht mehr und niemand weiß warum das so ist, denn gestern lief er noch ohne Fehler"
    formats.write_collection([Doc(str(n), "", f"{text} {n}") for n in range(300)], tmp_path / "docs.jsonl")
    distilling.run(DistillConfig(collection=str(tmp_path / "docs.jsonl"), output=tmp_path / "sys", dry_run=True), print)
    assert "do not look English" in caplog.text and "--init" in caplog.text
    caplog.clear()
    distilling.run(config_of(tmp_path, bi_encoder, dry_run=True), print)  # another model may know the language
    assert "English" not in caplog.text


def test_a_full_disk_is_noticed_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(system_sizes.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    found = sample(DOCS, 1000)
    with pytest.raises(InputError, match=r"needs about 0\.\d GB, but only 0\.0 GB are free"):
        system_sizes.refuse_full_disk(DistillConfig(collection="docs.jsonl", output=tmp_path / "a" / "b"), found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"qrels": "q.txt"}, "judges the topics"),
        ({"students": ("dense", "dense")}, "named twice"),
        ({"init": "random:2/32"}, "must be a bi-encoder"),
        ({"precision": "int8"}, "trained in fp32 or bf16"),
        ({"teachers": ("models/other",)}, "teaches students that learn scores"),
        ({"update": True, "minutes": 3}, "keeps the settings"),
    ],
)
def test_wrong_settings(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        DistillConfig(collection="docs.jsonl", output=tmp_path, **settings)


def test_update_needs_a_finished_system(tmp_path, invoke):
    formats.write_collection(DOCS, tmp_path / "docs.jsonl")
    result = invoke(main, "--collection", tmp_path / "docs.jsonl", "--output", tmp_path / "sys", "--update")
    assert result.exit_code == 2 and "--update:" in result.output and "holds no finished system" in result.output


# ------------------------------------------------------------------------------------------------------ choices


def test_raw_alpha_gives_both_runs_the_same_influence():
    a = Run.from_scores("a", {"q": {"x": 30.0, "y": 10.0}})  # standard deviation 10
    b = Run.from_scores("b", {"q": {"x": 0.1, "y": 0.5}})  # 0.2
    assert system_choice.spread(a) == pytest.approx(10) and system_choice.spread(b) == pytest.approx(0.2)
    alpha = system_choice.raw_alpha(a, b, 0.5)  # (0.5 / 10) / (0.5 / 10 + 0.5 / 0.2)
    assert alpha == pytest.approx(0.05 / 2.55, rel=1e-5)
    margins = alpha * 20, (1 - alpha) * 0.4
    assert margins[0] == pytest.approx(margins[1], rel=1e-4)


def runs_of(rng, good_a, good_b, n=60):
    """Two runs in which the relevant document has the largest score with these probabilities."""
    found = [{}, {}]
    for query in range(n):
        for run, good in zip(found, (good_a, good_b), strict=True):
            scores = dict(zip("abcdef", rng.permutation(6) / 6, strict=True))
            run[str(query)] = scores | {"rel": 2.0 if rng.random() < good else -1.0}
    qrels = {str(query): {"rel": 1} for query in range(n)}
    return Run.from_scores("a", found[0]), Run.from_scores("b", found[1]), qrels


def test_made_up_queries_choose_only_among_cautious_shares_unless_one_run_is_clearly_better():
    a, b, qrels = runs_of(np.random.default_rng(0), 0.6, 0.6)
    assert system_choice.weigh(a, b, qrels, made_up=True) in system_choice.CAUTIOUS
    a, b, qrels = runs_of(np.random.default_rng(0), 1.0, 0.0)
    assert system_choice.weigh(a, b, qrels, made_up=True) in (0.7, 0.8, 1.0)
    assert system_choice.weigh(b, a, qrels, made_up=True) in (0.0, 0.2, 0.3)


# ------------------------------------------------------------------------------------------------------ one folder


def test_search_opens_a_system_and_options_replace_its_settings(system, invoke):
    out = system[0] / "sys"
    result = invoke(search, "--system", out, "--query", "mend the valve of a library number7", "--hits", 3)
    assert result.exit_code == 0 and "d7" in result.output
    chosen = SystemSettings(system=str(out))
    assert chosen.index == (str(out / "indexes" / "dense"),) and chosen.sparse_index == str(out / "indexes" / "bm25")
    assert SystemSettings(system=str(out), alpha=0.25).alpha == 0.25
    with pytest.raises(InputError, match="needs a dense"):
        SystemSettings(system=str(out), encoder="bm25")


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1, 2", "is not YAML"), ("- a", "must hold settings"), ("colour: blue", "unknown setting colour"), (None, "not found")],
)
def test_a_wrong_system_file_is_one_line(tmp_path, text, message, invoke):
    if text is not None:
        (tmp_path / "search.yaml").write_text(text)
    result = invoke(search, "--system", tmp_path, "--query", "a")
    assert result.exit_code == 2 and message in result.output and len(result.output.strip().splitlines()) == 1


def test_rerank_alpha_mixes_both_stages(system):
    out = system[0] / "sys"
    query = [Query("1", "mend the handle of a violin number39")]
    base = {"encoder": "bm25", "index": (str(out / "indexes" / "bm25"),)}
    first = System.open(SystemSettings(**base)).search(query, 20)[0]
    how = {"rerank": str(out / "models" / "dense"), "rerank_index": str(out / "indexes" / "dense"), "depth": 20}
    late = System.open(SystemSettings(**base, **how)).search(query, 20)[0]
    both = System.open(SystemSettings(**base, **how, rerank_alpha=0.3)).search(query, 20)[0]
    expected = fusion.interpolation(first, late, alpha=0.3)
    assert both["1"].doc_ids == expected["1"].doc_ids
    np.testing.assert_allclose(both["1"].scores, expected["1"].scores, rtol=1e-6)


def test_distill_from_python_returns_an_open_system(system, bi_encoder, copy, few_steps):
    opened = distillation.distill(str(system[0] / "docs.jsonl"), copy, init=str(bi_encoder), layers="0,2", precision="fp32")
    run, _ = opened.search([Query("1", "violin number3")])
    qrels = sources.qrels(str(copy / "queries" / "dev.qrels.txt"))
    assert run["1"].doc_ids[0] == "d3" and len(qrels) > 20
    assert engines.mean(engines.evaluate(run, {"1": {"d3": 1}}, ["RR@10"])["RR@10"]) == 1


@pytest.mark.slow
def test_after_kill_9_the_same_command_ends_with_the_same_bytes(bi_encoder, tmp_path):
    formats.write_collection(DOCS, tmp_path / "docs.jsonl")
    how = ["--init", str(bi_encoder), "--layers", "0,2", "--minutes", "0.02", "--precision", "fp32"]
    words = [sys.executable, "-m", "pyserini_kd", "distill", "--collection", "docs.jsonl", *how, "--output"]
    whole = subprocess.run([*words, "whole"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Next: pyserini-kd search --system whole" in whole.stdout
    record = json.loads((tmp_path / "whole" / "distill.json").read_text())
    (tmp_path / "killed").mkdir()
    kept = {name: record[name] for name in ("collection", "sizes", "stamp")}
    (tmp_path / "killed" / "distill.json").write_text(
        json.dumps(kept)
    )  # without these sizes, the command would measure the speed again
    kills = 0
    for seconds in (4, 6, 8, 10, 12, 14):  # the start alone takes some seconds
        with subprocess.Popen(
            [*words, "killed"], cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        ) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
    subprocess.run([*words, "killed"], cwd=tmp_path, capture_output=True, check=True)
    assert kills > 1
    for name in ("models/dense/model.safetensors", "indexes/dense/index", "search.yaml", "runs/dev.dense.txt"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
