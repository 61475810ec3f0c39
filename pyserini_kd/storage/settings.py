"""Typed settings: one model for each command or procedure, its rules beside it, and how a command line shows its fields.

`cli.command` turns the fields of a model that are declared by `option` into options.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypedDict, TypeVar, Unpack, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pyserini_kd.storage.errors import InputError

PrecisionName = Literal["auto", "fp32", "bf16", "fp16", "int8"]
BackendName = Literal["auto", "torch", "onnx"]
PRECISIONS, BACKENDS = get_args(PrecisionName), get_args(BackendName)


class Bounds(TypedDict, total=False):
    """Bounds of a number, as pydantic names them: >=, >, <=, <."""

    ge: float
    gt: float
    le: float
    lt: float


@dataclasses.dataclass(frozen=True)
class Option:
    """How a field is shown on a command line; `option` says what the attributes mean."""

    flags: tuple[str, ...]
    help: str
    metavar: str | None
    words: bool
    hidden: bool
    plain: bool
    bounds: Bounds


def option(
    flags: str, default: Any = ..., help: str = "", *, metavar: str | None = None,  # noqa: A002 - the word of click
    words: bool = False, hidden: bool = False, plain: bool = False, **bounds: Unpack[Bounds],
) -> Any:  # fmt: skip
    """A field that a command shows as an option or an argument; it is required where there is no default.

    Args:
        flags: `--name` and other spellings, by blanks; no `--` for an argument. `--name/--no-name` for a switch.
        default: the value where nothing is given.
        help: one sentence.
        metavar: what stands for the value in the help.
        words: any number of values follow one flag (`--runs A B C`), as Pyserini's commands take them.
        hidden: not shown in the help.
        plain: one word, which the model itself turns into the value.
        bounds: of a number.
    """
    field = Field(default, **bounds)
    field.metadata.append(Option(tuple(flags.split()), help, metavar, words, hidden, plain, bounds))
    return field


class Settings(BaseModel):
    """Settings that are checked when they are made, and do not change afterwards.

    A field that was given counts as given also where it has the default value (`given`).

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
        """Whether a value was given for this field, be it the default or another."""
        return name in self.model_fields_set

    def only(self, names: str, allowed: object, why: str) -> None:
        """InputError for the first of these fields (`a b c`) that was given without effect; `why` says when it has one."""
        if not allowed:
            for name in names.split():
                if self.given(name):
                    raise InputError(why, name)

    def but(self, **values: object) -> Self:
        """The same settings with some values replaced; not checked again."""
        return self.model_copy(update=values)


def _input_error(error: ValidationError) -> InputError:
    """The first fault of a model, in one line."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause
    message = str(cause) if cause is not None else f"{first['msg'][0].lower()}{first['msg'][1:]}, found {first['input']!r}"
    return InputError(message, str(first["loc"][0]) if first["loc"] else None)


# Options that several commands share. Those of a type `T` are required by some commands and not by others.

T = TypeVar("T")
Collection = Annotated[T, option("--collection", help="Collection: a path, ir_datasets:<id> or pydocs.")]
TrainingTopics = Annotated[T, option("--topics", help="Training topics: a file, ir_datasets:<id> or pydocs:train.")]
Candidates = Annotated[T, option("--candidates", help="Groups or triples, from mine.")]
CheckpointFolder = Annotated[Path, option("--output", help="Checkpoint folder to write.")]
Overwrite = Annotated[bool, option("--overwrite", help="Replace the output if it exists.")]
Device = Annotated[str, option("--device", help="cpu, cuda or cuda:N.")]
Precision = Annotated[PrecisionName, option("--precision", help="Arithmetic.")]
Backend = Annotated[BackendName, option("--backend", help="What computes.")]
Threads = Annotated[int | None, option("--threads", help="[default: all processors]", ge=1)]
Pooling = Annotated[Literal["cls", "mean"] | None, option("--pooling", help="[default: from the checkpoint]")]
Segment = Annotated[
    str | None, option("--segment", help="Passages `docid#n` of so many words, e.g. 150:75.", metavar="WORDS:STRIDE")
]
L2Norm = Annotated[bool | None, option("--l2-norm/--no-l2-norm", help="[default: from the checkpoint]")]
RunTag = Annotated[str | None, option("--runtag", help="[default: the encoder's name]")]
OutputFormat = Annotated[Literal["trec", "msmarco"], option("--output-format", help="Run format.")]
IrMetadata = Annotated[
    bool, option("--ir-metadata", help="Begin the run with ir_metadata comments (trec_eval does not know them).")
]
BatchSize = Annotated[
    int | None, option("--batch-size --batch", help="Texts or pairs in a batch [default: by token budget].", ge=1)
]
