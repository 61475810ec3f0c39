"""The layout: packages import downwards only, `import pyserini_kd` and --help are cheap, foreign packages have one home."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pyserini_kd
from pyserini_kd.__main__ import COMMANDS

PACKAGE = Path(pyserini_kd.__file__).parent
ORDER = ("storage", "data", "models", "retrieval", "evaluation", "distillation", "commands")
"""From the ground up: a package imports from itself and from those before it. Commands are the modules at the top."""


def modules():
    """Dotted name -> file of every module of ours, without the package's own name."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def package_of(module):
    return module.split(".")[0] if module.split(".")[0] in ORDER else "commands"


def imported(path):
    """Dotted names that a file imports, also inside functions, but not for type hints alone."""
    tree = ast.parse(path.read_text())
    hints = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows():
    """(module, module that it imports) for all modules of ours."""
    known = modules()
    return [
        (name, target.removeprefix("pyserini_kd."))
        for name, path in known.items()
        for target in set(imported(path))
        if target.startswith("pyserini_kd.") and target.removeprefix("pyserini_kd.") in known
    ]


def test_packages_import_downwards_only():
    upward = [(a, b) for a, b in arrows() if ORDER.index(package_of(b)) > ORDER.index(package_of(a))]
    assert not upward


def test_no_circles():
    below: dict[str, set[str]] = {name: set() for name in modules()}
    for one, other in arrows():
        below[one].add(other)
    while below:
        ground = {name for name, targets in below.items() if not targets & below.keys() - {name}}
        assert ground, f"these import each other: {sorted(below)}"
        below = {name: targets for name, targets in below.items() if name not in ground}


@pytest.mark.parametrize("package", ["pyserini_kd", *(f"pyserini_kd.{name}" for name in ORDER[1:-1])])
def test_what_a_package_exports(package):
    """Every name exists, no submodule has the name of an exported function, others are no attributes."""
    found = importlib.import_module(package)
    modules_of = {path.stem for path in Path(found.__file__).parent.glob("*.py")}
    for name in found.__all__:
        assert getattr(found, name) is not None
    assert package == "pyserini_kd" or not modules_of & set(found.__all__)
    with pytest.raises(AttributeError):
        _ = found.nothing


def test_modules_and_functions_are_of_a_size_that_can_be_read():
    for path in modules().values():
        text = path.read_text()
        assert len(text.splitlines()) <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                assert not body or body[-1].end_lineno - body[0].lineno < 60, (path, node.name)


@pytest.mark.parametrize(
    ("foreign", "homes"),
    [
        ("pyserini", ("data.pyserini_versions",)),
        ("jnius", ("data", "retrieval")),
        ("trectools", ("data.trectools_adapter",)),
        ("matplotlib", ("evaluation.figures",)),
        ("fastmcp", ("retrieval.mcp_tools",)),
        ("pyterrier", ("pyterrier",)),
    ],
)
def test_foreign_packages_have_one_home(foreign, homes):
    users = {name for name, path in modules().items() if any(target.split(".")[0] == foreign for target in imported(path))}
    assert users and all(name.startswith(homes) for name in users)


POSIX = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios"}


def test_no_module_needs_a_module_that_only_posix_systems_have():
    """This includes imports inside functions. The next test imports every module without them."""
    assert not [name for name, path in modules().items() if POSIX & set(imported(path))]


def test_every_module_imports_where_posix_modules_are_missing():
    """`os.pread` is removed too, because Windows lacks it. Only our own imports are blocked: libraries choose theirs by system."""
    code = f"""
import builtins, importlib, os
original = builtins.__import__
def refusing(name, *scope, **options):
    if name.split(".")[0] in {POSIX!r} and scope and scope[0].get("__name__", "").startswith("pyserini_kd"):
        raise ModuleNotFoundError(name)
    return original(name, *scope, **options)
builtins.__import__ = refusing
del os.pread
for name in {[name.removesuffix(".__init__") for name in modules()]!r}:
    if name != "__init__":
        importlib.import_module(f"pyserini_kd.{{name}}")
from pyserini_kd.storage.files import read_at
with open({str(Path(__file__))!r}, "rb") as file:
    print(read_at(file.fileno(), 10, 3), read_at(file.fileno(), 3, 0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "b'The layout' b'\"\"\"'\n", done.stderr


def test_only_one_module_starts_java():
    assert [name for name, path in modules().items() if "import jnius_config" in path.read_text()] == ["data.java"]


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
