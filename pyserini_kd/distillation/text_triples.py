"""Turn triples of texts into the files for training: triples of ids, topics, and a collection."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyserini_kd.data.formats import write_docs
from pyserini_kd.data.ids import hashes_of, id_hash, look_up, merge_into
from pyserini_kd.data.texts import text_triples
from pyserini_kd.data.types import Doc
from pyserini_kd.storage.arrays import Hashes, chunks
from pyserini_kd.storage.files import atomic_file, refuse_existing

CHUNK = 50_000  # triples in memory


class Converted(NamedTuple):
    """The files, and the numbers of triples written and left out."""

    topics: Path
    docs: Path
    triples: int
    left_out: int


def convert(path: Path, output: Path, *, overwrite: bool = False) -> Converted:
    """Write triples of ids to `output`, and beside it their texts: `NAME.topics.tsv` and `NAME.docs.jsonl`.

    An id is a 64-bit hash of the text, so equal texts have one id. A triple whose negative is a positive of its query, here or
    in another line, is left out. Memory holds 8 bytes per text, and every pair of a query and its positive as a number.
    """
    name = output.name.removesuffix(".gz").removesuffix(output.suffix if output.suffix != ".gz" else ".tsv")
    topics, docs = (output.with_name(f"{name}.{ending}") for ending in ("topics.tsv", "docs.jsonl"))
    for file in (output, topics, docs):
        refuse_existing(file, overwrite)
    positives = {id_hash(f"{query}\t{positive}") for query, positive, _ in text_triples(path)}
    known: dict[str, list[Hashes]] = {"q": [], "d": []}
    count = kept = 0
    with (
        atomic_file(output, overwrite=overwrite) as triples,
        atomic_file(topics, overwrite=overwrite) as queries,
        atomic_file(docs, overwrite=overwrite) as passages,
    ):
        for chunk in chunks(text_triples(path), CHUNK):
            count += len(chunk)
            chunk = [triple for triple in chunk if id_hash(f"{triple[0]}\t{triple[2]}") not in positives]
            kept += len(chunk)
            triples.writelines(f"{text_id(q)}\t{text_id(p)}\t{text_id(n)}\n" for q, p, n in chunk)
            queries.writelines(f"{text_id(text)}\t{text}\n" for text in _new((q for q, _, _ in chunk), known["q"]))
            new = _new((text for _, *two in chunk for text in two), known["d"])
            write_docs((Doc(text_id(text), "", text) for text in new), passages)
    return Converted(topics, docs, kept, count - kept)


def text_id(text: str) -> str:
    """The id of a text: its 64-bit hash in 16 hexadecimal digits."""
    return f"{id_hash(text):016x}"


def _new(texts: Iterable[str], known: list[Hashes]) -> list[str]:
    """Return the new texts, each once, and add them to `known`."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    hashes = hashes_of(distinct)
    is_old = np.zeros(len(distinct), bool)
    for old in known:
        is_old |= look_up(old, hashes)[0]
    merge_into(known, np.unique(hashes[~is_old]))
    return [text for text, old in zip(distinct, is_old.tolist(), strict=True) if not old]
