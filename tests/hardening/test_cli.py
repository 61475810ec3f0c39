"""The command line with empty and undecodable words, outputs that are inputs, old locales and Ctrl-C."""

import os
import subprocess
import sys
from pathlib import Path

import click

from pyserini_kd.cli import command


def test_ctrl_c_gives_exit_code_130(invoke):
    @command("demo", "demo")
    def stopped():
        raise KeyboardInterrupt

    assert invoke(stopped).exit_code == 130


def test_empty_words_of_unset_variables_are_refused(invoke):
    @command("demo", "demo")
    @click.argument("runs", nargs=-1)
    @click.option("--collection")
    @click.option("--query-prefix")
    def shown(**given):
        click.echo(given)

    for words, said in (
        (["--collection", ""], "--collection is empty"),
        (["--collection="], "--collection is empty"),
        (["a", ""], "an argument is empty"),
    ):
        result = invoke(shown, *words)
        assert result.exit_code == 2 and result.output == f"Error: {said}; is a shell variable unset?\n"
    assert invoke(shown, "--query-prefix", "").exit_code == invoke(shown, "--query-prefix=").exit_code == 0


def test_an_input_is_never_overwritten(invoke, tmp_path):
    @command("demo", "demo")
    @click.argument("runs", nargs=-1)
    @click.option("--topics")
    @click.option("--reuse", type=click.Path(path_type=Path))
    @click.option("--output", type=click.Path(path_type=Path))
    def written(**given):
        click.echo("done")

    file, link = tmp_path / "a", tmp_path / "b"
    file.touch()
    link.symlink_to(file)
    for words in (["--topics", link], [file], ["x", file]):
        result = invoke(written, *words, "--output", file)
        assert result.exit_code == 2 and f"Error: --output {file} is an input too (" in result.output
    (tmp_path / "run.json").write_text("[]")
    (tmp_path / "run.txt").touch()
    result = invoke(written, "--topics", tmp_path / "run.json", "--output", tmp_path / "run.txt")
    assert result.exit_code == 2 and "run.json, which is an input (--topics)" in result.output
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "docs").touch()
    result = invoke(written, "x", tmp_path / "data" / "deep" / "docs", "--output", tmp_path / "data")
    assert result.exit_code == 2 and "data holds an input, " in result.output
    assert invoke(written, tmp_path / "data", "--output", tmp_path / "data" / "deep" / "run.txt").output == "done\n"
    assert invoke(written, "--reuse", file, "--output", file).output == "done\n"
    assert invoke(written, "--topics", tmp_path / "c", "--output", tmp_path / "c").output == "done\n"  # neither exists


def test_bytes_that_are_not_utf8_are_refused(invoke):
    @command("demo", "demo")
    @click.option("--query")
    def shown(query):
        click.echo(query)

    for words in (["--query", "caf\udce9"], ["--query=caf\udce9"], ["caf\udce9"]):
        result = invoke(shown, *words)
        assert result.exit_code == 2 and "caf\\udce9' is not valid UTF-8" in result.output
    assert invoke(shown, "--query", "café 😀").output == "café 😀\n"


def test_an_old_locale_is_no_error():
    code = "import click; from pyserini_kd.cli import command; command('demo', 'demo')(lambda: click.echo('Größe …'))()"
    env = {**os.environ, "PYTHONIOENCODING": "iso-8859-1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert done.stdout == "Größe \\u2026\n".encode("iso-8859-1")


def test_ctrl_c_during_an_import_gives_exit_code_130(invoke, monkeypatch):
    from pyserini_kd import __main__

    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__.importlib, "import_module", interrupted)
    assert invoke(__main__.main, "search", "--help").exit_code == 130
