"""Settings as words of a command line."""

import pytest
from click.testing import CliRunner

from pyserini_kd.distillation.mining import MineConfig
from pyserini_kd.distillation.train_settings import TrainSettings
from pyserini_kd.mine import main as mine
from pyserini_kd.retrieval.indexing import IndexSettings
from pyserini_kd.retrieval.search_settings import SearchSettings
from pyserini_kd.storage.settings import Settings


def test_only_given_values_become_words():
    settings = IndexSettings(collection="docs.jsonl", encoder="bm25", index="indexes/bm25", overwrite=True, store_docs=False)
    words = settings.words()
    assert words == "--collection docs.jsonl --encoder bm25 --index indexes/bm25 --no-store-docs --overwrite".split()
    assert "--store-docs" in IndexSettings(collection="d", encoder="bm25", index="i", store_docs=True).words()


def test_lists_numbers_and_switches():
    settings = MineConfig(collection="c", topics="t", runs=("a.txt", "b.txt"), negatives=1, output="o.jsonl")
    assert settings.words() == "--collection c --topics t --runs a.txt b.txt --negatives 1 --output o.jsonl".split()
    training = TrainSettings(
        recipe="vectors", init="minilm", layers="0,3,5", lr=0.00002, collection="c", output="o", teacher="minilm"
    )
    words = training.words()
    assert words[words.index("--layers") + 1] == "0,3,5" and words[words.index("--lr") + 1] == "2e-05"
    several = SearchSettings(index=("a", "b"), topics="t", l2_norm=False)
    assert several.words() == "--index a --index b --no-l2-norm --topics t".split()


@pytest.mark.parametrize("settings", [
    MineConfig(collection="c d", topics="t", runs=("a.txt", "b.txt"), depth=30, shared=32, output="o.jsonl", seed=1),
    MineConfig(collection="c", topics="t", index="i", output="o.jsonl", overwrite=True),
])  # fmt: skip
def test_a_command_reads_the_same_settings_from_the_words(settings: Settings, monkeypatch):
    found = []
    monkeypatch.setattr("pyserini_kd.mine.refuse_existing", lambda *_: None)
    monkeypatch.setattr("pyserini_kd.mine.mine_files", lambda read: found.append(read) or (_ for _ in ()).throw(SystemExit(0)))
    CliRunner().invoke(mine, settings.words())
    assert found == [settings]
