"""Typed settings: one model per command or procedure, with its rules and its command-line options.

`cli.command` makes a command-line option of each field that `option` declares.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypedDict, TypeVar, Unpack, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pyserini_kd.storage.errors import InputError

PrecisionName = Literal["auto", "fp32", "bf16", "fp16", "int8"]
BackendName = Literal["auto", "torch", "openvino"]
PRECISIONS, BACKENDS = get_args(PrecisionName), get_args(BackendName)


class Bounds(TypedDict, total=False):
    """Bounds of a number, with the names of pydantic: >=, >, <=, <."""

    ge: float
    gt: float
    le: float
    lt: float


@dataclasses.dataclass(frozen=True)
class Option:
    """The command-line form of a field; see `option` for the attributes."""

    flags: tuple[str, ...]
    help: str
    metavar: str | None
    words: bool
    hidden: bool
    plain: bool
    bounds: Bounds


def option(
    flags: str, default: Any = ..., help: str = "", *, metavar: str | None = None,  # noqa: A002 - as in click
    words: bool = False, hidden: bool = False, plain: bool = False, **bounds: Unpack[Bounds],
) -> Any:  # fmt: skip
    """Declare a field as a command-line option or argument; it is required without a default.

    Args:
        flags: `--name` and its aliases, separated by blanks; without `--` for an argument; `--name/--no-name` for a switch.
        default: default value.
        help: one sentence.
        metavar: placeholder of the value in the help.
        words: one flag takes any number of values (`--runs A B C`), as in Pyserini.
        hidden: hide the option from the help.
        plain: the command line passes the text; the model parses it.
        bounds: bounds of a number.
    """
    field = Field(default, **bounds)
    field.metadata.append(Option(tuple(flags.split()), help, metavar, words, hidden, plain, bounds))
    return field


class Settings(BaseModel):
    """Immutable settings, checked on creation.

    Raises:
        InputError: a value or a combination of values is wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def __init__(self, **values: object) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _input_error(error) from None

    def given(self, name: str) -> bool:
        """Whether the user gave a value for this field, even the default value."""
        return name in self.model_fields_set

    def only(self, names: str, allowed: object, why: str) -> None:
        """InputError(why) for the first given field in `names` (`a b c`), unless `allowed` is true."""
        if not allowed:
            for name in names.split():
                if self.given(name):
                    raise InputError(why, name)

    def but(self, **values: object) -> Self:
        """A copy with some values replaced, without another check."""
        return self.model_copy(update=values)

    def words(self) -> list[str]:
        """The command-line words of the given values, e.g. ["--runs", "a.txt", "b.txt", "--depth", "10"]."""
        found = list[str]()
        for name, field in type(self).model_fields.items():
            shown = next((piece for piece in field.metadata if isinstance(piece, Option)), None)
            value = getattr(self, name)
            if shown is None or not self.given(name) or value is None:
                continue
            flag, _, negative = shown.flags[0].partition("/")
            if isinstance(value, bool):
                found += [flag] if value else [negative] if negative else []
                continue
            values = [str(part) for part in _several(value)]
            values = [",".join(values)] if shown.plain else values
            found += [*([flag] if flag.startswith("-") else []), *values] if shown.words else _each(flag, values)
        return found


def _several(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def _each(flag: str, values: list[str]) -> list[str]:
    return [word for value in values for word in ((flag, value) if flag.startswith("-") else (value,))]


def _input_error(error: ValidationError) -> InputError:
    """The first validation error, as one line."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause
    message = str(cause) if cause is not None else f"{first['msg'][0].lower()}{first['msg'][1:]}, found {first['input']!r}"
    return InputError(message, str(first["loc"][0]) if first["loc"] else None)


# Options that several commands share. Fields of type `T` are required in some commands and optional in others.

T = TypeVar("T")


def named_fields(text: str) -> dict[str, str]:
    """The names in `id=ticket,title=subject,text=body`; InputError for another form.

    >>> named_fields("id=ticket,text=body")
    {'id': 'ticket', 'text': 'body'}
    """
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    if not fields.keys() <= {"id", "title", "text"} or not all(fields.values()) or len(fields) != text.count(",") + 1:
        raise InputError(f"expected names of columns such as id=ticket,title=subject,text=body, found {text!r}", "fields")
    return fields


def _checked_fields(text: str | None) -> str | None:
    if text is not None:
        named_fields(text)
    return text


Fields = Annotated[
    str | None,
    AfterValidator(_checked_fields),
    option("--fields", help="Columns or JSON fields of the collection [default: by name].", metavar="id=A,title=B,text=C"),
]
Collection = Annotated[T, option("--collection", help="Collection: a path, ir_datasets:<id> or pydocs.")]
TrainingTopics = Annotated[T, option("--topics", help="Training topics: a file, ir_datasets:<id> or pydocs:train.")]
Candidates = Annotated[T, option("--candidates", help="Candidates (groups or triples), from the command mine.")]
CheckpointFolder = Annotated[Path, option("--output", help="Checkpoint folder to write.")]
Overwrite = Annotated[bool, option("--overwrite", help="Replace the output if it exists.")]
Device = Annotated[str, option("--device", help="cpu, cuda or cuda:N.")]
Precision = Annotated[PrecisionName, option("--precision", help="Floating-point precision or int8.")]
Backend = Annotated[BackendName, option("--backend", help="Inference backend.")]
Threads = Annotated[int | None, option("--threads", help="Number of CPU threads [default: all processors].", ge=1)]
Pooling = Annotated[Literal["cls", "mean"] | None, option("--pooling", help="Pooling [default: from the checkpoint].")]
Segment = Annotated[
    str | None, option("--segment", help="Cut documents into passages `docid#n`, e.g. 150:75.", metavar="WORDS:STRIDE")
]
L2Norm = Annotated[bool | None, option("--l2-norm/--no-l2-norm", help="Normalise vectors [default: from the checkpoint].")]
RunTag = Annotated[str | None, option("--runtag", help="Run tag [default: the encoder's name].")]
OutputFormat = Annotated[Literal["trec", "msmarco"], option("--output-format", help="Run format.")]
IrMetadata = Annotated[
    bool, option("--ir-metadata", help="Write ir_metadata comments at the top of the run (trec_eval rejects them).")
]
BatchSize = Annotated[
    int | None, option("--batch-size --batch", help="Texts or pairs per batch [default: by token budget].", ge=1)
]
