"""How commands behave: errors become one line and an exit code, help carries an example, logs go to stderr."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from pyserini_kd.files import InputError, record_path

DISK_FULL = ("No space left on device", "Disk quota exceeded")


class UserError(click.ClickException):
    """One clear line on stderr, exit code 2, no traceback."""

    exit_code = 2


def typed(parameter: str) -> bool:
    """Whether the user gave a parameter of the running command, and has not just its default."""
    return click.get_current_context().get_parameter_source(parameter) is not click.core.ParameterSource.DEFAULT


def command(name: str, example: str, epilog: str = "", **settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command whose help ends with an example and which turns InputError and OSError into UserError."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
            quiet_libraries()
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):  # an old locale: what it has no letter for is shown as \\u2026
                    stream.reconfigure(errors="backslashreplace")
            try:
                _refuse_inputs_as_outputs(kwargs)
                return function(*args, **kwargs)
            except InputError as error:
                raise UserError(str(error)) from error
            except BrokenPipeError:  # `pyserini-kd ... | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(141)
            except OSError as error:
                raise UserError(f"{error.filename or 'input/output'}: {error.strerror or error}") from error
            except Exception as error:  # safetensors, Lucene and FAISS wrap what the system said in types of their own
                if not any(words in str(error) for words in DISK_FULL):
                    raise
                raise UserError(f"the disk is full: {str(error).splitlines()[0]}") from error
            except KeyboardInterrupt:
                more = "Training, teaching and dense indexing go on from there when the same command is started again."
                click.echo(f"Interrupted; no file or folder was left half-written under its final name. {more}", err=True)
                sys.exit(130)

        text = "\b\n" + f"Example: {example}" + (f"\n\n{epilog}" if epilog else "")
        context = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 120}
        return click.command(name=name, cls=Command, epilog=text, context_settings=context, **settings)(run)

    return decorate


class Command(click.Command):
    """A command that refuses blank words, as a shell makes them of variables that are not set, and bytes that are no text."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Look at the words first; a prefix of texts may be blank."""
        for before, word in zip(["", *args], args, strict=False):
            flag, equals, value = word.partition("=")
            if not _is_text(word):
                raise UserError(f"{word!a} is not valid UTF-8; neither libraries nor run files take such names and texts")
            if not word and not before.endswith("-prefix"):
                raise UserError(f"{before if before.startswith('--') else 'an argument'} is empty; is a variable not set?")
            if word.startswith("--") and equals and not value and not flag.endswith("-prefix"):
                raise UserError(f"{flag} is empty; is a variable not set?")
        return super().parse_args(ctx, args)


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


OUTPUTS = ("output", "triples", "fixed", "folder", "per_query")
"""Parameters of commands that name what is written."""
SOURCES = ("reuse",)
"""Parameters that may name what is written as well: they are read first, and what they hold is kept."""


def _refuse_inputs_as_outputs(given: Mapping[str, Any]) -> None:
    """InputError where what is to be written, or its record, is an input too, or holds one: that would be gone."""
    flags = {parameter.name: parameter.opts[0] for parameter in click.get_current_context().command.params}
    values = [(name, word) for name, value in given.items() for word in (value if isinstance(value, tuple) else [value])]
    paths = [(name, Path(word)) for name, word in values if isinstance(word, str | Path) and word and name not in SOURCES]
    for name, output in ((name, path) for name, path in paths if name in OUTPUTS):
        for other, path in paths:
            with contextlib.suppress(OSError):  # not there; no path at all
                if how := other != name and _replaces(output, path):
                    raise InputError(f"{flags[name]} {output} {how} ({flags[other]}); give it another name")


def _replaces(output: Path, path: Path) -> str:
    """How something that is there would go where an output is written, in words, or nothing."""
    if output.exists() and output.samefile(path):
        return "is an input too"
    if output.is_dir() and output.resolve() in path.resolve(strict=True).parents:
        return f"holds an input, {path}"
    if not output.is_dir() and (record := record_path(output)).exists() and record.samefile(path):
        return f"has its record beside it, {record}, which is an input"
    return ""


def quiet_libraries() -> None:
    """Keep libraries from talking over our own messages: no advice, no bars but ours."""
    for name in ("transformers", "sentence_transformers", "httpx", "huggingface_hub", "faiss", "faiss.loader", "fontTools"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


class Runs(click.Option):
    """An option that takes any number of values after one flag (`--runs A B C`), as Pyserini's argparse does."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Let the parser swallow the words that follow until the next flag."""
        super().add_to_parser(parser, ctx)
        for flag in self.opts:
            option = parser._long_opt.get(flag)
            if option is None:
                continue
            process = option.process

            def swallow(value: str, state: Any, process: Callable[..., None] = process) -> None:
                process(value, state)
                while state.rargs and not state.rargs[0].startswith("-"):
                    process(state.rargs.pop(0), state)

            option.process = swallow
