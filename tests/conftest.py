"""Shared fixtures: a corpus a reader can rank by eye, a tiny random BERT, and the real collections where they exist."""

import atexit
import contextlib
import copy
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

if "PYSERINI_KD_CACHE" not in os.environ:  # processes of one test run share what OpenVINO's files cost
    os.environ["PYSERINI_KD_CACHE"] = _made = tempfile.mkdtemp(prefix="pyserini-kd-tests-")
    atexit.register(shutil.rmtree, _made, ignore_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a hub; the code that would is tested to say so clearly

import hypothesis
import pytest

from pyserini_kd.data.types import Doc, Query

EMPTY_LISTS = """
import io, json, urllib.request
from urllib.request import urlopen
record = dict.fromkeys(("description", "filename", "urls", "md5", "size"))
records = [{"name": name, **record} for name in ("msmarco-v1-passage.unicoil", "msmarco-v2-passage.unicoil-0shot")]
def listed(url, *more, **options):
    if "prebuilt-indexes" not in str(url):
        return urlopen(url, *more, **options)
    return io.BytesIO(json.dumps(records if "/lucene/" in url else {}).encode())
urllib.request.urlopen = listed
"""
"""Pyserini 2.4 downloads its lists of prebuilt indexes at import. This code replaces them by the entries that the import needs."""
exec(EMPTY_LISTS, {})

hypothesis.settings.register_profile("same", derandomize=True)  # the same examples in every run
hypothesis.settings.load_profile("same")

ANIMALS = ["cat", "dog", "horse", "cow", "sheep", "goat", "duck", "goose", "hen", "pig"]


def as_ranker(model, folder=None, **how):
    """A torch model as a ranker that computes in the given way; a ranker as it is."""
    from pyserini_kd.models.rankers import Scorer, load, ranker

    if isinstance(model, Scorer):
        if batch_size := how.pop("batch_size", None):
            model.batch_size = batch_size
        if how.get("precision", model.precision) == model.precision:
            model = copy.copy(model)
            model.folder = Path(folder) if folder else model.folder
            return model
        return load(str(folder or model.folder), architecture=model.architecture, **how)
    return ranker(model, folder and Path(folder), **how)


def encode(model, texts, kind, *, cut=None, label="", **how):
    """Vectors of queries or documents by a bi-encoder; their representations by ColBERT, PreTTR or TK."""
    encoder = as_ranker(model, **how)
    return encoder.encode_queries(texts, cut=cut) if kind == "query" else encoder.encode_docs(texts, cut=cut)


represent = encode


def score(model, queries, docs, *, work=None, **how):
    """Scores of (query, document) pairs by a model of any architecture."""
    return as_ranker(model, **how).score(queries, docs, work=work)


def precision_of(model, precision="auto"):
    """What a model computes in."""
    return as_ranker(model, precision=precision).precision


def search_by_name(queries, index, encoder, *, hits=1000):
    """Search an index folder by the encoder of a checkpoint, or by BM25; queries may be the name of topics."""
    from pyserini_kd.data import sources
    from pyserini_kd.retrieval import bm25_search, searching
    from pyserini_kd.retrieval.open_index import open_with_encoder

    queries = sources.topics(queries) if isinstance(queries, str) else queries
    if encoder == "bm25":
        return bm25_search.search(index, queries, hits=hits)
    return searching.dense(*open_with_encoder(index, encoder), queries, hits=hits)


def rerank_by_name(run, queries, index, encoder, *, depth):
    """Rescore the top of a run with a checkpoint, by what an index folder has for it."""
    from pyserini_kd.retrieval import reranking

    scorer, source = reranking.open_source(encoder, [index])
    return reranking.rerank(run, scorer, queries, source, depth=depth)


@pytest.fixture(autouse=True)
def threads_as_before():
    """Sums by one thread round otherwise than sums by two: what a test (or Pyserini) sets does not outlast it."""
    places = {"faiss": ("omp_get_max_threads", "omp_set_num_threads"), "torch": ("get_num_threads", "set_num_threads")}
    before = {name: getattr(sys.modules[name], get)() for name, (get, _) in places.items() if name in sys.modules}
    yield
    for name, count in before.items():
        getattr(sys.modules[name], places[name][1])(count)
    if "pyserini_kd.models.hardware" in sys.modules:
        sys.modules["pyserini_kd.models.hardware"]._chosen.clear()


@pytest.fixture(autouse=True)
def no_openvino_files_after_training(request, monkeypatch):
    """Trained checkpoints get no OpenVINO files (a second each), except in tests marked `openvino_files`."""
    from pyserini_kd.models import saving

    if "openvino_files" not in request.keywords:
        monkeypatch.setattr(saving, "_write_openvino", lambda model, folder: None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real collections (../shared/data) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def corpus() -> list[Doc]:
    """Twenty documents: what each animal eats, and where it sleeps."""
    eats = [Doc(f"eat-{name}", name.title(), f"the {name} eats hay and drinks water") for name in ANIMALS]
    sleeps = [Doc(f"sleep-{name}", "", f"at night the {name} sleeps in the barn") for name in ANIMALS]
    return eats + sleeps


@pytest.fixture(scope="session")
def queries() -> list[Query]:
    return [Query(f"q{n}", f"what the {name} eats") for n, name in enumerate(ANIMALS)]


@pytest.fixture(scope="session")
def qrels() -> dict:
    return {f"q{n}": {f"eat-{name}": 1} for n, name in enumerate(ANIMALS)}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, corpus, queries):
    from transformers import BertTokenizer

    words = sorted({w for doc in corpus for w in doc.contents.lower().split()} | {w for q in queries for w in q.text.split()})
    folder = tmp_path_factory.mktemp("vocab")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    return BertTokenizer(vocab={w: i for i, w in enumerate(vocab)}, do_lower_case=True)


def tiny_config(tokenizer, layers=2):
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )


@pytest.fixture(scope="session")
def tiny_dot(tmp_path_factory, tokenizer) -> Path:
    """A saved BERT_DOT: 2 layers, random, mean pooling, not normalised."""
    import torch
    from transformers import BertModel

    from pyserini_kd.models import saving
    from pyserini_kd.models.bert_dot import BertDot, EncoderSettings

    torch.manual_seed(0)
    model = BertDot(
        BertModel(tiny_config(tokenizer), add_pooling_layer=False), tokenizer, EncoderSettings("mean", False, 16, 24)
    )
    return saving.save(model, tmp_path_factory.mktemp("models") / "tiny-dot")


@pytest.fixture(scope="session")
def tiny_cross(tmp_path_factory, tokenizer) -> Path:
    """A saved cross-encoder: 2 layers, random, one logit."""
    import torch
    from transformers import BertForSequenceClassification

    from pyserini_kd.models import saving
    from pyserini_kd.models.cross_encoder import CrossEncoder

    torch.manual_seed(1)
    config = tiny_config(tokenizer)
    config.num_labels = 1
    model = CrossEncoder(BertForSequenceClassification(config).eval(), tokenizer, 48)
    return saving.save(model, tmp_path_factory.mktemp("models") / "tiny-cross")


@pytest.fixture(scope="session")
def dense_index(tmp_path_factory, tiny_dot, corpus) -> Path:
    from pyserini_kd.models.rankers import load_encoder
    from pyserini_kd.retrieval import dense_build

    folder = tmp_path_factory.mktemp("indexes") / "corpus.tiny"
    dense_build.index_dense(corpus, load_encoder(str(tiny_dot), precision="fp32"), folder)
    return folder


@pytest.fixture(scope="session")
def bm25_index(tmp_path_factory, corpus) -> Path:
    from pyserini_kd.retrieval import bm25_build

    folder = tmp_path_factory.mktemp("indexes") / "corpus.bm25"
    bm25_build.index_bm25(corpus, folder)
    return folder


@pytest.fixture
def files(tmp_path, corpus, queries, qrels) -> dict[str, str]:
    """The corpus, topics and qrels as files."""
    from pyserini_kd.data import formats

    formats.write_collection(corpus, tmp_path / "docs.jsonl")
    formats.write_topics(queries, tmp_path / "topics.tsv")
    formats.write_qrels(qrels, tmp_path / "qrels.txt")
    return {name: str(tmp_path / f) for name, f in {"docs": "docs.jsonl", "topics": "topics.tsv", "qrels": "qrels.txt"}.items()}


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl-C in the third call of a `module.NAME(model, texts, ...)`: gives the numbers of texts of its calls."""

    def interrupt(module, name):
        calls, function = [], getattr(module, name)

        def dying(model, texts, *args, **kwargs):
            calls.append(len(texts))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return function(model, texts, *args, **kwargs)

        monkeypatch.setattr(module, name, dying)
        return calls

    return interrupt


@pytest.fixture
def invoke():
    """Run a command in this process: invoke(command, 'words and flags') -> result with exit_code and output."""
    from click.testing import CliRunner

    def run(command, *words):
        return CliRunner().invoke(command, [str(word) for word in words])

    return run


# ---------------------------------------------------------------------------------------------------- training


def training_data(files):
    """The options that name the collection and the topics of `files`."""
    return ["--collection", files["docs"], "--topics", files["topics"]]


@pytest.fixture
def interrupted_at(monkeypatch):
    """In `with interrupted_at(5): train(...)`, training must end with a KeyboardInterrupt in the step after 5."""
    import transformers

    step = transformers.Trainer.training_step

    @contextlib.contextmanager
    def interrupted(after):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == after:
                raise KeyboardInterrupt
            return step(self, *args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(transformers.Trainer, "training_step", training_step)
            yield

    return interrupted


@pytest.fixture(scope="session")
def data(queries, qrels, corpus):
    """Groups of a positive and four others for every query, and the texts of queries and documents."""
    from pyserini_kd.distillation import mining, text_store

    groups = mining.mine(queries, qrels, [], corpus, negatives=0, shared=5).groups
    return groups, *text_store.load_texts(groups, queries, corpus)


@pytest.fixture(scope="session")
def liked(data):
    """What a teacher that likes the relevant document says: 10, others 0 to 4."""
    return [(g.query_id, d, 10.0 if label else float(len(d) % 5))
            for g in data[0] for d, label in zip(g.doc_ids, g.labels, strict=True)]  # fmt: skip


@pytest.fixture(scope="session")
def scores(data, liked):
    """The same as what `train` takes."""
    from pyserini_kd.distillation.teacher_scores import Scores

    return Scores(data[0]).fill(liked)


@pytest.fixture
def dev(corpus, qrels, queries):
    """Dev topics: the corpus for every query, best at the end."""
    from pyserini_kd.data.runs import Run
    from pyserini_kd.distillation.validation import Dev

    first = Run.from_scores("first", {q.query_id: {d.doc_id: float(n) for n, d in enumerate(corpus)} for q in queries})
    return Dev(list(queries), qrels, first, {doc.doc_id: doc for doc in corpus})


@pytest.fixture(scope="session")
def teacher(tmp_path_factory, tokenizer):
    """A random cross-encoder of 4 layers, wider than the student."""
    return str(save_cross(tokenizer, tmp_path_factory.mktemp("teachers") / "ranker"))


@pytest.fixture(scope="session")
def lm(tmp_path_factory, tokenizer):
    """A random language model of 4 layers."""
    import torch
    from transformers import BertModel

    torch.manual_seed(6)
    folder = tmp_path_factory.mktemp("teachers") / "lm"
    BertModel(tiny_config(tokenizer, 4)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def whole_tinybert(tmp_path_factory, data, tiny_cross, teacher):
    """What the two stages of TinyBERT's recipe leave when nothing interrupts them."""
    from pyserini_kd.distillation import training

    return training.train(
        cross("tinybert", tiny_cross, teacher=teacher, save_steps=2), *data, tmp_path_factory.mktemp("whole") / "out"
    )


def save_cross(tokenizer, folder, *, layers=4, width=48, heads=4, dropout=0.0, seed=5):
    """A random cross-encoder in a folder."""
    import torch
    from transformers import BertForSequenceClassification

    from pyserini_kd.models import saving
    from pyserini_kd.models.cross_encoder import CrossEncoder

    torch.manual_seed(seed)
    config = tiny_config(tokenizer, layers)
    config.hidden_size, config.num_attention_heads, config.num_labels = width, heads, 1
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    return saving.save(CrossEncoder(BertForSequenceClassification(config).eval(), tokenizer, 48), folder)


def cross(recipe, init, **settings):
    """How a cross-encoder is trained: four quick steps, unless told otherwise."""
    from pyserini_kd.distillation.config import TrainConfig

    settings = {"max_steps": 4, "batch_size": 5, "lr": 1e-3, "precision": "fp32", **settings}
    return TrainConfig(recipe=recipe, init=str(init), architecture="cross_encoder", **settings)


def stages_of(folder):
    """The records of the stages of a training."""
    return json.loads((folder / "training.json").read_text())["stages"]
