"""Exit codes of commands: one line and code 2 for user errors, a traceback only for bugs."""

import os
import subprocess
import sys

import click
import pytest

from pyserini_kd.cli import Runs, command
from pyserini_kd.storage.errors import InputError


class ForeignError(Exception):
    """Like an error of safetensors or Lucene: not an OSError, but with the message of the system."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("docs.jsonl:3: no id"), "Error: docs.jsonl:3: no id\n"),
        (OSError(28, "No space left on device", "runs/a.txt"), "Error: runs/a.txt: No space left on device\n"),
        (
            ForeignError("while writing: No space left on device (os error 28)\nat Foo.java:7"),
            "Error: the disk is full: while writing: No space left on device (os error 28)\n",
        ),
        (ForeignError("Disk quota exceeded"), "Error: the disk is full: Disk quota exceeded\n"),
    ],
    ids=["input", "disk full", "disk full, by another name", "quota"],
)
def test_user_errors_are_one_line(invoke, error, line):
    @command("demo", "demo")
    def fails():
        raise error

    result = invoke(fails)
    assert result.exit_code == 2 and result.output == line


def test_bugs_are_not_hidden(invoke):
    @command("demo", "demo")
    def fails():
        raise ForeignError("a bug")

    result = invoke(fails)
    assert result.exit_code == 1 and isinstance(result.exception, ForeignError)


def test_an_option_with_many_values_takes_all_words_up_to_the_next_flag(invoke):
    @command("demo", "demo")
    @click.option("--runs", cls=Runs, multiple=True)
    @click.option("--k", type=int)
    def show(runs, k):
        click.echo(f"{runs} {k}")

    assert invoke(show, "--runs", "a", "b", "--k", 3, "--runs", "c").output == "('a', 'b', 'c') 3\n"


@pytest.mark.parametrize(
    ("given", "found"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_openmp_threads_of_commands_sleep_soon_unless_the_user_said_otherwise(given, found):
    code = "import os, pyserini_kd, pyserini_kd.models; before = dict(os.environ); import pyserini_kd.search; "
    code += "print(before.get('GOMP_SPINCOUNT'), os.environ.get('GOMP_SPINCOUNT'))"
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=plain | given, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(given.get("GOMP_SPINCOUNT")), str(found)]
