"""Typed settings: one model for each command or procedure, its rules beside it, and how a command line shows its fields.

`cli.command` turns the fields of a model into options. A field that is annotated with an `Option` is one of them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pyserini_kd.storage.errors import InputError

PrecisionName = Literal["auto", "fp32", "bf16", "fp16", "int8"]
BackendName = Literal["auto", "torch", "onnx"]
PRECISIONS, BACKENDS = get_args(PrecisionName), get_args(BackendName)


@dataclasses.dataclass(frozen=True)
class Option:
    """How a field is shown on a command line.

    Attributes:
        flags: `--name`, and other spellings; no `--` for an argument without a flag. `--name/--no-name` for a switch.
        help: one sentence.
        metavar: what stands for the value in the help.
        words: any number of values follow one flag (`--runs A B C`), as Pyserini's commands take them.
        hidden: not shown in the help.
        plain: one word, which the model itself turns into the value.
    """

    flags: tuple[str, ...]
    help: str = ""
    metavar: str | None = None
    words: bool = False
    hidden: bool = False
    plain: bool = False


def option(*flags: str, help: str = "", **more: Any) -> Option:  # noqa: A002 - the word of click
    """An `Option` of these flags."""
    return Option(flags, help, **more)


class Settings(BaseModel):
    """Settings that are checked when they are made, and do not change afterwards.

    A field that was given counts as given also where it has the default value (`given`).

    Raises:
        InputError: a value or a combination of values is wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def __init__(self, **values: Any) -> None:
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

    def but(self, **values: Any) -> Self:
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


# Options that several commands share

Collection = Annotated[str, option("--collection", help="Collection: a path, ir_datasets:<id> or pydocs.")]
Overwrite = Annotated[bool, option("--overwrite", help="Replace the output if it exists.")]
Device = Annotated[str, option("--device", help="cpu, cuda or cuda:N.")]
Precision = Annotated[PrecisionName, option("--precision", help="Arithmetic.")]
Backend = Annotated[BackendName, option("--backend", help="What computes.")]
Threads = Annotated[int | None, Field(ge=1), option("--threads", help="[default: all processors]")]
Pooling = Annotated[Literal["cls", "mean"] | None, option("--pooling", help="[default: from the checkpoint]")]
Segment = Annotated[
    str | None, option("--segment", metavar="WORDS:STRIDE", help="Passages `docid#n` of so many words, e.g. 150:75.")
]
RunTag = Annotated[str | None, option("--runtag", help="[default: the encoder's name]")]
OutputFormat = Annotated[Literal["trec", "msmarco"], option("--output-format", help="Run format.")]
IrMetadata = Annotated[
    bool, option("--ir-metadata", help="Begin the run with ir_metadata comments (trec_eval does not know them).")
]
OutputRun = Annotated[Path, option("--output", help="Run to write.")]
Seed = Annotated[int, Field(ge=0), option("--seed", help="Seed of the random numbers.")]


BatchSize = Annotated[
    int | None, Field(ge=1), option("--batch-size", "--batch", help="Texts or pairs in a batch [default: by token budget].")
]


def batch_size(what: str) -> Any:
    """The type of `--batch-size`: `what` are counted, by a token budget where no number is given."""
    return Annotated[
        int | None, Field(ge=1), option("--batch-size", "--batch", help=f"{what} a batch [default: by token budget].")
    ]
