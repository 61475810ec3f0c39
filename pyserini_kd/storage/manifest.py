"""The manifest of an index folder: which encoder made it, from which collection, how."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import Record, comparable, read_json, write_json

NAME = "manifest.json"


class Manifest(BaseModel):
    """What `manifest.json` says. A field that was not given is not in the file; other entries are kept as they are.

    Attributes:
        folder: the index folder; not in the file.
        kind: `dense`, `tokens`, `impact` or `bm25`.
        encoder: name, `sha256` of the weights, and how the checkpoint reads texts; only a name, or nothing, where the vectors
            were made elsewhere.
        collection: as it was named.
        collection_stamp: changes when the files of the collection change.
        segment: `WORDS:STRIDE` of passages; None for whole documents.
        precision: arithmetic of the encoder.
        index: kind of the vector index.
        n_docs: number of documents.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    folder: Path = Field(exclude=True)
    kind: str | None = None
    encoder: Record = {}
    collection: str | None = None
    collection_stamp: str | None = None
    segment: str | None = None
    precision: str | None = None
    index: str | None = None
    n_docs: int | None = None

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The manifest of a folder; InputError if there is none, or an entry has the wrong type."""
        path = Path(folder) / NAME
        try:
            return cls(**{**read_json(path, "manifest"), "folder": path.parent})
        except ValidationError as error:
            first = error.errors()[0]
            name, found = str(first["loc"][0]), "nothing" if first["type"] == "missing" else first["input"]
            wanted = {"encoder": "a record", "n_docs": "a number", "width": "a number"}.get(name, "text")
            raise InputError(f"{path}: `{name}` must be {wanted}, not {found!r}") from None

    @classmethod
    def find(cls, folder: str | Path) -> Self | None:
        """The manifest of a folder; None if the folder is not ours."""
        return cls.read(folder) if (Path(folder) / NAME).is_file() else None

    def write(self) -> None:
        """Write `manifest.json`, atomically."""
        write_json(self.folder / NAME, self.model_dump(exclude_unset=True))

    @property
    def made_by(self) -> Record:
        """The record of the encoder if its weights are known, else an empty one."""
        return self.encoder if "sha256" in self.encoder else {}

    def says_of(self, name: str) -> bool:
        """Whether the file has an entry of this name."""
        return name in self.model_fields_set

    def says(self, entries: Mapping[str, object]) -> bool:
        """Whether the manifest has all these entries."""
        return bool(comparable(self.model_dump(exclude_unset=True)).items() >= comparable(dict(entries)).items())

    def refuse_other(self, encoder: Mapping[str, object], names: Iterable[str]) -> None:
        """InputError at the first of these entries (`sha256`, `pooling`, ...) in which an encoder is not the one of the index.

        Entries that the manifest does not have are not compared, and none if the weights that made the index are unknown.
        """
        made_by, mine = self.made_by, comparable(dict(encoder))
        for name in names:
            if name in made_by and made_by[name] != mine.get(name):
                raise InputError(
                    f"encoder does not match index {self.folder}: {name} is {str(mine.get(name))[:12]}, "
                    f"the index was made with {str(made_by[name])[:12]} ({made_by.get('name')})"
                )
