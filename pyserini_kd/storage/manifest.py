"""The manifest of an index folder: encoder, collection and settings."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.records import Record, comparable, read_json, write_json

NAME = "manifest.json"


class Manifest(BaseModel):
    """The content of `manifest.json`. Fields that are not set are not in the file. Unknown entries are kept.

    Attributes:
        folder: index folder; not in the file.
        kind: `dense`, `tokens`, `impact` or `bm25`.
        encoder: name, `sha256` of the weights and text settings; only a name or nothing for external vectors.
        collection: path or name, as the user gave it.
        collection_stamp: hash that changes when the files of the collection change.
        segment: `WORDS:STRIDE` of passages; None for whole documents.
        precision: precision of the encoder.
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
        """Read the manifest of a folder; InputError if it is missing or an entry has the wrong type."""
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
        """Read the manifest of a folder; None without a manifest."""
        return cls.read(folder) if (Path(folder) / NAME).is_file() else None

    def write(self) -> None:
        """Write `manifest.json`, atomically."""
        write_json(self.folder / NAME, self.model_dump(exclude_unset=True))

    @property
    def made_by(self) -> Record:
        """The encoder record if it has the `sha256` of the weights, else {}."""
        return self.encoder if "sha256" in self.encoder else {}

    def says_of(self, name: str) -> bool:
        """Whether the file has an entry with this name."""
        return name in self.model_fields_set

    def says(self, entries: Mapping[str, object]) -> bool:
        """Whether the manifest has all these entries with these values."""
        return bool(comparable(self.model_dump(exclude_unset=True)).items() >= comparable(dict(entries)).items())

    def refuse_other(self, encoder: Mapping[str, object], names: Iterable[str]) -> None:
        """InputError if an encoder and the index differ in one of the entries `names` (`sha256`, `pooling`, ...).

        Entries that the manifest lacks are not compared. Nothing is compared if the weights of the index are unknown.
        """
        made_by, mine = self.made_by, comparable(dict(encoder))
        for name in names:
            if name in made_by and made_by[name] != mine.get(name):
                raise InputError(
                    f"encoder does not match index {self.folder}: {name} is {str(mine.get(name))[:12]}, "
                    f"the index was made with {str(made_by[name])[:12]} ({made_by.get('name')})"
                )
