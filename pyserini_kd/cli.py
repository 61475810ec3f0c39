"""How commands behave: errors become one line and an exit code, help carries an example, logs go to stderr."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import record_path
from pyserini_kd.storage.settings import Option, Settings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

DISK_FULL = ("No space left on device", "Disk quota exceeded")


class UserError(click.ClickException):
    """One clear line on stderr, exit code 2, no traceback."""

    exit_code = 2


def typed(parameter: str) -> bool:
    """Whether the user gave a parameter of the running command, and has not just its default."""
    source = click.get_current_context().get_parameter_source(parameter)
    return source not in (None, click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP)


def command(
    name: str, example: str, epilog: str = "", *, settings: type[Settings] | None = None, **more: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command whose help ends with an example and which turns InputError and OSError into UserError.

    With `settings` its options are the fields of that model, and the function gets the model. Only what was typed is given to
    the model: `Settings.given` tells it from a default.
    """

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
                if settings is not None:
                    args, kwargs = (*args, settings(**{name: kwargs[name] for name in kwargs if typed(name)})), {}
                return function(*args, **kwargs)
            except InputError as error:
                raise UserError(_with_flag(error)) from error
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
        own = list(_parameters(settings)) if settings is not None else []
        made = click.command(name=name, cls=Command, epilog=text, context_settings=context, **more)(run)
        made.params = [*own, *made.params]
        return made

    return decorate


def _with_flag(error: InputError) -> str:
    """The message of an error, behind the flag of the parameter that is wrong; parameters that it names become flags too."""
    parameters = click.get_current_context().command.params
    flags = {str(parameter.name): parameter.opts[0] for parameter in parameters if isinstance(parameter, click.Option)}
    message = re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), error.message)
    parameter = flags.get(error.parameter or "", error.parameter)
    return f"{parameter}: {message}" if parameter else message


# ----------------------------------------------------------------------------------------- options of typed settings


def _parameters(settings: type[Settings]) -> Iterator[click.Parameter]:
    """The options and arguments of a model, in the order of its fields."""
    for name, field in settings.model_fields.items():
        shown = next((piece for piece in field.metadata if isinstance(piece, Option)), None)
        if shown is not None:
            yield _parameter(name, field, shown)


def _parameter(name: str, field: FieldInfo, shown: Option) -> click.Parameter:
    """The click parameter of a field: its type, bounds and default are the field's."""
    kind, optional, several = (str, True, False) if shown.plain else _unwrapped(field.annotation)
    required = field.is_required()
    if not shown.flags[0].startswith("-"):
        width = -1 if several else 1
        return click.Argument([name], type=_click_type(kind, field), nargs=width, required=required, metavar=shown.metavar)
    attributes: dict[str, Any] = {"help": shown.help, "hidden": shown.hidden, "required": required}
    if not required and not several:
        attributes["default"] = field.get_default(call_default_factory=True)
    if kind is bool:
        attributes |= {} if "/" in shown.flags[0] else {"is_flag": True}
        return click.Option([*shown.flags, name], show_default=not optional and "/" in shown.flags[0], **attributes)
    attributes |= {"type": _click_type(kind, field), "metavar": shown.metavar, "multiple": several}
    return (Runs if shown.words else click.Option)([*shown.flags, name], **attributes)


def _unwrapped(annotation: Any) -> tuple[Any, bool, bool]:
    """(plain type, whether it may be None, whether there may be several) of a field's type.

    >>> _unwrapped(int | None), _unwrapped(tuple[str, ...])
    ((<class 'int'>, True, False), (<class 'str'>, False, True))
    """
    parts = get_args(annotation)
    if type(None) in parts:
        kind, _, several = _unwrapped(next(part for part in parts if part is not type(None)))
        return kind, True, several
    if get_origin(annotation) is tuple:
        return parts[0], False, True
    return annotation, False, False


def _click_type(kind: Any, field: FieldInfo) -> Any:
    """The click type of a plain type, with the bounds that pydantic knows of."""
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if kind is Path:
        return click.Path(path_type=Path)
    bounds = {
        name: getattr(piece, name) for piece in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(piece, name)
    }
    if kind not in (int, float) or not bounds:
        return kind
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    kinds = {int: click.IntRange, float: click.FloatRange}
    return kinds[kind](low, high, min_open="gt" in bounds, max_open="lt" in bounds)


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
