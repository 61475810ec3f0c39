"""Triples against ids that are missing and runs that are cut."""

import pytest

from pyserini_kd import train
from pyserini_kd.distillation import text_store
from pyserini_kd.storage.errors import InputError
from tests.distillation.test_triples import built


def test_missing_ids_are_counted_and_left_out(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(text_store, "BLOCK", 2)
    good = (1, 0, "8", "NA", "0010")
    lines = [good, (1, 0, "9", "NA", "0010"), (1, 0, "8", "x", "NA"), (1, 0, "8", "NA", "y"), (1, 0, "9", "z", "z"), good]
    found = built(tmp_path, lines)
    assert [g.query_id for g in found] == ["8", "8"] and [g.block for g in found] == [0, 1]
    (record,) = caplog.records
    assert record.message.endswith("s.tsv: 4 of 6 triples are left out: 2 with a query that is not among the topics, e.g. 9; "
                                   "2 with a document that is not in the collection, e.g. x")  # fmt: skip
    with pytest.raises(
        InputError, match="none of its 1 triples has all its texts: 1 with a query that is not among the topics, e.g. 9"
    ):
        text_store.Triples.build(tmp_path / "none", bad_file(tmp_path), found.queries, found.docs)


def bad_file(tmp_path):
    (tmp_path / "bad.tsv").write_text("1\t0\t9\tNA\tNA\n")
    return tmp_path / "bad.tsv"


def test_an_interrupted_run_leaves_its_data_to_the_next(tmp_path, files, invoke, tiny_dot, monkeypatch):
    import transformers

    (tmp_path / "s.tsv").write_text("".join(f"{n}\t-{n}\tq{n}\teat-cat\tsleep-cow\n" for n in range(8)))
    (tmp_path / "c.tsv").write_text("".join(f"q{n}\teat-cat\tsleep-cow\n" for n in range(8)))
    words = ["--recipe", "margin-mse", "--collection", files["docs"], "--topics", files["topics"], "--init", tiny_dot]
    words += ["--scores", tmp_path / "s.tsv", "--max-steps", 4, "--save-steps", 2, "--batch-size", 2, "--precision", "fp32"]
    words += ["--candidates", tmp_path / "c.tsv"]
    step, built = transformers.Trainer.training_step, []
    build = text_store.Texts.build.__func__
    monkeypatch.setattr(text_store.Texts, "build", classmethod(lambda cls, *a: built.append(a[0].name) or build(cls, *a)))

    def cut(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(transformers.Trainer, "training_step", cut)
    result = invoke(train.main, *words, "--output", tmp_path / "m")
    assert result.exit_code == 130 and "Interrupted; no file or folder was left half-written" in result.output
    assert sorted(path.name for path in tmp_path.glob("m*")) == ["m.data.partial", "m.partial"]
    assert sorted(built) == ["docs", "queries"]
    monkeypatch.setattr(transformers.Trainer, "training_step", step)
    built.clear()
    result = invoke(train.main, *words, "--output", tmp_path / "m", "--lr", 0.5)
    assert result.exit_code == 2 and "holds 1 finished parts made with lr" in result.output
    assert sorted(path.name for path in tmp_path.glob("m*")) == ["m.data.partial", "m.partial"]
    result = invoke(train.main, *words, "--output", tmp_path / "m")
    assert result.exit_code == 0 and built == [], result.output
    assert sorted(path.name for path in tmp_path.glob("m*")) == ["m"]
