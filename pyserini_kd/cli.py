"""Common behaviour of commands: one-line errors with exit codes, help with an example, logs on stderr."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import record_path
from pyserini_kd.storage.settings import Bounds, Option, Settings

DISK_FULL = ("No space left on device", "Disk quota exceeded")


SPIN = "10000"
"""How often an OpenMP thread looks for work before it sleeps (GOMP_SPINCOUNT).

By default, threads spin for milliseconds. Beside another program they then wait for each other, on a processor that both need.
OpenMP reads the value when torch or FAISS is imported, so it is set here, which every command imports first. A value of the
user stays.
"""
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = SPIN


class UserError(click.ClickException):
    """An error shown as one line on stderr, with exit code 2 and no traceback."""

    exit_code = 2


def typed(parameter: str) -> bool:
    """Whether the user gave this parameter of the running command; False if it has its default."""
    source = click.get_current_context().get_parameter_source(parameter)
    return source not in (None, click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP)


def command(
    name: str, example: str, epilog: str = "", *, settings: type[Settings] | None = None
) -> Callable[[Callable[..., object]], click.Command]:
    """Decorator for a click command whose help ends with an example. InputError and OSError become UserError.

    With `settings`, the options are the fields of that model and the function gets the model. The model gets only the options
    that the user typed, so that `Settings.given` works.
    """

    def decorate(function: Callable[..., object]) -> click.Command:
        text = f"\b\nExample: {example}" + (f"\n\n{epilog}" if epilog else "")
        context = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 120}
        made = click.command(name=name, cls=Command, epilog=text, context_settings=context)(function)
        if settings is not None:
            made.settings, made.params = settings, [*_parameters(settings), *made.params]
        return made

    return decorate


class Command(click.Command):
    """A command that checks its words, builds its settings, and reports user errors in one line."""

    settings: type[Settings] | None = None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """UserError for words that are not UTF-8 or that are empty; only `--...-prefix` options may be empty."""
        for before, word in zip(["", *args], args, strict=False):
            flag, equals, value = word.partition("=")
            if word.encode(errors="ignore").decode() != word:
                raise UserError(f"{word!a} is not valid UTF-8; use UTF-8 for all names and texts")
            if not word and not before.endswith("-prefix"):
                raise UserError(f"{before if before.startswith('--') else 'an argument'} is empty; is a shell variable unset?")
            if word.startswith("--") and equals and not value and not flag.endswith("-prefix"):
                raise UserError(f"{flag} is empty; is a shell variable unset?")
        runs = {flag for parameter in self.params if isinstance(parameter, Runs) for flag in parameter.opts}
        return super().parse_args(ctx, list(_one_flag_each(args, runs)))

    def invoke(self, ctx: click.Context) -> object:
        """Run the function; translate errors to messages and exit codes."""
        logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
        _quiet_libraries()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # for locales without the letter: show \\u2026
                stream.reconfigure(errors="backslashreplace")
        try:
            _refuse_inputs_as_outputs(ctx)
            if self.settings is not None:
                ctx.params = {"settings": self.settings(**{name: ctx.params[name] for name in ctx.params if typed(name)})}
            return super().invoke(ctx)
        except InputError as error:
            raise UserError(self._with_flag(error)) from error
        except BrokenPipeError:  # `pyserini-kd ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except OSError as error:
            raise UserError(f"{error.filename or 'input/output'}: {error.strerror or error}") from error
        except Exception as error:  # safetensors, Lucene and FAISS wrap system errors in their own types
            if not any(words in str(error) for words in DISK_FULL):
                raise
            raise UserError(f"the disk is full: {str(error).splitlines()[0]}") from error
        except KeyboardInterrupt:
            more = "To resume training, teaching or dense indexing, run the same command again."
            click.echo(f"Interrupted; no file or folder was left half-written under its final name. {more}", err=True)
            sys.exit(130)

    def _with_flag(self, error: InputError) -> str:
        """The message after the flag of the wrong parameter. Parameters in backquotes become flags too."""
        flags = {str(parameter.name): parameter.opts[0] for parameter in self.params if isinstance(parameter, click.Option)}
        message = re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), error.message)
        parameter = error.parameter and flags.get(error.parameter, error.parameter)
        return f"{parameter}: {message}" if parameter else message


def _quiet_libraries() -> None:
    """Silence warnings and progress bars of libraries."""
    for name in ("transformers", "sentence_transformers", "httpx", "huggingface_hub", "faiss", "faiss.loader", "fontTools"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


OUTPUTS = ("output", "triples", "fixed", "folder", "per_query")
"""Parameters that name outputs."""
SOURCES = ("reuse",)
"""Parameters whose file may also be the output: it is read first and its content is kept."""


def _refuse_inputs_as_outputs(ctx: click.Context) -> None:
    """InputError if an output or its record is an input or contains one, because writing would destroy the input."""
    flags = {parameter.name: parameter.opts[0] for parameter in ctx.command.params}
    values = [(name, word) for name, value in ctx.params.items() for word in (value if isinstance(value, tuple) else [value])]
    paths = [(name, Path(word)) for name, word in values if isinstance(word, str | Path) and word and name not in SOURCES]
    for name, output in ((name, path) for name, path in paths if name in OUTPUTS):
        for other, path in paths:
            with contextlib.suppress(OSError):  # missing, or not a path
                if how := other != name and _replaces(output, path):
                    raise InputError(f"{flags[name]} {output} {how} ({flags[other]}); give it another name")


def _replaces(output: Path, path: Path) -> str:
    """How writing `output` would replace `path`, as text for a message; "" if it would not."""
    if output.exists() and output.samefile(path):
        return "is an input too"
    if output.is_dir() and output.resolve() in path.resolve(strict=True).parents:
        return f"holds an input, {path}"
    if not output.is_dir() and (record := record_path(output)).exists() and record.samefile(path):
        return f"has the record {record}, which is an input"
    return ""


# ----------------------------------------------------------------------------------------- options of typed settings


def _parameters(settings: type[Settings]) -> Iterator[click.Parameter]:
    """The options and arguments of a settings model, in the order of its fields."""
    for name, field in settings.model_fields.items():
        shown = next((piece for piece in field.metadata if isinstance(piece, Option)), None)
        if shown is None:
            continue
        kind, several = (str, False) if shown.plain else _plain(field.annotation)
        required, value_type = field.is_required(), _click_type(kind, shown.bounds)
        if not shown.flags[0].startswith("-"):
            width = -1 if several else 1
            yield click.Argument([name], type=value_type, nargs=width, required=required, metavar=shown.metavar)
            continue
        default = None if required or several else field.default
        is_flag = True if kind is bool else None
        yield (Runs if shown.words else click.Option)(
            [*shown.flags, name], type=value_type, is_flag=is_flag, default=default, required=required, multiple=several,
            help=shown.help, metavar=shown.metavar, hidden=shown.hidden,
        )  # fmt: skip


def _plain(annotation: object) -> tuple[object, bool]:
    """(type of one value, whether several values are allowed) of a field type.

    >>> _plain(int | None), _plain(tuple[str, ...])
    ((<class 'int'>, False), (<class 'str'>, True))
    """
    first = next((part for part in get_args(annotation) if part is not NoneType), None)
    if get_origin(annotation) in (Union, UnionType):
        return _plain(first)
    return (first, True) if get_origin(annotation) is tuple else (annotation, False)


def _click_type(kind: object, bounds: Bounds) -> click.ParamType[Any]:
    """The click type for the type of one value."""
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if kind is Path:
        return click.Path(path_type=Path)
    if kind in (int, float) and bounds:
        limits: dict[str, Any] = {"min": bounds.get("ge", bounds.get("gt")), "max": bounds.get("le", bounds.get("lt"))}
        return (click.IntRange if kind is int else click.FloatRange)(**limits, min_open="gt" in bounds, max_open="lt" in bounds)
    return click.types.convert_type(kind)


class Runs(click.Option):
    """An option with any number of values after one flag (`--runs A B C`), as in Pyserini."""


def _one_flag_each(args: list[str], flags: set[str]) -> Iterator[str]:
    """The same words, with the flag before each value of a `Runs` option, as click reads them.

    >>> list(_one_flag_each(["--runs", "a", "b", "--depth", "9"], {"--runs"}))
    ['--runs', 'a', '--runs', 'b', '--depth', '9']
    """
    flag, first = "", False
    for number, word in enumerate(args):
        if word == "--":
            yield from args[number:]
            return
        if flag and not first and not word.startswith("-"):
            yield flag
        elif not first:
            flag = name if (name := word.partition("=")[0]) in flags else ""
        first = word in flags and not first
        yield word
