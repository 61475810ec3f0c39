"""How commands behave: errors become one line and an exit code, help carries an example, logs go to stderr."""

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


class UserError(click.ClickException):
    """One clear line on stderr, exit code 2, no traceback."""

    exit_code = 2


def typed(parameter: str) -> bool:
    """Whether the user gave a parameter of the running command, and has not just its default."""
    source = click.get_current_context().get_parameter_source(parameter)
    return source not in (None, click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP)


def command(
    name: str, example: str, epilog: str = "", *, settings: type[Settings] | None = None
) -> Callable[[Callable[..., object]], click.Command]:
    """Make a click command. Its help ends with an example. It turns InputError and OSError into UserError.

    With `settings` its options are the fields of that model, and the function gets the model. Only what was typed is given to
    the model: `Settings.given` tells it from a default.
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
    """A command that looks at its words first, makes settings of them, and says in one line what the user can mend."""

    settings: type[Settings] | None = None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse bytes that are no text, and blank words: a shell makes them of variables that are not set.

        A prefix of texts may be blank.
        """
        for before, word in zip(["", *args], args, strict=False):
            flag, equals, value = word.partition("=")
            if word.encode(errors="ignore").decode() != word:
                raise UserError(f"{word!a} is not valid UTF-8; neither libraries nor run files take such names and texts")
            if not word and not before.endswith("-prefix"):
                raise UserError(f"{before if before.startswith('--') else 'an argument'} is empty; is a variable not set?")
            if word.startswith("--") and equals and not value and not flag.endswith("-prefix"):
                raise UserError(f"{flag} is empty; is a variable not set?")
        runs = {flag for parameter in self.params if isinstance(parameter, Runs) for flag in parameter.opts}
        return super().parse_args(ctx, list(_one_flag_each(args, runs)))

    def invoke(self, ctx: click.Context) -> object:
        """Run the function."""
        logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
        _quiet_libraries()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # an old locale: what it has no letter for is shown as \\u2026
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
        except Exception as error:  # safetensors, Lucene and FAISS wrap what the system said in types of their own
            if not any(words in str(error) for words in DISK_FULL):
                raise
            raise UserError(f"the disk is full: {str(error).splitlines()[0]}") from error
        except KeyboardInterrupt:
            more = "Training, teaching and dense indexing go on from there when the same command is started again."
            click.echo(f"Interrupted; no file or folder was left half-written under its final name. {more}", err=True)
            sys.exit(130)

    def _with_flag(self, error: InputError) -> str:
        """The message of an error, behind the flag of the parameter that is wrong; parameters it names become flags too."""
        flags = {str(parameter.name): parameter.opts[0] for parameter in self.params if isinstance(parameter, click.Option)}
        message = re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), error.message)
        parameter = flags.get(error.parameter or "", error.parameter)
        return f"{parameter}: {message}" if parameter else message


def _quiet_libraries() -> None:
    """Keep libraries from talking over our own messages: no advice, no bars but ours."""
    for name in ("transformers", "sentence_transformers", "httpx", "huggingface_hub", "faiss", "faiss.loader", "fontTools"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


OUTPUTS = ("output", "triples", "fixed", "folder", "per_query")
"""Parameters of commands that name what is written."""
SOURCES = ("reuse",)
"""Parameters that may name what is written as well: they are read first, and what they hold is kept."""


def _refuse_inputs_as_outputs(ctx: click.Context) -> None:
    """InputError where what is to be written, or its record, is an input too, or holds one: that would be gone."""
    flags = {parameter.name: parameter.opts[0] for parameter in ctx.command.params}
    values = [(name, word) for name, value in ctx.params.items() for word in (value if isinstance(value, tuple) else [value])]
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


# ----------------------------------------------------------------------------------------- options of typed settings


def _parameters(settings: type[Settings]) -> Iterator[click.Parameter]:
    """The options and arguments of a model, in the order of its fields; types, bounds and defaults are the fields'."""
    for name, field in settings.model_fields.items():
        shown = next((piece for piece in field.metadata if isinstance(piece, Option)), None)
        if shown is None:
            continue
        kind, several = (str, False) if shown.plain else _plain(field.annotation)
        required, of_one = field.is_required(), _click_type(kind, shown.bounds)
        if not shown.flags[0].startswith("-"):
            width = -1 if several else 1
            yield click.Argument([name], type=of_one, nargs=width, required=required, metavar=shown.metavar)
            continue
        default = None if required or several else field.default
        is_flag = True if kind is bool else None
        yield (Runs if shown.words else click.Option)(
            [*shown.flags, name], type=of_one, is_flag=is_flag, default=default, required=required, multiple=several,
            help=shown.help, metavar=shown.metavar, hidden=shown.hidden,
        )  # fmt: skip


def _plain(annotation: object) -> tuple[object, bool]:
    """(type of one value, whether there may be several) of a field's type.

    >>> _plain(int | None), _plain(tuple[str, ...])
    ((<class 'int'>, False), (<class 'str'>, True))
    """
    first = next((part for part in get_args(annotation) if part is not NoneType), None)
    if get_origin(annotation) in (Union, UnionType):
        return _plain(first)
    return (first, True) if get_origin(annotation) is tuple else (annotation, False)


def _click_type(kind: object, bounds: Bounds) -> click.ParamType[Any]:
    """The click type of the type of one value."""
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if kind is Path:
        return click.Path(path_type=Path)
    if kind in (int, float) and bounds:
        limits: dict[str, Any] = {"min": bounds.get("ge", bounds.get("gt")), "max": bounds.get("le", bounds.get("lt"))}
        return (click.IntRange if kind is int else click.FloatRange)(**limits, min_open="gt" in bounds, max_open="lt" in bounds)
    return click.types.convert_type(kind)


class Runs(click.Option):
    """An option that takes any number of values after one flag (`--runs A B C`), as Pyserini's argparse does."""


def _one_flag_each(args: list[str], flags: set[str]) -> Iterator[str]:
    """Words in which each value of a `Runs` option follows a flag of its own, as click reads them.

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
