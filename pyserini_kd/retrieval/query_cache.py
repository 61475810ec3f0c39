"""Query vectors kept between searches: a folder with one SQLite database for each way of encoding.

A database holds the SHA-256 of each text and its vector. Its name is a checksum of all else that a vector depends on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pyserini_kd.models.rankers import Encoder
from pyserini_kd.storage.arrays import Floats, chunks
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, locked, refuse_existing

logger = logging.getLogger(__name__)

TABLES = """PRAGMA page_size = 16384;
CREATE TABLE about (made_by TEXT);
CREATE TABLE vectors (text BLOB PRIMARY KEY, vector BLOB);"""


@dataclasses.dataclass(frozen=True)
class QueryCache:
    """The database of one way of encoding; `made_by` says which way."""

    path: Path
    made_by: str

    @classmethod
    def of(cls, folder: str | Path, encoder: Encoder) -> QueryCache:
        """The cache of an encoder's query vectors. It depends on weights, pooling, length, prefix and arithmetic."""
        known = encoder.record()
        made_by = {field: known[field] for field in ("pooling", "l2_norm", "max_query_len", "query_prefix", "sha256")}
        made_by |= encoder.arithmetic()
        text = json.dumps(made_by, sort_keys=True)
        return cls(Path(folder) / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.sqlite", text)

    def encode(self, texts: Sequence[str], encode: Callable[[list[str]], Floats]) -> Floats:
        """Vectors float32 (Q, H) of texts. Known ones come from the database; `encode` makes the others, which are then kept.

        Raises:
            InputError: the database is damaged, or not ours, or cannot be written.
        """
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]
        vectors = self._read(keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in vectors}
        if missing or not texts:
            found = dict(zip(missing, encoded := encode(list(missing.values())), strict=True))
            if not texts:  # no queries, no file
                return encoded
            self._write(found)
            vectors |= found
        logger.info("query cache %s: %d queries found, %d encoded", self.path, len(vectors) - len(missing), len(missing))
        return np.stack([vectors[key] for key in keys])

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, Floats]:
        if not self.path.exists():
            return {}
        with self._open() as database:
            known: dict[bytes, Floats] = {}
            for some in chunks(keys, 500):
                asked = f"SELECT text, vector FROM vectors WHERE text IN ({','.join('?' * len(some))})"
                known |= {key: np.frombuffer(vector, "<f4") for key, vector in database.execute(asked, some)}
            return known

    def _write(self, vectors: dict[bytes, Floats]) -> None:
        refuse_existing(self.path, overwrite=True)  # SQLite would not say what is wrong with the folder
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.parent):
            if not self.path.exists():
                with contextlib.closing(sqlite3.connect(":memory:")) as new, atomic_file(self.path, binary=True) as out:
                    new.executescript(TABLES)
                    new.execute("INSERT INTO about VALUES (?)", (self.made_by,))
                    new.commit()
                    out.write(new.serialize())
        with self._open() as database, database:
            rows = ((key, vector.astype("<f4").tobytes()) for key, vector in vectors.items())
            database.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=rw", 60, uri=True)) as database:
                if database.execute("SELECT made_by FROM about").fetchall() != [(self.made_by,)]:
                    raise InputError(f"the query cache {self.path} is not ours; remove it")
                yield database
        except sqlite3.Error as error:
            if error.sqlite_errorname in ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR"):
                raise InputError(f"the query cache {self.path} is damaged or not ours ({error}); remove it") from error
            raise InputError(f"the query cache {self.path} cannot be read or written: {error}") from error
