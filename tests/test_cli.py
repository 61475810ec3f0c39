"""How commands end: one line and exit code 2 for what the user can mend, a traceback only for our own faults."""

import click
import pytest

from pyserini_kd.cli import Runs, command
from pyserini_kd.storage.errors import InputError


class ForeignError(Exception):
    """As safetensors and Lucene raise: no OSError, the system's words inside."""


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
def test_what_the_user_can_mend_is_one_line(invoke, error, line):
    @command("demo", "demo")
    def fails():
        raise error

    result = invoke(fails)
    assert result.exit_code == 2 and result.output == line


def test_our_own_faults_are_not_hidden(invoke):
    @command("demo", "demo")
    def fails():
        raise ForeignError("a bug")

    result = invoke(fails)
    assert result.exit_code == 1 and isinstance(result.exception, ForeignError)


def test_an_option_of_many_values_swallows_the_words_up_to_the_next_flag(invoke):
    @command("demo", "demo")
    @click.option("--runs", cls=Runs, multiple=True)
    @click.option("--k", type=int)
    def show(runs, k):
        click.echo(f"{runs} {k}")

    assert invoke(show, "--runs", "a", "b", "--k", 3, "--runs", "c").output == "('a', 'b', 'c') 3\n"
