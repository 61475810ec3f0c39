"""search against wrong input, Ctrl-C, full disks and misleading names."""

from pyserini_kd import search
from pyserini_kd.retrieval import system
from tests.retrieval.test_search import dense


def test_wrong_input_is_one_line_and_exit_code_2(invoke, dense, files, tmp_path, dense_index, tiny_cross, bm25_index):
    def refused(*words, word):
        result = invoke(search.main, *words)
        assert result.exit_code == 2, result.output
        assert word in result.output and "Traceback" not in result.output, result.output
        assert not (tmp_path / "run.txt").exists()

    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "odd.txt").write_text("no tabs here\n")
    (tmp_path / "twice.tsv").write_text("1\ta\n1\tb\n")
    (tmp_path / "other.txt").write_text("nobody 0 eat-cat 1\n")
    (tmp_path / "bad.txt").write_text("q0 0 eat-cat\tone\n")
    refused(*dense, "--topics", tmp_path / "none.tsv", word="topics not found")
    refused(*dense, "--topics", tmp_path / "empty.tsv", word="is empty")
    refused(*dense, "--topics", tmp_path / "odd.txt", word="odd.txt:1: unknown topics format")
    refused(*dense, "--topics", tmp_path / "twice.tsv", word="duplicate query id '1'")
    refused(*dense, "--qrels", tmp_path / "other.txt", word="share no query")
    refused(*dense, "--qrels", tmp_path / "bad.txt", word="bad.txt:1: relevance must be a whole number")
    refused(*dense, "--encoder", "unheard-of", word="'unheard-of' not found; tried:")
    refused(*dense, "--encoder", tiny_cross, word="bert_dot")
    refused(*dense, "--encoder", "minilm", word="does not match index")
    refused(*dense, "--pooling", "cls", word="pooling is cls, the index was made with mean")
    refused(*dense, "--index", tmp_path / "nowhere", word=f"Error: index not found: {tmp_path / 'nowhere'}")
    refused(*dense, "--index", tmp_path, word="incomplete")
    refused(*dense, "--sparse-index", dense_index, word="not a Lucene index")
    refused(*dense, "--fusion", "rrf", word="--sparse-index")
    refused(*dense, "--ef-search", 10, word="HNSW")
    refused(*dense, "--impact", word="pyserini.search.lucene")
    refused(*dense, "--rm3-py", word="pyserini.search.lucene --rm3-py")
    refused(*dense, "--rocchio-py", word="pyserini.search.lucene --rocchio-py")
    refused(*dense, "--prf-depth", 3, word="pyserini.search.faiss")
    refused(*dense, "--query", "x", word="not both")
    refused(*dense, "--hits", 0, word="--hits")
    refused("--index", dense_index, word="--topics")
    sparse = ("--encoder", "bm25", "--index", dense_index, "--query", "x")
    refused(*sparse, "--max-length", 9, word="is for a dense --encoder")
    refused(*sparse, "--no-l2-norm", word="is for a dense --encoder")
    refused(*sparse, "--query-prefix", "", word="is for a dense --encoder")
    refused(*sparse, "--device", "cuda", word="is for a dense --encoder or --rerank")
    refused(*dense, "--k1", 0, word="--encoder bm25 or a --sparse-index")
    refused(*dense, "--b", 0, word="--encoder bm25 or a --sparse-index")
    refused(*sparse, "--hits", 1 << 31, word="--hits")
    refused("--topics", files["topics"], word="--index")
    (tmp_path / "run.txt").write_text("mine\n")
    result = invoke(search.main, *dense)
    assert result.exit_code == 2 and "--overwrite" in result.output
    assert (tmp_path / "run.txt").read_text() == "mine\n"


def test_nothing_is_left_after_ctrl_c_or_a_full_disk(invoke, dense, tmp_path, monkeypatch):
    before = set(tmp_path.iterdir())
    monkeypatch.setattr(system, "dense", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert invoke(search.main, *dense).exit_code == 130
    monkeypatch.undo()

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = invoke(search.main, *dense)
    assert result.exit_code == 2 and "No space left on device" in result.output
    assert set(tmp_path.iterdir()) == before


def test_a_file_whose_name_begins_with_pydocs_is_a_file(invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pydocs").mkdir()
    (tmp_path / "pydocs" / "topics.tsv").write_text("q\ttext\n")
    result = invoke(search.main, "--encoder", "minilm", "--topics", "pydocs/topics.tsv")
    assert result.exit_code == 2 and "--index is needed with these --topics" in result.output


def test_other_encoders_are_not_prepared_silently(invoke, tmp_path, monkeypatch):
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path))
    result = invoke(search.main, "--encoder", "minilm")
    assert result.exit_code == 2 and "pyserini-kd index --collection pydocs --encoder minilm" in result.output
