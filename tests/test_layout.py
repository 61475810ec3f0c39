"""The house: rooms import one way, `import pyserini_kd` and --help are cheap, nothing prints."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pyserini_kd
from pyserini_kd.__main__ import COMMANDS

PACKAGE = Path(pyserini_kd.__file__).parent
ROOMS = [
    "files", "columns", "doc_ids", "cli", "data", "snippet", "pydocs", "runs", "lucene", "lucene_vectors", "sources", "losses",
    "models.tokens", "models.stack", "models.bert_dot", "models.cross_encoder", "models.colbert", "models.prettr", "models.tk", "models.glove", "models.published", "models.cpu_training", "models.bert", "models.onnx", "models.checkpoints", "models", "layer_losses",
    "inference", "blocks", "streamed", "quantisers", "kinds", "vectors", "passages", "token_index", "mine", "triples", "pairs", "score_files", "dense_index", "index", "query_cache", "retrieve", "rerank", "fuse", "tables", "measures", "significance", "caveats", "latency", "evaluate", "export", "tune", "check", "teach", "recipes", "batches", "learner", "validation", "stages", "student", "material", "train", "figures", "report", "embedded", "demo", "search", "service", "serve", "api",
    "doctor", "reproduce", "__main__", "__init__",
]  # fmt: skip


def modules():
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}


def imported(path):
    """Names of our own modules that a file imports, inside functions too, TYPE_CHECKING excepted; and foreign packages."""
    tree = ast.parse(path.read_text())
    hints = {id(n) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
             for n in ast.walk(node)}  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_is_a_room():
    names = {name.removesuffix(".__init__") for name in modules()}
    assert names == set(ROOMS)


def test_rooms_import_only_from_rooms_above():
    known = set(ROOMS)
    for name, path in modules().items():
        room = name.removesuffix(".__init__")
        for target in imported(path):
            target = target.removeprefix("pyserini_kd.")
            if target in known and target != room:
                assert ROOMS.index(target) < ROOMS.index(room), f"{room} imports {target}, which lies below it"


@pytest.mark.parametrize(
    ("foreign", "rooms"), [("pyserini", {"lucene"}), ("jnius", {"lucene", "lucene_vectors"}), ("trectools", {"runs", "fuse", "evaluate"})]
)
def test_foreign_packages_stay_in_their_rooms(foreign, rooms):
    users = {name for name, path in modules().items() if any(t.split(".")[0] == foreign for t in imported(path))}
    assert users <= rooms


def test_import_costs_nothing():
    code = "import sys, time; t = time.process_time(); import pyserini_kd; d = time.process_time() - t\n"
    code += "assert not {'torch', 'numpy', 'click', 'transformers'} & set(sys.modules), sorted(sys.modules); assert d < .05, d"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_light_and_has_an_example(name):
    code = f"""
import sys
from click.testing import CliRunner
from pyserini_kd.__main__ import main
result = CliRunner().invoke(main, [{name!r}, "--help"])
assert result.exit_code == 0, result.output
assert "Example:" in result.output, result.output
heavy = {{"torch", "transformers", "jnius", "trectools", "pandas", "faiss", "scipy", "pyarrow", "fastapi", "uvicorn"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lazy_names_resolve():
    for name in pyserini_kd.__all__:
        assert getattr(pyserini_kd, name) is not None
    with pytest.raises(AttributeError):
        _ = pyserini_kd.nothing
